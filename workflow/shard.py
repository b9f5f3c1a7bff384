"""Make one shard of a stage's samples, unless DVC need not run the stage.

shard.py [FILE:]STAGE I/N
"""

import os
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

from dvc.repo import Repo
from dvc.rwlock import rwlock
from dvc.stage import PipelineStage
from dvc.stage.cache import RunCacheNotFoundError
from dvc.utils import parse_target
from dvc_data.hashfile.hash_info import HashInfo
from dvcdag import STAMPS  # which has DVC parse params.yaml only once


def make(target: str, shard: str) -> str:
    """Make the shard ``I/N`` of a stage; returns what became of it."""
    repo = Repo(".", _wait_for_lock=True)
    with repo.lock:  # dvc.lock is not written in one piece
        # alone: the graph of all stages takes longer than the rest
        stage = repo.stage.load_one(*parse_target(target))
        if not stage.changed():
            return "unchanged"
        stage.save_deps()
        for out in stage.outs:  # dvc.lock's outputs belong to its old deps
            out.hash_info = HashInfo()
        try:
            repo.stage_cache.restore(stage, dry=True)
            return "in DVC's run cache"
        except RunCacheNotFoundError:
            pass
    environment = {**os.environ, "DVC_STAGE": stage.addressing}
    with _listed(stage, shard):
        # exec: the command is a child of this process, not of a shell that would outlive it
        subprocess.run(f"exec {stage.cmd} --shard {shard}", shell=True, check=True, env=environment)
    return "made"


def _listed(stage: PipelineStage, shard: str) -> AbstractContextManager[None]:
    """Be in DVC's list while a shard is made: nobody then makes it too, or writes what it reads."""
    reads = [dep.fs_path for dep in stage.deps]
    writes = [str(Path(stage.repo.root_dir, STAMPS, "shards", stage.name, shard.replace("/", "-of-")))]
    return rwlock(stage.repo.tmp_dir, stage.repo.fs, " ".join(sys.argv), reads, writes, False)


if __name__ == "__main__":
    try:
        print(f"{sys.argv[1]} {sys.argv[2]}:", make(*sys.argv[1:3]))
    except subprocess.CalledProcessError as error:  # the command has said why
        sys.exit(abs(error.returncode))

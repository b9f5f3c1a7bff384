"""``dvc repro`` as the Snakemake rules run it, with the same words and the same ``dvc.lock``, but written in place.

repro.py STAGE...

For each stage that ran, DVC reads and writes all of ``dvc.lock`` by a parser that would keep comments: longer than
all its other work, and all the longer the more stages there are. The file has one block of lines a stage, so here that
of the stage is exchanged, and the file renamed into place, so that it is whole also when the process is killed.

DVC also parses params.yaml each time that it looks at a stage's parameters: here once, as it was when the stage began.
"""

import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from dvc.cli import main
from dvc.dependency import param
from dvc.dvcfile import Lockfile
from dvc.stage import PipelineStage, serialize
from dvc.utils.serialize import dumps_yaml

EMPTY = "schema: '2.0'\nstages:\n"


def dump_stages(lock: Lockfile, stages: list[PipelineStage], **settings: Any) -> None:
    """Lockfile.dump_stages of DVC: record the stages as they are."""
    path = Path(lock.path)
    old = new = path.read_text() if path.exists() else EMPTY
    for stage in stages:
        _, head, body = dumps_yaml({"stages": serialize.to_lockfile(stage, **settings)}).split("\n", 2)
        block = f"{head}\n{body}"
        written = re.compile(rf"^{re.escape(head)}\n(?:(?: {{4}}.*)?\n)+", re.MULTILINE)
        new, found = written.subn(lambda _, block=block: block, new)
        new += "" if found else block
    if new != old:
        temporary = Path(lock.repo.tmp_dir, path.name)
        temporary.write_text(new)
        temporary.replace(path)
        lock.repo.scm_context.track_file(lock.relpath)


if __name__ == "__main__":
    Lockfile.dump_stages = dump_stages
    param.load_path = cache(param.load_path)
    sys.exit(main(["--wait-for-lock", "repro", "--single-item", *sys.argv[1:]]))

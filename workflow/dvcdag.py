"""The stages of dvc.yaml, as the Snakemake rules need them.

dvc.yaml is the one place where a stage's command, dependencies, parameters and outputs are written. A rule of
workflow/rules runs ``dvc repro --single-item STAGE`` (repro.py) and says what the stage needs (cores, memory, time).
What Snakemake compares are stamps, one empty file a stage: :meth:`Stages.sync` makes them say what DVC finds by
content, so the two tools never disagree on what is out of date.

Some of the calls of DVC used here are not documented: tests/test_workflow.py fails when they change.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import re
import shutil
import sys
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import IO

import networkx as nx
import psutil
from dvc.dependency import param
from dvc.repo import Repo
from dvc.scm import SCMError
from index import prune

# the objects of hundreds of stages are made, and stay: looking for garbage among them takes as long as making them
gc.set_threshold(1_000_000)
# DVC parses params.yaml anew for each stage, which takes longer than all the rest
param.load_path = cache(param.load_path)

STAMPS = Path(".stamps")
RUNNING = ".running"  # in STAMPS: locked by the Snakemake that runs here
SNAKEMAKE_LOCKS = Path(".snakemake/locks")
DEFAULT, NOT_RUN = "dvc.yaml", "has not run"
REASONS = 3  # that are told of one stage
FRESH = 946684800  # the one modification time of every stamp that sync writes
POLL = 0.5  # seconds between two looks at what another process does


class Stages:
    """The stages of the project in the current folder, those that others read first, by their names in dvc.yaml."""

    def __init__(self) -> None:
        # DVC starts commands through it; bash becomes the command, which then ends with DVC (edadm/processes.py)
        os.environ["SHELL"] = shutil.which("bash") or "/bin/bash"
        try:
            self.repo = Repo(".", _wait_for_lock=True)
            _ = self.repo.scm
        except SCMError as error:
            sys.exit(f"{error}, which DVC needs; get the project by `git clone`, or run `git init` here")
        self.alone: IO[str] | None = None
        with self.repo.lock:  # dvc.lock is not written in one piece
            graph = self.repo.index.graph
        order = list(nx.dfs_postorder_nodes(graph))
        self.stages = {stage.name: stage for stage in order if stage.cmd}
        self.upstream = {
            name: sorted(other.name for other in graph.successors(stage) if other.cmd)
            for name, stage in self.stages.items()
        }

    @staticmethod
    def stamp(name: str) -> str:
        """The stamp of a stage."""
        return str(STAMPS / name)

    def inputs(self, name: str) -> list[str]:
        """The stamps of the stages whose outputs stage ``name`` reads."""
        return [self.stamp(other) for other in self.upstream[name]]

    def changed(self) -> dict[str, str]:
        """The stages that DVC finds changed, each with the reason.

        This is ``dvc status`` without its read locks, so that it also answers while stages are running, here or on
        another node.
        """
        found = {}
        with self.repo.lock:
            for name, stage in self.stages.items():
                if not any(out.hash_info for out in stage.outs):
                    found[name] = NOT_RUN
                    continue
                why = ["command changed"] if stage.changed_stage() else []
                for entry in [*stage.deps, *stage.outs]:
                    for path, what in entry.status().items():
                        parts = {"": what} if isinstance(what, str) else what
                        why += [" ".join(filter(None, (path, key, how))) for key, how in parts.items()]
                if len(why) > REASONS:
                    why[REASONS:] = [f"and {len(why) - REASONS} more"]
                if why:
                    found[name] = ", ".join(why)
        return found

    def sync(self) -> list[str]:
        """Let the stamps say what DVC finds; returns a line for each change that others do not follow from.

        A stage has a stamp when neither it nor one that it builds on changed. All stamps that sync writes have one
        time, so none is newer than another. While another Snakemake runs in this folder, the stamps are left alone.
        """
        if not self._is_alone():
            return []
        prune()
        changed = self.changed()
        stale = set(changed)
        for name in self.stages:  # what others read comes first
            if stale.intersection(self.upstream[name]):
                stale.add(name)
        for old in filter(Path.is_file, STAMPS.iterdir()):
            if old.name != RUNNING and (old.name in stale or old.name not in self.stages):
                old.unlink()
        for name in self.stages.keys() - stale:
            path = STAMPS / name
            path.touch()
            os.utime(path, (FRESH, FRESH))
        first = {name: why for name, why in changed.items() if not stale.intersection(self.upstream[name])}
        return self._lines({name: why for name, why in first.items() if why != NOT_RUN})

    def _lines(self, changed: dict[str, str]) -> list[str]:
        """Of dvc.yaml why each stage changed; of files that only targets of their own ask for how many did."""
        files = Counter(self.stages[name].relpath for name in changed)
        lines = [f"changed: {name}: {why}" for name, why in changed.items() if self.stages[name].relpath == DEFAULT]
        others = [(file, count) for file, count in files.items() if file != DEFAULT]
        return lines + [f"changed: stages of {file} ({count}): see `dvc status {file}`" for file, count in others]

    def _is_alone(self) -> bool:
        """Whether no other Snakemake runs here. What a killed one left is cleared away then.

        The lock on .stamps/.running goes with the process that holds it, however that ends; Snakemake's own locks stay
        after kill -9, and would have to be removed by hand.
        """
        STAMPS.mkdir(exist_ok=True)
        self.alone = (STAMPS / RUNNING).open("a")  # kept open, and so locked, as long as this process lives
        while True:
            try:
                fcntl.flock(self.alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if any(SNAKEMAKE_LOCKS.glob("*.lock")):
                    return False
                time.sleep(POLL)  # the other one only looks (-n), or has just begun
        left = list(SNAKEMAKE_LOCKS.glob("*.lock"))
        if left:
            self._wait_for_orphans()
        for path in left:
            path.unlink()
        return True

    def _wait_for_orphans(self) -> None:
        """Wait for stages that outlived the Snakemake which began them: DVC records them when they end."""
        told: set[int] = set()
        while running := self._running():
            for process in running - told:
                print(f"waiting for process {process}, a stage of a stopped run", file=sys.stderr)
            told |= running
            time.sleep(POLL)
        try:
            json.loads(self._list().read_text())
        except FileNotFoundError:
            pass
        except ValueError:  # its writer was killed; DVC would refuse every command
            self._list().unlink()

    def _list(self) -> Path:
        """DVC's own list of what its processes read and write; it is not written in one piece."""
        return Path(self.repo.tmp_dir, "rwlock")

    def _running(self) -> set[int]:
        """The processes of this machine that are running a stage or one of its shards."""
        listed = re.findall(r'"pid": (\d+)[,}]', self._list().read_text()) if self._list().exists() else []
        return {process for process in map(int, listed) if psutil.pid_exists(process)}

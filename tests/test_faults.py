"""Faults: what is killed, full, read-only or run twice at once is right again after one plain run.

The tables of docs/reliability.md are what these tests saw: EDADM_WRITE_RELIABILITY=1 writes them, else they must agree.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import forked
import psutil
import pytest
import yaml
from command_line import call
from reliability import agrees
from workspace import PER_RUN, ROOT, RUNS, SYSTEM, Workspace, prepared, stub_in

VARIANTS = ("fp32", "w8a8", "w4a8")
KINDS = ("the stage's command", "its DVC", "Snakemake")
COMMAND, DVC, SNAKEMAKE, EVERYTHING = range(4)
SHARD = "one shard of samples"
UNFINISHED = re.compile(r"\.[\w-]+\.tmp").fullmatch  # a copy that DVC could not end
OF_SYSTEM = {
    **{f"{family}@{SYSTEM}": family for family in ("checkpoint", "reference")},
    **{f"calibration@{SYSTEM}-tdac": "calibration", f"latency@{SYSTEM}-cpu": "latency"},
    **{"tables": "tables", "report": "report"},
}
FAMILIES = (
    *("checkpoint", "reference", "calibration", "reconstruction", "deployment", "verification", "layer-errors"),
    *(SHARD, "samples", "metrics", "latency", "tables", "report"),
)
HANG = 300  # seconds after which a test gives up on a process; nothing is measured


def each(family: str) -> dict[str, int]:
    """The stages of a family, of the three runs, and what is killed in each."""
    last = ".0-of-2" if family == SHARD else ""
    name = "samples" if family == SHARD else family
    return {f"{name}@{SYSTEM}-{variant}{last}": kind for variant, kind in zip(VARIANTS, range(3), strict=True)}


CALIBRATION = f"calibration@{SYSTEM}-tdac"
# what is killed in each of the successive runs of one workspace; a run begins with what the one before left
RUNS_KILLED = [
    {f"checkpoint@{SYSTEM}": COMMAND, f"reference@{SYSTEM}": DVC},
    {CALIBRATION: EVERYTHING},
    {CALIBRATION: SNAKEMAKE},
    each("reconstruction"),
    each("deployment") | each("layer-errors"),
    each("verification") | each(SHARD) | {f"latency@{SYSTEM}-cpu": COMMAND},
    each("samples"),
    each("metrics"),
    {"tables": DVC, "report": SNAKEMAKE},
]


@pytest.fixture
def undisturbed(tmp_path: Path, bin_folder: Path) -> Workspace:
    """Everything ran once, without Snakemake."""
    runs = tuple(f"{SYSTEM}-{variant}" for variant in VARIANTS)
    space = prepared(tmp_path / "undisturbed", bin_folder, runs)
    space.call("dvc", "repro")
    assert len(space.ran()) == len(VARIANTS) * len(PER_RUN) + len(OF_SYSTEM)
    return space


def artifacts(space: Workspace) -> dict[str, bytes]:
    """All files of the results, and what DVC recorded."""
    files = [path for path in (space.folder / "results").rglob("*") if path.is_file() and not UNFINISHED(path.name)]
    lock = yaml.safe_load((space.folder / "dvc.lock").read_text())["stages"]
    return {str(path.relative_to(space.folder)): path.read_bytes() for path in files} | {"dvc.lock": lock}


def is_as(space: Workspace, undisturbed: Workspace) -> None:
    """The same artifacts, and DVC finds nothing to do."""
    got, wanted = artifacts(space), artifacts(undisturbed)
    assert got.keys() == wanted.keys() and got == wanted
    assert "up to date" in space.call("dvc", "status", "dvc.yaml").stdout


class Run:
    """A plain run of Snakemake in a workspace whose stages can be held."""

    def __init__(self, space: Workspace, cores: int) -> None:
        self.space, self.output = space, space.log.with_name("run.txt")
        self.output.write_text("")
        # latency takes all cores otherwise, and could not be held beside others
        words = ["snakemake", "--cores", str(cores), "--set-threads", "latency=1"]
        self.process = forked.start(words, space.folder, space.environment, self.output)

    def said(self) -> str:
        return self.output.read_text()

    def exit_code(self) -> int:
        """Wait for its end."""
        self.process.join(HANG)
        return self.process.exitcode

    def until(self, happened: Callable[[], bool]) -> None:
        """Wait for something that happens while this runs."""
        end = time.monotonic() + HANG
        while not happened():
            assert self.process.is_alive() and time.monotonic() < end, self.said()[-6000:]
            time.sleep(0.1)


def hold(space: Workspace, stage: str) -> Path:
    return space.log.with_name(f"hold-{stage}")


def held(space: Workspace, stage: str) -> int:
    """The process of a stage that has begun and waits; 0 before that."""
    return int(hold(space, stage).read_text() or 0)


def runs_stage(process: psutil.Process) -> bool:
    """Whether it is what starts a stage's command: DVC, or what makes single shards."""
    try:
        return Path([*process.cmdline(), "", ""][1]).name in ("repro.py", "shard.py")
    except psutil.NoSuchProcess:
        return False


def dvc_of(command: int) -> psutil.Process:
    """The process that started a stage's command."""
    return next(filter(runs_stage, psutil.Process(command).parents()))


@contextmanager
def no_process_left(space: Workspace) -> Iterator[None]:
    """Whatever fails, stages that a test held end."""
    try:
        yield
    finally:
        for path in space.log.parent.glob("hold-*"):
            path.unlink()


def kill_in(run: Run, killed: dict[str, int]) -> None:
    """Kill what is to be killed in each of the stages, when all are reached, Snakemake last; with -9."""
    space = run.space
    run.until(lambda: all(held(space, stage) for stage in killed))
    # what ran beside them has ended: else whether it is killed too, or outlives, were chance
    run.until(lambda: len(list(filter(runs_stage, psutil.Process(run.process.pid).children(True)))) == len(killed))
    for stage in sorted(killed, key=killed.get):
        command = psutil.Process(held(space, stage))
        if killed[stage] == SNAKEMAKE:
            continue  # held until the next run waits for it
        if killed[stage] == EVERYTHING:
            os.killpg(run.process.pid, signal.SIGKILL)
            command.wait(HANG)
            listed = space.folder / ".dvc" / "tmp" / "rwlock"  # as if DVC was just writing it
            listed.write_text(listed.read_text()[:-9])
            hold(space, stage).unlink()
            continue
        (command if killed[stage] == COMMAND else dvc_of(command.pid)).kill()
        command.wait(HANG)  # it ends with its DVC
        hold(space, stage).unlink()
    if SNAKEMAKE in killed.values():
        run.process.kill()
    ended = -signal.SIGKILL if {SNAKEMAKE, EVERYTHING}.intersection(killed.values()) else 1
    assert run.exit_code() == ended, run.said()[-6000:]


def go_on(run: Run, left: list[str]) -> None:
    """Let a run wait for stages that outlived the one before, then let these end."""
    if left:
        run.until(lambda: run.said().count("waiting for process") == len(left))
        for stage in left:
            hold(run.space, stage).unlink()


def second_ones(run: Run, stage: str) -> list[list[str]]:
    """What other commands say while a stage runs in the same folder; test_killed sees that they change nothing."""
    run.until(lambda: held(run.space, stage))
    rows = []
    for words in ("snakemake --cores 1", "dvc repro"):
        done = run.space.call(*words.split(), check=False)
        (said,) = set(re.findall(r"Directory cannot be locked|is busy", done.stdout)) or {done.stdout}
        assert done.returncode != 0 and run.process.is_alive()
        rows.append([f"`{words}` while Snakemake runs `{OF_SYSTEM[stage]}`", f"“… {said} …”"])
    return rows


def started(space: Workspace) -> Counter[str]:
    """How often each stage and each shard began."""
    lines = space.log.read_text().splitlines()
    return Counter(re.sub(" (.*)/", r".\1-of-", line) for line in lines)


def test_killed(undisturbed: Workspace, tmp_path: Path) -> None:
    """kill -9 of each stage's command, DVC and Snakemake, in successive runs of one workspace."""
    runs = tuple(f"{SYSTEM}-{variant}" for variant in VARIANTS)
    space = prepared(tmp_path / "project", stub_in(tmp_path / "bin"), runs)
    left: list[str] = []
    rows = {family: {} for family in FAMILIES}
    beside: list[list[str]] = []
    with no_process_left(space):
        for killed in RUNS_KILLED:
            for stage in killed:
                hold(space, stage).touch()
            run = Run(space, cores=16)
            go_on(run, left)
            if killed == {CALIBRATION: SNAKEMAKE}:
                beside = second_ones(run, CALIBRATION)
            kill_in(run, killed)
            left = [stage for stage, kind in killed.items() if kind == SNAKEMAKE]
        run = Run(space, cores=1)
        go_on(run, left)
        assert run.exit_code() == 0, run.said()[-6000:]
    begun = started(space)
    is_as(space, undisturbed)
    kills = Counter((stage, kind) for killed in RUNS_KILLED for stage, kind in killed.items())
    for (stage, kind), _ in kills.items():
        family = OF_SYSTEM.get(stage) or (SHARD if ".0-of" in stage else stage.partition("@")[0])
        again = begun[stage] - 1
        expected = sum(number for (name, other), number in kills.items() if name == stage and other != SNAKEMAKE)
        assert again == expected, f"{stage} began {begun[stage]} times"
        rows[family][kind] = "goes on and counts" if kind == SNAKEMAKE else "begins again"
    untouched = begun.keys() - {stage for stage, _ in kills}
    assert untouched and all(begun[stage] == 1 for stage in untouched), begun
    seen = [[family, *(rows[family].get(kind, "–") for kind in range(3))] for family in FAMILIES]
    agrees("killed", ["kill -9 of", *KINDS], seen)
    agrees("second", ["a second command in the folder", "says, and changes nothing"], beside)


@contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[str], None]]:
    """Put a disk of its own under a folder; yields what remounts it with other options."""
    saved = folder.with_name(f"{folder.name}.saved")
    folder.rename(saved)
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", folder], check=True)
    try:
        shutil.copytree(saved, folder, dirs_exist_ok=True)
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(path: Path) -> None:
    """Write to a file until its disk is full."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass


def forget(space: Workspace, stage: str) -> None:
    """Let DVC know of no run of a stage."""
    shutil.rmtree(space.folder / ".dvc" / "cache" / "runs")
    path = space.folder / "dvc.lock"
    lock = yaml.safe_load(path.read_text())
    del lock["stages"][stage]
    path.write_text(yaml.safe_dump(lock, sort_keys=False))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a disk")
def test_full_and_read_only_disk(finished: Workspace, space: Workspace) -> None:
    stage = f"metrics@{SYSTEM}-w4a8"
    forget(space, stage)
    results, rows = space.folder / "results", []
    with small_disk(results) as remount:
        filler = results / "filler"
        fill(filler)
        done = space.snakemake(check=False)
        assert done.returncode == 1 and set(space.ran()) == {stage}
        rows.append(["the disk of `results/` is full", said_by_system(done.stdout), "no"])
        filler.unlink()
        remount("ro")
        done = space.snakemake(check=False)
        assert done.returncode == 1
        rows.append(["`results/` is read-only", said_by_system(done.stdout), "no"])
        space.ran()
        remount("rw")
        space.snakemake()
        assert space.ran() == [stage]
        is_as(space, finished)
    agrees("disk", ["fault", "the run ends with", "needs a hand after it"], rows)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a disk")
def test_a_command_on_a_full_or_read_only_disk_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    disk = tmp_path / "disk"
    disk.mkdir()
    with small_disk(disk) as remount:
        fill(disk / "filler")
        for fault in ("No space left on device", "Read-only file system"):
            assert call("checkpoint", SYSTEM, "--out", str(disk / "checkpoint")) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith("edadm: ") and fault in line
            assert [path.name for path in disk.iterdir()] == ["filler"]
            remount("ro")


def said_by_system(output: str) -> str:
    # the second is what DVC says when no copy or link to its cache could be written
    (said,) = set(re.findall("No space left on device|No possible cache link types|Read-only file system", output))
    return f"“{said}”"


def test_clock_set_back(space: Workspace) -> None:
    """Files from long ago and from the future are neither out of date nor up to date for that."""
    source = space.folder / "src/edadm/evaluation/metrics.py"
    past, future = 10**9, 4 * 10**9
    for number, path in enumerate(sorted(path for path in space.folder.rglob("*") if path.is_file())):
        os.utime(path, (past, past) if number % 2 else (future, future))
    source.write_text(source.read_text() + "# a comment\n")
    os.utime(source, (past - 1, past - 1))
    space.snakemake()
    assert space.ran() == [f"metrics@{run}" for run in RUNS]  # the same numbers: nothing after it
    os.utime(source, (future, future))
    assert "Nothing to be done" in space.snakemake("-n").stdout
    rows = [
        ["files from the past and from the future", "runs nothing"],
        ["a file edited, and dated before everything else", "runs what reads it"],
    ]
    agrees("clock", ["the clock was set", "the run"], rows)

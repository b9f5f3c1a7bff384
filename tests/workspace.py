"""A copy of the project's own Snakefile, dvc.yaml and params.yaml that a test may run, with a stub for `edadm`."""

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import forked
import pytest
import yaml
from script_server import python_in

ROOT = Path(__file__).parent.parent
FILES = (
    "Snakefile",
    "dvc.yaml",
    "full",
    "ablation",
    "published",
    "training",
    "workflow",
    "profiles",
    "env.yaml",
    ".gitignore",
    ".dvcignore",
)
SYSTEM = "fashion-ddim"
RUNS = (f"{SYSTEM}-fp32", f"{SYSTEM}-w4a8")
PUBLISHED = "cifar10-ddim"
PER_RUN = ("reconstruction", "deployment", "verification", "layer-errors", "samples", "metrics")
GATHERED = {f"latency@{SYSTEM}-cpu", "tables", "report"}
OF_SYSTEM = {f"checkpoint@{SYSTEM}", f"reference@{SYSTEM}", f"calibration@{SYSTEM}-tdac"}
PIPED = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
EVERYTHING = {f"{family}@{run}" for family in PER_RUN for run in RUNS} | GATHERED | OF_SYSTEM


class Workspace:
    """A copy of the project with a stub for `edadm`, in its own git repository."""

    def __init__(self, folder: Path, bin_folder: Path) -> None:
        self.folder, self.log = folder, folder.with_name(f"{folder.name}.log")
        own = folder.with_name(f"{folder.name}.home")
        path = os.pathsep.join([str(bin_folder), str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "SNAKEMAKE_"))},
            **{"PATH": path, "HOME": str(own), "XDG_CACHE_HOME": str(own), "PYTHONPATH": str(ROOT / "src")},
            **{"STUB_LOG": str(self.log), "DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(own)},
            **{
                "GIT_AUTHOR_NAME": "t",
                "GIT_AUTHOR_EMAIL": "t@t",
                "GIT_COMMITTER_NAME": "t",
                "GIT_COMMITTER_EMAIL": "t@t",
            },
        }

    def call(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        run = forked.run if words[0] in forked.COMMANDS else partial(subprocess.run, **PIPED)
        done = run(words, cwd=self.folder, env=self.environment)
        assert not check or done.returncode == 0, f"{words}\n{done.stdout[-6000:]}"
        return done

    def snakemake(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.call("snakemake", "--cores", "1", *words, check=check)

    @staticmethod
    def to(stage: str) -> list[str]:
        """The command that runs what one stage needs."""
        return ["snakemake", "--cores", "1", f".stamps/{stage}"]

    def announced(self, *words: str) -> set[str]:
        """The stages that `snakemake -n` says it would run."""
        return self.stages_in(self.snakemake("-n", *words).stdout)

    @staticmethod
    def stages_in(output: str) -> set[str]:
        """The stages in what `snakemake -n` prints."""
        return set(re.findall(r"(?:output|Missing output files): \.stamps/(?!shards/)([^\s;]+)", output))

    def ran(self) -> list[str]:
        """The stages whose commands ran since the last call, without the jobs of single shards."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return sorted(line for line in lines if " " not in line)

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.folder / file
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))


def source_dependencies() -> set[str]:
    """All files of dvc.yaml that no stage makes, for the runs of params.yaml."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())["systems"][SYSTEM]
    known = {"${item.checkpoint.source}": params["checkpoint"]["source"]}
    known["${item.reference.statistics}"] = params["reference"]["statistics"]
    return {
        known.get(dep, dep) for stage in families().values() for dep in stage["deps"] if not dep.startswith("results/")
    }


def families() -> dict[str, dict]:
    """Each stage family of the five DVC files, as written there."""
    found = {}
    for path in (ROOT / folder / "dvc.yaml" for folder in ("", "full", "ablation", "published", "training")):
        for name, stage in yaml.safe_load(path.read_text())["stages"].items():
            found[name] = stage.get("do", stage)
    return found


def stub_in(folder: Path) -> Path:
    """A new folder with the stub for `edadm`."""
    folder.mkdir()
    (folder / "edadm").write_text(f'#!/bin/sh\nexec python {ROOT}/tests/stub_edadm.py "$@"\n')
    (folder / "edadm").chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def bin_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The stub for `edadm`, and a `python` that is quicker; a test of the processes themselves takes only the stub."""
    folder = stub_in(tmp_path_factory.mktemp("stub") / "bin")
    with python_in(folder):
        yield folder


def prepared(folder: Path, bin_folder: Path, runs: tuple[str, ...] = RUNS) -> Workspace:
    """A workspace at ``folder`` in which nothing has run, with only one system and these of its runs."""
    space = Workspace(folder, bin_folder)
    space.folder.mkdir()
    for name in FILES:
        if (ROOT / name).is_dir():  # without the lock files: nothing has run here
            shutil.copytree(ROOT / name, space.folder / name, ignore=shutil.ignore_patterns("dvc.lock", "__pycache__"))
        else:
            shutil.copy2(ROOT / name, space.folder / name)
    (space.folder / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy2(ROOT / ".dvc" / name, space.folder / ".dvc" / name)
    for name in source_dependencies():
        path = space.folder / name if Path(name).suffix else space.folder / name / "data.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}\n")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["runs"] = {key: params["runs"][key] for key in runs}
    params["systems"] = {SYSTEM: params["systems"][SYSTEM]}
    params["pipeline"] = {"systems": [SYSTEM], "calibrators": ["tdac"], "devices": ["cpu"]}
    params["systems"][SYSTEM]["sampling"] |= {"shard": 2, "images": {"demo": 3, "full": 4}}
    params["ablation"] |= {"repeats": [0, 1], "calibrators": ["tdac", "uniform"]}
    params["ablation"]["rows"] = [row for row in params["ablation"]["rows"] if row["variant"] in ("fp32", "w4a8-fbr")]
    params["variants"]["w4a8"]["reconstruction"]["iterations"] = 400
    params["engine"]["threads"] = 1
    params["metrics"]["kid_subset_size"] = 2
    published = params["published"]
    published["systems"] = {PUBLISHED: published["systems"][PUBLISHED]}
    published["systems"][PUBLISHED]["sampling"] |= {"shard": 2, "images": {"demo": 2, "full": 3}}
    published["runs"] = {f"{PUBLISHED}-{v}": published["runs"][f"{PUBLISHED}-{v}"] for v in ("fp32", "w4a8")}
    # DVC parses the file for every stage: without recipes that no run here has, each command is a fifth quicker
    recipes = {run["variant"] for run in (*params["runs"].values(), *params["ablation"]["rows"])} | {"w8a8"}
    recipes |= {run["recipe"] for run in published["runs"].values()}
    params["variants"] = {name: recipe for name, recipe in params["variants"].items() if name in recipes}
    (space.folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    space.call("git", "init", "-q")
    return space


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, bin_folder: Path) -> Workspace:
    """A workspace in which everything has run once, the same for all processes of a run; never changed, only copied."""
    root = tmp_path_factory.getbasetemp()
    root = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "finished"
    root.mkdir(exist_ok=True)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "made").exists():
            space = prepared(root / "project", bin_folder)
            space.snakemake()
            space.call("git", "add", "-A")
            space.call("git", "commit", "-qm", "all ran")
            (root / "made").touch()
    return Workspace(root / "project", bin_folder)


def copied(space: Workspace, folder: Path, bin_folder: Path) -> Workspace:
    """A copy of a workspace at ``folder``."""
    subprocess.run(["cp", "-a", space.folder, folder], check=True)
    return Workspace(folder, bin_folder)


@pytest.fixture
def space(finished: Workspace, bin_folder: Path, tmp_path: Path) -> Workspace:
    """A copy of the finished workspace."""
    return copied(finished, tmp_path / "project", bin_folder)

"""Hashes of what a stage wrote, in one small file that the gathering stages of dvc.yaml can depend on.

index.py FILE PATH...   write the SHA-256 of each PATH, or of each file in it, to FILE
index.py                remove the files of runs, calibrators and devices that params.yaml no longer lists

FILE is results/index/SYSTEM/KIND/NAME, or in index-full, index-ablation or index-published instead of index. The second
form keeps the folder the same in a clone, where a removed run never was, and here.
"""

import hashlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import yaml

FOLDERS = ("results/index", "results/index-full")
ABLATION = "results/index-ablation"
PUBLISHED = "results/index-published"


def write(out: Path, paths: list[Path]) -> None:
    """Write one line a file, "HASH  PATH", to ``out``."""
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file}\n" for file in files if file.is_file()]
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.parent.parent / f".{out.name}.{os.getpid()}"
    temporary.write_text("".join(lines))
    temporary.replace(out)


def prune(root: Path = Path()) -> None:
    """Remove the index files that belong to nothing in ``root``/params.yaml."""
    params = yaml.safe_load((root / "params.yaml").read_text())
    ablation, published = params["ablation"], params["published"]
    rows = {f"{row['variant']}-{repeat}" for row in ablation["rows"] for repeat in ablation["repeats"]}
    for path in (root / ABLATION).glob("*/*/*"):
        if path.parts[-3] != ablation["system"] or path.name not in rows:
            path.unlink(missing_ok=True)
    listed = {"calibration": params["pipeline"]["calibrators"], "latency": params["pipeline"]["devices"]}
    for folder in FOLDERS:
        _prune(root / folder, params["pipeline"]["systems"], params["runs"], listed)
    listed = {"calibration": ["tdac"], "latency": [published["device"]]}
    _prune(root / PUBLISHED, published["systems"], published["runs"], listed)


def _prune(folder: Path, systems: Iterable[str], runs: dict[str, dict], listed: dict[str, list[str]]) -> None:
    """Remove what is neither of these ``systems`` nor of a kind's ``listed`` names, or else of a run's variant."""
    for path in folder.glob("*/*/*"):
        system, kind, name = path.parts[-3:]
        variants = [run["variant"] for run in runs.values() if run["system"] == system]
        if system not in systems or name not in listed.get(kind, variants):
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        write(Path(sys.argv[1]), [Path(path) for path in sys.argv[2:]])
    else:
        prune()

"""Hashes of what a stage wrote, in one small file that the gathering stages of dvc.yaml can depend on.

index.py FILE PATH...   write the SHA-256 of each PATH, or of each file in it, to FILE
index.py                remove the files of runs, calibrators and devices that params.yaml no longer lists

FILE is results/index/SYSTEM/KIND/NAME, or in index-full or index-ablation instead of index. The second form keeps the
folder the same in a clone, where a removed run never was, and here.
"""

import hashlib
import os
import sys
from pathlib import Path

import yaml

FOLDERS = ("results/index", "results/index-full")
ABLATION = "results/index-ablation"


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
    listed = {"calibration": params["pipeline"]["calibrators"], "latency": params["pipeline"]["devices"]}
    ablation = params["ablation"]
    rows = {f"{row}-{seed}" for row in ablation["rows"] for seed in ablation["seeds"]}
    for path in (root / ABLATION).glob("*/*/*"):
        if path.parts[-3] != ablation["system"] or path.name not in rows:
            path.unlink(missing_ok=True)
    for folder in FOLDERS:
        for path in (root / folder).glob("*/*/*"):
            system, kind, name = path.parts[-3:]
            runs = [run["variant"] for run in params["runs"].values() if run["system"] == system]
            if system not in params["pipeline"]["systems"] or name not in listed.get(kind, runs):
                path.unlink(missing_ok=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        write(Path(sys.argv[1]), [Path(path) for path in sys.argv[2:]])
    else:
        prune()

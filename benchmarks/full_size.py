"""A published system at full size through every stage, with random weights: does it fit, and into how much memory?

    python benchmarks/full_size.py church-ldm8 --bits 4

Runs the commands checkpoint --random, calibrate, reconstruct (min-max, rounding to nearest), deploy and sample, each in
a process of its own, with one image and one step. Prints each stage's peak memory and what it wrote, and with --out
adds them to a CSV file. The system's own params.yaml is not touched.
"""

import argparse
import contextlib
import csv
import os
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
COLUMNS = ("system", "bits", "stage", "peak_mib", "written_mb")


def settings(system: str) -> dict:
    """The project's parameters with two images, one step and ``timed-VARIANT``: its variants' recipes, not learned."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    published = params["published"]
    own = (params["systems"] | published["systems"])[system]
    if "source" in own["checkpoint"]:
        own["checkpoint"]["source"] = str(ROOT / own["checkpoint"]["source"])
    own["sampler"]["steps"] = 1
    own["calibration"] |= {"samples": 1, "batch": 1}
    own["sampling"] |= {"batch": 1, "shard": 1, "images": {"demo": 2, "full": 2}}
    params["metrics"]["kid_subset_size"] = 2
    for run in (params["runs"] | published["runs"]).values():
        if run["system"] == system:
            recipe = params["variants"][run.get("recipe", run["variant"])]
            plain = {} if run["variant"] == "fp32" else {"ranges": "minmax", "reconstruction": {"method": "none"}}
            params["variants"][f"timed-{run['variant']}"] = recipe | plain
    return params


def run(*words: str) -> int:
    """Run a command of edadm; its peak memory in MiB."""
    child = os.posix_spawn(
        sys.executable, [sys.executable, "-c", "from edadm.cli import main; main()", *words], os.environ
    )
    _, status, usage = os.wait4(child, 0)
    if status:
        sys.exit(f"edadm {' '.join(words)} failed")
    return usage.ru_maxrss // 1024


def calibrate(system: str, params: dict) -> None:
    """Fill the working folder: ``params.yaml``, ``checkpoint`` (of random weights if published) and its calibration."""
    Path("params.yaml").write_text(yaml.safe_dump(params))
    random = ["--random"] if system in params["published"]["systems"] else []
    run("checkpoint", system, *random, "--out", "checkpoint")
    run("calibrate", system, "tdac", "--checkpoint", "checkpoint", "--out", "calibration.safetensors")


def quantize(system: str, variant: str, out: str) -> None:
    """Round ``timed-VARIANT`` of what ``calibrate`` left in the working folder."""
    given = ("--checkpoint", "checkpoint", "--calibration", "calibration.safetensors", "--scratch", "scratch")
    run("reconstruct", system, f"timed-{variant}", *given, "--out", out)


def stages(system: str, bits: int) -> dict[str, tuple[tuple[str, ...], str]]:
    """Each stage's command and what it writes."""
    checkpoint, calibration = ("--checkpoint", "checkpoint"), "calibration.safetensors"
    made = (*checkpoint, "--calibration", calibration, "--scratch", "scratch")
    drawing = ("--engine", "engine", *checkpoint, "--scratch", "scratch", "--out", "samples")
    return {
        "checkpoint": (("checkpoint", system, "--random", "--out", "checkpoint"), "checkpoint"),
        "calibration": (("calibrate", system, "tdac", *checkpoint, "--out", calibration), calibration),
        "reconstruction": (("reconstruct", system, f"timed-w{bits}a8", *made, "--out", "quantized"), "quantized"),
        "deployment": (("deploy", "--quantized", "quantized", "--out", "engine"), "engine"),
        "samples": (("sample", system, *drawing), "samples"),
    }


def written(path: Path) -> float:
    """MB (10⁶ bytes) of a file or folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def main() -> None:
    """Run the stages in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("system")
    parser.add_argument("--bits", type=int, default=8, choices=(4, 8))
    parser.add_argument("--out", type=Path, help="a CSV file to add the rows to")
    words = parser.parse_args()
    out = words.out and words.out.resolve()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("params.yaml").write_text(yaml.safe_dump(settings(words.system)))
        rows = []
        for stage, (command, result) in stages(words.system, words.bits).items():
            peak = run(*command)
            rows.append((words.system, words.bits, stage, peak, f"{written(Path(result)):.2f}"))
            print(*rows[-1], sep="\t", flush=True)
    if out:
        new = not out.exists()
        with out.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([COLUMNS, *rows] if new else rows)


if __name__ == "__main__":
    main()

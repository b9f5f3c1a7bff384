"""The U-Nets of all seven systems at full size on this CPU: how long a call takes, ours beside a user's other choices.

    python benchmarks/latency.py cifar10-ddim coco-sd14 --batches 1 --batches 8
    python benchmarks/latency.py                                          # tables of README.md and docs/latency.md

Checkpoints of published systems have random weights, the embedded ones their own. The stages checkpoint, calibrate,
reconstruct (min-max, rounded to nearest) and deploy prepare them. Every configuration then lives in a process of its
own, which loads its network and waits, without spinning, until it is its turn: rounds are interleaved, and each timed
call follows one that is not timed. What is measured, a system at a batch size, replaces its rows in the file.
"""

import contextlib
import multiprocessing
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import configurations  # isort: skip
import click
import openvino as ov
import psutil
import torch
from full_size import ROOT, calibrate, quantize, run, settings, written
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from edadm.engines.reference import Network
from edadm.files import as_markdown, read_json, write_json
from edadm.quantization import checkpoint
from edadm.report import full_size
from edadm.systems import system as systems

OUT = ROOT / "benchmarks" / "results" / "latency-cpu.json"
SYSTEMS = ("fashion-ddim", "fashion-ldm", "cifar10-ddim", "church-ldm8", "bedroom-ldm4", "imagenet-ldm4", "coco-sd14")
VARIANTS = ("fp32", "w8a8", "w4a8")
FREE = 6000  # MiB that must stay available: with less, weights that PyTorch has mapped (counted as such) are read again
VERSIONS = ("torch", "openvino", "nncf", "onnxruntime", "diffusers")
KINDS = ("int8 layers", "int8 products of attention, softmax", "float: norms, activations, sums", "copies")
FILES = {"pytorch": "checkpoint/unet", "openvino": "fp32/engine", "onnxruntime": "onnxruntime"}


def prepare(system: str, folder: Path) -> None:
    """Fill the folder of a system: ``checkpoint``, ``VARIANT/quantized`` and ``VARIANT/engine``."""
    with contextlib.chdir(folder):
        calibrate(system, settings(system))
        for variant in VARIANTS:
            quantize(system, variant, f"{variant}/quantized")
            run("deploy", "--quantized", f"{variant}/quantized", "--out", f"{variant}/engine")
        Path("ready").touch()


def write_inputs(folder: Path, largest: int) -> None:
    """Write ``inputs.safetensors``: noise, a timestep and, of a conditional network, context of ``largest`` images."""
    timed = systems.load(folder / "checkpoint")
    x = torch.randn(largest, *timed.shape, generator=torch.Generator().manual_seed(0))
    context = timed.contexts(range(largest), guidance=1.0)
    named = {"0-x": x, "1-t": torch.full((largest,), 500), **{f"2-context-{i}": c for i, c in enumerate(context)}}
    save_file({name: value.contiguous() for name, value in named.items()}, folder / "inputs.safetensors")


def gmac(folder: Path) -> float:
    """1e9 products in one call of the network on one image: convolutions, linears and attention."""
    unet = checkpoint.skeleton(read_json(folder / "checkpoint" / "unet" / "config.json"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Network(unet)(*(value.to("meta") for value in configurations.inputs(folder, 1)))
    return counter.get_total_flops() / 2e9


def serve(wire: Connection, name: str, folder: Path, batch: int, threads: int) -> None:
    """Load a configuration, say how it went, and answer each True with the seconds of a call."""
    try:
        start = time.perf_counter()
        call = configurations.CONFIGURATIONS[name](folder, batch, threads)
        call()
        wire.send({"load_s": time.perf_counter() - start, "peak_mib": peak_mib()})
        while wire.recv():
            call()
            start = time.perf_counter()
            call()
            wire.send(time.perf_counter() - start)
    except Exception:
        wire.send({"failed": traceback.format_exc()})


def peak_mib() -> float | None:
    """The most memory that this process had, in MiB; None where Linux does not say.

    ``ru_maxrss`` would not do: it is at least what the parent had when this process began.
    """
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text() if status.exists() else "", re.MULTILINE)
    return int(found[1]) / 1024 if found else None


class Process:
    """A configuration in a process of its own."""

    def __init__(self, name: str, folder: Path, batch: int, threads: int) -> None:
        self.name, self.seconds = name, []
        context = multiprocessing.get_context("spawn")
        self.wire, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, name, folder, batch, threads), daemon=True)
        self.process.start()
        other.close()
        self.loaded: dict[str, Any] = self.answer()

    def answer(self) -> Any:
        """What the process sends next; a process that is gone has failed."""
        try:
            return self.wire.recv()
        except EOFError:
            self.process.join()
            return {"failed": f"its process ended with {self.process.exitcode} (out of memory?)"}

    def time(self) -> None:
        """One call more."""
        self.wire.send(True)
        answer = self.answer()
        if isinstance(answer, dict):
            raise click.ClickException(f"{self.name}: {answer['failed']}")
        self.seconds.append(answer)

    def end(self) -> None:
        """Let it go."""
        self.process.kill()
        self.process.join()


def timed(system: str, names: list[str], folder: Path, batch: int, threads: int, rounds: int) -> list[dict[str, Any]]:
    """The rows of one system and batch size."""
    processes = []
    with contextlib.ExitStack() as ends:
        for name in names:
            one = Process(name, folder, batch, threads)
            ends.callback(one.end)
            if "failed" in one.loaded:
                click.echo(f"{system}, batch {batch}: {name} failed\n{one.loaded['failed']}", err=True)
                continue
            free = psutil.virtual_memory().available / 2**20
            click.echo(f"{system}, batch {batch}: {name} loaded in {one.loaded['load_s']:.1f} s, {free:.0f} MiB free")
            processes.append(one)
            if free < FREE:
                raise click.ClickException(
                    f"{free:.0f} MiB are left: weights would be read again; leave some out --without"
                )
        for _ in range(rounds):
            for one in processes:
                one.time()
    rows = []
    for one in processes:
        row = {"system": system, "configuration": one.name, "batch": batch, "threads": threads}
        row |= {"median_ms": 1e3 * median(one.seconds), "min_ms": 1e3 * min(one.seconds), "rounds": rounds}
        rows.append(row | one.loaded | {"file_mb": file_size(one.name, folder)})
    return rows


def file_size(name: str, folder: Path) -> float | None:
    """MB (10⁶ bytes) that a configuration reads its weights from; None where nothing is written."""
    if name.startswith("edadm"):
        return written(folder / name.split("-")[1] / "quantized" / "model.safetensors")
    own = FILES.get(name.split("-")[0])
    return written(folder / own) if own else None


def machine(threads: int) -> dict[str, Any]:
    """The processor as OpenVINO names it, what it can do in 8 and 16 bits, and what ran: versions and commit."""
    flags = set(Path("/proc/cpuinfo").read_text().split()) if platform.system() == "Linux" else set()
    found = {}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "device": ov.Core().get_property("CPU", "FULL_DEVICE_NAME"),
        "instructions": sorted(flags & {"avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16"}),
        "threads": threads,
        "versions": found,
        "commit": commit(),
    }


def commit() -> str | None:
    """The commit of this project, ``-dirty`` behind it where files but results differ from it; None without git."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
        return git("rev-parse", "--short", "HEAD") + "-dirty" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return None


def summary(out: Path) -> str:
    """What is in the file as a table in Markdown, a line for a system at a batch size, and the processors below."""
    head = ("network", "batch", "PyTorch fp32", "best float", "best other int8", "`edadm-w8a8`", "`edadm-w4a8`")
    head += ("over PyTorch", "over float", "over int8", "of int8 peak", "commit")
    lines, processors = [], set()
    for chart in full_size.charts(out):
        ms = {row["configuration"]: row["median_ms"] for row in chart["rows"]}
        kinds = {"float": full_size.FLOAT, "int8": ("nncf", "onnxruntime")}
        best = {kind: min((v for k, v in ms.items() if k.startswith(n)), default=None) for kind, n in kinds.items()}
        ours, share = ms.get(full_size.OURS), chart["share"]
        times = (ms.get(full_size.EAGER), best["float"], best["int8"], ours, ms.get("edadm-w4a8"))
        ratios = [f"{value / ours:.2f}x" if value and ours else "–" for value in times[:3]]
        cells = (f"{value:.1f} ms" if value else "–" for value in times)
        measured = f"{share:.0%}" if share else "–", chart["commit"] or "–"
        lines.append((f"`{chart['system']}`", str(chart["batch"]), *cells, *ratios, *measured))
        able = ", ".join(chart["instructions"]) or "no VNNI or AMX found"
        processors.add(f"{chart['device']} ({able}), {chart['rows'][0]['threads']} threads")
    return f"{as_markdown(head, lines)}\n\nProcessor: {'; '.join(sorted(processors))}."


def kind(node: str) -> str:
    """Which of ``KINDS`` a type of node of OpenVINO's, as in ``ms_by_node``, is."""
    layers, products, floats, copies = KINDS
    what, kernel = node.split(" ", 1)
    integers = kernel.lower().endswith("_i8")
    if integers and what in ("Convolution", "FullyConnected"):
        return layers
    if what in ("Concat", "Convert", "Interpolate", "Pad", "Reorder", "Reshape", "Transpose", "VariadicSplit"):
        return copies
    return products if integers else floats


def times_by_kind(out: Path) -> str:
    """Where the time of a call of one image goes, as a table in Markdown, a line for a system."""
    lines = []
    for system, own in read_json(out)["systems"].items():
        spent = dict.fromkeys(KINDS, 0.0)
        for node, ms in next(iter(own["runs"].values()))["ms_by_node"]["w8a8-f32"].items():
            spent[kind(node)] += ms
        lines.append((f"`{system}`", *(f"{ms / sum(spent.values()):.0%}" for ms in spent.values())))
    return as_markdown((f"network, `{full_size.OURS}`", *KINDS), lines)


def merged(out: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """What is in the file, with the systems and batch sizes in ``found`` anew."""
    content = read_json(out) if out.exists() else {"systems": {}, "rows": []}
    anew = {(row["system"], row["batch"]) for row in found["rows"]}
    rows = [row for row in content["rows"] if (row["system"], row["batch"]) not in anew] + found["rows"]
    rows.sort(key=lambda row: (SYSTEMS.index(row["system"]), row["batch"]))
    known = dict(content["systems"])
    for name, own in found["systems"].items():
        known[name] = own | {"runs": known.get(name, {}).get("runs", {}) | own["runs"]}
    return {"systems": known, "rows": rows}


@click.command()
@click.argument("names", metavar="[SYSTEM]...", nargs=-1, type=click.Choice(SYSTEMS))
@click.option("--batches", type=click.IntRange(1), multiple=True, default=(1, 8), show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=9, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--only", type=click.Choice(list(configurations.CONFIGURATIONS)), multiple=True, help="These.")
@click.option("--without", type=click.Choice(list(configurations.CONFIGURATIONS)), multiple=True, help="All but these.")
@click.option("--scratch", type=click.Path(path_type=Path), help="Keep what is prepared here, and use what is there.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=OUT)
def main(
    names: tuple[str, ...],
    batches: tuple[int, ...],
    rounds: int,
    threads: int,
    only: tuple[str, ...],
    without: tuple[str, ...],
    scratch: Path | None,
    out: Path,
) -> None:
    """Measure the systems, if any are named, and print what is in the file as tables."""
    chosen = [name for name in configurations.available() if name not in without and (not only or name in only)]
    for name in names:
        with tempfile.TemporaryDirectory() as temporary:
            folder = (scratch or Path(temporary)).resolve() / name
            if not (folder / "ready").exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                prepare(name, folder)
            write_inputs(folder, max(batches))
            words = " ".join(["python", "benchmarks/latency.py", *sys.argv[1:]])
            command = re.sub(r" --(scratch|out)[ =]\S+", "", words)
            ran = machine(threads) | {"command": command, "int8_gops": configurations.ceiling(threads)}
            ran["ms_by_node"] = {
                f"{each}-{body}": configurations.breakdown(folder, each, body, 1, threads)
                for each, body in (("w8a8", "f32"), ("w8a8", "bf16"))
            }
            own = {"gmac": gmac(folder), "runs": {str(batch): ran for batch in batches}}
            rows = [row for batch in batches for row in timed(name, chosen, folder, batch, threads, rounds)]
        write_json(out, merged(out, {"systems": {name: own}, "rows": rows}))
    click.echo(f"{summary(out)}\n\n{times_by_kind(out)}")


if __name__ == "__main__":
    main()

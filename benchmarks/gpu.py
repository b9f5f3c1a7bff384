"""The CUDA engine on this GPU: exact or not, then how fast, beside PyTorch's own ways of running the same U-Nets.

    python benchmarks/gpu.py --out benchmarks/gpu-NAME.json

Exactness is checked first: int32 sums against float64 arithmetic on the device, bit by bit. Then two ceilings are
measured (int8 products of large matrices, a copy in device memory), the five architectures with random weights at each
batch size, and the layers of one architecture by themselves. torch.compile comes last, for as many networks as the
minutes allow: tuning one takes minutes. Rows are written as they are found. With --interpret everything runs in
Triton's interpreter on narrow networks: this proves that the command works, and its times mean nothing.
"""

import os
import sys

if "--interpret" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import json
import platform
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import edadm  # noqa: F401  (mends torchvision before diffusers)

import architectures  # isort: skip
import click
import torch
import triton
from torch import Tensor, nn
from torch.nn import functional as F

from edadm.engines import reference
from edadm.engines.cuda import engine as cuda
from edadm.engines.cuda.layers import Convolution, Linear, make_layer
from edadm.engines.reference import Network, relative_error
from edadm.files import write_json

BODY = torch.float16


class Report:
    """The rows found so far, in a JSON file that is whole at any moment, and the time that is left."""

    def __init__(self, out: Path, minutes: float, interpreted: bool) -> None:
        self.out, self.end = out, time.monotonic() + 60 * minutes
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
        versions = {"torch": torch.__version__, "triton": triton.__version__, "cuda": torch.version.cuda}
        self.content: dict[str, Any] = {"device": device, "interpreted": interpreted, "versions": versions}

    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def add(self, table: str, **row: Any) -> None:
        """Append a row, print it and write the file."""
        self.content.setdefault(table, []).append(row)
        print(f"{table}:", ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
        write_json(self.out, self.content)


def milliseconds(call: Callable[[], Any], rounds: int = 20) -> float:
    """Median time of a call: by device events on a GPU, after three calls that are not timed."""
    if not torch.cuda.is_available():
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    for _ in range(3):
        call()
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return median(times)


def peak_mib() -> float | None:
    """Device memory that was in use at most since the last call."""
    if not torch.cuda.is_available():
        return None
    found = torch.cuda.max_memory_allocated() / 2**20
    torch.cuda.reset_peak_memory_stats()
    return found


def check_exactness(report: Report, where: torch.device, narrow: bool) -> None:
    """Sums of random layers on random integers, which must all be those of float64."""
    size, channels = (6, 40) if narrow else (32, 320)
    cases: dict[str, tuple[nn.Module, tuple[int, ...], dict[str, int]]] = {
        "3x3": (nn.Conv2d(channels, channels, 3, padding=1), (2, channels, size, size), {}),
        "3x3, stride 2": (nn.Conv2d(channels, 2 * channels, 3, 2, 1), (2, channels, size, size), {}),
        "3x3 of the enlarged image": (
            nn.Conv2d(channels, channels, 3, padding=1),
            (2, channels, size, size),
            {"up": 2},
        ),
        "1x1": (nn.Conv2d(3 * channels, channels, 1), (2, 3 * channels, size, size), {}),
        "few channels": (nn.Conv2d(3, channels, 3, padding=1), (2, 3, size, size), {}),
        "linear": (nn.Linear(channels, 8 * channels), (size * size + 1, channels), {}),
    }
    for name, (module, shape, further) in cases.items():
        wide = [(8, 16)] * (shape[1] < 8)  # 16-bit sums of more channels would leave 32 bits
        for bits, input_bits in [(8, 8), (4, 8), *wide]:
            layer = architectures.integer_layer(module.requires_grad_(False), bits, -1.7, 2.3, input_bits)
            q = torch.randint(0, 2**input_bits, shape, device=where, dtype=torch.int32)
            made = make_layer(layer, where, torch.int32)
            x = (q - layer.input_zero_point).float() * layer.input_scale
            found = made.product(made.integers(x), **further)
            expected = sums(q.repeat_interleave(2, 2).repeat_interleave(2, 3) if further else q, layer, where)
            wrong = int((found.reshape(expected.shape) != expected).sum())
            report.add("exactness", layer=name, bits=bits, input_bits=input_bits, sums=found.numel(), wrong=wrong)


def sums(q: Tensor, layer: reference.IntegerLayer, where: torch.device) -> Tensor:
    """As reference.accumulate, on the device."""
    centred, weight = (q - layer.input_zero_point).double(), layer.weight.to(where).double()
    if layer.is_convolution:
        return F.conv2d(centred, weight, None, *layer.geometry).long()
    return F.linear(centred, weight).long()


def ceilings(report: Report, where: torch.device, narrow: bool) -> float:
    """Measured int8 rate, in 1e12 operations per second, and device memory bandwidth; returns the first."""
    side = 64 if narrow else 8192
    a, b = (torch.randint(-128, 128, (side, side), dtype=torch.int8, device=where) for _ in range(2))
    rate = 2 * side**3 / milliseconds(partial(torch._int_mm, a, b.T)) / 1e9
    report.add("ceilings", name="int8 products (torch._int_mm)", tops=rate)
    layer = make_layer(architectures.integer_layer(nn.Linear(side, side).requires_grad_(False), 8, -1, 1), where, BODY)
    own = 2 * side**3 / milliseconds(partial(layer.product, a[None])) / 1e9
    report.add("ceilings", name="int8 products (ours, with the epilogue)", tops=own)
    source = torch.randint(0, 255, (2**20 if narrow else 2**30,), dtype=torch.uint8, device=where)
    target = torch.empty_like(source)
    moved = 2 * source.numel() / milliseconds(partial(target.copy_, source)) / 1e6
    report.add("ceilings", name="copy in device memory", gb_per_s=moved)
    return max(rate, own)


@torch.inference_mode()
def operations(unet: nn.Module, given: tuple[Tensor, ...]) -> float:
    """Operations (two per product) of the convolutions and linears in one call."""
    total = 0

    def count(module: nn.Module, _: Any, y: Tensor) -> None:
        nonlocal total
        total += 2 * y.numel() * module.weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in unet.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    unet(*given)
    for hook in hooks:
        hook.remove()
    return total


@torch.inference_mode()
def time_networks(
    report: Report, name: str, batches: list[int], where: torch.device, narrow: bool, ceiling: float
) -> None:
    """PyTorch in float32 and float16 beside our engine, for one architecture."""
    unet = architectures.build(name, where, narrow)
    exact = unet(*architectures.inputs(name, unet, 1, where)).sample
    for bits in (8, 4):
        loaded = architectures.quantized(unet, bits, *architectures.inputs(name, unet, 1, where))
        network = cuda.build(loaded, BODY, where)
        for batch in batches:
            given = architectures.inputs(name, unet, batch, where)
            own = cuda.CudaEngine(network, batch, where)
            error = relative_error(own(*given)[:1], exact) if batch == 1 else None
            found = milliseconds(partial(own, *given))
            rate = operations(unet, given) / found / 1e9
            row = {"configuration": f"ours, W{bits}A8, graph", "batch": batch, "ms": found, "peak_mib": peak_mib()}
            row |= {"tops": rate, "share_of_int8_ceiling": rate / ceiling}
            report.add("networks", architecture=name, **row, **({} if error is None else {"error_to_fp32": error}))
        del network, loaded
    for configuration, dtype in (("PyTorch fp32", torch.float32), ("PyTorch fp16, channels last", BODY)):
        unet = nn.Module.to(unet, dtype)
        if dtype == BODY:
            unet = unet.to(memory_format=torch.channels_last)
        for batch in batches:
            x, t, *rest = architectures.inputs(name, unet, batch, where)
            given = (x.to(dtype), t, *(value.to(dtype) for value in rest))
            peak_mib()
            row = {"ms": milliseconds(partial(Network(unet), *given)), "peak_mib": peak_mib()}
            report.add("networks", architecture=name, configuration=configuration, batch=batch, **row)


@torch.inference_mode()
def time_compiled(report: Report, name: str, batch: int, where: torch.device, narrow: bool) -> None:
    """torch.compile in bfloat16, tuned and in CUDA graphs."""
    torch._dynamo.reset()
    unet = nn.Module.to(architectures.build(name, where, narrow), torch.bfloat16, memory_format=torch.channels_last)
    x, t, *rest = architectures.inputs(name, unet, batch, where)
    given = (x.bfloat16(), t, *(value.bfloat16() for value in rest))
    start = time.monotonic()
    # tuning times candidates on a GPU; in the interpreter the same call is made without compiling
    options = {"backend": "eager"} if narrow else {"mode": "max-autotune"}
    compiled = torch.compile(Network(unet), **options)
    peak_mib()
    row = {"ms": milliseconds(partial(compiled, *given)), "peak_mib": peak_mib(), "built_s": time.monotonic() - start}
    report.add("networks", architecture=name, configuration="torch.compile bf16, max-autotune", batch=batch, **row)


@torch.inference_mode()
def time_layers(report: Report, name: str, batch: int, where: torch.device, narrow: bool, ceiling: float) -> None:
    """The layers with most operations by themselves, on integers, beside PyTorch's float16 and int8 products."""
    unet = architectures.build(name, where, narrow)
    found: Counter[tuple[Any, ...]] = Counter()
    made: dict[tuple[Any, ...], tuple[nn.Module, torch.Size]] = {}

    def note(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        key = (tuple(module.weight.shape), tuple(args[0].shape), getattr(module, "stride", None))
        made[key] = module, args[0].shape
        found[key] += 2 * y.numel() * module.weight[0].numel()

    hooks = [m.register_forward_hook(note) for m in unet.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    unet(*architectures.inputs(name, unet, batch, where))
    for hook in hooks:
        hook.remove()
    for key, total in found.most_common(3 if narrow else 12):
        module, shape = made[key]
        x = torch.randn(shape, device=where)
        single = 2 * module(x).numel() * module.weight[0].numel()
        layer = make_layer(architectures.integer_layer(module, 8, -4, 4), where, BODY)
        packed = make_layer(architectures.integer_layer(module, 4, -4, 4), where, BODY)
        row = {"weight": list(key[0]), "input": list(key[1]), "share_of_network": total / found.total()}
        for label, each in (("w8a8", layer), ("w4a8", packed)):
            row[f"{label}_ms"] = milliseconds(partial(each.product, each.integers(x)))
        row |= {"w8a8_share_of_int8_ceiling": single / row["w8a8_ms"] / 1e9 / ceiling}
        half = nn.Module.to(module, BODY)
        if isinstance(layer, Convolution):
            half, x = half.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
        row["fp16_ms"] = milliseconds(partial(half, x.to(BODY)))
        if isinstance(layer, Linear):
            a = torch.randint(-128, 128, (x.shape[:-1].numel(), x.shape[-1]), dtype=torch.int8, device=where)
            b = torch.randint(-128, 128, module.weight.shape, dtype=torch.int8, device=where)
            if not (a.shape[0] <= 16 or a.shape[1] % 8 or b.shape[0] % 8):  # what torch._int_mm takes
                row["int_mm_ms"] = milliseconds(partial(torch._int_mm, a, b.T))
        report.add("layers", architecture=name, batch=batch, **row)


def ratios(report: Report) -> None:
    """How many times as fast as each of PyTorch's configurations ours is."""
    rows = report.content.get("networks", [])
    for own in (row for row in rows if row["configuration"].startswith("ours")):
        others = {
            row["configuration"]: row["ms"] / own["ms"]
            for row in rows
            if (row["architecture"], row["batch"]) == (own["architecture"], own["batch"]) and row is not own
        }
        others = {f"over {key}": value for key, value in others.items() if not key.startswith("ours")}
        report.add("ratios", **{key: own[key] for key in ("architecture", "batch", "configuration")}, **others)


@click.command()
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="A JSON file.")
@click.option("--only", multiple=True, type=click.Choice(architectures.NAMES), help="Architectures; all if not given.")
@click.option("--batches", default="1,8,32", show_default=True)
@click.option("--layers-of", type=click.Choice(architectures.NAMES), default="coco-sd14", show_default=True)
@click.option("--minutes", default=7.5, show_default=True, help="Nothing is begun after that.")
@click.option("--interpret", is_flag=True, help="In Triton's interpreter, on narrow networks.")
def main(out: Path, only: tuple[str, ...], batches: str, layers_of: str, minutes: float, interpret: bool) -> None:
    """Check the CUDA engine on this machine's GPU, then time it."""
    where, names = cuda.device(), only or architectures.NAMES
    sizes = [1] if interpret else [int(size) for size in batches.split(",")]
    report = Report(out, minutes, interpret)
    with torch.inference_mode():
        check_exactness(report, where, interpret)
        if any(row["wrong"] for row in report.content["exactness"]):
            raise SystemExit("some sums are wrong: no times were taken")
        ceiling = ceilings(report, where, interpret)
    skipped = []
    for name in names:
        if report.left() > 0:
            time_networks(report, name, sizes, where, interpret, ceiling)
        else:
            skipped.append(name)
    if report.left() > 0:
        time_layers(report, layers_of, sizes[min(1, len(sizes) - 1)], where, interpret, ceiling)
    for name in names[:1] if interpret else names:
        for batch in sizes[-2:]:
            if report.left() > 60:
                time_compiled(report, name, batch, where, interpret)
            else:
                skipped.append(f"torch.compile {name}, batch {batch}")
    ratios(report)
    report.content["skipped"] = skipped
    write_json(out, report.content)
    print(json.dumps({"skipped for lack of time": skipped}))
    if interpret:
        print("The command works; times of the interpreter mean nothing.")


if __name__ == "__main__":
    main()

"""Time and memory of reconstructing units of the CIFAR-10 U-Net: our schedule beside the published code's.

All learn the same units with the same layers, losses, optimisers and number of steps:

- ours (edadm.quantization.fbr): targets of the block and of its layers computed once, one forward and one backward per
  step, inputs advanced from unit to unit;
- published: the published code, re-implemented here from its description. Per step the quantized unit for the block's
  loss, the full-precision unit for the layers' targets (its graph is kept), the quantized unit again for the layers'
  losses, and the gradients of both; per unit, the network before it is run twice over the whole calibration set, once
  in full precision and once quantized. Its quantizer is a chain of PyTorch's operations that autograd follows;
- published_schedule: that, with our quantizer. So it says what the schedule alone costs.

The architecture is that of the CIFAR-10 model (35.7 million parameters at the default width), with random weights. It
writes a JSON with

- the seconds per step, and per unit for a calibration set and a number of steps as published: medians of ``--rounds``
  rounds, in which the three run in turn;
- the memory: how much the process's own (anonymous) memory grows while a unit is learned, in a new process for each
  unit and schedule, for two numbers of calibration rows. Ours keeps more of each row, since it never runs a row again;
  in ``ours_in_files`` these tables are files mapped into memory (``limits.cache_mib: 0``);
- the errors that the units of a narrower network reach after so many steps that rounding is decided, for several seeds.
"""

import copy
import ctypes
import json
import multiprocessing
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import edadm  # noqa: F401  (mends torchvision before diffusers)

import click  # isort: skip
import openvino as ov
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from edadm.files import write_json
from edadm.params import Recipe, Reconstruction
from edadm.quantization import fbr
from edadm.quantization.cache import Cache
from edadm.quantization.layers import Simulated, set_mode
from edadm.quantization.units import Unit, find_units, simulate
from edadm.quantization.walk import Call, Rows

Batches = list[tuple[Tensor, ...]]
PUBLISHED = ((5000, 1024), (1000, 2048))  # steps per unit and calibration rows: CIFAR-10 and LSUN, ImageNet
MEMORY_UNITS = 4
LEARNED = {"width": 32, "rows": 128, "batch": 16, "steps": 300, "units": 5, "seeds": 3}  # to compare errors


def cifar_unet(width: int) -> nn.Module:
    """The CIFAR-10 DDIM architecture (width 128) with random weights."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=32,
        block_out_channels=(width, 2 * width, 2 * width, 2 * width),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        attention_head_dim=None,
        norm_num_groups=32,
    ).eval()


class Memory:
    """The growth of the process's anonymous memory within the block, in bytes, sampled every few milliseconds."""

    def __enter__(self) -> "Memory":
        ctypes.CDLL(None).malloc_trim(0)
        self.done = threading.Event()
        self.start = self.peak = self._now()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    @staticmethod
    def _now() -> int:
        return 1024 * int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])

    def _watch(self) -> None:
        while not self.done.wait(0.005):
            self.peak = max(self.peak, self._now())

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()
        self.growth = self.peak - self.start


def ours(
    unet: nn.Module,
    units: list[Unit],
    chosen: set[int],
    batches: Batches,
    settings: Reconstruction,
    cache: Cache | None = None,
) -> list:
    """Learn the chosen units with fbr.reconstruct; the others are passed as if they had been learned before."""
    rows, learned = {}, []

    def restore(index: int) -> tuple | None:
        finish(index - 1)
        if index not in chosen:
            return fbr.unit_state(units[index]), fbr.UnitResult(units[index].name, units[index].kind, [], 0.0, 0.0)
        rows[index] = {"started": time.perf_counter()}
        return None

    def finish(index: int) -> None:
        """A unit's time ends where the next one's begins, so that it includes advancing the inputs."""
        if index in chosen:
            rows[index] |= {"seconds": time.perf_counter() - rows[index].pop("started")}

    original = fbr.Learner.learn

    def learn(self: fbr.Learner, *args: object) -> list:
        before = time.perf_counter()
        curve = original(self, *args)
        learned.append(time.perf_counter() - before)
        return curve

    fbr.Learner.learn = learn
    try:
        results = fbr.reconstruct(unet, units, batches, settings, restore, lambda *_: None, cache or Cache())
    finally:
        fbr.Learner.learn = original
    finish(len(units) - 1)
    return [
        rows[index] | {"learning": seconds, "error": results[index].error_after}
        for index, seconds in zip(sorted(chosen), learned, strict=True)
    ]


class _Stop(Exception):
    """Ends a forward pass at a unit."""


@torch.no_grad()
def prefix(unet: nn.Module, unit: Unit, batches: Batches, mode: str) -> tuple[list[Call], list[Tensor]]:
    """The calls and outputs of ``unit``, from running the network up to it on every batch."""
    calls, outputs = [], []

    def keep(_: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
        calls.append(Call(args, kwargs))
        outputs.append(output)
        raise _Stop

    set_mode(unet, mode)
    hook = unit.module.register_forward_hook(keep, with_kwargs=True)
    for inputs in batches:
        with suppress(_Stop):
            unet(*inputs)
    hook.remove()
    return calls, outputs


def published_loss(a: Tensor, b: Tensor) -> Tensor:
    """The published squared error, differentiable in both."""
    return (a - b).abs().pow(2).sum(fbr._channel_axis(a)).mean()


@contextmanager
def published_quantizer() -> Iterator[None]:
    """Within it, activations are quantized as the published code does: step by step, a random float an element."""

    def activations(self: Simulated, x: Tensor) -> Tensor:
        if self.mode != "quantized":
            return x
        scaled = x / self.input_scale
        rounded = (scaled.round() - scaled).detach() + scaled
        integers = (rounded + self.input_zero_point).clamp(0, 2**self.input_bits - 1)
        result = (integers - self.input_zero_point) * self.input_scale
        return torch.where(torch.rand_like(x) < self.drop, x, result) if self.drop else result

    ours, Simulated.activations = Simulated.activations, activations
    try:
        yield
    finally:
        Simulated.activations = ours


def published_learning(learner: fbr.Learner, full: Rows, quantized: Rows, target: Tensor) -> None:
    """The published code's loop: three forwards a step, the gradients of two of them, targets of layers every time."""
    settings, module, generator = learner.settings, learner.unit.module, learner.generator
    set_mode(module, "quantized")
    with torch.no_grad():
        optimizers = learner._optimizers()
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, settings.iterations) for o in optimizers]
    norms = [
        parameter for each in module.modules() if isinstance(each, nn.GroupNorm) for parameter in each.parameters()
    ]
    for parameter in norms:  # they are not learned, but require gradients there, which are computed
        parameter.requires_grad_(True)
    for part in learner.parts:
        part.drop, part.generator = settings.activation_drop, generator
    for _ in range(settings.iterations):
        rows = torch.randint(full.count, (settings.batch,), generator=generator)
        call, exact = quantized.take(rows), full.take(rows)
        mixed = torch.rand_like(call.args[0]) < settings.input_mix
        args = (torch.where(mixed, call.args[0], exact.args[0]), *call.args[1:])
        loss = published_loss(module(*args, **call.kwargs), target[rows])
        if learner.inner:
            set_mode(module, "float")
            with fbr._Outputs(learner.inner) as wanted:
                module(*exact.args, **exact.kwargs)
            set_mode(module, "quantized")
            with fbr._Outputs(learner.inner) as seen:
                module(*args, **call.kwargs)
            for a, b in zip(seen.seen, wanted.seen, strict=True):
                loss = loss + settings.layer_loss * published_loss(a, b)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
    for parameter in norms:
        parameter.requires_grad_(False)
        parameter.grad = None
    with torch.no_grad():
        for layer in learner.layers:
            layer.harden_rounding()
    for part in learner.parts:
        part.input_scale.requires_grad_(False)
        part.drop, part.generator = 0.0, None


def published_schedule(
    unet: nn.Module, units: list[Unit], chosen: set[int], batches: Batches, settings: Reconstruction
) -> list:
    """Learn the chosen units with the published schedule and our quantizer."""
    rows = []
    count = sum(len(inputs[0]) for inputs in batches)
    for index in sorted(chosen):
        unit, before = units[index], time.perf_counter()
        calls, targets = prefix(unet, unit, batches, "float")
        quantized_calls, _ = prefix(unet, unit, batches, "quantized")
        tables = (Rows(each, count, Cache()) for each in (calls, quantized_calls))
        learner, target = fbr.Learner(unit, settings, index, {}), torch.cat(targets)
        started = time.perf_counter()
        published_learning(learner, *tables, target)
        ended = time.perf_counter()
        with torch.no_grad():
            outputs = [unit.module(*call.args, **call.kwargs) for call in quantized_calls]
        error = fbr.output_error(outputs, targets)
        rows.append({"seconds": ended - before, "learning": ended - started, "error": error})
    return rows


def published(unet: nn.Module, units: list[Unit], chosen: set[int], batches: Batches, settings: Reconstruction) -> list:
    """Learn the chosen units as the published code does."""
    with published_quantizer():
        return published_schedule(unet, units, chosen, batches, settings)


def summary(rounds: list[list[dict]], units: list[str], steps: int) -> list[dict]:
    """Per unit the medians of what is measured; ``steps`` were run."""
    found = []
    for name, *rows in zip(units, *rounds, strict=True):
        middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        found.append(
            {
                "unit": name,
                "seconds_per_step": middle["learning"] / steps,
                "seconds_besides_steps": middle["seconds"] - middle["learning"],
            }
        )
    return found


def ratios(theirs: list[dict], ours: list[dict], iterations: int, growth: float) -> dict[str, float]:
    """Of the sums over units; a unit takes ``iterations`` steps, and of calibration rows ``growth`` times those run."""

    def sums(rows: list[dict]) -> dict[str, float]:
        found = {key: sum(row[key] for row in rows) for key in rows[0] if key != "unit"}
        whole = found["seconds_per_step"] * iterations + found["seconds_besides_steps"] * growth
        return found | {"seconds_per_unit": whole}

    above, below = sums(theirs), sums(ours)
    return {key: above[key] / below[key] for key in above}


Prepared = tuple[nn.Module, list[Unit], Batches]


def prepared(width: int, rows: int) -> Prepared:
    """The network of ``width`` as it is before learning, its units, and ``rows`` random inputs."""
    generator = torch.Generator().manual_seed(1)
    x, t = torch.randn(rows, 3, 32, 32, generator=generator), torch.randint(0, 1000, (rows,), generator=generator)
    batches = list(zip(x.split(32), t.split(32), strict=True))
    recipe = Recipe(weights=4, activations=8, ranges="minmax", reconstruction=Reconstruction(method="fbr"))
    unet = cifar_unet(width)
    example = tuple(value[:1] for value in batches[0])
    simulate(unet, example, recipe)
    fbr.initialise(unet, batches, recipe)
    return unet, find_units(unet, example), batches


def spread(units: list[Unit], count: int) -> set[int]:
    """The places of ``count`` units, evenly spread."""
    return {round(place * (len(units) - 1) / max(count - 1, 1)) for place in range(count)}


def run(
    schedule: Callable, network: Prepared, chosen: set[int], settings: Reconstruction, **further: object
) -> list[dict]:
    """Learn the chosen units of a copy of ``network``, so that each run begins with the same state."""
    unet, _, batches = network
    copied = copy.deepcopy(unet)
    units = find_units(copied, tuple(value[:1] for value in batches[0]))
    return schedule(copied, units, chosen, batches, settings, **further)


def growth(schedule: str, width: int, rows: int, batch: int, index: int, threads: int) -> int:
    """The growth of memory, in bytes, while unit ``index`` is learned by the schedule of that name."""
    torch.set_num_threads(threads)
    settings = Reconstruction(method="fbr", iterations=2, batch=batch)
    network = prepared(width, rows)
    with tempfile.TemporaryDirectory() as folder, Memory() as memory:
        in_files = {"cache": Cache(Path(folder), 0)} if schedule == "ours_in_files" else {}
        run(globals()[schedule.removesuffix("_in_files")], network, {index}, settings, **in_files)
    return memory.growth


def memory(width: int, samples: int, batch: int, threads: int) -> list[dict]:
    """The growth of memory by unit, schedule and number of rows, each in a process of its own."""
    units = prepared(width, 1)[1]
    found = []
    for index in sorted(spread(units, MEMORY_UNITS)):
        for rows in (samples, 2 * samples):
            entry = {"unit": units[index].name, "rows": rows}
            for schedule in ("ours", "ours_in_files", "published"):
                with multiprocessing.get_context("spawn").Pool(1) as alone:
                    bytes_ = alone.apply(growth, (schedule, width, rows, batch, index, threads))
                entry[f"{schedule}_mib"] = bytes_ / 2**20
            found.append(entry)
    return found


def errors(width: int, rows: int, batch: int, steps: int, units: int, seeds: int) -> dict[str, float]:
    """The sum of the units' errors as published over ours, of several seeds."""
    found = []
    for seed in range(seeds):
        settings = Reconstruction(method="fbr", iterations=steps, batch=batch, seed=seed)
        network = prepared(width, rows)
        theirs, own = (
            sum(row["error"] for row in run(schedule, network, spread(network[1], units), settings))
            for schedule in (published, ours)
        )
        found.append(theirs / own)
    spread_ = statistics.stdev(found) if seeds > 1 else 0.0
    return {"mean": statistics.mean(found), "standard_deviation": spread_}


@click.command()
@click.option("--width", type=click.IntRange(32), default=128, show_default=True, help="128 is the CIFAR-10 model.")
@click.option("--samples", type=click.IntRange(1), default=64, show_default=True, help="Rows that are run.")
@click.option("--batch", type=click.IntRange(1), default=32, show_default=True)
@click.option("--steps", type=click.IntRange(1), default=4, show_default=True, help="Steps that are run per unit.")
@click.option("--units", "count", type=click.IntRange(1), default=13, show_default=True, help="Units, evenly spread.")
@click.option("--rounds", type=click.IntRange(1), default=2, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/reconstruction.json"))
def main(width: int, samples: int, batch: int, steps: int, count: int, rounds: int, threads: int, out: Path) -> None:
    """Measure the schedules on the same units and write a JSON."""
    torch.set_num_threads(threads)
    settings = Reconstruction(method="fbr", iterations=steps, batch=batch)
    network = prepared(width, samples)
    _, units, batches = network
    chosen = spread(units, count)
    run(published, (*network[:2], batches[:1]), chosen, replace(settings, iterations=1))  # warms up
    measured = {schedule: [] for schedule in (ours, published_schedule, published)}
    for _ in range(rounds):
        for schedule, found in measured.items():
            found.append(run(schedule, network, chosen, settings))
    names = [units[index].name for index in sorted(chosen)]
    found = {schedule.__name__: summary(of_it, names, steps) for schedule, of_it in measured.items()}
    compared = {
        f"{name}_over_ours": {
            f"{iterations} steps, {rows} rows": ratios(found[name], found["ours"], iterations, rows / samples)
            for iterations, rows in PUBLISHED
        }
        for name in ("published", "published_schedule")
    }
    compared["error_published_over_ours"] = LEARNED | errors(**LEARNED)
    content = {
        "machine": {"processor": ov.Core().get_property("CPU", "FULL_DEVICE_NAME"), "threads": threads},
        "torch": torch.__version__,
        "settings": {"width": width, "samples": samples, "batch": batch, "steps": steps, "rounds": rounds},
        **compared,
        "memory": memory(width, samples, batch, threads),
        **found,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, content)
    click.echo(json.dumps(compared, indent=2))


if __name__ == "__main__":
    main()

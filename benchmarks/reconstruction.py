"""Time and memory of reconstructing units of the CIFAR-10 U-Net: our schedule beside the published code's.

All learn the same units with the same layers, losses, optimisers and number of steps:

- ours (edadm.quantization.fbr): targets of the block and of its layers computed once, one forward and one backward per
  step, inputs advanced from unit to unit;
- published: the published code, re-implemented here from its description. Per step the quantized unit for the block's
  loss, the full-precision unit for the layers' targets (its graph is kept), the quantized unit again for the layers'
  losses, and the gradients of both; per unit, the network before it is run twice over the whole calibration set, once
  in full precision and once quantized. Its quantizer is a chain of PyTorch's operations that autograd follows;
- published_schedule: that, with our quantizer. So it says what the schedule alone costs.

The architecture is that of the CIFAR-10 model (35.7 million parameters at the default width), with random weights.
The three run in turn, ``--rounds`` times; medians count. Writes a JSON with the seconds per step, the seconds per unit
for a calibration set and a number of steps as published, the growth of resident memory, and the errors reached.
"""

import copy
import json
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import edadm  # noqa: F401  (mends torchvision before diffusers)

import click  # isort: skip
import psutil
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from edadm.files import write_json
from edadm.params import Recipe, Reconstruction
from edadm.quantization import fbr
from edadm.quantization.cache import Cache
from edadm.quantization.layers import Simulated, set_mode
from edadm.quantization.units import Unit, find_units, simulate
from edadm.quantization.walk import Call

Batches = list[tuple[Tensor, ...]]
PUBLISHED = ((5000, 1024), (1000, 2048))  # steps per unit and calibration rows: CIFAR-10 and LSUN, ImageNet


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
    """The growth of resident memory within the block, in bytes, sampled every few milliseconds."""

    def __enter__(self) -> "Memory":
        self.process, self.done = psutil.Process(), threading.Event()
        self.start = self.peak = self.process.memory_info().rss
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(0.005):
            self.peak = max(self.peak, self.process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()
        self.growth = self.peak - self.start


def ours(unet: nn.Module, units: list[Unit], chosen: set[int], batches: Batches, settings: Reconstruction) -> list:
    """Learn the chosen units with fbr.reconstruct; the others are passed as if they had been learned before."""
    rows, learned, memory = {}, [], None

    def restore(index: int) -> tuple | None:
        nonlocal memory
        finish(index - 1)
        if index not in chosen:
            return fbr.unit_state(units[index]), fbr.UnitResult(units[index].name, units[index].kind, [], 0.0, 0.0)
        memory = Memory()
        memory.__enter__()
        rows[index] = {"started": time.perf_counter()}
        return None

    def finish(index: int) -> None:
        """A unit's time ends where the next one's begins, so that it includes advancing the inputs."""
        if index in chosen:
            memory.__exit__()
            rows[index] |= {"seconds": time.perf_counter() - rows[index].pop("started"), "bytes": memory.growth}

    original = fbr.Learner.learn

    def learn(self: fbr.Learner, *args: object) -> list:
        before = time.perf_counter()
        curve = original(self, *args)
        learned.append(time.perf_counter() - before)
        return curve

    fbr.Learner.learn = learn
    try:
        results = fbr.reconstruct(unet, units, batches, settings, restore, lambda *_: None, Cache())
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


def published_learning(learner: fbr.Learner, full: fbr.Rows, quantized: fbr.Rows, target: Tensor) -> None:
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
    for index in sorted(chosen):
        unit, before = units[index], time.perf_counter()
        with Memory() as memory:
            calls, targets = prefix(unet, unit, batches, "float")
            quantized_calls, _ = prefix(unet, unit, batches, "quantized")
            tables = fbr.Rows(calls, Cache()), fbr.Rows(quantized_calls, Cache()), torch.cat(targets)
            started = time.perf_counter()
            published_learning(fbr.Learner(unit, settings, index, {}), *tables)
            learning = time.perf_counter() - started
        seconds = time.perf_counter() - before
        with torch.no_grad():
            outputs = [unit.module(*call.args, **call.kwargs) for call in quantized_calls]
        error = fbr.output_error(outputs, targets)
        rows.append({"seconds": seconds, "bytes": memory.growth, "learning": learning, "error": error})
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
                "peak_mib": middle["bytes"] / 2**20,
                "error": middle["error"],
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
    return {key: above[key] / below[key] for key in above if below[key]}  # small units show no growth of memory


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
    generator = torch.Generator().manual_seed(1)
    x, t = torch.randn(samples, 3, 32, 32, generator=generator), torch.randint(0, 1000, (samples,), generator=generator)
    batches = list(zip(x.split(32), t.split(32), strict=True))
    settings = Reconstruction(method="fbr", iterations=steps, batch=batch)
    recipe = Recipe(weights=4, activations=8, reconstruction=settings)
    unet = cifar_unet(width)
    example = tuple(value[:1] for value in batches[0])
    simulate(unet, example, recipe)
    fbr.initialise(unet, batches, recipe)
    units = find_units(unet, example)
    chosen = {round(place * (len(units) - 1) / max(count - 1, 1)) for place in range(count)}

    def run(schedule: Callable, rows: Batches, settings: Reconstruction) -> list[dict]:
        network = copy.deepcopy(unet)  # each begins with the same state
        return schedule(network, find_units(network, example), chosen, rows, settings)

    run(published, batches[:1], replace(settings, iterations=1))  # warms up
    measured = {schedule: [] for schedule in (ours, published_schedule, published)}
    for _ in range(rounds):
        for schedule, found in measured.items():
            found.append(run(schedule, batches, settings))
    names = [units[index].name for index in sorted(chosen)]
    found = {schedule.__name__: summary(of_it, names, steps) for schedule, of_it in measured.items()}
    compared = {
        f"{name}_over_ours": {
            f"{iterations} steps, {rows} rows": ratios(found[name], found["ours"], iterations, rows / samples)
            for iterations, rows in PUBLISHED
        }
        for name in ("published", "published_schedule")
    }
    content = {
        "machine": {"processor": platform.processor() or platform.machine(), "threads": threads},
        "torch": torch.__version__,
        "settings": {"width": width, "samples": samples, "batch": batch, "steps": steps, "rounds": rounds},
        **compared,
        **found,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, content)
    click.echo(json.dumps(compared, indent=2))


if __name__ == "__main__":
    main()

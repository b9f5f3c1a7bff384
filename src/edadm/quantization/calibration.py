"""The calibration set: one latent of each full-precision trajectory, at a step that the calibrator chose."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from tqdm import tqdm

from edadm.errors import InputError
from edadm.files import atomic_write, sha256, write_json
from edadm.params import CALIBRATORS, CalibrationParams
from edadm.quantization import baselines, network, tdac

# a trajectory yields (timestep, network input (n, c, h, w)) for each step, given the seeds of its images
Trajectory = Callable[[range], Iterator[tuple[float, Tensor]]]


class _MiddleFeatures:
    """Keeps the input of the middle attention block (method.md A.2), or the middle block's output if it has none."""

    def __init__(self, unet: nn.Module) -> None:
        if getattr(unet, "mid_block", None) is None:
            raise InputError("the U-Net has no middle block, whose features TDAC compares")
        attentions = [a for a in getattr(unet.mid_block, "attentions", []) if a is not None]
        self.feature: Tensor | None = None
        if attentions:
            self.handle = attentions[0].register_forward_pre_hook(lambda _, args: self._keep(args[0]))
        else:
            self.handle = unet.mid_block.register_forward_hook(lambda _, args, output: self._keep(output))

    def _keep(self, feature: Tensor) -> None:
        self.feature = feature.cpu()  # the scores are computed there, whatever the network's device


def _radius(features: list[Tensor], params: CalibrationParams) -> float:
    given = params.radius is not None, params.radius_quantile is not None
    if given == (True, False):
        return params.radius
    if given == (False, True):
        return tdac.radius_from_quantile(features, params.radius_quantile)
    raise InputError("calibration: give either radius or radius_quantile")


def _allocation(
    calibrator: str, features: list[Tensor], params: CalibrationParams, generator: torch.Generator
) -> tdac.Allocation:
    """TDAC's scores in any case, since the report shows them, and the counts of the ``calibrator``."""
    scored = tdac.allocate(features, params.samples, params.diversity_weight, _radius(features, params))
    if calibrator == "tdac":
        return scored
    if calibrator == "uniform":
        return replace(scored, counts=baselines.uniform(len(features), params.samples, params.uniform_stride))
    if calibrator == "normal":
        return replace(scored, counts=baselines.normal(len(features), params.samples, generator))
    raise InputError(f"calibrator: {calibrator!r} is not one of {', '.join(CALIBRATORS)}")


@torch.no_grad()
def collect(
    unet: nn.Module, trajectory: Trajectory, calibrator: str, params: CalibrationParams, total: int | None = None
) -> tuple[dict[str, Tensor], tdac.Allocation, list[float]]:
    """Draw the calibration set; returns ``{"x", "t"}``, the allocation and the timesteps in sampling order.

    The first batch of trajectories is kept whole until its mid-block features have decided the counts; of every
    later trajectory only one latent is kept, so memory is O(samples), not O(steps x samples). ``total`` is the number
    of steps, for the progress bar.
    """
    batches = [
        range(params.seed + start, params.seed + min(start + params.batch, params.samples))
        for start in range(0, params.samples, params.batch)
    ]
    middle = _MiddleFeatures(unet)
    first, features = [], []
    for step in tqdm(trajectory(batches[0]), total=total, desc="calibration: features", unit="step"):
        first.append(step)
        features.append(middle.feature)
    middle.handle.remove()
    if not first:
        raise InputError("calibration: no call of this U-Net was seen while the first images were drawn")
    generator = torch.Generator().manual_seed(params.seed)
    allocation = _allocation(calibrator, features, params, generator)
    steps = [timestep for timestep, _ in first]
    drawn = torch.repeat_interleave(torch.arange(len(steps)), allocation.counts)
    drawn = drawn[torch.randperm(len(drawn), generator=generator)]
    latents = []
    for number, seeds in enumerate(tqdm(batches, desc="calibration: latents", unit="batch")):
        wanted = drawn[number * params.batch : number * params.batch + len(seeds)]
        kept: list[Tensor | None] = [None] * len(seeds)
        for index, (_, x) in enumerate(first if number == 0 else trajectory(seeds)):
            for row in (wanted == index).nonzero().flatten().tolist():
                kept[row] = x[row].clone()
            if index == wanted.max():
                break
        if any(row is None for row in kept):
            raise InputError(
                f"calibration: the images of seeds {seeds.start} to {seeds.stop - 1} are drawn with fewer calls of the "
                f"U-Net than the first ones, {len(first)}"
            )
        latents += kept
    return {"x": torch.stack(latents), "t": torch.tensor(steps)[drawn]}, allocation, steps


def with_contexts(data: dict[str, Tensor], contexts: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """The set as the rows that a conditional network sees: all of x, t once for each of ``contexts``.

    A context is (N, tokens, width); guidance has two, since the network runs on either. Without any, ``data`` as it is.
    """
    return with_conditions(data, {"context": torch.cat(contexts)}) if contexts else data


def with_conditions(data: dict[str, Tensor], conditions: dict[str, Tensor]) -> dict[str, Tensor]:
    """The set with ``conditions`` (k N, ...), the network's further arguments, its N rows repeated k times."""
    rows = len(next(iter(conditions.values()))) if conditions else len(data["x"])
    return {key: torch.cat([value] * (rows // len(data["x"]))) for key, value in data.items()} | conditions


def inputs(data: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """The network's arguments in a set, in their order: (x, t), (x, t, context), …."""
    return tuple(data[key] for key in network.NAMES if key in data)


def write(
    out: Path,
    data: dict[str, Tensor],
    allocation: tdac.Allocation,
    steps: list[float],
    calibrator: str,
    params: CalibrationParams,
    checkpoint: Path,
) -> None:
    """Write the set to ``out`` and its description beside it.

    Safetensors: x float32 (n, c, h, w), t int64 (n,), the network's further arguments, see ``network``, and ``final``
    float32 (batch, c, h, w), what the first batch's trajectories ended with: an autoencoder is calibrated on it.
    """
    atomic_write(out, save(data))
    write_json(
        out.with_suffix(".json"),
        {
            "calibrator": calibrator,
            "samples": params.samples,
            "steps": len(steps),
            "timesteps": steps,
            "density": allocation.density.tolist(),
            "diversity": allocation.diversity.tolist(),
            "counts": allocation.counts.tolist(),
            "radius": allocation.radius,
            "diversity_weight": params.diversity_weight,
            "seed": params.seed,
            "checkpoint_sha256": sha256(checkpoint),
        },
    )


def read(path: Path) -> dict[str, Tensor]:
    """The calibration set written by ``write``; InputError when the file is missing or damaged."""
    try:
        data = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not a readable calibration set ({error})") from error
    try:
        return checked(data)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def checked(data: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``data`` itself; InputError unless it has x, t and otherwise only further arguments of networks, equally long.

    And perhaps ``final`` (of any length).
    """
    lengths = {len(value) for name, value in data.items() if name != network.FINAL}
    if not {"x", "t"} <= set(data) <= {*network.NAMES, network.FINAL} or len(lengths) > 1:
        shapes = {name: tuple(value.shape) for name, value in sorted(data.items())}
        further = ", ".join(network.NAMES[2:])
        raise InputError(f"a calibration set has x, t and perhaps {further}, all of one length, this has {shapes}")
    return dict(data)

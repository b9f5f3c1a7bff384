"""Calibration sets from any sampler: the pipeline's own scheduler runs, and the U-Net's calls are looked at."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edadm.errors import InputError
from edadm.params import CALIBRATORS, CalibrationParams, check
from edadm.pipelines.calls import unet_calls
from edadm.pipelines.draw import drawing
from edadm.quantization import calibration, tdac

Draw = Callable[[range], object]  # draws the images of these seeds, one trajectory each, with the U-Net


def calibrate(
    pipeline: Any,
    prompts: Sequence[str] | None = None,
    class_labels: Sequence[int] | None = None,
    *,
    samples: int = 128,
    batch: int = 4,
    steps: int = 50,
    calibrator: str = "tdac",
    seed: int = 0,
    diversity_weight: float = 1.2,
    radius_quantile: float = 0.3,
    **call: Any,
) -> dict[str, Tensor]:
    """Draw a calibration set with a diffusers ``pipeline``; memory grows with ``samples``, not with the steps.

    ``samples`` trajectories run, ``batch`` at a time and each from a seed of its own (``seed``, ``seed + 1``, …), with
    ``prompts`` or ``class_labels`` in turn. TDAC (or another ``calibrator``: "uniform", "normal") decides from which of
    the U-Net's calls of each one latent is kept. ``steps`` is the pipeline's ``num_inference_steps``, ``call`` what
    else it should be called with (``guidance_scale=…``); the scheduler is whichever it has.

    Returns tensors by name, in full precision: x (k n, c, h, w) float32, t (k n,) int64, and what the U-Net takes
    besides: context (k n, tokens, width), label (k n,), text_embeds (k n, width), time_ids (k n, 6). Of the k blocks
    of n = ``samples`` rows there are two under guidance, the unconditional and the conditional one.
    InputError for a pipeline that cannot be used, or values out of range.
    """
    settings = CalibrationParams(
        samples=samples, batch=batch, diversity_weight=diversity_weight, radius_quantile=radius_quantile, seed=seed
    )
    draw = drawing(pipeline, prompts, class_labels, seed, steps=steps, latent=True, **call)
    with quiet(pipeline):
        return collect(pipeline.unet, draw, calibrator, settings, steps)[0]


def collect(
    unet: nn.Module, draw: Draw, calibrator: str, settings: CalibrationParams, steps: int | None = None
) -> tuple[dict[str, Tensor], tdac.Allocation, list[float]]:
    """The calibration set from the calls that ``draw`` makes of ``unet``, its allocation, and the steps in order.

    ``draw(seeds)`` must sample the images of ``seeds`` at once: each call has a row for each, or k blocks of such rows
    (guidance), equal in x. InputError otherwise. ``steps`` is about how many calls, for the progress bar.
    """
    check(settings, "calibration")
    if calibrator not in CALIBRATORS:
        raise InputError(f"calibrator {calibrator!r} is not one of {', '.join(CALIBRATORS)}")
    conditions: dict[int, dict[str, Tensor]] = {}  # by the batch's first seed, the same at every step

    def trajectory(seeds: range) -> Iterator[tuple[float, Tensor]]:
        for inputs in unet_calls(unet, lambda: draw(seeds)):
            x, t = inputs.pop("x"), inputs.pop("t")
            if len(x) % len(seeds) or (t != t[0]).any():
                raise InputError(f"a call of the U-Net has {len(x)} rows for {len(seeds)} images, or several steps")
            kept = conditions.setdefault(seeds.start, inputs)
            if any(value.shape != kept[name].shape or not value.equal(kept[name]) for name, value in inputs.items()):
                raise InputError(
                    f"seeds {seeds.start} to {seeds.stop - 1}: the U-Net's condition changes from call to call; under "
                    "guidance, call it once a step, with the unconditional rows and then the conditional ones"
                )
            yield t[0].item(), x[: len(seeds)]

    data, *rest = calibration.collect(unet, trajectory, calibrator, settings, steps)
    joined = _by_blocks(list(conditions.values()), min(settings.batch, settings.samples))
    return calibration.with_conditions(data, joined), *rest


@contextmanager
def quiet(pipeline: Any) -> Iterator[None]:
    """The pipeline shows no progress of its own."""
    before = getattr(pipeline, "_progress_bar_config", {})
    pipeline.set_progress_bar_config(**before | {"disable": True})
    try:
        yield
    finally:
        pipeline.set_progress_bar_config(**before)


def _by_blocks(batches: list[dict[str, Tensor]], first: int) -> dict[str, Tensor]:
    """Conditions of all batches together, block by block: all unconditional rows, then all conditional ones.

    ``first`` is the number of images in the first batch.
    """
    joined = {}
    for name in batches[0]:
        blocks = len(batches[0][name]) // first
        parts = [batch[name].chunk(blocks) for batch in batches]
        joined[name] = torch.cat([part[block] for block in range(blocks) for part in parts])
    return joined

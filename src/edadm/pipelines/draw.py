"""Call a diffusers pipeline for the images of given seeds, whatever kind of pipeline it is."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from edadm.errors import InputError

SEED_LIMIT = 2**62  # with room for those that follow: PyTorch's have 64 bits


def drawing(
    pipeline: Any,
    prompts: Sequence[str] | None,
    class_labels: Sequence[int] | None,
    first: int,
    *,
    steps: int | None = None,
    latent: bool = False,
    **call: Any,
) -> Callable[[range], Any]:
    """A function from seeds to what ``pipeline`` gives for them, image k from a generator of seed k alone.

    Seed ``first`` has the first of ``prompts`` (or ``class_labels``), the next one the next, and so on in turn.
    ``latent`` leaves out the decoding where the pipeline can. InputError when it is not one that draws from noise, or
    what it needs is not given, or cannot be.
    """
    known = inspect.signature(pipeline.__call__).parameters
    kind = type(pipeline).__name__
    unknown = [key for key in call if key not in known]
    if unknown:
        raise InputError(f"{kind} takes no {unknown[0]}")
    conditions: dict[str, Sequence[Any]] = {}
    if not 0 <= first < SEED_LIMIT:
        raise InputError(f"seed: {first} is not at least 0 and below 2**62")
    if steps is not None and steps < 1:
        raise InputError(f"steps: {steps} is not at least 1")
    if not math.isfinite(call.get("guidance_scale", 0)):
        raise InputError(f"guidance_scale: {call['guidance_scale']} is not a finite number")
    prompts = [prompts] if isinstance(prompts, str) else prompts
    for name, given in (("prompt", prompts), ("class_labels", class_labels)):
        if given is not None and (name not in known or not len(given)):
            raise InputError(f"{kind} takes no {name}" if name not in known else f"{name}: none is given")
        if given is not None:
            conditions[name] = given
    if not conditions and ("prompt" in known or getattr(pipeline, "needs_class_labels", False)):
        raise InputError(f"{kind} draws from {'prompts' if 'prompt' in known else 'class labels'}: give some")
    if "steps" in known or "num_inference_steps" not in known or "generator" not in known:
        raise InputError(f"{kind} is not a pipeline with num_inference_steps and a generator")
    needed = [
        name
        for name, parameter in known.items()
        if parameter.default is parameter.empty
        and parameter.kind is not parameter.VAR_KEYWORD
        and name not in {*call, *conditions}
    ]
    if needed:
        raise InputError(f"{kind} draws from {needed[0]}, not from noise alone; give a text-to-image pipeline")
    if steps is not None:
        call["num_inference_steps"] = steps
    if latent and "prompt" in known:
        call["output_type"] = "latent"

    @torch.no_grad()
    def draw(seeds: range) -> Any:
        rows = {name: [values[(seed - first) % len(values)] for seed in seeds] for name, values in conditions.items()}
        if "batch_size" in known:
            rows["batch_size"] = len(seeds)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        try:
            return pipeline(**call, **rows, generator=generators)
        except ValueError as error:  # of the scheduler: what it says is for users
            raise InputError(f"{kind}: {' '.join(str(error).split())}") from error

    return draw

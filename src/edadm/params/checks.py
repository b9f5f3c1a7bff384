"""Where one part of params.yaml does not fit another."""

import re
from collections.abc import Iterator
from itertools import pairwise

from edadm.params.schema import Params

NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")  # of systems and variants: they become folders, stages and DVC's keys


def disagreements(params: Params) -> Iterator[str]:
    """Where one part of the file does not fit another."""
    for what, known in (("systems", params.systems), ("variants", params.variants)):
        for name in known:
            if not NAME.fullmatch(name):
                yield f"{what}.{name}: not a name; allowed: lower-case letters and digits, in groups joined by dashes"
    for name in params.pipeline.systems:
        if name not in params.systems:
            yield f"pipeline.systems: unknown system {name!r}; allowed: {', '.join(params.systems)}"
    for name, settings in params.systems.items():
        images = settings.sampling.images
        if set(images) != {"demo", "full"} or min(images.values()) < 1:
            allowed = "{demo: N, full: N}, each N above 0"
            yield f"systems.{name}.sampling.images: {images} is not allowed; allowed: {allowed}"
        if (settings.calibration.radius is None) == (settings.calibration.radius_quantile is None):
            given = "both are" if settings.calibration.radius is not None else "neither is"
            yield f"systems.{name}.calibration: radius, radius_quantile: {given} given; allowed: exactly one of the two"
        if settings.sampler.name == "plms" and settings.sampler.eta != 0:
            yield f"systems.{name}.sampler.eta: {settings.sampler.eta} is not allowed; allowed: 0 (plms adds no noise)"
    for name, recipe in params.variants.items():
        if (recipe.weights == 32) != (recipe.activations == 32):
            widths = f"weights {recipe.weights} with activations {recipe.activations}"
            yield f"variants.{name}: {widths} is not allowed; allowed: both 2 to 8, or both 32"
        if "unet" not in recipe.quantize:
            yield f"variants.{name}.quantize: {list(recipe.quantize)} is not allowed; allowed: [unet] or [unet, vae]"
    if not params.runs:
        yield "runs: is empty; allowed: SYSTEM-VARIANT: {system: …, variant: …, calibrator: …}"
    for key, run in params.runs.items():
        if run.system not in params.pipeline.systems:
            yield f"runs.{key}.system: unknown system {run.system!r}; allowed: {', '.join(params.pipeline.systems)}"
        elif run.variant not in params.variants:
            yield f"runs.{key}.variant: unknown variant {run.variant!r}; allowed: {', '.join(params.variants)}"
        elif run.calibrator not in params.pipeline.calibrators:
            allowed = ", ".join(params.pipeline.calibrators)
            yield f"runs.{key}.calibrator: {run.calibrator!r} is not allowed; allowed: {allowed} (pipeline.calibrators)"
        elif key != f"{run.system}-{run.variant}":
            yield f"runs.{key}: a run is named SYSTEM-VARIANT; allowed: {run.system}-{run.variant}"
        elif f"{run.system}-fp32" not in params.runs:
            yield f"runs.{key}: is measured against {run.system}-fp32, which is not among the runs; add it"
    yield from _ablation_disagreements(params)
    if "fp32" in params.variants and params.variants["fp32"].weights != 32:
        yield f"variants.fp32.weights: {params.variants['fp32'].weights} is not allowed; allowed: 32, as its name says"


def _ablation_disagreements(params: Params) -> Iterator[str]:
    """Where the ablation does not fit the rest of the file."""
    ablation, runs = (
        params.ablation,
        {run.variant for run in params.runs.values() if run.system == params.ablation.system},
    )
    if ablation.system not in params.pipeline.systems:
        yield f"ablation.system: unknown system {ablation.system!r}; allowed: {', '.join(params.pipeline.systems)}"
        return
    images = params.systems[ablation.system].sampling.images.get("full", 1)
    for one, other in pairwise(sorted(ablation.seeds)):
        if other - one < images:
            yield f"ablation.seeds: {one} and {other} share images; allowed: at least {images} apart (images.full)"
    twice = set(ablation.calibrators) & set(params.pipeline.calibrators)
    if twice:
        yield f"ablation.calibrators: {min(twice)} is in pipeline.calibrators too; allowed: those that are not"
    for name, calibrator in ablation.variants.items():
        known = (*params.pipeline.calibrators, *ablation.calibrators)
        if name not in params.variants:
            yield f"ablation.variants: unknown variant {name!r}; allowed: {', '.join(params.variants)}"
        elif name in runs:
            yield f"ablation.variants.{name}: is among the runs too, which quantize it; allowed: in one of the two"
        elif calibrator not in known:
            yield f"ablation.variants.{name}: {calibrator!r} is not allowed; allowed: {', '.join(known)}"
        elif name not in ablation.rows:
            yield f"ablation.variants.{name}: is not in ablation.rows; add it there"
    for name in ablation.rows:
        if name not in {*runs, *ablation.variants}:
            yield f"ablation.rows: {name!r} is neither a run of {ablation.system} nor in ablation.variants"
    if "fp32" not in ablation.rows:
        yield "ablation.rows: fp32 is missing; the others are measured against it"

"""Where one part of params.yaml does not fit another."""

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise

from edadm.params.kinds import BELOW, BOUND
from edadm.params.schema import TEXT_FILES, OriginalParams, Params, PublishedSystemParams, SystemParams
from edadm.params.train import TrainParams

TOOLS = ("inception", "clip")  # networks of the metrics
PUBLISHED_CALIBRATORS = ("tdac",)  # published/dvc.yaml makes no others
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")  # of systems and variants: they become folders, stages and DVC's keys
# what else is a target of Snakemake or a folder of results/, and a folder of a system's results
OF_SYSTEMS = {"all", "full", "paper", "train", "checkpoint", "calibration", "reconstruction", "deployment", "samples"}
OF_SYSTEMS |= {"verification", "reference", "metrics", "latency", "ablation", "tables", "report", "index"}
OF_SYSTEMS |= {"index-full", "index-ablation", "index-published", "tables-published"}
OF_VARIANTS = {"checkpoint", "ablation"}


def disagreements(params: Params) -> Iterator[str]:
    """Where one part of the file does not fit another."""
    systems = {f"systems.{name}": settings for name, settings in params.systems.items()}
    published = {f"published.systems.{name}": settings for name, settings in params.published.systems.items()}
    for place, names, taken in (
        ("systems", params.systems, OF_SYSTEMS),
        ("published.systems", params.published.systems, OF_SYSTEMS),
        ("variants", params.variants, OF_VARIANTS),
    ):
        for name in names:
            if not NAME.fullmatch(name):
                yield f"{place}.{name}: not a name; allowed: lower-case letters and digits, in groups joined by dashes"
            if name in taken:
                yield f"{place}.{name}: means something else already; allowed: any but {', '.join(sorted(taken))}"
    yield from _pipeline_disagreements(params)
    for place, settings in (systems | published).items():
        yield from _system_disagreements(place, settings)
    for place, settings in published.items():
        yield from _file_disagreements(f"{place}.checkpoint", settings.checkpoint)
        if place.removeprefix("published.") in systems:
            yield f"{place}: is in systems too; allowed: in one of the two"
        if (settings.reference.file is None) == (settings.reference.images is None):
            yield f"{place}.reference: file, images: allowed: exactly one of the two"
    for name in TOOLS:
        if name not in params.published.tools:
            yield f"published.tools: {name} is missing; allowed: {', '.join(TOOLS)}"
    for name, recipe in params.variants.items():
        if (recipe.weights == 32) != (recipe.activations == 32):
            widths = f"weights {recipe.weights} with activations {recipe.activations}"
            yield f"variants.{name}: {widths} is not allowed; allowed: both 2 to 8, or both 32"
        if "unet" not in recipe.quantize:
            yield f"variants.{name}.quantize: {list(recipe.quantize)} is not allowed; allowed: [unet] or [unet, vae]"
    if "fp32" in params.variants and params.variants["fp32"].weights != 32:
        yield f"variants.fp32.weights: {params.variants['fp32'].weights} is not allowed; allowed: 32, as its name says"
    yield from _run_disagreements("", params, params.pipeline.systems, params.pipeline.calibrators)
    paper = params.of_published()
    yield from _run_disagreements("published.", paper, paper.pipeline.systems, PUBLISHED_CALIBRATORS)
    for key, run in params.published.runs.items():
        if run.recipe is None:
            yield f"published.runs.{key}.recipe: is missing; allowed: {', '.join(params.variants)}"
    yield from _metrics_disagreements(params)
    yield from _ablation_disagreements(params)
    yield from _training_disagreements(params.train)


def _pipeline_disagreements(params: Params) -> Iterator[str]:
    """Where what is built is not what is described."""
    listed = params.pipeline.systems
    for name in listed:
        if name not in params.systems:
            yield f"pipeline.systems: unknown system {name!r}; allowed: {', '.join(params.systems)}"
        elif listed.count(name) > 1:
            yield f"pipeline.systems: {name} is there twice; allowed: once"
        elif params.runs and name not in {run.system for run in params.runs.values()}:
            yield f"pipeline.systems: {name} has no runs; allowed: systems with one run at least, {name}-fp32"
    for name in params.systems:
        if name not in listed:
            yield f"systems.{name}: is not among pipeline.systems; allowed: in both, or in neither"


def _system_disagreements(place: str, settings: SystemParams | PublishedSystemParams) -> Iterator[str]:
    """Where the parts of one system do not fit each other."""
    images, calibration, sampler = settings.sampling.images, settings.calibration, settings.sampler
    if set(images) != {"demo", "full"} or not all(0 < count < BOUND for count in images.values()):
        allowed = f"{{demo: N, full: N}}, each N above 0, {BELOW}"
        yield f"{place}.sampling.images: {images} is not allowed; allowed: {allowed}"
    if (calibration.radius is None) == (calibration.radius_quantile is None):
        given = "both are" if calibration.radius is not None else "neither is"
        yield f"{place}.calibration: radius, radius_quantile: {given} given; allowed: exactly one of the two"
    if _overlap(settings):
        evaluated = f"{settings.sampling.seed} to {settings.sampling.seed + max(images.values()) - 1}"
        allowed = f"one from which {calibration.samples} seeds are none of the images', {evaluated}"
        yield f"{place}.calibration.seed: {calibration.seed} is not allowed; allowed: {allowed}"
    if sampler.name == "plms" and sampler.eta != 0:
        yield f"{place}.sampler.eta: {sampler.eta} is not allowed; allowed: 0 (plms adds no noise)"


def _overlap(settings: SystemParams | PublishedSystemParams) -> bool:
    """Whether a seed is both of the calibration set and of an image that is evaluated."""
    one = settings.calibration.seeds
    others = [settings.sampling.seeds(protocol) for protocol in settings.sampling.images]
    return any(one.start < other.stop and other.start < one.stop for other in others)


def _metrics_disagreements(params: Params) -> Iterator[str]:
    """Where the metrics need more images than a protocol has, to which they would come after hours."""
    needed = params.metrics.kid_subset_size
    for part, systems in (("systems", params.systems), ("published.systems", params.published.systems)):
        for name, settings in systems.items():
            for protocol, count in settings.sampling.images.items():
                if count < needed:
                    allowed = f"at most {count}, as {part}.{name}.sampling.images.{protocol} says"
                    yield f"metrics.kid_subset_size: {needed} is not allowed; allowed: {allowed}"


def _file_disagreements(place: str, checkpoint: OriginalParams) -> Iterator[str]:
    """Where a published checkpoint lacks a file, or has one too many."""
    needed = {"weights", *(TEXT_FILES if checkpoint.format == "coco-sd14" else ())}
    if set(checkpoint.files) != needed:
        found = ", ".join(checkpoint.files)
        yield f"{place}.files: {found} is not allowed; {checkpoint.format} needs {', '.join(sorted(needed))}"


def _run_disagreements(
    prefix: str, params: Params, systems: Iterable[str], calibrators: Iterable[str]
) -> Iterator[str]:
    """Where a run names what there is not; ``prefix`` is where the runs are in the file."""
    published = bool(prefix)
    if not params.runs:
        yield f"{prefix}runs: is empty; allowed: SYSTEM-VARIANT: {{system: …, variant: …, calibrator: …}}"
    for key, run in params.runs.items():
        place = f"{prefix}runs.{key}"
        what, recipe = ("recipe", run.recipe) if run.recipe else ("variant", run.variant)
        if run.recipe is not None and not published:
            yield f"{place}.recipe: {run.recipe!r} is not allowed; allowed: none, it is the variant's of the same name"
        elif run.system not in systems:
            yield f"{place}.system: unknown system {run.system!r}; allowed: {', '.join(systems)}"
        elif recipe not in params.variants:
            yield f"{place}.{what}: unknown variant {recipe!r}; allowed: {', '.join(params.variants)}"
        elif run.calibrator not in calibrators:
            allowed = f"{', '.join(calibrators)}{'' if published else ' (pipeline.calibrators)'}"
            yield f"{place}.calibrator: {run.calibrator!r} is not allowed; allowed: {allowed}"
        elif key != f"{run.system}-{run.variant}":
            yield f"{place}: a run is named SYSTEM-VARIANT; allowed: {run.system}-{run.variant}"
        elif not NAME.fullmatch(run.variant):
            yield f"{place}.variant: {run.variant!r} is not a name; allowed: lower-case letters, digits, dashes"
        elif run.variant in OF_VARIANTS:
            yield f"{place}.variant: {run.variant} means something else already; allowed: any other name"
        elif f"{run.system}-fp32" not in params.runs:
            yield f"{place}: is measured against {run.system}-fp32, which is not among the runs; add it"
        elif run.variant == "fp32" and params.recipe(run).weights != 32:
            yield f"{place}.{what}: {recipe!r} is quantized; allowed: a recipe of 32 bits, as the name fp32 says"


def _ablation_disagreements(params: Params) -> Iterator[str]:
    """Where the ablation does not fit the rest of the file."""
    ablation = params.ablation
    if ablation.system not in params.pipeline.systems:
        yield f"ablation.system: unknown system {ablation.system!r}; allowed: {', '.join(params.pipeline.systems)}"
    for repeat in ablation.repeats:
        if _overlap(params.system(ablation.system, repeat)):
            allowed = "repetitions whose calibration has no seed of their images"
            yield f"ablation.repeats: {repeat} is not allowed; allowed: {allowed}"
    for index, row in enumerate(ablation.rows):
        place = f"ablation.rows[{index}]"
        if row.variant not in params.variants:
            yield f"{place}.variant: unknown variant {row.variant!r}; allowed: {', '.join(params.variants)}"
        elif row.calibrator not in ablation.calibrators:
            allowed = f"{', '.join(ablation.calibrators)} (ablation.calibrators)"
            yield f"{place}.calibrator: {row.calibrator!r} is not allowed; allowed: {allowed}"
    variants = [row.variant for row in ablation.rows]
    for one, other in pairwise(sorted(variants)):
        if one == other:
            yield f"ablation.rows: {one} is there twice; allowed: once"
    if "fp32" not in variants:
        yield "ablation.rows: fp32 is missing; the others are measured against it"


def _training_disagreements(train: TrainParams) -> Iterator[str]:
    """Where a training would end before its first step."""
    for name, settings in (("fashion-ddim", train.fashion_ddim), ("fashion-ldm", train.fashion_ldm)):
        if not settings.cycles or not all(settings.batch <= seen < BOUND for seen in settings.cycles):
            allowed = f"one or more, each at least {settings.batch}, a batch, {BELOW}"
            yield f"train.{name}.cycles: {list(settings.cycles)} is not allowed; allowed: {allowed}"
    first = train.fashion_ldm.autoencoder
    if first.seen < first.batch:
        place, allowed = "train.fashion-ldm.autoencoder.seen", f"at least {first.batch}, a batch"
        yield f"{place}: {first.seen} is not allowed; allowed: {allowed}"

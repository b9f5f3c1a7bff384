"""params.yaml as checked, read-only dataclasses: what is wrong with it is one line, before anything runs.

A key is one line here: its type, what is allowed and, when it may be left out, its default. docs/params.md explains
what each key does.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, dataclass, field, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_origin

import omegaconf
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from edadm.errors import InputError

NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")  # of systems and variants: they become folders, stages and DVC's keys
CALIBRATORS = ("tdac", "uniform", "normal")
TYPES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _checked(allowed: str, holds: Callable[[Any], bool], default: Any = omegaconf.MISSING) -> Any:
    """A field for whose value ``holds`` must be true (of a list: for each element); ``allowed`` says that in words."""
    return field(default=default, metadata={"allowed": allowed, "holds": holds})


def one_of(*names: str, default: Any = omegaconf.MISSING) -> Any:
    """One of the names."""
    return _checked(f"one of {', '.join(names)}", lambda value: value in names, default)


def some_of(*names: str) -> Any:
    """A list, not empty, of some of the names."""
    return _checked(f"a list of one or more of {', '.join(names)}", lambda value: value in names)


def at_least(smallest: float, default: Any = omegaconf.MISSING) -> Any:
    """A finite number not below ``smallest``."""
    return _checked(f"at least {smallest}", lambda value: smallest <= value < math.inf, default)


def above_zero(default: Any = omegaconf.MISSING) -> Any:
    """A finite number above 0."""
    return _checked("above 0", lambda value: 0 < value < math.inf, default)


def between(low: float, high: float, default: Any = omegaconf.MISSING) -> Any:
    """A number from ``low`` to ``high``, both included."""
    return _checked(f"from {low} to {high}", lambda value: low <= value <= high, default)


def optional(entry: Any) -> Any:
    """What ``entry`` allows, or null, which is the default."""
    allowed, holds = entry.metadata["allowed"], entry.metadata["holds"]
    return _checked(f"{allowed}, or null", lambda value: value is None or holds(value), default=None)


def bits() -> Any:
    """A width in bits; 32 is unquantized."""
    return _checked("2 to 8, or 32 (not quantized)", lambda value: 2 <= value <= 8 or value == 32)


class _Settings:
    """Read-only once made, lists as tuples.

    By hand, because OmegaConf makes the configuration of a frozen dataclass read-only before it can be filled.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__:
            raise FrozenInstanceError(f"cannot assign to field {name!r}")
        super().__setattr__(name, tuple(value) if isinstance(value, list) else value)


@dataclass
class PipelineParams(_Settings):
    """What is built."""

    systems: list[str] = omegaconf.MISSING
    calibrators: list[str] = some_of(*CALIBRATORS)
    devices: list[str] = some_of("cpu", "cuda")


@dataclass
class Run(_Settings):
    """A variant of a system, with its calibration set."""

    system: str = omegaconf.MISSING
    variant: str = omegaconf.MISSING
    calibrator: str = omegaconf.MISSING


@dataclass
class CheckpointParams(_Settings):
    """Where a system's checkpoint comes from."""

    source: str = omegaconf.MISSING
    sha256: str = _checked("64 hexadecimal digits", re.compile(r"[0-9a-f]{64}").fullmatch)


@dataclass
class SamplerParams(_Settings):
    """How images are drawn."""

    name: str = one_of("ddim", "plms")
    steps: int = at_least(1)
    spacing: str = one_of("leading", "trailing", "quadratic")
    eta: float = between(0, 1, default=0.0)
    guidance: float = at_least(1, default=1.0)


@dataclass
class CalibrationParams(_Settings):
    """The calibration set."""

    samples: int = at_least(1)
    batch: int = at_least(1)
    diversity_weight: float = at_least(0)
    radius: float | None = optional(above_zero())
    radius_quantile: float | None = optional(_checked("between 0 and 1, neither included", lambda value: 0 < value < 1))
    uniform_stride: int = at_least(1, default=1)
    seed: int = at_least(0)


@dataclass
class SamplingParams(_Settings):
    """The images that are measured: seeds ``seed``, ``seed + 1``, …; ``images`` says how many in each protocol."""

    seed: int = at_least(0)
    batch: int = at_least(1)
    shard: int = at_least(1)
    images: dict[str, int] = omegaconf.MISSING


@dataclass
class ReferenceParams(_Settings):
    """The real images' statistics and the features they are in."""

    extractor: str = one_of("garment-classifier")
    statistics: str = omegaconf.MISSING


@dataclass
class SystemParams(_Settings):
    """A model with its sampler and protocol."""

    checkpoint: CheckpointParams = omegaconf.MISSING
    sampler: SamplerParams = omegaconf.MISSING
    calibration: CalibrationParams = omegaconf.MISSING
    sampling: SamplingParams = omegaconf.MISSING
    reference: ReferenceParams = omegaconf.MISSING


@dataclass
class Reconstruction(_Settings):
    """How the quantized weights and steps are learned."""

    method: str = one_of("fbr", "none", default="none")
    iterations: int = at_least(1, default=400)
    batch: int = at_least(1, default=32)
    rate_rounding: float = above_zero(default=0.05)
    rate_steps: float = above_zero(default=0.0001)
    layer_loss: float = at_least(0, default=0.8)
    input_mix: float = between(0, 1, default=0.5)
    activation_drop: float = between(0, 1, default=0.5)
    rounding_penalty: float = at_least(0, default=0.0)
    bias_correction: bool = False
    fisher: bool = False
    seed: int = at_least(0, default=0)


@dataclass
class Recipe(_Settings):
    """The settings of a variant."""

    weights: int = bits()
    activations: int = bits()
    ranges: str = one_of("mse", "minmax", default="mse")
    reconstruction: Reconstruction = field(default_factory=Reconstruction)
    eight_bit: tuple[str, ...] = ("conv_in", "conv_out")
    eight_bit_full_resolution: bool = False
    sixteen_bit_inputs: tuple[str, ...] = ("conv_in",)
    split_shortcut: bool = True
    attention: int = _checked("8, or 32 (not quantized)", lambda value: value in (8, 32), default=32)


@dataclass
class AblationParams(_Settings):
    """The comparison of recipes on one system."""

    system: str = omegaconf.MISSING
    seeds: list[int] = at_least(0)
    calibrators: list[str] = some_of(*CALIBRATORS)
    variants: dict[str, str] = omegaconf.MISSING
    rows: list[str] = omegaconf.MISSING


@dataclass
class EngineParams(_Settings):
    """How the integer engine computes."""

    body: str = one_of("f32", "bf16", "f16")
    threads: int = at_least(1)


@dataclass
class MetricsParams(_Settings):
    """Settings of the quality metrics."""

    kid_subsets: int = at_least(1)
    kid_subset_size: int = at_least(2)
    neighbours: int = at_least(1)


@dataclass
class LatencyParams(_Settings):
    """Settings of the speed measurement."""

    rounds: int = at_least(1)
    batches: list[int] = at_least(1)


@dataclass
class LimitParams(_Settings):
    """What the machine has to give; nothing here changes a result."""

    cache_mib: int = at_least(0, default=4096)


@dataclass
class Params(_Settings):
    """The whole file."""

    pipeline: PipelineParams = omegaconf.MISSING
    runs: dict[str, Run] = omegaconf.MISSING
    systems: dict[str, SystemParams] = omegaconf.MISSING
    variants: dict[str, Recipe] = omegaconf.MISSING
    ablation: AblationParams = omegaconf.MISSING
    engine: EngineParams = omegaconf.MISSING
    metrics: MetricsParams = omegaconf.MISSING
    latency: LatencyParams = omegaconf.MISSING
    train: dict[str, Any] = omegaconf.MISSING
    limits: LimitParams = field(default_factory=LimitParams)
    device: str = one_of("cpu", "cuda", default="cpu")  # of calibration and reconstruction

    def system(self, name: str) -> SystemParams:
        """The system of that name; InputError when there is none."""
        return _named(self.systems, "system", name)

    def variant(self, name: str) -> Recipe:
        """The recipe of the variant of that name; InputError when there is none."""
        return _named(self.variants, "variant", name)


def _named(known: dict[str, Any], what: str, name: str) -> Any:
    if name not in known:
        raise InputError(f"unknown {what} {name!r}; params.yaml has {', '.join(known)}")
    return known[name]


def _read(path: Path) -> Any:
    try:
        content = OmegaConf.load(path)
        OmegaConf.resolve(content)
        return content
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; run from the project's folder or give --params") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise InputError(f"{path}: {line}not valid YAML ({error.problem})") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error


def _wrong_shapes(kind: Any, content: Any, path: str) -> Iterator[str]:
    """Each place where the schema has a mapping and the content has not (OmegaConf does not say where)."""
    if is_dataclass(kind):
        inner = {entry.name: entry.type for entry in fields(kind)}
    elif get_origin(kind) is dict:
        inner = dict.fromkeys(content if isinstance(content, dict) else (), get_args(kind)[1])
    else:
        return
    if not isinstance(content, dict):
        keys = f" with the keys {', '.join(inner)}" if inner else ""
        yield f"{path or 'the file'}: {content!r} is not allowed; allowed: a mapping{keys}"
        return
    for name in inner.keys() & content.keys():
        yield from _wrong_shapes(inner[name], content[name], f"{path}.{name}".lstrip("."))


def _explain(error: OmegaConfBaseException) -> str:
    """What OmegaConf found, as "key: what is wrong; what is allowed"."""
    owner = error.object_type
    known = {entry.name: entry for entry in fields(owner)} if is_dataclass(owner) else {}
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}: is missing"
    if isinstance(error, ConfigKeyError) and known:
        return f"{error.full_key}: unknown key; known here: {', '.join(known)}"
    reason = str(error.msg).splitlines()[0]
    if error.key in known:
        entry = known[error.key]
        allowed = [TYPES.get(entry.type, ""), entry.metadata.get("allowed", "")]
        return f"{error.full_key}: {reason}; allowed: {', '.join(filter(None, allowed)) or 'see docs/params.md'}"
    return f"{error.full_key or 'the file'}: {reason}"


def _bad_values(settings: Any, path: str) -> Iterator[str]:
    """Each value, at any depth, that its field does not allow."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            yield from _bad_values(value, f"{path}.{key}")
    if not is_dataclass(settings):
        return
    for entry in fields(settings):
        key, value = f"{path}.{entry.name}".lstrip("."), getattr(settings, entry.name)
        if "holds" in entry.metadata:
            values = value if isinstance(value, tuple) else (value,)
            if not values or len(set(values)) < len(values) or not all(map(entry.metadata["holds"], values)):
                shown = list(value) if isinstance(value, tuple) else value
                yield f"{key}: {shown!r} is not allowed; allowed: {entry.metadata['allowed']}"
        else:
            yield from _bad_values(value, key)


def _disagreements(params: Params) -> Iterator[str]:
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


def load(path: Path | str = "params.yaml") -> Params:
    """The parameters in ``path``; InputError with one line (key, value, what is allowed) for the first wrong one."""
    path = Path(path)
    try:
        content = _read(path)
        for problem in _wrong_shapes(Params, OmegaConf.to_container(content), ""):
            raise InputError(f"{path}: {problem}")
        checked = OmegaConf.merge(OmegaConf.structured(Params), content)
        params: Params = OmegaConf.to_object(checked)
    except OmegaConfBaseException as error:
        raise InputError(f"{path}: {_explain(error)}") from error
    for problem in (*_bad_values(params, ""), *_disagreements(params)):
        raise InputError(f"{path}: {problem}")
    return params

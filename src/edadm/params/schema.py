"""The keys of params.yaml as read-only dataclasses.

A key is one line here: its type, what is allowed and, when it may be left out, its default. docs/params.md explains
what each key does.
"""

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any

import omegaconf

from edadm.errors import InputError
from edadm.params.kinds import Settings, above_zero, at_least, between, bits, checked, one_of, optional, some_of

CALIBRATORS = ("tdac", "uniform", "normal")
FORMATS = ("cifar10-ddim", "bedroom-ldm4", "church-ldm8", "imagenet-ldm4", "coco-sd14")
TEXT_FILES = ("vocabulary", "merges", "captions")  # what a text-conditional format needs besides its weights


@dataclass
class PipelineParams(Settings):
    """What is built."""

    systems: list[str] = omegaconf.MISSING
    calibrators: list[str] = some_of(*CALIBRATORS)
    devices: list[str] = some_of("cpu")


@dataclass
class Run(Settings):
    """A variant of a system, with its calibration set; ``recipe`` is its entry in ``variants``, if not its own name."""

    system: str = omegaconf.MISSING
    variant: str = omegaconf.MISSING
    calibrator: str = omegaconf.MISSING
    recipe: str | None = None


@dataclass
class CheckpointParams(Settings):
    """Where a system's checkpoint comes from."""

    source: str = omegaconf.MISSING
    sha256: str = checked("64 hexadecimal digits", re.compile(r"[0-9a-f]{64}").fullmatch)


@dataclass
class FileParams(Settings):
    """A published file: where it comes from and how to know it; ``member`` is the file wanted of a zip."""

    name: str = checked("a plain file name", lambda value: value not in ("", ".", "..") and "/" not in value)
    sources: list[str] = checked("a list of one or more URLs or paths", bool)
    size: int | None = optional(at_least(1))
    sha256: str | None = optional(checked("64 hexadecimal digits", re.compile(r"[0-9a-f]{64}").fullmatch))
    md5: str | None = optional(checked("32 hexadecimal digits", re.compile(r"[0-9a-f]{32}").fullmatch))
    member: str | None = None


@dataclass
class OriginalParams(Settings):
    """A published checkpoint: what its weights are, and its files: ``weights`` and, under text, ``TEXT_FILES``."""

    format: str = one_of(*FORMATS)
    files: dict[str, FileParams] = omegaconf.MISSING
    side: int | None = optional(at_least(8))


@dataclass
class SamplerParams(Settings):
    """How images are drawn."""

    name: str = one_of("ddim", "plms")
    steps: int = at_least(1)
    spacing: str = one_of("leading", "trailing", "quadratic")
    eta: float = between(0, 1, default=0.0)
    guidance: float = at_least(1, default=1.0)


@dataclass
class CalibrationParams(Settings):
    """The calibration set."""

    samples: int = at_least(1)
    batch: int = at_least(1)
    diversity_weight: float = at_least(0)
    radius: float | None = optional(above_zero())
    radius_quantile: float | None = optional(checked("between 0 and 1, neither included", lambda value: 0 < value < 1))
    uniform_stride: int = at_least(1, default=1)
    seed: int = at_least(0)


@dataclass
class SamplingParams(Settings):
    """The images that are measured: seeds ``seed``, ``seed + 1``, …; ``images`` says how many in each protocol."""

    seed: int = at_least(0)
    batch: int = at_least(1)
    shard: int = at_least(1)
    images: dict[str, int] = omegaconf.MISSING


@dataclass
class ReferenceParams(Settings):
    """The real images' statistics and the features they are in."""

    extractor: str = one_of("garment-classifier")
    statistics: str = omegaconf.MISSING


@dataclass
class SystemParams(Settings):
    """A model with its sampler and protocol."""

    checkpoint: CheckpointParams = omegaconf.MISSING
    sampler: SamplerParams = omegaconf.MISSING
    calibration: CalibrationParams = omegaconf.MISSING
    sampling: SamplingParams = omegaconf.MISSING
    reference: ReferenceParams = omegaconf.MISSING


@dataclass
class ImagesParams(Settings):
    """The real images: a published ``file`` or what lies at ``images``, both brought to ``size`` x ``size`` pixels."""

    extractor: str = one_of("inception")
    file: FileParams | None = None
    images: str | None = None
    size: int | None = optional(at_least(1))


@dataclass
class PublishedSystemParams(Settings):
    """A published model with its sampler and protocol."""

    checkpoint: OriginalParams = omegaconf.MISSING
    sampler: SamplerParams = omegaconf.MISSING
    calibration: CalibrationParams = omegaconf.MISSING
    sampling: SamplingParams = omegaconf.MISSING
    reference: ImagesParams = omegaconf.MISSING


@dataclass
class Reconstruction(Settings):
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
class Recipe(Settings):
    """The settings of a variant."""

    weights: int = bits()
    activations: int = bits()
    quantize: tuple[str, ...] = some_of("unet", "vae", default=("unet",))
    ranges: str = one_of("mse", "minmax", default="mse")
    reconstruction: Reconstruction = field(default_factory=Reconstruction)
    eight_bit: tuple[str, ...] = ("conv_in", "conv_out")
    eight_bit_full_resolution: float = between(0, 1, default=0.0)
    sixteen_bit_inputs: tuple[str, ...] = ("conv_in",)
    split_shortcut: bool = True
    attention: int = checked("8, or 32 (not quantized)", lambda value: value in (8, 32), default=32)


@dataclass
class AblationParams(Settings):
    """The comparison of recipes on one system."""

    system: str = omegaconf.MISSING
    seeds: list[int] = at_least(0)
    calibrators: list[str] = some_of(*CALIBRATORS)
    variants: dict[str, str] = omegaconf.MISSING
    rows: list[str] = omegaconf.MISSING


@dataclass
class PublishedParams(Settings):
    """The published systems, which no other target builds than ``paper`` and their own."""

    device: str = one_of("cpu")
    runs: dict[str, Run] = omegaconf.MISSING
    systems: dict[str, PublishedSystemParams] = omegaconf.MISSING
    tools: dict[str, FileParams] = omegaconf.MISSING


@dataclass
class EngineParams(Settings):
    """How the integer engine computes."""

    body: str = one_of("f32", "bf16", "f16")
    threads: int = at_least(1)


@dataclass
class MetricsParams(Settings):
    """Settings of the quality metrics."""

    kid_subsets: int = at_least(1)
    kid_subset_size: int = at_least(2)
    neighbours: int = at_least(1)


@dataclass
class LatencyParams(Settings):
    """Settings of the speed measurement."""

    rounds: int = at_least(1)
    batches: list[int] = at_least(1)


@dataclass
class LimitParams(Settings):
    """What the machine has to give; nothing here changes a result."""

    cache_mib: int = at_least(0, default=4096)


@dataclass
class Params(Settings):
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
    published: PublishedParams = omegaconf.MISSING
    limits: LimitParams = field(default_factory=LimitParams)
    device: str = one_of("cpu", "cuda", default="cpu")  # of calibration and reconstruction

    def system(self, name: str) -> SystemParams | PublishedSystemParams:
        """The system of that name, published ones included; InputError when there is none."""
        return _named({**self.systems, **self.published.systems}, "system", name)

    def variant(self, name: str) -> Recipe:
        """The recipe of the variant of that name; InputError when there is none."""
        return _named(self.variants, "variant", name)

    def recipe(self, run: Run) -> Recipe:
        """The recipe of a run."""
        return self.variant(run.recipe or run.variant)

    def of_published(self) -> "Params":
        """The same with the published runs and systems in place of the embedded ones."""
        devices = dataclasses.replace(
            self.pipeline, systems=list(self.published.systems), devices=[self.published.device]
        )
        return dataclasses.replace(self, pipeline=devices, runs=self.published.runs, systems=self.published.systems)


def _named(known: dict[str, Any], what: str, name: str) -> Any:
    if name not in known:
        raise InputError(f"unknown {what} {name!r}; params.yaml has {', '.join(known)}")
    return known[name]

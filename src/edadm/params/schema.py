"""The keys of params.yaml as read-only dataclasses.

A key is one line here: its type, what is allowed and, when it may be left out, its default; below it stands what it
does. ``edadm params`` makes docs/params.md of that.
"""

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any

from edadm.errors import InputError
from edadm.params.kinds import Settings, above_zero, at_least, between, bits, checked, one_of, optional, some_of
from edadm.params.train import TrainParams

CALIBRATORS = ("tdac", "uniform", "normal")
FORMATS = ("cifar10-ddim", "bedroom-ldm4", "church-ldm8", "imagenet-ldm4", "coco-sd14")
THREADS = 1024  # more than machines have
FEATURES = 10_000  # of real images, that reference statistics keep
TEXT_FILES = ("vocabulary", "merges", "captions")  # what a text-conditional format needs besides its weights


@dataclass(frozen=True, kw_only=True)
class PipelineParams(Settings):
    """What is built."""

    systems: tuple[str, ...]
    """All of `systems`, in the order of the tables."""
    calibrators: tuple[str, ...] = some_of(*CALIBRATORS)
    """How steps are chosen for the calibration set: `tdac` (density and diversity), `uniform` (every k-th step, as
    Q-Diffusion), `normal` (normally distributed diffusion times, as PTQ4DM)."""
    devices: tuple[str, ...] = some_of("cpu")
    """Engines that are built and timed. The CUDA engine is not a stage yet: `edadm deploy --device cuda`, `edadm
    sample`."""


@dataclass(frozen=True, kw_only=True)
class Run(Settings):
    """A row of the tables, by the name SYSTEM-VARIANT."""

    system: str
    """One of `systems`; its `fp32` run must be among the runs, since the others are measured against it."""
    variant: str
    """The variant's name in paths and tables."""
    calibrator: str
    """The calibrator whose set the variant is quantized on."""
    recipe: str | None = None
    """Of a published run, and only there: the entry of `variants` that is this variant. Elsewhere it is the one of the
    variant's own name."""


@dataclass(frozen=True, kw_only=True)
class CheckpointParams(Settings):
    """Where a system's checkpoint comes from."""

    source: str = checked("a folder", bool)
    """A folder in diffusers layout."""
    sha256: str = checked("64 hexadecimal digits", re.compile(r"[0-9a-f]{64}").fullmatch)
    """The hash of its weights: `cat SOURCE/*/*.safetensors | sha256sum`."""


def _is_file_name(value: str) -> bool:
    """Whether it stays in its folder, and in its line of a list of files."""
    return value not in ("", ".", "..") and "/" not in value and value.isprintable()


@dataclass(frozen=True, kw_only=True)
class FileParams(Settings):
    """A published file: where it comes from and how to know it; ``member`` is the file wanted of a zip."""

    name: str = checked("a plain file name", _is_file_name)
    """Its name in `originals/`, or in the folder that `$EDADM_CHECKPOINTS` names."""
    sources: tuple[str, ...] = checked("a list of one or more URLs or paths", bool)
    """Tried in turn; what has no `://` is a path, used where it lies."""
    size: int | None = optional(between(1, 10**15))
    """Bytes, as the publisher states."""
    sha256: str | None = optional(checked("64 hexadecimal digits", re.compile(r"[0-9a-f]{64}").fullmatch))
    """As the publisher states; without any hash, that of the first download is kept in `originals.sha256`."""
    md5: str | None = optional(checked("32 hexadecimal digits", re.compile(r"[0-9a-f]{32}").fullmatch))
    """As the publisher states."""
    member: str | None = None
    """The file wanted of a zip."""


@dataclass(frozen=True, kw_only=True)
class OriginalParams(Settings):
    """A published checkpoint: what its weights are, and its files: ``weights`` and, under text, ``TEXT_FILES``."""

    format: str = one_of(*FORMATS)
    """Which original it is."""
    files: dict[str, FileParams]
    """`weights` and, of `coco-sd14`, `vocabulary`, `merges` (CLIP's tokenizer) and `captions` (COCO's)."""
    side: int | None = optional(at_least(8))
    """Side of the pixels or latents that are drawn, the published one when left out."""


@dataclass(frozen=True, kw_only=True)
class SamplerParams(Settings):
    """How images are drawn."""

    name: str = one_of("ddim", "plms")
    """The sampler; `plms` calls the U-Net once more than it has steps."""
    steps: int = at_least(1)
    """Steps per image."""
    spacing: str = one_of("leading", "trailing", "quadratic")
    """How timesteps are spaced, the first from the scheduler's `steps_offset` on."""
    eta: float = between(0, 1, default=0.0)
    """Of `ddim`: 0 is deterministic, 1 adds DDPM's noise."""
    guidance: float = at_least(1, default=1.0)
    """Of a conditional system: weight of classifier-free guidance; 1 is none and calls the U-Net on one row per image
    instead of two."""


@dataclass(frozen=True, kw_only=True)
class CalibrationParams(Settings):
    """The calibration set."""

    samples: int = at_least(1)
    """Latents in the calibration set, each of a trajectory of its own (under guidance each is there twice, without and
    with its condition)."""
    batch: int = at_least(1)
    """Trajectories that run at once."""
    diversity_weight: float = at_least(0)
    """λ of TDAC: weight of the diversity score beside the density score."""
    radius: float | None = optional(above_zero())
    """TDAC counts steps as neighbours up to this distance. Either this or `radius_quantile` is given."""
    radius_quantile: float | None = optional(checked("between 0 and 1, neither included", lambda value: 0 < value < 1))
    """The radius as a quantile of all distances between steps."""
    uniform_stride: int = at_least(1, default=1)
    """k of the `uniform` calibrator."""
    seed: int = at_least(0)
    """Seed of the first trajectory; the next ones follow."""

    @property
    def seeds(self) -> range:
        """The seeds of all trajectories."""
        return range(self.seed, self.seed + self.samples)


@dataclass(frozen=True, kw_only=True)
class SamplingParams(Settings):
    """The images that are measured: seeds ``seed``, ``seed + 1``, …; ``images`` says how many in each protocol."""

    seed: int = at_least(0)
    """Seed of the first image; image k has `seed + k`, whatever the batch, the shard or the protocol."""
    batch: int = at_least(1)
    """Images per engine call."""
    shard: int = at_least(1)
    """Images per file, which is also the unit of parallel work and of resuming."""
    images: dict[str, int]
    """`demo`: images of the default target; `full`: of `snakemake full`."""

    def seeds(self, protocol: str) -> range:
        """The seeds of all images of a protocol."""
        return range(self.seed, self.seed + self.images[protocol])


@dataclass(frozen=True, kw_only=True)
class ReferenceParams(Settings):
    """The real images' statistics and the features they are in."""

    extractor: str = one_of("garment-classifier")
    """Feature extractor of the metrics."""
    statistics: str = checked("a file", bool)
    """The real images' statistics in its features."""


@dataclass(frozen=True, kw_only=True)
class SystemParams(Settings):
    """A model with its sampler and protocol."""

    checkpoint: CheckpointParams
    sampler: SamplerParams
    calibration: CalibrationParams
    sampling: SamplingParams
    reference: ReferenceParams


@dataclass(frozen=True, kw_only=True)
class ImagesParams(Settings):
    """The real images: a published ``file`` or what lies at ``images``, both brought to ``size`` x ``size`` pixels."""

    extractor: str = one_of("inception")
    """Feature extractor of the metrics."""
    file: FileParams | None = None
    """A published file of real images. Either this or `images` is given."""
    images: str | None = None
    """A folder, zip or npz of real images of your own."""
    size: int | None = optional(at_least(1))
    """Images, real and drawn, are brought to this size before their features are taken."""


@dataclass(frozen=True, kw_only=True)
class PublishedSystemParams(Settings):
    """A published model with its sampler and protocol."""

    checkpoint: OriginalParams
    sampler: SamplerParams
    calibration: CalibrationParams
    sampling: SamplingParams
    reference: ImagesParams


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Settings):
    """How the quantized weights and steps are learned."""

    method: str = one_of("fbr", "none", default="none")
    """`fbr` learns rounding and activation steps unit by unit; `none` rounds to nearest."""
    iterations: int = at_least(1, default=400)
    """Adam steps per unit."""
    batch: int = at_least(1, default=32)
    """Rows per step."""
    rate_rounding: float = above_zero(default=0.05)
    """Learning rate of AdaRound's variables, falling to 0 along a cosine."""
    rate_steps: float = above_zero(default=0.0001)
    """Learning rate of the activation steps, falling to 0 along a cosine."""
    layer_loss: float = at_least(0, default=0.8)
    """γ: weight of the losses of a block's inner layers beside the block's own; 0 is plain block reconstruction."""
    input_mix: float = between(0, 1, default=0.5)
    """Share of a unit's input taken from the quantized predecessors."""
    activation_drop: float = between(0, 1, default=0.5)
    """Share of activations left in float while learning."""
    rounding_penalty: float = at_least(0, default=0.0)
    """Weight of AdaRound's pull towards 0 or 1."""
    bias_correction: bool = False
    """Whether the mean error of each channel that is left after learning a unit goes into its last bias."""
    tuning: int = at_least(0, default=0)
    """Adam steps, once every unit is learned, in which the scales, the biases and the normalisations are learned on the
    output of the whole network; 0 leaves them."""
    rate_tuning: float = above_zero(default=0.002)
    """Learning rate of the tuning, relative for scales, falling to 0 along a cosine."""
    fisher: bool = False
    """Whether squared errors are weighted by how much the network's output depends on their place."""
    seed: int = at_least(0, default=0)
    """Of the learning's random choices."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Settings):
    """The settings of a variant."""

    weights: int = bits()
    """Bits of the weights; 32 for both leaves the model in float."""
    activations: int = bits()
    """Bits of the activations."""
    quantize: tuple[str, ...] = some_of("unet", "vae", default=("unet",))
    """`[unet, vae]` also quantizes a latent system's autoencoder, with the same widths, ranges and reconstruction,
    calibrated on final latents of the calibration's trajectories; images are then decoded by its engine, and `size.csv`
    counts it. `encoder.conv_in` and `decoder.conv_out` keep 8-bit weights."""
    ranges: str = one_of("mse", "minmax", default="mse")
    """Range search: least `|x - q(x)|^2.4`, or from minimum to maximum."""
    reconstruction: Reconstruction = field(default_factory=Reconstruction)
    eight_bit: tuple[str, ...] = ("conv_in", "conv_out")
    """Layers that keep 8-bit weights."""
    eight_bit_full_resolution: float = between(0, 1, default=0.0)
    """The convolutions at the resolution of the network's input keep 8-bit weights when they hold at most this share of
    all weights: then they are few, but each touches every pixel."""
    sixteen_bit_inputs: tuple[str, ...] = ("conv_in",)
    """Layers whose input is quantized to 16 bits; the engines compute them as two 8-bit layers, for its high and its
    low byte. With 8 bits a noisy image would enter in steps of several grey levels."""
    split_shortcut: bool = True
    """Whether the two sources of a skip concatenation are quantized separately."""
    attention: int = checked("8, or 32 (not quantized)", lambda value: value in (8, 32), default=32)
    """8 quantizes the operands of attention (q, k, v and the softmax's output) without zero point, each with one scale;
    the CPU engine then computes both products in int8. 32 leaves them in float."""


@dataclass(frozen=True, kw_only=True)
class AblationRow(Settings):
    """A variant in the comparison of recipes."""

    variant: str
    """Its entry in `variants`."""
    calibrator: str = one_of(*CALIBRATORS)
    """What makes its calibration set."""


@dataclass(frozen=True, kw_only=True)
class AblationParams(Settings):
    """The comparison of recipes on one system: each is calibrated, quantized and sampled several times."""

    system: str
    """The system on which recipes are compared."""
    repeats: tuple[int, ...] = at_least(0)
    """The repetitions. Each has seeds of its own for the calibration set, the reconstruction and the images; those of 0
    are the seeds that stand elsewhere in this file."""
    calibrators: tuple[str, ...] = some_of(*CALIBRATORS)
    """The calibrators of the rows."""
    rows: tuple[AblationRow, ...]
    """The table, in its order; `fp32` must be among the variants."""


@dataclass(frozen=True, kw_only=True)
class PublishedParams(Settings):
    """The published systems, which no other target builds than ``paper`` and their own."""

    device: str = one_of("cpu")
    """The engine that draws their images."""
    runs: dict[str, Run]
    """A run names its recipe; the calibrator is `tdac`."""
    systems: dict[str, PublishedSystemParams]
    """docs/published-systems.md says what they are."""
    tools: dict[str, FileParams]
    """Networks of the metrics: `inception`, `clip`."""


@dataclass(frozen=True, kw_only=True)
class EngineParams(Settings):
    """How the integer engine computes."""

    body: str = one_of("f32", "bf16", "f16")
    """Type of all that is not an integer layer: `f32` (exact), `bf16` (faster) or, on cuda, `f16`."""
    threads: int = between(1, THREADS)
    """Threads of PyTorch in calibration and training, and of what is timed."""
    reconstruction_threads: int = between(1, THREADS, default=1)
    """Threads of a reconstruction. On small networks two of them beside each other, of one thread each, end sooner than
    one after the other with two; on the published systems take all cores."""
    evaluation_threads: int = between(1, THREADS, default=1)
    """Threads of a shard of images, a verification or a measurement of quality: many of them run beside each other, and
    so do more on the same cores than one of them with more threads."""


@dataclass(frozen=True, kw_only=True)
class MetricsParams(Settings):
    """Settings of the quality metrics."""

    kid_subsets: int = at_least(1)
    """Subsets over which KID is averaged."""
    kid_subset_size: int = between(2, FEATURES)
    """Images in each of them, not more than any protocol has."""
    neighbours: int = between(1, FEATURES - 1)
    """k of precision and recall: an image is within reach of its k nearest."""


@dataclass(frozen=True, kw_only=True)
class LatencyParams(Settings):
    """Settings of the speed measurement."""

    rounds: int = at_least(1)
    """Interleaved rounds of each timing."""
    batches: tuple[int, ...] = at_least(1)
    """Batch sizes."""


@dataclass(frozen=True, kw_only=True)
class LimitParams(Settings):
    """What the machine has to give; nothing here changes a result."""

    cache_mib: int = at_least(0, default=4096)
    """MiB of RAM for the tables of calibration inputs and targets that reconstruction works on; those beyond it are
    files in the scratch folder."""


@dataclass(frozen=True, kw_only=True)
class Params(Settings):
    """The whole file."""

    pipeline: PipelineParams
    runs: dict[str, Run]
    systems: dict[str, SystemParams]
    variants: dict[str, Recipe]
    ablation: AblationParams
    engine: EngineParams
    metrics: MetricsParams
    latency: LatencyParams
    train: TrainParams
    published: PublishedParams
    limits: LimitParams = field(default_factory=LimitParams)
    device: str = one_of("cpu", "cuda", default="cpu")
    """Where calibration, reconstruction and `edadm train` compute; results differ by round-off."""

    def system(self, name: str, repeat: int = 0) -> SystemParams | PublishedSystemParams:
        """The system of that name, published ones included; InputError when there is none.

        Each ``repeat`` above 0 has calibration trajectories and images that no other one has.
        """
        found = _named({**self.systems, **self.published.systems}, "system", name)
        calibration, sampling = found.calibration, found.sampling
        return dataclasses.replace(
            found,
            calibration=dataclasses.replace(calibration, seed=calibration.seed + repeat * calibration.samples),
            sampling=dataclasses.replace(sampling, seed=sampling.seed + repeat * sampling.images["full"]),
        )

    def variant(self, name: str, repeat: int = 0) -> Recipe:
        """The recipe of the variant of that name, its seed ``repeat`` further on; InputError when there is none."""
        found = _named(self.variants, "variant", name)
        learned = found.reconstruction
        return dataclasses.replace(found, reconstruction=dataclasses.replace(learned, seed=learned.seed + repeat))

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

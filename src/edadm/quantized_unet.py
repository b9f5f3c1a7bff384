"""A quantized U-Net in the place of diffusers' own: the same calls, configuration and folder, integer arithmetic."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any, Self

import openvino as ov
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

from edadm.engines import cpu, reference
from edadm.engines.graph import build_graph
from edadm.errors import InputError
from edadm.quantization import checkpoint, network
from edadm.quantization.attention import integer_product

log = logging.getLogger(__name__)

DEVICES = ("cpu", "reference")
Run = Callable[..., Tensor]
_COMPILING = Lock()  # of all threads that share a network one compiles it


class QuantizedUNet(ModelMixin, ConfigMixin):
    """A checkpoint that runs where a pipeline expects a ``UNet2DModel`` or ``UNet2DConditionModel``.

    ``device`` "cpu" is the integer engine, compiled on first use for each batch and image size (seconds, then kept);
    where that cannot run the network exactly in int8, it says so once and the reference takes its place. "reference"
    is exact integer arithmetic in plain PyTorch: slow, and what the engine is measured against. ``body`` ("f32" or
    "bf16") is the type of what is not an integer layer in the engine, ``threads`` how many it computes with.

    Inputs may be on any device and of any float type; outputs are like the sample that was given.
    """

    __module__ = "edadm"  # what diffusers writes to model_index.json, and imports this class from
    config_name = "config.json"

    def __init__(
        self,
        quantized: checkpoint.QuantizedCheckpoint,
        device: str = "cpu",
        body: str = "f32",
        threads: int | None = None,
    ) -> None:
        super().__init__()
        if device not in DEVICES:
            raise InputError(f"device {device!r} is not one of {', '.join(DEVICES)}")
        if body not in cpu.BODIES:
            raise InputError(f"body {body!r} is not one of {', '.join(cpu.BODIES)}")
        self.arguments = network.arguments(quantized.config)
        self.quantized, self.engine, self.body = quantized, device, body
        self.threads = threads or torch.get_num_threads()
        self._graphs: dict[tuple[int, ...], ov.Model] = {}  # by (h, w)
        self._runs: dict[tuple[int, ...], Run] = {}  # by (n, h, w); the reference by ()
        learned = quantized.config.get("time_embedding_type") == "learned"
        # else float, for some schedulers' steps have fractions
        self._t_type = (ov.Type.i64, torch.int64) if learned else (ov.Type.f32, torch.float32)
        self.register_to_config(**{key: value for key, value in quantized.config.items() if not key.startswith("_")})
        self.eval()

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """float32, the type of what is between integer layers."""
        return torch.float32

    @property
    def in_channels(self) -> int:
        """Channels of the sample."""
        return self.quantized.config["in_channels"]

    @property
    def add_embedding(self) -> nn.Module:
        """Of the layout of SDXL: a module with the shapes of its own, whose sizes pipelines check, without values."""
        return checkpoint.skeleton(self.quantized.config).add_embedding

    @torch.no_grad()
    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None = None,
        class_labels: Tensor | None = None,
        *,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        return_dict: bool = True,
        **further: Any,
    ) -> UNet2DOutput | UNet2DConditionOutput | tuple[Tensor]:
        """Predict for sample (n, c, h, w) at ``timestep``: a number, a tensor without axes, or one of (1,) or (n,).

        The other arguments are those of diffusers' U-Nets: ``encoder_hidden_states`` (n, tokens, width),
        ``class_labels`` (n,), ``added_cond_kwargs`` with ``text_embeds`` (n, width) and ``time_ids`` (n, 6). Gives
        (n, c', h, w) as ``.sample``, or in a tuple without ``return_dict``. InputError for what the network lacks, and
        for what it cannot take (ControlNet's residuals, LoRA scales, masks).
        """
        inputs = network.bind(
            self.quantized.config,
            sample,
            timestep,
            encoder_hidden_states,
            class_labels,
            added_cond_kwargs=added_cond_kwargs,
            **further,
        )
        x = inputs["x"]
        with _COMPILING:
            run = self._run_for((len(x), *x.shape[2:]))
        output = run(*(inputs[name] for name in self.arguments)).to(sample.device, sample.dtype)
        if not return_dict:
            return (output,)
        kind = UNet2DConditionOutput if "context" in self.arguments else UNet2DOutput
        return kind(sample=output)

    def _run_for(self, size: tuple[int, int, int]) -> Run:
        """The network for samples of ``size`` (n, h, w)."""
        if self.engine == "cpu" and size not in self._runs:
            try:
                self._runs[size] = self._compiled(*size)
            except InputError as error:
                log.warning("exact reference instead of the cpu engine, which is slow: %s", error)
                self.engine = "reference"
        return self._runs[size] if self.engine == "cpu" else self._reference()

    def _compiled(self, batch: int, *size: int) -> Run:
        if size not in self._graphs:
            shapes = network.shapes(self.quantized.config, size)
            self._graphs[size] = build_graph(self.quantized, shapes, self._t_type[0])
        engine = cpu.compiled(self.quantized, self._graphs[size], batch, self.body, self.threads)
        return lambda x, t, *conditions: engine(x, t.to(self._t_type[1]), *conditions)

    def _reference(self) -> Run:
        if () not in self._runs:
            unet = checkpoint.build_unet(self.quantized, reference.IntegerReference, integer_product)
            self._runs[()] = reference.Network(unet)
        return self._runs[()]

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        """Write ``config.json``, with ``quantization_config``, and ``model.safetensors`` to a folder.

        Further arguments, which diffusers' pipelines pass, mean nothing here.
        """
        held = self.quantized
        checkpoint.save(Path(save_directory), held.config, held.layers, held.floats, held.recipe, held.attention)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        device: str = "cpu",
        body: str = "f32",
        threads: int | None = None,
        **_: Any,
    ) -> Self:
        """Load the folder that :meth:`save_pretrained` or ``edadm reconstruct`` wrote.

        A pipeline's folder does as well: its ``unet/`` is taken. InputError when the folder holds no quantized
        checkpoint, or a damaged one. Further arguments, which diffusers' pipelines pass, mean nothing here.
        """
        folder = Path(pretrained_model_name_or_path)
        if not (folder / "config.json").is_file() and (folder / "unet" / "config.json").is_file():
            folder = folder / "unet"
        loaded = checkpoint.load(folder)
        if not loaded.layers:
            raise InputError(f"{folder}: holds a full-precision U-Net, not a quantized one")
        return cls(loaded, device, body, threads)

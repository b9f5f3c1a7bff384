"""What ``import edadm`` offers: quantize a U-Net in memory, and bring a quantized one back."""

import hashlib
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edadm import recipes
from edadm.errors import InputError
from edadm.params import CalibrationParams, Recipe
from edadm.pipelines.calibrate import collect
from edadm.quantization import calibration as sets
from edadm.quantization import checkpoint, network, reconstruction
from edadm.quantized_unet import QuantizedUNet

Calibration = Mapping[str, Tensor] | Path | str | Callable[[range], object]


def quantize(
    unet: nn.Module,
    calibration: Calibration,
    recipe: Recipe | str = "w8a8",
    *,
    scratch: Path | str | None = None,
    cache_mib: float = 4096,
) -> QuantizedUNet:
    """Quantize a diffusers ``UNet2DModel`` or ``UNet2DConditionModel``, which itself stays as it is.

    ``calibration`` is what ``edadm.calibrate`` returned, or tensors of the same names and shapes: x (n, c, h, w) and
    t (n,), with context (n, tokens, width) and so on for a network that takes them; or a file of
    ``edadm calibrate``; or a function ``draw(seeds)`` that samples the images of a range of seeds with ``unet``, by
    one call a step (under guidance of all rows at once): its calls are looked at for 128 trajectories, 4 at a time, and
    TDAC chooses. ``recipe`` is a name ("w4a8") or made by ``edadm.recipe``. With ``scratch``, a folder, a killed run
    goes on at the unit where it died; tables beyond ``cache_mib`` MiB of memory are files there.

    InputError when the U-Net, the calibration or the recipe cannot be used.

    >>> import edadm, torch
    >>> from diffusers import UNet2DModel
    >>> unet = UNet2DModel(8, 1, 1, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
    ...     down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"))
    >>> data = {"x": torch.randn(16, 1, 8, 8), "t": torch.arange(0, 960, 60)}
    >>> quantized = edadm.quantize(unet, data, edadm.recipe("w4a8", method="none"))
    >>> quantized.quantized.layers["conv_in"].weight.dtype
    torch.int8
    >>> edadm.QuantizedUNet(quantized.quantized, device="reference")(data["x"], 500).sample.shape
    torch.Size([16, 1, 8, 8])
    """
    made = recipes.recipe(recipe) if isinstance(recipe, str) else recipe
    if made.weights == 32:
        raise InputError("recipe: 32 bits quantize nothing")
    if made.quantize != ("unet",):
        raise InputError(f"recipe: quantize is {list(made.quantize)}, but a U-Net alone is given; allowed: [unet]")
    config = checkpoint.unet_config(unet)
    network.arguments(config)
    data = _tensors(unet, calibration)
    copy = _float_copy(unet, config)
    _check_calls(copy, config, data)
    with tempfile.TemporaryDirectory(prefix="edadm-") as temporary:
        folder = temporary if scratch is None else scratch
        mark = _fingerprint(copy, data, made)
        reconstruction.quantize(copy, data, made, Path(folder), mark, cache_mib * 2**20 if scratch else math.inf)
    layers, floats = reconstruction.integer_layers(copy)
    scales = reconstruction.attention_scales(copy)
    return QuantizedUNet(checkpoint.QuantizedCheckpoint(config, layers, floats, asdict(made), scales))


def load(folder: Path | str, device: str = "cpu", body: str = "f32", threads: int | None = None) -> QuantizedUNet:
    """The quantized U-Net in ``folder`` (or in its ``unet/``), to be put into a pipeline: ``pipe.unet = …``.

    ``device`` is "cpu", the integer engine, or "reference", exact integers in plain PyTorch; see ``QuantizedUNet`` for
    the rest. InputError when there is none, or it is damaged.
    """
    return QuantizedUNet.from_pretrained(folder, device, body, threads)


def _tensors(unet: nn.Module, calibration: Calibration) -> dict[str, Tensor]:
    if isinstance(calibration, str | Path):
        return sets.read(Path(calibration))
    if isinstance(calibration, Mapping):
        return sets.checked(calibration)
    if not callable(calibration):
        raise InputError(f"calibration: {type(calibration).__name__} is neither tensors, nor a file, nor a function")
    settings = CalibrationParams(samples=128, batch=4, diversity_weight=1.2, radius_quantile=0.3, seed=0)
    return collect(unet, calibration, "tdac", settings)[0]


def _float_copy(unet: nn.Module, config: Mapping[str, Any]) -> nn.Module:
    """A U-Net of the same weights in float32; where they are that already, in the same memory."""
    copy = checkpoint.skeleton(config)
    state = {name: tensor.detach().to("cpu", torch.float32) for name, tensor in unet.state_dict().items()}
    try:
        copy.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"the U-Net is not what its configuration says; merge LoRAs into it first ({reason})"
        ) from error
    return copy.requires_grad_(False).eval()


def _check_calls(unet: nn.Module, config: Mapping[str, Any], data: Mapping[str, Tensor]) -> None:
    """InputError unless the network takes just these tensors, and gives numbers."""
    wanted = network.arguments(config)
    if set(wanted) != set(data) - {network.FINAL}:
        raise InputError(f"calibration: this network takes {', '.join(wanted)}; given: {', '.join(data)}")
    try:
        with torch.no_grad():
            network.forward(unet, [value[:1] for value in sets.inputs(data)])
    except (RuntimeError, ValueError, IndexError) as error:
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in data.items())
        raise InputError(f"calibration: the network refuses {shapes} ({' '.join(str(error).split())})") from error


def _fingerprint(unet: nn.Module, data: Mapping[str, Tensor], recipe: Recipe) -> str:
    parts = (asdict(recipe), checkpoint.unet_config(unet), reconstruction.code(), torch.__version__)
    digest = hashlib.sha256(repr(parts).encode())
    for name, tensor in (*unet.state_dict().items(), *sorted(data.items())):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()

"""The quantized checkpoint: a folder with ``model.safetensors`` and ``config.json`` that defines exact integers.

The tensors are

- ``<name>.weight`` of every quantized convolution or linear, named by its module: int8 in the layer's shape; or, for at
  most 4 bits, uint8 (n,), see :func:`pack`;
- ``floats``: everything else, float32 (n,), one after the other: for each layer in the order of ``config.json`` its
  ``weight_scale`` (out,) and, when it has one, its ``bias`` (out,); then the parameters of the U-Net outside these
  layers, flattened, in the order of diffusers' state_dict. Hundreds of short tensors of their own would make the file
  of a small network several per cent larger, by their names.

``config.json`` is the diffusers configuration of the U-Net plus ``quantization_config``::

    {"quant_method": "eda-dm", "format_version": 2, "recipe": {...},
     "layers": {name: {"bits", "input_bits", "input_scale", "input_zero_point", "shape", "bias": true or false,
                       "stride", "padding", "dilation", "groups"}},        (the last four for convolutions only)
     "attention": {name: {"q": scale, "k": …, "v": …, "softmax": …}}}        (only with quantized operands)

Scales are float32 values; JSON's shortest decimal of it as a double brings the same bits back. A
full-precision folder has no ``quantization_config`` and every parameter under its diffusers name. A 1x1 convolution
over a skip concatenation may be split: its name then stands for ``<name>.parts.0`` and ``<name>.parts.1``, which take
the first and the remaining input channels and whose outputs are added; only the first has a bias.
"""

import hashlib
import json
import math
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from edadm import unets
from edadm.errors import InputError
from edadm.files import atomic_write, read_json, sha256, write_json
from edadm.quantization.attention import (
    Product,
    QuantizedAttention,
    Scales,
    attentions,
    check,
    check_scales,
    float_product,
)
from edadm.quantization.integer_layer import PACKED_BITS, IntegerLayer, entry_problem, from_entry, pack, to_entry

FORMAT_VERSION = 2
_PARTS = ".parts."


@dataclass(frozen=True, eq=False)
class QuantizedCheckpoint:
    """What a checkpoint folder holds; a full-precision one has no layers."""

    config: dict[str, Any]  # of the U-Net, as diffusers writes it
    layers: dict[str, IntegerLayer]
    floats: dict[str, Tensor]  # float32, by diffusers name
    recipe: dict[str, Any]
    attention: dict[str, Scales] = field(default_factory=dict)  # by the attention's name


class SplitConv(nn.Module):
    """A convolution whose input channels are divided over ``parts``; their outputs are added."""

    def __init__(self, parts: list[nn.Module], channels: list[int]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.channels = channels

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """Take x (n, sum(channels), h, w); diffusers may pass further arguments, which mean nothing here."""
        first, *others = (part(piece) for part, piece in zip(self.parts, x.split(self.channels, 1), strict=True))
        return sum(others, first)


def unet_config(unet: nn.Module) -> dict[str, Any]:
    """A diffusers U-Net's configuration as diffusers writes it to config.json (its class is not in ``unet.config``)."""
    return json.loads(unet.to_json_string())


def save(
    folder: Path,
    config: Mapping[str, Any],
    layers: Mapping[str, IntegerLayer],
    floats: Mapping[str, Tensor],
    recipe: Mapping[str, Any],
    attention: Mapping[str, Scales] | None = None,
) -> None:
    """Write the checkpoint's two files into ``folder``, each at once; other files there stay.

    ``config`` is that of :func:`unet_config`. No layers makes it a full-precision checkpoint (recipe unused).
    """
    config = {key: value for key, value in config.items() if key != "quantization_config"}
    _check_against_unet(config, dict(layers), dict(floats), attention or {})
    if layers:
        tensors = {
            f"{name}.weight": (pack(layer.weight) if layer.bits <= PACKED_BITS else layer.weight).contiguous()
            for name, layer in layers.items()
        }
        scales = [part for layer in layers.values() for part in (layer.weight_scale, layer.bias) if part is not None]
        rest = [floats[name] for name in _float_shapes(config, layers)]
        tensors["floats"] = torch.cat([part.detach().flatten() for part in (*scales, *rest)])
        config["quantization_config"] = {
            "quant_method": "eda-dm",
            "format_version": FORMAT_VERSION,
            "recipe": dict(recipe),
            "layers": {name: to_entry(layer) for name, layer in layers.items()},
        }
        if attention:
            config["quantization_config"]["attention"] = {name: dict(scales) for name, scales in attention.items()}
    else:
        tensors = {name: tensor.detach().contiguous() for name, tensor in floats.items()}
    atomic_write(Path(folder) / "model.safetensors", safetensors.torch.save(tensors))
    write_json(Path(folder) / "config.json", config)


def load(folder: Path) -> QuantizedCheckpoint:
    """The checkpoint in ``folder``, checked completely; InputError names the file and what is wrong in it."""
    config, quantization = _read_config(folder)
    path = Path(folder) / "model.safetensors"
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    try:
        layers, floats = (
            _read_layers(config, quantization["layers"], tensors) if quantization["layers"] else ({}, tensors)
        )
        attention = quantization.get("attention", {})
        _check_against_unet(config, layers, floats, attention)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    return QuantizedCheckpoint(config, layers, floats, quantization["recipe"], attention)


def build_unet(
    checkpoint: QuantizedCheckpoint,
    make_layer: Callable[[IntegerLayer], nn.Module],
    make_product: Callable[[Scales], Product] = float_product,
) -> nn.Module:
    """The diffusers U-Net in evaluation mode, with ``make_layer(layer)`` in the place of every quantized layer.

    Attentions with quantized operands compute their products with ``make_product(scales)``. A split layer becomes a
    :class:`SplitConv` of two such modules. Parameters share memory with ``checkpoint``.
    """
    unet = skeleton(checkpoint.config)
    unet.load_state_dict(checkpoint.floats, strict=False, assign=True)  # names were checked when loading
    for name, indices in _places(checkpoint.layers).items():
        if indices is None:
            module = make_layer(checkpoint.layers[name])
        else:
            parts = [checkpoint.layers[f"{name}{_PARTS}{index}"] for index in indices]
            module = SplitConv([make_layer(part) for part in parts], [part.in_channels for part in parts])
        unet.set_submodule(name, module)
    for name, scales in checkpoint.attention.items():
        unet.get_submodule(name).set_processor(QuantizedAttention(make_product(scales)))
    left = [name for name, tensor in (*unet.named_parameters(), *unet.named_buffers()) if tensor.is_meta]
    if left:
        raise InputError(f"nothing gives a value to {left[0]}")
    return unet.requires_grad_(False).eval()


def skeleton(config: Mapping[str, Any]) -> nn.Module:
    """The network of a diffusers configuration without memory for its parameters (device "meta"): quick at any size."""
    name = config.get("_class_name")
    with torch.device("meta"):
        return unets.from_config(name, config) if name in unets.AUTOENCODERS else unets.build(config)


def sizes(folder: Path) -> dict[str, Any]:
    """Bytes of a checkpoint folder beside what the arithmetic says.

    ``arithmetic_bytes`` is found without the tensor file: for every layer ceil(bits * weights / 8) and 4 for each
    output's scale, 4 for every other parameter. Weights of 5 to 7 bits are stored as whole bytes, those of 2 and 3 as
    half bytes: there the file is larger than the arithmetic.
    """
    config, quantization = _read_config(folder)
    path = Path(folder) / "model.safetensors"
    with path.open("rb") as file:
        header = 8 + struct.unpack("<Q", file.read(8))[0]  # a length in 8 bytes, then so much JSON
    parameters = sum(parameter.numel() for parameter in skeleton(config).parameters())
    weights = {name: math.prod(entry["shape"]) for name, entry in quantization["layers"].items()}
    arithmetic = 4 * (parameters - sum(weights.values()))
    for name, entry in quantization["layers"].items():
        arithmetic += math.ceil(entry["bits"] * weights[name] / 8) + 4 * entry["shape"][0]
    total = path.stat().st_size
    return {
        "fp32_bytes": 4 * parameters,
        "quantized_file_bytes": total,
        "payload_bytes": total - header,
        "header_bytes": header,
        "arithmetic_bytes": arithmetic,
        "layers": dict(sorted(Counter(str(entry["bits"]) for entry in quantization["layers"].values()).items())),
    }


def fingerprint(folder: Path) -> str:
    """A SHA-256 over both files of a checkpoint folder, as 64 hexadecimal digits."""
    parts = [sha256(Path(folder) / name) for name in ("config.json", "model.safetensors")]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _read_config(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The U-Net's configuration and the quantization's; the latter has ``recipe`` and ``layers`` in any case."""
    path = Path(folder) / "config.json"
    config = read_json(path)
    if not isinstance(config, dict):
        raise InputError(f"{path}: not a JSON object")
    if "quantization_config" not in config:
        return config, {"recipe": {}, "layers": {}}
    quantization = config.pop("quantization_config")
    if not isinstance(quantization, dict) or quantization.get("quant_method") != "eda-dm":
        raise InputError(f"{path}: quantization_config.quant_method is not eda-dm")
    if quantization.get("format_version") != FORMAT_VERSION:
        found = quantization.get("format_version")
        raise InputError(f"{path}: format_version {found!r} is not {FORMAT_VERSION}, the one that this version reads")
    layers = quantization.get("layers")
    attention = quantization.get("attention", {})
    if not isinstance(attention, dict) or not all(isinstance(scales, dict) for scales in attention.values()):
        raise InputError(f"{path}: quantization_config.attention is not an object of objects")
    if not isinstance(quantization.get("recipe"), dict) or not isinstance(layers, dict) or not layers:
        raise InputError(f"{path}: quantization_config needs a recipe and layers")
    for name, entry in layers.items():
        problem = entry_problem(entry)
        if problem:
            raise InputError(f"{path}: quantization_config.layers: {name}: {problem}")
    return config, quantization


def _float_shapes(config: Mapping[str, Any], layers: Iterable[str]) -> dict[str, torch.Size]:
    """Shapes of the U-Net's parameters outside the named layers, in the order of its state_dict."""
    modules = {name.rpartition(_PARTS)[0] or name for name in layers}
    state = skeleton(config).state_dict()
    return {name: tensor.shape for name, tensor in state.items() if name.rpartition(".")[0] not in modules}


def _read_layers(
    config: dict[str, Any], entries: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[dict[str, IntegerLayer], dict[str, Tensor]]:
    """The layers and the other parameters, by name, of a quantized checkpoint's tensors."""
    floats = tensors.pop("floats", None)
    if floats is None or floats.dtype != torch.float32 or floats.dim() != 1:
        raise InputError("floats is missing, or is not float32 with 1 axis")
    shapes = _float_shapes(config, entries)
    outputs = [entry["shape"][0] for entry in entries.values() for _ in range(1 + entry["bias"])]
    lengths = [*outputs, *(math.prod(shape) for shape in shapes.values())]
    if len(floats) != sum(lengths):
        raise InputError(f"floats has {len(floats)} values, not the {sum(lengths)} of scales, biases and parameters")
    pieces = iter(floats.split(lengths))
    layers = {}
    for name, entry in entries.items():
        try:
            scale, bias = next(pieces), next(pieces) if entry["bias"] else None
            layers[name] = from_entry(entry, tensors.pop(f"{name}.weight", None), scale, bias)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
    if tensors:
        raise InputError(f"{min(tensors)} belongs to no layer")
    return layers, {name: next(pieces).reshape(shape) for name, shape in shapes.items()}


def _places(layers: Mapping[str, IntegerLayer]) -> dict[str, list[int] | None]:
    """Module names that layers replace, each with its parts' indices, or None for a whole layer."""
    places: dict[str, list[int] | None] = {}
    for name in layers:
        module, separator, index = name.rpartition(_PARTS)
        if not separator:
            places[name] = None
        elif index not in ("0", "1") or f"{module}{_PARTS}{1 - int(index)}" not in layers:
            raise InputError(f"{name}: a split layer has parts 0 and 1")
        else:
            places[module] = [0, 1]
    return places


def _check_against_unet(
    config: dict[str, Any],
    layers: dict[str, IntegerLayer],
    floats: dict[str, Tensor],
    attention: Mapping[str, Scales],
) -> None:
    """InputError unless layers and floats together are exactly the U-Net's parameters."""
    unet = skeleton(config)
    expected = unet.state_dict()
    known = attentions(unet)
    for name, scales in attention.items():
        if name not in known:
            raise InputError(f"{name}: the U-Net has no such attention")
        check(name, known[name])
        try:
            check_scales(scales)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
    for name, indices in _places(layers).items():
        try:
            module = unet.get_submodule(name)
        except AttributeError as error:
            raise InputError(f"{name}: the U-Net has no such layer") from error
        problem = _module_problem(module, layers, name, indices)
        if problem:
            raise InputError(f"{name}: {problem}")
        for key in ("weight", "bias"):
            expected.pop(f"{name}.{key}", None)
    for name in expected:
        if name not in floats:
            raise InputError(f"{name} is missing")
    for name, tensor in floats.items():
        if name not in expected:
            raise InputError(f"{name} is not a parameter of the U-Net")
        if tensor.dtype != torch.float32 or tensor.shape != expected[name].shape:
            shape = tuple(expected[name].shape)
            raise InputError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not torch.float32 {shape}")
        if not tensor.isfinite().all():
            raise InputError(f"{name} is not finite")


def _module_problem(
    module: nn.Module, layers: Mapping[str, IntegerLayer], name: str, indices: list[int] | None
) -> str | None:
    """What keeps a layer, or a layer's two parts, from replacing ``module``; None when nothing does."""
    if not isinstance(module, nn.Conv2d | nn.Linear):
        return f"the U-Net has a {type(module).__name__} here, not a convolution or linear"
    parts = [layers[name]] if indices is None else [layers[f"{name}{_PARTS}{index}"] for index in indices]
    if indices and not (isinstance(module, nn.Conv2d) and module.groups == 1):
        return "only an ungrouped convolution can be split"
    shapes = [tuple(part.weight.shape) for part in parts]
    wanted = tuple(module.weight.shape)
    if any(len(shape) != len(wanted) for shape in shapes):
        return f"weight of shape {shapes[0]} cannot replace {wanted}"
    if (shapes[0][0], sum(s[1] for s in shapes), *shapes[0][2:]) != wanted or any(
        (s[0], *s[2:]) != (wanted[0], *wanted[2:]) for s in shapes
    ):
        return f"weight of shape {' and '.join(map(str, shapes))} cannot replace {wanted}"
    if (parts[0].bias is None) != (module.bias is None) or any(part.bias is not None for part in parts[1:]):
        return "bias is missing or not expected"
    if isinstance(module, nn.Conv2d):
        if module.padding_mode != "zeros":
            return f"padding mode {module.padding_mode} is not supported"
        geometry = (module.stride, module.padding, module.dilation, module.groups)
        if any(part.geometry != geometry for part in parts):
            return f"stride, padding, dilation, groups are not {geometry}"
    return None

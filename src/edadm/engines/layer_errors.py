"""Where quantization hurts: each layer's output beside full precision, as a signal-to-quantization-noise ratio."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edadm.engines import reference
from edadm.errors import InputError
from edadm.quantization import checkpoint, network
from edadm.quantization.attention import integer_product

COLUMNS = ("layer", "index", "bits", "sqnr_db", "alone_sqnr_db")


def sqnr_db(signal: float, noise: float) -> float | None:
    """``10 log10(signal / noise)`` of two sums of squares; None where one of them is 0.

    >>> sqnr_db(100.0, 1.0)
    20.0
    """
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None


def spread(inputs: tuple[Tensor, ...], rows: int) -> tuple[Tensor, ...]:
    """At most ``rows`` rows of each of the tensors, evenly over all: a calibration set is in the order of the steps."""
    found = len(inputs[0])
    chosen = [index * found // min(rows, found) for index in range(min(rows, found))]
    return tuple(value[chosen] for value in inputs)


def _architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """A diffusers configuration without what says only where it came from."""
    return {key: value for key, value in config.items() if key == "_class_name" or not key.startswith("_")}


@torch.no_grad()
def layer_errors(unet: nn.Module, quantized: Path, inputs: tuple[Tensor, ...]) -> list[dict[str, Any]]:
    """A row per quantized layer of the checkpoint folder ``quantized``, in execution order, with the columns COLUMNS.

    ``unet`` is the same network in float32, ``inputs`` are tensors with one row each per image, in the order of
    ``network.arguments``. ``sqnr_db`` compares the layer's output in the whole integer network with that in the whole
    float network, so it holds what all layers before it did; ``alone_sqnr_db`` gives both layers the float network's
    input: what this layer does by itself. Both are over all rows and values. ``bits`` are those of the weights. A split
    shortcut is one layer. A full-precision folder has no rows. Images are taken one by one, so that the memory is that
    of one image's layer outputs. InputError when ``unet`` is another network.
    """
    loaded = checkpoint.load(quantized)
    bits = {name.partition(".parts.")[0]: layer.bits for name, layer in loaded.layers.items()}
    if _architecture(loaded.config) != _architecture(checkpoint.unet_config(unet)):
        raise InputError(f"{quantized}: not the quantized network of this checkpoint, their configurations differ")
    network.check_inputs(loaded.config, inputs)
    integer = checkpoint.build_unet(loaded, reference.IntegerReference, integer_product)
    kept: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}  # by layer in execution order: squares of the signal, of the noise, of its own noise

    def keep(name: str) -> Any:
        own = integer.get_submodule(name)

        def hook(_: nn.Module, args: tuple, output: Tensor) -> None:
            kept[name] = output
            # forward, not a call: the integer layer's hook is for its own network
            parts = output, torch.zeros(()), own.forward(args[0]) - output
            sums[name] = sums.get(name, 0) + torch.stack([part.double().square().sum() for part in parts])

        return hook

    def compare(name: str) -> Any:
        def hook(_: nn.Module, __: tuple, output: Tensor) -> None:
            sums[name][1] += (output - kept.pop(name)).double().square().sum()

        return hook

    hooks = [unet.get_submodule(name).register_forward_hook(keep(name)) for name in bits]
    hooks += [integer.get_submodule(name).register_forward_hook(compare(name)) for name in bits]
    for row in range(len(inputs[0])) if bits else ():
        one = [value[row : row + 1] for value in inputs]
        network.forward(unet, one)
        network.forward(integer, one)
    for hook in hooks:
        hook.remove()
    rows = []
    for index, (name, (signal, noise, alone)) in enumerate((name, each.tolist()) for name, each in sums.items()):
        ratios = (sqnr_db(signal, noise), sqnr_db(signal, alone))
        rows.append(dict(zip(COLUMNS, (name, index, bits[name], *ratios), strict=True)))
    return rows

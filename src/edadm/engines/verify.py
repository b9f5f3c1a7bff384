"""Does an engine compute what the quantized checkpoint defines? Layer by layer exactly, as a whole within round-off."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from openvino import opset13 as op
from torch import Tensor, nn
from torch.nn import functional as F

from edadm.engines import cpu, reference
from edadm.engines.graph import executed, layer_nodes
from edadm.engines.processor import is_x86
from edadm.engines.reference import relative_error
from edadm.errors import InputError
from edadm.files import read_json
from edadm.quantization import checkpoint
from edadm.quantization.integer_layer import IntegerLayer
from edadm.quantization.network import check_inputs

BATCH = 32
TOGETHER = 16  # layers in one graph: each compilation takes its time, and the inputs of all would take memory


class Simulation(nn.Module):
    """A layer with fake quantization, as during reconstruction; its sums are carried by ``dtype``.

    With ``zero_first`` the zero point is added before the rounding, as OpenVINO's FakeQuantize does, and not after it:
    the same but for round-off, which of a small value is then that of its sum with the zero point.
    """

    def __init__(self, layer: IntegerLayer, dtype: torch.dtype = torch.float32, zero_first: bool = False) -> None:
        super().__init__()
        self.layer, self.dtype, self.zero_first = layer, dtype, zero_first
        self.weight = (layer.weight * layer.weight_scale.reshape(-1, *[1] * (layer.weight.dim() - 1))).to(dtype)
        self.bias = None if layer.bias is None else layer.bias.to(dtype)

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """X float32 in the layer's input layout."""
        layer = self.layer
        scale, zero, greatest = layer.input_scale, layer.input_zero_point, 2**layer.input_bits - 1
        if self.zero_first:
            x = (torch.round(x * (1 / scale) + zero).clamp(0, greatest) - zero) * scale
        else:
            x = torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, greatest)
        x = x.to(self.dtype)
        if layer.is_convolution:
            return F.conv2d(x, self.weight, self.bias, *layer.geometry).float()
        return F.linear(x, self.weight, self.bias).float()


def layer_inputs(loaded: checkpoint.QuantizedCheckpoint, *inputs: Tensor) -> dict[str, Tensor]:
    """The integers (int32) that reach every layer in a reference run on the network's inputs."""
    names = {id(layer): name for name, layer in loaded.layers.items()}
    found: dict[str, Tensor] = {}

    class Recording(reference.IntegerReference):
        def forward(self, x: Tensor, *_: Any) -> Tensor:
            found[names[id(self.layer)]] = reference.quantize(x, self.layer)
            return super().forward(x)

    reference.as_function(checkpoint.build_unet(loaded, Recording))(*inputs)
    return found


def layer_errors(layers: Mapping[str, IntegerLayer], integers: Mapping[str, Tensor]) -> dict[str, float]:
    """Relative error of each of the CPU engine's layers against exact integer arithmetic on the same integers."""
    names, errors = list(integers), {}
    for start in range(0, len(names), TOGETHER):
        errors |= _errors({name: (layers[name], integers[name]) for name in names[start : start + TOGETHER]})
    return errors


def _errors(group: Mapping[str, tuple[IntegerLayer, Tensor]]) -> dict[str, float]:
    """Those of layers beside each other in one graph."""
    given = {name: (q - layer.input_zero_point).float() * layer.input_scale for name, (layer, q) in group.items()}
    ports = {name: op.parameter(list(x.shape), np.float32) for name, x in given.items()}
    graph = ov.Model([layer_nodes(ports[name].output(0), name, group[name][0]) for name in group], list(ports.values()))
    compiled = cpu.compile_graph(ov.Core(), graph, "f32", threads=1)
    floats = set(executed({name: layer for name, (layer, _) in group.items()})) - cpu.int8_names(compiled)
    if is_x86() and floats:
        raise InputError(f"{min(floats)}: the engine does not run this layer in int8")
    outputs = dict(zip(group, compiled([x.numpy() for x in given.values()]).values(), strict=True))
    exact = {name: reference.IntegerReference(layer)(given[name]) for name, (layer, _) in group.items()}
    return {name: relative_error(torch.from_numpy(outputs[name]), exact[name]) for name in group}


@contextmanager
def without_onednn() -> Iterator[None]:
    """PyTorch computes with its own CPU kernels."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


@torch.no_grad()
def verify(quantized: Path, engine: Path, x: Tensor, *rest: Tensor, threads: int) -> dict[str, Any]:
    """Compare the CPU engine (f32 body) with the exact reference on network inputs x (n, c, h, w), t (n,), context.

    Of an autoencoder they are the latents x alone.

    ``worst_layer_error`` is the largest of :func:`layer_errors`. The other numbers are :func:`relative_error` of whole
    outputs. They cannot be 0: where sums in another order move a value over a rounding tie, an integer changes, and
    every later layer sees it. ``floor`` is how far that takes the simulation from itself: the largest difference
    between any two of three computations of it: with oneDNN's float32 kernels, with PyTorch's own, and with float64
    sums and the zero points added first.
    """
    loaded = checkpoint.load(quantized)
    if read_json(Path(engine) / "engine.json").get("quantized_sha256") != checkpoint.fingerprint(quantized):
        raise InputError(f"{engine}: not made of {quantized}; `edadm deploy` makes one of it")
    if rest:
        check_inputs(loaded.config, (x, *rest))
    integers = layer_inputs(loaded, *(value[:4] for value in (x, *rest)))
    errors = layer_errors(loaded.layers, integers)
    compiled = cpu.load(engine, min(len(x), BATCH), threads=threads)
    in_int8, total = cpu.int8_layers(*compiled.compiled)
    simulation, other = (
        reference.as_function(checkpoint.build_unet(loaded, make_layer))
        for make_layer in (Simulation, partial(Simulation, dtype=torch.float64, zero_first=True))
    )
    expected, simulated = reference.load(quantized)(x, *rest), simulation(x, *rest)
    with without_onednn():
        computed = [simulated, simulation(x, *rest), other(x, *rest)]
    found = compiled(x, *rest)
    worst = max(errors, key=errors.get, default=None)
    return {
        "layers": len(integers),
        "layers_in_graph": total,
        "layers_in_int8": in_int8,
        "worst_layer": worst,
        "worst_layer_error": errors.get(worst, 0.0),
        "engine_to_reference": relative_error(found, expected),
        "engine_to_simulation": relative_error(found, simulated),
        "simulation_to_reference": relative_error(simulated, expected),
        "floor": max(relative_error(*pair) for pair in combinations(computed, 2)),
        "images": len(x),
    }

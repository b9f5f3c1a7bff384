"""The OpenVINO graph of a quantized network, with the checkpoint's own scales and integers.

What made it exact and fast (measured with OpenVINO 2026.4, see tests/test_engines.py):

- Inputs are quantized as FakeQuantize to 0..255, conversion to u8, minus the zero point, times the scale: the scale
  and zero point are then taken as written, and each layer is bit-identical to the reference. FakeQuantize straight to
  the input's range makes OpenVINO derive them, 1e-7 off.
- FakeQuantize always has 256 levels: with any other number but 16 the layer silently runs in float. Fewer bits are a
  bound before it.
- Weights are int8 constants when the graph is compiled: as 4-bit constants the layer silently runs in float.
- Products of two activations (attention) run in int8 when neither operand has a zero point, else silently in float;
  both products and the softmax between them may become one node, a "Subgraph".
- Layers of one input or output channel, odd channel counts and linears of one row do run in int8.
- OpenVINO's own group normalization reorders channels-last values into planes, a quarter of a small U-Net's time; sums
  per channel need no reorder.
"""

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import openvino as ov
import torch
from openvino import opset13 as op
from openvino.frontend.pytorch import ConversionExtension
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from torch import Tensor, nn
from torch.nn import functional as F

from edadm.engines.reference import as_function
from edadm.quantization import checkpoint, network
from edadm.quantization.attention import OPERANDS, Scales
from edadm.quantization.checkpoint import QuantizedCheckpoint
from edadm.quantization.integer_layer import IntegerLayer, pack, unpack

EXACT_FLOAT32 = 2**24  # all integers up to it are float32 numbers


def build_graph(
    loaded: QuantizedCheckpoint, shapes: Mapping[str, list[int]] | None = None, t_type: ov.Type = ov.Type.i64
) -> ov.Model:
    """The OpenVINO graph of a checkpoint, with int8 weights.

    Inputs are of ``shapes``, by default those of ``network.shapes``, t of ``t_type``. Those of an autoencoder must be
    given: it has x alone, and its configuration does not say of what size.
    """
    shapes = shapes or network.shapes(loaded.config)
    names = {id(layer): name for name, layer in loaded.layers.items()}
    attentions = {id(scales): name for name, scales in loaded.attention.items()}
    traced = checkpoint.build_unet(
        loaded,
        lambda layer: _Placeholder(names[id(layer)], layer),
        lambda scales: partial(_placeholder_product, attentions[id(scales)]),
    )
    types = {name: ov.Type.f32 for name in shapes} | {"t": t_type, "label": ov.Type.i64}
    dtypes = {ov.Type.f32: torch.float32, ov.Type.i64: torch.int64}
    lengths = {name: [1 if length < 0 else length for length in shape] for name, shape in shapes.items()}
    levels = len(traced.config.block_out_channels)
    lengths["x"][2:] = [_traced(side, levels) for side in lengths["x"][2:]]
    with torch.no_grad(), warnings.catch_warnings():
        # diffusers' checks of channel counts become constants: they hold for every batch
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", "`torch.jit.trace", DeprecationWarning)  # OpenVINO's choice
        decoder = TorchScriptPythonDecoder(
            as_function(traced),
            example_input=tuple(torch.zeros(lengths[name], dtype=dtypes[types[name]]) for name in shapes),
            trace_kwargs={"check_trace": False},  # it runs the network twice more, to compare what means nothing here
        )
        graph = ov.convert_model(
            decoder,
            input=[(ov.PartialShape(shape), types[name]) for name, shape in shapes.items()],
            extension=[
                ConversionExtension("edadm::integer_layer", lambda context: _convert(context, loaded.layers)),
                ConversionExtension("edadm::product", lambda context: _convert_product(context, loaded.attention)),
            ],
        )
    for port, name in zip(graph.inputs, shapes, strict=True):
        port.get_tensor().set_names({name})
    normalize_by_channels(graph)
    # the graph and the other nodes are named by running numbers of the process: two builds would differ
    graph.set_friendly_name(loaded.config["_class_name"])
    layers = set(executed(loaded.layers))
    for number, node in enumerate(graph.get_ordered_ops()):
        name = node.get_friendly_name()
        named = name.removesuffix(".weight") in layers or name.rpartition(".")[0] in loaded.attention
        if node.get_type_name() == "Parameter" or named:
            continue
        source = node.input_value(0).get_node().get_friendly_name() if node.get_input_size() else ""
        if source.rpartition(".")[0] in loaded.attention and "/" not in source:
            # what follows a product, mostly its scaling: OpenVINO merges them, and keeps this name alone
            node.set_friendly_name(f"{source}/{number}")
        else:
            node.set_friendly_name(f"{node.get_type_name()}_{number}")
    return graph


def _traced(side: int, levels: int) -> int:
    """The side of an image that a network for those of ``side`` is traced with: where it is much less, so is the time.

    The trace is the same: a size of the image enters as such, and is odd at the same levels.
    """
    return min(side, 2**levels + side % 2**levels)


def normalize_by_channels(graph: ov.Model) -> None:
    """Write every group normalization as sums per channel, which leave the values in the layout they have.

    The mean first, then the mean square of what is left (not the mean of squares, which loses digits).
    """
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "GroupNormalization":
            continue
        x, weight, bias = node.input_values()
        shape, groups = x.get_partial_shape(), node.get_attributes()["num_groups"]
        channels, axes = shape[1].get_length(), list(range(2, len(shape)))
        size = channels // groups

        def per_group(value: ov.Output, groups: int = groups, size: int = size, axes: list[int] = axes) -> ov.Node:
            grouped = op.reshape(op.reduce_mean(value, axes, keep_dims=True), [0, groups, size], special_zero=True)
            return op.reduce_mean(grouped, [2], keep_dims=True)

        def per_channel(value: ov.Node, size: int = size, axes: list[int] = axes, channels: int = channels) -> ov.Node:
            spread = op.add(value, np.zeros((1, 1, size), np.float32))
            return op.reshape(spread, [0, channels, *[1] * len(axes)], special_zero=True)

        mean = per_group(x)
        rest = op.subtract(x, per_channel(mean))
        variance = per_group(op.multiply(rest, rest))
        deviation = op.sqrt(op.add(variance, np.float32(node.get_attributes()["epsilon"])))
        scale = op.divide(op.reshape(weight, [1, groups, size], special_zero=False), deviation)
        shift = op.subtract(op.reshape(bias, [1, groups, size], special_zero=False), op.multiply(mean, scale))
        replace(node, op.add(op.multiply(x, per_channel(scale)), per_channel(shift)))


def executed(layers: Mapping[str, IntegerLayer]) -> list[str]:
    """Names of the int8 layers that compute ``layers``: two for an input of 16 bits."""
    return [part for name, layer in layers.items() for part in (name, *([f"{name}.low"] * (layer.input_bits == 16)))]


def layer_nodes(x: ov.Output, name: str, layer: IntegerLayer) -> ov.Output:
    """OpenVINO nodes for ``layer`` on ``x``; the convolution or product is called ``name``.

    An input q of 16 bits is taken apart: the layer is that of q's high byte, with 256 times the scale, plus that of
    its low byte, called ``name.low``.
    """
    scale, zero = np.float32(layer.input_scale), layer.input_zero_point
    bias = layer_bias(layer)
    if layer.input_bits == 16:
        q = op.clamp(op.add(op.round(op.divide(x, scale), "half_to_even"), np.float32(zero)), 0, 2**16 - 1)
        high = op.floor(op.multiply(q, np.float32(1 / 256)))
        low = op.subtract(q, op.multiply(high, np.float32(256)))
        parts = [(high, name, scale * 256, zero // 256), (low, f"{name}.low", scale, zero % 256)]
        y = op.add(*(_product_nodes(as_byte(part, 0, 255), *rest, layer) for part, *rest in parts))
    else:
        ends = [np.float32(np.float64(scale) * (end - zero)) for end in (0, 255)]
        if layer.input_bits < 8:
            x = op.minimum(x, np.float32(np.float64(scale) * (2**layer.input_bits - 1 - zero)))
        y = _product_nodes(as_byte(x, *ends), name, scale, zero, layer)
    if bias is not None:
        y = op.add(y, op.constant(bias.reshape((1, -1, 1, 1) if layer.is_convolution else (-1,)).numpy()))
    return y.output(0)


def held_zero(zero: int, layer: IntegerLayer) -> int:
    """How much of a byte's zero point, 0..255, OpenVINO may take out of the products; the bias takes the rest.

    All of it for a convolution. For a linear layer it subtracts ``zero * sum(q_w)`` from the sums, which it adds up in
    float32: as much as that holds exactly in any order (else up to 1e-4 off for thousands of inputs). And never 128:
    on ARM it takes such inputs for signed ones, whose products are wrong (kernel "gemm_acl_i8", OpenVINO 2026.4;
    benchmarks/arm.sh).
    """
    if layer.is_convolution:
        return zero
    held = min(zero, EXACT_FLOAT32 // max(1, layer.weight.int().abs().sum(1).max().item()))
    return held - 1 if held == 128 else held


def layer_bias(layer: IntegerLayer) -> Tensor | None:
    """What a layer adds to its scaled products, float32 (out,): the bias less the rest of the zero point's part.

    Not all of the zero point's part: behind the scale it cancels only as far as both are rounded, up to 2e-6 off.
    """
    zero = layer.input_zero_point
    parts = [(256, zero // 256), (1, zero % 256)] if layer.input_bits == 16 else [(1, zero)]
    rest = sum(factor * (part - held_zero(part, layer)) for factor, part in parts)
    if not rest:
        return layer.bias
    sums = layer.weight.sum(1, dtype=torch.int64) * rest
    bias = -sums.double() * layer.weight_scale.double() * layer.input_scale
    return (bias if layer.bias is None else bias + layer.bias.double()).float()


def as_byte(x: ov.Output, low: float, high: float) -> ov.Node:
    """``x`` as u8, where 0 stands for ``low`` and 255 for ``high``."""
    return op.convert(op.fake_quantize(x, *np.float32([low, high, 0, 255]), 256), "u8")


def of_byte(q: ov.Node, zero: np.ndarray | np.float32, scale: np.ndarray | np.float32) -> ov.Node:
    """What u8 ``q`` stands for, ``scale * (q - zero)``, as OpenVINO knows an input of an int8 layer."""
    return op.multiply(op.subtract(op.convert(q, "f32"), zero), scale)


def _product_nodes(q: ov.Node, name: str, scale: np.float32, zero: int, layer: IntegerLayer) -> ov.Node:
    """The convolution or product, called ``name``, of ``scale * (q - zero)`` for q u8 and the layer's weight.

    Less what ``held_zero`` leaves of the zero point: see ``layer_bias``.
    """
    x = of_byte(q, np.float32(held_zero(zero, layer)), scale)
    shape = list(layer.weight.shape)
    if layer.groups > 1:
        shape = [layer.groups, shape[0] // layer.groups, *shape[1:]]
    integers = op.constant(layer.weight.reshape(shape).numpy())
    integers.set_friendly_name(f"{name}.weight")
    columns = [*shape[: 2 if layer.groups > 1 else 1], *[1] * (layer.weight.dim() - 1)]
    weight = op.multiply(op.convert(integers, "f32"), op.constant(layer.weight_scale.reshape(columns).numpy()))
    if layer.is_convolution:
        convolution = op.group_convolution if layer.groups > 1 else op.convolution
        y = convolution(x, weight, layer.stride, layer.padding, layer.padding, layer.dilation)
    else:
        y = op.matmul(x, weight, transpose_a=False, transpose_b=True)
    y.set_friendly_name(name)
    return y


def product_nodes(a: ov.Output, b: ov.Output, name: str, one: str, other: str, scales: Scales) -> ov.Output:
    """OpenVINO nodes for the product of an attention's operands ``one`` and ``other``; it is called ``name``."""
    operands = []
    for x, operand in ((a, one), (b, other)):
        scale, (least, greatest) = np.float32(scales[operand]), OPERANDS[operand]
        ends = [np.float32(np.float64(scale) * end) for end in (least, greatest)]
        q = op.fake_quantize(x, *ends, np.float32(least), np.float32(greatest), 256)
        operands.append(op.multiply(op.convert(op.convert(q, "i8" if least < 0 else "u8"), "f32"), scale))
    y = op.matmul(*operands, transpose_a=False, transpose_b=False)
    y.set_friendly_name(name)
    return y.output(0)


def unpack_weights(graph: ov.Model) -> None:
    """Turn 4-bit constants into int8 ones, which is what the CPU computes with."""
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "Constant" and node.get_element_type() == ov.Type.i4:
            packed = torch.from_numpy(np.array(node.data).view(np.uint8).reshape(-1))
            replace(node, op.constant(unpack(packed, tuple(node.get_output_shape(0))).numpy()))


def pack_weights(graph: ov.Model, names: set[str]) -> None:
    """Turn the int8 weight constants of the layers ``names`` into 4-bit ones."""
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "Constant" and node.get_friendly_name().removesuffix(".weight") in names:
            # the tensor owns its memory: one around an array would leave the constant with memory of a dead array
            tensor = ov.Tensor(ov.Type.i4, node.get_output_shape(0))
            tensor.data.view(np.uint8).reshape(-1)[:] = pack(torch.from_numpy(np.array(node.data))).numpy()
            replace(node, ov.op.Constant(tensor))


@torch.library.custom_op("edadm::integer_layer", mutates_args=())
def _integer_layer(
    x: Tensor, name: str, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> Tensor:
    """Stands for a layer while the network is traced: only the shape of its result matters."""
    like, weight = x.to("meta"), weight.to("meta", x.dtype)
    result = F.conv2d(like, weight, None, stride, padding, dilation, groups) if weight.dim() == 4 else like @ weight.T
    return x.new_zeros(result.shape)


@torch.library.custom_op("edadm::product", mutates_args=())
def _product(a: Tensor, b: Tensor, name: str, one: str, other: str) -> Tensor:
    """Stands for a product of attention operands while the network is traced: only its shape matters."""
    return a.new_zeros((*a.shape[:-1], b.shape[-1]))


def _placeholder_product(name: str, one: str, a: Tensor, other: str, b: Tensor) -> Tensor:
    return _product(a, b, name, one, other)


class _Placeholder(nn.Module):
    def __init__(self, name: str, layer: IntegerLayer) -> None:
        super().__init__()
        self.name, self.geometry = name, layer.geometry
        self.register_buffer("weight", layer.weight)

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return _integer_layer(x, self.name, self.weight, *self.geometry)


def _convert(context: Any, layers: dict[str, IntegerLayer]) -> list[ov.Output]:
    name = context.get_values_from_const_input(1)
    return [layer_nodes(context.get_input(0), name, layers[name])]


def _convert_product(context: Any, attention: dict[str, Scales]) -> list[ov.Output]:
    a, b = context.get_input(0), context.get_input(1)
    name, one, other = (context.get_values_from_const_input(index) for index in (2, 3, 4))
    return [product_nodes(a, b, f"{name}.{one}", one, other, attention[name])]


def weight_constants(product: ov.Node) -> tuple[ov.Node, ov.Node] | None:
    """The constants of int8 weights and of their scales of a layer's convolution or product; None if it has none."""
    scaled = product.input_value(1).get_node()
    if scaled.get_type_name() != "Multiply" or scaled.input_value(0).get_node().get_type_name() != "Convert":
        return None
    integers, scale = scaled.input_value(0).get_node().input_value(0).get_node(), scaled.input_value(1).get_node()
    int8 = integers.get_type_name() == "Constant" and integers.get_element_type() == ov.Type.i8
    return (integers, scale) if int8 else None


def read_instead(port: ov.Output, other: ov.Output) -> None:
    """Let all that reads ``port`` read ``other``."""
    for reader in list(port.get_target_inputs()):
        reader.replace_source_output(other)


def replace(node: ov.Node, other: ov.Node) -> None:
    """Put ``other``, under the same name, in the place of ``node``."""
    other.set_friendly_name(node.get_friendly_name())
    read_instead(node.output(0), other.output(0))


def readers(node: ov.Node) -> list[ov.Node]:
    """The nodes that read a node's first output, each as often as it does."""
    return [port.get_node() for port in node.output(0).get_target_inputs()]


def only_reader(node: ov.Node | None, kind: str) -> ov.Node | None:
    """The node of that kind that alone reads ``node``, or None."""
    found = [] if node is None else readers(node)
    return found[0] if len(found) == 1 and found[0].get_type_name() == kind else None


def quantized_reader(node: ov.Node) -> ov.Node | None:
    """The quantization of at most 8 bits that alone reads ``node``, or None."""
    return only_reader(node, "FakeQuantize") or only_reader(only_reader(node, "Minimum"), "FakeQuantize")

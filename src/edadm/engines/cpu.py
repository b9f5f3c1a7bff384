"""The CPU engine: an OpenVINO graph of the quantized network, with the checkpoint's own scales and integers.

``deploy`` writes a folder with ``model.xml`` and ``model.bin`` (one graph for every batch size; weights of at most 4
bits packed), ``engine.json`` and ``size.json``; ``load`` compiles it for one batch size. What made this exact and fast
(measured with OpenVINO 2026.4, see tests/test_engines.py):

- Inputs are quantized as FakeQuantize to 0..255, conversion to u8, minus the zero point, times the scale: the scale
  and zero point are then taken as written, and each layer is bit-identical to the reference. FakeQuantize straight to
  the input's range makes OpenVINO derive them, 1e-7 off.
- FakeQuantize always has 256 levels: with any other number but 16 the layer silently runs in float. Fewer bits are a
  bound before it.
- Weights are int8 constants when the graph is compiled: as 4-bit constants the layer silently runs in float.
- Products of two activations (attention) run in int8 when neither operand has a zero point, else silently in float;
  both products and the softmax between them may become one node, a "Subgraph".
- Layers of one input or output channel, odd channel counts and linears of one row do run in int8.
- Without VNNI or AMX the int8 kernels saturate sums of two products at 16 bits, silently: 4 to 17 % wrong.
"""

import warnings
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from openvino import opset13 as op
from openvino.frontend.pytorch import ConversionExtension
from torch import Tensor, nn
from torch.nn import functional as F

from edadm.engines.processor import has_int8_dot
from edadm.engines.reference import as_function
from edadm.errors import InputError
from edadm.files import atomic_folder, read_json, write_json
from edadm.quantization import autoencoder, checkpoint, network
from edadm.quantization.attention import OPERANDS, Scales
from edadm.quantization.checkpoint import QuantizedCheckpoint
from edadm.quantization.integer_layer import PACKED_BITS, IntegerLayer, pack, unpack

FORMAT_VERSION = 2
PRODUCTS = ("q", "softmax")  # an attention's products are called by their first operands
BODIES = ("f32", "bf16")
SAFE_WEIGHT = 63  # 2 * 255 * 63 < 2**15: two products fit into 16 bits


class CpuEngine:
    """A compiled network of one batch size: ``engine(x, t) -> output``, or of (x, t, context, …), all tensors."""

    def __init__(self, compiled: ov.CompiledModel, batch: int) -> None:
        self.compiled = compiled
        self.batch = batch
        self._request = compiled.create_infer_request()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run x float32 (n, c, h, w), t int64 (n,) and the network's further inputs (n, ...), if any, for any n.

        Batches in turn, the last filled up with zeros.
        """
        pieces = zip(*(value.split(self.batch) for value in inputs), strict=True)
        return torch.cat([self._run(*piece) for piece in pieces])

    def _run(self, *inputs: Tensor) -> Tensor:
        rows = len(inputs[0])
        filled = [F.pad(value, (0, 0) * (value.dim() - 1) + (0, self.batch - rows)) for value in inputs]
        result = self._request.infer([value.contiguous().numpy() for value in filled])
        return torch.from_numpy(result[0][:rows].copy())  # the request's own memory is used again


def deploy(quantized: Path, out: Path) -> None:
    """Build the engine folder ``out`` from a checkpoint folder, quantized or full-precision.

    A quantized autoencoder becomes an engine of its own in ``vae/``, of its decoder.
    """
    quantized, loaded = Path(quantized), checkpoint.load(quantized)
    shapes = network.shapes(loaded.config)
    with atomic_folder(Path(out)) as folder:
        _deploy(quantized, loaded, shapes, folder)
        if (quantized / autoencoder.FOLDER).is_dir():
            vae = checkpoint.load(quantized / autoencoder.FOLDER)
            decoding = {name: layer for name, layer in vae.layers.items() if autoencoder.decoding(name)}
            latents = {"x": [-1, vae.config["latent_channels"], *shapes["x"][2:]]}
            _deploy(quantized / autoencoder.FOLDER, vae, latents, folder / autoencoder.FOLDER, decoding)


def _deploy(
    quantized: Path,
    loaded: QuantizedCheckpoint,
    shapes: dict[str, list[int]],
    folder: Path,
    layers: dict[str, IntegerLayer] | None = None,
) -> None:
    """Write the engine of one network to ``folder``; ``layers`` are those in its graph if not all are."""
    layers = loaded.layers if layers is None else layers
    folder.mkdir(exist_ok=True)
    graph = build_graph(loaded, shapes)
    packed = {name: layer for name, layer in layers.items() if layer.bits <= PACKED_BITS}
    _pack_weights(graph, set(executed(packed)))
    ov.save_model(graph, folder / "model.xml", compress_to_fp16=False)
    description = {
        "format_version": FORMAT_VERSION,
        "device": "cpu",
        "quantized_sha256": checkpoint.fingerprint(quantized),
        **_description(graph, loaded, layers),
        "versions": {name: version(name) for name in ("openvino", "torch", "diffusers")},
    }
    write_json(folder / "engine.json", description)
    engine_bytes = sum((folder / name).stat().st_size for name in ("model.xml", "model.bin"))
    write_json(folder / "size.json", checkpoint.sizes(quantized) | {"engine_bytes": engine_bytes})


def _description(
    graph: ov.Model, loaded: QuantizedCheckpoint, layers: Mapping[str, IntegerLayer] | None = None
) -> dict[str, Any]:
    """What compiling a graph needs to know of it; ``layers`` are those in it if not all are."""
    layers = loaded.layers if layers is None else layers

    def sizes(port: ov.Output) -> list[int]:
        return [-1 if axis.is_dynamic else axis.get_length() for axis in port.partial_shape]

    largest = max((int(layer.weight.abs().max()) for layer in layers.values()), default=0)
    return {
        "inputs": {port.any_name: sizes(port) for port in graph.inputs},
        "output": sizes(graph.output(0)),
        "layers": executed(layers),
        "products": [f"{name}.{operand}" for name in loaded.attention for operand in PRODUCTS],
        # the signed factor in a product of two integers
        "largest_weight": max(largest, 128) if loaded.attention else largest,
    }


def load(engine_dir: Path, batch: int, body: str = "f32", threads: int = 2, cache_dir: Path | None = None) -> CpuEngine:
    """Compile an engine folder for ``batch`` images a call.

    ``body`` is the type of everything that is not an integer layer: "f32" for exactness, "bf16" for speed. InputError
    when the folder is not an engine, the machine would compute wrong sums, or a layer would not run in int8.
    """
    if body not in BODIES:
        raise InputError(f"engine.body: {body!r} is not one of {', '.join(BODIES)}")
    if batch < 1 or threads < 1:
        raise InputError(f"engine: batch {batch} and threads {threads} must be at least 1")
    folder = Path(engine_dir)
    description = read_json(folder / "engine.json")
    if description.get("device") != "cpu" or description.get("format_version") != FORMAT_VERSION:
        raise InputError(f"{folder}: not a cpu engine of format {FORMAT_VERSION}")
    try:
        graph = ov.Core().read_model(folder / "model.xml")
    except RuntimeError as error:
        raise InputError(f"{folder}: OpenVINO cannot read the graph ({str(error).splitlines()[-1]})") from error
    unpack_weights(graph)
    try:
        return _for_batch(graph, description, batch, body, threads, cache_dir)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error


def compiled(loaded: QuantizedCheckpoint, graph: ov.Model, batch: int, body: str, threads: int) -> CpuEngine:
    """The engine of a checkpoint's ``graph``, as ``build_graph`` made it and without a folder; else as ``load``."""
    return _for_batch(graph.clone(), _description(graph, loaded), batch, body, threads)


def _for_batch(
    graph: ov.Model,
    description: Mapping[str, Any],
    batch: int,
    body: str,
    threads: int,
    cache_dir: Path | None = None,
) -> CpuEngine:
    """``graph``, with int8 weights, compiled for one batch size; InputError when it would be wrong, or slow."""
    if description["largest_weight"] > SAFE_WEIGHT and not has_int8_dot():
        reason = f"this processor has neither VNNI nor AMX, where weights beyond {SAFE_WEIGHT} give wrong sums"
        raise InputError(f"{reason}; use weights of at most 7 bits in every layer")
    graph.reshape({name: [batch, *shape[1:]] for name, shape in description["inputs"].items()})
    compiled = compile_graph(ov.Core(), graph, body, threads, cache_dir)
    expected = {*description["layers"], *description["products"]}
    missing = sorted(expected - int8_names(compiled))
    if missing:
        raise InputError(f"{len(missing)} of {len(expected)} layers would not run in int8, first {missing[0]}")
    return CpuEngine(compiled, batch)


def compile_graph(
    core: ov.Core, graph: ov.Model, body: str, threads: int, cache_dir: Path | None = None
) -> ov.CompiledModel:
    """``graph`` for this CPU; the precision is always stated, since OpenVINO's own choice is bf16 where it can."""
    settings = {
        "INFERENCE_PRECISION_HINT": body,
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # pinned threads wait for each other when the machine is shared
    }
    if cache_dir is not None:
        settings["CACHE_DIR"] = str(cache_dir)
    return core.compile_model(graph, "CPU", settings)


def int8_layers(compiled: ov.CompiledModel) -> tuple[int, int]:
    """How many convolutions and linears the compiled graph runs in int8, and how many it has."""
    found = [integer for integer, _ in _nodes(compiled, ("Convolution", "FullyConnected"))]
    return sum(found), len(found)


def int8_names(compiled: ov.CompiledModel) -> set[str]:
    """Names of the original layers, and products of attentions, inside the nodes that run in int8."""
    nodes = _nodes(compiled, ("Convolution", "FullyConnected", "MatMul", "Subgraph"))
    return {name for integer, names in nodes if integer for name in names}


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
    lengths = {name: [2 if length < 0 else length for length in shape] for name, shape in shapes.items()}
    with torch.no_grad(), warnings.catch_warnings():
        # diffusers' checks of channel counts become constants: they hold for every batch
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", "`torch.jit.trace", DeprecationWarning)  # OpenVINO's choice
        graph = ov.convert_model(
            as_function(traced),
            example_input=tuple(torch.zeros(lengths[name], dtype=dtypes[types[name]]) for name in shapes),
            input=[(ov.PartialShape(shape), types[name]) for name, shape in shapes.items()],
            extension=[
                ConversionExtension("edadm::integer_layer", lambda context: _convert(context, loaded.layers)),
                ConversionExtension("edadm::product", lambda context: _convert_product(context, loaded.attention)),
            ],
        )
    for port, name in zip(graph.inputs, shapes, strict=True):
        port.get_tensor().set_names({name})
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


def executed(layers: Mapping[str, IntegerLayer]) -> list[str]:
    """Names of the int8 layers that compute ``layers``: two for an input of 16 bits."""
    return [part for name, layer in layers.items() for part in (name, *([f"{name}.low"] * (layer.input_bits == 16)))]


def layer_nodes(x: ov.Output, name: str, layer: IntegerLayer) -> ov.Output:
    """OpenVINO nodes for ``layer`` on ``x``; the convolution or product is called ``name``.

    An input q of 16 bits is taken apart: the layer is that of q's high byte, with 256 times the scale, plus that of
    its low byte, called ``name.low``.
    """
    scale, zero = np.float32(layer.input_scale), layer.input_zero_point
    if layer.input_bits == 16:
        q = op.clamp(op.add(op.round(op.divide(x, scale), "half_to_even"), np.float32(zero)), 0, 2**16 - 1)
        high = op.floor(op.multiply(q, np.float32(1 / 256)))
        low = op.subtract(q, op.multiply(high, np.float32(256)))
        parts = [(high, name, scale * 256, zero // 256), (low, f"{name}.low", scale, zero % 256)]
        y = op.add(*(_product_nodes(_byte(part, 0, 255), *rest, layer) for part, *rest in parts))
    else:
        ends = [np.float32(np.float64(scale) * (end - zero)) for end in (0, 255)]
        if layer.input_bits < 8:
            x = op.minimum(x, np.float32(np.float64(scale) * (2**layer.input_bits - 1 - zero)))
        y = _product_nodes(_byte(x, *ends), name, scale, zero, layer)
    if layer.bias is not None:
        y = op.add(y, op.constant(layer.bias.reshape((1, -1, 1, 1) if layer.is_convolution else (-1,)).numpy()))
    return y.output(0)


def _byte(x: ov.Output, low: float, high: float) -> ov.Node:
    """``x`` as u8, where 0 stands for ``low`` and 255 for ``high``."""
    return op.convert(op.fake_quantize(x, *np.float32([low, high, 0, 255]), 256), "u8")


def _product_nodes(q: ov.Node, name: str, scale: np.float32, zero: int, layer: IntegerLayer) -> ov.Node:
    """The convolution or product, called ``name``, of ``scale * (q - zero)`` for q u8 and the layer's weight."""
    x = op.multiply(op.subtract(op.convert(q, "f32"), np.float32(zero)), scale)
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
            _replace(node, op.constant(unpack(packed, tuple(node.get_output_shape(0))).numpy()))


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
    """Stands for a product of attention operands while the network is traced."""
    return a @ b


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


def _pack_weights(graph: ov.Model, names: set[str]) -> None:
    """Turn the int8 weight constants of the layers ``names`` into 4-bit ones."""
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "Constant" and node.get_friendly_name().removesuffix(".weight") in names:
            # the tensor owns its memory: one around an array would leave the constant with memory of a dead array
            tensor = ov.Tensor(ov.Type.i4, node.get_output_shape(0))
            tensor.data.view(np.uint8).reshape(-1)[:] = pack(torch.from_numpy(np.array(node.data))).numpy()
            _replace(node, ov.op.Constant(tensor))


def _replace(node: ov.Node, other: ov.Node) -> None:
    other.set_friendly_name(node.get_friendly_name())
    for target in list(node.output(0).get_target_inputs()):
        target.replace_source_output(other.output(0))


def _nodes(compiled: ov.CompiledModel, kinds: tuple[str, ...]) -> list[tuple[bool, list[str]]]:
    """For every executed node of these kinds: whether its kernel is an int8 one, and the layers inside it.

    The kernel's name is asked, not the node's precision: that one also says i8 for integer weights in float products.
    """
    nodes = []
    for node in compiled.get_runtime_model().get_ops():
        info = {key: value.astype(str) for key, value in node.get_rt_info().items() if hasattr(value, "astype")}
        if info["layerType"] in kinds:
            # OpenVINO appends to a name what it moved behind the layer: name/DequantizationMultiply
            names = [name.split("/")[0] for name in info["originalLayersNames"].split(",")]
            nodes.append((info["primitiveType"].upper().endswith("_I8"), names))
    return nodes

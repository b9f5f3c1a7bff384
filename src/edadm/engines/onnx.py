"""Export to ONNX with QuantizeLinear and DequantizeLinear, for ONNX Runtime, OpenVINO and TensorRT.

``deploy`` writes ``model.onnx`` with its tensors in ``model.bin`` (weights of at most 4 bits as int4), ``engine.json``
and ``size.json``. Inputs are x float32 (batch, c, h, w), t int64 (batch,) and, of a conditional network, context
float32 (batch, tokens, width), for any batch and tokens; the output is float32 like x. ``load`` runs the file with
ONNX Runtime on the CPU, so that images can be drawn with it as with any engine.

A layer is its input's Q/DQ pair, its weight's DQ and a float convolution or Gemm: a runtime that knows the pattern
computes in integers, any other the same values in float. Two forms have the same values:

- "onnx": uint8 with the checkpoint's zero points.
- "tensorrt": int8 without zero points, which is all that TensorRT takes. The input is moved by a constant, so that
  its integers are the checkpoint's less 128; the constant times the weights' sums goes into the bias, and padding
  becomes an explicit node, since it must add nothing.

Inputs of 16 bits are rounded by ordinary nodes in both, since few runtimes have 16-bit types.
"""

import warnings
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edadm.engines.batches import in_batches
from edadm.engines.processor import has_int8_dot
from edadm.engines.reference import Network
from edadm.errors import InputError
from edadm.files import atomic_folder, read_json, write_json
from edadm.quantization import autoencoder, checkpoint, network
from edadm.quantization.attention import OPERANDS, Scales
from edadm.quantization.checkpoint import QuantizedCheckpoint
from edadm.quantization.integer_layer import PACKED_BITS, IntegerLayer

FORMAT_VERSION = 1
FORMS = ("onnx", "tensorrt")
FILES = ("model.onnx", "model.bin")
OPSET = 21  # the first with 4-bit integers in DequantizeLinear
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def deploy(quantized: Path, out: Path, form: str = "onnx") -> None:
    """Write the folder ``out`` from a checkpoint folder, quantized or full-precision; ``form`` is one of FORMS."""
    _require_packages()
    import onnx
    import onnx_ir

    loaded = checkpoint.load(quantized)
    if (Path(quantized) / autoencoder.FOLDER).is_dir():
        raise InputError(f"{quantized}: its autoencoder is quantized, which only the cpu engine executes")
    model = build_model(loaded, form)
    with atomic_folder(Path(out)) as folder:
        onnx_ir.save(model, folder / FILES[0], external_data=FILES[1])
        onnx.checker.check_model(folder / FILES[0], full_check=True)
        description = {
            "format_version": FORMAT_VERSION,
            "device": "onnx",
            "form": form,
            "opset": OPSET,
            "quantized_sha256": checkpoint.fingerprint(quantized),
            "inputs": [value.name for value in model.graph.inputs],
            "layers": list(loaded.layers),
            "versions": {name: version(name) for name in ("torch", *PACKAGES, "diffusers")},
        }
        write_json(folder / "engine.json", description)
        engine_bytes = sum((folder / name).stat().st_size for name in FILES)
        write_json(folder / "size.json", checkpoint.sizes(quantized) | {"engine_bytes": engine_bytes})


class OnnxEngine:
    """A network of one batch size in ONNX Runtime: ``engine(x, t) -> output``, or of (x, t, context), all tensors."""

    def __init__(self, session: Any, batch: int) -> None:
        self.session, self.batch = session, batch
        self._names = [value.name for value in session.get_inputs()]

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run x float32 (n, c, h, w), t int64 (n,) and perhaps context float32 (n, tokens, width) for any n."""
        return in_batches(self._run, self.batch, inputs)

    def _run(self, *inputs: Tensor) -> Tensor:
        arrays = {name: value.numpy() for name, value in zip(self._names, inputs, strict=True)}
        return torch.from_numpy(self.session.run(None, arrays)[0])


def load(engine_dir: Path, batch: int, body: str = "f32", threads: int = 2, cache_dir: Path | None = None) -> Any:
    """The network of a folder that ``deploy`` wrote, in ONNX Runtime: an :class:`OnnxEngine`.

    ``body`` is "f32", the type in the file; nothing is kept in ``cache_dir``. InputError when the folder is not such
    an engine or ONNX Runtime refuses it.
    """
    _require_packages()
    if body != "f32":
        raise InputError(f"engine.body: {body!r} is not f32, which is what an ONNX file holds")
    if batch < 1 or threads < 1:
        raise InputError(f"engine: batch {batch} and threads {threads} must be at least 1")
    folder = Path(engine_dir)
    description = read_json(folder / "engine.json")
    if description.get("device") != "onnx" or description.get("format_version") != FORMAT_VERSION:
        raise InputError(f"{folder}: not an onnx engine of format {FORMAT_VERSION}")
    try:
        session = runtime_session(folder / FILES[0], threads)
    except Exception as error:  # its classes share no public base
        raise InputError(f"{folder}: ONNX Runtime refuses it ({' '.join(str(error).split())})") from error
    return OnnxEngine(session, batch)


def runtime_session(path: Path, threads: int) -> Any:
    """An ONNX Runtime session on the CPU that rounds nothing but what the file says."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # products of a float with a dequantized weight (a linear's 16-bit input) else have their input rounded to 8 bits
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if not has_int8_dot():  # sums of two products would saturate at 16 bits: the same values are computed in float
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def build_model(loaded: QuantizedCheckpoint, form: str = "onnx") -> Any:
    """The model of a checkpoint, an ``onnx_ir.Model``."""
    if form not in FORMS:
        raise InputError(f"form {form!r} is not one of {', '.join(FORMS)}")
    make_layer = QuantizedLayer if form == "onnx" else CentredLayer
    unet = checkpoint.build_unet(loaded, make_layer, lambda scales: QuantizedProduct(scales, form == "tensorrt"))
    inputs = example_inputs(loaded.config)
    return export(Network(unet).eval(), inputs, _four_bit_names(loaded.layers))


def export(network: nn.Module, inputs: Mapping[str, Tensor], four_bit: set[str] = frozenset()) -> Any:
    """The ``onnx_ir.Model`` of a function of ``inputs``, which have any first axis; of "context", the second too.

    The int8 tensors named ``four_bit`` become int4.
    """
    import onnx_ir

    batch, tokens = (torch.export.Dim(name, min=1, max=2**20) for name in ("batch", "tokens"))
    shapes = [{0: batch, 1: tokens} if name == "context" else {0: batch} for name in inputs]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about its own parts
        program = torch.onnx.export(
            network,
            tuple(inputs.values()),
            dynamo=True,
            dynamic_shapes=tuple(shapes),
            input_names=list(inputs),
            output_names=["output"],
            opset_version=OPSET,
            verbose=False,
        )
    model = program.model
    for node in model.graph.all_nodes():  # where in Python a node comes from, with this machine's paths
        node.metadata_props.clear()
        node.doc_string = None
    for name, value in model.graph.initializers.items():
        if name in four_bit:
            value.const_value = onnx_ir.tensor(value.const_value.numpy(), dtype=onnx_ir.DataType.INT4, name=name)
            value.dtype = onnx_ir.DataType.INT4
    return model


def example_inputs(config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Inputs of a U-Net by name, in the order in which it takes them; the sizes of free axes are arbitrary."""
    if set(network.arguments(config)) - {"x", "t", "context"}:
        raise InputError(f"a {config['_class_name']} of {', '.join(network.arguments(config))} cannot be exported")
    shapes = network.shapes(config)
    lengths = {name: [2, *(3 if length < 0 else length for length in shape[1:])] for name, shape in shapes.items()}
    return {
        name: torch.zeros(shape, dtype=torch.int64 if name == "t" else torch.float32) for name, shape in lengths.items()
    }


class QuantizedLayer(nn.Module):
    """A layer with the checkpoint's zero point, whose forward is written in nodes of ONNX."""

    def __init__(self, layer: IntegerLayer) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("weight", layer.weight)
        self.register_buffer("weight_scale", layer.weight_scale)
        self.register_buffer("bias", layer.bias)
        self.register_buffer("scale", torch.tensor(layer.input_scale))
        self.register_buffer("zero", torch.tensor(layer.input_zero_point % 256, dtype=torch.uint8))

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """Take x float32 in the layer's input layout to float32."""
        layer = self.layer
        if layer.input_bits == 16:
            return self.product(self.rounded(x), self.bias, layer.padding)
        if layer.input_bits < 8:
            x = x.clamp(max=self.greatest())
        return self.on_grid(x)

    def on_grid(self, x: Tensor) -> Tensor:
        """The layer of x, whose integers have 8 bits and are not larger than the grid."""
        return self.product(quantized(x, self.scale, self.zero), self.bias, self.layer.padding)

    def rounded(self, x: Tensor) -> Tensor:
        """X on the layer's grid, by ordinary nodes."""
        zero = float(self.layer.input_zero_point)
        q = (torch.round(x / self.scale) + zero).clamp(0, 2**self.layer.input_bits - 1)
        return (q - zero) * self.scale

    def greatest(self) -> float:
        """The largest input on the grid."""
        return self.layer.input_scale * (2**self.layer.input_bits - 1 - self.layer.input_zero_point)

    def product(self, x: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
        """The convolution or product of x with the dequantized weight."""
        layer = self.layer
        arguments = (self.weight, self.weight_scale)
        weight = _node("DequantizeLinear", *arguments, dtype=torch.float32, like=self.weight, axis=0)
        if not layer.is_convolution:
            return F.linear(x, weight, bias)
        return F.conv2d(x, weight, bias, layer.stride, padding, layer.dilation, layer.groups)


class CentredLayer(QuantizedLayer):
    """The same layer without a zero point: its input's integers are the checkpoint's less 128."""

    def __init__(self, layer: IntegerLayer) -> None:
        super().__init__(layer)
        self.zero = torch.zeros((), dtype=torch.int8)
        self.centre = layer.input_scale * (128 - layer.input_zero_point)
        sums = layer.weight.flatten(1).sum(1, dtype=torch.int64).double() * layer.weight_scale.double()
        bias = 0.0 if layer.bias is None else layer.bias.double()
        self.register_buffer("moved_bias", (bias + self.centre * sums).float())

    def on_grid(self, x: Tensor) -> Tensor:
        """The same with the input moved, and padding as a node of its own, since it must add nothing."""
        x = x - self.centre
        if any(self.layer.padding):
            height, width = self.layer.padding
            x = F.pad(x, (width, width, height, height), value=-self.centre)
        return self.product(quantized(x, self.scale, self.zero), self.moved_bias, (0, 0))


class QuantizedProduct(nn.Module):
    """The products of an attention's operands; without zero points in int8 alone when ``signed``."""

    def __init__(self, scales: Scales, signed: bool) -> None:
        super().__init__()
        self.scales, self.signed = scales, signed
        for name, scale in scales.items():
            self.register_buffer(f"{name}_scale", torch.tensor(scale))
        self.register_buffer("int8", torch.zeros((), dtype=torch.int8))
        self.register_buffer("uint8", torch.zeros((), dtype=torch.uint8))

    def forward(self, one: str, a: Tensor, other: str, b: Tensor) -> Tensor:
        """The product of operands ``one`` and ``other``."""
        return self.operand(one, a) @ self.operand(other, b)

    def operand(self, name: str, x: Tensor) -> Tensor:
        """X on the grid of an operand."""
        scale = getattr(self, f"{name}_scale")
        if OPERANDS[name][0] < 0:
            return quantized(x, scale, self.int8)
        if not self.signed:
            return quantized(x, scale, self.uint8)
        centre = 128 * self.scales[name]
        return quantized(x - centre, scale, self.int8) + centre


def quantized(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """X rounded to the integers of ``zero``'s type and back: a Q/DQ pair."""
    integers = _node("QuantizeLinear", x, scale, zero, dtype=zero.dtype, like=x)
    return _node("DequantizeLinear", integers, scale, zero, dtype=torch.float32, like=x)


def _node(name: str, *inputs: Tensor, dtype: torch.dtype, like: Tensor, **attributes: int) -> Tensor:
    return torch.onnx.ops.symbolic(name, inputs, attributes, dtype=dtype, shape=like.shape, version=OPSET)


def _four_bit_names(layers: Mapping[str, IntegerLayer]) -> set[str]:
    return {f"unet.{name}.weight" for name, layer in layers.items() if layer.bits <= PACKED_BITS}


def _require_packages() -> None:
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(f"exporting needs {', '.join(missing)}: pip install 'edadm[export]'")

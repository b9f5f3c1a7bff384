"""ONNX files against the exact reference in ONNX Runtime and OpenVINO: layers, tiny and (slow) embedded networks."""

import tiny  # noqa: F401, I001  (first: it imports edadm)

from pathlib import Path
from statistics import median

import numpy as np
import onnx
import onnx_ir
import openvino as ov
import pytest
import torch
from command_line import call
from diffusers import UNet2DConditionModel
from test_attention import SCALES
from test_cuda_engine import network_inputs, small_unet
from test_engines import CASES, grid_inputs, random_layer
from torch import nn

from edadm import engines
from edadm.engines import processor, reference
from edadm.engines import onnx as exporter
from edadm.engines.verify import relative_error
from edadm.errors import InputError
from edadm.params import Recipe
from edadm.quantization import checkpoint, reconstruction
from edadm.quantization.integer_layer import IntegerLayer
from edadm.systems.system import load, load_unet

ROOT = Path(__file__).parent.parent
# OpenVINO else rounds the inputs of layers with 4-bit weights once more, to scales of its own
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0, "INFERENCE_NUM_THREADS": 1}
# nor does it compute in int8 where sums of two products would saturate at 16 bits
EXACT |= {} if processor.has_int8_dot() else {"LP_TRANSFORMS_MODE": False}


def openvino_output(path, given):
    core = ov.Core()
    return torch.from_numpy(core.compile_model(core.read_model(path), "CPU", EXACT)([v.numpy() for v in given])[0])


class Layers(nn.Module):
    """Layers side by side, each on its piece of the input; the outputs flattened into one."""

    def __init__(self, layers, shapes):
        super().__init__()
        self.layers, self.shapes = nn.ModuleList(layers), shapes

    def forward(self, x):
        pieces = x.split([shape.numel() for shape in self.shapes], 1)
        inputs = [piece.unflatten(1, shape) for piece, shape in zip(pieces, self.shapes, strict=True)]
        return torch.cat([layer(x).flatten(1) for layer, x in zip(self.layers, inputs, strict=True)], 1)


@pytest.mark.parametrize("form", exporter.FORMS)
def test_layers(tmp_path, form):
    make = {"onnx": exporter.QuantizedLayer, "tensorrt": exporter.CentredLayer}[form]
    groups = {"groups": ((12, 2, 3, 3), (2, 8, 7, 7), {"padding": (1, 0), "groups": 4})}
    layers, given = [], []
    for index, (shape, input_shape, geometry) in enumerate((CASES | groups).values()):
        bits, input_bits = 2 + index % 7, (8, 5, 16)[index % 3]
        zero = (0, 2**input_bits // 3, 2**input_bits - 1)[index % 4 % 3]
        layers.append(random_layer(shape, geometry, zero, bits, input_bits))
        x, _ = grid_inputs(layers[-1], (2, *input_shape[1:]))
        given.append(x * 1.4 if index % 2 else x)  # beyond the grid's ends and between its points, or on it
    names = {f"layers.{index}.weight" for index, layer in enumerate(layers) if layer.bits <= 4}
    flat = torch.cat([x.flatten(1) for x in given], 1)
    network = Layers([make(layer) for layer in layers], [x.shape[1:] for x in given])
    model = exporter.export(network, {"x": flat}, names)
    onnx_ir.save(model, tmp_path / "layers.onnx")
    written = onnx.load(tmp_path / "layers.onnx")
    onnx.checker.check_model(written, full_check=True)
    four_bit = {tensor.name for tensor in written.graph.initializer if tensor.data_type == onnx.TensorProto.INT4}
    assert four_bit == names
    zeros = {node.input[2] for node in written.graph.node if node.op_type == "QuantizeLinear"}
    found = [onnx.numpy_helper.to_array(each) for each in written.graph.initializer if each.name in zeros]
    if form == "tensorrt":
        assert found and all(zero.dtype == np.int8 and not zero.any() for zero in found)
    else:
        assert any(zero.any() for zero in found)
    session = exporter.runtime_session(tmp_path / "layers.onnx", 1)
    y = torch.from_numpy(session.run(None, {"x": flat.numpy()})[0])
    z = openvino_output(tmp_path / "layers.onnx", (flat,))
    expected = [reference.IntegerReference(layer)(x).flatten(1) for layer, x in zip(layers, given, strict=True)]
    sizes = [each.shape[1] for each in expected]
    for index, wanted in enumerate(expected):
        errors = [relative_error(runtime.split(sizes, 1)[index], wanted) for runtime in (y, z)]
        assert max(errors) <= 1e-5, (index, layers[index].input_bits, errors)


def compare(quantized, engine, *given):
    """Relative errors of both runtimes, of every image, against the reference."""
    with torch.no_grad():
        expected = reference.load(quantized)(*given)
    found = (engines.load(engine, 2, threads=1)(*given), openvino_output(engine / exporter.FILES[0], given))
    return [sorted(relative_error(*pair) for pair in zip(y, expected, strict=True)) for y in found]


def one_level():
    """One transformer block with a context, at one resolution."""
    kinds = {"down_block_types": ["CrossAttnDownBlock2D"], "mid_block_type": None, "up_block_types": ["UpBlock2D"]}
    torch.manual_seed(0)
    changed = dict(tiny.conditional_unet().config) | kinds | {"block_out_channels": [8]}
    return UNet2DConditionModel.from_config(changed).eval().requires_grad_(False)


# form, network, bits of its weights and of its inputs, scales of the operands of its attentions
TINY = {
    "onnx": ("onnx", small_unet, 4, 8, None),
    "tensorrt": ("tensorrt", one_level, 8, 8, SCALES),
}


@pytest.mark.parametrize("case", TINY)
def test_tiny_networks(tmp_path, case):
    form, make, bits, input_bits, scales = TINY[case]
    model = make()
    tiny.save(tmp_path / "quantized", model, bits, input_bits, scales)
    words = ("--quantized", str(tmp_path / "quantized"), "--format", form, "--out", str(tmp_path / "out"))
    assert call("export", *words) == 0
    for errors in compare(tmp_path / "quantized", tmp_path / "out", *network_inputs(model, 16)):
        # more in the images where round-off crosses a rounding tie: on every processor in others
        assert median(errors) < 1e-5 and errors[-1] < 0.15
    content = b"".join((tmp_path / "out" / name).read_bytes() for name in exporter.FILES)
    assert str(ROOT).encode() not in content and b"site-packages" not in content


EMBEDDED = {
    "fashion-ddim": ("onnx", Recipe(weights=4, activations=8, ranges="minmax", eight_bit_full_resolution=0.05)),
    "fashion-ldm": ("tensorrt", Recipe(weights=8, activations=8, ranges="minmax", attention=8)),
}


@pytest.mark.slow
@pytest.mark.parametrize("system", EMBEDDED)
def test_embedded_systems(tmp_path, system):
    """Each quantized to min-max ranges on noise: images of both runtimes are the reference's but for round-off."""
    form, recipe = EMBEDDED[system]
    loaded, unet = load(ROOT / "assets" / system), load_unet(ROOT / "assets" / system)
    x, t = tiny.inputs(4, size=loaded.shape[1], channels=loaded.shape[0])
    context = loaded.contexts(range(4), guidance=1)
    data = {"x": x, "t": t} | ({"context": context[0]} if context else {})
    config = checkpoint.unet_config(unet)
    reconstruction.quantize(unet, data, recipe, tmp_path, "mark")
    scales = reconstruction.attention_scales(unet)
    checkpoint.save(tmp_path / "quantized", config, *reconstruction.integer_layers(unet), {}, scales)
    exporter.deploy(tmp_path / "quantized", tmp_path / "engine", form)
    for errors in compare(tmp_path / "quantized", tmp_path / "engine", x, t, *context):
        # integers moved by round-off change an image by a few per cent, here as on any engine: see verification.json
        assert errors[-1] < 0.05, errors
    sizes = [(tmp_path / "engine" / name).stat().st_size for name in exporter.FILES]
    assert sizes[1] < 1.05 * (tmp_path / "quantized" / "model.safetensors").stat().st_size  # weights stay packed


def test_bad_folders_are_refused(tmp_path):
    tiny.save(tmp_path / "quantized", small_unet())
    with pytest.raises(InputError, match="form 'tflite' is not one of onnx, tensorrt"):
        exporter.deploy(tmp_path / "quantized", tmp_path / "out", "tflite")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "engine.json").write_text('{"device": "onnx", "format_version": 0}')
    with pytest.raises(InputError, match="not an onnx engine of format"):
        engines.load(tmp_path / "out", 1)
    (tmp_path / "out" / "engine.json").write_text('{"device": "onnx", "format_version": 1}')
    with pytest.raises(InputError, match="ONNX Runtime refuses it") as error:
        engines.load(tmp_path / "out", 1)
    assert "\n" not in str(error.value)
    for body, batch in (("bf16", 1), ("f32", 0)):
        with pytest.raises(InputError, match=body if body != "f32" else "batch 0"):
            exporter.load(tmp_path / "out", batch, body)


def test_without_its_packages_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(exporter, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'edadm\[export\]'"):
        exporter.deploy(tmp_path, tmp_path / "out")


def test_an_integer_layer_without_bias_gets_one_when_its_input_is_moved():
    layer = IntegerLayer(8, torch.ones(1, 2, dtype=torch.int8), torch.ones(1), None, 0.5, 3)
    assert exporter.CentredLayer(layer).moved_bias.item() == 2 * 0.5 * (128 - 3)

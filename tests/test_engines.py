"""The engines: the reference against literal integers, the CPU engine against the reference."""

import tiny  # noqa: I001  (first: it imports edadm)

import dataclasses
import json
import math
import shutil
import types

import numpy as np
import openvino as ov
import pytest
import torch
from graphs import counted, in_int8
from openvino import opset13 as op
from torch import nn
from torch.nn import functional as F

from edadm import engines
from edadm.engines.graph import build_graph, executed, layer_nodes, normalize_by_channels
from edadm.engines.verify import relative_error
from edadm.engines import verify, cpu, processor, reference
from edadm.errors import InputError
from edadm.evaluation import latency
from edadm.params import EngineParams, LatencyParams
from edadm.quantization import checkpoint, network
from edadm.quantization.integer_layer import IntegerLayer
from edadm.quantization.quantizer import weight_grid

CASES = {  # weight shape, input shape, geometry
    "3x3": ((16, 8, 3, 3), (2, 8, 9, 9), {"padding": (1, 1)}),
    "one input channel": ((16, 1, 3, 3), (2, 1, 9, 9), {"padding": (1, 1)}),
    "one output channel": ((1, 16, 3, 3), (2, 16, 9, 9), {"padding": (1, 1)}),
    "odd channels": ((7, 5, 3, 3), (1, 5, 9, 9), {"padding": (1, 1)}),
    "stride 2": ((16, 8, 3, 3), (2, 8, 9, 9), {"stride": (2, 2)}),
    "stride 2, padded": ((16, 8, 3, 3), (2, 8, 8, 8), {"stride": (2, 2), "padding": (1, 1)}),
    "dilated": ((8, 8, 3, 3), (1, 8, 9, 9), {"padding": (2, 2), "dilation": (2, 2)}),
    "groups": ((12, 2, 3, 3), (2, 8, 7, 7), {"padding": (1, 0), "groups": 4}),
    "1x1": ((16, 24, 1, 1), (2, 24, 4, 4), {}),
    "1x1, 3 channels": ((16, 3, 1, 1), (2, 3, 4, 4), {}),
    "linear": ((24, 16), (5, 16), {}),
    "linear, one row": ((24, 16), (1, 16), {}),
    "linear, three axes": ((16, 16), (2, 9, 16), {}),
    "linear, odd": ((33, 17), (3, 17), {}),
    "linear, one output": ((1, 17), (1, 17), {}),
}
# sums that float32 does not hold; with inputs of 16 bits they could leave int32
WIDE = {"linear, wide": ((8, 5120), (3, 5120), {})}


def random_layer(shape, geometry, zero=97, bits=8, input_bits=8, extreme=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    least, greatest = weight_grid(bits)
    weight = torch.randint(least, greatest + 1, shape, generator=generator, dtype=torch.int8)
    if extreme:
        weight = torch.where(weight < 0, least, greatest).to(torch.int8)
        weight[0] = greatest
    scale = torch.rand(shape[0], generator=generator) * 0.02 + 0.001
    bias = torch.randn(shape[0], generator=generator)
    step = torch.tensor(0.0137).item()
    return IntegerLayer(bits, weight, scale, bias, step, zero, input_bits, **geometry)


def grid_inputs(layer, shape, extreme=False, seed=1):
    """Inputs exactly on the layer's grid: their integers are certain on any engine."""
    greatest = 2**layer.input_bits - 1
    integers = torch.randint(0, greatest + 1, shape, generator=torch.Generator().manual_seed(seed))
    if extreme:
        integers[:] = greatest
        integers[..., ::3] = 0
    return (integers - layer.input_zero_point).float() * layer.input_scale, integers


def compiled_layer(layer, shape, name="layer"):
    x = op.parameter(list(shape), np.float32)
    graph = ov.Model([layer_nodes(x.output(0), name, layer)], [x])
    return cpu.compile_graph(ov.Core(), graph, "f32", threads=1)


def literal_sums(q, layer):
    """Sums of products by loops over the kernel in int64."""
    q, weight = q.numpy().astype(np.int64), layer.weight.numpy().astype(np.int64)
    if not layer.is_convolution:
        return np.einsum("...i,oi->...o", q - layer.input_zero_point, weight)
    padded = np.pad(q, [(0, 0), (0, 0), *((p, p) for p in layer.padding)], constant_values=layer.input_zero_point)
    padded -= layer.input_zero_point
    kernel, stride, dilation = weight.shape[2:], layer.stride, layer.dilation
    size = [(padded.shape[2 + i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)]
    groups, inputs, outputs = layer.groups, weight.shape[1], len(weight) // layer.groups
    sums = np.zeros((len(q), len(weight), *size), np.int64)
    for y in range(kernel[0]):
        for x in range(kernel[1]):
            rows = slice(y * dilation[0], y * dilation[0] + stride[0] * size[0], stride[0])
            columns = slice(x * dilation[1], x * dilation[1] + stride[1] * size[1], stride[1])
            for g in range(groups):
                piece = padded[:, g * inputs : (g + 1) * inputs, rows, columns]
                of_group = slice(g * outputs, (g + 1) * outputs)
                sums[:, of_group] += np.einsum("nihw,oi->nohw", piece, weight[of_group, :, y, x])
    return sums


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("zero", [0, 97, 255])
@pytest.mark.parametrize("case", CASES | WIDE)
def test_reference_is_literal_integer_arithmetic(case, zero, extreme):
    shape, input_shape, geometry = (CASES | WIDE)[case]
    layer = random_layer(shape, geometry, zero, extreme=extreme)
    x, integers = grid_inputs(layer, input_shape, extreme)
    assert torch.equal(reference.quantize(x, layer), integers.int())
    sums = reference.accumulate(integers, layer).numpy()
    assert np.array_equal(sums, literal_sums(integers, layer))
    axes = (1, -1, 1, 1) if layer.is_convolution else (-1,)
    scale = (layer.weight_scale.numpy() * np.float32(layer.input_scale)).reshape(axes)
    expected = sums.astype(np.float32) * scale + layer.bias.numpy().reshape(axes)
    assert np.array_equal(reference.IntegerReference(layer)(x).numpy(), expected)


def test_reference_rounds_half_to_even_and_clamps():
    layer = IntegerLayer(8, torch.ones(1, 1, dtype=torch.int8), torch.ones(1), None, 0.5, 3)
    x = torch.tensor([[-100.0], [-0.75], [-0.25], [0.25], [0.75], [1.25], [200.0]])
    assert reference.quantize(x, layer).flatten().tolist() == [0, 1, 3, 3, 5, 5, 255]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bits", [4, 8])
def test_reference_agrees_with_fake_quantization(case, bits):
    shape, input_shape, geometry = CASES[case]
    layer = random_layer(shape, geometry, bits=bits)
    x = torch.randn(input_shape, generator=torch.Generator().manual_seed(2))
    x = torch.fake_quantize_per_tensor_affine(x, layer.input_scale, layer.input_zero_point, 0, 255)
    weight = layer.weight * layer.weight_scale.reshape(-1, *[1] * (len(shape) - 1))
    if layer.is_convolution:
        expected = F.conv2d(x, weight, layer.bias, *layer.geometry)
    else:
        expected = F.linear(x, weight, layer.bias)
    assert relative_error(reference.IntegerReference(layer)(x), expected) < 1e-6


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("zero", [0, 97, 255])
@pytest.mark.parametrize("case", CASES | WIDE)
def test_cpu_layer_is_exact_and_runs_in_int8(case, zero, extreme):
    shape, input_shape, geometry = (CASES | WIDE)[case]
    layer = random_layer(shape, geometry, zero, extreme=extreme)
    x, _ = grid_inputs(layer, input_shape, extreme)
    compiled = compiled_layer(layer, input_shape)
    assert in_int8(compiled, names={"layer"}, count=1)
    found = torch.from_numpy(compiled([x.numpy()])[0])
    assert relative_error(found, reference.IntegerReference(layer)(x)) <= 1e-6


def test_a_layer_whose_sums_could_leave_32_bits_is_refused():
    ((shape, _, geometry),) = WIDE.values()
    with pytest.raises(InputError, match="the sum of a channel can leave 32 bits"):
        random_layer(shape, geometry, input_bits=16, extreme=True)
    layer = random_layer(shape, geometry, extreme=True)
    one = torch.zeros_like(layer.weight)
    one[0, 0] = 127
    dataclasses.replace(layer, weight=one, input_bits=16)  # it is the weights that count, not their number


@pytest.mark.parametrize(
    ("make", "size"),
    [
        *((tiny.unet, size) for size in (16, 24, 22)),
        *((tiny.conditional_unet, size) for size in (24, 21)),
        (tiny.autoencoder, 21),
    ],
)
def test_a_network_traced_on_a_smaller_image_is_the_same(tmp_path, monkeypatch, make, size):
    """Of sides that halve evenly at each level, and that do not."""
    model = make()
    checkpoint.save(tmp_path / "fp32", checkpoint.unet_config(model), {}, model.state_dict(), {})
    loaded = checkpoint.load(tmp_path / "fp32")
    shapes = {"x": [-1, 4]} if make is tiny.autoencoder else network.shapes(loaded.config)
    shapes["x"] = [*shapes["x"][:2], size, size]
    files = []
    for side in (engines.graph._traced, lambda side, levels: side):
        monkeypatch.setattr(engines.graph, "_traced", side)
        ov.save_model(build_graph(loaded, shapes), tmp_path / "model.xml", compress_to_fp16=False)
        files.append([(tmp_path / f"model.{end}").read_bytes() for end in ("xml", "bin")])
    assert files[0] == files[1]


def test_the_image_that_a_network_is_traced_with_is_small_and_as_odd():
    found = {side: engines.graph._traced(side, 3) for side in (4, 8, 13, 32, 64, 44, 45)}
    assert found == {4: 4, 8: 8, 13: 13, 32: 8, 64: 8, 44: 12, 45: 13}


def test_no_linear_layer_has_a_zero_point_of_128():
    """On ARM, OpenVINO takes its inputs for signed ones, and multiplies them wrongly."""
    x = op.parameter([3, 16], np.float32)
    graph = ov.Model([layer_nodes(x.output(0), "layer", random_layer((24, 16), {}, zero=128))], [x])
    (quantization,) = (node for node in graph.get_ordered_ops() if node.get_type_name() == "FakeQuantize")
    assert [quantization.input_value(port).get_node().data.item() for port in (3, 4)] == [0, 255]
    (zero,) = (node for node in graph.get_ordered_ops() if node.get_type_name() == "Subtract")
    assert zero.input_value(1).get_node().data.item() == 127


@pytest.mark.parametrize("zero", [97, 128, 255])
@pytest.mark.parametrize("inputs", [128, 512])
def test_a_zero_point_that_is_most_of_the_sums_cancels(inputs, zero):
    """Weights of one sign and inputs near zero, as behind a gated feed-forward."""
    layer = random_layer((24, inputs), {}, zero, seed=1)
    layer = dataclasses.replace(layer, weight=layer.weight.int().abs().clamp(max=127).to(torch.int8))
    integers = (zero + torch.randint(-3, 4, (5, inputs), generator=torch.Generator().manual_seed(0))).clamp(0, 255)
    x = (integers - zero).float() * layer.input_scale
    compiled = compiled_layer(layer, tuple(x.shape))
    assert in_int8(compiled, names={"layer"}, count=1)
    found = torch.from_numpy(compiled([x.numpy()])[0])
    assert relative_error(found, reference.IntegerReference(layer)(x)) <= 1e-6


@pytest.mark.parametrize("input_bits", [*range(2, 9), 16])
@pytest.mark.parametrize("bits", range(2, 9))
def test_cpu_layer_of_any_width(bits, input_bits):
    for case in ("3x3", "linear"):
        shape, input_shape, geometry = CASES[case]
        layer = random_layer(shape, geometry, 2**input_bits // 3, bits, input_bits)
        x, _ = grid_inputs(layer, input_shape)
        x = x * 1.5  # beyond both ends of the grid
        x = (reference.quantize(x, layer) - layer.input_zero_point).float() * layer.input_scale + (x * 1e3).trunc()
        compiled = compiled_layer(layer, input_shape)
        count = len(executed({"layer": layer}))
        assert count == (2 if input_bits == 16 else 1)
        assert in_int8(compiled, count=count)
        found = torch.from_numpy(compiled([x.numpy()])[0])
        assert relative_error(found, reference.IntegerReference(layer)(x)) <= 1e-6


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoint and engine folders of the tiny network: w4a8, w8a8 and full precision."""
    root = tmp_path_factory.mktemp("engines")
    for name, make in {
        "w4a8": lambda path: tiny.save(path, bits=4),
        "w8a8": lambda path: tiny.save(path, bits=8),
        "fp32": tiny.save_float,
    }.items():
        cpu.deploy(make(root / name), root / f"{name}-cpu")
    return root


@pytest.mark.parametrize("variant", ["w4a8", "w8a8"])
def test_every_layer_of_the_network_is_exact(folders, variant):
    loaded = checkpoint.load(folders / variant)
    with torch.no_grad():
        inputs = verify.layer_inputs(loaded, *tiny.inputs(2))
    assert inputs.keys() == loaded.layers.keys()
    errors = verify.layer_errors(loaded.layers, inputs)
    assert errors.keys() == inputs.keys() and max(errors.values()) <= 1e-6, errors


@pytest.mark.parametrize(("scale", "zero"), [(0.037, 128), (0.0113, 77), (0.25, 200), (0.0031, 40)])
def test_a_zero_point_added_first_is_how_openvino_rounds(scale, zero):
    """Values a hundred-thousandth of a step from a tie: on which side float32 sees them, against float64."""
    scale = float(np.float32(scale))
    generator = np.random.default_rng(0)
    steps = generator.integers(-30, 30, 20000) + 0.5 + generator.uniform(-1e-5, 1e-5, 20000)
    x = (steps * scale).astype(np.float32)
    wanted = np.clip(np.round(x.astype(np.float64) / scale) + zero, 0, 255)
    port = op.parameter(x.shape, np.float32)
    ends = (np.float32(value) for value in (-zero * scale, (255 - zero) * scale, 0, 255))
    graph = ov.Model([op.fake_quantize(port, *ends, 256)], [port])
    found = {"openvino": cpu.compile_graph(ov.Core(), graph, "f32", threads=1)([x])[0]}
    layer = IntegerLayer(8, torch.ones(1, 1, dtype=torch.int8), torch.ones(1), None, scale, zero)
    for name, first in (("first", True), ("last", False)):
        rounded = verify.Simulation(layer, zero_first=first)(torch.from_numpy(x)[:, None])[:, 0]
        found[name] = (rounded / scale).round().numpy() + zero
    wrong = {name: (integers != wanted).mean() for name, integers in found.items()}
    assert all(np.abs(integers - wanted).max() <= 1 for integers in found.values())
    assert wrong["last"] < 0.05 and 0.5 < wrong["first"] / wrong["openvino"] < 2 and wrong["openvino"] > 0.1, wrong


@pytest.mark.parametrize("variant", ["w4a8", "w8a8"])
def test_network_is_int8_and_within_the_round_off_floor(folders, variant):
    layers = len(checkpoint.load(folders / variant).layers)
    # conv_in, whose input has 16 bits, is two; the convolution of 4 bits after the upsampling is four
    nodes = layers + 1 + (3 if variant == "w4a8" else 0)
    found = verify.verify(folders / variant, folders / f"{variant}-cpu", *tiny.inputs(128), threads=1)
    with pytest.raises(InputError, match="not made of"):
        verify.verify(folders / variant, folders / "fp32-cpu", *tiny.inputs(1), threads=1)
    assert found["layers"] == layers
    assert counted(found["layers_in_int8"], found["layers_in_graph"], nodes)
    assert found["worst_layer_error"] <= 1e-6
    # one integer that round-off moves by one changes an image by a few percent: the simulation shows how often
    assert 0 < found["floor"] < 0.02
    assert found["engine_to_reference"] <= found["floor"]


def test_most_images_agree_to_the_last_digits(folders):
    x, t = tiny.inputs(128)
    with torch.no_grad():
        expected = reference.load(folders / "w4a8")(x, t)
    difference = (cpu.load(folders / "w4a8-cpu", 32, threads=1)(x, t) - expected).flatten(1).norm(dim=1)
    assert (difference < 1e-5 * expected.flatten(1).norm(dim=1)).float().mean() > 0.75


def test_images_do_not_depend_on_their_neighbours(folders):
    x, t = tiny.inputs(11)
    engine = cpu.load(folders / "w4a8-cpu", 4, threads=1)
    outputs = engine(x, t)
    assert torch.equal(engine(x.flip(0), t.flip(0)).flip(0), outputs)
    assert torch.equal(engine(x[:1], t[:1]), outputs[:1])


def test_bf16_body_keeps_integer_layers(folders):
    x, t = tiny.inputs(4)
    engine = cpu.load(folders / "w8a8-cpu", 4, body="bf16", threads=1)
    assert in_int8(*engine.compiled, names={"conv_in"})
    with torch.no_grad():
        assert relative_error(engine(x, t), reference.load(folders / "w8a8")(x, t)) < 0.2


def test_what_was_compiled_is_kept(folders, tmp_path):
    x, t = tiny.inputs(4)
    expected = cpu.load(folders / "w4a8-cpu", 4, threads=1)(x, t)
    kept = set()
    for _ in range(2):
        engine = engines.load(folders / "w4a8-cpu", 4, threads=1, cache_dir=tmp_path)
        assert torch.equal(engine(x, t), expected)
        kept.add(tuple(sorted((file.name, file.stat().st_mtime_ns) for file in tmp_path.glob("*.blob"))))
    assert len(kept) == 1 and kept != {()}  # nothing was compiled the second time


def test_full_precision_engine(folders):
    x, t = tiny.inputs(5)
    engine = engines.load(folders / "fp32-cpu", 2, threads=1)
    assert cpu.int8_layers(*engine.compiled)[0] == 0
    with torch.no_grad():
        assert relative_error(engine(x, t), tiny.unet()(x, t).sample) < 1e-5


def test_engine_folder(folders, tmp_path):
    cpu.deploy(folders / "w4a8", tmp_path / "again")
    for name in ("model.xml", "model.bin", "engine.json", "size.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folders / "w4a8-cpu" / name).read_bytes(), name
    description = json.loads((tmp_path / "again" / "engine.json").read_text())
    assert description["quantized_sha256"] == checkpoint.fingerprint(folders / "w4a8")
    assert description["inputs"] == {"x": [-1, 1, 8, 8], "t": [-1]} and description["output"] == [-1, 1, 8, 8]
    size = json.loads((tmp_path / "again" / "size.json").read_text())
    files = [tmp_path / "again" / name for name in ("model.xml", "model.bin")]
    assert size == checkpoint.sizes(folders / "w4a8") | {"engine_bytes": sum(path.stat().st_size for path in files)}
    # weights are packed in the engine's file too: it holds little more than the checkpoint's numbers
    assert files[1].stat().st_size < 1.1 * size["payload_bytes"]


def test_float_fallback_is_an_error(folders, monkeypatch, caplog):
    monkeypatch.setattr(cpu, "unpack_weights", lambda graph: None)  # 4-bit constants run in float
    monkeypatch.setattr(cpu, "is_x86", lambda: True)
    with pytest.raises(InputError, match=r"\d+ of 56 layers would not run in int8"):
        cpu.load(folders / "w4a8-cpu", 1, threads=1)
    monkeypatch.setattr(cpu, "is_x86", lambda: False)  # nothing is left to choose there: said, and done
    cpu.load(folders / "w4a8-cpu", 1, threads=1)
    assert "of 56 layers would not run in int8" in caplog.text


@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
@pytest.mark.parametrize(
    ("flags", "limits"),
    [
        ("avx2 avx512_vnni avx512_bf16", {"": True, "all": True, "avx512_core_vnni": True, "avx512_core": False}),
        ("avx2 avx512_vnni", {"avx2_vnni": False, "AVX2": False}),
        ("avx2 avx_vnni", {"": True, "avx2_vnni": True, "avx2": False, "avx512_core_bf16": False}),
        ("avx2 avx512f", {"": False, "avx512_core_amx": False}),
        (None, {"": False}),
    ],
)
def test_instruction_sets_are_found_and_can_be_forbidden(monkeypatch, tmp_path, variable, flags, limits):
    path = tmp_path / "cpuinfo"
    if flags:
        path.write_text(f"flags\t\t: fpu {flags}\n")
    monkeypatch.setattr(processor, "Path", lambda _: path)
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    for limit, expected in limits.items():
        monkeypatch.setenv(variable, limit)
        monkeypatch.setattr(processor.platform, "machine", lambda: "x86_64")
        assert processor.has_int8_dot() == expected, limit
        monkeypatch.setattr(processor.platform, "machine", lambda: "aarch64")
        assert processor.has_int8_dot()


def test_bad_engine_folders_are_refused(folders, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        engines.load(tmp_path, 1)
    (tmp_path / "engine.json").write_text('{"device": "abacus"}')
    with pytest.raises(InputError, match="abacus"):
        engines.load(tmp_path, 1)
    (tmp_path / "engine.json").write_text((folders / "w8a8-cpu" / "engine.json").read_text())
    with pytest.raises(InputError, match="cannot read the graph") as error:
        engines.load(tmp_path, 1)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="body"):
        engines.load(folders / "w8a8-cpu", 1, body="f16")
    with pytest.raises(InputError, match="at least 1"):
        engines.load(folders / "w8a8-cpu", 0)


def test_networks_with_other_inputs_are_refused(folders):
    loaded = checkpoint.load(folders / "fp32")
    for change in ({"class_embed_type": "identity"}, {"_class_name": "UNet3DConditionModel"}):
        with pytest.raises(InputError, match=next(iter(change.values()))):
            build_graph(dataclasses.replace(loaded, config=loaded.config | change))


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    """Checkpoint and engine folders of the tiny network with cross-attention: w4a8 and full precision."""
    root = tmp_path_factory.mktemp("conditional")
    model = tiny.conditional_unet()
    cpu.deploy(tiny.save(root / "w4a8", model), root / "w4a8-cpu")
    checkpoint.save(root / "fp32", checkpoint.unet_config(model), {}, model.state_dict(), {})
    cpu.deploy(root / "fp32", root / "fp32-cpu")
    return root


@pytest.mark.parametrize("tokens", [1, 5])
def test_a_conditional_network_reads_its_context(conditional, tokens):
    x, t = tiny.inputs(6, channels=4)
    context = tiny.context(6, tokens)
    engine = cpu.load(conditional / "fp32-cpu", 4, threads=1)
    with torch.no_grad():
        expected = tiny.conditional_unet()(x, t, encoder_hidden_states=context).sample
    found = engine(x, t, context)
    assert relative_error(found, expected) < 1e-5
    assert relative_error(engine(x, t, context.flip(0)), expected) > 1e-3
    both = engine(torch.cat([x, x]), torch.cat([t, t]), torch.cat([context.flip(0), context]))
    assert torch.equal(both[6:], found)  # the doubled batch of guidance is batches in turn


def test_every_layer_of_a_conditional_network_is_exact(conditional):
    loaded = checkpoint.load(conditional / "w4a8")
    kinds = {name.split(".")[-1] for name in loaded.layers}
    assert {"to_q", "to_k", "to_v", "proj_in", "proj_out", "proj"} <= kinds  # proj is GEGLU's
    inputs = (*tiny.inputs(4, channels=4), tiny.context(4, 3))
    result = verify.verify(conditional / "w4a8", conditional / "w4a8-cpu", *inputs, threads=1)
    gated = [name for name in loaded.layers if name.endswith("net.0.proj")]
    # the convolution after the upsampling is four, the linear of each gated feed-forward two
    nodes = len(executed(loaded.layers)) + 3 + len(gated)
    assert result["layers"] == len(loaded.layers)
    assert counted(result["layers_in_int8"], result["layers_in_graph"], nodes)
    assert result["worst_layer_error"] <= 1e-6
    assert result["engine_to_reference"] <= max(2 * result["floor"], 0.05)


def test_rounds_are_interleaved():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = latency.interleaved(calls, 3)
    assert "".join(order) == "ab" + 3 * "aabb"
    assert all(len(times) == 3 and all(math.isfinite(time) for time in times) for times in seconds.values())
    with pytest.raises(InputError, match="rounds"):
        latency.interleaved(calls, 0)


def test_latency_rows(folders, monkeypatch, tmp_path):
    monkeypatch.setattr(latency, "load_unet", lambda folder: tiny.unet())
    monkeypatch.setattr(
        latency, "load", lambda folder: types.SimpleNamespace(shape=(1, 8, 8), contexts=lambda seeds, guidance: ())
    )
    engine_dirs = {name: folders / f"{name}-cpu" for name in ("fp32", "w8a8", "w4a8")}
    settings, engine = LatencyParams(rounds=2, batches=[1, 3]), EngineParams(body="f32", threads=1)
    result = latency.measure("tiny", folders, engine_dirs, settings, engine)
    names = ["pytorch-fp32-eager", "openvino-fp32", "openvino-bf16", "edadm-w8a8", "edadm-w4a8"]
    assert [(row["configuration"], row["batch"]) for row in result["rows"]] == [(n, b) for b in (1, 3) for n in names]
    for row in result["rows"]:
        assert row["system"] == "tiny" and row["threads"] == 1 and row["rounds"] == 2
        assert 0 < row["min_ms"] <= row["median_ms"]
    assert result["threads"] == 1 and isinstance(result["device"], str)
    with pytest.raises(InputError, match="fp32"):
        latency.measure("tiny", folders, {"w8a8": folders / "w8a8-cpu"}, settings, engine)
    damaged = shutil.copytree(folders / "fp32-cpu", tmp_path / "fp32-cpu")
    (damaged / "model.xml").write_text("no graph")
    with pytest.raises(InputError, match="fp32-cpu: OpenVINO cannot read the graph"):
        latency.measure("tiny", folders, {"fp32": damaged}, settings, engine)


def test_split_layer_is_exact_on_the_cpu():
    parts = tiny.split(nn.Conv2d(12, 8, 1), 5)
    module = checkpoint.SplitConv([reference.IntegerReference(part) for part in parts], [5, 7])
    x = torch.randn(2, 12, 4, 4, generator=torch.Generator().manual_seed(3)) * 2
    found = 0
    for part, piece in zip(parts, x.split([5, 7], 1), strict=True):
        found = found + torch.from_numpy(compiled_layer(part, piece.shape)([piece.numpy()])[0])
    assert relative_error(found, module(x)) <= 1e-6


@pytest.mark.parametrize("shape, groups", [((2, 16, 8, 8), 8), ((3, 12, 5, 7), 3), ((1, 8, 4, 4), 8), ((2, 6, 9), 2)])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_group_normalization_by_channels(shape, groups, mean):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator) + mean
    weight, bias = torch.randn(2, shape[1], generator=generator)
    port = op.parameter([-1, *shape[1:]], np.float32)
    normalized = op.group_normalization(port, weight.numpy(), bias.numpy(), groups, 1e-5)
    model = ov.Model([normalized], [port])
    normalize_by_channels(model)
    compiled = cpu.compile_graph(ov.Core(), model, "f32", threads=1)
    assert "MVN" not in {node.get_rt_info()["layerType"].astype(str) for node in compiled.get_runtime_model().get_ops()}
    found = torch.from_numpy(compiled([x.numpy()])[0])
    exact = F.group_norm(x.double(), groups, weight.double(), bias.double())
    assert relative_error(found, exact) < 3e-7 * (1 + mean)  # float32 has no more digits of x - mean

"""The quantized checkpoint: what is saved comes back to the bit, and nothing that is wrong is taken."""

import tiny  # noqa: I001  (first: it imports edadm)

import json
import math
import struct

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import nn

from edadm.errors import InputError
from edadm.quantization import checkpoint
from edadm.quantization.integer_layer import IntegerLayer, pack, unpack


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("checkpoint") / "quantized")


@pytest.fixture
def broken(folder, tmp_path):
    """Its argument changes tensors or the configuration in place; returns the folder with that change."""

    def change(edit):
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        config = json.loads((folder / "config.json").read_text())
        edit(tensors, config)
        safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return change


@given(arrays(np.int8, array_shapes(max_dims=4, max_side=7), elements=st.integers(-8, 7)))
def test_packing_round_trip(weight):
    packed = pack(torch.from_numpy(weight))
    assert packed.dtype == torch.uint8 and packed.shape == ((weight.size + 1) // 2,)
    assert np.array_equal(unpack(packed, weight.shape).numpy(), weight)


def test_packing_order():
    assert pack(torch.tensor([[1, -1, -8]], dtype=torch.int8)).tolist() == [0xF1, 0x08]


@given(st.floats(min_value=2.0**-126, max_value=2.0**100, width=32))
@settings(max_examples=300)
def test_float32_scales_survive_json(scale):
    assert np.float32(json.loads(json.dumps(scale))).tobytes() == np.float32(scale).tobytes()


@pytest.mark.parametrize("bits", range(2, 9))
def test_save_and_load_are_exact(tmp_path, bits):
    model, layers, floats = tiny.quantized(bits=bits)
    recipe = {"weights": bits, "ranges": "mse"}
    checkpoint.save(tmp_path, checkpoint.unet_config(model), layers, floats, recipe)
    loaded = checkpoint.load(tmp_path)
    assert loaded.recipe == recipe
    assert loaded.config == checkpoint.unet_config(model)
    assert list(loaded.layers) == list(layers)
    for name, layer in layers.items():
        for field in layer.__dataclass_fields__:
            expected, found = getattr(layer, field), getattr(loaded.layers[name], field)
            if isinstance(expected, torch.Tensor):
                assert torch.equal(expected, found) and expected.dtype == found.dtype, (name, field)
            else:
                assert expected == found and type(expected) is type(found), (name, field)
    assert loaded.floats.keys() == floats.keys()
    assert all(torch.equal(tensor, loaded.floats[name]) for name, tensor in floats.items())


def test_saving_is_deterministic(folder, tmp_path):
    tiny.save(tmp_path)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert checkpoint.fingerprint(tmp_path) == checkpoint.fingerprint(folder)


def test_full_precision_round_trip(tmp_path):
    loaded = checkpoint.load(tiny.save_float(tmp_path))
    assert loaded.layers == {} and "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    unet = checkpoint.build_unet(loaded, lambda layer: pytest.fail("a full-precision folder has no layers"))
    x, t = tiny.inputs(2)
    with torch.no_grad():
        assert torch.equal(unet(x, t).sample, tiny.unet()(x, t).sample)


def test_build_places_layers_and_split_layers(folder):
    loaded = checkpoint.load(folder)
    seen = []

    def make(layer):
        seen.append(layer)
        return nn.Identity()

    unet = checkpoint.build_unet(loaded, make)
    assert {id(layer) for layer in seen} == {id(layer) for layer in loaded.layers.values()}
    assert isinstance(unet.conv_in, nn.Identity)
    split = unet.up_blocks[0].resnets[0].conv_shortcut
    assert isinstance(split, checkpoint.SplitConv)
    x = torch.arange(2.0 * 32).reshape(1, 32, 1, 2)
    assert torch.equal(split(x, "an argument of diffusers"), x[:, :16] + x[:, 16:])
    assert not unet.training and not any(parameter.requires_grad for parameter in unet.parameters())


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_sizes(tmp_path, bits):
    tiny.save(tmp_path, bits=bits)
    sizes = checkpoint.sizes(tmp_path)
    model, layers, floats = tiny.quantized(bits=bits)
    arithmetic = 4 * sum(tensor.numel() for tensor in floats.values())
    for layer in layers.values():
        arithmetic += math.ceil(layer.bits * layer.weight.numel() / 8) + 4 * len(layer.weight)
        arithmetic += 0 if layer.bias is None else 4 * len(layer.bias)
    content = (tmp_path / "model.safetensors").read_bytes()
    assert sizes["arithmetic_bytes"] == arithmetic
    assert sizes["quantized_file_bytes"] == len(content) == sizes["payload_bytes"] + sizes["header_bytes"]
    assert sizes["header_bytes"] == 8 + struct.unpack("<Q", content[:8])[0]
    assert (sizes["payload_bytes"] == arithmetic) == (bits in (4, 8))
    assert sizes["fp32_bytes"] == 4 * sum(parameter.numel() for parameter in model.parameters())
    assert sizes["layers"] == ({"8": len(layers)} if bits == 8 else {str(bits): len(layers) - 2, "8": 2})


SHORTCUT = "up_blocks.0.resnets.0.conv_shortcut"


def _set(tensors, name, value):
    tensors[name] = value


def _layer(config, name="conv_in"):
    return config["quantization_config"]["layers"][name]


def _renamed(layers):
    return {name.replace(f"{SHORTCUT}.parts.0", f"{SHORTCUT}.parts.2"): entry for name, entry in layers.items()}


def _last(tensor, value):
    return torch.cat([tensor[:-1], torch.tensor([value])])


def _floats(tensors, edit):
    tensors["floats"] = edit(tensors["floats"])


# floats begins with conv_in's 8 scales and 8 biases, and ends with conv_norm_out.bias
BROKEN = {
    "conv_in: weight is missing": lambda t, c: t.pop("conv_in.weight"),
    "floats is missing": lambda t, c: t.pop("floats"),
    "floats is missing, or is not float32": lambda t, c: _floats(t, lambda f: f.half()),
    "values, not the": lambda t, c: _floats(t, lambda f: f[:-1].clone()),
    "conv_in: bias is missing or not expected": lambda t, c: (
        _layer(c).update(bias=False),
        _floats(t, lambda f: torch.cat([f[:8], f[16:]])),
    ),
    "extra belongs to no layer": lambda t, c: _set(t, "extra", torch.zeros(1)),
    "conv_norm_out.bias is not finite": lambda t, c: _floats(t, lambda f: _last(f, math.nan)),
    "conv_in: weight is torch.int32": lambda t, c: _set(t, "conv_in.weight", t["conv_in.weight"].int()),
    "conv_in: weight leaves the 8-bit range": lambda t, c: t["conv_in.weight"][0].fill_(-128),
    "mid_block.resnets.0.conv1: weight is torch.uint8": lambda t, c: _set(
        t, "mid_block.resnets.0.conv1.weight", t["mid_block.resnets.0.conv1.weight"][1:].clone()
    ),
    "conv_in: weight_scale is not finite": lambda t, c: t["floats"][0].fill_(math.inf),
    "conv_in: weight_scale is not positive": lambda t, c: t["floats"][0].fill_(0),
    "conv_in: bias 1 is not true or false": lambda t, c: _layer(c).update(bias=1),
    "conv_in: input_scale 0.1 is not a positive float32": lambda t, c: _layer(c).update(input_scale=0.1),
    "conv_in: input_scale -1.0 is not": lambda t, c: _layer(c).update(input_scale=-1.0),
    "conv_in: input_zero_point 65536 is not in 0..65535": lambda t, c: _layer(c).update(input_zero_point=65536),
    "conv_in: input_zero_point 1.5 is not an integer": lambda t, c: _layer(c).update(input_zero_point=1.5),
    "conv_in: input_bits is 9, not 2 to 8 or 16": lambda t, c: _layer(c).update(input_bits=9),
    "conv_in: bits is 9": lambda t, c: _layer(c).update(bits=9),
    "conv_in: bits is missing or not known": lambda t, c: _layer(c).pop("bits"),
    "conv_in: colour is missing or not known": lambda t, c: _layer(c).update(colour=1),
    "conv_in: shape [] is not": lambda t, c: _layer(c).update(shape=[]),
    "conv_in: stride [0, 1] is not": lambda t, c: _layer(c).update(stride=[0, 1]),
    "conv_in: stride, padding, dilation, groups are not": lambda t, c: _layer(c).update(stride=[2, 2]),
    f"{SHORTCUT}.parts.2: a split layer": lambda t, c: (
        c["quantization_config"].update(layers=_renamed(c["quantization_config"]["layers"])),
        t.update({f"{SHORTCUT}.parts.2.weight": t.pop(f"{SHORTCUT}.parts.0.weight")}),
    ),
    "format_version 1 is not 2": lambda t, c: c["quantization_config"].update(format_version=1),
    "quant_method is not eda-dm": lambda t, c: c["quantization_config"].update(quant_method="gptq"),
    "needs a recipe and layers": lambda t, c: c["quantization_config"].pop("layers"),
    "_class_name 'UNet1DModel'": lambda t, c: c.update(_class_name="UNet1DModel"),
    "diffusers refuses it": lambda t, c: c.update(down_block_types=["NoSuchBlock", "DownBlock2D"]),
}


@pytest.mark.parametrize("message", BROKEN)
def test_broken_checkpoints_are_refused(broken, message):
    with pytest.raises(InputError) as error:
        checkpoint.load(broken(BROKEN[message]))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_unusable_files_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        checkpoint.load(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(InputError, match="cannot be read"):
        checkpoint.load(tmp_path)
    content = (folder / "model.safetensors").read_bytes()
    for end in (0, 5, 100, len(content) - 1):
        (tmp_path / "model.safetensors").write_bytes(content[:end])
        with pytest.raises(InputError, match="cannot be read"):
            checkpoint.load(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(InputError, match="not a JSON object"):
        checkpoint.load(tmp_path)


def test_unknown_places_are_refused(tmp_path):
    model, layers, floats = tiny.quantized()
    config = checkpoint.unet_config(model)
    with pytest.raises(InputError, match="no such layer"):
        checkpoint.save(tmp_path, config, layers | {"conv_middle": layers["conv_in"]}, floats, {})
    with pytest.raises(InputError, match="GroupNorm"):
        checkpoint.save(tmp_path, config, layers | {"conv_norm_out": layers["conv_in"]}, floats, {})
    with pytest.raises(InputError, match="cannot replace"):
        checkpoint.save(tmp_path, config, layers | {"conv_out": layers["conv_in"]}, floats, {})
    assert not list(tmp_path.iterdir())


def test_sums_beyond_32_bits_are_refused():
    weight = torch.full((1, 70000), 127, dtype=torch.int8)
    with pytest.raises(InputError, match="32 bits"):
        IntegerLayer(8, weight, torch.ones(1), None, 1.0, 0)
    IntegerLayer(8, weight[:, :66000], torch.ones(1), None, 1.0, 0)

"""Every published architecture through quantization and the CPU engine, as narrow copies."""

import json
from pathlib import Path

import originals
import pytest
import torch
from torch import Tensor, nn

from edadm import unets
from edadm.engines import cpu, reference, verify
from edadm.errors import InputError
from edadm.params import Recipe
from edadm.quantization import checkpoint, reconstruction
from edadm.quantization.attention import attentions
from edadm.quantization.units import find_units, simulate
from edadm.systems.originals import KINDS, architectures, convert
from edadm.systems.system import load_unet

# residual and transformer or attention blocks, and single layers, as the original code is divided into
UNITS = {
    "cifar10-ddim": (28, 10),
    "bedroom-ldm4": (38, 10),
    "church-ldm8": (56, 4),
    "imagenet-ldm4": (38, 42),
    "coco-sd14": (38, 42),
}
CHURCH = {"_class_name": "UNet2DModel", "sample_size": 8, "norm_num_groups": 4, "attention_head_dim": 4}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with each kind's narrow copy, converted for small latents."""
    folder = tmp_path_factory.mktemp("converted")
    for kind in KINDS:
        side = None if kind == "cifar10-ddim" else 16
        convert(kind, originals.write(kind, folder / "files" / kind), folder / kind, side)
    return folder


def inputs(kind: str, rows: int) -> dict[str, Tensor]:
    """A calibration set of random inputs, with contexts of the original's."""
    golden, generator = originals.golden(kind), torch.Generator().manual_seed(0)
    x = torch.randn(rows, *golden["x"].shape[1:], generator=generator)
    data = {"x": x, "t": torch.randint(0, 1000, (rows,), generator=generator)}
    if "context" in golden:
        data["context"] = golden["context"][torch.arange(rows) % 2]
    return data


def heads_of(unet: nn.Module) -> dict[str, int]:
    return {name: module.heads for name, module in attentions(unet).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_units_are_those_of_the_original(kind: str, converted: Path) -> None:
    unet, example = load_unet(converted / kind), tuple(inputs(kind, 1).values())
    simulate(unet, example, Recipe(weights=8, activations=8, ranges="minmax"))
    kinds = [unit.kind for unit in find_units(unet, example)]
    assert (kinds.count("block"), kinds.count("layer")) == UNITS[kind]


def two_levels() -> nn.Module:
    """Every kind of block that Church has, once."""
    settings = json.loads(architectures.unet("church-ldm8", architectures.Widths(8, 8), side=16).to_json_string())
    settings |= {"block_out_channels": (8, 16), "layers_per_block": 1}
    settings |= {"down_block_types": ("AttnDownBlock2D", "DownBlock2D")}
    settings |= {"up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D")}
    torch.manual_seed(0)
    return unets.build(settings).eval()


@pytest.mark.parametrize("attention", [32, 8])
def test_churchs_engine_computes_what_the_checkpoint_says(attention: int, tmp_path: Path) -> None:
    unet = two_levels()
    data = inputs("church-ldm8", 8)
    config, heads = checkpoint.unet_config(unet), heads_of(unet)
    recipe = Recipe(weights=8, activations=8, ranges="minmax", attention=attention)
    with torch.no_grad():
        whole = unet(*data.values(), return_dict=False)[0]
        reconstruction.quantize(unet, data, recipe, tmp_path / "scratch", "")
    layers, floats = reconstruction.integer_layers(unet)
    checkpoint.save(tmp_path / "quantized", config, layers, floats, {}, reconstruction.attention_scales(unet))
    exact = reference.load(tmp_path / "quantized")
    assert heads_of(exact.unet) == heads
    cpu.deploy(tmp_path / "quantized", tmp_path / "engine")
    engine = cpu.load(tmp_path / "engine", 8, threads=1)  # which checks that every layer runs in int8
    x, t = data.values()
    # rounding ties make a network chaotic: the floor is what a step of the input's 16-bit grid does to the output
    nearby = x + exact.unet.conv_in.layer.input_scale * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    for module in attentions(unet).values():
        module.heads = 1
    with torch.no_grad():
        expected, found = exact(x, t), engine(x, t)
        floor = verify.relative_error(exact(nearby, t), expected)
        one_head = unet(x, t, return_dict=False)[0]
    assert floor < 0.1
    assert verify.relative_error(found, expected) <= floor
    error = verify.relative_error(found, whole)
    assert error <= 0.1  # what the float network computes, but for rounding
    assert verify.relative_error(one_head, whole) > 2 * error  # and so the heads are seen here


def test_church_has_its_heads_from_the_configuration_alone(converted: Path) -> None:
    unet = load_unet(converted / "church-ldm8")
    channels = {name: module.to_q.out_features for name, module in attentions(unet).items()}
    assert len(channels) == 21 and set(channels.values()) == {4, 8, 16}
    assert {module.heads for module in attentions(unet).values()} == {2}  # 4 channels are too narrow for 8
    with torch.device("meta"):
        full = unets.build(
            json.loads(architectures.unet("church-ldm8", architectures.PUBLISHED["church-ldm8"]).to_json_string())
        )
    channels = {module.to_q.out_features for module in attentions(full).values()}
    assert channels == {192, 384, 768} and {module.heads for module in attentions(full).values()} == {8}


def test_other_networks_keep_diffusers_heads() -> None:
    settings = CHURCH | {"block_out_channels": (8, 16), "layers_per_block": 1}
    settings |= {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    plain = unets.build(settings)
    assert set(heads_of(plain).values()) == {4} and unets.HEADS not in plain.config
    two = unets.build(settings | {unets.HEADS: 2})
    assert set(heads_of(two).values()) == {2}
    for heads in (3, 0, -2, "2", True, 2.0):
        with pytest.raises(InputError, match="attention_heads .* does not divide the 16 channels"):
            unets.build(settings | {unets.HEADS: heads})

"""What can be quantized: any diffusers U-Net of convolutions and linears, and a refusal by name of everything else."""

import copy
from pathlib import Path

import edadm  # noqa: F401  (mends torchvision before diffusers)

import pytest  # isort: skip
import tiny
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from edadm.errors import InputError
from edadm.params import Recipe, Reconstruction
from edadm.quantization import checkpoint
from edadm.quantization.layers import SplitShortcut, simulated_layers
from edadm.quantization.reconstruction import integer_layers, quantize
from edadm.quantization.units import find_units, full_resolution, simulate

TOKENS, WIDTH = 5, 12


def conditional_unet(**changes: object) -> nn.Module:
    """A U-Net of 8x8 images with transformer blocks: self-attention, cross-attention, GEGLU feed-forward."""
    torch.manual_seed(0)
    settings = {
        "sample_size": 8,
        "in_channels": 2,
        "out_channels": 2,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**(settings | changes)).eval().requires_grad_(False)


def data(rows: int = 40) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(rows, 2, 8, 8, generator=generator),
        "t": torch.randint(0, 1000, (rows,), generator=generator),
        "context": torch.randn(rows, TOKENS, WIDTH, generator=generator),
    }


def recipe(**settings: object) -> Recipe:
    learned = {"method": "fbr", "iterations": 2, "batch": 8} | settings
    return Recipe(weights=4, activations=8, reconstruction=Reconstruction(**learned))


@pytest.mark.parametrize("linear", [False, True])
def test_a_conditional_network_is_covered_in_execution_order(linear: bool) -> None:
    unet = conditional_unet(use_linear_projection=linear)
    wanted = {name for name, module in unet.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    example = tuple(value[:1] for value in data().values())
    exact = unet(*example).sample
    model = simulate(copy.deepcopy(unet), example, recipe())
    assert torch.allclose(model(*example).sample, exact, atol=1e-5)  # split shortcuts add in another order
    units = find_units(model, example)
    layers = simulated_layers(model)
    assert {name.split(".parts.")[0].removesuffix(".layer") for name in layers} == wanted
    owned = [name for unit in units for name in unit.layers]
    assert sorted(owned) == sorted(layers)
    called: list[str] = []
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda *_, name=name: called.append(name))
    model(*example)
    assert called == owned
    block = next(unit for unit in units if unit.name.endswith("transformer_blocks.0"))
    short = [name.removeprefix(f"{block.name}.") for name in block.layers]
    assert short[:4] == ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"]
    assert short[-2:] == ["ff.net.0.proj", "ff.net.2"]
    assert [unit.name for unit in units if unit.name.endswith(("proj_in", "proj_out"))]
    assert sum(isinstance(module, SplitShortcut) for module in model.modules()) == 4


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_conditional_network_is_learned_with_its_context(tmp_path: Path, checkpointed: bool) -> None:
    unet, rows = conditional_unet(), data()
    model = copy.deepcopy(unet)
    if checkpointed:
        model.enable_gradient_checkpointing()
    results = quantize(model, rows, recipe(fisher=checkpointed), tmp_path / "scratch", "mark")
    assert {result.kind for result in results} == {"layer", "block"}
    exact, found = unet(*rows.values()).sample, model(*rows.values()).sample
    assert 0 < (found - exact).norm() / exact.norm() < 0.5
    other = dict(rows, context=rows["context"].flip(0))
    assert not torch.equal(model(*other.values()).sample, found)
    layers, floats = integer_layers(model)
    checkpoint.save(tmp_path / "quantized", checkpoint.unet_config(unet), layers, floats, {})
    assert set(checkpoint.load(tmp_path / "quantized").layers) == set(simulated_layers(model))


class Attention(nn.MultiheadAttention):
    """Multiplies with weights that no layer of it owns."""


@pytest.mark.parametrize(
    ("place", "module", "reason"),
    [
        ("conv_in", nn.ConvTranspose2d(1, 8, 1), "ConvTranspose2d layers cannot be quantized"),
        ("conv_in", nn.Conv1d(1, 8, 1), "Conv1d layers cannot be quantized"),
        ("conv_in", Attention(8, 2), "Attention layers cannot be quantized"),
        ("conv_in", nn.Conv2d(1, 8, 3, padding=1, padding_mode="circular"), "'circular' cannot be quantized"),
        ("conv_in", nn.Conv2d(1, 8, 3, padding="same"), "'same' of mode 'zeros' cannot be quantized"),
    ],
)
def test_a_layer_that_cannot_be_quantized_is_named(place: str, module: nn.Module, reason: str) -> None:
    unet = tiny.unet()
    unet.set_submodule(place, module)
    with pytest.raises(InputError, match=f"^{place}: .*{reason}"):
        simulate(unet, tiny.inputs(1), recipe())


def test_layers_that_run_twice_or_never_are_named() -> None:
    twice = tiny.unet()
    twice.mid_block.resnets[1] = twice.mid_block.resnets[0]
    with pytest.raises(InputError, match=r"mid_block.resnets.0.conv1: the layer runs more than once"):
        find_units(simulate(twice, tiny.inputs(1), recipe()), tiny.inputs(1))
    never = tiny.unet()
    never.register_module("idle", nn.Linear(2, 2))
    with pytest.raises(InputError, match="^idle: the layer takes no part"):
        find_units(simulate(never, tiny.inputs(1), recipe()), tiny.inputs(1))


def test_full_resolution_convolutions_are_those_at_the_inputs_size() -> None:
    found = full_resolution(tiny.unet(), tiny.inputs(1))
    assert {"conv_in", "conv_out", "down_blocks.0.resnets.0.conv1", "up_blocks.0.upsamplers.0.conv"} <= found
    assert all(
        name.startswith(("conv_", "down_blocks.0.resnets", "up_blocks.0.upsamplers", "up_blocks.1")) for name in found
    )
    layers = {name: module for name, module in tiny.unet().named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    weights = {name: layer.weight.numel() for name, layer in layers.items()}
    share = sum(weights[name] for name in found) / sum(weights.values())
    for limit, expected in ((share * 1.001, found), (share * 0.999, {"conv_in", "conv_out"})):
        recipe = Recipe(weights=4, activations=8, eight_bit_full_resolution=limit)
        bits = {
            name: layer.bits for name, layer in simulated_layers(simulate(tiny.unet(), tiny.inputs(1), recipe)).items()
        }
        assert {name.split(".parts.")[0] for name, width in bits.items() if width == 8} == expected

"""Attention with quantized operands: the same computation as diffusers', exact products, learned scales, one engine."""

import copy
import json
from pathlib import Path

import edadm  # noqa: F401  (mends torchvision before diffusers)

import numpy as np  # isort: skip
import openvino as ov
import pytest
import tiny
import torch
from diffusers.models.attention_processor import Attention, AttnAddedKVProcessor
from hypothesis import given
from hypothesis import strategies as st
from openvino import opset13 as op
from test_units import conditional_unet
from test_units import data as conditional_data
from torch import Tensor, nn

from edadm.engines import cpu, processor, reference
from edadm.engines.graph import product_nodes
from edadm.errors import InputError
from edadm.params import Recipe, Reconstruction
from edadm.quantization import attention, checkpoint
from edadm.quantization.layers import SimulatedOperand, simulated
from edadm.quantization.reconstruction import attention_scales, integer_layers, quantize

SCALES = {
    name: torch.tensor(scale).item() for name, scale in {"q": 0.03, "k": 0.02, "v": 0.025, "softmax": 1 / 200}.items()
}
INT8 = processor.is_x86() and processor.has_int8_dot()  # elsewhere products of attention are computed in float
EXACT = lambda _, a, __, b: a @ b  # noqa: E731


@pytest.mark.parametrize("kind", ["image", "cross", "masked"])
def test_without_quantization_it_is_diffusers_attention(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "image":
        settings = {"norm_num_groups": 4, "residual_connection": True, "rescale_output_factor": 1.4, "bias": True}
        attn, inputs = Attention(16, heads=2, dim_head=8, **settings), (torch.randn(3, 16, 4, 4),)
    else:
        attn, inputs = Attention(16, 12, heads=2, dim_head=8), (torch.randn(3, 7, 16), torch.randn(3, 5, 12))
    masks = {"attention_mask": torch.randn(3, 1, 5)} if kind == "masked" else {}
    attn.eval().requires_grad_(False)
    expected = attn(*inputs, **masks)
    attention.check("here", attn)
    attn.set_processor(attention.QuantizedAttention(EXACT))
    assert torch.allclose(attn(*inputs, **masks), expected, atol=1e-5)


@given(st.integers(1, 6), st.integers(1, 40), st.floats(1e-3, 10), st.integers(0, 1000))
def test_integer_products_are_exact(rows: int, inner: int, spread: float, seed: int) -> None:
    """Against Python's own integers."""
    generator = torch.Generator().manual_seed(seed)
    q, k = (spread * torch.randn(*shape, generator=generator) for shape in ((rows, inner), (inner, rows)))

    def grid(x: Tensor, scale: float) -> list[list[int]]:
        scaled = (x / scale).tolist()
        return [[max(-128, min(127, round(value))) for value in row] for row in scaled]

    left, right = grid(q, SCALES["q"]), grid(k, SCALES["k"])
    sums = [[sum(a[i] * b[i] for i in range(inner)) for b in zip(*right, strict=True)] for a in left]
    scale = torch.tensor(SCALES["q"]) * torch.tensor(SCALES["k"])
    expected = torch.tensor(sums, dtype=torch.float32) * scale
    assert torch.equal(attention.integer_product(SCALES)("q", q, "k", k), expected)
    assert torch.allclose(attention.float_product(SCALES)("q", q, "k", k), expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, nn.Module, tuple[Tensor, ...], Path]:
    """A conditional network, its simulation with learned operands, its inputs and its quantized checkpoint."""
    folder, unet, rows = tmp_path_factory.mktemp("learned"), conditional_unet(), conditional_data(32)
    model = copy.deepcopy(unet)
    settings = Reconstruction(method="fbr", iterations=3, batch=8, rate_steps=1e-3)
    quantize(model, rows, Recipe(weights=8, activations=8, attention=8, reconstruction=settings), folder, "mark")
    config = checkpoint.unet_config(unet)
    checkpoint.save(folder / "quantized", config, *integer_layers(model), {}, attention_scales(model))
    return unet, model, tuple(rows.values()), folder / "quantized"


def test_scales_of_all_operands_are_learned_and_kept(learned: tuple) -> None:
    unet, model, inputs, folder = learned
    operands = {name: part for name, part in simulated(model).items() if isinstance(part, SimulatedOperand)}
    assert len(operands) == 4 * len(attention.attentions(unet))
    # a search gives hundredths of the widest range: learning has moved every one of them
    assert all(part.input_scale.grad is not None and part.input_scale.grad != 0 for part in operands.values())
    loaded = checkpoint.load(folder)
    assert set(loaded.attention) == set(attention.attentions(unet))
    for name, scales in loaded.attention.items():
        for operand, scale in scales.items():
            assert scale == operands[f"{name}.processor.operands.{operand}"].input_scale.item()


def test_the_reference_computes_what_was_simulated(learned: tuple) -> None:
    unet, model, inputs, folder = learned
    with torch.no_grad():
        exact, found = unet(*inputs).sample, model(*inputs).sample
        loaded = checkpoint.load(folder)
        called = []

        def watched(scales: attention.Scales) -> attention.Product:
            product = attention.integer_product(scales)
            return lambda one, a, other, b: called.append((one, other)) or product(one, a, other, b)

        expected = checkpoint.build_unet(loaded, reference.IntegerReference, watched)(*inputs).sample
        floats = checkpoint.build_unet(loaded, reference.IntegerReference)(*inputs).sample
    error = (found - expected).norm() / expected.norm()
    assert error < 0.25 * (exact - expected).norm() / expected.norm()
    assert called == len(loaded.attention) * [("q", "k"), ("softmax", "v")]
    assert (floats - expected).norm() / expected.norm() < 0.02


def test_the_cpu_engine_computes_the_products_of_integers(tmp_path: Path) -> None:
    model, layers, floats = tiny.quantized()
    scales = dict.fromkeys(attention.attentions(model), SCALES)
    checkpoint.save(tmp_path / "quantized", checkpoint.unet_config(model), layers, floats, {}, scales)
    cpu.deploy(tmp_path / "quantized", tmp_path / "engine")
    engine = cpu.load(tmp_path / "engine", 16, threads=1)
    products = {f"{name}.{operand}" for name in scales for operand in ("q", "softmax")}
    assert products <= set().union(*map(cpu.int8_names, engine.compiled)) or not INT8
    x, t = tiny.inputs(16)
    with torch.no_grad():
        expected = reference.load(tmp_path / "quantized")(x, t)
        plain = reference.Network(
            checkpoint.build_unet(checkpoint.QuantizedCheckpoint(**_without(tmp_path)), reference.IntegerReference)
        )(x, t)
    errors = (engine(x, t) - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert errors.median() < 1e-5  # an integer at a rounding tie may flip in some images, and moves these by more
    assert errors.max() < 0.1
    assert ((plain - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)).median() > 1e-3


@pytest.mark.parametrize(("tokens", "width", "others"), [(64, 8, 64), (7, 5, 3), (1, 8, 1), (16, 40, 77)])
@pytest.mark.parametrize(("one", "other"), [("q", "k"), ("softmax", "v")])
def test_a_product_of_the_cpu_engine_is_exact(one: str, other: str, tokens: int, width: int, others: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, tokens, width, generator=generator), torch.randn(2, 3, width, others, generator=generator)
    if one == "softmax":
        a = a.softmax(-1)
    ports = [op.parameter(list(x.shape), np.float32) for x in (a, b)]
    graph = ov.Model([product_nodes(*(port.output(0) for port in ports), "here.q", one, other, SCALES)], ports)
    compiled = cpu.compile_graph(ov.Core(), graph, "f32", threads=1)
    assert "here.q" in cpu.int8_names(compiled) or not INT8
    expected = attention.integer_product(SCALES)(one, a, other, b)
    found = torch.from_numpy(compiled([a.numpy(), b.numpy()])[0])
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


def _without(folder: Path) -> dict:
    """The fields of the checkpoint with its attention in float."""
    return {**vars(checkpoint.load(folder / "quantized")), "attention": {}}


def test_what_cannot_be_done_is_named(tmp_path: Path) -> None:
    model, layers, floats = tiny.quantized()
    name = next(iter(attention.attentions(model)))
    config = checkpoint.unet_config(model)
    with pytest.raises(InputError, match="nowhere: the U-Net has no such attention"):
        checkpoint.save(tmp_path, config, layers, floats, {}, {"nowhere": SCALES})
    with pytest.raises(InputError, match=f"{name}: q: scale -1.0 is not a positive"):
        checkpoint.save(tmp_path, config, layers, floats, {}, {name: SCALES | {"q": -1.0}})
    checkpoint.save(tmp_path, config, layers, floats, {}, {name: SCALES})
    written = json.loads((tmp_path / "config.json").read_text())
    del written["quantization_config"]["attention"][name]["k"]
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(InputError, match=f"{name}: an attention has a scale for each of q, k, v, softmax"):
        checkpoint.load(tmp_path)
    attn = attention.attentions(model)[name]
    attn.set_processor(AttnAddedKVProcessor())
    with pytest.raises(InputError, match="here: the operands of a AttnAddedKVProcessor cannot be quantized"):
        attention.check("here", attn)

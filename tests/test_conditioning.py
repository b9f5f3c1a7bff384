"""What does not depend on the image is computed once for each timestep and condition, and is never an old one's."""

from pathlib import Path
from unittest.mock import Mock

import openvino as ov
import pytest
import tiny
import torch
from torch import Tensor

from edadm.engines import conditioning, cpu
from edadm.quantization import attention, checkpoint
from edadm.quantization.attention import Scales

BATCH, TOKENS = 2, 3
SCALES: Scales = {"q": 2**-6, "k": 2**-6, "softmax": 2**-8, "v": 2**-6}


@pytest.fixture(scope="module", params=[32, 8])
def folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """An engine of the tiny network with cross-attention, with float and with integer products of its operands."""
    root = tmp_path_factory.mktemp("engine")
    model, layers, floats = tiny.quantized(tiny.conditional_unet())
    scales = dict.fromkeys(attention.attentions(model) if request.param == 8 else (), SCALES)
    checkpoint.save(root / "quantized", checkpoint.unet_config(model), layers, floats, {}, scales)
    cpu.deploy(root / "quantized", root / "engine")
    return root / "engine"


@pytest.fixture(scope="module")
def compiled(folder: Path) -> cpu.CpuEngine:
    return cpu.load(folder, BATCH, threads=1)


@pytest.fixture
def engine(compiled: cpu.CpuEngine) -> cpu.CpuEngine:
    """One that has computed nothing yet."""
    for part in compiled._parts:
        part._kept.clear()
    return compiled


def given() -> tuple[Tensor, Tensor, Tensor]:
    return *tiny.inputs(BATCH, channels=4), tiny.context(BATCH, TOKENS)


def test_outputs_are_those_of_the_whole_graph(folder: Path, engine: cpu.CpuEngine) -> None:
    whole = cpu.load(folder, BATCH, threads=1, apart=False)
    assert len(whole.compiled) == 1
    x, t, context = given()
    before = whole(x, t, context)
    assert torch.equal(engine(x, t, context), before)
    for value in (x, t, context):  # each changed where it is
        value.copy_(value.flip(-1) + 1)
        after = whole(x, t, context)
        assert torch.equal(engine(x, t, context), after) and not torch.equal(after, before)
        before = after
    longer = tiny.context(BATCH, TOKENS + 2)
    assert torch.equal(engine(x, t, longer), whole(x, t, longer))
    assert torch.equal(engine(x, t, context), before)


def test_each_part_has_the_layers_that_depend_on_nothing_else(engine: cpu.CpuEngine) -> None:
    image, *parts = map(cpu.int8_names, engine.compiled)
    times, words = ({name for name in names if "." in name} for names in parts)
    assert {"time_embedding.linear_1", "down_blocks.0.resnets.0.time_emb_proj"} <= times
    assert {name.rpartition(".")[2] for name in words} == {"to_k", "to_v"}
    assert all(".attn2." in name for name in words)
    assert not image & (times | words)


def test_what_follows_from_unknown_sizes_is_of_known_shapes(engine: cpu.CpuEngine) -> None:
    """Though the context may have any number of tokens, so that keys and values have too."""
    image = engine.compiled[0]
    assert image.output(0).partial_shape.is_static
    assert {port.element_type for port in image.inputs} == {ov.Type.f32}  # no shapes among them


def test_parts_are_computed_once_for_each_value(engine: cpu.CpuEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    x, t, context = given()
    for part in engine._parts:
        monkeypatch.setattr(part, "_request", Mock(wraps=part._request))
    for step in (900, 500, 100):
        for images in (x, x + 1):
            engine(images, torch.full_like(t, step), context)
    engine(x, torch.full_like(t, 500), context.flip(0))
    counts = [part._request.infer.call_count for part in engine._parts]
    assert counts == [3, 2]


def test_results_that_are_kept_have_a_limit(engine: cpu.CpuEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditioning, "KEPT", 0)
    x, t, context = given()
    first = engine(x, t, context)
    assert not torch.equal(engine(x, t + 1, context), first)
    assert torch.equal(engine(x, t, context), first)
    assert [len(part._kept) for part in engine._parts] == [1, 1]

"""The stand-in for a U-Net: the same calls and configuration, the reference's numbers."""

import filecmp
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

import edadm
from edadm.engines import cpu
from edadm.errors import InputError

BLOCKS = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative, in the norm."""
    return ((one - other).norm() / other.norm()).item()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The conditional network in w4a8."""
    return tiny.save(tmp_path_factory.mktemp("unet") / "text", tiny.conditional_unet())


@pytest.fixture(scope="module")
def text(folder: Path) -> edadm.QuantizedUNet:
    return edadm.load(folder, threads=1)


def test_it_answers_like_the_unet_it_stands_for(text: edadm.QuantizedUNet, folder: Path) -> None:
    original, exact = tiny.conditional_unet(), edadm.load(folder, device="reference")
    assert text.config.sample_size == original.config.sample_size
    assert text.config.cross_attention_dim == original.config.cross_attention_dim
    assert (text.dtype, text.device, text.in_channels) == (torch.float32, torch.device("cpu"), 4)
    (x, _), context = tiny.inputs(2, channels=4), tiny.context(2, 3)
    for timestep in (500, torch.tensor(500), torch.tensor([500, 500]), torch.tensor(500.0)):
        found = text(x, timestep, encoder_hidden_states=context, return_dict=False)
        assert isinstance(found, tuple) and difference(found[0], exact(x, 500, context).sample) < 0.05
    assert difference(text(x, 500, context).sample, original(x, 500, context).sample) < 0.5
    assert difference(text(x, 500.5, context).sample, exact(x, 500.5, context).sample) < 0.05
    assert text.engine == "cpu" and list(text._runs) == [(2, 8, 8)]  # nothing was built twice
    assert text(x.half(), 500, context.half()).sample.dtype == torch.float16


def test_another_batch_and_another_size(text: edadm.QuantizedUNet, folder: Path) -> None:
    exact = edadm.load(folder, device="reference")
    x, context = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)), tiny.context(3, 5)
    assert difference(text(x, 3, context).sample, exact(x, 3, context).sample) < 0.05
    x = torch.randn(2, 4, 16, 12, generator=torch.Generator().manual_seed(0))
    found = text(x, 3, context[:2]).sample
    assert found.shape == x.shape and difference(found, exact(x, 3, context[:2]).sample) < 0.05
    assert text.engine == "cpu"


def test_what_is_saved_is_the_same(text: edadm.QuantizedUNet, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "note.txt").write_text("mine")
    text.save_pretrained(tmp_path / "unet")
    for name in ("config.json", "model.safetensors"):
        assert filecmp.cmp(tmp_path / "unet" / name, folder / name, shallow=False)
    assert (tmp_path / "unet" / "note.txt").read_text() == "mine"
    loaded = edadm.QuantizedUNet.from_pretrained(tmp_path)  # a pipeline's folder: its unet/
    assert loaded.quantized.layers.keys() == text.quantized.layers.keys()


def test_it_is_refused_what_it_cannot_take(text: edadm.QuantizedUNet, tmp_path: Path) -> None:
    (x, t), context = tiny.inputs(2, channels=4), tiny.context(2, 3)
    with pytest.raises(InputError, match="without context"):
        text(x, t)
    with pytest.raises(InputError, match="mid_block_additional_residual"):
        text(x, t, context, mid_block_additional_residual=x)
    with pytest.raises(InputError, match="full-precision"):
        edadm.load(tiny.save_float(tmp_path / "float"))
    for settings, named in (({"device": "tpu"}, "tpu"), ({"body": "f16"}, "f16")):
        with pytest.raises(InputError, match=named):
            edadm.QuantizedUNet(text.quantized, **settings)
    with pytest.raises(InputError, match="no such file"):
        edadm.load(tmp_path)


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        ((2, 3, tiny.CONTEXT + 1), r"context is \(2, 3, 13\), not \(2, any, 12\)"),  # another encoder's
        ((1, 3, tiny.CONTEXT), r"context is \(1, 3, 12\), not \(2, any, 12\)"),
        ((2, tiny.CONTEXT), r"context is \(2, 12\)"),
    ],
)
def test_a_condition_of_another_shape_is_no_earlier_ones_image(
    text: edadm.QuantizedUNet, shape: tuple[int, ...], named: str
) -> None:
    x, _ = tiny.inputs(2, channels=4)
    text(x, 500, tiny.context(2, 3))
    with pytest.raises(InputError, match=named):
        text(x, 500, torch.zeros(shape))
    with pytest.raises(InputError, match="no samples"):
        text(x[:0], 500, tiny.context(2, 3)[:0])


def test_threads_share_a_network(text: edadm.QuantizedUNet) -> None:
    (x, _), context = tiny.inputs(8, channels=4), tiny.context(8, 3)
    calls = [(x[row : row + 1], 100 * row, context[row : row + 1]) for row in range(8)]
    alone = [text(*call).sample for call in calls]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda call: text(*call).sample, calls * 25))
    assert all(torch.equal(found, wanted) for found, wanted in zip(together, alone * 25, strict=True))


def test_labels_are_those_that_there_are() -> None:
    settings = {"num_class_embeds": 5, "block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 8}
    torch.manual_seed(0)
    unet = UNet2DModel(8, 1, 1, layers_per_block=1, **settings, **BLOCKS)
    x, t = tiny.inputs(4)
    data = {"x": x, "t": t, "label": torch.arange(4)}
    quantized = edadm.quantize(unet.eval(), data, edadm.recipe("w8a8", method="none"))
    one = quantized(x, 500, class_labels=torch.tensor([3])).sample
    assert torch.equal(one, quantized(x, 500, torch.full((4,), 3)).sample)
    for labels, named in (([5], "no class 5; allowed: 0 to 4"), ([-1], "no class -1"), ([1, 2], "2 of them for 4")):
        with pytest.raises(InputError, match=named):
            quantized(x, 500, class_labels=torch.tensor(labels))


def test_steps_that_are_looked_up(tmp_path: Path) -> None:
    """An embedding of the step is an engine's input of whole numbers."""
    torch.manual_seed(0)
    settings = {"time_embedding_type": "learned", "num_train_timesteps": 20, "norm_num_groups": 4}
    unet = UNet2DModel(8, 1, 1, layers_per_block=1, block_out_channels=(8, 8), **settings, **BLOCKS).eval()
    x, _ = tiny.inputs(4)
    quantized = edadm.quantize(unet, {"x": x, "t": torch.arange(4)}, edadm.recipe("w8a8", method="none"))
    exact = edadm.QuantizedUNet(quantized.quantized, device="reference")
    assert difference(quantized(x, 7).sample, exact(x, 7).sample) < 0.05 and quantized.engine == "cpu"
    for step in (7.5, 20, -1):
        with pytest.raises(InputError, match=f"{step} is not among the 20 whole steps"):
            quantized(x, step)
    quantized.save_pretrained(tmp_path / "unet")
    cpu.deploy(tmp_path / "unet", tmp_path / "engine")
    engine = cpu.load(tmp_path / "engine", 4, threads=1)
    with pytest.raises(InputError, match="t is torch.float32, where the engine takes whole numbers"):
        engine(x, torch.full((4,), 7.5))


def test_where_the_engine_would_be_wrong_the_reference_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cpu, "has_int8_dot", lambda: False)
    monkeypatch.setattr(cpu, "build_graph", lambda *_: cpu.op)  # not reached twice
    monkeypatch.setattr(cpu, "compiled", lambda *_: (_ for _ in ()).throw(InputError("neither VNNI nor AMX")))
    unet = edadm.load(folder)
    (x, t), context = tiny.inputs(1, channels=4), tiny.context(1, 3)
    with caplog.at_level(logging.WARNING):
        found = unet(x, t, context).sample
        unet(x, t, context)
    assert torch.equal(found, edadm.load(folder, device="reference")(x, t, context).sample)
    assert [record.getMessage() for record in caplog.records if "neither VNNI nor AMX" in record.getMessage()][1:] == []
    assert "exact reference" in caplog.text


def test_inside_unconditional_pipelines(tmp_path: Path) -> None:
    unet = edadm.load(tiny.save(tmp_path / "unet"), threads=1)
    for pipeline, arguments in (
        (DDIMPipeline(tiny.unet(), DDIMScheduler()), {"eta": 1.0}),
        (DDPMPipeline(tiny.unet(), DDPMScheduler()), {}),
    ):
        pipeline.set_progress_bar_config(disable=True)

        def draw(pipeline: object = pipeline, arguments: dict = arguments) -> np.ndarray:
            generator = torch.Generator().manual_seed(0)
            return pipeline(1, generator, num_inference_steps=3, output_type="np", **arguments).images

        exact = draw()
        pipeline.unet = unet
        found = draw()
        assert found.shape == exact.shape and 0 < np.abs(found - exact).mean() < 0.2
    pipeline.save_pretrained(tmp_path / "pipeline")
    again = DDPMPipeline.from_pretrained(tmp_path / "pipeline", low_cpu_mem_usage=False)  # knows QuantizedUNet by name
    assert isinstance(again.unet, edadm.QuantizedUNet)
    assert filecmp.cmp(tmp_path / "unet" / "config.json", tmp_path / "pipeline" / "unet" / "config.json", shallow=False)

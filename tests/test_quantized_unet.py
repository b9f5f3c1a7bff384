"""The stand-in for a U-Net: the same calls and configuration, the reference's numbers."""

import filecmp
import logging
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler

import edadm
from edadm.engines import cpu
from edadm.errors import InputError


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

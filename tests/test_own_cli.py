"""``edadm quantize`` and ``edadm generate``: what cannot be done is one line, exit code 2, and nothing written."""

from pathlib import Path

import numpy as np
import pytest
import tiny_pipelines
import torch
from command_line import call
from PIL import Image

from edadm import artifacts

FEW = ("--samples", "4", "--batch", "2", "--steps", "3", "--iterations", "0", "--threads", "1")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_pipelines.sd1(Path("text"))
    tiny_pipelines.labelled(Path("labelled"))
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a refused command prints."""
    before = sorted(Path().rglob("*"))
    assert call(*words) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("edadm: ")
    assert [path for path in sorted(Path().rglob("*")) if path not in before] == []
    return message


def test_without_prompts_general_ones_are_drawn(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("quantize", "text", "--out", "out", "--weights", "6", "--activations", "6", *FEW) == 0
    described = artifacts.describe(Path("out"))
    assert described["unet: layers by bits"].keys() == {"6", "8"}
    assert described["unet: recipe"]["activations"] == 6
    assert call("generate", "out", "water", "--out", "a.png", "--steps", "2", "--device", "reference") == 0
    assert capsys.readouterr().out == "a.png\n"
    assert call("generate", "text", "water", "--out", "b.png", "--steps", "2") == 0
    one, other = (np.asarray(Image.open(name)).astype(int) for name in ("a.png", "b.png"))
    assert one.shape == other.shape == (16, 16, 3) and 0 < np.abs(one - other).mean() < 60


def test_labels_are_drawn_in_turn(models: Path) -> None:
    assert call("quantize", "labelled", "--labels", "3", "--out", "out", *FEW) == 0
    assert call("generate", "out", "--label", "2", "--out", "a.png", "--steps", "2", "--device", "reference") == 0


def test_what_cannot_be_done_is_one_line(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty.txt").write_text("\n \n")
    Path("full").mkdir()
    Path("full/file").write_text("mine")
    for words, named in (
        (("quantize", "nowhere", "--out", "out"), "no such folder"),
        (("quantize", "labelled", "--out", "out"), "class labels"),
        (("quantize", "labelled", "--out", "out", "--labels", "3", "--guidance", "2"), "class embedder"),
        (("quantize", "text", "--out", "out", "--prompts", "empty.txt"), "holds no prompt"),
        (("quantize", "text", "--out", "out", "--prompts", "missing.txt"), "missing.txt"),
        (("quantize", "text", "--out", "full"), "full"),
        (("quantize", "text", "--out", "text"), "must be outside"),
        (("quantize", "text", "--out", "."), "must be outside"),
        (("quantize", "text", "--out", "empty.txt/out"), "empty.txt/out"),
        (("quantize", "text", "--out", "out", "--guidance", "nan"), "finite"),
        (("generate", "labelled", "--label", "1", "--out", "a.png", "--seed", str(2**64)), "2**62"),
        (("generate", "text", "--out", "a.png"), "draws from prompts"),
        (("generate", "text", "a boat", "--out", "a.jpg"), "PNG"),
        (("generate", "text", "a boat", "--label", "1", "--out", "a.png"), "takes no class_labels"),
        (("generate", "labelled", "--label", "3", "--out", "a.png"), "not in 0 to 2"),
        (("info", "full/file"), "not a file or folder"),
        (("compare", "text", "full"), "holds no results"),
    ):
        assert named in refused(capsys, *words, *(FEW if words[0] == "quantize" else ()))


def test_pickles_are_not_read(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = Path("text/vae/diffusion_pytorch_model.safetensors")
    weights.unlink()
    torch.save({}, weights.with_suffix(".bin"))
    message = refused(capsys, "quantize", "text", "--out", "out", *FEW)
    assert "only .bin weights" in message and "safetensors" in message

"""The pictures of docs/concepts.md, from results made up by test_report.py."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from command_line import call
from PIL import Image
from test_report import VARIANTS, make_results

ROOT = Path(__file__).parent.parent


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(ROOT)
    make_results(tmp_path / "results")
    return tmp_path / "results"


def draw(results: Path, system: str = "fashion-ddim", variant: str = "w4a8") -> int:
    return call("pictures", system, variant, "--results", str(results), "--out", str(results.parent / "pictures"))


def test_they_are_those_that_the_document_shows(results: Path) -> None:
    assert draw(results) == 0
    drawn = sorted(path.name for path in (results.parent / "pictures").iterdir())
    shown = re.findall(r"\]\(pictures/([^)]+)\)", (ROOT / "docs" / "concepts.md").read_text())
    assert drawn == sorted(shown) == sorted(path.name for path in (ROOT / "docs" / "pictures").iterdir())


def test_a_drawing_stands_alone(results: Path) -> None:
    draw(results)
    for path in (results.parent / "pictures").glob("*.svg"):
        svg = ET.parse(path).getroot()
        assert svg.tag == "{http://www.w3.org/2000/svg}svg"
        used = set(re.findall(r"var\((--[\w-]+)\)", path.read_text()))
        assert used and all(f"{name}:" in svg[0].text for name in used)


def test_the_strip_holds_the_samples(results: Path) -> None:
    draw(results)
    strip = np.asarray(Image.open(results.parent / "pictures" / "samples.png"))
    with np.load(results / "fashion-ddim/w4a8/samples/shard-0000.npz") as shard:
        image = shard["arr_0"][3, ..., 0]
    row, column = VARIANTS.index("w4a8"), 3
    place = strip[68 * row : 68 * row + 64, 68 * column : 68 * column + 64]
    assert np.array_equal(place[::2, ::2, 0], image) and (place[..., 3] == 255).all()
    assert strip.shape == (68 * 4 - 4, 68 * 12 - 4, 4) and not strip[64:68].any()


@pytest.mark.parametrize("lost", ["w4a8/quantized/losses.csv", "w4a8/layer-errors.csv", "w8a8/samples/shard-0000.npz"])
def test_a_missing_result_is_one_line_and_no_picture(
    results: Path, lost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (results / "fashion-ddim" / lost).unlink()
    assert draw(results) == 2
    said = capsys.readouterr().err
    assert str(Path("fashion-ddim") / Path(lost).parent) in said and said.count("\n") == 1
    assert not (results.parent / "pictures").exists()


def test_an_unknown_variant_is_one_line(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert draw(results, variant="w3a3") == 2
    assert "fashion-ddim has no run 'w3a3'; params.yaml has fp32, w8a8" in capsys.readouterr().err
    assert draw(results, "cifar10-ddim", "w3a3") == 2
    assert "cifar10-ddim has no run 'w3a3'; params.yaml has fp32, w8a8, w4a8\n" in capsys.readouterr().err


def test_a_published_system_is_drawn_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    colour = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3)).astype(np.uint8)
    make_results(tmp_path / "results", colour, VARIANTS[:3])
    (tmp_path / "results" / "fashion-ddim").rename(tmp_path / "results" / "cifar10-ddim")
    assert draw(tmp_path / "results", "cifar10-ddim") == 0
    strip = np.asarray(Image.open(tmp_path / "pictures" / "samples.png"))
    assert strip.shape == (68 * 3 - 4, 68 * 12 - 4, 4) and np.array_equal(strip[:64:2, :64:2, :3], colour[0])

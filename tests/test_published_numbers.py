"""The numbers that others published, and the page that shows ours beside them."""

import json
from pathlib import Path

import pytest
from test_report import make_metrics

from edadm import params
from edadm.report import page, published, tables

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def paper() -> params.Params:
    return params.load(ROOT / "params.yaml").of_published()


def find(**wanted: str) -> list[str]:
    return [row["value"] for row in published.numbers() if wanted.items() <= row.items()]


def test_every_row_is_a_number_with_its_protocol_and_source(paper: params.Params) -> None:
    rows = published.numbers()
    assert len({tuple(row.values()) for row in rows}) == len(rows)
    for row in rows:
        assert tuple(row) == published.COLUMNS and all(row.values()), row
        assert float(row["value"]) > 0 and row["measure"] in published.MEASURES and row["system"] in paper.systems
    assert {row["system"] for row in rows} == set(paper.systems)


def test_numbers_are_as_they_were_read() -> None:
    survey = {"system": "imagenet-ldm4", "method": "EDA-DM", "protocol": "survey: DDIM 20 steps, scale 3, eta 0"}
    assert find(**survey, variant="w8a8", measure="fid") == ["11.30"]
    assert find(**survey, variant="w8a8", measure="is_mean") == ["337.95"]
    assert find(**survey, variant="w4a8", measure="sfid") == ["7.86"]
    bedroom = {"system": "bedroom-ldm4", "protocol": "survey: DDIM 200 steps, eta 1", "measure": "fid"}
    assert find(**bedroom, method="D2-DPM", variant="w4a8") == ["10.72"]
    assert find(**bedroom, method="QuEST (finetuned)", variant="w4a4") == ["8.92"]
    assert find(system="church-ldm8", method="QuEST", variant="w4a8") == ["7.33"]
    assert find(system="coco-sd14", measure="size_mb") == ["4112.5", "1029.7", "515.9"]
    assert find(system="cifar10-ddim", measure="speedup_gpu") == ["2.22"]
    assert find(system="coco-sd14", measure="clip_score_loss") == ["0.05"]


def measured(results: Path, system: str, variant: str, fid: float) -> None:
    folder = results / system / variant
    (folder / "engine-cpu").mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(make_metrics(variant, fid) | {"clip_score": 30.5}))
    sizes = dict.fromkeys(tables.SIZES, 35_900_000)
    (folder / "engine-cpu" / "size.json").write_text(json.dumps(sizes | {"layers": {"8": 10}}))


def test_what_was_not_run_says_so(paper: params.Params, tmp_path: Path) -> None:
    rows = [row for system in published.beside(paper, tmp_path).values() for row in system]
    assert len(rows) == len(published.numbers()) and {row["here"] for row in rows} == {"not run here"}
    measured(tmp_path, "cifar10-ddim", "w4a8", 5.125)
    rows = [row for system in published.beside(paper, tmp_path).values() for row in system]
    ours = {
        (row["system"], row["variant"], row["measure"], row["here"]) for row in rows if row["here"] != "not run here"
    }
    assert {each[:2] for each in ours} == {("cifar10-ddim", "w4a8")}
    assert ("cifar10-ddim", "w4a8", "fid", "5.12") in ours and ("cifar10-ddim", "w4a8", "size_mb", "35.90") in ours


def test_the_page_shows_what_there_is(paper: params.Params, tmp_path: Path) -> None:
    page.write(paper, tmp_path, tmp_path / "page.html", published=True)
    text = (tmp_path / "page.html").read_text()
    assert text.count("not run here") == len(published.numbers())
    assert all(f"{system}: published numbers" in text for system in paper.systems)
    for variant, fid in (("fp32", 4.0), ("w4a8", 5.125)):
        measured(tmp_path, "cifar10-ddim", variant, fid)
    page.write(paper, tmp_path, tmp_path / "page.html", published=True)
    text = (tmp_path / "page.html").read_text()
    assert "<td>5.12</td>" in text and "ema_diffusion_cifar10_model-790000.ckpt from https://heibox" in text
    # beside our own of that system, and once only
    assert text.count("Published numbers</h3>") == 1 and "cifar10-ddim: published numbers" not in text
    assert text.index('id="system-1-quality"') < text.index("Published numbers</h3>") < text.index('id="system-1-size"')
    assert "bedroom-ldm4: published numbers" in text
    # the recipe is that which the run names
    assert "0.5 rounding, 0.0005 steps" in text and "5,000 of 32" in text


def test_only_captioned_systems_have_a_column_for_the_clip_score(paper: params.Params, tmp_path: Path) -> None:
    header = tables._quality_csv([dict.fromkeys((*tables.QUALITY, "clip_score"))]).splitlines()[0]
    assert header.split(",") == list(tables.QUALITY)
    for key, run in paper.runs.items():
        measured(tmp_path, run.system, run.variant, 4.0 + len(key) / 10)
    tables.write(paper, tmp_path, tmp_path / "tables")
    header, *rows = (tmp_path / "tables" / "quality.csv").read_text().splitlines()
    assert header.split(",") == [*tables.QUALITY, "clip_score"] and len(rows) == 15

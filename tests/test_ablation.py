"""The comparison of recipes: its table against plain arithmetic, and what differs between two recipes."""

import csv
import json
from pathlib import Path

import pytest

from edadm import params as parameters
from edadm.errors import InputError
from edadm.recipes import differences
from edadm.report import ablation

ROOT = Path(__file__).parent.parent
NUMBERS = {0: (5.0, 4.0, 30.0), 1: (6.0, 4.5, 31.0), 2: (10.0, 5.0, 35.0)}


@pytest.fixture
def params() -> parameters.Params:
    return parameters.load(ROOT / "params.yaml")


@pytest.fixture
def results(params: parameters.Params, tmp_path: Path) -> Path:
    for index, row in enumerate(params.ablation.rows):
        for repeat, (fid, inception, psnr) in NUMBERS.items():
            path = tmp_path / "fashion-ddim" / "ablation" / row.variant / f"metrics-{repeat}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            psnr_or_none = None if row.variant == "fp32" else psnr
            path.write_text(
                json.dumps({"n": 10000, "fid": fid * (1 + index), "is_mean": inception, "psnr_fp32": psnr_or_none})
            )
    return tmp_path


def test_rows_are_means_over_the_repetitions(params: parameters.Params, results: Path) -> None:
    summary = ablation.write(params, results, results / "ablation.csv")
    assert "| `w8a8` | tdac | 14.00 ± 5.29 | 2.000 ± 0.000 | 4.50 ± 0.50 | 32.0 ± 2.6 |" in summary
    assert "| `fp32` | tdac | 7.00 ± 2.65 | 1.000 ± 0.000 | 4.50 ± 0.50 | – |" in summary
    table = list(csv.DictReader((results / "ablation.csv").open()))
    assert [row["variant"] for row in table] == [row.variant for row in params.ablation.rows]
    fp32, first = table[0], table[1]
    assert (fp32["psnr_fp32"], fp32["psnr_fp32_sd"], fp32["fid"], fp32["fid_ratio"]) == ("", "", "7", "1")
    assert float(first["fid"]) == pytest.approx(14)
    assert float(first["fid_sd"]) == pytest.approx(28**0.5, rel=1e-5)  # of 10, 12, 20: (16 + 4 + 36) / 2
    assert (first["fid_ratio"], first["is_mean"], first["psnr_fp32"]) == ("2", "4.5", "32")
    assert (first["repeats"], first["n"]) == ("3", "10000")
    assert {row["variant"]: row["calibrator"] for row in table}["w4a8-ptq4dm"] == "normal"


def test_the_documented_table_is_that_of_the_committed_measurements(params: parameters.Params, tmp_path: Path) -> None:
    summary = ablation.write(params, ROOT / "results", tmp_path / "ablation.csv")
    assert summary in (ROOT / "docs" / "concepts.md").read_text()
    assert (tmp_path / "ablation.csv").read_bytes() == (ROOT / "results" / "tables" / "ablation.csv").read_bytes()


def test_a_missing_measurement_is_one_line(params: parameters.Params, results: Path) -> None:
    (results / "fashion-ddim/ablation/w4a4/metrics-1.json").unlink()
    with pytest.raises(InputError, match="metrics-1.json: no such file"):
        ablation.write(params, results, results / "ablation.csv")
    assert not (results / "ablation.csv").exists()


def test_differences_of_recipes(params: parameters.Params) -> None:
    assert differences(params, "w4a8", "w4a8") == []
    found = differences(params, "w4a8-untuned", "w4a8-qdiffusion")
    gamma = params.variant("w4a8-untuned").reconstruction.layer_loss
    assert found == [("reconstruction.layer_loss", gamma, 0.0), ("calibrator", ("tdac",), ("uniform",))]
    assert differences(params, "w4a8-untuned", "w4a4") == [("activations", 8, 4)]
    with pytest.raises(InputError, match="unknown variant 'nope'"):
        differences(params, "w4a8", "nope")


def test_baselines_differ_from_the_method_in_one_part_each(params: parameters.Params) -> None:
    """Else the table would not say what TDAC and FBR contribute."""

    def fields(one: str, other: str) -> set[str]:
        return {name for name, *_ in differences(params, one, other)}

    assert fields("w4a8", "w4a8-tdac") == {"reconstruction.layer_loss"}
    assert fields("w4a8", "w4a8-fbr") == {"calibrator"}
    assert fields("w4a8", "w4a8-untuned") == {"reconstruction.tuning"}
    assert fields("w4a8-untuned", "w4a8-qdiffusion") == {"reconstruction.layer_loss", "calibrator"}
    assert fields("w4a8-untuned", "w4a8-ptq4dm") == {"reconstruction.layer_loss", "calibrator"}

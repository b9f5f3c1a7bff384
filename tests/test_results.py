"""The committed results keep what README.md and docs/concepts.md promise: quality, exactness, sizes."""

import csv
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
FULL, DEMO = "metrics-full.json", "metrics.json"
SIZES = ("quantized_file_bytes", "payload_bytes", "arithmetic_bytes")


def table(name: str) -> list[dict[str, str]]:
    with (RESULTS / "tables" / name).open() as file:
        return list(csv.DictReader(file))


def metrics(system: str, variant: str, name: str) -> dict:
    return json.loads((RESULTS / system / variant / name).read_text())


@pytest.mark.parametrize(
    ("system", "name", "images"),
    [("fashion-ddim", DEMO, 2000), ("fashion-ddim", FULL, 10000), ("fashion-ldm", DEMO, 2000)],
)
def test_quantized_images_are_as_good(system: str, name: str, images: int) -> None:
    found = {variant: metrics(system, variant, name) for variant in ("fp32", "w8a8", "w4a8", "w4a8-rtn")}
    assert {of_it["n"] for of_it in found.values()} == {images}
    fid = {variant: of_it["fid"] for variant, of_it in found.items()}
    assert fid["w8a8"] <= 1.05 * fid["fp32"] and fid["w4a8"] <= 1.25 * fid["fp32"]
    assert fid["w4a8"] < fid["w4a8-rtn"]


def test_a_person_would_know_the_garments() -> None:
    found = metrics("fashion-ddim", "fp32", FULL)
    assert found["confident_share"] >= 0.85
    assert all(0.05 <= share <= 0.15 for share in found["class_shares"])
    real = json.loads((ROOT / "assets/garment-classifier/reference.json").read_text())
    readme = " ".join((ROOT / "README.md").read_text().split())
    for of_it, words in (
        (found, "FID {:.2f}, and the classifier is sure of {:.0%}"),
        (real, "it is {:.2f} and {:.0%}"),
    ):
        assert words.format(of_it["fid"], of_it["confident_share"]).replace("%", " %") in readme


def test_every_layer_runs_in_int8_and_is_exact() -> None:
    rows = table("exactness.csv")
    assert len(rows) >= 6
    for row in rows:
        assert row["layers_in_int8"] == row["layers_in_graph"], row
        assert float(row["worst_layer_error"]) <= 1e-6, row
        assert float(row["engine_to_reference"]) <= float(row["floor"]), row


def test_files_are_as_small_as_the_arithmetic() -> None:
    rows = {
        (row["system"], row["variant"]): {key: int(row[key]) for key in row if key in SIZES}
        for row in table("size.csv")
    }
    assert len(rows) >= 8
    for name, row in rows.items():
        assert row["payload_bytes"] == row["arithmetic_bytes"], name
    smallest = rows["fashion-ddim", "w4a8"]
    assert smallest["quantized_file_bytes"] <= 1.01 * smallest["arithmetic_bytes"]  # with names and shapes


def test_the_ablation_has_the_method_in_front() -> None:
    rows = {
        row["variant"]: {key: float(row[key] or "nan") for key in ("fid_ratio", "psnr_fp32", "n", "repeats")}
        for row in table("ablation.csv")
    }
    assert all(row["n"] >= 10000 and row["repeats"] == 3 for row in rows.values())
    method = rows["w4a8"]
    assert rows["w8a8"]["fid_ratio"] <= 1.01 and method["fid_ratio"] <= 1.05
    for ancestor in ("w4a8-qdiffusion", "w4a8-ptq4dm", "w4a8-rtn"):
        assert method["fid_ratio"] < rows[ancestor]["fid_ratio"], ancestor
        assert method["psnr_fp32"] > rows[ancestor]["psnr_fp32"], ancestor

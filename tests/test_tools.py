"""What DVC and Snakemake themselves show of the results, without settings of the user's own."""

import csv
import io
import json

from workspace import SYSTEM, Workspace


def drawn(page: str, place: str) -> dict:
    """The specification (Vega-Lite) of the plot of a file on a page of `dvc plots`."""
    text = page.partition(f'<div id = "{place}">')[2].partition("var spec = ")[2]
    return json.JSONDecoder().raw_decode(text)[0]


def test_dvc_plots_and_metrics_and_experiments(space: Workspace) -> None:
    space.edit("params.yaml", "iterations: 400", "iterations: 7")
    space.call("dvc", "repro")

    space.call("dvc", "plots", "diff", "-o", "plots", "HEAD", check=False)
    page = (space.folder / "plots" / "index.html").read_text()
    quality = drawn(page, "results_tables_quality_csv")
    assert quality["title"]["text"] == "FID of each run" and quality["mark"]["type"] == "bar"
    assert [quality["encoding"][axis]["field"] for axis in "xy"] == ["fid", "run"]
    layers = drawn(page, f"results_{SYSTEM}_w4a8_layer-errors_csv")
    assert layers["title"]["text"].startswith(f"{SYSTEM} w4a8: signal over quantization noise")
    values = layers["data"]["values"]
    assert {row["rev"] for row in values} == {"HEAD", "workspace"} and {row["index"] for row in values} == {"0", "1"}

    said = space.call("dvc", "metrics", "diff", "--json", check=False).stdout
    changes = json.JSONDecoder().raw_decode(said[said.index("{") :])[0]
    assert set(changes) >= {f"results/{SYSTEM}/w4a8/metrics.json", f"results/{SYSTEM}/w4a8/verification.json"}
    assert changes[f"results/{SYSTEM}/w4a8/metrics.json"]["fid"]["diff"] != 0

    said = space.call("dvc", "exp", "show", "--csv", "--only-changed", check=False).stdout
    (row,) = (each for each in csv.DictReader(io.StringIO(said[said.index("rev,") :])) if each["rev"] == "workspace")
    assert row["variants.w4a8.reconstruction.iterations"] == "7"
    measured = changes[f"results/{SYSTEM}/w4a8/metrics.json"]["fid"]["new"]
    assert float(row[f"results/{SYSTEM}/w4a8/metrics.json:fid"]) == measured


def test_snakemake_reports_when_each_stage_ran(space: Workspace) -> None:
    source = space.folder / "src/edadm/evaluation/metrics.py"
    source.write_text(source.read_text() + "changed = True\n")
    space.snakemake()
    space.snakemake("--report", "run.html")
    page = (space.folder / "run.html").read_text()
    assert all(f'"{rule}"' in page for rule in ("metrics", "tables", "report"))
    assert "starttime" in page and "endtime" in page

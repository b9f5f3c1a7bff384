"""Numbers that others published, and what was measured here beside each.

``published.csv`` is one number a row, with the protocol it was taken under and where it was read; several are of
reading notes and images, as their sources say, because the papers themselves could not be read.
"""

import csv
from pathlib import Path
from typing import Any

from edadm.files import read_json
from edadm.report import tables

NUMBERS = Path(__file__).with_name("published.csv")
COLUMNS = ("system", "method", "variant", "measure", "value", "protocol", "source")
NOT_RUN = "not run here"
MEASURES = {
    "fid": "FID",
    "sfid": "sFID",
    "is_mean": "IS",
    "clip_score": "CLIP score",
    "clip_score_loss": "CLIP score lost",
    "size_mb": "size MB",
    "speedup_gpu": "speed-up, GPU",
    "speedup_cpu": "speed-up, CPU",
    "speedup_arm": "speed-up, ARM",
}


def numbers() -> list[dict[str, str]]:
    """The rows of ``published.csv``, with the columns ``COLUMNS``."""
    with NUMBERS.open(newline="") as file:
        return list(csv.DictReader(file))


def _measured(params: Any, results: Path, system: str, variant: str) -> dict[str, float]:
    """What was measured here of a run, by the names that ``published.csv`` uses; only what there is."""
    folder, device = results / system / variant, params.pipeline.devices[0]
    found: dict[str, float] = {}
    metrics, size = folder / tables.METRICS_FILE["demo"], folder / f"engine-{device}" / "size.json"
    if metrics.exists():
        content = read_json(metrics)
        found |= {
            name: content[name] for name in ("fid", "sfid", "is_mean", "clip_score") if content.get(name) is not None
        }
    if size.exists():
        found["size_mb"] = tables.pick(read_json(size), ("quantized_file_bytes",), size)["quantized_file_bytes"] / 1e6
    return found


def beside(params: Any, results: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of each system of ``params`` by its name, each with ``here``, a text.

    ``params`` are those of the published runs. A run that was not measured, a variant that is not among the runs and a
    measure that is not taken here say so.
    """
    found = {}
    for system in params.systems:
        rows = [row for row in numbers() if row["system"] == system]
        measured = {
            run.variant: _measured(params, Path(results), system, run.variant)
            for run in params.runs.values()
            if run.system == system
        }
        for row in rows:
            value = measured.get(row["variant"], {}).get(row["measure"])
            row["here"] = NOT_RUN if value is None else f"{value:.2f}"
            row["label"] = MEASURES[row["measure"]]
        found[system] = rows
    return found

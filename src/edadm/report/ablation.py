"""The comparison of recipes: means over its repetitions, one row a recipe."""

from pathlib import Path
from statistics import mean, stdev
from typing import Any

from edadm.files import as_csv, as_markdown, atomic_write, read_json
from edadm.params import Params
from edadm.report.tables import pick, ratio

MEASURES = ("fid", "fid_ratio", "is_mean", "psnr_fp32")  # each a mean over the repetitions and a standard deviation
COLUMNS = ("variant", "calibrator", "repeats", "n", *(f"{name}{end}" for name in MEASURES for end in ("", "_sd")))


def rows(params: Params, results: Path) -> list[dict[str, Any]]:
    """A row per recipe of ``ablation.rows``, with the columns ``COLUMNS``; InputError when a measurement is missing.

    ``n`` is the images of each repetition, ``fid_ratio`` the FID over that of fp32 in the same repetition. Deviations
    are those of a sample of repetitions, None for a single one; the PSNR of fp32 to itself is None.
    """
    settings = params.ablation
    folder = results / settings.system / "ablation"

    def measured(variant: str) -> list[dict[str, Any]]:
        paths = [folder / variant / f"metrics-{repeat}.json" for repeat in settings.repeats]
        return [pick(read_json(path), ("n", "fid", "is_mean", "psnr_fp32"), path) for path in paths]

    exact = [each["fid"] for each in measured("fp32")]
    found = []
    for recipe in settings.rows:
        repeats = measured(recipe.variant)
        row = {
            "variant": recipe.variant,
            "calibrator": recipe.calibrator,
            "repeats": len(repeats),
            "n": repeats[0]["n"],
        }
        for each, fid in zip(repeats, exact, strict=True):
            each["fid_ratio"] = ratio(each["fid"], fid)
        for name in MEASURES:
            values = [each[name] for each in repeats]
            known = None not in values
            row[name] = mean(values) if known else None
            row[f"{name}_sd"] = stdev(values) if known and len(values) > 1 else None
        found.append(row)
    return found


def summary(found: list[dict[str, Any]]) -> str:
    """What ``rows`` gave as a table in Markdown: mean ± standard deviation."""

    def cell(row: dict[str, Any], name: str, digits: int) -> str:
        value, deviation = row[name], row[f"{name}_sd"]
        if value is None:
            return "–"
        return f"{value:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")

    lines = []
    for row in found:
        cells = (cell(row, name, digits) for name, digits in zip(MEASURES, (2, 3, 2, 1), strict=True))
        lines.append((f"`{row['variant']}`", row["calibrator"], *cells))
    return as_markdown(("recipe", "calibration", "FID", "FID / fp32", "IS", "PSNR to fp32, dB"), lines)


def write(params: Params, results: Path, out: Path) -> str:
    """Write the table to the CSV file ``out``; returns its summary."""
    found = rows(params, Path(results))
    atomic_write(Path(out), as_csv(COLUMNS, found))
    return summary(found)

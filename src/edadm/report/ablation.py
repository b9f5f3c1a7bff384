"""The comparison of recipes: means over its repetitions, one row a recipe."""

from pathlib import Path
from statistics import mean, stdev

from edadm.files import as_csv, atomic_write, read_json
from edadm.params import Params
from edadm.report.tables import pick, ratio

MEASURES = ("fid", "is_mean", "psnr_fp32")  # each becomes a mean over the repetitions and a standard deviation
COLUMNS = (
    "variant",
    "calibrator",
    "repeats",
    "n",
    "fid",
    "fid_sd",
    "fid_ratio",
    "is_mean",
    "is_mean_sd",
    "psnr_fp32",
    "psnr_fp32_sd",
)


def rows(params: Params, results: Path) -> list[dict]:
    """A row per recipe of ``ablation.rows``, with the columns ``COLUMNS``; InputError when a measurement is missing.

    ``n`` is the images of each repetition, ``fid_ratio`` the mean FID over that of fp32. Deviations are those of a
    sample of repetitions, None for a single one; the PSNR of fp32 to itself is None.
    """
    settings = params.ablation
    found = []
    for recipe in settings.rows:
        folder = results / settings.system / "ablation" / recipe.variant
        paths = [folder / f"metrics-{repeat}.json" for repeat in settings.repeats]
        measured = [pick(read_json(path), ("n", *MEASURES), path) for path in paths]
        row = {
            "variant": recipe.variant,
            "calibrator": recipe.calibrator,
            "repeats": len(paths),
            "n": measured[0]["n"],
        }
        for name in MEASURES:
            values = [each[name] for each in measured]
            known = None not in values
            row[name] = mean(values) if known else None
            row[f"{name}_sd"] = stdev(values) if known and len(values) > 1 else None
        found.append(row)
    exact = next(row["fid"] for row in found if row["variant"] == "fp32")
    return [row | {"fid_ratio": ratio(row["fid"], exact)} for row in found]


def write(params: Params, results: Path, out: Path) -> None:
    """Write the table to the CSV file ``out``."""
    atomic_write(Path(out), as_csv(COLUMNS, rows(params, Path(results))))

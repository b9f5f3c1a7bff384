"""The table of losses that reconstruction leaves."""

import csv
from pathlib import Path

from edadm.errors import InputError
from edadm.report.plots import Unit


def read_units(path: Path) -> list[Unit]:
    """The reconstruction units of a ``losses.csv``, in execution order; empty where nothing was learned."""
    units: dict[int, Unit] = {}
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                before, after = float(row["error_before"]), float(row["error_after"])
                unit = units.setdefault(int(row["index"]), Unit(row["unit"], row["kind"], before, after))
                unit.iterations.append(int(row["iteration"]))
                unit.losses.append(float(row["loss"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a table of losses ({error})") from error
    return [unit for _, unit in sorted(units.items())]

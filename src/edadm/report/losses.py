"""The table of losses that reconstruction leaves."""

import csv
from pathlib import Path

from edadm.errors import InputError
from edadm.report.plots import Unit


def read_units(path: Path) -> tuple[list[Unit], Unit | None]:
    """The reconstruction units of a ``losses.csv``, in execution order, and the whole network if that was tuned.

    Empty where nothing was learned.
    """
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
    found = [unit for _, unit in sorted(units.items())]
    return [unit for unit in found if unit.kind != "network"], next((u for u in found if u.kind == "network"), None)

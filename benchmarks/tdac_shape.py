"""Does TDAC of CIFAR-10 DDIM look as the authors draw it? Scores and counts beside values read off their figure.

    python benchmarks/tdac_shape.py results/cifar10-ddim/calibration-tdac.json      # after its calibration

The figure is `assets/struction.png` of EDA-DM's repository: 100 steps, 1,024 samples; step 100 is the first one drawn,
from noise. Values are read by eye, and the tolerances are wide enough for that.
"""

import sys
from pathlib import Path

import click
import numpy as np

from edadm.errors import InputError
from edadm.files import read_json

STEPS, SAMPLES = 100, 1024
# quantity, first and last step of a range, what is asked of the range, value in the figure, tolerance
SHAPE = (
    ("diversity", 100, 100, np.mean, 1.0, 0.05),
    ("diversity", 77, 73, np.mean, 0.1, 0.1),
    ("diversity", 52, 48, np.mean, 0.0, 0.1),
    ("diversity", 3, 1, np.mean, 0.3, 0.15),
    ("density", 100, 90, np.max, 0.08, 0.1),
    ("density", 44, 36, np.max, 1.0, 0.05),
    ("density", 5, 2, np.min, 0.0, 0.1),
    ("density", 1, 1, np.mean, 0.08, 0.1),
    ("counts", 100, 100, np.mean, 17, 2),
    ("counts", 80, 72, np.min, 5, 2),
    ("counts", 44, 36, np.max, 15, 2),
    ("counts", 100, 1, np.min, 4, 2),
    ("counts", 1, 1, np.mean, 5, 2),
)


def compare(description: dict) -> list[tuple[str, float, float, float]]:
    """Rows (what, found, figure, tolerance) of a calibration's description; InputError for one of another protocol."""
    asked = {"calibrator": "tdac", "steps": STEPS, "samples": SAMPLES}
    for name, value in asked.items():
        if description.get(name) != value:
            raise InputError(f"{name} is {description.get(name)!r}; the figure is of {value!r}")
    rows = []
    for name, first, last, reduce, figure, tolerance in SHAPE:
        found = float(reduce(description[name][STEPS - first : STEPS - last + 1]))
        where = f"step {first}" if first == last else f"steps {first} to {last}, {reduce.__name__}"
        rows.append((f"{name}, {where}", found, figure, tolerance))
    return rows


@click.command(help=__doc__.split("\n\n", 1)[0])
@click.argument("path", type=click.Path(path_type=Path))
def main(path: Path) -> None:
    """Print the rows; exit code 1 when one is outside its tolerance."""
    try:
        rows = compare(read_json(path))
    except InputError as error:
        raise click.ClickException(str(error)) from error
    apart = 0
    for what, found, figure, tolerance in rows:
        fits = abs(found - figure) <= tolerance
        apart += not fits
        click.echo(f"{what:32s} {found:7.2f}   figure {figure:5.2f} ± {tolerance:.2f}{'' if fits else '   APART'}")
    sys.exit(1 if apart else 0)


if __name__ == "__main__":
    main()

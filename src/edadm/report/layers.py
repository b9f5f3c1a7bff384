"""Where quantization hurts: the layers' distances from full precision, as plots for the page."""

import csv
from math import ceil, floor
from pathlib import Path
from statistics import median
from typing import Any

from markupsafe import Markup

from edadm.errors import InputError
from edadm.report import plots

FILE = "layer-errors.csv"


def read(path: Path) -> list[plots.Layer]:
    """The layers of a ``layer-errors.csv``, in execution order; those without noise are left out."""
    try:
        with path.open(newline="") as file:
            return [
                plots.Layer(row["layer"], int(row["index"]), float(row["sqnr_db"]), float(row["alone_sqnr_db"]))
                for row in csv.DictReader(file)
                if row["sqnr_db"] != "" and row["alone_sqnr_db"] != ""
            ]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a table of layers' errors ({error})") from error


def limits(layers: list[plots.Layer]) -> tuple[float, float]:
    """The dB axis on which all of ``layers`` are, in steps of 5."""
    values = [value for layer in layers for value in (layer.sqnr, layer.alone)]
    return (5 * floor(min(values) / 5), 5 * ceil(max(values) / 5)) if values else (0, 1)


def errors(folder: Path, system: str, variants: list[str]) -> dict[str, Any]:
    """A plot and key figures for each of the quantized ``variants``, all on one scale, and which are missing.

    ``folder`` is results/SYSTEM.
    """
    found = {variant: read(folder / variant / FILE) for variant in variants if (folder / variant / FILE).exists()}
    found = {variant: layers for variant, layers in found.items() if layers}
    scale = limits([layer for layers in found.values() for layer in layers])
    shown = [
        {
            "variant": variant,
            "layers": len(layers),
            "median": median(layer.sqnr for layer in layers),
            "least": min(layers, key=lambda layer: layer.sqnr),
            "least_alone": min(layers, key=lambda layer: layer.alone),
            "plot": Markup(plots.layer_errors(f"{system}-{variant}-layers", variant, layers, scale)),
        }
        for variant, layers in found.items()
    ]
    return {"shown": shown, "missing": [variant for variant in variants if variant not in found]}

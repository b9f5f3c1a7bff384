"""Recipes by their short names, and what differs between two of them."""

import re
from dataclasses import fields, is_dataclass, replace
from typing import Any

from edadm.errors import InputError
from edadm.params import Params, Recipe, Reconstruction, check

_NAME = re.compile(r"w(\d)a(\d)")


def recipe(name: str, **changes: Any) -> Recipe:
    """The recipe ``name``, wBaB with 2 to 8 bits for weights and activations, with ``changes`` to its fields.

    It is TDAC and FBR as the variants of params.yaml have it. ``changes`` are fields of ``Recipe`` and of
    ``Reconstruction``; with fewer weight bits than 8, the steps of tuning are half of its iterations if they are not
    given. InputError for an unknown name, field or value.

    >>> recipe("w4a8", iterations=500).reconstruction.iterations
    500
    """
    found = _NAME.fullmatch(name)
    if not found:
        raise InputError(f"recipe {name!r} is not of the form w4a8: bits of the weights and of the activations")
    weights, activations = map(int, found.groups())
    eight = weights == 8
    learning = {
        "method": "fbr",
        "iterations": 300,
        "batch": 16,
        "rate_rounding": 0.2,
        "rate_steps": 0.0003 if eight else 0.0001,
        "input_mix": 1.0,
        "activation_drop": 0.0,
        "bias_correction": True,
    }
    outer = {"weights": weights, "activations": activations, "eight_bit_full_resolution": 0.0 if eight else 0.05}
    inner = {entry.name for entry in fields(Reconstruction)}
    known = inner | {entry.name for entry in fields(Recipe)} - {"reconstruction"}
    for key, value in changes.items():
        if key not in known:
            raise InputError(f"a recipe has no field {key!r}; known: {', '.join(sorted(known))}")
        (learning if key in inner else outer)[key] = value
    made = Recipe(**outer, reconstruction=Reconstruction(**learning))
    check(made, "recipe")
    if eight or "tuning" in learning:
        return made
    return replace(made, reconstruction=replace(made.reconstruction, tuning=made.reconstruction.iterations // 2))


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """The fields of nested settings by dotted name."""
    found = {}
    for entry in fields(settings):
        value = getattr(settings, entry.name)
        name = f"{prefix}{entry.name}"
        found |= flat(value, f"{name}.") if is_dataclass(value) else {name: value}
    return found


def calibrators(params: Params, variant: str) -> tuple[str, ...]:
    """The calibrators that ``variant`` is used with, in runs and in the ablation."""
    runs = {**params.runs, **params.published.runs}.values()
    used = [run.calibrator for run in runs if variant == (run.recipe or run.variant)]
    used += [row.calibrator for row in params.ablation.rows if row.variant == variant]
    return tuple(dict.fromkeys(used))


def differences(params: Params, one: str, other: str) -> list[tuple[str, Any, Any]]:
    """(field, value in variant ``one``, value in ``other``) wherever the two differ; the calibrators come last."""
    first, second = (
        flat(params.variant(name)) | {"calibrator": calibrators(params, name) or None} for name in (one, other)
    )
    return [(name, first[name], second[name]) for name in first if first[name] != second[name]]

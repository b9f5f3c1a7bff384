"""What differs between two recipes."""

from dataclasses import fields, is_dataclass
from typing import Any

from edadm.params import Params


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
    used += [calibrator for name, calibrator in params.ablation.variants.items() if name == variant]
    return tuple(dict.fromkeys(used))


def differences(params: Params, one: str, other: str) -> list[tuple[str, Any, Any]]:
    """(field, value in variant ``one``, value in ``other``) wherever the two differ; the calibrators come last."""
    first, second = (
        flat(params.variant(name)) | {"calibrator": calibrators(params, name) or None} for name in (one, other)
    )
    return [(name, first[name], second[name]) for name in first if first[name] != second[name]]

"""The kinds of values in params.yaml: each makes a dataclass field that says what is allowed."""

from collections.abc import Callable
from dataclasses import MISSING, Field, field
from typing import Any

TYPES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
# Of numbers that no machine and no learning has a use for. As for seeds, PyTorch's CPU generator takes 32 bits of them:
# beyond those, others give the same images again.
BOUND, BELOW = 2**31, "below 2^31"


def checked(allowed: str, holds: Callable[[Any], bool], default: Any = MISSING) -> Any:
    """A field for whose value ``holds`` must be true (of a list: for each element); ``allowed`` says that in words."""
    return field(default=default, metadata={"allowed": allowed, "holds": holds})


def one_of(*names: str, default: Any = MISSING) -> Any:
    """One of the names."""
    return checked(f"one of {', '.join(names)}", lambda value: value in names, default)


def some_of(*names: str, default: Any = MISSING) -> Any:
    """A list, not empty, of some of the names."""
    return checked(f"a list of one or more of {', '.join(names)}", lambda value: value in names, default)


def at_least(smallest: float, default: Any = MISSING) -> Any:
    """A number not below ``smallest``, but below ``BOUND``."""
    return checked(f"at least {smallest}, {BELOW}", lambda value: smallest <= value < BOUND, default)


def above_zero(default: Any = MISSING) -> Any:
    """A number above 0, but below ``BOUND``."""
    return checked(f"above 0, {BELOW}", lambda value: 0 < value < BOUND, default)


def between(low: float, high: float, default: Any = MISSING) -> Any:
    """A number from ``low`` to ``high``, both included."""
    return checked(f"from {low} to {high}", lambda value: low <= value <= high, default)


def optional(entry: Any) -> Any:
    """What ``entry`` allows, or null, which is the default."""
    allowed, holds = entry.metadata["allowed"], entry.metadata["holds"]
    return checked(f"{allowed}, or null", lambda value: value is None or holds(value), default=None)


def called(key: str) -> Any:
    """A field with a name of its own in the file: ``key``, which is none in Python."""
    return field(metadata={"key": key})


def key_of(entry: Field) -> str:
    """What a field is called in the file."""
    return entry.metadata.get("key", entry.name)


def bits() -> Any:
    """A width in bits; 32 is unquantized."""
    return checked("2 to 8, or 32 (not quantized)", lambda value: 2 <= value <= 8 or value == 32)


class Settings:
    """A group of settings, whose lists become tuples."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))

"""What differs between two runs, or between two folders of results: numbers, recipes, sizes."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from edadm.errors import InputError
from edadm.files import read_json

# files of a run, or of a system, whose contents are compared
JSONS = (
    "metrics.json",
    "metrics-full.json",
    "verification.json",
    "latency-cpu.json",
    "reference.json",
    "size.json",
    "calibration-tdac.json",
)
DEPTH = 4  # results/SYSTEM/VARIANT/engine-DEVICE/size.json


class Difference(NamedTuple):
    """A value that is not the same in both, None where one has none."""

    file: str  # path below the folders
    key: str
    first: Any
    second: Any

    def __str__(self) -> str:
        """One line, with the change when it can be given.

        >>> print(Difference("metrics.json", "fid", 4.0, 5.0))
        metrics.json fid: 4 -> 5 (+25.0%)
        """
        shown = f"{self.file} {self.key}: {_short(self.first)} -> {_short(self.second)}"
        if all(type(value) in (int, float) for value in (self.first, self.second)) and self.first:
            shown += f" ({(self.second - self.first) / abs(self.first):+.1%})"
        return shown


def compare(one: Path, other: Path) -> list[Difference]:
    """All differences between two folders: of two variants, of two systems, or of two whole results.

    What only one of them holds is one difference. InputError when a folder holds no results.
    """
    first, second = _contents(Path(one)), _contents(Path(other))
    return list(_differences(first, second))


def _contents(folder: Path) -> dict[str, dict[str, Any]]:
    """The values of every results file below ``folder``, by its path there."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    found = {}
    patterns = ["/".join(["*"] * depth) for depth in range(1, DEPTH + 1)]
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        if path.name in JSONS:
            found[path.relative_to(folder).as_posix()] = dict(_flat(read_json(path)))
        elif path.name == "config.json" and isinstance(held := read_json(path).get("quantization_config"), Mapping):
            recipe = held.get("recipe", {})
            found[path.relative_to(folder).as_posix()] = dict(_flat({"recipe": recipe}))
    if not found:
        raise InputError(f"{folder}: holds no results, such as metrics.json; give a folder of results/")
    return found


def _flat(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested JSON by dotted name; rows of latencies by what they are."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flat(value, f"{prefix}{key}.")
    elif isinstance(content, list) and content and isinstance(content[0], Mapping):
        for number, row in enumerate(content):
            name = (
                f"{row['configuration']}, batch {row['batch']}"
                if {"configuration", "batch"} <= row.keys()
                else str(number)
            )
            yield from _flat(row, f"{prefix}{name}.")
    else:
        yield prefix.rstrip("."), content


def _differences(first: dict[str, dict[str, Any]], second: dict[str, dict[str, Any]]) -> Iterator[Difference]:
    for file in sorted(first.keys() | second.keys()):
        one, other = first.get(file), second.get(file)
        if one is None or other is None:
            held = ["missing" if each is None else "there" for each in (one, other)]
            yield Difference(file, "file", *held)
            continue
        for key in [*one, *(key for key in other if key not in one)]:
            if one.get(key) != other.get(key):
                yield Difference(file, key, one.get(key), other.get(key))


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"

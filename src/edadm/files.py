"""Writing without half-written files: everything goes to a temporary name first and is renamed when complete."""

import csv
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edadm.errors import InputError


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write ``content`` to ``path``, making its folder when needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, *names: str) -> Iterator[Path]:
    """A new folder to fill, which takes ``path``'s place when the block ends without an error.

    What is there goes if it is an older one of the same: InputError when it holds what the new one does not, and for a
    mount point. When ``names`` say what the new one will hold, that is before the block. A link stays one.
    """
    path = Path(path).resolve()
    check_no_mount(path)
    if names and path.exists():
        _check_older(path, names)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            _check_older(path, [made.name for made in temporary.iterdir()])
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_no_mount(path: Path) -> None:
    """InputError for a mount point."""
    if path.is_mount():
        raise InputError(f"{path}: is a mount point, in whose place nothing can be put; give a folder inside it")


def _check_older(old: Path, names: Iterable[str]) -> None:
    """InputError when ``old`` holds what is not among ``names``; of numbered files there may be more."""
    kinds = {re.sub(r"\d+", "", name) for name in names}
    others = sorted(path.name for path in old.iterdir() if re.sub(r"\d+", "", path.name) not in kinds)
    if others:
        raise InputError(
            f"{old}: holds {others[0]}, which would be lost, since what is made has none; give another folder"
        )


def clear(folder: Path, *patterns: str) -> None:
    """Remove what in a folder is called so, and the folder when nothing else is in it."""
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON; not-a-number is refused, since JSON has none."""
    atomic_write(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; InputError when it is missing, is not JSON or holds something else."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; run the stage that makes it first") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a JSON object")
    return content


def _cell(value: Any) -> str:
    # six digits are more than any of these measurements carries, and spare readers 0.30000000000000004
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)


def as_markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, without a line break at its end."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def as_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """The ``columns`` of the rows as the text of a CSV file, None as nothing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(row[column]) for column in columns] for row in rows)
    return text.getvalue()


def sources_sha256(folder: Path) -> str:
    """SHA-256 over the Python sources below a folder, so that nothing that other code began is gone on with."""
    lines = [f"{path.relative_to(folder)} {sha256(path)}\n" for path in sorted(folder.rglob("*.py"))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def sha256(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

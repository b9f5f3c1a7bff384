"""docs/params.md: the keys of params.yaml as tables, from the schema and the text below each of its fields."""

import ast
import inspect
import json
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, get_args, get_origin

from edadm.params import schema
from edadm.params.kinds import BELOW, TYPES, key_of

HEAD = f"""\
# `params.yaml`, key by key

Made by `edadm params > docs/params.md`.

`params.yaml` says what is built and how. It is checked before anything runs: a wrong key or value gives one line with
the key, the value and what is allowed. After an edit, `snakemake --cores 2` and `dvc repro` run only the stages that
depend on the edited keys; `snakemake -n` says which. What the words mean is in [concepts.md](concepts.md). A key
without a default has to be given, and a number without an upper limit is {BELOW}.
"""
TABLE = "| key | allowed | default | meaning |\n|---|---|---|---|"


def text() -> str:
    """The whole document."""
    seen: dict[type, str] = {}
    parts, rest = [HEAD], []
    for entry in fields(schema.Params):
        kind, name = _settings(entry.type, key_of(entry))
        if kind is None:
            rest.append(_row(entry.name, _allowed(entry), entry, schema.Params))
            continue
        table = "\n".join([TABLE, *_rows(kind, name, "", seen)])
        parts.append(f"## `{name}`\n\n{_summary(kind)}\n\n{table}\n")
    parts.append("## The rest\n\n" + "\n".join([TABLE, *rest]) + "\n")
    return "\n".join(parts)


def _rows(kind: type, above: str, key: str, seen: dict[type, str]) -> Iterator[str]:
    """A row for each key of ``kind`` at any depth; what was shown before is one row that says where.

    ``above`` is the heading that the keys are below, ``key`` what they begin with there.
    """
    seen[kind] = ".".join(filter(None, (above, key)))
    for entry in fields(kind):
        inner, name = _settings(entry.type, key_of(entry))
        name = ".".join(filter(None, (key, name)))
        if inner is None:
            yield _row(name, _allowed(entry), entry, kind)
        elif inner in seen:
            yield _row(name, f"as `{seen[inner]}`", entry, kind)
        else:
            if entry.name in _meanings(kind):
                yield _row(name, "a mapping", entry, kind)
            yield from _rows(inner, above, name, seen)


def _settings(kind: Any, name: str) -> tuple[type | None, str]:
    """The dataclass that a field holds, if any, with its name: of a mapping ``name.NAME``, of a list ``name[N]``."""
    choices = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    for choice in choices:
        if is_dataclass(choice):
            return choice, name
        if get_origin(choice) is dict and is_dataclass(get_args(choice)[1]):
            return get_args(choice)[1], f"{name}.NAME"
        if get_origin(choice) is tuple and is_dataclass(get_args(choice)[0]):
            return get_args(choice)[0], f"{name}[N]"
    return None, name


def _row(key: str, allowed: str, entry: Field, owner: type) -> str:
    return f"| `{key}` | {allowed} | {_default(entry)} | {_meanings(owner).get(entry.name, '')} |"


def _allowed(entry: Field) -> str:
    allowed = entry.metadata.get("allowed", "").replace(f", {BELOW}", "")  # the document's head says it
    if allowed.startswith(("one of", "a list", "2 to 8", "8, or")):
        return allowed
    kinds = [entry.type, *get_args(entry.type)]
    named = next((TYPES[kind] for kind in kinds if kind in TYPES), "")
    if get_origin(entry.type) is tuple:
        named = {"a text": "a list of names", "a whole number": "a list of whole numbers"}[named]
    elif get_origin(entry.type) is dict:
        named = "a mapping"
    if isinstance(entry.type, UnionType) and not allowed:
        named += ", or null"
    return ", ".join(filter(None, (named, allowed)))


def _default(entry: Field) -> str:
    if entry.default is MISSING:
        return ""
    value = entry.default
    if isinstance(value, tuple):
        return f"`[{', '.join(value)}]`"
    if value is None or isinstance(value, bool):
        return f"`{json.dumps(value)}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _summary(kind: type) -> str:
    return inspect.getdoc(kind).replace("``", "`").replace("\n", " ")


@cache
def _meanings(kind: type) -> dict[str, str]:
    """What stands below each field of a dataclass of the schema, by the field's name."""
    found = dict(_meanings(kind.__base__)) if is_dataclass(kind.__base__) else {}
    (body,) = (node.body for node in ast.parse(inspect.getsource(kind)).body)
    for field, below in zip(body, body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[field.target.id] = " ".join(below.value.value.split()).replace("|", "\\|")
    return found

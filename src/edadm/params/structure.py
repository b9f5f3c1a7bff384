"""Plain containers as the dataclasses of the schema: the first value that does not fit is one line with its key."""

from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from numbers import Integral, Real
from types import UnionType
from typing import Any, NoReturn, get_args, get_origin

from edadm.errors import InputError
from edadm.params.kinds import TYPES, key_of

LEAVES = {int: Integral, float: Real, str: str, bool: bool}


def structured(kind: Any, content: Any, key: str = "", allowed: str = "") -> Any:
    """``content`` as ``kind``: a dataclass of the schema, or the type of one of its fields.

    ``key`` is where it stands, ``allowed`` what its field takes, in words. Raises InputError for an unknown or missing
    key, a wrong type and a value that its field does not allow.
    """
    if isinstance(kind, UnionType):  # with None
        if content is None:
            return None
        kind = get_args(kind)[0]
    if is_dataclass(kind):
        return _group(kind, content, key)
    if get_origin(kind) is dict:
        _must_be_mapping(content, key)
        for name in content:
            if not isinstance(name, str):
                _refuse(key, name, "names")
        return {name: structured(get_args(kind)[1], each, _within(key, name)) for name, each in content.items()}
    if get_origin(kind) is tuple:
        if not isinstance(content, list | tuple):
            _refuse(key, content, allowed or "a list")
        inner = get_args(kind)[0]
        return tuple(structured(inner, each, f"{key}[{place}]", allowed) for place, each in enumerate(content))
    return content if kind is Any else _leaf(kind, content, key, allowed)


def check(settings: Any, key: str = "") -> None:
    """InputError with one line for the first value of ``settings``, made by hand, that its field does not allow."""
    structured(type(settings), asdict(settings), key)


def _group(kind: type, content: Any, key: str) -> Any:
    known = {key_of(entry): entry for entry in fields(kind)}
    _must_be_mapping(content, key, f" with the keys {', '.join(known)}")
    for name in content:
        if name not in known:
            raise InputError(f"{_within(key, name)}: unknown key; known here: {', '.join(known)}")
    values = {}
    for name, entry in known.items():
        inner = _within(key, name)
        if name in content:
            values[entry.name] = structured(entry.type, content[name], inner, entry.metadata.get("allowed", ""))
            _must_hold(entry, values[entry.name], inner)
        elif entry.default is MISSING and entry.default_factory is MISSING:
            raise InputError(f"{inner}: is missing")
    return kind(**values)


def _must_be_mapping(content: Any, key: str, keys: str = "") -> None:
    if not isinstance(content, Mapping):
        _refuse(key or "the file", content, f"a mapping{keys}")


def _must_hold(entry: Field, value: Any, key: str) -> None:
    if "holds" in entry.metadata:
        values = value if isinstance(value, tuple) else (value,)
        if not values or len(set(values)) < len(values) or not all(map(entry.metadata["holds"], values)):
            _refuse(key, list(value) if isinstance(value, tuple) else value, entry.metadata["allowed"])


def _leaf(kind: type, content: Any, key: str, allowed: str) -> Any:
    try:
        if isinstance(content, LEAVES[kind]) and isinstance(content, bool) == (kind is bool):
            return kind(content)
    except OverflowError:  # a whole number beyond what a float holds
        pass
    _refuse(key, content, ", ".join(filter(None, (TYPES[kind], allowed))))


def _refuse(key: str, content: Any, allowed: str) -> NoReturn:
    raise InputError(f"{key}: {content!r} is not allowed; allowed: {allowed}")


def _within(key: str, name: Any) -> str:
    return f"{key}.{name}".lstrip(".")

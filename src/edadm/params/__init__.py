"""params.yaml as checked, read-only dataclasses: what is wrong with it is one line, before anything runs."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from edadm.errors import InputError
from edadm.params.checks import disagreements
from edadm.params.kinds import TYPES
from edadm.params.reading import parse, text_of
from edadm.params.schema import (
    CALIBRATORS,
    AblationParams,
    AblationRow,
    CalibrationParams,
    CheckpointParams,
    EngineParams,
    FileParams,
    ImagesParams,
    LatencyParams,
    LimitParams,
    MetricsParams,
    OriginalParams,
    Params,
    PipelineParams,
    PublishedParams,
    PublishedSystemParams,
    Recipe,
    Reconstruction,
    ReferenceParams,
    Run,
    SamplerParams,
    SamplingParams,
    SystemParams,
)

__all__ = [
    "CALIBRATORS",
    "AblationParams",
    "AblationRow",
    "CalibrationParams",
    "CheckpointParams",
    "EngineParams",
    "FileParams",
    "ImagesParams",
    "LatencyParams",
    "LimitParams",
    "MetricsParams",
    "OriginalParams",
    "Params",
    "PipelineParams",
    "PublishedParams",
    "PublishedSystemParams",
    "Recipe",
    "Reconstruction",
    "ReferenceParams",
    "Run",
    "SamplerParams",
    "SamplingParams",
    "SystemParams",
    "check",
    "load",
]


def _wrong_shapes(kind: Any, content: Any, path: str) -> Iterator[str]:
    """Each place with an unknown key, or where only one of the content and the schema has a mapping or a list.

    OmegaConf does not say where, and takes a mapping for an element of a list of numbers.
    """
    if isinstance(kind, UnionType):  # with None
        kind = type(None) if content is None else get_args(kind)[0]
    origin = get_origin(kind)
    if origin is list and isinstance(content, list):
        for place, each in enumerate(content):
            yield from _wrong_shapes(get_args(kind)[0], each, f"{path}[{place}]")
    if kind in TYPES and isinstance(content, dict | list):
        yield f"{path}: {content!r} is not allowed; allowed: {TYPES[kind]}"
    if is_dataclass(kind):
        inner = {entry.name: entry.type for entry in fields(kind)}
    elif origin is dict:
        inner = dict.fromkeys(content if isinstance(content, dict) else (), get_args(kind)[1])
    else:
        return
    if not isinstance(content, dict):
        keys = f" with the keys {', '.join(inner)}" if inner else ""
        yield f"{path or 'the file'}: {content!r} is not allowed; allowed: a mapping{keys}"
        return
    for name in content.keys() - inner.keys():
        yield f"{path}.{name}: unknown key; known here: {', '.join(inner)}".lstrip(".")
    for name in inner.keys() & content.keys():
        yield from _wrong_shapes(inner[name], content[name], f"{path}.{name}".lstrip("."))


def _explain(error: OmegaConfBaseException) -> str:
    """What OmegaConf found, as "key: what is wrong; what is allowed"."""
    owner = error.object_type
    known = {entry.name: entry for entry in fields(owner)} if is_dataclass(owner) else {}
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}: is missing"
    reason = str(error.msg).splitlines()[0]
    if error.key in known:
        entry = known[error.key]
        allowed = [TYPES.get(entry.type, ""), entry.metadata.get("allowed", "")]
        return f"{error.full_key}: {reason}; allowed: {', '.join(filter(None, allowed)) or 'see docs/params.md'}"
    return f"{error.full_key or 'the file'}: {reason}"


def _bad_values(settings: Any, path: str) -> Iterator[str]:
    """Each value, at any depth, that its field does not allow."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            yield from _bad_values(value, f"{path}.{key}")
    if isinstance(settings, tuple):
        for place, value in enumerate(settings):
            yield from _bad_values(value, f"{path}[{place}]")
    if not is_dataclass(settings):
        return
    for entry in fields(settings):
        key, value = f"{path}.{entry.name}".lstrip("."), getattr(settings, entry.name)
        if "holds" in entry.metadata:
            values = value if isinstance(value, tuple) else (value,)
            if not values or len(set(values)) < len(values) or not all(map(entry.metadata["holds"], values)):
                shown = list(value) if isinstance(value, tuple) else value
                yield f"{key}: {shown!r} is not allowed; allowed: {entry.metadata['allowed']}"
        else:
            yield from _bad_values(value, key)


def load(path: Path | str = "params.yaml") -> Params:
    """The parameters in ``path``; InputError with one line (key, value, what is allowed) for the first wrong one."""
    path = Path(path)
    return _checked(text_of(path), path)


@lru_cache(maxsize=4)  # OmegaConf takes a quarter of a second, and a process may ask more than once
def _checked(text: str, path: Path) -> Params:
    try:
        content = parse(text, path)
        for problem in _wrong_shapes(Params, OmegaConf.to_container(content), ""):
            raise InputError(f"{path}: {problem}")
        checked = OmegaConf.merge(OmegaConf.structured(Params), content)
        params: Params = OmegaConf.to_object(checked)
    except OmegaConfBaseException as error:
        raise InputError(f"{path}: {_explain(error)}") from error
    for problem in (*_bad_values(params, ""), *disagreements(params)):
        raise InputError(f"{path}: {problem}")
    return params


def check(settings: Any, path: str = "") -> None:
    """InputError with one line for the first value of ``settings``, made by hand, that its field does not allow."""
    for problem in _bad_values(settings, path):
        raise InputError(problem)

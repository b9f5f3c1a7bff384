"""params.yaml as checked, read-only dataclasses: what is wrong with it is one line, before anything runs."""

from functools import lru_cache
from pathlib import Path

from edadm.errors import InputError
from edadm.params.checks import disagreements
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
from edadm.params.structure import check, structured
from edadm.params.train import AutoencoderTraining, ClassifierTraining, DiffusionTraining, LatentTraining, TrainParams

__all__ = [
    "CALIBRATORS",
    "AblationParams",
    "AblationRow",
    "AutoencoderTraining",
    "CalibrationParams",
    "CheckpointParams",
    "ClassifierTraining",
    "DiffusionTraining",
    "EngineParams",
    "FileParams",
    "ImagesParams",
    "LatencyParams",
    "LatentTraining",
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
    "TrainParams",
    "check",
    "load",
]


def load(path: Path | str = "params.yaml") -> Params:
    """The parameters in ``path``; InputError with one line (key, value, what is allowed) for the first wrong one."""
    path = Path(path)
    return _checked(text_of(path), path)


@lru_cache(maxsize=4)  # a process may ask more than once
def _checked(text: str, path: Path) -> Params:
    content = parse(text, path)
    try:
        params = structured(Params, content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    for problem in disagreements(params):
        raise InputError(f"{path}: {problem}")
    return params

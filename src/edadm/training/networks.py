"""Settings of diffusers' classes, which params.yaml takes as they are: tried before anything is trained."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DDIMScheduler

from edadm.errors import InputError

PREDICTIONS = ("epsilon", "v_prediction")  # what a network can be trained for here


@contextmanager
def trial(key: str) -> Iterator[None]:
    """Networks that are made and called in the block take no memory; InputError that names ``key`` when they fail."""
    try:
        with torch.device("meta"), torch.no_grad():
            yield
    except Exception as error:  # an attribute of None, a missing key: anything can come of a wrong type
        raise InputError(f"{key}: diffusers refuses it ({' '.join(str(error).split())[:500]})") from error


def check_scheduler(key: str, settings: Mapping[str, Any]) -> None:
    """InputError, that names ``key``, unless ``settings`` make a DDIMScheduler that can be trained and drawn with."""
    with trial(key):
        scheduler = DDIMScheduler(**settings)
        scheduler.set_timesteps(1)
    found = scheduler.config.prediction_type
    if found not in PREDICTIONS:
        raise InputError(f"{key}.prediction_type: {found!r} is not allowed; allowed: {', '.join(PREDICTIONS)}")

"""EDA-DM: from a diffusion model's checkpoint to a low-bit integer model, with the numbers that prove it.

In Python::

    data = edadm.calibrate(pipe, prompts)                      # a diffusers pipeline, its own scheduler
    quantized = edadm.quantize(pipe.unet, data, "w4a8")
    quantized.save_pretrained("quantized")
    pipe.unet = edadm.load("quantized")                        # the pipeline as it was, in integers
"""

import sys
from importlib import import_module
from typing import Any

from edadm import _torchvision  # noqa: F401  (before anything that imports torchvision)

# OpenVINO reports every import and conversion to a service of its maker, from processes of its own, when it finds this
# package: where it finds none, it does without
sys.modules.setdefault("openvino_telemetry", None)

# where each name comes from: imported when it is asked for, since diffusers and OpenVINO take seconds
_PLACES = {
    "InputError": "edadm.errors",
    "ModelMixin": "diffusers",  # when diffusers loads a QuantizedUNet, it looks here for the base class that says how
    "QuantizedUNet": "edadm.quantized_unet",
    "calibrate": "edadm.pipelines.calibrate",
    "load": "edadm.api",
    "quantize": "edadm.api",
    "recipe": "edadm.recipes",
}
__all__ = ["InputError", "QuantizedUNet", "calibrate", "load", "quantize", "recipe"]  # noqa: F822


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_PLACES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

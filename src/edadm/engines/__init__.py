"""Integer execution of a quantized checkpoint: what is measured is what is shipped.

``reference`` computes the checkpoint's exact integers in plain PyTorch; every other engine is a module with
``deploy(quantized, out)``, which writes an engine folder, and ``load(engine_dir, batch, ...)``, which brings back a
callable ``(x, t) -> output``, or ``(x, t, context) -> output`` for a conditional network. Each must agree with the
reference on every layer.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from edadm.errors import InputError
from edadm.files import read_json

Engine = Callable[..., Tensor]
DEVICES = ("cpu", "cuda", "onnx")  # each a module of this package, imported only when it is used


def load(
    engine_dir: Path | str, batch: int, body: str = "f32", threads: int = 2, cache_dir: Path | None = None
) -> Engine:
    """The engine in ``engine_dir`` for ``batch`` images at once, of the device that its engine.json names.

    The CPU's keeps what it compiled in ``cache_dir``, and loads in half the time once it is there.
    """
    device = _description(engine_dir).get("device")
    if device not in DEVICES:
        raise InputError(f"{engine_dir}: engine.json names device {device!r}, not one of {', '.join(DEVICES)}")
    return import_module(f"{__name__}.{device}").load(Path(engine_dir), batch, body, threads, cache_dir)


def deploy(quantized: Path, device: str, out: Path) -> None:
    """Build the engine folder ``out`` of a device from a checkpoint folder, quantized or full-precision."""
    import_module(f"{__name__}.{device}").deploy(quantized, out)


def _description(engine_dir: Path | str) -> dict[str, Any]:
    return read_json(Path(engine_dir) / "engine.json")

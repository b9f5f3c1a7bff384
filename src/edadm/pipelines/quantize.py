"""From a pipeline's folder to one with a quantized U-Net, in steps that a killed run need not repeat."""

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from edadm.errors import InputError
from edadm.files import atomic_folder, atomic_write, check_no_mount, clear, sha256, sources_sha256
from edadm.params import CalibrationParams, Recipe
from edadm.pipelines import calibrate, folder
from edadm.pipelines.draw import drawing
from edadm.quantization import calibration, reconstruction

log = logging.getLogger(__name__)


def run(
    source: Path,
    out: Path,
    recipe: Recipe,
    settings: CalibrationParams,
    calibrator: str,
    prompts: Sequence[str] | None,
    class_labels: Sequence[int] | None,
    scratch: Path,
    cache_bytes: float = math.inf,
    **call: Any,
) -> None:
    """Quantize the U-Net of the pipeline in ``source`` and write the whole pipeline to ``out``, at once.

    ``call`` is for the pipeline while it calibrates (``steps``, ``guidance_scale``). What is finished is kept in
    ``scratch`` until ``out`` is written. InputError for a folder that cannot be quantized, an ``out`` that holds
    something else, and whatever ``calibrate`` and the recipe do not allow.
    """
    source, out, scratch = Path(source), Path(out), Path(scratch)
    parts = folder.index(source)
    _refuse_to_overwrite(source, out)
    for other in (source, out):
        if _overlap(scratch, other):
            raise InputError(f"{scratch}: what is finished cannot be kept there, it is not apart from {other}")
    if folder.is_quantized(source):
        raise InputError(f"{source}: its U-Net is quantized already")
    pipeline = folder.open_pipeline(source)
    draw = drawing(pipeline, prompts, class_labels, settings.seed, latent=True, **call)
    files = sorted(path for name in parts for path in (source / name).glob("*") if path.suffix != ".bin")
    settled = [[sha256(path) for path in files if path.is_file()], asdict(settings), calibrator]
    code = [torch.__version__, sources_sha256(Path(__file__).parent), reconstruction.code()]
    mark = _hash(settled, prompts, class_labels, call, code)
    data = scratch / "calibration.safetensors"

    def draw_calibration() -> None:
        log.info("calibration: %d trajectories", settings.samples)
        with calibrate.quiet(pipeline):
            found = calibrate.collect(pipeline.unet, draw, calibrator, settings, call.get("steps"))
        calibration.write(data, *found, calibrator, settings, folder.weights(source)[0])

    def learn() -> None:
        unit_folder = scratch / "units"
        weights = folder.weights(source)
        reconstruction.run(pipeline.unet, None, weights, data, recipe, unit_folder, scratch / "unet", cache_bytes)
        shutil.copyfile(data.with_suffix(".json"), scratch / "unet" / "calibration.json")

    _once(scratch, "calibration", mark, draw_calibration)
    _once(scratch, "unet", _hash(mark, asdict(recipe)), learn)
    with atomic_folder(out) as new:
        folder.assemble(source, scratch / "unet", new)
    clear(scratch, "calibration.safetensors", "calibration.json", "calibration.mark", "unet", "unet.mark", "units")


def _overlap(a: Path, b: Path) -> bool:
    """Whether one folder is the other, or inside it."""
    one, other = a.resolve(), b.resolve()
    return one == other or one in other.parents or other in one.parents


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _once(scratch: Path, name: str, mark: str, make: Callable[[], None]) -> None:
    """Call ``make`` unless it was done before for the same ``mark``."""
    done = scratch / f"{name}.mark"
    if done.is_file() and done.read_text() == mark:
        log.info("%s: kept from before", name)
        return
    done.unlink(missing_ok=True)
    make()
    atomic_write(done, mark)


def _refuse_to_overwrite(source: Path, out: Path) -> None:
    """InputError unless ``out`` is free, or holds an older result of the same command."""
    if _overlap(source, out):
        raise InputError(f"{out}: must be outside {source}, which stays as it is")
    if out.is_dir() and any(out.iterdir()):
        try:
            old = folder.is_quantized(out)
        except InputError:
            old = False
        if not old:
            raise InputError(f"{out}: is there, and is not a quantized pipeline; give another folder")
    elif out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file")
    check_no_mount(out)

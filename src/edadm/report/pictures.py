"""The pictures of docs/concepts.md: plots of the report as files of their own, and a strip of samples."""

import io
import re
from pathlib import Path

import numpy as np
from PIL import Image

from edadm.errors import InputError
from edadm.files import atomic_write, read_json
from edadm.report import layers, plots, tables
from edadm.report.gallery import first_shard
from edadm.report.losses import read_units

CSS = Path(__file__).with_name("page.css")
SEEDS, SCALE, GAP = 12, 2, 4  # of the strip: columns, pixels of the file for each of an image, pixels between images


def standalone(svg: str) -> str:
    """An inline ``<svg>`` of ``plots`` as a file: with its name spaces, and the page's light colours on its ground."""
    light = CSS.read_text().partition("}")[0]
    colours = "".join(f"--{name}:{value};" for name, value in re.findall(r"--([\w-]+): ([^;]+);", light))
    style = f"<style>svg{{{colours}background:var(--page)}}</style>"
    opening = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    svg = svg.replace("<svg ", opening, 1)
    return svg.replace(">", f">{style}", 1) + "\n"


def strip(system: Path, variants: list[str]) -> bytes:
    """A PNG with a row per variant and a column per seed, the first that all share; gaps are transparent."""
    shards = {variant: first_shard(system / variant / "samples") for variant in variants}
    missing = [variant for variant, shard in shards.items() if shard is None]
    if missing:
        raise InputError(f"{system / missing[0] / 'samples'}: no samples there; run the stage samples first")
    seeds = [seed for seed in shards[variants[0]] if all(seed in shard for shard in shards.values())][:SEEDS]
    height, width, _ = shards[variants[0]][seeds[0]].shape
    pitch = SCALE * height + GAP, SCALE * width + GAP
    picture = np.zeros((pitch[0] * len(variants) - GAP, pitch[1] * len(seeds) - GAP, 4), np.uint8)
    for row, shard in enumerate(shards.values()):
        for column, seed in enumerate(seeds):
            large = np.repeat(np.repeat(shard[seed], SCALE, 0), SCALE, 1)
            place = picture[row * pitch[0] :, column * pitch[1] :][: SCALE * height, : SCALE * width]
            place[..., :3], place[..., 3] = large, 255
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", optimize=True)
    return file.getvalue()


def write(results: Path, system: str, variants: list[str], variant: str, calibrator: str, out: Path) -> None:
    """Write the pictures of one system to the folder ``out``; ``variant`` is the one whose learning is shown.

    InputError, before anything is written, when a result that is drawn is missing.
    """
    folder = Path(results) / system
    allocation = folder / f"calibration-{calibrator}.json"
    content = tables.pick(read_json(allocation), ("density", "diversity", "counts"), allocation)
    counts = content["counts"]
    losses, errors = folder / variant / "quantized" / "losses.csv", folder / variant / layers.FILE
    for path in (losses, errors):
        if not path.exists():
            raise InputError(f"{path}: no such file; run the stage that makes it first")
    found = layers.read(errors)
    drawn = {
        "density": plots.per_step("density", "Density", content["density"]),
        "diversity": plots.per_step("diversity", "Diversity", content["diversity"]),
        "allocation": plots.per_step("allocation", "Samples taken", counts, sum(counts) / len(counts)),
        "reconstruction": plots.unit_errors("reconstruction", variant, read_units(losses)[0]),
        "layers": plots.layer_errors("layers", variant, found, layers.limits(found)),
    }
    files = {f"{name}.svg": standalone(svg) for name, svg in drawn.items()}
    for name, made in (files | {"samples.png": strip(folder, variants)}).items():
        atomic_write(Path(out) / name, made)

"""How large the files of every system are, U-Net and first stage, beside the arithmetic and the published sizes.

    python benchmarks/compression.py --out benchmarks/results/compression.csv

Checkpoints of published systems have random weights; both networks are rounded to nearest on min-max grids. Sizes are
MB (10⁶ bytes) of the files; the arithmetic counts the bits of the weights and 4 bytes for every scale and float.
"""

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import click
import yaml
from full_size import calibrate, quantize, settings
from latency import SYSTEMS

from edadm.files import as_csv, atomic_write
from edadm.quantization import checkpoint
from edadm.report.published import numbers

COLUMNS = ("unet_mb", "unet_arithmetic_mb", "first_stage_mb", "first_stage_arithmetic_mb", "together_mb", "smaller")
VARIANTS = ("w8a8", "w4a8")
HEAD = ("system", "variant", *COLUMNS, "published_mb")


def published(system: str, variant: str) -> str | None:
    """The size that others state of a variant."""
    wanted = {"system": system, "variant": variant, "measure": "size_mb"}
    return next((row["value"] for row in numbers() if wanted.items() <= row.items()), None)


def made(system: str) -> list[dict[str, Any]]:
    """The rows of a system, made in the working folder."""
    params = settings(system)
    calibrate(system, params)
    parts = ["unet", "vae"] if Path("checkpoint/vae").is_dir() else ["unet"]
    for variant in VARIANTS:
        params["variants"][f"timed-{variant}"]["quantize"] = parts
    Path("params.yaml").write_text(yaml.safe_dump(params))
    rows = []
    for variant in VARIANTS:
        quantize(system, variant, variant)
        sizes = [checkpoint.sizes(Path(variant, *folder)) for folder in [(), ("vae",)][: len(parts)]]
        floats = [each["fp32_bytes"] for each in sizes]
        rows = rows or [row(system, "fp32", floats, floats)]
        files = [each["quantized_file_bytes"] for each in sizes]
        rows.append(row(system, variant, files, [each["arithmetic_bytes"] for each in sizes]))
    for each in rows:
        each["smaller"] = rows[0]["together_mb"] / each["together_mb"]
    return rows


def row(system: str, variant: str, files: list[int], arithmetic: list[int]) -> dict[str, Any]:
    """A row of the bytes of the U-Net and, if there is one, the first stage."""
    cells = [value / 1e6 for pair in zip(files, arithmetic, strict=True) for value in pair]
    cells += [None] * (4 - len(cells))
    named = dict(zip(COLUMNS, [*cells, sum(files) / 1e6], strict=False))
    return {"system": system, "variant": variant, **named, "published_mb": published(system, variant)}


@click.command()
@click.argument("names", metavar="[SYSTEM]...", nargs=-1, type=click.Choice(SYSTEMS))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="A CSV file.")
def main(names: tuple[str, ...], out: Path) -> None:
    """Make the quantized files of the systems, all unless some are named, and write their sizes."""
    rows = []
    for name in names or SYSTEMS:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            rows += made(name)
    atomic_write(out, as_csv(HEAD, rows))
    click.echo(out.read_text(), nl=False)


if __name__ == "__main__":
    main()

"""Models of the user's own: from a folder that diffusers saved to one with integers, and images from it."""

from pathlib import Path

import click

from edadm.cli.options import FILE, FOLDER, SEED
from edadm.errors import InputError

BITS = click.IntRange(2, 8)
THREADS = click.option("--threads", type=click.IntRange(1), help="Threads to compute with; all cores when left out.")
STEPS = click.option("--steps", type=click.IntRange(1), default=50, show_default=True, help="Denoising steps.")
GUIDANCE = click.option("--guidance", type=click.FloatRange(0), help="Guidance scale; the pipeline's own default.")


def _call(steps: int, guidance: float | None) -> dict[str, float]:
    return {"steps": steps} if guidance is None else {"steps": steps, "guidance_scale": guidance}


@click.command()
@click.argument("pipeline", type=FOLDER)
@click.option("--weights", type=BITS, default=8, show_default=True, help="Bits of the weights.")
@click.option("--activations", type=BITS, default=8, show_default=True, help="Bits of the activations.")
@click.option("--out", type=FOLDER, required=True, help="The new pipeline's folder.")
@click.option("--prompts", type=FILE, help="A text file, one prompt a line, that calibration draws in turn.")
@click.option("--labels", type=click.IntRange(1), help="Of a class-conditional model: calibrate with 0 to N - 1.")
@click.option("--samples", type=click.IntRange(1), default=128, show_default=True, help="Calibration trajectories.")
@click.option("--batch", type=click.IntRange(1), default=4, show_default=True, help="Trajectories at once.")
@STEPS
@GUIDANCE
@click.option("--calibrator", type=click.Choice(["tdac", "uniform", "normal"]), default="tdac", show_default=True)
@click.option("--iterations", type=click.IntRange(0), help="FBR steps per unit; 0 rounds to nearest.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the first trajectory.")
@click.option("--scratch", type=FOLDER, help="What is finished is kept here until OUT is; default: OUT.scratch.")
@click.option("--cache-mib", type=click.IntRange(0), default=4096, show_default=True, help="Memory for tables.")
@THREADS
def quantize(
    pipeline: Path,
    weights: int,
    activations: int,
    out: Path,
    prompts: Path | None,
    labels: int | None,
    samples: int,
    batch: int,
    steps: int,
    guidance: float | None,
    calibrator: str,
    iterations: int | None,
    seed: int,
    scratch: Path | None,
    cache_mib: int,
    threads: int | None,
) -> None:
    """Quantize the U-Net of a diffusers PIPELINE folder of your own, and write the whole pipeline to OUT.

    A killed run, started again with the same words, goes on where it was. Only safetensors weights are read.
    """
    import torch

    from edadm import recipes
    from edadm.params import CalibrationParams
    from edadm.pipelines import folder
    from edadm.pipelines import prompts as texts
    from edadm.pipelines import quantize as steps_

    changes = {} if iterations is None else {"iterations": iterations} if iterations else {"method": "none"}
    recipe = recipes.recipe(f"w{weights}a{activations}", **changes)
    settings = CalibrationParams(samples=samples, batch=batch, diversity_weight=1.2, radius_quantile=0.3, seed=seed)
    if threads:
        torch.set_num_threads(threads)
    given = texts.read(prompts) if prompts else texts.DEFAULT if folder.takes_text(pipeline) else None
    steps_.run(
        pipeline,
        out,
        recipe,
        settings,
        calibrator,
        given,
        None if labels is None else list(range(labels)),
        scratch or Path(f"{out.resolve()}.scratch"),
        cache_mib * 2**20,
        **_call(steps, guidance),
    )


@click.command()
@click.argument("pipeline", type=FOLDER)
@click.argument("prompt", required=False)
@click.option("--out", type=FILE, required=True, help="A PNG file; of several images each has its seed in its name.")
@click.option("--label", type=click.IntRange(0), help="The class, of a class-conditional model.")
@click.option("--images", type=click.IntRange(1), default=1, show_default=True, help="How many, from SEED on.")
@click.option("--seed", type=SEED, default=0, show_default=True)
@STEPS
@GUIDANCE
@click.option("--device", type=click.Choice(["cpu", "reference"]), default="cpu", show_default=True)
@click.option("--body", type=click.Choice(["f32", "bf16"]), default="f32", show_default=True)
@THREADS
def generate(
    pipeline: Path,
    prompt: str | None,
    out: Path,
    label: int | None,
    images: int,
    seed: int,
    steps: int,
    guidance: float | None,
    device: str,
    body: str,
    threads: int | None,
) -> None:
    """Draw images with a PIPELINE folder, quantized or not: from a PROMPT, a --label, or from noise alone.

    The image of a seed is the same however many are drawn.
    """
    import torch

    from edadm.pipelines import folder
    from edadm.pipelines import generate as drawn

    if out.suffix.lower() != ".png":
        raise InputError(f"--out {out}: give it the name of a PNG file")
    if threads:
        torch.set_num_threads(threads)
    seeds = range(seed, seed + images)
    opened = folder.open_pipeline(pipeline, device=device, body=body, threads=threads)
    made = drawn.images(opened, prompt, label, seeds, **_call(steps, guidance))
    for path, image in zip(drawn.paths(out, seeds), made, strict=True):
        drawn.save(image, path)
        click.echo(path)

"""The training of the embedded models."""

from pathlib import Path

import click

from edadm.cli.options import FOLDER, compute_device, with_threads
from edadm.params import Params


@click.command()
@click.argument("model", type=click.Choice(["garment-classifier", "fashion-ddim", "fashion-ldm"]))
@click.option("--data", type=FOLDER, default=None, help="The four IDX files of Fashion-MNIST.")
@click.option("--out", type=FOLDER, required=True)
@with_threads("threads")
def train(params: Params, model: str, data: Path | None, out: Path) -> None:
    """Train an embedded model from scratch (those under assets/ were made this way)."""
    from edadm.systems import fashion_mnist
    from edadm.training import classifier, diffusion, latent

    folder = data or fashion_mnist.DEFAULT_FOLDER
    if model == "garment-classifier":
        classifier.train(out, folder, params.metrics, **params.train[model])
    else:
        trainer = {"fashion-ddim": diffusion, "fashion-ldm": latent}[model]
        trainer.train(out, folder, **params.train[model], device=compute_device(params))

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
        classifier.train(out, folder, params.train.garment_classifier, params.metrics)
    elif model == "fashion-ddim":
        diffusion.train(out, folder, params.train.fashion_ddim, compute_device(params))
    else:
        latent.train(out, folder, params.train.fashion_ldm, compute_device(params))

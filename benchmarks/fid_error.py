"""How far FID, and its ratio to full precision's, would move with other seeds: their standard errors, as a table.

    python benchmarks/fid_error.py fashion-ddim         # after `snakemake`: the runs whose samples are in results/

FID is a function of the mean and the covariance of the images' features. Its derivatives with respect to the weight of
each image (the infinitesimal jackknife) give the variance of what it would be for other images. A run and full
precision have the same seeds, so the error of the ratio is that of paired differences, much smaller than those of the
two. The quantized network is held fixed: what another seed of calibration or reconstruction would change is not in it.
"""

from pathlib import Path

import click
import numpy as np

from edadm import params
from edadm.errors import InputError
from edadm.evaluation import extractor as extractors
from edadm.evaluation import reference as references
from edadm.evaluation import samples
from edadm.evaluation.features import BATCH, Statistics, extract
from edadm.evaluation.metrics import frechet

TINY = 1e-10  # eigenvalues below this share of the largest are round-off


def influence(features: np.ndarray, real: Statistics) -> np.ndarray:
    """What each image adds to FID: its derivative with respect to the image's weight, (n,) float64 with mean 0.

    ``features`` is (n, d), ``real`` N(m, R). With T = R^(1/2) (R^(1/2) S R^(1/2))^(-1/2) R^(1/2), the optimal transport
    from N(mu, S) to it but for the means, d(|mu - m|^2 + tr(S + R - 2 (S R)^(1/2))) = 2 (mu - m) dmu + tr((I - T) dS).
    """
    apart = features - features.mean(0)
    covariance = apart.T @ apart / len(features)
    root = _power(real.sigma, 0.5)
    transport = root @ _power(root @ covariance @ root, -0.5) @ root
    added = 2 * apart @ (features.mean(0) - real.mu)
    added += np.einsum("nd,de,ne->n", apart, np.eye(len(covariance)) - transport, apart)
    return added - added.mean()


def _power(matrix: np.ndarray, power: float) -> np.ndarray:
    """A symmetric matrix without negative eigenvalues to a power, on the space where it is not 0."""
    values, vectors = np.linalg.eigh(matrix)
    kept = values > TINY * values.max()
    return (vectors[:, kept] * values[kept] ** power) @ vectors[:, kept].T


def standard_error(added: np.ndarray) -> float:
    """The standard error of a number to which each image adds so much."""
    return added.std() / len(added) ** 0.5


def measured(system: str) -> dict[str, tuple[float, np.ndarray]]:
    """FID of each run of a system, and what each image adds to it; InputError where there is nothing to measure."""
    loaded, results = params.load("params.yaml"), Path("results", system)
    if system not in loaded.systems:
        raise InputError(f"unknown system {system!r}; of params.yaml: {', '.join(loaded.systems)}")
    settings = loaded.systems[system]
    real = references.load(results / "reference.npz")
    extractor = extractors.create(settings.reference.extractor, Path(settings.reference.statistics).parent)
    found = {}
    for run in loaded.runs.values():
        if run.system == system:
            drawn = samples.open_folder(results / run.variant / "samples")
            features = extract(extractor, samples.batches(drawn, BATCH))
            added = influence(features.pooled.double().numpy(), real.statistics)
            found[run.variant] = frechet(features.statistics, real.statistics), added
    return found


@click.command()
@click.argument("system")
def main(system: str) -> None:
    """Print the table of SYSTEM."""
    try:
        found = measured(system)
    except InputError as error:
        raise click.ClickException(str(error)) from error
    first, added_first = found["fp32"]
    click.echo("| run | images | FID | FID / fp32 |\n|---|---|---|---|")
    for variant, (fid, added) in found.items():
        of_ratio = standard_error(added / first - added_first * fid / first**2)
        click.echo(
            f"| `{system}-{variant}` | {len(added)} | {fid:.2f} ± {standard_error(added):.2f} "
            f"| {fid / first:.3f} ± {of_ratio:.3f} |"
        )


if __name__ == "__main__":
    main()

"""The stages from images and engines to the report."""

from pathlib import Path

import click

from edadm.cli.options import DEVICE, FILE, FOLDER, PROTOCOL, REPEAT, ends_with, with_params, with_threads
from edadm.errors import InputError
from edadm.files import write_json
from edadm.params import Params

PUBLISHED = click.option("--published", is_flag=True, help="Of the published systems instead of the embedded ones.")


@click.command()
@click.argument("system")
@click.option("--out", type=FILE, required=True)
@with_threads("evaluation_threads")
def reference(params: Params, system: str, out: Path) -> None:
    """Bring the statistics of a SYSTEM's real images to OUT, once they fit its feature extractor.

    Those of a published system are taken here: from its file of images, downloaded unless it is there, or from a folder
    of the user's own.
    """
    from edadm.evaluation import reference as references
    from edadm.params import ImagesParams
    from edadm.systems import download

    ends_with(out, ".npz")
    settings = params.system(system).reference
    if not isinstance(settings, ImagesParams):
        references.fetch(settings, out)
        return
    if settings.file is None and not Path(settings.images).exists():
        raise InputError(
            f"{settings.images}: no real images of {system} there; docs/published-systems.md says where they come from "
            "and what to do with them"
        )
    weights = download.fetch(params.published.tools[settings.extractor])
    images = Path(settings.images) if settings.file is None else download.fetch(settings.file)
    references.build_streamed(images, settings.size, out, settings.extractor, weights)


@click.command()
@click.argument("system")
@click.argument("variant")
@click.option("--samples", type=FOLDER, required=True)
@click.option("--fp32", type=FOLDER, required=True, help="The full-precision samples of the same seeds.")
@click.option("--reference", "reference_file", type=FILE, required=True)
@click.option("--checkpoint", "folder", type=FOLDER, help="Of a text-conditional system: has CLIP's tokenizer.")
@click.option("--protocol", type=PROTOCOL, default="demo", show_default=True)
@REPEAT
@click.option("--out", type=FILE, required=True)
@with_threads("evaluation_threads")
def metrics(
    params: Params,
    system: str,
    variant: str,
    samples: Path,
    fp32: Path,
    reference_file: Path,
    folder: Path | None,
    protocol: str,
    repeat: int,
    out: Path,
) -> None:
    """Measure the quality of a VARIANT's samples: FID, sFID, IS, KID, precision and recall, distance to fp32.

    Samples with captions have the CLIP score too.
    """
    from edadm.evaluation.metrics import measure
    from edadm.params import ImagesParams
    from edadm.systems import download

    settings = params.system(system, repeat)
    if variant not in {run.variant for run in params.published.runs.values() if run.system == system}:
        params.variant(variant)
    published = isinstance(settings.reference, ImagesParams)
    tools = params.published.tools
    scorer = None
    if folder is not None and (folder / "tokenizer").is_dir():
        from edadm.evaluation.clip_score import ClipScore

        scorer = ClipScore(download.fetch(tools["clip"]), folder / "tokenizer")
    measured = measure(
        samples,
        fp32,
        reference_file,
        settings.reference.extractor,
        download.fetch(tools["inception"]) if published else Path(settings.reference.statistics).parent,
        params.metrics,
        settings.sampling.seeds(protocol),
        settings.reference.size if published else None,
        scorer,
    )
    write_json(out, {"system": system, "variant": variant, "protocol": protocol, **measured})


@click.command()
@click.argument("system")
@click.option("--device", type=DEVICE, default="cpu", show_default=True)
@click.option("--checkpoint", "folder", type=FOLDER, required=True)
@click.option("--results", type=FOLDER, default="results", show_default=True, help="Where the runs' engines are.")
@click.option("--out", type=FILE, required=True)
@with_threads("threads")
def latency(params: Params, system: str, device: str, folder: Path, results: Path, out: Path) -> None:
    """Time one U-Net call of each engine of a SYSTEM beside float baselines, in interleaved rounds."""
    from edadm.evaluation.latency import measure

    params.system(system)
    runs = {**params.runs, **params.published.runs}.values()
    variants = [run.variant for run in runs if run.system == system]
    engines = {variant: results / system / variant / f"engine-{device}" for variant in variants}
    write_json(out, measure(system, folder, engines, params.latency, params.engine))


@click.command()
@click.option("--results", type=FOLDER, default="results", show_default=True)
@click.option("--protocol", type=PROTOCOL, default="demo", show_default=True)
@PUBLISHED
@click.option("--out", type=FOLDER, required=True)
@with_params
def tables(params: Params, results: Path, protocol: str, published: bool, out: Path) -> None:
    """Gather what was measured into CSV tables; of the published systems, what was measured so far."""
    from edadm.report import tables as writer

    listed = writer.measured(params.of_published(), results) if published else params
    writer.write(listed, results, out, protocol)


@click.command()
@click.option("--results", type=FOLDER, default="results", show_default=True)
@click.option("--out", type=FILE, required=True)
@with_params
def ablation(params: Params, results: Path, out: Path) -> None:
    """Gather the comparison of recipes into a CSV table, and print it: means over the repetitions."""
    from edadm.report import ablation as writer

    click.echo(writer.write(params, results, out))


@click.command()
@click.option("--results", type=FOLDER, default="results", show_default=True)
@PUBLISHED
@click.option("--benchmark", type=FILE, help="What benchmarks/latency.py wrote, to be shown too.")
@click.option("--out", type=FILE, required=True)
@with_params
def report(params: Params, results: Path, published: bool, benchmark: Path | None, out: Path) -> None:
    """Write the page with galleries, tables and plots: one file, readable without a network.

    That of the published systems has the numbers that others published beside what was measured here so far.
    """
    from edadm.report import page

    page.write(params.of_published() if published else params, results, out, published, benchmark)


@click.command()
@click.argument("system")
@click.argument("variant")
@click.option("--results", type=FOLDER, default="results", show_default=True)
@click.option("--out", type=FOLDER, required=True)
@with_params
def pictures(params: Params, system: str, variant: str, results: Path, out: Path) -> None:
    """Draw the pictures of docs/concepts.md from a SYSTEM's results: how a VARIANT was made, and samples of all."""
    from edadm.report import pictures as writer

    params.system(system)
    known = {**params.runs, **params.published.runs}.values()
    runs = {run.variant: run for run in known if run.system == system}
    if variant not in runs:
        raise InputError(f"{system} has no run {variant!r}; params.yaml has {', '.join(runs)}")
    writer.write(results, system, list(runs), variant, runs[variant].calibrator, out)

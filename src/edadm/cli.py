"""The command line: one subcommand per stage. Paths are arguments, since dvc.yaml is where the layout is written."""

import ctypes
import functools
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import click
import torch

from edadm import params as parameters
from edadm.errors import InputError
from edadm.files import write_json

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
DEVICE = click.Choice(["cpu", "cuda"])
PROTOCOL = click.Choice(["demo", "full"])
SEED = click.IntRange(0)


def _die_with_dvc() -> None:
    """As a stage of DVC, end when the dvc process is killed: else two runs could write one folder."""
    if os.environ.get("DVC_STAGE") and sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _with_params(command: Callable) -> Callable:
    """Give the command the checked parameters, not before it runs, so that --help works anywhere.

    Threads are set as the parameters say: float sums depend on them, and Snakemake and DVC start commands differently.
    """

    @click.pass_obj
    @functools.wraps(command)
    def call(path: Path, *args: object, **kwargs: object) -> object:
        params = parameters.load(path)
        torch.set_num_threads(params.engine.threads)
        return command(params, *args, **kwargs)

    return call


def _device(params: parameters.Params) -> str:
    """Where networks are calibrated and reconstructed; InputError when it is not there."""
    if params.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device: cuda is not available here; set it to cpu in params.yaml")
    return params.device


class _InOrder(click.Group):
    """Lists the commands in the order of the pipeline."""

    def list_commands(self, _: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--params", "path", type=FILE, default="params.yaml", show_default=True, help="The parameters file.")
@click.pass_context
def cli(context: click.Context, path: Path) -> None:
    """Take a diffusion model's checkpoint to a low-bit integer model, and measure what that costs and gains.

    Commands are the stages of the pipeline, in its order; `snakemake` and `dvc repro` call them.
    """
    _die_with_dvc()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("edadm").setLevel(logging.INFO)
    context.obj = path


@cli.command()
@click.argument("system")
@click.option("--out", type=FOLDER, required=True)
@_with_params
def checkpoint(params: parameters.Params, system: str, out: Path) -> None:
    """Bring a system's checkpoint, in diffusers layout, to OUT and check its hash."""
    from edadm.systems.system import fetch_checkpoint

    fetch_checkpoint(params.system(system).checkpoint, out)


@cli.command()
@click.argument("system")
@click.argument("calibrator")
@click.option("--checkpoint", "folder", type=FOLDER, required=True)
@click.option("--out", type=FILE, required=True, help="A .safetensors file; a .json of the same name goes beside it.")
@_with_params
def calibrate(params: parameters.Params, system: str, calibrator: str, folder: Path, out: Path) -> None:
    """Draw the calibration set of a SYSTEM with a CALIBRATOR (tdac, uniform, normal)."""
    from edadm.evaluation.sampling import draw
    from edadm.quantization import calibration
    from edadm.systems.system import WEIGHTS, load, load_unet

    settings = params.system(system)
    device = _device(params)
    loaded, unet = load(folder), load_unet(folder).to(device)

    def trajectory(seeds: range):  # noqa: ANN202
        def network(*inputs: torch.Tensor) -> torch.Tensor:
            return unet(*(value.to(device) for value in inputs), return_dict=False)[0].cpu()

        for step, before, _ in draw(network, loaded, settings.sampler, seeds):
            yield step, before

    data, *described = calibration.collect(unet, trajectory, calibrator, settings.calibration)
    first = settings.calibration.seed
    contexts = loaded.contexts(range(first, first + settings.calibration.samples), settings.sampler.guidance)
    data = calibration.with_contexts(data, contexts)
    calibration.write(out, data, *described, calibrator, settings.calibration, folder / WEIGHTS)


@cli.command()
@click.argument("system")
@click.argument("variant")
@click.option("--checkpoint", "folder", type=FOLDER, required=True)
@click.option("--calibration", "calibration_file", type=FILE, required=True)
@click.option("--scratch", type=FOLDER, required=True, help="Finished units are kept here until the run is complete.")
@click.option("--out", type=FOLDER, required=True)
@_with_params
def reconstruct(
    params: parameters.Params,
    system: str,
    variant: str,
    folder: Path,
    calibration_file: Path,
    scratch: Path,
    out: Path,
) -> None:
    """Quantize a SYSTEM's U-Net as VARIANT says; a killed run goes on at the unit where it died."""
    from edadm.quantization import reconstruction
    from edadm.systems.system import WEIGHTS, load_unet

    params.system(system)
    recipe = params.variant(variant)
    limit = params.limits.cache_mib * 2**20
    reconstruction.run(
        load_unet(folder), folder / WEIGHTS, calibration_file, recipe, scratch, out, limit, _device(params)
    )


@cli.command()
@click.option("--quantized", type=FOLDER, required=True)
@click.option("--device", type=DEVICE, default="cpu", show_default=True)
@click.option("--out", type=FOLDER, required=True)
def deploy(quantized: Path, device: str, out: Path) -> None:
    """Lay a quantized checkpoint out for the integer engine of a device."""
    from edadm import engines

    engines.deploy(quantized, device, out)


@cli.command()
@click.option("--quantized", type=FOLDER, required=True)
@click.option("--format", "form", type=click.Choice(["onnx", "tensorrt"]), default="onnx", show_default=True)
@click.option("--out", type=FOLDER, required=True)
def export(quantized: Path, form: str, out: Path) -> None:
    """Write a quantized checkpoint as ONNX; as TensorRT reads it, or for all other runtimes (docs/export.md)."""
    from edadm.engines import onnx

    onnx.deploy(quantized, out, form)


@cli.command()
@click.option("--quantized", type=FOLDER, required=True)
@click.option("--engine", type=FOLDER, required=True)
@click.option("--calibration", "calibration_file", type=FILE, required=True, help="Gives the inputs to compare on.")
@click.option("--images", type=click.IntRange(1), default=64, show_default=True)
@click.option("--out", type=FILE, required=True)
@_with_params
def verify(
    params: parameters.Params, quantized: Path, engine: Path, calibration_file: Path, images: int, out: Path
) -> None:
    """Compare an engine with exact integer arithmetic: every layer, and the whole network beside round-off."""
    from edadm.engines.verify import verify as compare
    from edadm.quantization import calibration

    inputs = [value[:images] for value in calibration.inputs(calibration.read(calibration_file))]
    write_json(out, compare(quantized, engine, *inputs, threads=params.engine.threads))


@cli.command()
@click.argument("system")
@click.option("--engine", type=FOLDER, required=True)
@click.option("--checkpoint", "folder", type=FOLDER, required=True, help="For all but its U-Net.")
@click.option("--protocol", type=PROTOCOL, default="demo", show_default=True, help="How many images: see params.yaml.")
@click.option("--seed", type=SEED, help="Seed of the first image, instead of sampling.seed of params.yaml.")
@click.option("--scratch", type=FOLDER, required=True, help="Finished shards are kept here until all are there.")
@click.option("--out", type=FOLDER, required=True)
@click.option("--shard", help="I/N: make only shard I of N (from 0), and leave it in the scratch folder.")
@_with_params
def sample(
    params: parameters.Params,
    system: str,
    engine: Path,
    folder: Path,
    protocol: str,
    seed: int | None,
    scratch: Path,
    out: Path,
    shard: str | None,
) -> None:
    """Draw a SYSTEM's images with an engine, in shards; a killed run keeps its finished shards."""
    from dataclasses import asdict, replace

    from edadm import engines
    from edadm.evaluation import sampling
    from edadm.systems.system import load

    settings = params.system(system)
    sampling_params = settings.sampling if seed is None else replace(settings.sampling, seed=seed)
    only = None
    if shard is not None:
        index, _, count = shard.partition("/")
        if not (index.isdigit() and count.isdigit()):
            raise InputError(f"--shard {shard}: give it as I/N, as in 0/2")
        only = int(index), int(count)
    torch.set_num_threads(1)  # the engine has the threads; PyTorch's would spin beside them between its small steps
    rows = settings.sampling.batch * (1 if settings.sampler.guidance == 1 else 2)  # guidance doubles the batch
    sampling.run(
        lambda: engines.load(engine, rows, params.engine.body, params.engine.threads),
        load(folder),
        settings.sampler,
        sampling_params,
        settings.sampling.images[protocol],
        sampling.fingerprint(engine, folder, settings.sampler, sampling_params, asdict(params.engine)),
        scratch,
        out,
        only,
    )


@cli.command()
@click.option("--samples", "folder", type=FOLDER, required=True)
@click.option("--rows", type=click.IntRange(1), default=8, show_default=True)
@click.option("--columns", type=click.IntRange(1), default=16, show_default=True)
@click.option("--out", type=FILE, required=True, help="A PNG file.")
def grid(folder: Path, rows: int, columns: int, out: Path) -> None:
    """Lay the first images of a samples folder out in one picture."""
    from edadm.evaluation.grid import write

    write(folder, rows, columns, out)


@cli.command()
@click.argument("system")
@click.option("--out", type=FILE, required=True)
@_with_params
def reference(params: parameters.Params, system: str, out: Path) -> None:
    """Bring the statistics of a SYSTEM's real images to OUT, once they fit its feature extractor."""
    from edadm.evaluation.reference import fetch

    fetch(params.system(system).reference, out)


@cli.command()
@click.argument("system")
@click.argument("variant")
@click.option("--samples", type=FOLDER, required=True)
@click.option("--fp32", type=FOLDER, required=True, help="The full-precision samples of the same seeds.")
@click.option("--reference", "reference_file", type=FILE, required=True)
@click.option("--protocol", type=PROTOCOL, default="demo", show_default=True)
@click.option("--seed", type=SEED, help="Seed of the first image, instead of sampling.seed of params.yaml.")
@click.option("--out", type=FILE, required=True)
@_with_params
def metrics(
    params: parameters.Params,
    system: str,
    variant: str,
    samples: Path,
    fp32: Path,
    reference_file: Path,
    protocol: str,
    seed: int | None,
    out: Path,
) -> None:
    """Measure the quality of a VARIANT's samples: FID, sFID, IS, KID, precision and recall, distance to fp32."""
    from edadm.evaluation.metrics import measure

    settings = params.system(system)
    start = settings.sampling.seed if seed is None else seed
    measured = measure(
        samples,
        fp32,
        reference_file,
        settings.reference.extractor,
        Path(settings.reference.statistics).parent,
        params.metrics,
        range(start, start + settings.sampling.images[protocol]),
    )
    write_json(out, {"system": system, "variant": variant, "protocol": protocol, **measured})


@cli.command()
@click.argument("system")
@click.option("--device", type=DEVICE, default="cpu", show_default=True)
@click.option("--checkpoint", "folder", type=FOLDER, required=True)
@click.option("--results", type=FOLDER, default="results", show_default=True, help="Where the runs' engines are.")
@click.option("--out", type=FILE, required=True)
@_with_params
def latency(params: parameters.Params, system: str, device: str, folder: Path, results: Path, out: Path) -> None:
    """Time one U-Net call of each engine of a SYSTEM beside float baselines, in interleaved rounds."""
    from edadm.evaluation.latency import measure

    params.system(system)
    variants = [run.variant for run in params.runs.values() if run.system == system]
    engines = {variant: results / system / variant / f"engine-{device}" for variant in variants}
    write_json(out, measure(system, folder, engines, params.latency, params.engine))


@cli.command()
@click.option("--results", type=FOLDER, default="results", show_default=True)
@click.option("--protocol", type=PROTOCOL, default="demo", show_default=True)
@click.option("--out", type=FOLDER, required=True)
@_with_params
def tables(params: parameters.Params, results: Path, protocol: str, out: Path) -> None:
    """Gather what was measured into CSV tables."""
    from edadm.report import tables as writer

    writer.write(params, results, out, protocol)


@cli.command()
@click.option("--results", type=FOLDER, default="results", show_default=True)
@click.option("--out", type=FILE, required=True)
@_with_params
def ablation(params: parameters.Params, results: Path, out: Path) -> None:
    """Gather the comparison of recipes into a CSV table: means over the sampling seeds."""
    from edadm.report import ablation as writer

    writer.write(params, results, out)


@cli.command()
@click.option("--results", type=FOLDER, default="results", show_default=True)
@click.option("--out", type=FILE, required=True)
@_with_params
def report(params: parameters.Params, results: Path, out: Path) -> None:
    """Write the page with galleries, tables and plots: one file, readable without a network."""
    from edadm.report import page

    page.write(params, results, out)


@cli.command()
@click.argument("model", type=click.Choice(["garment-classifier", "fashion-ddim", "fashion-ldm"]))
@click.option("--data", type=FOLDER, default=None, help="The four IDX files of Fashion-MNIST.")
@click.option("--out", type=FOLDER, required=True)
@_with_params
def train(params: parameters.Params, model: str, data: Path | None, out: Path) -> None:
    """Train an embedded model from scratch (those under assets/ were made this way)."""
    from edadm.systems import fashion_mnist
    from edadm.training import classifier, diffusion, latent

    folder = data or fashion_mnist.DEFAULT_FOLDER
    if model == "garment-classifier":
        classifier.train(out, folder, params.metrics, **params.train[model])
    else:
        trainer = {"fashion-ddim": diffusion, "fashion-ldm": latent}[model]
        trainer.train(out, folder, **params.train[model])


@cli.group()
def recipe() -> None:
    """Look at the recipes of params.yaml."""


@recipe.command()
@click.argument("one", metavar="A")
@click.argument("other", metavar="B")
@_with_params
def diff(params: parameters.Params, one: str, other: str) -> None:
    """Print the fields in which the variants A and B differ."""
    from edadm.recipes import differences

    for name, first, second in differences(params, one, other):
        shown = [", ".join(map(str, value)) if isinstance(value, tuple) else value for value in (first, second)]
        click.echo(f"{name}: {shown[0]} -> {shown[1]}")


def main() -> None:
    """Run the command line; what the user can mend is one line and exit code 2."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except InputError as error:
        print(f"edadm: {error}", file=sys.stderr)
        sys.exit(2)

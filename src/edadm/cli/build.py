"""The stages from a checkpoint to images."""

from dataclasses import replace
from pathlib import Path

import click

from edadm.cli.options import (
    DEVICE,
    FILE,
    FOLDER,
    PROTOCOL,
    REPEAT,
    compute_device,
    ends_with,
    with_params,
    with_threads,
)
from edadm.files import as_csv, atomic_write, clear, read_json, sources_sha256, write_json
from edadm.params import CALIBRATORS, Params


@click.command()
@click.argument("system")
@with_params
def download(params: Params, system: str) -> None:
    """Bring a published SYSTEM's original files to the folder of originals, and check them.

    `checkpoint` does so too; this is for machines that compute without a network.
    """
    from edadm.systems import published

    for path in published.fetch_all(published.require(params.system(system).checkpoint)):
        click.echo(path)


@click.command()
@click.argument("system")
@click.option("--random", is_flag=True, help="Of a published system: full size, but random weights and no download.")
@click.option("--out", type=FOLDER, required=True)
@with_params
def checkpoint(params: Params, system: str, random: bool, out: Path) -> None:
    """Bring a system's checkpoint, in diffusers layout, to OUT and check its hash.

    A published system's original files are downloaded first, unless they are there, and converted.
    """
    from edadm.params import OriginalParams

    settings = params.system(system).checkpoint
    if random or isinstance(settings, OriginalParams):
        from edadm.systems import published  # which imports PyTorch and diffusers, and copying needs neither

        build = published.build_random if random else published.build
        build(published.require(settings), out)
    else:
        from edadm.systems import folder

        folder.fetch(settings, out)


@click.command()
@click.argument("system")
@click.argument("calibrator", type=click.Choice(CALIBRATORS))
@click.option("--checkpoint", "folder", type=FOLDER, required=True)
@REPEAT
@click.option("--out", type=FILE, required=True, help="A .safetensors file; a .json of the same name goes beside it.")
@with_threads("threads")
def calibrate(params: Params, system: str, calibrator: str, folder: Path, repeat: int, out: Path) -> None:
    """Draw the calibration set of a SYSTEM with a CALIBRATOR."""
    import torch

    from edadm.evaluation.sampling import draw
    from edadm.quantization import calibration
    from edadm.systems.folder import WEIGHTS
    from edadm.systems.system import load, load_unet

    ends_with(out, ".safetensors")
    settings = params.system(system, repeat)
    device = compute_device(params)
    loaded, unet = load(folder), load_unet(folder).to(device)
    seeds = settings.calibration.seeds
    loaded.check_apart(seeds, settings.sampling.seeds("full"))

    finals: list[torch.Tensor] = []

    def trajectory(seeds: range):  # noqa: ANN202
        def network(*inputs: torch.Tensor) -> torch.Tensor:
            return unet(*(value.to(device) for value in inputs), return_dict=False)[0].cpu()

        for step, before, after in draw(network, loaded, settings.sampler, seeds):
            yield step, before
            final = after
        finals.append(final)  # the first batch's, for the autoencoder: the others are left before their end

    steps = settings.sampler.steps
    data, *described = calibration.collect(unet, trajectory, calibrator, settings.calibration, steps)
    data = calibration.with_contexts(data, loaded.contexts(seeds, settings.sampler.guidance)) | {"final": finals[0]}
    calibration.write(out, data, *described, calibrator, settings.calibration, folder / WEIGHTS)


@click.command()
@click.argument("system")
@click.argument("variant")
@click.option("--checkpoint", "folder", type=FOLDER, required=True)
@click.option("--calibration", "calibration_file", type=FILE, required=True)
@click.option("--scratch", type=FOLDER, required=True, help="Finished units are kept here until the run is complete.")
@REPEAT
@click.option("--out", type=FOLDER, required=True)
@with_threads("reconstruction_threads")
def reconstruct(
    params: Params,
    system: str,
    variant: str,
    folder: Path,
    calibration_file: Path,
    scratch: Path,
    repeat: int,
    out: Path,
) -> None:
    """Quantize a SYSTEM's U-Net as VARIANT says; a killed run goes on at the unit where it died."""
    from edadm.quantization import reconstruction
    from edadm.systems.folder import AUTOENCODER_WEIGHTS, WEIGHTS
    from edadm.systems.system import load_autoencoder, load_unet

    params.system(system)
    recipe = params.variant(variant, repeat)
    weights = [path for path in (folder / WEIGHTS, folder / AUTOENCODER_WEIGHTS) if path.is_file()]
    limit = params.limits.cache_mib * 2**20
    unet, vae = load_unet(folder), load_autoencoder(folder)
    device = compute_device(params)
    reconstruction.run(unet, vae, weights, calibration_file, recipe, scratch, out, limit, device)


@click.command()
@click.option("--quantized", type=FOLDER, required=True)
@click.option("--device", type=DEVICE, default="cpu", show_default=True)
@click.option("--out", type=FOLDER, required=True)
def deploy(quantized: Path, device: str, out: Path) -> None:
    """Lay a quantized checkpoint out for the integer engine of a device."""
    from edadm import engines

    engines.deploy(quantized, device, out)


@click.command()
@click.option("--quantized", type=FOLDER, required=True)
@click.option("--format", "form", type=click.Choice(["onnx", "tensorrt"]), default="onnx", show_default=True)
@click.option("--out", type=FOLDER, required=True)
def export(quantized: Path, form: str, out: Path) -> None:
    """Write a quantized checkpoint as ONNX; as TensorRT reads it, or for all other runtimes (docs/export.md)."""
    from edadm.engines import onnx

    onnx.deploy(quantized, out, form)


@click.command()
@click.option("--quantized", type=FOLDER, required=True)
@click.option("--engine", type=FOLDER, required=True)
@click.option("--calibration", "calibration_file", type=FILE, required=True, help="Gives the inputs to compare on.")
@click.option("--images", type=click.IntRange(1), default=128, show_default=True)
@click.option("--out", type=FILE, required=True)
@with_threads("evaluation_threads")
def verify(params: Params, quantized: Path, engine: Path, calibration_file: Path, images: int, out: Path) -> None:
    """Compare an engine with exact integer arithmetic: every layer, and the whole network beside round-off."""
    from edadm.engines.verify import verify as compare
    from edadm.quantization import calibration
    from edadm.quantization.autoencoder import FOLDER as VAE

    data = calibration.read(calibration_file)
    inputs = [value[:images] for value in calibration.inputs(data)]
    threads = params.engine.evaluation_threads
    found = compare(quantized, engine, *inputs, threads=threads)
    if (quantized / VAE).is_dir():
        latents = data["final"][:images] / read_json(quantized / VAE / "config.json")["scaling_factor"]
        found["vae"] = compare(quantized / VAE, engine / VAE, latents, threads=threads)
    write_json(out, found)


@click.command(name="layer-errors")
@click.option("--checkpoint", "folder", type=FOLDER, required=True, help="The network in full precision.")
@click.option("--quantized", type=FOLDER, required=True)
@click.option("--calibration", "calibration_file", type=FILE, required=True, help="Gives the inputs to compare on.")
@click.option("--images", type=click.IntRange(1), default=8, show_default=True, help="Spread evenly over the steps.")
@click.option("--out", type=FILE, required=True, help="A CSV file.")
@with_threads("evaluation_threads")
def layer_errors(_: Params, folder: Path, quantized: Path, calibration_file: Path, images: int, out: Path) -> None:
    """Measure how far each layer's output is from full precision: signal-to-quantization-noise ratios in dB.

    Once within the whole quantized network, once for the layer alone on full-precision inputs.
    """
    from edadm.engines import layer_errors as errors
    from edadm.quantization import calibration
    from edadm.systems.system import load_unet

    inputs = errors.spread(calibration.inputs(calibration.read(calibration_file)), images)
    rows = errors.layer_errors(load_unet(folder), quantized, inputs)
    atomic_write(out, as_csv(errors.COLUMNS, rows))


@click.command()
@click.argument("system")
@click.option("--engine", type=FOLDER, required=True)
@click.option("--checkpoint", "folder", type=FOLDER, required=True, help="For all but its U-Net.")
@click.option("--protocol", type=PROTOCOL, default="demo", show_default=True, help="How many images: see params.yaml.")
@REPEAT
@click.option("--scratch", type=FOLDER, required=True, help="Finished shards are kept here until all are there.")
@click.option("--out", type=FOLDER, required=True)
@click.option("--shard", help="I/N: make only shard I of N (from 0), and leave it in the scratch folder.")
@with_params
def sample(
    params: Params,
    system: str,
    engine: Path,
    folder: Path,
    protocol: str,
    repeat: int,
    scratch: Path,
    out: Path,
    shard: str | None,
) -> None:
    """Draw a SYSTEM's images with an engine, in shards; a killed run keeps its finished shards."""
    from edadm.evaluation.shards import PACKAGE, Shards, fingerprint

    settings = params.system(system, repeat)
    computed = {"body": params.engine.body, "threads": params.engine.evaluation_threads}
    mark = fingerprint(engine, folder, settings.sampler, settings.sampling, computed)
    code = sources_sha256(PACKAGE / "engines")[:16]  # shards of other code are not gone on with
    shards = Shards(settings.sampling, protocol, mark, scratch / code)
    missing = shards.missing(shard)
    if missing:  # PyTorch and diffusers take seconds, and gathering needs neither
        import torch

        from edadm import engines
        from edadm.evaluation import sampling
        from edadm.quantization.autoencoder import FOLDER as VAE
        from edadm.systems.system import load

        torch.set_num_threads(1)  # the engine has the threads; PyTorch's would spin beside them between its small steps
        drawn = load(folder)
        drawn.check_apart(settings.calibration.seeds, settings.sampling.seeds(protocol))
        if (engine / VAE).is_dir():
            drawn = replace(drawn, decoder=engines.load(engine / VAE, 1, **computed))
        rows = settings.sampling.batch * (1 if settings.sampler.guidance == 1 else 2)  # guidance doubles the batch
        network = engines.load(engine, rows, **computed)
        for number in missing:
            sampling.make_shard(network, drawn, settings.sampler, shards, number)
    if shard is None:
        shards.gather(out)
        clear(scratch, "[0-9a-f]" * 16)


@click.command()
@click.option("--samples", "folder", type=FOLDER, required=True)
@click.option("--rows", type=click.IntRange(1), default=8, show_default=True)
@click.option("--columns", type=click.IntRange(1), default=16, show_default=True)
@click.option("--out", type=FILE, required=True, help="A PNG file.")
def grid(folder: Path, rows: int, columns: int, out: Path) -> None:
    """Lay the first images of a samples folder out in one picture."""
    from edadm.evaluation.grid import write

    write(folder, rows, columns, out)

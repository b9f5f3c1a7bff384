"""What the published systems are and take."""

import click

from edadm.cli.options import with_threads
from edadm.params import FileParams, Params


def duration(seconds: float) -> str:
    """In the largest unit that it fills."""
    for size, unit in ((86400 * 365, "years"), (86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def described(file: FileParams) -> str:
    """A file's name, size and how it is known."""
    size = f"{file.size / 1e6:,.1f} MB" if file.size else "size not published"
    known = "sha256" if file.sha256 else "md5" if file.md5 else "no published hash: trusted on first use"
    return f"{file.name} ({size}; {known})"


def _table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join([first.strip().ljust(widths[0]), *others]))


@click.command()
@click.option(
    "--gpu-rate",
    type=click.FloatRange(0, min_open=True),
    help="Multiply-accumulates per second of your GPU in units of 10^12.",
)
@with_threads("threads")
def systems(params: Params, gpu_rate: float | None) -> None:
    """Print the published systems: sources, sizes, parameters, steps, images, and how long their images take.

    A time is the U-Net's and the decoder's multiply-accumulates for all images of one run in full precision, over a
    rate: here that of a float32 convolution, measured now; quantizing takes as long again, or longer.
    """
    from edadm.systems import estimates

    rate = estimates.measured_rate()
    gpu = gpu_rate * 1e12 if gpu_rate else estimates.GPU_RATE
    heads = ("system", "U-Net parameters", "all", "steps", "GMAC/call", "images", "here", "GPU", "W8 MB", "W4 MB")
    rows = [heads]
    for name, settings in params.published.systems.items():
        found = estimates.estimate(settings)
        sizes = [f"{size / 1e6:.2f}" for size in found.unet_bytes.values()]
        rows.append(
            (
                name,
                f"{found.unet_parameters:,}",
                f"{found.parameters:,}",
                str(settings.sampler.steps),
                f"{found.macs_per_call / 1e9:.1f}",
                f"{found.images:,}",
                duration(found.macs / rate),
                duration(found.macs / gpu),
                *sizes,
            )
        )
    _table(rows)
    click.echo(
        f"\nTimes: multiply-accumulates of one run's images over {rate / 1e9:.0f}e9 per second (a float32 convolution, "
        f"measured here with {params.engine.threads} threads) and {gpu / 1e12:g}e12 per second (assumed GPU).\n"
    )
    for name, settings in params.published.systems.items():
        click.echo(f"{name}:")
        for file in settings.checkpoint.files.values():
            click.echo(f"  {described(file)}\n    {', '.join(file.sources)}")
        reference = settings.reference
        click.echo(f"  real images: {described(reference.file) if reference.file else reference.images}")
        if reference.file:
            click.echo(f"    {', '.join(reference.file.sources)}")
    click.echo("metrics:")
    for file in params.published.tools.values():
        click.echo(f"  {described(file)}\n    {', '.join(file.sources)}")

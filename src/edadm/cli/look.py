"""Look at what was made."""

from pathlib import Path

import click

from edadm.cli.options import FOLDER


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
def info(artifact: Path) -> None:
    """Say what a file or folder that edadm wrote is, and what it holds."""
    from edadm import artifacts

    for line in artifacts.lines(artifacts.describe(artifact)):
        click.echo(line)


@click.command()
@click.argument("one", metavar="A", type=FOLDER)
@click.argument("other", metavar="B", type=FOLDER)
def compare(one: Path, other: Path) -> None:
    """Print what differs between the results of two variants, of two systems, or two whole results folders."""
    from edadm import comparison

    differences = comparison.compare(one, other)
    for difference in differences:
        click.echo(difference)
    if not differences:
        click.echo("no difference")

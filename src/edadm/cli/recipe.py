"""A look at the recipes."""

import click

from edadm.cli.options import with_params
from edadm.params import Params


@click.group()
def recipe() -> None:
    """Look at the recipes of params.yaml."""


@recipe.command()
@click.argument("one", metavar="A")
@click.argument("other", metavar="B")
@with_params
def diff(params: Params, one: str, other: str) -> None:
    """Print the fields in which the variants A and B differ."""
    from edadm.recipes import differences

    for name, first, second in differences(params, one, other):
        shown = [", ".join(map(str, value)) if isinstance(value, tuple) else value for value in (first, second)]
        click.echo(f"{name}: {shown[0]} -> {shown[1]}")

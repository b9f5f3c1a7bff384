"""What the commands share: kinds of arguments, and the checked parameters."""

import functools
from collections.abc import Callable
from pathlib import Path

import click

from edadm import params as parameters
from edadm.errors import InputError

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
DEVICE = click.Choice(["cpu", "cuda"])
PROTOCOL = click.Choice(["demo", "full"])
SEED = click.IntRange(0)
REPEAT = click.option(
    "--repeat",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="A repetition with seeds of its own; 0 has those of params.yaml.",
)


def ends_with(out: Path, suffix: str) -> None:
    """InputError unless ``out`` is named so: what describes it goes beside it, under the same name with another."""
    if out.suffix != suffix:
        raise InputError(f"--out {out}: give a name that ends with {suffix}")


def compute_device(params: parameters.Params) -> str:
    """Where networks are calibrated, reconstructed and trained; InputError when it is not there."""
    import torch

    if params.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device: cuda is not available here; set it to cpu in params.yaml")
    return params.device


def with_params(command: Callable) -> Callable:
    """Give a command the checked parameters, not before it runs, so that --help works anywhere."""

    @click.pass_obj
    @functools.wraps(command)
    def call(path: Path, *args: object, **kwargs: object) -> object:
        return command(parameters.load(path), *args, **kwargs)

    return call


def with_threads(setting: str) -> Callable:
    """``with_params`` for a command that computes: PyTorch gets the threads that ``setting`` of the engine says.

    Float sums depend on them, and Snakemake and DVC start commands differently.
    """

    def decorate(command: Callable) -> Callable:
        @with_params
        @functools.wraps(command)
        def call(params: parameters.Params, *args: object, **kwargs: object) -> object:
            import torch  # which takes a second: the other commands need it as little as --help and completion

            torch.set_num_threads(getattr(params.engine, setting))
            return command(params, *args, **kwargs)

        return call

    return decorate

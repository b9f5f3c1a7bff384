"""The command line: one subcommand per stage. Paths are arguments, since dvc.yaml is where the layout is written."""

import errno
import logging
import os
import sys
from pathlib import Path

import click

from edadm.cli import build, look, measure, own, recipe, systems, train
from edadm.cli.help import HELP, WIDTH, Pipeline, add_example, help_, params_
from edadm.cli.options import FILE
from edadm.errors import InputError
from edadm.processes import end_with_dvc

# what a disk can refuse that its user can mend
DISK = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS))


@click.group(cls=Pipeline, context_settings={"help_option_names": HELP, "max_content_width": WIDTH})
@click.option("--params", "path", type=FILE, default="params.yaml", show_default=True, help="The parameters file.")
@click.pass_context
def cli(context: click.Context, path: Path) -> None:
    """Take a diffusion model's checkpoint to a low-bit integer model, and measure what that costs and gains.

    `quantize` and `generate` are for a pipeline of your own. The others are the stages of the pipeline of params.yaml,
    in its order; `snakemake` and `dvc repro` call them.
    """
    end_with_dvc()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("edadm").setLevel(logging.INFO)
    context.obj = path


for command in (
    own.quantize,
    own.generate,
    build.download,
    build.checkpoint,
    build.calibrate,
    build.reconstruct,
    build.deploy,
    build.export,
    build.verify,
    build.layer_errors,
    build.sample,
    build.grid,
    measure.reference,
    measure.metrics,
    measure.latency,
    measure.tables,
    measure.ablation,
    measure.report,
    measure.pictures,
    train.train,
    recipe.recipe,
    systems.systems,
    look.info,
    look.compare,
    help_,
    params_,
):
    add_example(command)
    cli.add_command(command)


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
    except OSError as error:
        disk = next((text for text in DISK if text in str(error)), None)  # copying a folder gives no errno
        if disk is None and error.filename is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        said = f"{disk or error.strerror}; nothing half-written is left: mend that and run again"
        print(f"edadm: {where}{said}", file=sys.stderr)
        sys.exit(2)

"""What Snakemake and DVC themselves cost on a large graph: seconds until they say that there is nothing to do.

    python benchmarks/machinery.py --out benchmarks/machinery.json

Runs in a temporary copy of the project, with so many runs of one system that there are more than 150 stages, and with
the tests' stub for `edadm`; the project's own results are not touched. Everything runs once first, in some minutes.
Prints, and writes to the JSON, the number of stages and the median of each command's rounds, which take turns.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import click
import yaml

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from workspace import SYSTEM, Workspace, prepared, stub_in

from edadm.files import write_json

COMMANDS = ("snakemake -n", "snakemake --cores 1", "dvc repro")
TARGET = 15  # seconds, of each
NOTHING = ("Nothing to be done", "Data and pipelines are up to date")


def with_runs(folder: Path, number: int) -> Workspace:
    """A workspace with ``number`` quantized runs, each of a variant of its own, beside full precision."""
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    space = prepared(folder / "project", stub_in(bin_folder))
    path = space.folder / "params.yaml"
    params = yaml.safe_load(path.read_text())
    like, recipe = params["runs"][f"{SYSTEM}-w4a8"], params["variants"]["w4a8"]
    for index in range(number - 1):
        params["variants"][f"v{index}"] = recipe
        params["runs"][f"{SYSTEM}-v{index}"] = like | {"variant": f"v{index}"}
    path.write_text(yaml.safe_dump(params, sort_keys=False))
    return space


def seconds(space: Workspace, command: str) -> float:
    """How long a command takes that finds nothing to do."""
    start = time.perf_counter()
    said = space.call(*command.split()).stdout
    taken = time.perf_counter() - start
    assert any(text in said for text in NOTHING), said[-2000:]
    return taken


@click.command()
@click.option("--runs", type=click.IntRange(1), default=25, show_default=True, help="Quantized runs, six stages each.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="A JSON file.")
def main(runs: int, rounds: int, out: Path) -> None:
    """Measure what the machinery costs when there is nothing to do."""
    with tempfile.TemporaryDirectory() as folder:
        space = with_runs(Path(folder), runs)
        space.call("dvc", "repro")
        ran = len(space.ran())
        every = len(space.call("dvc", "stage", "list", "--all", "--name-only").stdout.splitlines())
        seconds(space, COMMANDS[1])  # once for the stamps
        rows = [[seconds(space, command) for command in COMMANDS] for _ in range(rounds)]
    medians = {command: round(statistics.median(row[i] for row in rows), 2) for i, command in enumerate(COMMANDS)}
    found = {"stages": ran, "stages_of_all_targets": every, "rounds": rounds, "medians_s": medians, "target_s": TARGET}
    write_json(out, found)
    click.echo(out.read_text(), nl=False)


if __name__ == "__main__":
    main()

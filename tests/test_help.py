"""The help: grouped, with an example for every command, committed as docs/help.txt; and shell completion."""

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from edadm import cli
from edadm.cli import help as help_texts

ROOT = Path(__file__).parent.parent


def commands(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    """All commands by their names, also those inside groups."""
    for name, command in group.commands.items():
        yield f"{path}{name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path}{name} ")


def test_the_committed_help_is_that_of_the_commands() -> None:
    expected = help_texts.text(cli.cli)
    assert (ROOT / "docs" / "help.txt").read_text() == expected, "run: edadm help > docs/help.txt"


def test_every_command_is_in_one_group() -> None:
    listed = [name for names in help_texts.GROUPS.values() for name in names]
    assert len(listed) == len(set(listed))
    assert set(cli.cli.commands) <= set(listed)
    page = help_texts.text(cli.cli).split("$ edadm quantize --help")[0]
    assert "Other commands" not in page
    positions = [page.index(f"\n  {name} ") for name in listed if name in cli.cli.commands]
    assert positions == sorted(positions)


def test_every_command_has_an_example_that_it_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, command in commands(cli.cli):
        example = help_texts.EXAMPLES[name]
        assert example in help_texts.text(cli.cli)
        words = shlex.split(example.split(" > ")[0])
        assert words[0] == "edadm" and words[1 : 1 + len(name.split())] == name.split()
        if not isinstance(command, click.Group):  # parsed as the command line would, but not run
            command.make_context(name, words[1 + len(name.split()) :])


def test_the_shell_completes_commands_and_options() -> None:
    """At every press of the key, so without the second that torch takes to import."""
    code = "import sys; sys.argv[0] = 'edadm'; from edadm.cli import main; main()"
    for words, number, expected in (
        ("edadm qu", 1, "plain,quantize"),
        ("edadm generate --see", 2, "plain,--seed"),
        ("edadm quantize --calibrator u", 3, "plain,uniform"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONPATH": ":".join(sys.path), "_EDADM_COMPLETE": "bash_complete"}
            | {"COMP_WORDS": words, "COMP_CWORD": str(number)},
            capture_output=True,
            text=True,
        )
        assert expected in done.stdout.splitlines(), done.stderr


def test_the_command_line_and_the_parameters_are_there_before_torch() -> None:
    code = "import sys, edadm.cli, edadm.params; assert 'torch' not in sys.modules; import edadm.unets, torchvision"
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=True)

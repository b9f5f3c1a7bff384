"""Run the command line inside a test."""

import sys

import pytest

from edadm import cli


def call(*words: str) -> int:
    """Run the command line; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["edadm", *words])
        try:
            cli.main()
        except SystemExit as exit_:
            return exit_.code or 0
    return 0

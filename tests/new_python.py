"""A Python of its own, for what only holds in one that has imported nothing yet."""

import subprocess
import sys


def printed(code: str) -> str:
    """What a new Python prints."""
    here = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()

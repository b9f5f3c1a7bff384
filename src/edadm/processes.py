"""What ties a stage's process to the DVC that started it."""

import ctypes
import os
import signal
import sys


def end_with_dvc() -> None:
    """As a stage of DVC, end when the dvc process is killed: else two runs could write one folder."""
    if os.environ.get("DVC_STAGE") and sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)

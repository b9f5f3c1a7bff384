"""Before any test module: edadm makes torchvision importable beside a CPU-only torch; Triton interprets kernels."""

import gc
import os

# torch, its exporters and Hypothesis make millions of small objects: to look through them less often saves a tenth
gc.set_threshold(200_000, 50, 100)
# several processes test at a time, and the networks are tiny: a second thread would mostly wait for the first
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch; the commands that tests start take it over
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # nor, where a test wants two, spin while it waits

import torch  # noqa: E402

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported

from typing import Any  # noqa: E402

import pytest  # noqa: E402
from workspace import bin_folder, finished, space  # noqa: F401, E402 (fixtures)

import edadm  # noqa: F401, E402

import hostile  # isort: skip  # noqa: E402  (which imports edadm's errors)

TRIED = "hostile_cases"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """As in a new process: a command that an earlier test called may have set more."""
    torch.set_num_threads(1)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Each of several processes says how many cases of hostile input it tried."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput[TRIED] = hostile.tried


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    hostile.tried += getattr(node, "workeroutput", {}).get(TRIED, 0)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if hostile.tried:
        terminalreporter.write_line(f"hostile input: {hostile.tried} cases")

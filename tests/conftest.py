"""Before any test module: edadm makes torchvision importable beside a CPU-only torch; Triton interprets kernels."""

import os

# several processes test at a time, and the networks are tiny: a second thread would mostly wait for the first
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch; the commands that tests start take it over
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # nor, where a test wants two, spin while it waits

import torch  # noqa: E402

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported

import pytest  # noqa: E402
from workspace import bin_folder, finished, space  # noqa: F401, E402 (fixtures)

import edadm  # noqa: F401, E402


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """As in a new process: a command that an earlier test called may have set more."""
    torch.set_num_threads(1)

"""Before any test module: edadm makes torchvision importable beside a CPU-only torch; Triton interprets kernels."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported

from workspace import bin_folder, finished, space  # noqa: F401, E402 (fixtures)

import edadm  # noqa: F401, E402

torch.set_num_threads(1)  # the networks here are tiny: a second thread would mostly wait for the first

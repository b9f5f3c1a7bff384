"""Before any test module: edadm makes torchvision importable beside a CPU-only torch."""

import torch

import edadm  # noqa: F401

torch.set_num_threads(1)  # the networks here are tiny: a second thread would mostly wait for the first

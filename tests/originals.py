"""Narrow copies of the published systems' original checkpoint files, from tests/fixtures (see its README).

The weights and their names are those that the original code gave; ``write`` wraps them up as the originals are:
CIFAR-10 a flat state dict, the others Lightning checkpoints with objects of classes that are not installed here.
"""

import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

FIXTURES = Path(__file__).parent / "fixtures"
GOLDEN = "golden."
SUFFIX = {"cifar10-ddim": "model-790000.ckpt", "coco-sd14": "sd-v1-4.ckpt"}


def _tensors(kind: str) -> tuple[dict[str, Tensor], list[str]]:
    with safe_open(FIXTURES / f"{kind}.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dictionary)
        trained = (file.metadata() or {}).get("training_weights", "")
    return tensors, trained.splitlines()


def golden(kind: str) -> dict[str, Tensor]:
    """Inputs of the original code and its outputs, by name."""
    return {name[len(GOLDEN) :]: tensor for name, tensor in _tensors(kind)[0].items() if name.startswith(GOLDEN)}


def state_dict(kind: str) -> dict[str, Tensor]:
    """The original's state dict, float32; weights that only training needs are random."""
    tensors, trained = _tensors(kind)
    state = {name: tensor for name, tensor in tensors.items() if not name.startswith(GOLDEN)}
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    for index, name in enumerate(trained):
        average = state[f"model_ema.{name.removeprefix('model.').replace('.', '')}"]
        state[name] = torch.randn(average.shape, generator=torch.Generator().manual_seed(index))
    return state


@contextmanager
def _lightning() -> Iterator[type]:
    """A class that pickles as Lightning's ModelCheckpoint, whose module exists only within the block."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    parents = ["pytorch_lightning", "pytorch_lightning.callbacks", name]
    for each in parents:
        sys.modules[each] = types.ModuleType(each)
    callback = type("ModelCheckpoint", (), {"__module__": name})
    sys.modules[name].ModelCheckpoint = callback
    try:
        yield callback
    finally:
        for each in parents:
            del sys.modules[each]


def write(kind: str, folder: Path, state: dict[str, Tensor] | None = None, legacy: bool = False) -> Path:
    """The narrow original of ``kind`` as a file in ``folder``, perhaps of another ``state`` dict.

    ``legacy`` writes torch's format of before version 1.6.
    """
    state = state_dict(kind) if state is None else state
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SUFFIX.get(kind, "model.ckpt")
    if kind == "cifar10-ddim":
        torch.save(OrderedDict(state), path, _use_new_zipfile_serialization=not legacy)
        return path
    with _lightning() as callback:
        content = {
            "epoch": 10,
            "global_step": 1234,
            "pytorch-lightning_version": "1.4.2",
            "state_dict": OrderedDict(state),
            "callbacks": {callback: {"monitor": "val/loss", "best_model_score": np.float64(0.1), "made": callback()}},
            "optimizer_states": [
                {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]}
            ],
            "lr_schedulers": [],
        }
        torch.save(content, path, pickle_module=pickle, _use_new_zipfile_serialization=not legacy)
    return path

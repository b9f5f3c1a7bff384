"""The context of a class-conditional U-Net: one learned row per class and one more for "no class".

As latent-diffusion's ClassEmbedder: the row is a sequence of one token, which the cross-attention layers read.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edadm.errors import InputError
from edadm.files import read_json, write_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class ClassEmbedder(nn.Module):
    """``classes`` rows of ``width`` numbers, and the unconditional one, whose label is ``null``."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes + 1, width)

    @property
    def null(self) -> int:
        """The label that stands for no class: the last row."""
        return self.embedding.num_embeddings - 1

    def labels(self, seeds: range) -> Tensor:
        """The class (n,) int64 that each seed shows: any ``classes`` seeds in a row show all."""
        return torch.tensor(seeds) % self.null

    def conditional(self, seeds: range) -> Tensor:
        """Contexts (n, 1, width) of the seeds' classes."""
        return self(self.labels(seeds))

    def unconditional(self, count: int) -> Tensor:
        """``count`` times the context (1, width) of no class."""
        return self(torch.full((count,), self.null))

    def forward(self, labels: Tensor) -> Tensor:
        """Labels (n,) int64 to contexts (n, 1, width) float32."""
        return self.embedding(labels)[:, None]


def save(embedder: ClassEmbedder, folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors`` to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, {"classes": embedder.null, "width": embedder.embedding.embedding_dim})
    save_file(embedder.state_dict(), folder / WEIGHTS)


def load(folder: Path) -> ClassEmbedder:
    """What ``save`` wrote; InputError when it is missing or damaged."""
    config = read_json(folder / CONFIG)
    try:
        with torch.device("meta"):
            embedder = ClassEmbedder(config["classes"], config["width"])
        embedder.load_state_dict(load_file(folder / WEIGHTS), assign=True)
    except (OSError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder}: not a class embedder ({' '.join(str(error).split())})") from error
    return embedder.eval().requires_grad_(False)

"""Train the garment classifier, the embedded systems' feature extractor."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from edadm.evaluation import metrics, reference
from edadm.evaluation.garment_classifier import GarmentClassifier, to_float
from edadm.files import atomic_folder, write_json
from edadm.params import ClassifierTraining, MetricsParams
from edadm.systems import fashion_mnist

MADE = ("model.safetensors", "config.json", "reference.npz", "reference.json")


def _shifted(images: Tensor, generator: torch.Generator, most: int = 2) -> Tensor:
    """Each batch moved by up to ``most`` pixels: the black margin makes this a plain roll."""
    dy, dx = torch.randint(-most, most + 1, (2,), generator=generator).tolist()
    return images.roll((dy, dx), (2, 3))


@torch.no_grad()
def accuracy(model: GarmentClassifier, images: Tensor, labels: Tensor) -> float:
    """Share of images (n, 1, 32, 32) uint8 whose largest logit is their label."""
    model.eval()
    hits = [
        model(to_float(x))["logits"].argmax(1) == y for x, y in zip(images.split(500), labels.split(500), strict=True)
    ]
    return torch.cat(hits).float().mean().item()


def train(out: Path, folder: Path, training: ClassifierTraining, settings: MetricsParams) -> None:
    """Train on the 60,000 training images; write ``model.safetensors`` and ``config.json`` to ``out``, at the end.

    And with it what the metrics compare with: the training images' statistics in its features (``reference.npz``),
    and what the 10,000 test images get against them (``reference.json``), the floor of every metric.
    InputError, before anything is trained, for missing images and an ``out`` that holds something else.
    """
    data = {split: fashion_mnist.load(split, folder) for split in ("train", "test")}
    with atomic_folder(out, *MADE) as made:
        model = _trained(*_tensors(*data["train"]), training)
        save_file(model.state_dict(), made / "model.safetensors")
        test = accuracy(model, *_tensors(*data["test"]))
        write_json(made / "config.json", {"test_accuracy": test, **asdict(training)})
        reference.build(data["train"][0], made / "reference.npz", "garment-classifier", made)
        floor = metrics.floor(data["test"][0], made / "reference.npz", made, settings)
        write_json(made / "reference.json", floor)


def _tensors(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 32, 32) uint8 and labels (n,) int64; copies, since convolutions round by a view's strides."""
    return torch.from_numpy(images.copy()).permute(0, 3, 1, 2), torch.from_numpy(labels.copy()).long()


def _trained(images: Tensor, labels: Tensor, training: ClassifierTraining) -> GarmentClassifier:
    epochs, batch, rate = training.epochs, training.batch, training.learning_rate
    torch.manual_seed(training.seed)
    generator = torch.Generator().manual_seed(training.seed)
    model = GarmentClassifier()
    steps = epochs * (len(images) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    progress = tqdm(total=steps, desc="garment classifier", unit="step")
    for _ in range(epochs):
        model.train()
        for rows in torch.randperm(len(images), generator=generator).split(batch):
            if len(rows) < batch:
                continue
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(_shifted(to_float(images[rows]), generator))["logits"]
            loss = F.cross_entropy(logits.float(), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.update()
    return model

"""What the evaluation tests share: a small untrained extractor, images with some structure, folders of shards."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from edadm.evaluation.garment_classifier import GarmentClassifier, to_float
from edadm.evaluation.samples import write_shard

SEED = 500
N = 60


def untrained_extractor(folder: Path, seed: int = 0) -> Path:
    """A folder with the weights of a classifier whose features spread, though it was never trained."""
    torch.manual_seed(seed)
    model = GarmentClassifier()
    with torch.no_grad():
        images = to_float(torch.from_numpy(np.concatenate([bars(100, seed=7), noise(20, seed=7)])).permute(0, 3, 1, 2))
        for layer in model.modules():  # the normalization layers take on the statistics of images, or features fade
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = 1.0
        model.train()(images)
        model.eval()
        model.features[0].weight.mul_(20)
        model.classify.weight.mul_(60)  # so that logits differ between images, and some are confident
        model.classify.bias.sub_(model(images)["logits"].mean(0))
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def bars(n: int, seed: int = 0) -> np.ndarray:
    """Images (n, 32, 32, 1) uint8 of one bright upright bar each, of random place, width and brightness."""
    generator = np.random.default_rng(seed)
    images = np.zeros((n, 32, 32, 1), np.uint8)
    for image in images:
        left, width = generator.integers(2, 20), generator.integers(3, 10)
        image[4:28, left : left + width] = generator.integers(90, 256)
    return images


def noise(n: int, seed: int = 0) -> np.ndarray:
    """Images (n, 32, 32, 1) uint8 of independent random pixels."""
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 1), dtype=np.uint8)


def write_samples(folder: Path, images: np.ndarray, shard: int, seed: int = SEED, fingerprint: str = "mark") -> Path:
    """``images`` as a folder of shards of ``shard`` images."""
    for index, start in enumerate(range(0, len(images), shard)):
        part = images[start : start + shard]
        seeds = np.arange(seed + start, seed + start + len(part))
        write_shard(folder / f"shard-{index:04d}.npz", part, seeds, fingerprint)
    return folder

"""Training of the embedded models, on a few random images: what it writes is a checkpoint of the right kind."""

import csv
import functools
import operator
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml
from command_line import call
from diffusers import DDIMScheduler
from torch import nn

from edadm.errors import InputError
from edadm.evaluation import reference
from edadm.params import AutoencoderTraining, DiffusionTraining, LatentTraining, MetricsParams, TrainParams
from edadm.params.structure import structured
from edadm.systems import fashion_mnist, system
from edadm.systems.class_embedder import ClassEmbedder
from edadm.training import autoencoder, classifier, curve, diffusion, latent

ROOT = Path(__file__).parent.parent
SCHEDULER = {"prediction_type": "v_prediction", "clip_sample": False}
STEPS = {"batch": 8, "learning_rate": 0.01, "seed": 0}
SETTINGS = STEPS | {"ema_decay": 0.9, "scheduler": SCHEDULER}


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (40, 32, 32, 1), dtype=np.uint8)
    monkeypatch.setattr(fashion_mnist, "load", lambda split, folder: (images, np.arange(40, dtype=np.uint8) % 10))
    return images


def rows(path: Path) -> list[list[str]]:
    with path.open() as file:
        return list(csv.reader(file))


def test_a_pixel_system(tmp_path: Path, few_images: np.ndarray) -> None:
    unet = {key: tiny.unet().config[key] for key in ("block_out_channels", "down_block_types", "up_block_types")}
    unet |= {"layers_per_block": 1, "norm_num_groups": 4}
    diffusion.train(tmp_path, tmp_path, DiffusionTraining(unet=unet, cycles=(16, 24), **SETTINGS))
    assert system.load(tmp_path).shape == (1, 32, 32)
    assert tuple(system.load_unet(tmp_path).config.block_out_channels) == unet["block_out_channels"]
    assert rows(tmp_path / "training.csv")[0] == ["images", "loss"] and rows(tmp_path / "training.csv")[1][0] == "40"


def test_a_latent_class_conditional_system(tmp_path: Path, few_images: np.ndarray) -> None:
    keys = ("block_out_channels", "down_block_types", "up_block_types", "layers_per_block", "norm_num_groups")
    unet = {key: tiny.conditional_unet().config[key] for key in (*keys, "cross_attention_dim", "attention_head_dim")}
    model = {key: tiny.autoencoder().config[key] for key in (*keys, "latent_channels")}
    vae = AutoencoderTraining(model=model, seen=32, kl_weight=0.01, **STEPS)
    latent.train(
        tmp_path, tmp_path, LatentTraining(autoencoder=vae, unet=unet, cycles=(24,), label_drop=0.1, **SETTINGS)
    )
    trained = system.load(tmp_path)
    assert trained.shape == (4, 8, 8)
    assert trained.embedder.null == 10
    assert trained.decode(torch.zeros(2, 4, 8, 8)).shape == (2, 1, 32, 32)
    assert system.load_unet(tmp_path).config.cross_attention_dim == tiny.CONTEXT
    assert [rows(tmp_path / name)[1][0] for name in ("vae/training.csv", "training.csv")] == ["32", "24"]
    # latents times the scaling factor have a standard deviation of 1
    images = torch.from_numpy(few_images).permute(0, 3, 1, 2) / 127.5 - 1
    encoded = autoencoder.encode(system.load_autoencoder(tmp_path), images, seed=0)
    assert (encoded * trained.scale).std().item() == pytest.approx(1, rel=1e-4)


def test_an_autoencoder_learns_and_its_divergence_is_the_closed_form() -> None:
    images = torch.zeros(16, 1, 32, 32) - 1
    images[:, :, 8:24, 8:24] = torch.rand(16, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    model = {key: tiny.autoencoder().config[key] for key in ("block_out_channels", "down_block_types")}
    model |= {"up_block_types": ("UpDecoderBlock2D",) * 3, "latent_channels": 4, "norm_num_groups": 4}
    _, losses = autoencoder.train(images, AutoencoderTraining(model=model, seen=240, kl_weight=0.0, **STEPS))
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    mean, logvar = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    found = autoencoder._divergence(mean, logvar)
    own = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    expected = torch.distributions.kl_divergence(own, torch.distributions.Normal(torch.zeros(()), torch.ones(())))
    assert torch.allclose(found, expected.flatten(1).sum(1), rtol=1e-5)


@pytest.mark.parametrize(
    ("model", "place", "value"),
    [
        ("fashion-ddim", "unet.down_block_types", ["Block", *["DownBlock2D"] * 3]),
        ("fashion-ddim", "unet.down_block_types", ["DownBlock2D"]),
        ("fashion-ddim", "unet.layers", 1),
        ("fashion-ddim", "unet.in_channels", 3),
        ("fashion-ddim", "unet.num_class_embeds", 10),  # refused only when it is called
        ("fashion-ddim", "scheduler.beta_schedule", "square"),
        ("fashion-ddim", "scheduler.timestep_spacing", "wide"),
        ("fashion-ddim", "scheduler.prediction_type", "sample"),
        ("fashion-ldm", "unet.cross_attention_dim", "64"),
        ("fashion-ldm", "autoencoder.model.norm_num_groups", 7),
        ("fashion-ldm", "autoencoder.model.up_block_types", ["UpDecoderBlock2D"]),
        ("fashion-ldm", "scheduler.num_train_timesteps", 0),
    ],
)
def test_what_diffusers_refuses_is_one_line_before_anything_is_trained(
    model: str,
    place: str,
    value: object,
    tmp_path: Path,
    few_images: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    *folders, key = place.split(".")
    functools.reduce(operator.getitem, folders, content["train"][model])[key] = value
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    for trained in (autoencoder, diffusion):
        monkeypatch.setattr(trained, "RowOrder", None)
    assert call("train", model, "--out", "out") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"edadm: train.{model}.{'.'.join(folders)}") and said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def small(model: str) -> Callable[[Path], None]:
    """The training of ``model`` with few steps, into a folder."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())["train"]
    content["garment-classifier"] |= {"epochs": 1, "batch": 20}
    for name in ("fashion-ddim", "fashion-ldm"):
        content[name] |= {"cycles": [2], "batch": 2}
    content["fashion-ldm"]["autoencoder"] |= {"seen": 2, "batch": 2}
    trainings = structured(TrainParams, content)
    metrics = MetricsParams(kid_subsets=2, kid_subset_size=10, neighbours=2)
    return {
        "garment-classifier": lambda out: classifier.train(out, out, trainings.garment_classifier, metrics),
        "fashion-ddim": lambda out: diffusion.train(out, out, trainings.fashion_ddim),
        "fashion-ldm": lambda out: latent.train(out, out, trainings.fashion_ldm),
    }[model]


LAST = {  # what a training calls when part of it is written
    "garment-classifier": (reference, "build"),
    "fashion-ddim": (curve, "write"),
    "fashion-ldm": (latent, "train_cycles"),
}


@pytest.mark.parametrize("model", LAST)
def test_a_training_that_ends_early_leaves_no_half_of_it(
    model: str, tmp_path: Path, few_images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, train = tmp_path / "out", small(model)
    module, name = LAST[model]

    def stop(*_: object, **__: object) -> None:
        assert not out.exists() or held() == before  # nor would one that is killed here, which cleans nothing up
        raise KeyboardInterrupt

    def held() -> dict[str, bytes]:
        return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}

    with monkeypatch.context() as patch:
        patch.setattr(module, name, stop)
        with pytest.raises(KeyboardInterrupt):
            train(out)
        assert not list(tmp_path.iterdir())
    train(out)
    before = held()
    monkeypatch.setattr(module, name, stop)
    with pytest.raises(KeyboardInterrupt):
        train(out)
    assert held() == before and list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("model", LAST)
def test_a_folder_of_something_else_is_refused_before_the_training(
    model: str, tmp_path: Path, few_images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thesis.md").write_text("mine")
    for module, name in ((classifier, "GarmentClassifier"), (diffusion, "RowOrder"), (autoencoder, "RowOrder")):
        monkeypatch.setattr(module, name, None)
    with pytest.raises(InputError, match=r"holds thesis\.md, which would be lost"):
        small(model)(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.md"]


class Recorder(nn.Module):
    """A stand-in for the network that keeps the labels it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.embedder = ClassEmbedder(10, 2)
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.seen.append(labels)
        return x * self.weight + 0 * self.embedder(labels).sum()


@pytest.mark.parametrize("drop", [0.0, 0.1, 1.0])
def test_labels_are_dropped_for_guidance(drop: float) -> None:
    model, labels = Recorder(), torch.arange(200) % 10
    data = torch.randn(200, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    settings = {"steps": 40, "batch": 50, "learning_rate": 0.01, "ema_decay": 0.9, "seed": 0, "name": "test"}
    diffusion.train_cycle(model, DDIMScheduler(), data, **settings, labels=labels, label_drop=drop)
    seen = torch.cat(model.seen)
    dropped = (seen == model.embedder.null).float().mean().item()
    assert dropped == pytest.approx(drop, abs=0.03)
    if drop == 0:
        assert torch.bincount(seen).tolist() == [200] * 10  # ten epochs: every label as often as the data has it

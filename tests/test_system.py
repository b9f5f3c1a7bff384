"""A checkpoint folder: its parts, its hash, its conditions, its decoder; whatever is wrong with it is one line."""

import subprocess
from pathlib import Path

import pytest
import tiny
import torch
from diffusers import VQModel

from edadm.errors import InputError
from edadm.params import CheckpointParams
from edadm.systems import class_embedder
from edadm.systems.class_embedder import ClassEmbedder
from edadm.systems.folder import fetch, weights_sha256
from edadm.systems.system import load, load_unet


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tiny.latent_checkpoint(tmp_path / "source")


def test_the_hash_is_the_one_that_a_shell_finds(source: Path, tmp_path: Path) -> None:
    found = subprocess.run(f"cat {source}/*/*.safetensors | sha256sum", shell=True, capture_output=True, text=True)
    expected = found.stdout.split()[0]
    assert weights_sha256(source) == expected
    (source / "notes").mkdir()
    (source / "notes" / "README").write_text("not a part")
    fetch(CheckpointParams(source=str(source), sha256=expected), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["class_embedder", "scheduler", "unet", "vae"]
    weights = source / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="SHA-256"):
        fetch(CheckpointParams(source=str(source), sha256=expected), tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("unet/config.json", "has no unet/config.json"),
        ("scheduler/scheduler_config.json", "has no scheduler/scheduler_config.json"),
        ("vae/diffusion_pytorch_model.safetensors", "has no vae/diffusion_pytorch_model.safetensors"),
        ("class_embedder/config.json", "class_embedder/config.json: no such file"),
        ("class_embedder/model.safetensors", "not a class embedder"),
    ],
)
def test_a_missing_file_is_one_line(source: Path, part: str, message: str) -> None:
    (source / part).unlink()
    with pytest.raises(InputError, match=message) as caught:
        load(source)
    assert "\n" not in str(caught.value)


def test_a_part_of_another_kind_is_one_line(source: Path) -> None:
    config = source / "unet" / "config.json"
    config.write_text(config.read_text().replace("UNet2DConditionModel", "UNet3DConditionModel"))
    with pytest.raises(InputError, match="'UNet3DConditionModel' is not one of UNet2DModel, UNet2DConditionModel"):
        load_unet(source)


def test_labels_are_balanced_and_belong_to_the_seed(source: Path) -> None:
    system = load(source)
    labels = system.labels(range(100, 112))
    assert torch.bincount(labels).tolist() == [4, 4, 4]
    assert torch.equal(system.labels(range(105, 108)), labels[5:8])
    rows = class_embedder.load(source / "class_embedder").embedding.weight
    (asked,) = system.contexts(range(100, 112), 1.0)
    assert torch.equal(asked, rows[labels][:, None])
    nothing, same = system.contexts(range(100, 112), 3.0)
    assert torch.equal(same, asked) and torch.equal(nothing, rows[[3] * 12][:, None])


def test_an_image_does_not_depend_on_the_others_decoded_with_it(source: Path) -> None:
    system = load(source)
    latents = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    images = system.decode(latents)
    assert torch.equal(system.decode(latents[3:4]), images[3:4])
    expected = tiny.autoencoder().decode(latents / 0.7).sample
    assert torch.allclose(images, expected, atol=1e-5)


def test_a_vq_autoencoder(source: Path) -> None:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (4, 8), "norm_num_groups": 4, "latent_channels": 4, "num_vq_embeddings": 16}
    model = VQModel(**blocks, **sizes, scaling_factor=0.5)
    model.eval().save_pretrained(source / "vae")
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.decode(latents / 0.5).sample  # quantizes to the code book first
    assert torch.allclose(load(source).decode(latents), expected, atol=1e-5)


def test_a_pixel_system_has_neither(tmp_path: Path, source: Path) -> None:
    for part in ("vae", "class_embedder"):
        (source / part).rename(tmp_path / part)
    system = load(source)
    assert system.labels(range(3)) is None and system.contexts(range(3), 1.0) == ()
    x = torch.randn(2, 4, 8, 8)
    assert system.decode(x) is x
    with pytest.raises(InputError, match="needs a conditional checkpoint"):
        system.contexts(range(3), 2.0)


def test_an_embedder_comes_back(tmp_path: Path) -> None:
    embedder = ClassEmbedder(10, 6)
    class_embedder.save(embedder, tmp_path)
    again = class_embedder.load(tmp_path)
    labels = torch.tensor([0, 9, again.null])
    assert again.null == 10 and again(labels).shape == (3, 1, 6)
    assert torch.equal(again(labels), embedder(labels))

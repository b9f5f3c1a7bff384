"""The converted originals against the outputs of the original code, and the full architectures' sizes."""

from pathlib import Path

import originals
import pytest
import torch
from torch import Tensor

from edadm.systems.originals import KINDS, convert, parameter_counts
from edadm.systems.system import load, load_unet

LATENT = tuple(kind for kind in KINDS if kind != "cifar10-ddim")
# U-Nets: counted on the original code; autoencoders with encoder and code book, the text model without its buffer
COUNTS = {
    "cifar10-ddim": {"unet": 35_746_307},
    "bedroom-ldm4": {"unet": 274_056_163, "vae": 55_322_782},
    "church-ldm8": {"unet": 294_966_916, "vae": 83_653_863},
    "imagenet-ldm4": {"unet": 400_920_579, "vae": 55_322_782, "class_embedder": 512_512},
    "coco-sd14": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with each kind's narrow copy, converted."""
    folder = tmp_path_factory.mktemp("converted")
    for kind in KINDS:
        convert(kind, originals.write(kind, folder / "files" / kind), folder / kind)
    return folder


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference relative to the largest value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("kind", KINDS)
def test_the_unet_is_the_original(kind: str, converted: Path) -> None:
    golden = originals.golden(kind)
    inputs = [golden[name] for name in ("x", "t", "context") if name in golden]
    with torch.no_grad():
        found = load_unet(converted / kind)(*inputs, return_dict=False)[0]
    assert difference(found, golden["output"]) <= 1e-4


@pytest.mark.parametrize("kind", LATENT)
def test_the_decoder_is_the_original(kind: str, converted: Path) -> None:
    golden = originals.golden(kind)
    assert difference(load(converted / kind).decode(golden["z"]), golden["image"]) <= 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_full_size_has_the_published_number_of_parameters(kind: str) -> None:
    assert parameter_counts(kind) == COUNTS[kind]

"""The converted originals against the outputs of the original code, and the full architectures' sizes."""

import json
from pathlib import Path

import originals
import published_project
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from edadm.errors import InputError
from edadm.systems.folder import weights_sha256
from edadm.systems.originals import KINDS, convert, parameter_counts, random_checkpoint
from edadm.systems.originals.architectures import Widths
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
    published_project.add_text(folder / "coco-sd14")
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


@pytest.mark.parametrize("kind", LATENT)
def test_the_folder_says_how_to_sample(kind: str, converted: Path) -> None:
    state = originals.state_dict(kind)
    system = load(converted / kind)
    diffusion = system.diffusion
    assert (diffusion.prediction, diffusion.clip, diffusion.offset) == ("epsilon", False, 1)
    assert torch.allclose(diffusion.alphas_cumprod.float(), state["alphas_cumprod"], rtol=1e-4, atol=0)
    assert diffusion.final_alpha == diffusion.alphas_cumprod[0]
    scales = {"bedroom-ldm4": 1.0, "imagenet-ldm4": 1.0, "coco-sd14": 0.18215}
    expected = state["scale_factor"].item() if kind == "church-ldm8" else scales[kind]
    assert system.scale == expected


def test_cifar10_ends_at_the_image(converted: Path) -> None:
    diffusion = load(converted / "cifar10-ddim").diffusion
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    assert torch.allclose(diffusion.alphas_cumprod, (1 - betas).cumprod(0), rtol=1e-4)
    assert (diffusion.prediction, diffusion.clip, diffusion.offset, diffusion.final_alpha) == ("epsilon", False, 0, 1)


def test_class_rows_are_the_original_ones(converted: Path) -> None:
    golden = originals.golden("imagenet-ldm4")
    embedder = load(converted / "imagenet-ldm4").embedder
    assert torch.equal(embedder(golden["labels"]), golden["context"])
    assert embedder.null == 10  # of the narrow copy's 11 rows


def test_the_text_model_is_the_original_one(converted: Path) -> None:
    found = load_file(converted / "coco-sd14" / "text_encoder" / "model.safetensors")
    prefix = "cond_stage_model.transformer."
    state = originals.state_dict("coco-sd14")
    expected = {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
    del expected["text_model.embeddings.position_ids"]  # 0, 1, 2, …: not a weight
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_published_sides(converted: Path) -> None:
    sides = {kind: load(converted / kind).shape for kind in KINDS}
    assert sides == {
        "cifar10-ddim": (3, 32, 32),
        "bedroom-ldm4": (3, 64, 64),
        "church-ldm8": (4, 32, 32),
        "imagenet-ldm4": (3, 64, 64),
        "coco-sd14": (4, 64, 64),
    }


def test_another_side(converted: Path, tmp_path: Path) -> None:
    convert("church-ldm8", converted / "files" / "church-ldm8" / "model.ckpt", tmp_path / "out", side=16)
    system = load(tmp_path / "out")
    sample_size = json.loads((tmp_path / "out" / "vae" / "config.json").read_text())["sample_size"]
    assert system.shape == (4, 16, 16) and sample_size == 128


def refusal(kind: str, source: Path, out: Path) -> str:
    """The one line with which a file is refused; nothing is written."""
    with pytest.raises(InputError) as caught:
        convert(kind, source, out)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{source}: ")
    assert not out.exists() and not list(out.parent.glob(".*"))
    return message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_another_systems_file_is_refused(kind: str, other: str, converted: Path, tmp_path: Path) -> None:
    if kind != other:
        (source,) = (converted / "files" / other).iterdir()
        assert f"not a {kind} checkpoint" in refusal(kind, source, tmp_path / "out")


CHANGES = {
    "a key too few": (lambda state: state.pop("model.diffusion_model.out.2.bias"), "model.out.2.bias is missing"),
    "many too few": (
        lambda state: [state.pop(name) for name in list(state) if ".decoder." in name],
        "first_stage_model.decoder.conv_in.bias, first_stage_model.decoder.conv_in.weight, "
        "first_stage_model.decoder.conv_out.bias and 109 more are missing",
    ),
    "a key too many": (lambda state: state.update(odd=torch.ones(1)), "odd is not known"),
    "no class rows": (lambda state: state.pop("cond_stage_model.embedding.weight"), "embedding.weight is missing"),
    "another shape": (
        lambda state: state.update({"model.diffusion_model.out.2.bias": torch.ones(4)}),
        "model.diffusion_model.out.2.bias has shape (4,), not (3,)",
    ),
    "another width": (
        lambda state: state.update({"cond_stage_model.embedding.weight": torch.ones(11, 9)}),
        "cond_stage_model.embedding.weight has shape (11, 9), not (11, 12)",
    ),
    "not finite": (lambda state: state["model.diffusion_model.out.2.bias"].fill_(torch.nan), "not finite"),
    "integers": (
        lambda state: state.update({"model.diffusion_model.out.2.bias": torch.ones(3, dtype=torch.int64)}),
        "not finite floating-point numbers",
    ),
    "another schedule": (lambda state: state["betas"].mul_(1.1), "its noise schedule (betas) is another one"),
    "a bad scale": (lambda state: state.update(scale_factor=torch.tensor(-1.0)), "scale_factor is not a positive"),
    "nothing to measure": (
        lambda state: state.update({"first_stage_model.quantize.embedding.weight": torch.ones(0, 3)}),
        "first_stage_model.quantize.embedding.weight is empty",
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_does_not_fit_is_one_line(change: str, tmp_path: Path) -> None:
    state = originals.state_dict("imagenet-ldm4")
    edit, message = CHANGES[change]
    edit(state)
    assert message in refusal("imagenet-ldm4", originals.write("imagenet-ldm4", tmp_path, state), tmp_path / "out")


def test_church_needs_its_scale(tmp_path: Path) -> None:
    state = originals.state_dict("church-ldm8")
    del state["scale_factor"]
    assert "scale_factor is missing" in refusal(
        "church-ldm8", originals.write("church-ldm8", tmp_path, state), tmp_path / "out"
    )


def test_weights_of_training_alone_are_ignored(converted: Path, tmp_path: Path) -> None:
    state = originals.state_dict("bedroom-ldm4")
    for name in [name for name in state if name.startswith("model.diffusion_model.")]:
        state[name] = torch.zeros_like(state[name])
    state["first_stage_model.loss.discriminator.main.0.weight"] = torch.ones(2)
    convert("bedroom-ldm4", originals.write("bedroom-ldm4", tmp_path, state), tmp_path / "out")
    assert weights_sha256(tmp_path / "out") == weights_sha256(converted / "bedroom-ldm4")


def test_half_precision_becomes_float(converted: Path, tmp_path: Path) -> None:
    half = {
        name: each.half() if "betas" not in name else each
        for name, each in originals.state_dict("cifar10-ddim").items()
    }
    convert("cifar10-ddim", originals.write("cifar10-ddim", tmp_path, half), tmp_path / "out")
    assert weights_sha256(tmp_path / "out") == weights_sha256(converted / "cifar10-ddim")


def test_an_unknown_kind(tmp_path: Path) -> None:
    for make in (
        lambda: convert("mnist", tmp_path / "file", tmp_path / "out"),
        lambda: random_checkpoint("mnist", tmp_path),
    ):
        with pytest.raises(InputError, match="'mnist' is not one of cifar10-ddim, bedroom-ldm4"):
            make()


NARROW = {
    "cifar10-ddim": Widths(4),
    "bedroom-ldm4": Widths(4, 2, 64),
    "church-ldm8": Widths(4, 2),
    "imagenet-ldm4": Widths(4, 2, 64, 12, 10),
    "coco-sd14": Widths(4, 2, 0, 12, 0, 64),
}


@pytest.mark.parametrize("kind", KINDS)
def test_random_weights_make_the_same_folder(kind: str, converted: Path, tmp_path: Path) -> None:
    random_checkpoint(kind, tmp_path / "one", 0, NARROW[kind])
    random_checkpoint(kind, tmp_path / "again", 0, NARROW[kind])
    random_checkpoint(kind, tmp_path / "other", 1, NARROW[kind])
    files, made = (
        sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        for folder in (converted / kind, tmp_path / "one")
    )
    files = [file for file in files if file.parts[0] not in ("prompts", "tokenizer")]  # they come separately
    assert files == made
    for file in files:
        expected, found = converted / kind / file, tmp_path / "one" / file
        assert found.read_bytes() == (tmp_path / "again" / file).read_bytes()
        if file.suffix == ".json":
            unknown = {"scaling_factor"} if kind == "church-ldm8" else set()
            settings, random = (json.loads(path.read_text()) for path in (expected, found))
            assert {name for name in settings if settings[name] != random[name]} <= unknown
        else:
            shapes, random = (
                {name: each.shape for name, each in load_file(path).items()} for path in (expected, found)
            )
            assert shapes == random
            assert found.read_bytes() != (tmp_path / "other" / file).read_bytes()
    golden = originals.golden(kind)
    inputs = [golden[name] for name in ("x", "t", "context") if name in golden]
    with torch.no_grad():
        output = load_unet(tmp_path / "one")(*inputs, return_dict=False)[0]
    assert 0.01 < output.std() < 10

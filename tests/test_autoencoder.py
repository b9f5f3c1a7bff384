"""The autoencoder of a latent system, quantized: exact in the engine, and what samples are decoded with."""

from pathlib import Path

import pytest
import tiny
import torch
from diffusers import VQModel
from graphs import counted
from safetensors.torch import save_file
from torch import nn

from edadm.engines import cpu, reference, verify
from edadm.errors import InputError
from edadm.params import Recipe, Reconstruction
from edadm.quantization import autoencoder, checkpoint, reconstruction

RECIPE = Recipe(weights=8, activations=8, quantize=("unet", "vae"))


def vector_quantized() -> VQModel:
    torch.manual_seed(0)
    model = VQModel(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        latent_channels=4,
        norm_num_groups=4,
        num_vq_embeddings=16,
        vq_embed_dim=4,
        scaling_factor=0.7,
    )
    return model.eval().requires_grad_(False)


@pytest.fixture
def calibration_file(tmp_path: Path) -> Path:
    x, t = tiny.inputs(8, channels=4)
    final = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    path = tmp_path / "calibration.safetensors"
    save_file({"x": x, "t": t, "context": tiny.context(8, 1), "final": final}, path)
    return path


def quantize(vae: nn.Module | None, calibration_file: Path, recipe: Recipe = RECIPE) -> Path:
    folder = calibration_file.parent
    unet = tiny.conditional_unet()
    reconstruction.run(unet, vae, [], calibration_file, recipe, folder / "scratch", folder / "quantized")
    return folder / "quantized"


def test_units_learned_on_another_device_are_not_gone_on_with(
    calibration_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They differ by round-off, so that a result would depend on when its run was killed."""
    marks: list[str] = []

    def stop(*arguments: object) -> None:
        marks.append(arguments[4])
        raise KeyboardInterrupt

    monkeypatch.setattr(reconstruction, "_quantize", stop)
    own = Recipe(weights=8, activations=8)
    folders = [calibration_file.parent / name for name in ("scratch", "quantized")]
    for device in ("cpu", "cuda", "cpu"):
        with pytest.raises(KeyboardInterrupt):
            reconstruction.run(tiny.conditional_unet(), None, [], calibration_file, own, *folders, device=device)
    assert marks[0] == marks[2] != marks[1]


@pytest.mark.parametrize("make", [tiny.autoencoder, vector_quantized])
def test_the_engine_decodes_as_exact_integers_do(make, calibration_file: Path) -> None:  # noqa: ANN001
    quantized = quantize(make(), calibration_file)
    loaded = checkpoint.load(quantized / "vae")
    convolutions = [name for name, module in make().named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert set(loaded.layers) == set(convolutions)
    assert all(layer.bits == 8 for layer in loaded.layers.values())
    engine = calibration_file.parent / "engine"
    cpu.deploy(quantized, engine)
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(6))
    found = verify.verify(quantized / "vae", engine / "vae", latents, threads=1)
    decoding = [name for name in convolutions if autoencoder.decoding(name)]
    assert found["layers"] == len(decoding) > 0
    assert counted(found["layers_in_int8"], found["layers_in_graph"], len(decoding))
    assert found["worst_layer_error"] < 1e-6
    image = cpu.load(engine / "vae", 1, threads=1)(latents[:1])
    assert verify.relative_error(image, reference.load(quantized / "vae")(latents[:1])) < 0.01
    assert verify.relative_error(image, make().decode(latents[:1]).sample) < 0.2


def test_four_bit_weights_keep_eight_at_the_images_ends(calibration_file: Path) -> None:
    loaded = checkpoint.load(
        quantize(tiny.autoencoder(), calibration_file, Recipe(weights=4, activations=8, quantize=("unet", "vae")))
        / "vae"
    )
    assert {name for name, layer in loaded.layers.items() if layer.bits == 8} == set(autoencoder.ENDS)


def test_reconstruction_learns_the_autoencoder(calibration_file: Path) -> None:
    learning = {"method": "fbr", "iterations": 12, "batch": 4, "rate_rounding": 0.1}
    recipe = Recipe(weights=4, activations=8, quantize=("unet", "vae"), reconstruction=Reconstruction(**learning))
    losses = (quantize(tiny.autoencoder(), calibration_file, recipe) / "vae" / "losses.csv").read_text().splitlines()
    errors = [line.split(",")[-2:] for line in losses[1:]]
    assert sum(float(after) for _, after in errors) < sum(float(before) for before, _ in errors)


def test_a_system_without_an_autoencoder_is_refused(calibration_file: Path) -> None:
    with pytest.raises(InputError, match="the checkpoint has no autoencoder"):
        quantize(None, calibration_file)
    assert not (calibration_file.parent / "quantized").exists()

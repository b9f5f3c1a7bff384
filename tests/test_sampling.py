"""Sampling: an image depends on its seed alone, shards resume, foreign shards are not taken."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from diffusers import DDIMScheduler
from new_python import printed

from edadm.errors import InputError
from edadm.evaluation import samples, sampling
from edadm.evaluation.shards import Shards, fingerprint
from edadm.params import SamplerParams, SamplingParams
from edadm.systems.samplers import Diffusion, Network
from edadm.systems.system import System, load, load_unet

PIXELS = System((1, 8, 8), Diffusion.from_scheduler(DDIMScheduler(clip_sample=True)), None, None)


def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x) * (1 + t.view(-1, 1, 1, 1) / 1000)


def run(
    tmp_path: Path,
    batch: int = 4,
    shard: int = 8,
    images: int = 20,
    mark: str = "m",
    only: str | None = None,
    network: Network = network,
) -> np.ndarray:
    settings = SamplingParams(seed=50, batch=batch, shard=shard, images={"demo": images, "full": images})
    sampler = SamplerParams(name="ddim", steps=5, spacing="leading", eta=1.0)
    shards = Shards(settings, "demo", mark, tmp_path / "scratch")
    for number in shards.missing(only):
        sampling.make_shard(network, PIXELS, sampler, shards, number)
    if only is not None:
        assert shards.missing(only) == []
        return np.empty(0)
    shards.gather(tmp_path / "out")
    opened = samples.open_folder(tmp_path / "out")
    return np.concatenate(list(samples.batches(opened, 3)))


def test_an_image_depends_on_its_seed_alone(tmp_path: Path) -> None:
    expected = run(tmp_path / "a")
    assert expected.shape == (20, 8, 8, 1)
    assert expected.dtype == np.uint8
    assert len(np.unique(expected.reshape(20, -1), axis=0)) == 20
    for batch, shard in ((1, 8), (8, 8), (4, 20), (3, 7)):
        assert np.array_equal(run(tmp_path / f"{batch}-{shard}", batch, shard), expected)
    assert np.array_equal(run(tmp_path / "fewer", images=9), expected[:9])


def test_scattered_shards_give_the_same_images(tmp_path: Path) -> None:
    expected = run(tmp_path / "whole")
    for index in (2, 0, 1):
        run(tmp_path / "scattered", only=f"{index}/3")

    def refuse(*_: torch.Tensor) -> None:
        raise AssertionError("nothing was left to draw")

    assert np.array_equal(run(tmp_path / "scattered", network=refuse), expected)
    assert not (tmp_path / "scattered" / "scratch").exists()


def test_a_killed_run_keeps_its_finished_shards(tmp_path: Path) -> None:
    expected = run(tmp_path / "whole")
    calls = 0

    def dying(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > 12:
            raise KeyboardInterrupt
        return network(x, t)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", network=dying)
    assert sorted(path.name for path in (tmp_path / "killed" / "scratch").iterdir()) == ["shard-0000.npz"]
    assert not (tmp_path / "killed" / "out").exists()
    calls = -100
    assert np.array_equal(run(tmp_path / "killed", network=dying), expected)
    assert calls == -100 + 3 * 5  # 12 images in batches of 4 are left, of 5 steps each


def test_shards_of_another_engine_are_made_again(tmp_path: Path) -> None:
    run(tmp_path, only="0/3", mark="other")
    expected = run(tmp_path / "whole")
    assert np.array_equal(run(tmp_path), expected)


def test_the_fingerprint_follows_what_the_images_depend_on(tmp_path: Path) -> None:
    engine, checkpoint = tmp_path / "engine", tiny.latent_checkpoint(tmp_path / "checkpoint")
    engine.mkdir()
    (engine / "model.bin").write_bytes(b"1")
    settings = SamplingParams(seed=50, batch=4, shard=8, images={"demo": 8, "full": 8})
    sampler = SamplerParams(name="ddim", steps=5, spacing="leading", eta=0.0)

    def mark(**changes: object) -> str:
        return fingerprint(engine, checkpoint, replace(sampler, **changes), settings, {"body": "f32"})

    first = mark()
    assert mark() == first
    assert fingerprint(engine, checkpoint, sampler, settings, {"body": "bf16"}) != first
    assert len({first, mark(steps=6), mark(name="plms"), mark(guidance=2.0)}) == 4
    for path in (
        engine / "model.bin",
        checkpoint / "vae" / "config.json",
        checkpoint / "class_embedder/model.safetensors",
    ):
        before = mark()
        path.write_bytes(path.read_bytes() + b" ")
        assert mark() != before, path


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("sampler", ["ddim", "plms"])
def test_a_latent_conditional_system(tmp_path: Path, sampler: str, guidance: float) -> None:
    checkpoint = tiny.latent_checkpoint(tmp_path / "checkpoint")
    drawn, unet = load(checkpoint), load_unet(checkpoint)
    assert drawn.shape == (4, 8, 8)
    chosen = SamplerParams(name=sampler, steps=3, spacing="leading", guidance=guidance)
    rows = []

    def counted(x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        rows.append(len(x))
        return unet(x, t, context).sample

    def images(name: str, batch: int) -> np.ndarray:
        settings = SamplingParams(seed=7, batch=batch, shard=5, images={"demo": 10, "full": 10})
        shards = Shards(settings, "demo", "m", tmp_path / "scratch")
        for number in shards.missing():
            sampling.make_shard(counted, drawn, chosen, shards, number)
        shards.gather(tmp_path / name)
        opened = samples.open_folder(tmp_path / name, range(7, 17))
        assert opened.labels.tolist() == [seed % 3 for seed in range(7, 17)]
        return np.concatenate(list(samples.batches(opened, 10)))

    found = images("one", 5)
    assert found.shape == (10, 32, 32, 1)
    assert set(rows) == {5 if guidance == 1 else 10}
    assert len(rows) == 2 * (3 if sampler == "ddim" else 4)
    assert np.abs(images("other", 2).astype(int) - found).max() <= 1  # up to round-off of PyTorch's convolutions
    # the last latent by hand: of one seed, through the autoencoder's own scaling
    *_, (_, _, latent) = sampling.draw(lambda *inputs: unet(*inputs).sample, drawn, chosen, range(9, 10))
    image = tiny.autoencoder().decode(latent / 0.7).sample
    assert np.abs(sampling.to_uint8(image)[0].astype(int) - found[2]).max() <= 1


def test_guidance_changes_the_image_and_needs_a_condition(tmp_path: Path) -> None:
    checkpoint = tiny.latent_checkpoint(tmp_path / "checkpoint")
    drawn, unet = load(checkpoint), load_unet(checkpoint)

    def last(drawn: System, guidance: float) -> torch.Tensor:
        sampler = SamplerParams(name="ddim", steps=3, spacing="leading", guidance=guidance)
        return list(sampling.draw(lambda *inputs: unet(*inputs).sample, drawn, sampler, range(4)))[-1][2]

    assert not torch.allclose(last(drawn, 1.0), last(drawn, 3.0), atol=1e-3)
    with pytest.raises(InputError, match="sampler.guidance"):
        last(PIXELS, 3.0)


@pytest.mark.parametrize("only", ["3/3", "0/2", "-1/3", "1", "a/b", "²/3"])
def test_a_shard_that_does_not_exist_is_one_line(tmp_path: Path, only: str) -> None:
    with pytest.raises(InputError, match=f"--shard {only}: (this set has 3 shards|give it as I/N)"):
        run(tmp_path, only=only)


def imported(modules: str) -> set[str]:
    return set(printed(f"import sys, {modules}; print(*sys.modules)").split())


def test_gathering_needs_no_library_that_takes_seconds() -> None:
    found = imported("edadm.cli, edadm.evaluation.shards, edadm.systems.folder")
    assert "edadm.evaluation.samples" in found and not {"torch", "diffusers", "openvino"} & found


def test_drawing_needs_no_network_of_diffusers() -> None:
    """Its networks bring loaders, transformers and more, which take longer than PyTorch."""
    found = imported("edadm.systems.system, edadm.evaluation.sampling, edadm.engines.cpu")
    assert "diffusers" in found
    assert not {"diffusers.models.unets", "diffusers.models.autoencoders", "transformers"} & found

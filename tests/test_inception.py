"""The published systems' measures: Inception's features, statistics of real images however they come, CLIP's score."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from evaluation_helpers import bars, untrained_extractor, write_samples
from PIL import Image
from published_project import cifar_archive, narrow_clip, text_files, untrained_inception
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from edadm.errors import InputError
from edadm.evaluation import metrics, real_images, reference
from edadm.evaluation.clip_score import ClipScore
from edadm.evaluation.extractor import create, weights_sha256
from edadm.evaluation.samples import open_folder, read_shard, write_shard
from edadm.params import MetricsParams


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_inception(tmp_path_factory.mktemp("inception") / "weights.pth")


def coloured(n: int, side: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def test_inception_features_are_torch_fidelitys_and_the_spatial_ones_are_the_layers(weights: Path) -> None:
    ours = create("inception", weights)
    layers = ["2048", "logits_unbiased", "logits"]
    plain = torch_fidelity.utils.create_feature_extractor(
        "inception-v3-compat", layers, cuda=False, feature_extractor_weights_path=str(weights), verbose=False
    )
    entered = []
    plain.Mixed_6d.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    images = torch.from_numpy(coloured(3)).permute(0, 3, 1, 2).contiguous()
    found = ours.convert_features_tuple_to_dict(ours(images))
    for name, wanted in zip(layers, plain(images), strict=True):
        if name in found:
            torch.testing.assert_close(found[name], wanted)
    assert {metric: ours.get_default_feature_layer_for_metric(metric) for metric in ("fid", "isc", "sfid")} == {
        "fid": "2048",
        "isc": "logits_unbiased",
        "sfid": "spatial",
    }
    layer = plain.Mixed_6d.branch1x1
    norm = layer.bn
    by_hand = F.conv2d(entered[0], layer.conv.weight)
    by_hand = (by_hand - norm.running_mean[:, None, None]) / (norm.running_var + norm.eps).sqrt()[:, None, None]
    by_hand = F.relu(by_hand * norm.weight[:, None, None] + norm.bias[:, None, None])
    assert found["spatial"].shape == (3, 17 * 17 * 7)
    spatial = found["spatial"].reshape(3, 17, 17, 7)
    torch.testing.assert_close(spatial, by_hand[:, :7].permute(0, 2, 3, 1), rtol=1e-4, atol=1e-5)


def test_weights_that_hold_code_are_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"fc.bias": Evil()}))
    torch.save({"fc.bias": torch.zeros(3)}, tmp_path / "other.pth")
    for name in ("evil.pth", "other.pth"):
        with pytest.raises(InputError, match="does not hold this extractor's weights"):
            create("inception", tmp_path / name)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(InputError, match="no weights"):
        weights_sha256("inception", tmp_path / "none.pth")


def test_real_images_are_the_same_however_they_come(tmp_path: Path) -> None:
    images = coloured(10, 32)
    folder, packed = tmp_path / "folder" / "inner", tmp_path / "images.zip"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(packed, "w") as archive:
        for index, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{index:02d}.png")
            archive.write(folder / f"{index:02d}.png", f"val/{index:02d}.png")
    (folder / "notes.txt").write_text("not an image")
    np.savez(tmp_path / "images.npz", arr_0=images)
    ways = (folder.parent, packed, tmp_path / "images.npz", cifar_archive(tmp_path / "c.tar.gz", images))
    for way in ways:
        found = list(real_images.batches(way, None, 4))
        assert [len(batch) for batch in found] == [4, 4, 2]
        assert np.array_equal(np.concatenate(found), images), way


def test_images_are_cut_to_their_middle_square_and_resized(tmp_path: Path) -> None:
    wide = np.zeros((60, 100, 3), np.uint8)
    wide[:, 20:80] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(np.full((30, 30), 255, np.uint8)).save(tmp_path / "grey.png")
    (found,) = real_images.batches(tmp_path, 24, 5)
    assert found.shape == (2, 24, 24, 3) and (found == 255).all()
    with pytest.raises(InputError, match="give reference.size"):
        list(real_images.batches(tmp_path, None, 5))
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="broken.png"):
        list(real_images.batches(tmp_path, 24, 5))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        list(real_images.batches(tmp_path / "empty", 24, 5))
    with pytest.raises(InputError, match="none.npz: no such file"):
        list(real_images.batches(tmp_path / "none.npz", 24, 5))


def test_streamed_statistics_are_those_of_the_whole(tmp_path: Path) -> None:
    images = bars(600)
    extractor = untrained_extractor(tmp_path / "extractor")
    np.savez(tmp_path / "images.npz", arr_0=images)
    made = ("garment-classifier", extractor)
    whole = reference.build(images, tmp_path / "whole.npz", *made)
    streamed = reference.build_streamed(tmp_path / "images.npz", None, tmp_path / "streamed.npz", *made)
    assert np.allclose(streamed.statistics.mu, whole.statistics.mu, rtol=1e-12)
    assert np.allclose(streamed.statistics_spatial.sigma, whole.statistics_spatial.sigma, rtol=1e-9, atol=1e-12)
    assert np.array_equal(streamed.features, whole.features) and streamed.n == 600
    few = reference.build_streamed(tmp_path / "images.npz", None, tmp_path / "few.npz", *made, kept=40)
    assert few.features.shape[0] == 40
    assert all((whole.features == row).all(1).any() for row in few.features)
    # drawn from all of the images, not from the first ones
    assert not np.array_equal(few.features, whole.features[:40])
    assert few.statistics.mu.tolist() == streamed.statistics.mu.tolist()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, CLIPModel]:
    """A narrow CLIP's weights, its tokenizer's folder, and the network as transformers builds it."""
    folder = tmp_path_factory.mktemp("clip")
    written = text_files(folder)
    (folder / "vocab.json").write_text(written["vocabulary"].read_text())
    (folder / "merges.txt").write_text(written["merges"].read_text())
    model = narrow_clip(folder / "clip.safetensors")
    return folder / "clip.safetensors", folder, model


def test_the_clip_score_is_transformers_own(clip: tuple[Path, Path, CLIPModel]) -> None:
    weights, folder, model = clip
    images, captions = coloured(3, 48), ["a cat", "the red house", "a dog on a tree " * 20]
    found = ClipScore(weights, folder)(images, captions)
    size = {"shortest_edge": 32}
    processor = CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32}, resample=Image.Resampling.BICUBIC)
    pixels = processor([Image.fromarray(image) for image in images], return_tensors="pt").pixel_values
    tokens = CLIPTokenizer.from_pretrained(folder)(
        captions, padding=True, truncation=True, max_length=77, return_tensors="pt"
    )
    with torch.no_grad():
        logits = model(pixel_values=pixels, **tokens).logits_per_image / model.logit_scale.exp()
    torch.testing.assert_close(found, 100 * logits.diagonal().double(), rtol=0, atol=0.3)  # of two resizings
    assert found.std() > 1


def test_clip_files_that_do_not_fit(clip: tuple[Path, Path, CLIPModel], tmp_path: Path) -> None:
    weights, folder, model = clip
    with pytest.raises(InputError, match="holds no tokenizer"):
        ClipScore(weights, tmp_path)
    state = model.state_dict()
    del state["visual_projection.weight"]
    save_file(state, tmp_path / "lacks.safetensors")
    with pytest.raises(InputError, match="does not hold CLIP's weights"):
        ClipScore(tmp_path / "lacks.safetensors", folder)


def test_samples_with_captions_are_scored_in_their_order(tmp_path: Path) -> None:
    images = bars(20)
    captions = np.array([f"{image.max()}" for image in images])
    folder = tmp_path / "samples"
    for index, start in enumerate(range(0, 20, 8)):
        part = slice(start, start + 8)
        seeds = np.arange(20)[part]
        write_shard(folder / f"shard-{index}.npz", images[part], seeds, "mark", captions=captions[part])
    assert open_folder(folder).captions.tolist() == captions.tolist()
    assert read_shard(folder / "shard-1.npz").captions.tolist() == captions[8:16].tolist()
    extractor = untrained_extractor(tmp_path / "extractor")
    reference.build(bars(30, seed=1), tmp_path / "reference.npz", "garment-classifier", extractor)

    def scorer(found: np.ndarray, texts: list[str]) -> torch.Tensor:
        return torch.tensor([float(image.max() == int(text)) for image, text in zip(found, texts, strict=True)])

    made = ("garment-classifier", extractor, MetricsParams(kid_subsets=2, kid_subset_size=10, neighbours=2), range(20))
    measured = metrics.measure(folder, folder, tmp_path / "reference.npz", *made, scorer=scorer)
    assert measured["clip_score"] == 1.0
    plain = write_samples(tmp_path / "plain", images, 20, seed=0)
    assert "clip_score" not in metrics.measure(plain, plain, tmp_path / "reference.npz", *made, scorer=scorer)
    with pytest.raises(InputError, match="must both have captions"):
        write_shard(folder / "shard-9.npz", images[:1], np.array([20]), "mark")
        open_folder(folder)


def test_samples_are_brought_to_the_size_of_the_real_images(tmp_path: Path) -> None:
    images = bars(20)
    large = images.repeat(2, 1).repeat(2, 2)
    extractor = untrained_extractor(tmp_path / "extractor")
    reference.build(bars(30, seed=1), tmp_path / "reference.npz", "garment-classifier", extractor)
    folder = write_samples(tmp_path / "large", large, 20, seed=0)
    made = ("garment-classifier", extractor, MetricsParams(kid_subsets=2, kid_subset_size=10, neighbours=2), range(20))
    measured = metrics.measure(folder, folder, tmp_path / "reference.npz", *made, size=32)
    small = write_samples(tmp_path / "small", real_images.resized(large, 32), 20, seed=0)
    assert measured["fid"] == metrics.measure(small, small, tmp_path / "reference.npz", *made)["fid"]

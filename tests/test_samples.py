"""Shards of samples: what is written comes back, and everything wrong is one line."""

import pickle

import numpy as np
import pytest
from evaluation_helpers import SEED, N, bars, write_samples
from PIL import Image

from edadm.errors import InputError
from edadm.evaluation import grid
from edadm.evaluation.samples import batches, is_shard, open_folder, read_shard, write_shard

SEEDS = range(SEED, SEED + N)


@pytest.fixture
def folder(tmp_path):
    return write_samples(tmp_path / "samples", bars(N), shard=25)


def refused(folder, match, seeds=None):
    """The message with which ``folder`` is refused, which must be a single line."""
    with pytest.raises(InputError, match=match) as caught:
        list(batches(open_folder(folder, seeds), 10))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def savez(path, **changes):
    """A shard with some arrays replaced; None takes one away."""
    arrays = {"arr_0": bars(25), "seeds": np.arange(SEED, SEED + 25), "fingerprint": np.array("mark")} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def test_what_is_written_comes_back(folder):
    samples = open_folder(folder, SEEDS)
    assert (samples.seeds, samples.shape, samples.fingerprint) == (SEEDS, (32, 32, 1), "mark")
    found = list(batches(samples, 20))
    assert [len(batch) for batch in found] == [20, 20, 20]
    np.testing.assert_array_equal(np.concatenate(found), bars(N))
    shard = read_shard(folder / "shard-0001.npz")
    np.testing.assert_array_equal(shard.seeds, np.arange(SEED + 25, SEED + 50))
    np.testing.assert_array_equal(shard.images, bars(N)[25:50])


@pytest.mark.parametrize("size", [1, 7, 25, 26, 100])
def test_batches_do_not_depend_on_the_shards(tmp_path, size):
    wanted = [bars(N)[start : start + size] for start in range(0, N, size)]
    for shard in (1, 20, 33, 60):
        found = list(batches(open_folder(write_samples(tmp_path / str(shard), bars(N), shard)), size))
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, other)


def test_order_is_that_of_the_seeds_not_of_the_names(folder):
    (folder / "shard-0000.npz").rename(folder / "shard-9999.npz")
    np.testing.assert_array_equal(np.concatenate(list(batches(open_folder(folder), 50))), bars(N))


def test_equal_content_gives_equal_bytes(tmp_path):
    for name in ("one", "two"):
        write_samples(tmp_path / name, bars(3), shard=3)
    assert (tmp_path / "one/shard-0000.npz").read_bytes() == (tmp_path / "two/shard-0000.npz").read_bytes()


def test_labels_are_in_the_order_of_the_seeds(tmp_path):
    labels = np.arange(N) % 7
    for index, start in ((1, 0), (0, 40)):  # names are in another order
        part = slice(start, 40 if start == 0 else N)
        seeds = np.arange(SEED, SEED + N)[part]
        write_shard(tmp_path / f"shard-{index}.npz", bars(N)[part], seeds, "mark", labels[part])
    np.testing.assert_array_equal(open_folder(tmp_path).labels, labels)
    np.testing.assert_array_equal(read_shard(tmp_path / "shard-0.npz").labels, labels[40:])
    write_shard(tmp_path / "shard-0.npz", bars(20), np.arange(SEED + 40, SEED + N), "mark")
    refused(tmp_path, "must both have labels, or neither")
    savez(tmp_path / "shard-0.npz", labels=np.zeros(3, np.int64))
    refused(tmp_path, r"labels must be int64 \(25,\)")
    with pytest.raises(ValueError, match="labels must be int64"):
        write_shard(tmp_path / "shard-0.npz", bars(3), np.arange(3), "mark", np.zeros(3))


def test_one_shard_at_a_time_is_in_memory(folder, monkeypatch):
    reads = []
    monkeypatch.setattr("edadm.evaluation.samples.read_shard", lambda path: reads.append(path) or read_shard(path))
    stream = batches(open_folder(folder), 10)
    assert reads == []
    next(stream)
    assert [path.name for path in reads] == ["shard-0000.npz"]


def test_writing_refuses_wrong_types_and_leaves_nothing(tmp_path):
    seeds = np.arange(3)
    for images, numbers in (
        (bars(3).astype(np.float32), seeds),
        (bars(3)[..., 0], seeds),
        (bars(2), seeds),
        (bars(3), seeds.astype(np.int32)),
    ):
        with pytest.raises(ValueError):
            write_shard(tmp_path / "shard-0000.npz", images, numbers, "mark")
    assert list(tmp_path.iterdir()) == []


def test_is_shard(folder):
    path, seeds = folder / "shard-0000.npz", np.arange(SEED, SEED + 25)
    assert is_shard(path, seeds, "mark")
    assert not is_shard(path, seeds, "other")
    assert not is_shard(path, seeds + 1, "mark")
    assert not is_shard(path, seeds[:-1], "mark")
    assert not is_shard(folder / "shard-0007.npz", seeds, "mark")
    path.write_bytes(path.read_bytes()[:-5])
    assert not is_shard(path, seeds, "mark")


def test_missing_shard(folder):
    (folder / "shard-0001.npz").unlink()
    message = refused(folder, "missing: 525, 526, 527, …")
    assert str(folder) in message
    refused(folder, "missing", seeds=SEEDS)


def test_missing_first_and_last_shard_need_the_expected_seeds(folder):
    (folder / "shard-0002.npz").unlink()
    open_folder(folder)
    refused(folder, "missing: 550", seeds=SEEDS)
    (folder / "shard-0000.npz").unlink()
    refused(folder, "missing: 500", seeds=range(SEED, SEED + 50))


def test_surplus_seeds(folder):
    refused(folder, "not asked for: 550", seeds=range(SEED, SEED + 50))


def test_duplicate_seeds(folder):
    write_shard(folder / "shard-0003.npz", bars(1), np.array([SEED + 4]), "mark")
    refused(folder, "more than once: 504$")


def test_seeds_out_of_order(tmp_path):
    savez(tmp_path / "shard-0000.npz", seeds=np.arange(SEED, SEED + 25)[::-1])
    refused(tmp_path, "ascending")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"arr_0": bars(25).astype(np.float32)}, "arr_0 must be uint8"),
        ({"arr_0": bars(25)[..., 0]}, "arr_0 must be uint8"),
        ({"arr_0": bars(25)[:0], "seeds": np.arange(0)}, "arr_0 must be uint8"),
        ({"arr_0": None}, "has no arr_0"),
        ({"seeds": None}, "has no seeds"),
        ({"fingerprint": None}, "has no fingerprint"),
        ({"seeds": np.arange(25.0)}, "seeds must be int64"),
        ({"seeds": np.arange(24)}, "seeds must be int64"),
        ({"fingerprint": np.array(7)}, "fingerprint must be"),
        ({"fingerprint": np.array(["a", "b"])}, "fingerprint must be"),
    ],
)
def test_wrong_types(tmp_path, changes, match):
    savez(tmp_path / "shard-0000.npz", **changes)
    refused(tmp_path, match)
    with pytest.raises(InputError, match=match):
        read_shard(tmp_path / "shard-0000.npz")


def test_pickled_arrays_are_not_loaded(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (tmp_path.joinpath("harm").write_text, ("done",))

    savez(tmp_path / "shard-0000.npz", seeds=np.array([Harmful()], dtype=object))
    refused(tmp_path, "Object arrays cannot be loaded")
    savez(tmp_path / "shard-0000.npz", arr_0=np.array([Harmful()], dtype=object))
    refused(tmp_path, "arr_0 must be uint8")
    (tmp_path / "shard-0000.npz").write_bytes(pickle.dumps(Harmful()))
    refused(tmp_path, "shard-0000.npz: not a shard")
    assert not (tmp_path / "harm").exists()


def test_truncated_and_damaged_archives(folder):
    path = folder / "shard-0001.npz"
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:length])
        refused(folder, "shard-0001.npz: not a shard")
    damaged = bytearray(whole)
    damaged[3000] ^= 255  # inside the images: only the checksum tells
    path.write_bytes(bytes(damaged))
    refused(folder, "shard-0001.npz: not a shard")


def test_a_plain_array_is_not_a_shard(tmp_path):
    with (tmp_path / "shard-0000.npz").open("wb") as file:
        np.save(file, bars(2))
    refused(tmp_path, "not a shard")


def test_mixed_fingerprints_and_shapes(folder):
    write_shard(folder / "shard-0001.npz", bars(25), np.arange(SEED + 25, SEED + 50), "other")
    refused(folder, "fingerprints differ")
    write_shard(folder / "shard-0001.npz", bars(25)[:, :16], np.arange(SEED + 25, SEED + 50), "mark")
    refused(folder, "shard-0001.npz: images of")


def test_empty_or_absent_folder(tmp_path):
    refused(tmp_path, "no shard-")
    refused(tmp_path / "absent", "no shard-")


def test_a_grid_holds_the_images_row_by_row(folder, tmp_path):
    grid.write(folder, 3, 4, tmp_path / "grid.png")
    picture = np.asarray(Image.open(tmp_path / "grid.png"))
    assert picture.shape == (3 * 32, 4 * 32)
    for index, image in enumerate(bars(N)[:12]):
        row, column = divmod(index, 4)
        tile = picture[32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
        np.testing.assert_array_equal(tile, image[..., 0])
    with pytest.raises(InputError, match="too few for 9 rows of 9"):
        grid.write(folder, 9, 9, tmp_path / "large.png")
    assert not (tmp_path / "large.png").exists()

"""Damaged and hostile artifacts: whatever their bytes are, reading them works or is refused in one line."""

import tiny  # noqa: I001  (first: it imports edadm)

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile import ODD, attempt, damaged, examples, leaves, refused, replaced
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_cuda_engine import small_unet

from edadm.engines import cpu
from edadm.evaluation import reference, samples
from edadm.quantization import calibration, checkpoint


def shard(folder: Path) -> Path:
    path = folder / "shard-0000.npz"
    samples.write_shard(path, np.zeros((3, 8, 8, 1), np.uint8), np.arange(3), "0" * 64)
    return path


def statistics(folder: Path) -> Path:
    path, square = folder / "reference.npz", np.eye(4)
    arrays = {"mu": np.ones(4), "sigma": square, "mu_s": np.ones(4), "sigma_s": square, "features": np.ones((5, 4))}
    texts = dict.fromkeys(("extractor", "extractor_sha256", "images_sha256"), np.array("x"))
    np.savez_compressed(path, **arrays, **texts, n=np.array(5))
    return path


def calibration_set(folder: Path) -> Path:
    path = folder / "calibration.safetensors"
    save_file({"x": torch.zeros(4, 1, 8, 8), "t": torch.zeros(4, dtype=torch.int64)}, path)
    return path


def conditional(folder: Path) -> Path:
    return tiny.save(folder, tiny.conditional_unet())


KINDS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Any]]] = {
    "shard": (shard, lambda path: samples.is_shard(path, np.arange(3), "0" * 64)),
    "samples": (shard, lambda path: samples.open_folder(path.parent)),
    "statistics": (statistics, reference.load),
    "calibration set": (calibration_set, calibration.read),
    "tensors": (lambda folder: tiny.save(folder) / "model.safetensors", lambda path: checkpoint.load(path.parent)),
    "configuration": (lambda folder: tiny.save(folder) / "config.json", lambda path: checkpoint.load(path.parent)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_bytes(kind: str, tmp_path: Path) -> None:
    make, read = KINDS[kind]
    path = make(tmp_path)
    content = path.read_bytes()
    before = sorted(tmp_path.rglob("*"))
    assert attempt(read, path) is not None

    @examples(150)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        path.write_bytes(damaged(content, data))
        attempt(read, path)
        assert sorted(tmp_path.rglob("*")) == before

    check()


@pytest.mark.parametrize("make", [tiny.save, conditional], ids=["unconditional", "conditional"])
def test_odd_values_in_the_configuration(make: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = make(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    places = list(leaves(config))

    @examples(300)
    @given(st.sampled_from(places), st.sampled_from(ODD))
    def check(place: tuple, odd: Any) -> None:
        (folder / "config.json").write_text(json.dumps(replaced(config, place, odd)))
        attempt(checkpoint.load, folder)

    check()


@pytest.mark.parametrize("declared", [0, 2**20, 2**40, 2**63 - 1, 2**64 - 1])
def test_huge_headers(declared: int, tmp_path: Path) -> None:
    path = tiny.save(tmp_path) / "model.safetensors"
    path.write_bytes(struct.pack("<Q", declared) + path.read_bytes()[8:])
    refused(checkpoint.load, tmp_path)


def test_huge_shapes(tmp_path: Path) -> None:
    """A header may declare what no machine holds."""
    path = tiny.save(tmp_path) / "model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    for name in header:
        for shape in ([2**40], [2**62, 2**62], [0], [-1], []):
            text = json.dumps({**header, name: {**header[name], "shape": shape}}).encode()
            path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
            refused(checkpoint.load, tmp_path)


def test_a_shard_that_declares_too_much(tmp_path: Path) -> None:
    """A few bytes of compressed zeros, or a header alone, must not become gigabytes."""
    path = shard(tmp_path)
    content = path.read_bytes()
    for small, huge in ((b"(3, 8, 8, 1)", b"(9, 9**9, 8)"), (b"(3, 8, 8, 1)", b"(99999999,1)")):
        path.write_bytes(content.replace(small, huge))
        refused(samples.open_folder, tmp_path)
    np.savez_compressed(
        path, arr_0=np.zeros((3, 8, 8, 1), np.uint8), seeds=np.zeros(2**27 + 1, np.int64), fingerprint="0"
    )
    refused(samples.open_folder, tmp_path)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    cpu.deploy(tiny.save(folder / "quantized", small_unet()), folder / "engine")
    return folder / "engine"


@pytest.mark.parametrize("name", ["engine.json", "model.xml"])
def test_a_damaged_engine(name: str, engine: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(engine, tmp_path / "engine")
    content = (folder / name).read_bytes()

    @examples(40)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        (folder / name).write_bytes(damaged(content, data))
        attempt(cpu.load, folder, 1)

    check()


def test_odd_values_in_an_engine(engine: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(engine, tmp_path / "engine")
    description = json.loads((folder / "engine.json").read_text())

    @examples(40)
    @given(st.sampled_from(list(leaves(description))), st.sampled_from(ODD))
    def check(place: tuple, odd: Any) -> None:
        (folder / "engine.json").write_text(json.dumps(replaced(description, place, odd)))
        attempt(cpu.load, folder, 1)

    check()

"""Reading originals: every format that they come in, and files that were made to do harm."""

import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import originals
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from edadm.errors import InputError
from edadm.systems.originals import read_state_dict

MARK = "edadm-hostile-file-was-run"


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return list(found) == list(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


def refusal(path: Path) -> str:
    """The one line with which the file is refused."""
    with pytest.raises(InputError) as caught:
        read_state_dict(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and len(message) < 500
    return message


@pytest.mark.parametrize("kind", ["cifar10-ddim", "church-ldm8"])
def test_a_checkpoint_comes_back(kind: str, tmp_path: Path) -> None:
    state = originals.state_dict(kind)
    assert same(read_state_dict(originals.write(kind, tmp_path)), state)


@pytest.mark.parametrize("ending", ["ckpt", "pth", "pt"])
def test_the_format_of_before_2020(ending: str, tmp_path: Path) -> None:
    state = originals.state_dict("cifar10-ddim")
    path = originals.write("cifar10-ddim", tmp_path, legacy=True).rename(tmp_path / f"model.{ending}")
    assert not zipfile.is_zipfile(path)
    assert same(read_state_dict(path), state)


def test_safetensors(tmp_path: Path) -> None:
    state = dict(sorted(originals.state_dict("cifar10-ddim").items()))
    save_file(state, tmp_path / "model.safetensors")
    found = read_state_dict(tmp_path / "model.safetensors")
    assert same({name: found[name] for name in state}, state)


def test_views_of_one_storage(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    state = {"whole": whole, "part": whole[1:3, ::2], "turned": whole.t(), "empty": whole[:0], "number": whole[2, 3]}
    torch.save(state, tmp_path / "views.pt")
    assert same(read_state_dict(tmp_path / "views.pt"), state)


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable, tuple]:
        return self.call


def zipped(path: Path, data: bytes, **records: bytes) -> Path:
    """A file as ``torch.save`` lays it out, around any pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"data.pkl": data, "version": b"3\n", "byteorder": b"little", **records}.items():
            archive.writestr(f"archive/{name}", content)
    return path


def hostile_calls(folder: Path) -> dict[str, object]:
    """Objects whose pickles run something that leaves a mark in ``folder``."""
    mark = folder / MARK
    return {
        "os.system": Call(os.system, f"touch {mark}"),
        "eval": Call(eval, f"open({str(mark)!r}, 'w')"),
        "exec": Call(exec, f"open({str(mark)!r}, 'w')"),
        "open": Call(open, str(mark), "w"),
        "hub": Call(torch.hub.load, str(folder), "entry", "local"),
        "load": Call(torch.load, str(folder / "other.pt"), None, None),
        "getattr": Call(getattr, Call(__import__, "os"), "system"),
    }


@pytest.mark.parametrize("name", ["os.system", "eval", "exec", "open", "hub", "load", "getattr"])
@pytest.mark.parametrize("layout", ["zip", "legacy", "protocol 4", "bare"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_nothing_in_a_pickle_is_run(name: str, layout: str, tmp_path: Path) -> None:
    (tmp_path / "hubconf.py").write_text(f"def entry():\n    open({str(tmp_path / MARK)!r}, 'w')\n")
    torch.save(hostile_calls(tmp_path)["eval"], tmp_path / "other.pt")
    content = OrderedDict(weight=torch.ones(2), extra=hostile_calls(tmp_path)[name])
    path = tmp_path / "model.ckpt"
    if layout == "protocol 4":
        torch.save(content, path, pickle_protocol=4)
    elif layout == "bare":
        path.write_bytes(pickle.dumps({"extra": content["extra"]}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=layout == "zip")
    assert "weights_only" not in refusal(path)  # torch advises to load it nevertheless
    assert not (tmp_path / MARK).exists()


def test_the_refusal_names_what_was_asked_for(tmp_path: Path) -> None:
    torch.save({"a": Call(eval, "1")}, tmp_path / "model.ckpt")
    assert "it asks for builtins.eval; nothing of it was run" in refusal(tmp_path / "model.ckpt")


def test_a_foreign_class_cannot_smuggle_a_call(tmp_path: Path) -> None:
    mark = tmp_path / MARK
    with originals._lightning() as callback:
        callback.__setstate__ = lambda self, state: mark.touch()
        callback.__reduce__ = lambda self: (callback, ("argument",), {"state": 1})
        torch.save({"state_dict": {"weight": torch.ones(2)}, "callbacks": [callback()]}, tmp_path / "model.ckpt")
        assert list(read_state_dict(tmp_path / "model.ckpt")) == ["weight"]  # the class is even there to be imported
    assert not mark.exists()


STORAGE = object()
FOUR_NUMBERS = ("storage", torch.FloatStorage, "0", "cpu", 4)


def dumped(value: object, identity: tuple) -> bytes:
    """A pickle of ``{"weight": value}`` in which ``STORAGE`` is the persistent object ``identity``."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, each: object) -> tuple | None:
            return identity if each is STORAGE else None

    stream = io.BytesIO()
    Pickler(stream, 2).dump({"weight": value})
    return stream.getvalue()


def rebuilt(offset: int, size: tuple[int, ...], stride: tuple[int, ...], identity: tuple = FOUR_NUMBERS) -> bytes:
    """A pickle of a tensor of any geometry over a storage."""
    arguments = (STORAGE, offset, size, stride, False, OrderedDict())
    return dumped(Call(torch._utils._rebuild_tensor_v2, *arguments), identity)


@pytest.mark.parametrize(
    "identity",
    [
        ("module", "os", "system"),
        ("storage", "os.system", "0", "cpu", 4),
        ("storage", torch.FloatStorage, "../../../etc/passwd", "cpu", 4),
        ("storage", torch.FloatStorage, "0", "cpu", -4),
        ("storage",),
        (),
    ],
)
def test_a_persistent_id_is_a_storage_or_nothing(identity: tuple, tmp_path: Path) -> None:
    refusal(zipped(tmp_path / "model.ckpt", rebuilt(0, (4,), (1,), identity), **{"data/0": bytes(16)}))


@pytest.mark.parametrize(("place", "numbers"), [("cpu", 2**60), ("meta", 4), ("cuda:7", 4)])
def test_size_and_place_that_a_storage_claims_mean_nothing(place: str, numbers: int, tmp_path: Path) -> None:
    data = rebuilt(0, (4,), (1,), ("storage", torch.FloatStorage, "0", place, numbers))
    path = zipped(tmp_path / "model.ckpt", data, **{"data/0": struct.pack("<4f", 0, 1, 2, 3)})
    weight = read_state_dict(path)["weight"]
    assert weight.tolist() == [0, 1, 2, 3] and weight.device.type == "cpu"


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (5,), (1,)),
        (1, (4,), (1,)),
        (0, (2**40,), (1,)),
        (0, (2**40,), (0,)),
        (0, (2, 2), (3, 1)),
        (2**62, (1,), (1,)),
        (-1, (4,), (1,)),
        (0, (-4,), (1,)),
        (0, (4,), (-1,)),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_tensor_stays_within_its_bytes(
    offset: int, size: tuple[int, ...], stride: tuple[int, ...], tmp_path: Path
) -> None:
    numbers = struct.pack("<4f", 0, 1, 2, 3)
    good = zipped(tmp_path / "good.ckpt", rebuilt(1, (2,), (2,)), **{"data/0": numbers})
    assert read_state_dict(good)["weight"].tolist() == [1, 3]
    refusal(zipped(tmp_path / "model.ckpt", rebuilt(offset, size, stride), **{"data/0": numbers}))


@pytest.mark.parametrize("numbers", [5, 2**40, 2**60, -1])
def test_the_old_format_with_a_size_that_is_not_there(numbers: int, tmp_path: Path) -> None:
    heads = b"".join(pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    data = rebuilt(0, (4,), (1,), ("storage", torch.FloatStorage, "0", "cpu", numbers, None))
    path = tmp_path / "model.ckpt"
    path.write_bytes(heads + data + pickle.dumps(["0"], 2) + struct.pack("<q4f", numbers, 0, 1, 2, 3))
    refusal(path)


@pytest.mark.parametrize("name", ["../../outside", "/outside", "archive/../../outside", "..\\outside"])
def test_a_zip_that_points_outside(name: str, tmp_path: Path) -> None:
    path = originals.write("cifar10-ddim", tmp_path / "in")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    assert "points outside the archive" in refusal(path)
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["in", path.name]


def test_a_zip_bomb(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**7))
    assert "is compressed" in refusal(tmp_path / "model.ckpt")


def test_entries_that_overlap(tmp_path: Path) -> None:
    path = zipped(tmp_path / "model.ckpt", dumped(1, ()), **{"data/0": bytes(10**5)})
    content = path.read_bytes()
    # the directory's entry of the last record, once more under another name
    start, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    entry = content[content.rindex(b"PK\x01\x02") : end]
    directory = content[start:end] + entry.replace(b"data/0", b"data/1") * 2
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 6, 6, len(directory), start, 0)
    path.write_bytes(content[:start] + directory + tail)
    assert "larger than the file" in refusal(path)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_torch_script_is_refused(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "model.pt"))
    refusal(tmp_path / "model.pt")


def test_a_tar_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "model.ckpt", "w") as archive:
        archive.addfile(tarfile.TarInfo("../../storages"), io.BytesIO())
    assert "tar format" in refusal(tmp_path / "model.ckpt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no state dict"),
        ([torch.ones(2)], "holds no state dict but list"),
        (torch.ones(2), "holds no state dict but Tensor"),
        ({"weight": 3}, "'weight' is a int, not a tensor"),
        ({3: torch.ones(2)}, "not a state dict"),
        ({"state_dict": {"weight": "text"}}, "'weight' is a str"),
        ({"weight": torch.ones(2, device="meta")}, "no values"),
        ({"weight": torch.ones(2, 2).to_sparse()}, "not a plain tensor"),
    ],
)
def test_something_else_is_refused(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pt")
    assert message in refusal(tmp_path / "model.pt")


def test_no_file(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "model.ckpt")
    assert "no such file" in refusal(tmp_path)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("small")
    state = {"a": torch.arange(6.0), "b": torch.arange(8).reshape(2, 4)}
    torch.save(state, folder / "zip.pt")
    torch.save(state, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(state, folder / "new.safetensors")
    return {path.stem: path for path in folder.iterdir()}


@pytest.mark.parametrize("layout", ["zip", "legacy", "new"])
def test_every_truncation_is_one_line(layout: str, small: dict[str, Path], tmp_path: Path) -> None:
    content = small[layout].read_bytes()
    path = tmp_path / small[layout].name
    for length in {*range(0, len(content), max(1, len(content) // 40)), len(content) - 1}:
        path.write_bytes(content[:length])
        refusal(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), layout=st.sampled_from(["zip", "legacy", "new"]))
@pytest.mark.filterwarnings("ignore")
def test_damage_is_one_line_or_tensors(
    data: st.DataObject, layout: str, small: dict[str, Path], tmp_path: Path
) -> None:
    content = bytearray(small[layout].read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path / small[layout].name
    path.write_bytes(content)
    try:
        found = read_state_dict(path)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert all(tensor.flatten().tolist() is not None for tensor in found.values())  # every number can be read

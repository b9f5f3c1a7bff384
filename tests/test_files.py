"""What is written takes the place of an older one of the same, and of nothing else."""

from pathlib import Path

import pytest

from edadm import files
from edadm.errors import InputError


def write(out: Path, *names: str) -> None:
    with files.atomic_folder(out) as folder:
        for name in names:
            (folder / name).write_text("new")


def held(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_older_one_is_replaced_wherever_it_is(tmp_path: Path) -> None:
    write(tmp_path / "real", "shard-0000.npz", "shard-0001.npz", "shard-0002.npz")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link", "shard-0000.npz")
    assert (tmp_path / "link").is_symlink() and held(tmp_path / "real") == ["shard-0000.npz"]
    assert held(tmp_path) == ["link", "real"]
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", "engine.json")
    assert held(tmp_path / "empty") == ["engine.json"]


@pytest.mark.parametrize("name", ["thesis.md", ".git", "unet"])
def test_a_folder_of_something_else_stays(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    (out / name).mkdir(parents=True)
    (out / "engine.json").write_text("old")
    with pytest.raises(InputError, match=f"holds {name}, which would be lost"):
        write(out, "engine.json", "model.xml")
    assert held(out) == sorted([name, "engine.json"]) and (out / "engine.json").read_text() == "old"
    assert held(tmp_path) == ["out"]
    reached = []
    with pytest.raises(InputError, match=f"holds {name}"), files.atomic_folder(out, "engine.json"):
        reached.append("the block")
    assert not reached and held(tmp_path) == ["out"]
    with pytest.raises(InputError, match="is a mount point"):
        write(Path("/proc"), "engine.json")


def test_only_what_is_named_is_cleared(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    (scratch / "units").mkdir(parents=True)
    (scratch / "units" / "0").write_text("")
    (scratch / "keep").write_text("mine")
    files.clear(scratch, "units", "unit-*")
    assert held(scratch) == ["keep"]
    files.clear(scratch, "keep")
    files.clear(scratch, "keep")
    assert held(tmp_path) == []


def test_a_hash_of_sources_is_that_of_all_of_them(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("a = 1\n")
    seen = {files.sources_sha256(tmp_path)}
    (tmp_path / "inside").mkdir()
    for name, text in (("a.py", "a = 2\n"), ("b.py", ""), ("inside/c.py", ""), ("b.txt", "")):
        (tmp_path / name).write_text(text)
        seen.add(files.sources_sha256(tmp_path))
    assert len(seen) == 4  # a text is no source

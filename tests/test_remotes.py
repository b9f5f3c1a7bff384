"""DVC's remotes: a folder, a real SSH server, a real S3 server. After clone and pull nothing runs; damage is mended."""

import hashlib
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import servers
from workspace import SYSTEM, Workspace

HEAL = "workflow/heal_remote.py"
OUTPUT = f"results/{SYSTEM}/w4a8/engine-cpu"
QUANTIZED = f"results/{SYSTEM}/w4a8/quantized"


class Store:
    """A remote and the folder in which its server keeps the objects."""

    def __init__(self, settings: dict[str, str], folder: Path) -> None:
        self.settings, self.folder = settings, folder

    def add_to(self, space: Workspace) -> None:
        """Make it the default remote, as docs/remotes.md says; the settings stay out of git."""
        url, *rest = self.settings.items()
        space.call("dvc", "remote", "add", "--local", "--default", "store", url[1])
        for name, value in (*rest, ("verify", "true")):
            space.call("dvc", "remote", "modify", "--local", "store", name, value)

    def path(self, oid: str) -> Path:
        return self.folder / "files" / "md5" / oid[:2] / oid[2:]


@pytest.fixture
def in_folder(tmp_path: Path) -> Store:
    return Store({"url": str(tmp_path / "store")}, tmp_path / "store")


@pytest.fixture(params=["folder", "ssh", "s3"])
def store(request: pytest.FixtureRequest, in_folder: Store, tmp_path: Path) -> Iterator[Store]:
    with ExitStack() as stack:
        if request.param == "ssh":
            settings = stack.enter_context(servers.sshd(tmp_path / "server"))
            yield Store(settings, tmp_path / "server" / "store")
        elif request.param == "s3":
            settings, _ = stack.enter_context(servers.s3(tmp_path / "server"))
            yield Store(settings, tmp_path / "server" / "store" / "bucket" / "dvc")
        else:
            yield in_folder


def clone(space: Workspace, bin_folder: Path, folder: Path) -> Workspace:
    subprocess.run(["git", "clone", "-q", space.folder, folder], check=True)
    return Workspace(folder, bin_folder)


def heal(space: Workspace) -> tuple[int, list[str]]:
    done = space.call("python", HEAL, check=False)
    return done.returncode, done.stdout.splitlines()


class Damage:
    """One object of a store damaged, one lost, as they are after a push."""

    def __init__(self, space: Workspace, store: Store) -> None:
        self.oids = [md5(space.folder / path / "data.bin") for path in (OUTPUT, QUANTIZED)]
        self.damaged, lost = map(store.path, self.oids)
        self.whole = {path: path.read_bytes() for path in (self.damaged, lost)}
        self.damaged.chmod(0o644)
        lost.unlink()
        self.damage()

    def damage(self) -> None:
        self.damaged.parent.mkdir(exist_ok=True)
        self.damaged.write_bytes(self.whole[self.damaged][::-1])  # of the same size: no tool sees it but by its content

    def is_mended(self) -> bool:
        return all(path.read_bytes() == content for path, content in self.whole.items())


def damaged_and_cloned(space: Workspace, bin_folder: Path, folder: Path, store: Store) -> tuple[Damage, Workspace]:
    """Damage to what was pushed to the store, and a clone of the project that pulls from it."""
    store.add_to(space)
    space.call("dvc", "push")
    harm = Damage(space, store)
    other = clone(space, bin_folder, folder)
    store.add_to(other)
    return harm, other


def md5(path: Path) -> str:
    """The hash of an output's file, and so the name of its object."""
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def test_damage_is_found_and_mended(space: Workspace, bin_folder: Path, tmp_path: Path, store: Store) -> None:
    harm, other = damaged_and_cloned(space, bin_folder, tmp_path / "clone", store)
    pulled = other.call("dvc", "pull", "dvc.yaml", check=False)
    assert pulled.returncode != 0
    assert any(oid in pulled.stdout for oid in harm.oids)  # one or the other by its object, or by its output
    assert not list((other.folder / OUTPUT).glob("*.bin")) and not list((other.folder / QUANTIZED).glob("*.bin"))

    harm.damage()  # DVC has removed it
    code, lines = heal(space)
    assert code == 0 and lines[-1].endswith(" 2 mended, 0 left")
    assert harm.is_mended()
    other.call("dvc", "pull", "dvc.yaml")
    for path in (OUTPUT, QUANTIZED):
        assert (other.folder / path / "data.bin").read_bytes() == (space.folder / path / "data.bin").read_bytes()


def test_clone_and_pull_runs_nothing(space: Workspace, bin_folder: Path, tmp_path: Path, in_folder: Store) -> None:
    harm, other = damaged_and_cloned(space, bin_folder, tmp_path / "clone", in_folder)
    # who has no good copy is told what is wrong, and leaves it
    code, lines = heal(other)
    assert code == 1 and lines[-1].endswith(" 0 mended, 2 left")
    for fault, oid, path in zip(("damaged", "missing"), harm.oids, (OUTPUT, QUANTIZED), strict=True):
        assert any(line.startswith(fault) and oid[2:] in line and f"{path}/data.bin" in line for line in lines)
    assert heal(space)[0] == 0
    assert heal(space)[1][-1].endswith(" 0 mended, 0 left")

    other.call("dvc", "pull", "dvc.yaml")
    assert "Nothing to be done" in other.snakemake().stdout
    assert "up to date" in other.call("dvc", "repro").stdout
    assert other.ran() == []

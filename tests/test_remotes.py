"""DVC's remotes: a folder, a real SSH server, a real S3 server. After clone and pull nothing runs; damage is mended."""

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


@pytest.fixture(params=["folder", "ssh", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with ExitStack() as stack:
        if request.param == "ssh":
            settings = stack.enter_context(servers.sshd(tmp_path / "server"))
            yield Store(settings, tmp_path / "server" / "store")
        elif request.param == "s3":
            settings, _ = stack.enter_context(servers.s3(tmp_path / "server"))
            yield Store(settings, tmp_path / "server" / "store" / "bucket" / "dvc")
        else:
            yield Store({"url": str(tmp_path / "store")}, tmp_path / "store")


def clone(space: Workspace, bin_folder: Path, folder: Path) -> Workspace:
    subprocess.run(["git", "clone", "-q", space.folder, folder], check=True)
    return Workspace(folder, bin_folder)


def heal(space: Workspace) -> tuple[int, list[str]]:
    done = space.call("python", HEAL, check=False)
    return done.returncode, done.stdout.splitlines()


def hash_of(space: Workspace, path: str) -> str:
    """The MD5 of an output's file, and so the name of its object."""
    return subprocess.run(["md5sum", space.folder / path], capture_output=True, text=True, check=True).stdout[:32]


def test_clone_and_pull_runs_nothing_and_damage_is_mended(
    space: Workspace, bin_folder: Path, tmp_path: Path, store: Store
) -> None:
    store.add_to(space)
    space.call("dvc", "push")
    oids = {name: hash_of(space, f"{path}/data.bin") for name, path in (("engine", OUTPUT), ("quantized", QUANTIZED))}
    damaged, lost = store.path(oids["engine"]), store.path(oids["quantized"])
    whole = {path: path.read_bytes() for path in (damaged, lost)}
    damaged.chmod(0o644)
    damaged.write_bytes(whole[damaged][::-1])  # of the same size: no tool sees it but by its content
    lost.unlink()

    other = clone(space, bin_folder, tmp_path / "clone")
    store.add_to(other)
    pulled = other.call("dvc", "pull", "dvc.yaml", check=False)
    assert pulled.returncode != 0
    assert any(oid in pulled.stdout for oid in oids.values())  # one or the other by its object, or by its output
    assert not list((other.folder / OUTPUT).glob("*.bin")) and not list((other.folder / QUANTIZED).glob("*.bin"))
    # who has no good copy is told what is wrong, and leaves it
    damaged.parent.mkdir(exist_ok=True)
    damaged.write_bytes(whole[damaged][::-1])
    code, lines = heal(other)
    assert code == 1 and lines[-1].endswith(" 0 mended, 2 left")
    for fault, oid, path in (("damaged", oids["engine"], OUTPUT), ("missing", oids["quantized"], QUANTIZED)):
        assert any(line.startswith(fault) and oid[2:] in line and f"{path}/data.bin" in line for line in lines)

    code, lines = heal(space)
    assert code == 0 and lines[-1].endswith(" 2 mended, 0 left")
    assert {path: path.read_bytes() for path in whole} == whole
    assert heal(space)[1][-1].endswith(" 0 mended, 0 left")

    other.call("dvc", "pull", "dvc.yaml")
    assert "Nothing to be done" in other.snakemake().stdout
    assert "up to date" in other.call("dvc", "repro").stdout
    assert other.ran() == []

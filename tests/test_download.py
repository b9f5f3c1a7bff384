"""Downloads from a real server that cuts connections, sends wrong files and asks for a log-in."""

import hashlib
import io
import random
import shutil
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
from fileserver import FileServer, serving
from hypothesis import given, settings
from hypothesis import strategies as st

from edadm.errors import InputError
from edadm.params import FileParams
from edadm.systems import download

CONTENT = random.Random(0).randbytes(400_000)
PIECE = download.CHUNK


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving() as running:
        running.files["model.ckpt"] = CONTENT
        yield running


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(download.FOLDER, str(tmp_path / "mine"))
    monkeypatch.setattr(download, "PAUSE", 0)
    return tmp_path / "mine"


def published(server: FileServer, *names: str, **known: object) -> FileParams:
    """The file of ``CONTENT``, from the server's ``names`` in turn."""
    known = {"sha256": hashlib.sha256(CONTENT).hexdigest(), "size": len(CONTENT), **known}
    return FileParams(name="model.ckpt", sources=[server.url(name) for name in names or ("model.ckpt",)], **known)


def refused(file: FileParams) -> str:
    with pytest.raises(InputError) as caught:
        download.fetch(file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_is_fetched_once(server: FileServer, here: Path) -> None:
    file = published(server)
    assert download.fetch(file).read_bytes() == CONTENT
    assert download.fetch(file) == here / "model.ckpt"
    assert server.asked == [("model.ckpt", None)]
    assert [path.name for path in here.iterdir()] == ["model.ckpt"]
    assert not download.RECORDED.exists()


def test_a_broken_connection_is_resumed_at_once(server: FileServer) -> None:
    server.cuts = [PIECE, 2 * PIECE]
    assert download.fetch(published(server)).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == [None, f"bytes={PIECE}-", f"bytes={3 * PIECE}-"]


def test_a_later_run_goes_on(server: FileServer, here: Path) -> None:
    server.cuts = [2 * PIECE, 0, 0, 0]
    message = refused(published(server))
    assert f"broke after {2 * PIECE} bytes; run this again to go on from there" in message
    assert not (here / "model.ckpt").exists()
    server.asked.clear()
    assert download.fetch(published(server)).read_bytes() == CONTENT
    assert server.asked == [("model.ckpt", f"bytes={2 * PIECE}-")]


def test_a_file_that_changed_in_between_is_begun_anew(server: FileServer, here: Path) -> None:
    server.cuts = [2 * PIECE, 0, 0, 0]
    refused(published(server, sha256=None, size=None))
    server.files["model.ckpt"] = changed = CONTENT[::-1]
    assert download.fetch(published(server, sha256=None, size=None)).read_bytes() == changed


def test_a_server_without_ranges(server: FileServer) -> None:
    server.ranges, server.cuts = False, [PIECE, PIECE]
    assert download.fetch(published(server)).read_bytes() == CONTENT


@settings(deadline=None, max_examples=15)
@given(cuts=st.lists(st.integers(0, 5 * PIECE), max_size=6))
def test_whatever_the_cuts_the_file_is_right_in_the_end(cuts: list[int]) -> None:
    with serving() as server:
        server.files["model.ckpt"], server.cuts = CONTENT, list(cuts)
        path = download.folder() / "model.ckpt"
        path.unlink(missing_ok=True)
        for _ in range(3):
            try:
                download.fetch(published(server))
                break
            except InputError as error:
                assert "the connection" in str(error)
        assert path.read_bytes() == CONTENT


def test_mirrors_are_tried_in_turn(server: FileServer) -> None:
    server.statuses["away"] = 503
    assert download.fetch(published(server, "away", "gone", "model.ckpt")).read_bytes() == CONTENT
    assert [name for name, _ in server.asked] == ["away", "gone", "model.ckpt"]


@pytest.mark.parametrize(
    ("status", "parts"),
    [
        (404, ["HTTP 404", "put it into"]),
        (401, ["log-in or an accepted licence (HTTP 401)", "put it into"]),
        (403, ["log-in or an accepted licence (HTTP 403)", "EDADM_CHECKPOINTS"]),
        (500, ["HTTP 500"]),
    ],
)
def test_what_a_server_refuses_is_one_line(server: FileServer, here: Path, status: int, parts: list[str]) -> None:
    server.statuses["model.ckpt"] = status
    message = refused(published(server))
    assert all(part in message for part in parts), message
    assert not here.exists()


def test_a_wrong_file_is_thrown_away(server: FileServer, here: Path) -> None:
    server.files["model.ckpt"] = CONTENT[:-1] + b"x"
    assert "what it sent is not the published file (sha256" in refused(published(server))
    server.files["model.ckpt"] = CONTENT[:-1]
    assert f"({len(CONTENT) - 1} bytes, not {len(CONTENT)})" in refused(published(server))
    wrong_md5 = published(server, sha256=None, size=None, md5=hashlib.md5(CONTENT).hexdigest())
    assert "is not the published file (md5" in refused(wrong_md5)
    server.types["model.ckpt"] = "text/html; charset=utf-8"
    assert "sends a web page" in refused(published(server))
    assert not here.exists()
    server.files["model.ckpt"], server.types = CONTENT, {}
    assert download.fetch(wrong_md5).read_bytes() == CONTENT


def test_no_server_at_all(server: FileServer, here: Path) -> None:
    file = FileParams(name="model.ckpt", sources=["http://127.0.0.1:9/model.ckpt", "nowhere/model.ckpt"])
    message = refused(file)
    assert "127.0.0.1:9/model.ckpt: the connection failed" in message and "nowhere/model.ckpt: no such file" in message
    assert not here.exists()


def test_a_disk_without_room(server: FileServer, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or Mock(free=len(CONTENT) - 1))
    assert f"do not fit into the {len(CONTENT) - 1} bytes left" in refused(published(server))
    assert asked == [here.parent] and not here.exists()


def test_a_file_without_a_published_hash_is_trusted_once(server: FileServer, here: Path) -> None:
    file = published(server, sha256=None, size=None)
    path = download.fetch(file)
    assert download.RECORDED.read_text() == f"{hashlib.sha256(CONTENT).hexdigest()}  model.ckpt\n"
    path.write_bytes(CONTENT[::-1])
    assert "not the file of the first download" in refused(file)
    path.unlink()
    server.files["model.ckpt"] = CONTENT[::-1]
    assert "not the file of the first download" in refused(file)
    assert list(here.iterdir()) == []
    assert len(download.RECORDED.read_text().splitlines()) == 1


def test_a_file_that_the_user_has_needs_no_network(here: Path, tmp_path: Path) -> None:
    known = {"sha256": hashlib.sha256(CONTENT).hexdigest()}
    here.mkdir()
    (here / "model.ckpt").write_bytes(CONTENT)
    file = FileParams(name="model.ckpt", sources=["http://127.0.0.1:9/model.ckpt"], **known)
    assert download.fetch(file) == here / "model.ckpt"
    (here / "model.ckpt").write_bytes(b"other")
    assert "is not the published file" in refused(file)
    (here / "model.ckpt").unlink()
    elsewhere = tmp_path / "disk" / "sd.ckpt"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(CONTENT)
    assert download.fetch(FileParams(name="model.ckpt", sources=[str(elsewhere)], **known)) == elsewhere
    elsewhere.write_bytes(b"other")
    assert "is not the published file" in refused(FileParams(name="model.ckpt", sources=[str(elsewhere)], **known))
    assert elsewhere.exists()


def archive(**members: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return packed.getvalue()


def zipped(server: FileServer, content: bytes, member: str = "model.ckpt") -> FileParams:
    server.files["model.zip"] = content
    return FileParams(name="model.zip", sources=[server.url("model.zip")], member=member)


def test_one_member_of_a_zip_is_lent(server: FileServer, here: Path) -> None:
    evil = archive(**{"model.ckpt": CONTENT, "../evil": b"x", "/evil": b"x"})
    with download.original(zipped(server, evil)) as path:
        assert path.read_bytes() == CONTENT and path.parent.parent == here
    assert [path.name for path in here.iterdir()] == ["model.zip"]
    with download.original(zipped(server, evil, "../evil")) as path:
        assert path.name == "evil" and path.parent.parent == here
    assert sorted(path.name for path in here.parent.iterdir()) == ["mine", "originals.sha256"]


def test_a_truncated_zip_is_refused_and_a_later_run_gets_it_whole(server: FileServer, here: Path) -> None:
    whole = archive(**{"model.ckpt": CONTENT})
    with pytest.raises(InputError, match="what it sent is not a whole zip file with model.ckpt; it was thrown away"):
        download.fetch(zipped(server, whole[:-100]))
    assert not here.exists() and not download.RECORDED.exists()
    with download.original(zipped(server, whole)) as path:
        assert path.read_bytes() == CONTENT


def unpacked(content: bytes, folder: Path, member: str = "model.ckpt") -> str:
    """The line that refuses to unpack."""
    path = folder / "a.zip"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        download.unpack(path, member, folder / "out")
    return str(caught.value)


def test_bad_members_are_refused(tmp_path: Path) -> None:
    link = io.BytesIO()
    with zipfile.ZipFile(link, "w") as opened:
        info = zipfile.ZipInfo("model.ckpt")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        opened.writestr(info, "/etc/passwd")
    assert "not a plain file" in unpacked(link.getvalue(), tmp_path)
    assert "not a plain file" in unpacked(archive(**{"model.ckpt/": b""}), tmp_path, "model.ckpt/")
    assert "holds no model.ckpt; it has other" in unpacked(archive(other=b"x"), tmp_path)
    assert "more than the" in unpacked(archive(**{"model.ckpt": bytes(10**6)}), tmp_path)
    damaged = bytearray(archive(**{"model.ckpt": CONTENT}))
    damaged[5000] ^= 1
    assert "damaged zip file" in unpacked(bytes(damaged), tmp_path)

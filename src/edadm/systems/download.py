"""Published files: fetched over HTTP, resumed when broken off, taken only with the right size and hash.

A file that the user already has is used as it is: put it into the folder of originals under its name. Where a file's
publisher states no hash, that of the first download is recorded (trust on first use) and holds from then on.
"""

import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import requests
from huggingface_hub import get_token
from tqdm import tqdm

from edadm.errors import InputError
from edadm.files import atomic_write, read_json
from edadm.params import FileParams

FOLDER = "EDADM_CHECKPOINTS"  # the environment variable that names the folder of originals
RECORDED = Path("originals.sha256")  # of files whose publisher states no hash; sha256sum's format
CHUNK = 2**16  # a broken connection loses at most one
TRIES = 3  # connections in a row that bring nothing
PAUSE = 1.0  # seconds between two of them
GROWTH = 100  # of an unpacked file over its archive: checkpoints hardly shrink, texts do by 5 to 10
TIMEOUT = (30, 120)  # seconds to connect, and between two pieces
REFUSED = (401, 403)
HUB = "huggingface.co"


def folder() -> Path:
    """Where originals are kept: $EDADM_CHECKPOINTS, or originals/ in the current folder."""
    return Path(os.environ.get(FOLDER) or "originals")


class _BrokenOffError(Exception):
    """The connection ended before the file did."""


def fetch(file: FileParams) -> Path:
    """The checked file, downloaded to ``folder()`` unless it is there; a broken download goes on where it was.

    Sources are tried in their order; one without ``://`` is a path, used where it lies. InputError when none of them
    gives the file, and when the file is not the one that ``file`` describes.
    """
    path = folder() / file.name
    if path.is_file():
        check(path, file)
        return path
    problems = []
    for source in file.sources:
        if "://" not in source:
            if Path(source).is_file():
                check(Path(source), file)
                return Path(source)
            problems.append(f"{source}: no such file")
            continue
        try:
            _download(source, path, file)
            return path
        except InputError as error:
            problems.append(str(error))
    offline = f"if you have {file.name}, put it into {folder()} (or the folder that ${FOLDER} names)"
    raise InputError("; ".join([*problems, offline]))


def check(path: Path, file: FileParams) -> None:
    """InputError unless the file at ``path`` has the size and hash of ``file``, or else the recorded hash."""
    problem = _problem(path, file)
    if problem:
        raise InputError(f"{path}: {problem}; remove it, and it is downloaded again")


def _problem(path: Path, file: FileParams) -> str | None:
    """What tells the file at ``path`` from ``file``; a hash that nobody states is recorded."""
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"is not the published file ({size} bytes, not {file.size})"
    kind, expected = ("md5", file.md5) if file.sha256 is None and file.md5 else ("sha256", file.sha256)
    with path.open("rb") as opened:
        found = hashlib.file_digest(opened, kind).hexdigest()
    if expected is not None:
        return None if found == expected else f"is not the published file ({kind} {found}, not {expected})"
    known = recorded().get(file.name)
    if known is None:
        with RECORDED.open("a") as ledger:  # one short write, so that two downloads at once do no harm
            ledger.write(f"{found}  {file.name}\n")
        tqdm.write(f"{file.name}: its publisher states no hash; trusted on first use, sha256 {found} is in {RECORDED}")
    elif found != known:
        return f"is not the file of the first download (sha256 {found}, not {known} as {RECORDED} says)"
    return None


def recorded() -> dict[str, str]:
    """The hashes of earlier downloads, by file name."""
    lines = RECORDED.read_text().splitlines() if RECORDED.exists() else []
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _download(url: str, path: Path, file: FileParams) -> None:
    """Bring ``url`` to ``path`` once it is complete and right; InputError, with the part kept, when it broke off."""
    part = path.with_name(f"{path.name}.part")
    new, stalled = not path.parent.exists(), 0
    while True:
        have = _size(part)
        try:
            _transfer(url, part, file)
            break
        except _BrokenOffError as error:
            stalled = 0 if _size(part) > have else stalled + 1
            if stalled == TRIES:
                got = _size(part)
                hint = f"broke after {got} bytes; run this again to go on from there" if got else "failed"
                raise InputError(f"{url}: the connection {hint} ({error})") from error
            time.sleep(PAUSE)
    problem = _problem_of_zip(part, file.member) or _problem(part, file)
    _note(part).unlink(missing_ok=True)
    if problem:
        part.unlink()
        with suppress(OSError):  # another download may have put something there
            if new:
                part.parent.rmdir()
        raise InputError(f"{url}: what it sent {problem}; it was thrown away")
    os.replace(part, path)


def _problem_of_zip(part: Path, member: str | None) -> str | None:
    """What is wrong with a zip that has to hold ``member``.

    One cut short can pass for another: a checkpoint inside it, stored as it is, is a zip file itself.
    """
    if member is None:
        return None
    try:
        with zipfile.ZipFile(part) as opened:
            whole = member in opened.namelist()
    except zipfile.BadZipFile:
        whole = False
    return None if whole else f"is not a whole zip file with {member}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _note(part: Path) -> Path:
    """Where the source and version of a part are noted: only the same can continue it."""
    return part.with_name(f"{part.name}.json")


def _noted(note: Path) -> dict[str, str]:
    """What is noted; nothing when the note is missing or damaged."""
    try:
        return read_json(note)
    except InputError:
        return {}


def _transfer(url: str, part: Path, file: FileParams) -> None:
    """One connection: append what is missing to ``part``, or begin anew when the server cannot or the file changed."""
    note = _note(part)
    known = _noted(note) if part.exists() else {}
    have = part.stat().st_size if known.get("url") == url and known.get("version") else 0
    headers = {"Accept-Encoding": "identity", **_log_in(url)}
    if have:  # without a version to compare, two files could be joined
        headers |= {"Range": f"bytes={have}-", "If-Range": known["version"]}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if response.status_code == 416:  # nothing is left to send, or the part is longer than the file
                total = response.headers.get("Content-Range", "").rpartition("/")[2]
                if total == str(have):
                    return
                part.unlink()
                raise _BrokenOffError("the part did not fit the file")
            _check_response(response, url)
            resumed = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(
                f"bytes {have}-"
            )
            etag = response.headers.get("ETag", "W/")  # a weak one does not tell bytes apart
            version = response.headers.get("Last-Modified", "") if etag.startswith("W/") else etag
            length = int(response.headers.get("Content-Length", 0))
            start = have if resumed else 0
            _check_space(part, length, file)
            part.parent.mkdir(parents=True, exist_ok=True)  # not before there is something to put there
            with part.open("ab" if resumed else "wb") as out:  # an old part is gone before its note is
                atomic_write(note, json.dumps({"url": url, "version": version}))
                _copy(response, out, file.name, start, start + length)
    except requests.RequestException as error:
        raise _BrokenOffError(" ".join(str(error).split())[:200]) from error
    except OSError as error:
        raise InputError(f"{part}: cannot be written ({error}); run this again to go on from there") from error


def _log_in(url: str) -> dict[str, str]:
    """The model hub's token, when the user has logged in there (requests keeps it from other hosts)."""
    token = get_token() if urlsplit(url).hostname == HUB else None
    return {"Authorization": f"Bearer {token}"} if token else {}


def _check_response(response: requests.Response, url: str) -> None:
    if response.status_code in REFUSED:
        raise InputError(
            f"{url}: asks for a log-in or an accepted licence (HTTP {response.status_code}); "
            + ("accept it on the model's page, then run `hf auth login`, or " if urlsplit(url).hostname == HUB else "")
            + "download it with a browser"
        )
    if response.status_code not in (200, 206):
        raise InputError(f"{url}: HTTP {response.status_code} {response.reason}")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise InputError(f"{url}: sends a web page, not the file")


def _check_space(part: Path, length: int, file: FileParams) -> None:
    free = shutil.disk_usage(next(each for each in part.absolute().parents if each.exists())).free
    if length > free:
        raise InputError(f"{part.parent}: {length} bytes of {file.name} do not fit into the {free} bytes left")


def _copy(response: requests.Response, out: IO[bytes], name: str, start: int, total: int) -> None:
    """The body to ``out``, with a progress bar; every piece counts, since the next connection goes on after it."""
    with tqdm(total=total or None, initial=start, desc=f"download: {name}", unit="B", unit_scale=True) as bar:
        for piece in response.iter_content(CHUNK):
            out.write(piece)
            bar.update(len(piece))


@contextmanager
def original(file: FileParams) -> Iterator[Path]:
    """The checked file, or the one ``member`` of it when it is a zip, which is removed again after the block.

    Nothing but that member is taken out, to a name that the archive has no say in.
    """
    path = fetch(file)
    if file.member is None:
        yield path
        return
    folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=folder()) as temporary:
        out = Path(temporary) / Path(file.member).name
        unpack(path, file.member, out)
        yield out


def unpack(archive: Path, member: str, out: Path) -> None:
    """Write ``member`` of the zip ``archive`` to ``out``; its checksum is checked on the way.

    InputError for a damaged archive, a missing member, one that is a link, a folder or encrypted, and one that grows
    beyond ``GROWTH`` times the archive or the free disk.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            if member not in opened.namelist():
                raise InputError(f"{archive}: holds no {member}; it has {', '.join(opened.namelist()[:5])}")
            info = opened.getinfo(member)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if info.is_dir() or kind not in (0, stat.S_IFREG) or info.flag_bits & 1:
                raise InputError(f"{archive}: {member} is not a plain file (a link, a folder, or encrypted)")
            room = min(GROWTH * archive.stat().st_size, shutil.disk_usage(out.parent).free)
            if info.file_size > room:
                raise InputError(f"{archive}: {member} would take {info.file_size} bytes, more than the {room} allowed")
            with opened.open(info) as packed, out.open("wb") as plain:  # reads no more than file_size
                shutil.copyfileobj(packed, plain, CHUNK)
    except OSError as error:
        raise InputError(f"{out}: {member} cannot be written ({error}); {archive} is kept") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise InputError(
            f"{archive}: a damaged zip file ({' '.join(str(error).split())}); remove it, and it is downloaded again"
        ) from error

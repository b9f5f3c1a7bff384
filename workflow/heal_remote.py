"""Check each object that dvc.lock names on a DVC remote, by its content, and mend what is missing or damaged there.

heal_remote.py [REMOTE]     names what is wrong, uploads a good copy from the local cache; exit code 1 if one is lacking

`dvc push` uploads what it believes to be absent, and looks at names only: a damaged object stays, and so does a gap
that DVC's own index of the remote does not know of.
"""

import hashlib
import json
import sys
from collections.abc import Iterator

from dvc.config import NoRemoteError
from dvc.repo import Repo
from dvc_data.hashfile.db import HashFileDB

CHUNK = 1 << 20


def content(odb: HashFileDB, oid: str) -> str | None:
    """The MD5 of what ``odb`` has under the name ``oid``, read and not remembered; None when there is nothing."""
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with odb.fs.open(odb.oid_to_path(oid), "rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    except FileNotFoundError:
        return None
    return digest.hexdigest()


def is_whole(odb: HashFileDB, oid: str) -> bool:
    """Whether ``odb`` has the object ``oid``, undamaged."""
    return content(odb, oid) == oid.removesuffix(".dir")


def objects(repo: Repo, places: list[HashFileDB]) -> Iterator[tuple[str, str]]:
    """The objects of the outputs in dvc.lock and the path of each; a folder's list of files comes before its files.

    A list is read from the first of ``places`` that has it whole; the files of one that none has remain unknown.
    """
    for out in repo.index.outs:
        if not (out.use_cache and out.hash_info):
            continue
        oid = out.hash_info.value
        yield oid, str(out)
        source = next((odb for odb in places if is_whole(odb, oid)), None) if oid.endswith(".dir") else None
        if source is not None:
            with source.fs.open(source.oid_to_path(oid), "rb") as file:
                for entry in json.loads(file.read()):
                    yield entry["md5"], f"{out}/{entry['relpath']}"


def heal(repo: Repo, name: str | None) -> tuple[int, int, int]:
    """Mend the remote ``name`` (None: the default one): how many objects were checked, mended, left as they are."""
    remote, cache = repo.cloud.get_remote_odb(name), repo.cache.local
    checked: set[str] = set()
    mended = left = 0
    for oid, path in objects(repo, [cache, remote]):
        if oid in checked:
            continue
        checked.add(oid)
        found = content(remote, oid)
        if found == oid.removesuffix(".dir"):
            continue
        place = remote.oid_to_path(oid)
        fault = "missing" if found is None else "damaged"
        if not is_whole(cache, oid):
            left += 1
            print(f"{fault}: {place} ({path}); no good copy in the local cache: run the stage again, or heal elsewhere")
            continue
        remote.fs.makedirs(remote.fs.parent(place), exist_ok=True)
        if found is not None:
            remote.fs.remove(place)  # a remote may keep what has the same name and size
        remote.fs.put_file(cache.oid_to_path(oid), place)
        if not is_whole(remote, oid):
            raise OSError(f"{place}: still not as uploaded")
        mended += 1
        print(f"{fault}: {place} ({path}); uploaded again")
    return len(checked), mended, left


def main() -> int:
    """Mend the remote that the command line names."""
    try:
        with Repo(".") as repo:
            checked, mended, left = heal(repo, sys.argv[1] if sys.argv[1:] else None)
    except NoRemoteError as error:
        print(f"heal_remote: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"heal_remote: cannot read or write the remote ({error}); nothing is lost, try again", file=sys.stderr)
        return 2
    print(f"{checked} objects checked, {mended} mended, {left} left")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())

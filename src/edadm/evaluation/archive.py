"""npz files, written whole or not at all and read without pickle."""

import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile

from edadm.errors import InputError
from edadm.files import atomic_write

# TypeError, AttributeError: a plain array or a pickle behind the name of an archive; RuntimeError: a member that says
# it is encrypted
_DAMAGE = (
    *(OSError, ValueError, TypeError, AttributeError, KeyError, EOFError, RuntimeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error),
)
GROWTH = 100  # images and floats do not grow so much when they are unpacked; a file made to fill the memory does


def write(path: Path, arrays: dict[str, np.ndarray], compressed: bool = False) -> None:
    """Write ``arrays`` to ``path``, atomically; equal content gives equal bytes."""
    buffer = io.BytesIO()
    save = np.savez_compressed if compressed else np.savez
    save(buffer, allow_pickle=False, **arrays)
    atomic_write(Path(path), buffer.getvalue())


@contextmanager
def opened(path: Path, kind: str) -> Iterator[NpzFile]:
    """The archive at ``path``, to be read inside the block.

    A missing file, and whatever fails in the block because the archive is damaged, becomes an InputError that
    calls it ``kind`` ("a shard of samples").
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            unpacked = sum(member.file_size for member in archive.zip.infolist())
            if unpacked > GROWTH * Path(path).stat().st_size:
                raise ValueError(f"unpacked, it would be {unpacked} bytes")
            yield archive
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except _DAMAGE as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not {kind}, or a damaged one ({reason})") from error

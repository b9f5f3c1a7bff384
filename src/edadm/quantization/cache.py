"""Memory for the tables that reconstruction works on: RAM up to a budget, then files mapped into memory."""

import math
import os
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from edadm.errors import InputError


class Cache:
    """Gives out float tensors, in RAM while those in use fit into ``budget`` bytes, and beyond it in ``folder``.

    A file has no name once it is mapped, so its space is free again as soon as nothing refers to its tensor, also when
    the process is killed.
    """

    def __init__(self, folder: Path | None = None, budget: float = math.inf) -> None:
        self.folder, self.budget = folder, budget
        self.used = 0  # bytes in RAM
        self.mapped = 0  # bytes in files, ever

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor of ``shape`` whose content is not set."""
        size = math.prod(shape) * dtype.itemsize
        if self.used + size > self.budget and size:
            return self._file(shape, dtype, size)
        table = torch.empty(shape, dtype=dtype)
        self._count(size)
        weakref.finalize(table.untyped_storage(), self._count, -size)  # the storage also outlives the tensor in views
        return table

    def _count(self, size: int) -> None:
        self.used += size

    def _file(self, shape: tuple[int, ...], dtype: torch.dtype, size: int) -> Tensor:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix="table-") as file:
                # takes the space now: a full disk would otherwise end the process when the table is written
                os.posix_fallocate(file.fileno(), 0, size)
                table = torch.from_file(file.name, shared=True, size=math.prod(shape), dtype=dtype)
        except OSError as error:
            wanted = f"{size / 2**20:.0f} MiB for a table of the calibration set"
            raise InputError(f"{self.folder}: no room for {wanted} ({error.strerror}); free some") from error
        self.mapped += size
        return table.view(shape)

    def gather(self, parts: Iterable[Tensor], rows: int) -> Tensor:
        """The concatenation of ``parts`` along axis 0, ``rows`` rows in all, one part after the other."""
        table, start = None, 0
        for part in parts:
            if table is None:
                table = self.empty((rows, *part.shape[1:]), part.dtype)
            table[start : start + len(part)] = part
            start += len(part)
        return table

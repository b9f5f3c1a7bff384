"""Tables in RAM up to a budget, then in files that go by themselves."""

import gc
import os
from pathlib import Path

import pytest
import torch

from edadm.errors import InputError
from edadm.quantization.cache import Cache


def test_the_budget_counts_what_is_in_use(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "tables", budget=100)
    first = cache.empty((20,))
    assert (cache.used, cache.mapped) == (80, 0)
    part = first[3:7]
    del first
    gc.collect()
    second = cache.empty((2, 5), torch.float64)  # the part still holds the first table
    assert (cache.used, cache.mapped) == (80, 80)
    del part
    gc.collect()
    third = cache.empty((25,))
    assert (cache.used, cache.mapped) == (100, 80)
    assert second.shape == (2, 5) and second.dtype == torch.float64 and third.shape == (25,)


def test_a_file_keeps_what_is_written_and_leaves_nothing_behind(tmp_path: Path) -> None:
    cache = Cache(tmp_path, budget=0)
    parts = [torch.arange(6.0).view(2, 3), torch.arange(6.0, 15.0).view(3, 3)]
    table = cache.gather(iter(parts), 5)
    assert torch.equal(table, torch.arange(15.0).view(5, 3))
    assert cache.used == 0 and list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"no room for 4 MiB .*No space left on device"):
        Cache(tmp_path, budget=0).empty((2**20,))

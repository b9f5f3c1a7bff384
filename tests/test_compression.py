"""benchmarks/compression.py: the files of an embedded system beside the arithmetic."""

import csv
from pathlib import Path

import compression
import full_size
import pytest
from command_line import call


def run(*words: str) -> None:
    """A command of edadm in this process; a new one would import everything again."""
    assert call(*words) == 0


def test_the_files_of_both_networks_are_as_large_as_their_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "sizes.csv"
    monkeypatch.setattr(full_size, "run", run)
    compression.main(["fashion-ldm", "--out", str(out)], standalone_mode=False)
    rows = {row.pop("variant"): row for row in csv.DictReader(out.open())}
    assert list(rows) == ["fp32", "w8a8", "w4a8"]
    for variant in ("w8a8", "w4a8"):
        for network in ("unet", "first_stage"):
            size, arithmetic = (float(rows[variant][f"{network}_{kind}mb"]) for kind in ("", "arithmetic_"))
            assert size == pytest.approx(arithmetic, rel=0.05) and size > arithmetic  # small: the header shows
    assert 1 < float(rows["w8a8"]["smaller"]) < 4 and 2 < float(rows["w4a8"]["smaller"]) < 8

"""The benchmark of reconstruction: the published schedule learns what ours learns, and all of it runs."""

import json
import sys
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import reconstruction

from edadm.params import Reconstruction

PREPARED = cache(reconstruction.prepared)  # it takes longer than all that is tested


@pytest.fixture(autouse=True)
def _prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "prepared", PREPARED)


def test_the_published_schedule_makes_the_same_first_step() -> None:
    """Without dice: the same rows, losses and optimisers give the same error, whatever is computed how often."""
    settings = Reconstruction(
        method="fbr", iterations=1, batch=4, rate_rounding=0.5, input_mix=1.0, activation_drop=0.0
    )
    network = reconstruction.prepared(32, 4)
    (attention,) = (place for place, unit in enumerate(network[1]) if unit.name == "down_blocks.1.attentions.0")
    for units in ({2}, {attention}):
        errors = [
            reconstruction.run(schedule, network, units, settings)[0]["error"]
            for schedule in (reconstruction.ours, reconstruction.published_schedule, reconstruction.published)
        ]
        assert errors[1:] == pytest.approx([errors[0]] * 2, rel=0.02)


def test_all_of_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But the memory is that of this process."""
    errors = {"width": 32, "rows": 4, "batch": 4, "steps": 1, "units": 1, "seeds": 2}
    monkeypatch.setattr(reconstruction, "LEARNED", errors)
    monkeypatch.setattr(
        reconstruction, "memory", lambda width, rows, batch, threads: [growth("ours", width, rows, batch, 2, threads)]
    )
    growth = reconstruction.growth
    words = ["--width", "32", "--samples", "4", "--batch", "4", "--steps", "1", "--units", "1", "--rounds", "1"]
    words += ["--threads", "1", "--out", str(tmp_path / "out.json")]
    done = CliRunner().invoke(reconstruction.main, words, catch_exceptions=False)
    assert done.exit_code == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["memory"][0] > 0
    assert found["published_over_ours"].keys() == {"5000 steps, 1024 rows", "1000 steps, 2048 rows"}
    assert all(entry["seconds_per_step"] > 0 for entry in found["ours"])
    assert found["error_published_over_ours"]["mean"] == pytest.approx(1, abs=0.5)

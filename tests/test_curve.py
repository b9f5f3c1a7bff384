"""The loss curve of a training: what is written is the means of the steps."""

import csv
from pathlib import Path

from PIL import Image

from edadm.training import curve


def test_a_point_is_the_mean_of_the_steps_since_the_last(tmp_path: Path) -> None:
    curve.write(tmp_path, [1.0] * 100 + [3.0] * 50, batch=8)
    with (tmp_path / "training.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"images": "800", "loss": "1.000000"}, {"images": "1200", "loss": "3.000000"}]
    assert Image.open(tmp_path / "training.png").size == (770, 385)

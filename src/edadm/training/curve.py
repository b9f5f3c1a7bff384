"""The loss during a training, as a table and as a picture."""

import csv
from pathlib import Path

from matplotlib.figure import Figure

FILES = ("training.csv", "training.png")
EVERY = 100  # steps that one point stands for


def write(folder: Path, losses: list[float], batch: int) -> None:
    """Write ``training.csv`` (images seen, mean loss of the last 100 steps) and ``training.png`` into ``folder``."""
    parts = [losses[start : start + EVERY] for start in range(0, len(losses), EVERY)]
    seen = [batch * min((index + 1) * EVERY, len(losses)) for index in range(len(parts))]
    means = [sum(part) / len(part) for part in parts]
    with (folder / "training.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["images", "loss"])
        writer.writerows((images, f"{loss:.6f}") for images, loss in zip(seen, means, strict=True))
    figure = Figure(figsize=(7, 3.5), dpi=110, layout="constrained")
    axes = figure.add_subplot(xlabel="images seen (thousands)", ylabel=f"loss, mean of {EVERY} steps")
    axes.plot([images / 1000 for images in seen], means)
    axes.set_ylim(0.95 * min(means), 2 * min(means))  # the first steps would flatten the rest
    axes.grid(alpha=0.3)
    figure.savefig(folder / "training.png", metadata={"Software": None})  # the same bytes from any version

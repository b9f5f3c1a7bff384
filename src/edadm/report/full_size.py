"""What benchmarks/latency.py measured on networks at full size, as the report shows it."""

from pathlib import Path
from typing import Any

from edadm.files import read_json
from edadm.report import tables

ROW = ("system", *tables.TIMES, "load_s", "peak_mib", "file_mb")
RUN = ("device", "instructions", "versions", "command", "commit", "int8_gops")
FLOAT = ("pytorch", "openvino")  # how the names of configurations in floating point begin
EAGER, OURS = "pytorch-fp32-eager", "edadm-w8a8"


def charts(path: Path) -> list[dict[str, Any]]:
    """A chart for each system and batch size in the file, rows from slow to fast.

    Each row has, beside what was measured, how many times as fast as eager PyTorch and as the fastest row in floating
    point it is (None where there is no such row), and the chart ``share``: how much of the machine's int8 rate ``OURS``
    reaches. InputError when the file is not what the benchmark writes.
    """
    content = tables.pick(read_json(path), ("systems", "rows"), path)
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in content["rows"]:
        measured = tables.pick(row, ROW, path)
        found.setdefault((measured["system"], measured["batch"]), []).append(measured)
    shown = []
    for (system, batch), rows in found.items():
        own = tables.pick(tables.pick(content["systems"], (system,), path)[system], ("gmac", "runs"), path)
        ran = tables.pick(tables.pick(own["runs"], (str(batch),), path)[str(batch)], RUN, path)
        rows.sort(key=lambda row: -row["median_ms"])
        medians = {row["configuration"]: row["median_ms"] for row in rows}
        best = min((ms for name, ms in medians.items() if name.startswith(FLOAT)), default=None)
        for row in rows:
            row["vs_eager"] = tables.ratio(medians.get(EAGER), row["median_ms"])
            row["vs_float"] = tables.ratio(best, row["median_ms"])
        share = tables.ratio(2e3 * own["gmac"] * batch / ran["int8_gops"], medians.get(OURS))
        shown.append({"system": system, "batch": batch, "gmac": own["gmac"], **ran, "share": share, "rows": rows})
    return shown

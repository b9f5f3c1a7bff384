"""The measured numbers of the listed runs, as CSV files and as rows for the report."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from edadm.errors import InputError
from edadm.files import as_csv, atomic_write, read_json

METRICS_FILE = {"demo": "metrics.json", "full": "metrics-full.json"}
MEASURES = (
    "n",
    "fid",
    "sfid",
    "is_mean",
    "is_std",
    "kid_mean",
    "kid_std",
    "precision",
    "recall",
    "psnr_fp32",
    "ssim_fp32",
    "feature_distance_fp32",
    "confident_share",
)
CONDITIONAL = ("class_accuracy", "clip_score")  # of systems with classes, with captions
QUALITY = ("run", "system", "variant", "n", "fid", "fid_ratio", *MEASURES[2:], "class_accuracy")
SIZES = ("fp32_bytes", "quantized_file_bytes", "payload_bytes", "arithmetic_bytes", "engine_bytes")
AUTOENCODER_SIZES = {"vae_fp32_bytes": "fp32_bytes", "vae_file_bytes": "quantized_file_bytes"}
SIZE = ("system", "variant", *SIZES, "ratio_to_fp32", *AUTOENCODER_SIZES, "ratio_with_vae")
CHECKS = ("layers_in_graph", "layers_in_int8", "worst_layer_error", "engine_to_reference", "floor", "images")
EXACTNESS = ("system", "variant", "network", *CHECKS)
TIMES = ("configuration", "batch", "threads", "median_ms", "min_ms", "rounds")
# what each configuration is compared with: what most users run, and the best float path of the engine we use
BASELINES = {"speedup_vs_eager": "pytorch-fp32-eager", "speedup_vs_openvino_bf16": "openvino-bf16"}
LATENCY = ("system", "device", *TIMES, *BASELINES)


def pick(content: Any, keys: Iterable[str], path: Path) -> dict[str, Any]:
    """Those ``keys`` of the JSON object ``content`` read from ``path``; InputError when one is missing."""
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a JSON object; delete it and run the stage that makes it again")
    missing = [key for key in keys if key not in content]
    if missing:
        raise InputError(f"{path}: has no {', '.join(missing)}; delete it and run the stage that makes it again")
    return {key: content[key] for key in keys}


def ratio(value: float | None, base: float | None) -> float | None:
    """``value / base``, or None where one of them is missing or the base is 0."""
    return value / base if value is not None and base else None


def measured(params: Any, results: Path) -> Any:
    """``params`` with those runs alone that have metrics."""

    def has_metrics(run: Any) -> bool:
        return (results / run.system / run.variant / METRICS_FILE["demo"]).exists()

    return replace(params, runs={name: run for name, run in params.runs.items() if has_metrics(run)})


def quality(params: Any, results: Path, protocol: str = "demo") -> list[dict[str, Any]]:
    """A row per listed run, with the columns ``QUALITY``; InputError when a run has no metrics yet.

    ``fid_ratio`` is None where the system has no fp32 run in the list, ``class_accuracy`` and
    ``clip_score`` where it has no classes or captions.
    """
    rows = []
    for name, run in params.runs.items():
        path = results / run.system / run.variant / METRICS_FILE[protocol]
        content = read_json(path)
        measures = pick(content, MEASURES, path) | {name: content.get(name) for name in CONDITIONAL}
        rows.append({"run": name, "system": run.system, "variant": run.variant, **measures})
    fp32 = {row["system"]: row["fid"] for row in rows if row["variant"] == "fp32"}
    for row in rows:
        row["fid_ratio"] = ratio(row["fid"], fp32.get(row["system"]))
    return rows


def size(params: Any, results: Path) -> list[dict[str, Any]]:
    """A row per listed run whose engine exists, with the columns ``SIZE`` and ``layers``, {bits: number of layers}.

    ``ratio_to_fp32`` is the quantized file over the float32 U-Net, so smaller is better; ``ratio_with_vae`` is that of
    both networks together, None where the autoencoder is not quantized. The quantized file is the same for every
    device; the engine of the first one is read.
    """
    rows = []
    for run in params.runs.values():
        path = results / run.system / run.variant / f"engine-{params.pipeline.devices[0]}" / "size.json"
        if not path.exists():
            continue
        row = {"system": run.system, "variant": run.variant, **pick(read_json(path), (*SIZES, "layers"), path)}
        row["ratio_to_fp32"] = ratio(row["quantized_file_bytes"], row["fp32_bytes"])
        rows.append(row | _with_autoencoder(row, path.parent / "vae" / path.name))
    return rows


def _with_autoencoder(row: dict[str, Any], path: Path) -> dict[str, Any]:
    """The columns of a quantized autoencoder, described in ``path``, beside the U-Net's ``row``."""
    if not path.exists():
        return dict.fromkeys((*AUTOENCODER_SIZES, "ratio_with_vae"))
    sizes = pick(read_json(path), AUTOENCODER_SIZES.values(), path)
    found = {column: sizes[key] for column, key in AUTOENCODER_SIZES.items()}
    both = [row[key] + sizes[key] for key in ("quantized_file_bytes", "fp32_bytes")]
    return found | {"ratio_with_vae": ratio(*both)}


def exactness(params: Any, results: Path) -> list[dict[str, Any]]:
    """A row per verified network of the listed quantized runs (U-Net, perhaps autoencoder), columns ``EXACTNESS``."""
    rows = []
    for run in params.runs.values():
        path = results / run.system / run.variant / "verification.json"
        if params.recipe(run).weights < 32 and path.exists():
            content = read_json(path)
            for network, found in {"unet": content, "vae": content.get("vae")}.items():
                if found is not None:
                    named = {"system": run.system, "variant": run.variant, "network": network}
                    rows.append(named | pick(found, CHECKS, path))
    return rows


def latency(params: Any, results: Path) -> list[dict[str, Any]]:
    """A row per measured configuration of the listed systems, with the columns ``LATENCY`` and ``machine``.

    A speed-up compares medians on the same system, device, batch and number of threads; None without that baseline.
    """
    rows = []
    for system in dict.fromkeys(run.system for run in params.runs.values()):
        for device in params.pipeline.devices:
            path = results / system / f"latency-{device}.json"
            if not path.exists():
                continue
            content = pick(read_json(path), ("device", "rows"), path)
            measured = [pick(row, TIMES, path) for row in content["rows"]]
            medians = {(row["configuration"], row["batch"], row["threads"]): row["median_ms"] for row in measured}
            for row in measured:
                speedups = {
                    column: ratio(medians.get((baseline, row["batch"], row["threads"])), row["median_ms"])
                    for column, baseline in BASELINES.items()
                }
                rows.append({"system": system, "device": device, "machine": content["device"], **row, **speedups})
    return rows


def _quality_csv(rows: list[dict[str, Any]]) -> str:
    """The table of ``quality``; only systems with captions have a column for the CLIP score."""
    captioned = any(row["clip_score"] is not None for row in rows)
    return as_csv((*QUALITY, "clip_score") if captioned else QUALITY, rows)


def write(params: Any, results: Path, out: Path, protocol: str = "demo") -> None:
    """Write ``quality.csv``, ``size.csv``, ``exactness.csv`` and ``latency.csv`` to the folder ``out``.

    The protocol "full" has quality alone, in ``quality-full.csv``. Sizes and latencies hold what was measured so far;
    InputError when a listed run has no metrics, before anything is written.
    """
    if protocol not in METRICS_FILE:
        raise InputError(f"protocol: {protocol!r} is not one of {', '.join(METRICS_FILE)}")
    results, out = Path(results), Path(out)
    if protocol == "full":
        files = {"quality-full.csv": _quality_csv(quality(params, results, protocol))}
    else:
        files = {
            "quality.csv": _quality_csv(quality(params, results)),
            "size.csv": as_csv(SIZE, size(params, results)),
            "exactness.csv": as_csv(EXACTNESS, exactness(params, results)),
            "latency.csv": as_csv(LATENCY, latency(params, results)),
        }
    for name, content in files.items():
        atomic_write(out / name, content)

"""What a file or a folder of this project is, and what it holds, in a few lines."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from edadm.errors import InputError
from edadm.evaluation import archive, reference, samples
from edadm.files import read_json
from edadm.quantization import checkpoint

Lines = dict[str, Any]

LEVELS = 3  # below the project's own folder: results, a system, what was made

# JSON files by keys that only they have
JSONS = {
    "quality metrics": ("fid", "samples_fingerprint"),
    "quality of held-out real images": ("fid", "reference_n"),
    "latencies": ("device", "rows"),
    "comparison of an engine with exact integers": ("worst_layer_error", "floor"),
    "sizes of an engine": ("quantized_file_bytes", "engine_bytes"),
    "description of a calibration set": ("calibrator", "counts"),
}
# CSV files by their first columns
CSVS = {
    "losses of reconstruction": ("unit", "index", "kind", "iteration"),
    "table of quality": ("run", "system", "variant", "n", "fid"),
    "table of sizes": ("system", "variant", "fp32_bytes"),
    "table of latencies": ("system", "device", "configuration"),
    "table of exactness": ("system", "variant", "network", "layers_in_graph"),
    "errors of layers": ("layer", "index", "bits", "sqnr_db"),
    "training curve": ("images", "loss"),
}


def describe(path: Path, levels: int = LEVELS) -> Lines:
    """What ``path`` is (``kind``) and holds, by name; InputError when it is nothing that this project writes.

    A folder may hold other folders, of which it is looked for ``levels`` down: whole disks and loops of links end.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    folders = (*_FOLDERS, partial(_results, levels=levels))  # the last: it asks the others
    for reader in folders if path.is_dir() else (_FILES.get(path.suffix, _nothing),):
        try:
            found = reader(path)
        except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:  # OSError: a folder of that name
            raise InputError(f"{path}: looks like what edadm writes, but is not whole ({error!r})") from error
        if found is not None:
            return found
    raise InputError(f"{path}: not a file or folder that edadm writes")


def lines(described: Lines) -> Iterator[str]:
    """``name: value`` lines, long lists shortened.

    >>> list(lines({"kind": "samples", "shape": (8, 8, 1), "seeds": list(range(100))}))
    ['kind: samples', 'shape: 8, 8, 1', 'seeds: 0, 1, 2, 3, …, 99']
    """
    for name, value in described.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {each}" for key, each in value.items())
        elif isinstance(value, list | tuple):
            value = ", ".join(map(str, value if len(value) <= 8 else [*value[:4], "…", value[-1]]))
        elif isinstance(value, float):
            value = f"{value:.6g}"
        yield f"{name}: {value}"


def _nothing(_: Path) -> None:
    return None


def _pipeline(folder: Path) -> Lines | None:
    has_index = (folder / "model_index.json").is_file()
    if not has_index and not ((folder / "unet").is_dir() and (folder / "scheduler").is_dir()):
        return None
    kind = read_json(folder / "model_index.json").get("_class_name") if has_index else "checkpoint of a system"
    parts = sorted(part.name for part in folder.iterdir() if part.is_dir())
    return {"kind": f"pipeline ({kind})", "parts": parts} | _prefixed("unet", _unet(folder / "unet") or {})


def _unet(folder: Path) -> Lines | None:
    if not (folder / "config.json").is_file():
        return None
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or "_class_name" not in config:
        return None
    if "quantization_config" not in config:
        found = sorted(path.name for path in folder.glob("*.safetensors"))
        bytes_ = sum((folder / name).stat().st_size for name in found)
        return {"kind": f"full-precision {config['_class_name']}", "files": found, "bytes": bytes_}
    loaded = checkpoint.load(folder)
    sizes = checkpoint.sizes(folder)
    recipe = {key: value for key, value in loaded.recipe.items() if not isinstance(value, dict)}
    return {
        "kind": f"quantized {config['_class_name']}",
        "layers by bits": sizes["layers"],
        "attentions in 8 bits": len(loaded.attention),
        "file bytes": sizes["quantized_file_bytes"],
        "full-precision bytes": sizes["fp32_bytes"],
        "smaller": f"{sizes['fp32_bytes'] / sizes['quantized_file_bytes']:.2f}x",
        "recipe": recipe,
        "reconstruction": loaded.recipe.get("reconstruction", {}),
        "fingerprint": checkpoint.fingerprint(folder),
    }


def _engine(folder: Path) -> Lines | None:
    if not (folder / "engine.json").is_file():
        return None
    description = read_json(folder / "engine.json")
    size = read_json(folder / "size.json")
    return {
        "kind": f"engine for {description['device']}",
        "inputs": description.get("inputs"),
        "integer layers": len(description["layers"]),
        "bytes": size["engine_bytes"],
        "quantized checkpoint": description["quantized_sha256"],
        "versions": description["versions"],
    }


def _samples(folder: Path) -> Lines | None:
    if not any(folder.glob(samples.PATTERN)):
        return None
    found = samples.open_folder(folder)
    return {
        "kind": "samples",
        "shards": len(found.paths),
        "images": len(found.seeds),
        "shape": found.shape,
        "seeds": f"{found.seeds.start} to {found.seeds.stop - 1}",
        "labels": found.labels is not None,
        "fingerprint": found.fingerprint,
    }


def _embedder(folder: Path) -> Lines | None:
    if not (folder / "config.json").is_file():
        return None
    config = read_json(folder / "config.json")
    return {"kind": "class embedder"} | config if isinstance(config, dict) and "classes" in config else None


def _units(folder: Path) -> Lines | None:
    found = sorted(folder.glob("unit-*.safetensors"))
    return {"kind": "scratch of a reconstruction", "finished units": len(found)} if found else None


def _results(folder: Path, levels: int) -> Lines | None:
    held = {}
    for child in sorted(folder.iterdir()) if levels else ():
        try:
            held[child.name] = describe(child, levels - 1)["kind"]
        except InputError:
            continue
    return {"kind": "results", **held} if held else None


def _json(path: Path) -> Lines | None:
    content = read_json(path)
    if path.name in ("config.json", "engine.json", "model_index.json", "size.json"):
        for reader in _FOLDERS:
            found = reader(path.parent)
            if found is not None:
                return found
    kind = next((kind for kind, keys in JSONS.items() if set(keys) <= set(content)), None)
    if kind is None:
        return None
    rows = content.pop("rows", None)
    if rows is not None:
        content["median ms"] = {f"{row['configuration']} (batch {row['batch']})": row["median_ms"] for row in rows}
    return {"kind": kind, **content}


def _csv(path: Path) -> Lines | None:
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    columns = rows[0] if rows else []
    kind = next((kind for kind, start in CSVS.items() if tuple(columns[: len(start)]) == start), None)
    return None if kind is None else {"kind": kind, "columns": columns, "rows": len(rows) - 1}


def _npz(path: Path) -> Lines | None:
    with archive.opened(path, "an archive of arrays") as arrays:
        names = set(arrays.files)
    if set(reference.KEYS) <= names:
        with archive.opened(path, "reference statistics") as arrays:
            strings = {key: str(arrays[key]) for key in ("extractor", "extractor_sha256", "images_sha256", "n")}
            return {"kind": "reference statistics", "features": arrays["features"].shape, **strings}
    if "arr_0" in names:
        shard = samples.read_shard(path)
        seeds = f"{shard.seeds.min()} to {shard.seeds.max()}"
        return {
            "kind": "shard of samples",
            "images": shard.images.shape,
            "seeds": seeds,
            "fingerprint": shard.fingerprint,
        }
    return None


def _safetensors(path: Path) -> Lines | None:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from error
    if {"x", "t"} <= set(shapes):
        described = path.with_suffix(".json")
        more = _json(described) if described.is_file() else None
        return {"kind": "calibration set", **shapes, **{k: v for k, v in (more or {}).items() if k != "kind"}}
    if "fingerprint" in metadata and "result" in metadata:
        return json.loads(metadata["result"]) | {"kind": "finished unit of a reconstruction"}
    for reader in (_unet, _embedder):
        found = reader(path.parent)
        if found is not None:
            return found
    return None


def _html(path: Path) -> Lines | None:
    start = path.read_text(errors="replace")[:2000]
    return {"kind": "report", "bytes": path.stat().st_size} if "quantization report</title>" in start else None


def _prefixed(prefix: str, described: Lines) -> Lines:
    return {f"{prefix}: {name}": value for name, value in described.items()}


_FOLDERS: tuple[Callable[[Path], Lines | None], ...] = (
    _pipeline,
    _engine,
    _samples,
    _unet,
    _embedder,
    _units,
)
_FILES: dict[str, Callable[[Path], Lines | None]] = {
    ".json": _json,
    ".csv": _csv,
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".html": _html,
}

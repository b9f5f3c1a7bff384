"""``report.html``: everything about the listed runs on one page that needs no other file and no network."""

from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from edadm.files import atomic_write, read_json
from edadm.params import PublishedSystemParams
from edadm.report import full_size, layers, plots, tables
from edadm.report import published as published_numbers
from edadm.report.gallery import gallery
from edadm.report.losses import read_units

# of the held-out real images: what a generator that draws from the true distribution would get
FLOOR = ("n", "fid", "sfid", "is_mean", "is_std", "kid_mean", "kid_std", "precision", "recall", "confident_share")
HASHES = ("samples_fingerprint", "reference_sha256", "extractor", "extractor_sha256")
TDAC = ("samples", "timesteps", "density", "diversity", "counts", "radius", "diversity_weight", "seed")


def number(value: float | None, digits: int = 2) -> str:
    """With thousands separated, and a dash for what was not measured."""
    return "–" if value is None else f"{value:,.{digits}f}"


def megabytes(value: float | None) -> str:
    """Bytes as MB (10⁶ bytes), with enough digits to tell small files apart."""
    return number(None if value is None else value / 1e6, 3)


def _eight_bit(recipe: Any) -> str:
    """Where the weights keep 8 bits."""
    share = recipe.eight_bit_full_resolution
    touched = [f"full-resolution convolutions (up to {100 * share:g} % of all weights)"] if share else []
    return ", ".join([*recipe.eight_bit, *touched]) or "no layer"


def _recipe(recipe: Any, calibrator: str) -> dict[str, str]:
    """A variant's recipe as label -> text."""
    if recipe.weights == 32:
        return {"Weights": "float32", "Activations": "float32"}
    fields = {
        "Weights": f"{recipe.weights} bits",
        "Activations": f"{recipe.activations} bits",
        "Ranges": {"mse": "least squared error", "minmax": "minimum to maximum"}[recipe.ranges],
        "8-bit weights in": _eight_bit(recipe),
        "16-bit inputs of": ", ".join(recipe.sixteen_bit_inputs) or "no layer",
        "Split shortcut": "yes" if recipe.split_shortcut else "no",
        "Attention's operands": "float32" if recipe.attention == 32 else f"{recipe.attention} bits",
        "Calibration": calibrator.upper(),
        "Rounding": "to nearest",
    }
    learned = recipe.reconstruction
    if learned.method == "none":
        return fields
    return fields | {
        "Rounding": f"learned ({learned.method.upper()})",
        "Iterations": f"{learned.iterations:,} of {learned.batch}",
        "Learning rates": f"{learned.rate_rounding:g} rounding, {learned.rate_steps:g} steps",
        "Weight of layer loss": f"{learned.layer_loss:g}",
        "Fisher weights": "yes" if learned.fisher else "no",
        "Input mix": f"{learned.input_mix:g}",
        "Activation drop": f"{learned.activation_drop:g}",
        "Rounding penalty": f"{learned.rounding_penalty:g}",
        "Bias correction": "yes" if learned.bias_correction else "no",
        "Tuning": f"{learned.tuning:,} at {learned.rate_tuning:g}" if learned.tuning else "no",
        "Seed": f"{learned.seed}",
    }


def _reconstruction(folder: Path, system: str, recipes: dict[str, Any]) -> dict[str, Any]:
    """Plots and key figures for each variant that learned, and why the others have none."""
    shown, nearest, missing = [], [], []
    for variant, recipe in recipes.items():
        path = folder / variant / "quantized" / "losses.csv"
        if recipe.weights == 32:
            continue
        if recipe.reconstruction.method == "none":
            nearest.append(variant)
            continue
        units, tuned = read_units(path) if path.exists() else ([], None)
        if not units:
            missing.append(variant)
            continue
        worst = min(units, key=lambda unit: unit.gain)
        name = f"{system}-{variant}"
        shown.append(
            {
                "variant": variant,
                "units": len(units),
                "blocks": sum(unit.kind == "block" for unit in units),
                "gain": median(unit.gain for unit in units),
                "worst": worst,
                "tuned": tuned,
                "errors": Markup(plots.unit_errors(f"{name}-errors", variant, units)),
                "losses": Markup(plots.loss_curves(f"{name}-losses", variant, units)),
            }
        )
    return {"shown": shown, "nearest": nearest, "missing": missing}


def _calibrations(folder: Path, system: str, calibrators: list[str]) -> list[dict[str, Any]]:
    """Plots and settings of each calibration set; ``plots`` is None where it was not made yet."""
    shown = []
    for calibrator in calibrators:
        path = folder / f"calibration-{calibrator}.json"
        if not path.exists():
            shown.append({"name": calibrator, "plots": None})
            continue
        content = tables.pick(read_json(path), TDAC, path)
        counts = content["counts"]
        panels = {
            "density": ("Density", content["density"], None),
            "diversity": ("Diversity", content["diversity"], None),
            "counts": ("Samples taken", counts, sum(counts) / len(counts)),
        }
        drawn = [
            Markup(plots.per_step(f"{system}-{calibrator}-{key}", title, values, uniform))
            for key, (title, values, uniform) in panels.items()
        ]
        fewest, most = min(counts), max(counts)
        extremes = {"fewest": fewest, "most": most, "at": counts.index(most) + 1}
        shown.append({"name": calibrator, "plots": drawn, **content, **extremes})
    return shown


def _speed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The latency rows of one system as charts: one per device, batch and number of threads."""
    charts: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        charts.setdefault((row["device"], row["machine"], row["batch"], row["threads"]), []).append(row)
    return [
        {
            "device": device,
            "machine": machine,
            "batch": batch,
            "threads": threads,
            "rounds": chart[0]["rounds"],
            "longest": max(row["median_ms"] for row in chart),
            "rows": chart,
        }
        for (device, machine, batch, threads), chart in charts.items()
    ]


def _versions(metrics: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Tool -> version; several, when the variants were not measured with the same one."""
    found: dict[str, dict[str, None]] = {}
    for content in metrics.values():
        for tool, version in content["versions"].items():
            found.setdefault(tool, {})[str(version)] = None
    return {tool: " and ".join(versions) for tool, versions in sorted(found.items())}


def _sources(settings: Any) -> dict[str, str]:
    """Where the checkpoint and the real images come from, in words."""
    checkpoint, reference = settings.checkpoint, settings.reference
    if isinstance(settings, PublishedSystemParams):
        files = (f"{file.name} from {file.sources[0]}" for file in checkpoint.files.values())
        return {
            "checkpoint": ", ".join(files),
            "reference": reference.file.sources[0] if reference.file else reference.images,
        }
    return {
        "checkpoint": f"{checkpoint.source}, SHA-256 of its weights {checkpoint.sha256}",
        "reference": reference.statistics,
    }


def _system(params: Any, results: Path, name: str, rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Everything that the template shows of one system; ``rows`` are the tables' rows, all systems'."""
    folder = results / name
    runs = [run for run in params.runs.values() if run.system == name]
    variants = [run.variant for run in runs]
    own = {table: [row for row in content if row["system"] == name] for table, content in rows.items()}
    metrics = {}
    for variant in variants:
        path = folder / variant / tables.METRICS_FILE["demo"]
        metrics[variant] = tables.pick(read_json(path), ("seed", "versions", *HASHES), path)
    floor_path = folder / "reference.json"
    measured = read_json(floor_path) if floor_path.exists() else {}
    floor = tables.pick(measured, FLOOR, floor_path) if "fid" in measured else None
    for row in own["size"]:
        row["times_smaller"] = tables.ratio(row["fp32_bytes"], row["quantized_file_bytes"])
        row["off"] = tables.ratio(row["quantized_file_bytes"] - row["arithmetic_bytes"], row["arithmetic_bytes"])
    sizes = {row["variant"]: row for row in own["size"]}
    speed = _speed(own["latency"])
    # the smallest batch is the chart a reader meets first, so the key figures come from it too
    first = {row["configuration"]: row for row in speed[0]["rows"]} if speed else {}
    settings = {run.variant: params.recipe(run) for run in runs}
    recipes = {run.variant: _recipe(settings[run.variant], run.calibrator) for run in runs}
    highlights = [
        {
            "variant": row["variant"],
            "recipe": settings[row["variant"]],
            "rounding": recipes[row["variant"]]["Rounding"],
            "fid_ratio": row["fid_ratio"],
            "smaller": sizes.get(row["variant"], {}).get("times_smaller"),
            "faster": first.get(f"edadm-{row['variant']}", {}).get("speedup_vs_eager"),
        }
        for row in own["quality"]
        if settings[row["variant"]].weights < 32
    ]
    return {
        "name": name,
        "settings": params.systems[name],
        "sources": _sources(params.systems[name]),
        "variants": variants,
        "recipes": recipes,
        "recipe_labels": list(dict.fromkeys(label for recipe in recipes.values() for label in recipe)),
        "metrics": metrics,
        "versions": _versions(metrics),
        "highlights": highlights,
        "gallery": gallery(folder, variants),
        "quality": own["quality"],
        "floor": floor,
        "size": own["size"],
        "exactness": own["exactness"],
        "layers": layers.errors(folder, name, [key for key, recipe in settings.items() if recipe.weights < 32]),
        "speed": speed,
        "calibrations": _calibrations(folder, name, list(dict.fromkeys(run.calibrator for run in runs))),
        "reconstruction": _reconstruction(folder, name, settings),
    }


def write(params: Any, results: Path, out: Path, published: bool = False, benchmark: Path | None = None) -> None:
    """Write the page about the runs that ``params`` lists, from the files under ``results``, to ``out``.

    What was not measured yet is named on the page; InputError when a listed run has no metrics at all. The same
    inputs give the same bytes. With ``published``, ``params`` are those of the published runs: the page has only the
    runs that were measured, and the numbers that others published: beside their own quality, or alone. ``benchmark``
    is a file of benchmarks/latency.py, shown at the end.
    """
    results = Path(results)
    others = published_numbers.beside(params, results) if published else {}
    if published:
        params = tables.measured(params, results)
    rows = {
        "quality": tables.quality(params, results),
        "size": tables.size(params, results),
        "exactness": tables.exactness(params, results),
        "latency": tables.latency(params, results),
    }
    systems = [
        _system(params, results, name, rows) | {"published": others.pop(name, [])}
        for name in dict.fromkeys(run.system for run in params.runs.values())
    ]
    unmeasured = [{"name": name, "published": numbers} for name, numbers in others.items()]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "megabytes": megabytes}
    shown = {"systems": systems, "unmeasured": unmeasured, "charts": full_size.charts(benchmark) if benchmark else []}
    page = environment.get_template("page.html.jinja").render(shown)
    atomic_write(Path(out), page)

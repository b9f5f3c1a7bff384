"""The reconstruction stage: from a checkpoint and a calibration set to a quantized checkpoint, resumable."""

import csv
import hashlib
import io
import json
import math
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from edadm.files import atomic_folder, atomic_write, clear, sha256, sources_sha256
from edadm.params import Recipe
from edadm.quantization import autoencoder, calibration, checkpoint, fbr, tuning
from edadm.quantization.attention import QuantizedAttention, Scales, attentions
from edadm.quantization.cache import Cache
from edadm.quantization.integer_layer import IntegerLayer
from edadm.quantization.layers import Simulated, SimulatedLayer, SplitShortcut, simulated_layers
from edadm.quantization.network import check_inputs
from edadm.quantization.units import find_units, simulate

BATCH = 32  # rows of the calibration set per forward pass


def code() -> str:
    """What units are learned by: a hash of the sources of this package."""
    return sources_sha256(Path(__file__).parent)


class UnitCheckpoints:
    """Finished units in a scratch folder, valid only for one fingerprint of inputs and recipe."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder, self.fingerprint = folder, fingerprint

    def _path(self, index: int) -> Path:
        return self.folder / f"unit-{index:04d}.safetensors"

    def restore(self, index: int) -> tuple[dict[str, Tensor], fbr.UnitResult] | None:
        """The state and result of unit ``index``, or None when it is missing, damaged or of other inputs."""
        try:
            with safe_open(self._path(index), "pt") as file:
                metadata = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None
        if metadata.get("fingerprint") != self.fingerprint:
            return None
        result = json.loads(metadata["result"])
        result["curve"] = [tuple(point) for point in result["curve"]]
        return state, fbr.UnitResult(**result)

    def keep(self, index: int, state: dict[str, Tensor], result: fbr.UnitResult) -> None:
        """Write a finished unit."""
        metadata = {"fingerprint": self.fingerprint, "result": json.dumps(asdict(result))}
        atomic_write(self._path(index), save(state, metadata))


def _integer_layer(layer: SimulatedLayer) -> IntegerLayer:
    original = layer.layer
    convolution = (
        {key: getattr(original, key) for key in ("stride", "padding", "dilation", "groups")}
        if not isinstance(original, nn.Linear)
        else {}
    )
    return IntegerLayer(
        bits=layer.bits,
        weight=layer.weight_integers.to(torch.int8),
        weight_scale=layer.weight_scale.clone(),
        bias=None if layer.bias is None else layer.bias.clone(),
        input_bits=layer.input_bits,
        input_scale=layer.input_scale.item(),
        input_zero_point=int(layer.input_zero_point),
        **convolution,
    )


def integer_layers(unet: nn.Module) -> tuple[dict[str, IntegerLayer], dict[str, Tensor]]:
    """The integer layers of a quantized simulation and its remaining float parameters, by name."""
    layers = {name: _integer_layer(layer) for name, layer in simulated_layers(unet).items()}
    inside = tuple(f"{name}." for name, module in unet.named_modules() if isinstance(module, Simulated | SplitShortcut))
    floats = {name: value.clone() for name, value in unet.state_dict().items() if not name.startswith(inside)}
    return layers, floats


def attention_scales(unet: nn.Module) -> dict[str, Scales]:
    """The scales of the operands of every quantized attention of a simulation, by the attention's name."""
    return {
        name: {operand: part.input_scale.item() for operand, part in attn.processor.operands.items()}
        for name, attn in attentions(unet).items()
        if isinstance(attn.processor, QuantizedAttention)
    }


def _losses_csv(results: list[fbr.UnitResult]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["unit", "index", "kind", "iteration", "loss", "error_before", "error_after"])
    for index, result in enumerate(results):
        for iteration, loss in result.curve:
            errors = (f"{result.error_before:.6g}", f"{result.error_after:.6g}")
            writer.writerow([result.unit, index, result.kind, iteration, f"{loss:.6g}", *errors])
    return text.getvalue()


def quantize(
    unet: nn.Module,
    data: dict[str, Tensor],
    recipe: Recipe,
    scratch: Path,
    fingerprint: str,
    cache_bytes: float = math.inf,
    device: str = "cpu",
) -> list[fbr.UnitResult]:
    """Quantize ``unet`` in place (simulated) on the calibration set ``data``; returns how each unit's learning went.

    It is computed on ``device``, where ``unet`` then is; random numbers are always the CPU's. Of the tables that
    learning works on, those beyond ``cache_bytes`` are files in ``scratch``.
    """
    return _quantize(unet, calibration.inputs(data), recipe, scratch, fingerprint, cache_bytes, device)


def _quantize(
    network: nn.Module,
    rows: tuple[Tensor, ...],
    recipe: Recipe,
    scratch: Path,
    fingerprint: str,
    cache_bytes: float,
    device: str,
) -> list[fbr.UnitResult]:
    """``quantize`` for any network; ``rows`` are its arguments for the whole calibration set."""
    batches = list(zip(*(value.split(BATCH) for value in rows), strict=True))
    example = tuple(value[:1] for value in batches[0])
    simulate(network, example, recipe)
    units = find_units(network, example)
    network.to(device)
    batches = [tuple(value.to(device) for value in inputs) for inputs in batches]
    fbr.initialise(network, batches, recipe)
    if recipe.reconstruction.method == "none":
        return []
    done = UnitCheckpoints(scratch, fingerprint)
    cache = Cache(scratch / "tables", cache_bytes)
    settings = recipe.reconstruction
    results = fbr.reconstruct(network, units, batches, settings, done.restore, done.keep, cache)
    if settings.tuning:
        results.append(tuning.tune(network, units, batches, settings, cache))
    return results


def run(
    unet: nn.Module,
    vae: nn.Module | None,
    weights: list[Path],
    calibration_file: Path,
    recipe: Recipe,
    scratch: Path,
    out: Path,
    cache_bytes: float = math.inf,
    device: str = "cpu",
) -> None:
    """Write the quantized checkpoint of ``unet`` and, if the recipe has it, of the autoencoder ``vae`` to ``out``.

    ``weights`` are the files of their float weights. A float recipe (32 bits) writes those of the U-Net in the same
    layout. Finished units are kept in ``scratch`` until the checkpoint is written, so a killed run resumes there; see
    ``quantize`` for ``cache_bytes`` and ``device``.
    """
    if recipe.weights == 32:
        with atomic_folder(out) as folder:
            checkpoint.save(folder, checkpoint.unet_config(unet), {}, unet.state_dict(), {})
            (folder / "losses.csv").write_text(_losses_csv([]))
        return
    data = calibration.read(calibration_file)
    check_inputs(checkpoint.unet_config(unet), calibration.inputs(data))
    described = json.dumps(asdict(recipe), sort_keys=True)
    networks = [("", unet, unet, recipe, calibration.inputs(data))]
    if autoencoder.FOLDER in recipe.quantize:
        rows = (autoencoder.latents(data, vae),)
        networks.append((autoencoder.FOLDER, vae, autoencoder.RoundTrip(vae), autoencoder.recipe(recipe), rows))
    configs = [checkpoint.unet_config(network) for _, network, *_ in networks]  # learning changes the networks
    made_of = (*map(sha256, weights), sha256(calibration_file), json.dumps(configs, sort_keys=True), described)
    fingerprint = hashlib.sha256("\n".join((*made_of, device, code(), torch.__version__)).encode()).hexdigest()
    results = [
        _quantize(traced, rows, own, scratch / name, fingerprint, cache_bytes, device)
        for name, _, traced, own, rows in networks
    ]
    with atomic_folder(out) as folder:
        for (name, network, _, own, _), config, learned in zip(networks, configs, results, strict=True):
            layers, floats = integer_layers(network.to("cpu"))
            checkpoint.save(folder / name, config, layers, floats, asdict(own), attention_scales(network))
            atomic_write(folder / name / "losses.csv", _losses_csv(learned))
    clear(scratch, "unit-*.safetensors", ".unit-*.tmp", "tables", autoencoder.FOLDER)

"""The CPU engine: a quantized network's OpenVINO graph (graph.py), compiled.

``deploy`` writes a folder with ``model.xml`` and ``model.bin`` (one graph for every batch size; weights of at most 4
bits packed), ``engine.json`` and ``size.json``; ``load`` compiles it for one batch size.
"""

import logging
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import openvino as ov
import torch
from torch import Tensor

from edadm.engines.batches import in_batches
from edadm.engines.conditioning import Part, settle_shapes, take_apart
from edadm.engines.graph import build_graph, executed, pack_weights, unpack_weights
from edadm.engines.moves import spare_moves
from edadm.engines.processor import has_int8_dot, is_x86
from edadm.engines.saturation import avoid_saturation
from edadm.engines.upsampling import fold_upsampling
from edadm.errors import InputError
from edadm.files import atomic_folder, read_json, write_json
from edadm.quantization import autoencoder, checkpoint, network
from edadm.quantization.checkpoint import QuantizedCheckpoint
from edadm.quantization.integer_layer import PACKED_BITS, IntegerLayer

log = logging.getLogger(__name__)

FORMAT_VERSION = 2
PRODUCTS = ("q", "softmax")  # an attention's products are called by their first operands
BODIES = ("f32", "bf16")


class CpuEngine:
    """A compiled network of one batch size: ``engine(x, t) -> output``, or of (x, t, context, …), all tensors.

    ``shapes`` are those of its inputs by name, in order, -1 where any size will do; ``models`` and ``compiled`` what
    depends on x, then the other parts. Threads may share it: it runs one call at a time.
    """

    def __init__(
        self,
        shapes: Mapping[str, list[int]],
        models: list[ov.Model],
        compiled: list[ov.CompiledModel],
        batch: int,
    ) -> None:
        self.compiled = compiled
        self.batch = batch
        self._shapes = shapes
        self._whole = {
            port.any_name for model in models for port in model.inputs if port.get_element_type() == ov.Type.i64
        }
        self._lock = Lock()
        self._request = compiled[0].create_infer_request()
        self._places = {port.any_name: place for place, port in enumerate(models[0].inputs)}
        self._given = [name for name in shapes if name in self._places]
        self._tensors = {name: self._request.get_input_tensor(place).data for name, place in self._places.items()}
        self._parts = {part: None for part in map(Part, models[1:], compiled[1:])}  # and which of its results is there

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run x float32 (n, c, h, w), t int64 (n,) and the network's further inputs (n, ...), if any, for any n.

        Batches in turn, the last filled up with zeros. InputError for inputs that do not fit the network.
        """
        for (name, shape), value in zip(self._shapes.items(), inputs, strict=True):
            self._check(name, [len(inputs[0]), *shape[1:]], value)
        with self._lock:
            return in_batches(self._run, self.batch, inputs)

    def _check(self, name: str, shape: list[int], value: Tensor) -> None:
        """InputError unless ``value`` is of ``shape`` and type: OpenVINO takes any, and computes with what it had."""
        if not network.fits(value, shape):
            wanted = ", ".join("any" if size == -1 else str(size) for size in shape)
            raise InputError(f"{name} is {tuple(value.shape)}, not ({wanted})")
        if name in self._whole and value.is_floating_point():
            raise InputError(f"{name} is {value.dtype}, where the engine takes whole numbers")

    def _run(self, *inputs: Tensor) -> Tensor:
        given = {name: value.contiguous().numpy() for name, value in zip(self._shapes, inputs, strict=True)}
        for part, there in self._parts.items():
            kept = part(given)
            if kept is not there:
                self._put(kept)
                self._parts[part] = kept
        self._put({name: given[name] for name in self._given})
        self._request.infer()
        return torch.from_numpy(self._request.get_output_tensor(0).data)

    def _put(self, values: Mapping[str, np.ndarray]) -> None:
        for name, value in values.items():
            if self._tensors[name].shape != value.shape:
                self._request.set_input_tensor(self._places[name], ov.Tensor(value))
                self._tensors[name] = self._request.get_input_tensor(self._places[name]).data
            else:  # another tensor would cost more than a copy
                self._tensors[name][...] = value


def deploy(quantized: Path, out: Path) -> None:
    """Build the engine folder ``out`` from a checkpoint folder, quantized or full-precision.

    A quantized autoencoder becomes an engine of its own in ``vae/``, of its decoder.
    """
    quantized, loaded = Path(quantized), checkpoint.load(quantized)
    shapes = network.shapes(loaded.config)
    with atomic_folder(Path(out)) as folder:
        _deploy(quantized, loaded, shapes, folder)
        if (quantized / autoencoder.FOLDER).is_dir():
            vae = checkpoint.load(quantized / autoencoder.FOLDER)
            decoding = {name: layer for name, layer in vae.layers.items() if autoencoder.decoding(name)}
            latents = {"x": [-1, vae.config["latent_channels"], *shapes["x"][2:]]}
            _deploy(quantized / autoencoder.FOLDER, vae, latents, folder / autoencoder.FOLDER, decoding)


def _deploy(
    quantized: Path,
    loaded: QuantizedCheckpoint,
    shapes: dict[str, list[int]],
    folder: Path,
    layers: dict[str, IntegerLayer] | None = None,
) -> None:
    """Write the engine of one network to ``folder``; ``layers`` are those in its graph if not all are."""
    layers = loaded.layers if layers is None else layers
    folder.mkdir(exist_ok=True)
    graph = build_graph(loaded, shapes)
    packed = {name: layer for name, layer in layers.items() if layer.bits <= PACKED_BITS}
    pack_weights(graph, set(executed(packed)))
    ov.save_model(graph, folder / "model.xml", compress_to_fp16=False)
    description = {
        "format_version": FORMAT_VERSION,
        "device": "cpu",
        "quantized_sha256": checkpoint.fingerprint(quantized),
        **_description(graph, loaded, layers),
        "versions": {name: version(name) for name in ("openvino", "torch", "diffusers")},
    }
    write_json(folder / "engine.json", description)
    engine_bytes = sum((folder / name).stat().st_size for name in ("model.xml", "model.bin"))
    write_json(folder / "size.json", checkpoint.sizes(quantized) | {"engine_bytes": engine_bytes})


def _description(
    graph: ov.Model, loaded: QuantizedCheckpoint, layers: Mapping[str, IntegerLayer] | None = None
) -> dict[str, Any]:
    """What compiling a graph needs to know of it; ``layers`` are those in it if not all are."""
    layers = loaded.layers if layers is None else layers

    def sizes(port: ov.Output) -> list[int]:
        return [-1 if axis.is_dynamic else axis.get_length() for axis in port.partial_shape]

    return {
        "inputs": {port.any_name: sizes(port) for port in graph.inputs},
        "output": sizes(graph.output(0)),
        "layers": executed(layers),
        "products": [f"{name}.{operand}" for name in loaded.attention for operand in PRODUCTS],
    }


def load(
    engine_dir: Path,
    batch: int,
    body: str = "f32",
    threads: int = 2,
    cache_dir: Path | None = None,
    apart: bool = True,
) -> CpuEngine:
    """Compile an engine folder for ``batch`` images a call.

    ``body`` is the type of everything that is not an integer layer: "f32" for exactness, "bf16" for speed. Not
    ``apart``, the graph stays as it is and each call computes all of it, as OpenVINO alone would: a baseline of
    latencies.
    InputError when the folder is not an engine, or a layer would not run in int8; on other processors than x86, where
    OpenVINO lacks kernels, the latter is a warning.
    """
    if body not in BODIES:
        raise InputError(f"engine.body: {body!r} is not one of {', '.join(BODIES)}")
    if batch < 1 or threads < 1:
        raise InputError(f"engine: batch {batch} and threads {threads} must be at least 1")
    folder = Path(engine_dir)
    description = read_json(folder / "engine.json")
    if description.get("device") != "cpu" or description.get("format_version") != FORMAT_VERSION:
        raise InputError(f"{folder}: not a cpu engine of format {FORMAT_VERSION}")
    if not _is_description(description):
        raise InputError(f"{folder}: engine.json is damaged; `edadm deploy` writes the folder anew")
    try:
        graph = ov.Core().read_model(folder / "model.xml")
    except RuntimeError as error:
        raise InputError(f"{folder}: OpenVINO cannot read the graph ({_last_line(error)})") from error
    unpack_weights(graph)
    try:
        return _for_batch(graph, description, batch, body, threads, cache_dir, apart)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    except RuntimeError as error:  # shapes that do not fit the graph
        raise InputError(f"{folder}: OpenVINO cannot compile the graph ({_last_line(error)})") from error


def _is_description(description: Mapping[str, Any]) -> bool:
    """Whether engine.json holds what ``_description`` gives, by its types."""
    inputs, named = description.get("inputs"), [description.get(key) for key in ("layers", "products")]
    return (
        isinstance(inputs, dict)
        and all(isinstance(shape, list) and all(type(size) is int for size in shape) for shape in inputs.values())
        and all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in named)
    )


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]


def compiled(loaded: QuantizedCheckpoint, graph: ov.Model, batch: int, body: str, threads: int) -> CpuEngine:
    """The engine of a checkpoint's ``graph``, as ``build_graph`` made it and without a folder; else as ``load``."""
    return _for_batch(graph.clone(), _description(graph, loaded), batch, body, threads)


def _for_batch(
    graph: ov.Model,
    description: Mapping[str, Any],
    batch: int,
    body: str,
    threads: int,
    cache_dir: Path | None = None,
    apart: bool = True,
) -> CpuEngine:
    """``graph``, with int8 weights, compiled for one batch size; InputError when a layer would not run in int8."""
    graph.reshape({name: [batch, *shape[1:]] for name, shape in description["inputs"].items()})
    added, models = (rewrite(graph), take_apart(graph)) if apart else ([], [graph])
    core = ov.Core()
    compiled = [compile_graph(core, model, body, threads, cache_dir) for model in models]
    expected = {*description["layers"], *added, *(description["products"] if has_int8_dot() else ())}
    missing = sorted(expected.difference(*map(int8_names, compiled)))
    if missing:
        reason = f"{len(missing)} of {len(expected)} layers would not run in int8, first {missing[0]}"
        if is_x86():
            raise InputError(reason)
        log.warning("%s: OpenVINO has no int8 kernel for them on this processor, and computes in float", reason)
    return CpuEngine(description["inputs"], models, compiled, batch)


def rewrite(graph: ov.Model) -> list[str]:
    """Let a graph of static shapes, with int8 weights, compute the same sooner; names of the layers that this adds."""
    settle_shapes(graph)
    return fold_upsampling(graph) + spare_moves(graph)


def compile_graph(
    core: ov.Core, graph: ov.Model, body: str, threads: int, cache_dir: Path | None = None
) -> ov.CompiledModel:
    """``graph`` for this CPU, which may change it (``avoid_saturation``)."""
    if not has_int8_dot():
        avoid_saturation(graph)
    return compile_unchanged(core, graph, body, threads, cache_dir)


def compile_unchanged(
    core: ov.Core, graph: ov.Model, body: str, threads: int, cache_dir: Path | None = None
) -> ov.CompiledModel:
    """``graph`` as OpenVINO alone would compile it, right or wrong on this CPU.

    The precision is always stated, since OpenVINO's own choice is bf16 where it can.
    """
    settings = {
        "INFERENCE_PRECISION_HINT": body,
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # pinned threads wait for each other when the machine is shared
    }
    if cache_dir is not None:
        settings["CACHE_DIR"] = str(cache_dir)
    return core.compile_model(graph, "CPU", settings)


def int8_layers(*compiled: ov.CompiledModel) -> tuple[int, int]:
    """How many convolutions and linears the compiled graphs run in int8, and how many they have."""
    found = [integer for each in compiled for integer, _ in _nodes(each, ("Convolution", "FullyConnected"))]
    return sum(found), len(found)


def int8_names(compiled: ov.CompiledModel) -> set[str]:
    """Names of the original layers, and products of attentions, inside the nodes that run in int8."""
    nodes = _nodes(compiled, ("Convolution", "FullyConnected", "MatMul", "Subgraph"))
    return {name for integer, names in nodes if integer for name in names}


def _nodes(compiled: ov.CompiledModel, kinds: tuple[str, ...]) -> list[tuple[bool, list[str]]]:
    """For every executed node of these kinds: whether its kernel is an int8 one, and the layers inside it.

    The kernel's name is asked, not the node's precision: that one also says i8 for integer weights in float products.
    """
    nodes = []
    for node in compiled.get_runtime_model().get_ops():
        info = {key: value.astype(str) for key, value in node.get_rt_info().items() if hasattr(value, "astype")}
        if info["layerType"] in kinds:
            # OpenVINO appends to a name what it moved behind the layer: name/DequantizationMultiply
            names = [name.split("/")[0] for name in info["originalLayersNames"].split(",")]
            nodes.append((info["primitiveType"].upper().endswith("_I8"), names))
    return nodes

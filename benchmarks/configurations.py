"""What benchmarks/latency.py times: ways to run one U-Net on this CPU, ours and a user's other choices.

``CONFIGURATIONS`` maps a name to a function of (folder, batch, threads) that loads the network from what
``latency.prepare`` wrote to ``folder`` and returns a call without arguments. Packages of peers (``.[peers]``) are
imported when they are used.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from time import perf_counter

import edadm  # noqa: F401  (mends torchvision before diffusers)

import openvino as ov  # isort: skip
import torch
from openvino import opset13 as op
from safetensors.torch import load_file
from torch import Tensor
from torch._inductor import config as inductor

from edadm.engines import cpu, onnx
from edadm.engines.graph import layer_nodes, unpack_weights
from edadm.engines.reference import Network
from edadm.engines.saturation import LARGEST
from edadm.quantization.integer_layer import IntegerLayer
from edadm.systems.system import load_unet

Call = Callable[[], object]
Load = Callable[[Path, int, int], Call]


def inputs(folder: Path, batch: int) -> list[Tensor]:
    """Tensors x float32 (batch, c, h, w), t int64 (batch,) and perhaps context float32 (batch, tokens, width)."""
    given = load_file(folder / "inputs.safetensors")
    return [given[name][:batch] for name in sorted(given)]


def pytorch(
    folder: Path, batch: int, threads: int, channels_last: bool = False, compiled: bool = False, bf16: bool = False
) -> Call:
    """The float U-Net in PyTorch; compiled with frozen weights, which is inductor's way to be fast on a CPU."""
    torch.set_num_threads(threads)
    network, (x, *rest) = Network(load_unet(folder / "checkpoint")), inputs(folder, batch)
    if channels_last:
        network, x = network.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    if compiled:
        inductor.freezing = True
        network = torch.compile(network)

    def call() -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return network(x, *rest)

    return call


def engine(folder: Path, batch: int, threads: int, variant: str, body: str, apart: bool = True) -> Call:
    """An engine of ours; every call has the same timestep, as the batches of a sampling run have in turn.

    That of full precision, not ``apart``, is OpenVINO as it is, but for the group normalization it is given.
    """
    loaded = cpu.load(folder / variant / "engine", batch, body, threads, apart=apart)
    return partial(loaded, *inputs(folder, batch))


def new_timesteps(folder: Path, batch: int, threads: int, variant: str) -> Call:
    """An engine of ours, every call at another timestep, as in a run of one batch."""
    loaded, (x, t, *rest) = cpu.load(folder / variant / "engine", batch, "f32", threads), inputs(folder, batch)
    steps = count()
    return lambda: loaded(x, torch.full_like(t, next(steps)), *rest)


def nncf(folder: Path, batch: int, threads: int) -> Call:
    """OpenVINO's own post-training quantization of the float graph, everything else in bfloat16."""
    import nncf

    core, given = ov.Core(), inputs(folder, batch)
    graph = core.read_model(folder / "fp32" / "engine" / "model.xml")
    graph.reshape({port.any_name: list(value.shape) for port, value in zip(graph.inputs, given, strict=True)})
    arrays = [value.numpy() for value in given]
    data = nncf.Dataset([{port.any_name: array for port, array in zip(graph.inputs, arrays, strict=True)}])
    graph = nncf.quantize(graph, data, subset_size=1, preset=nncf.QuantizationPreset.MIXED)
    request = cpu.compile_unchanged(core, graph, "bf16", threads).create_infer_request()
    return partial(request.infer, arrays)


def onnxruntime(folder: Path, batch: int, threads: int) -> Call:
    """ONNX Runtime's own static quantization of the float graph, in its QDQ form with weights per channel."""
    import onnxruntime
    from onnxruntime import quantization

    given = inputs(folder, batch)
    source, made = folder / "fp32" / "onnx", folder / "onnxruntime"
    if not (made / "model.onnx").exists():
        onnx.deploy(folder / "fp32" / "quantized", source)
        names = [value.name for value in onnxruntime.InferenceSession(source / "model.onnx").get_inputs()]
        one = {name: value[:1].numpy() for name, value in zip(names, given, strict=True)}
        made.mkdir()
        quantization.quantize_static(
            source / "model.onnx",
            made / "model.onnx",
            _Once(one),
            per_channel=True,
            use_external_data_format=True,
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(made / "model.onnx", options, providers=["CPUExecutionProvider"])
    return partial(onnx.OnnxEngine(session, batch), *given)


class _Once:
    """A calibration set of one sample, as ONNX Runtime reads them."""

    def __init__(self, one: dict) -> None:
        self.left = [one]

    def get_next(self) -> dict | None:
        """The sample, then None."""
        return self.left.pop() if self.left else None


# in the order in which they are loaded: first what needs most memory for that
CONFIGURATIONS: dict[str, Load] = {
    "nncf-int8": nncf,
    "onnxruntime-int8": onnxruntime,
    "pytorch-bf16-compile": partial(pytorch, channels_last=True, compiled=True, bf16=True),
    "pytorch-fp32-compile": partial(pytorch, channels_last=True, compiled=True),
    "pytorch-fp32-channels-last": partial(pytorch, channels_last=True),
    "pytorch-fp32-eager": pytorch,
    "openvino-fp32": partial(engine, variant="fp32", body="f32", apart=False),
    "openvino-bf16": partial(engine, variant="fp32", body="bf16", apart=False),
    "edadm-fp32-bf16": partial(engine, variant="fp32", body="bf16"),
    "edadm-w8a8": partial(engine, variant="w8a8", body="f32"),
    "edadm-w8a8-new-timestep": partial(new_timesteps, variant="w8a8"),
    "edadm-w8a8-bf16": partial(engine, variant="w8a8", body="bf16"),
    "edadm-w4a8": partial(engine, variant="w4a8", body="f32"),
    "edadm-w4a8-bf16": partial(engine, variant="w4a8", body="bf16"),
}
PACKAGES = {"nncf-int8": "nncf", "onnxruntime-int8": "onnxruntime"}


def available() -> list[str]:
    """Names of the configurations whose packages are installed."""
    return [name for name in CONFIGURATIONS if name not in PACKAGES or find_spec(PACKAGES[name])]


def ceiling(threads: int) -> float:
    """The highest int8 rate found in single layers, in 1e9 operations (two per product) per second.

    Their weights are such that no processor needs them in halves (saturation.py).
    """
    best = 0.0
    for channels, side in ((256, 32), (512, 16), (512, 32), (1280, 16)):
        weight = torch.randint(-LARGEST, LARGEST + 1, (channels, channels, 3, 3), dtype=torch.int8)
        layer = IntegerLayer(
            8, weight, torch.full((channels,), 2.0**-10), None, 2.0**-7, 128, 8, (1, 1), (1, 1), (1, 1), 1
        )
        x = op.parameter([1, channels, side, side], ov.Type.f32)
        graph = ov.Model([layer_nodes(x.output(0), "layer", layer)], [x])
        request = cpu.compile_graph(ov.Core(), graph, "f32", threads).create_infer_request()
        data = torch.randn(1, channels, side, side).numpy()
        for _ in range(15):
            start = perf_counter()
            request.infer([data])
            best = max(best, 2 * 9 * channels**2 * side**2 / (perf_counter() - start) / 1e9)
    return best


def breakdown(folder: Path, variant: str, body: str, batch: int, threads: int, rounds: int = 5) -> dict[str, float]:
    """Mean milliseconds per call of an engine's node types, named as OpenVINO does, from its own counters."""
    core = ov.Core()
    core.set_property("CPU", {"PERF_COUNT": True})
    graph, given = core.read_model(folder / variant / "engine" / "model.xml"), inputs(folder, batch)
    unpack_weights(graph)
    graph.reshape({port.any_name: list(value.shape) for port, value in zip(graph.inputs, given, strict=True)})
    cpu.rewrite(graph)
    request = cpu.compile_graph(core, graph, body, threads).create_infer_request()
    found: dict[str, float] = {}
    for index in range(rounds + 1):
        request.infer([value.numpy() for value in given])
        for node in request.profiling_info if index else ():
            name = f"{node.node_type} {node.exec_type}"
            found[name] = found.get(name, 0.0) + 1e3 * node.real_time.total_seconds() / rounds
    return dict(sorted(found.items(), key=lambda item: -item[1]))

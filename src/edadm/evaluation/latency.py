"""How long one call of the network takes: interleaved rounds, medians and minima.

All configurations of a batch size are timed in turn, round after round, so that a change of the machine's speed
meets them all alike.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import openvino as ov
import torch

from edadm.engines import cpu
from edadm.engines.reference import Network
from edadm.errors import InputError
from edadm.files import read_json
from edadm.params import EngineParams, LatencyParams
from edadm.systems.system import load, load_unet

log = logging.getLogger(__name__)


def interleaved(callables: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of ``rounds`` calls of each callable, by turns.

    Each is called once untimed before every timed call: the threads of the one before (PyTorch's and OpenVINO's pools
    both wait busily for a while) have then gone to sleep and the caches are its own.
    """
    if rounds < 1:
        raise InputError(f"latency.rounds: {rounds} is not at least 1")
    seconds: dict[str, list[float]] = {name: [] for name in callables}
    for call in callables.values():
        call()
    for _ in range(rounds):
        for name, call in callables.items():
            call()
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def measure(
    system: str,
    checkpoint_dir: Path,
    engine_dirs: Mapping[str, Path | str],
    settings: LatencyParams,
    engine: EngineParams,
) -> dict[str, Any]:
    """Latencies of a system on this CPU, as written to latency-cpu.json.

    ``checkpoint_dir`` is the system's full-precision checkpoint in diffusers layout (``pytorch-fp32-eager``).
    ``engine_dirs`` maps variants to their engine folders, and "fp32" must be one: it gives ``openvino-fp32`` and
    ``openvino-bf16``; every other variant gives ``edadm-<variant>`` with the body of ``engine``. All calls of a
    configuration have the same timestep, as the batches of a sampling run have in turn. Progress is logged.
    """
    other = [str(path) for path in engine_dirs.values() if read_json(Path(path) / "engine.json").get("device") != "cpu"]
    if other:
        raise InputError(
            f"latency: {other[0]} is not a cpu engine; the baselines are the CPU's (see benchmarks/gpu.py)"
        )
    if "fp32" not in engine_dirs:
        raise InputError("latency: the engine of variant fp32 is needed as a baseline")
    timed, eager = load(checkpoint_dir), Network(load_unet(checkpoint_dir))
    rows = []
    for batch in settings.batches:
        x = torch.randn(batch, *timed.shape, generator=torch.Generator().manual_seed(0))
        t = torch.full((batch,), 500, dtype=torch.int64)
        inputs = (x, t, *timed.contexts(range(batch), guidance=1.0))
        with _pytorch_threads(engine.threads), torch.inference_mode():
            networks = {"pytorch-fp32-eager": eager} | _engines(engine_dirs, batch, engine)
            calls = {name: partial(network, *inputs) for name, network in networks.items()}
            times = interleaved(calls, settings.rounds)
        for name, seconds in times.items():
            milliseconds = {"median_ms": 1e3 * median(seconds), "min_ms": 1e3 * min(seconds)}
            row = {"system": system, "configuration": name, "batch": batch, "threads": engine.threads}
            rows.append(row | milliseconds | {"rounds": settings.rounds})
            log.info("%s, batch %d: median %.2f ms, minimum %.2f ms", name, batch, *milliseconds.values())
    return {"device": ov.Core().get_property("CPU", "FULL_DEVICE_NAME"), "threads": engine.threads, "rows": rows}


def _engines(engine_dirs: Mapping[str, Path | str], batch: int, engine: EngineParams) -> dict[str, Any]:
    def load_engine(variant: str, body: str, apart: bool = True) -> cpu.CpuEngine:
        return cpu.load(Path(engine_dirs[variant]), batch, body, engine.threads, apart=apart)

    bodies = (("fp32", "f32"), ("bf16", "bf16"))
    loaded = {f"openvino-{name}": load_engine("fp32", body, apart=False) for name, body in bodies}
    others = [variant for variant in engine_dirs if variant != "fp32"]
    return loaded | {f"edadm-{variant}": load_engine(variant, engine.body) for variant in others}


@contextmanager
def _pytorch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""The CUDA engine: Triton kernels for NVIDIA GPUs from Ampere on, on the checkpoint's own scales and integers.

``deploy`` writes a folder with the checkpoint's two files as they are (weights of at most 4 bits packed), so that one
folder serves every GPU, ``engine.json`` and ``size.json``; ``load`` lays the tensors out for the kernels (layout.py).
Every layer's sums are the reference's integers; what is between the layers is computed in ``body``. With
``TRITON_INTERPRET=1`` in the environment everything runs on the CPU, slowly: that is how the tests check the kernels.
"""

import shutil
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edadm.errors import InputError
from edadm.files import atomic_folder, read_json, write_json
from edadm.quantization import autoencoder, checkpoint, network

FORMAT_VERSION = 1
FILES = ("config.json", "model.safetensors")


def deploy(quantized: Path, out: Path) -> None:
    """Build the engine folder ``out`` from a checkpoint folder, quantized or full-precision; this needs no GPU."""
    loaded = checkpoint.load(quantized)
    if (Path(quantized) / autoencoder.FOLDER).is_dir():
        raise InputError(f"{quantized}: its autoencoder is quantized, which only the cpu engine executes")
    with atomic_folder(Path(out)) as folder:
        for name in FILES:
            shutil.copyfile(Path(quantized) / name, folder / name)
        description = {
            "format_version": FORMAT_VERSION,
            "device": "cuda",
            "quantized_sha256": checkpoint.fingerprint(quantized),
            "inputs": list(network.arguments(loaded.config)),
            "layers": list(loaded.layers),
            "attention": list(loaded.attention),
            "versions": {name: _version(name) for name in ("torch", "triton", "diffusers")},
        }
        write_json(folder / "engine.json", description)
        engine_bytes = sum((folder / name).stat().st_size for name in FILES)
        write_json(folder / "size.json", checkpoint.sizes(quantized) | {"engine_bytes": engine_bytes})


def load(engine_dir: Path, batch: int, body: str = "f16", threads: int = 2, cache_dir: Path | None = None) -> Any:
    """The network of an engine folder for ``batch`` images a call: a cuda.engine.CudaEngine.

    ``body`` is the type of everything that is not an integer layer: "f32" for exactness, "f16" or "bf16" for speed.
    ``threads`` and ``cache_dir`` mean nothing here: Triton keeps what it compiled and tuned in its own cache folder.
    InputError when the folder is not such an engine, or there is neither a GPU nor the interpreter.
    """
    if find_spec("triton") is None:
        raise InputError("the cuda engine needs Triton: pip install 'edadm[cuda]'")
    # only now: importing Triton costs a second, and fixes whether kernels are compiled or interpreted
    from edadm.engines.cuda import engine

    if body not in engine.BODIES:
        raise InputError(f"engine.body: {body!r} is not one of {', '.join(engine.BODIES)}")
    if batch < 1:
        raise InputError(f"engine: batch {batch} must be at least 1")
    folder = Path(engine_dir)
    description = read_json(folder / "engine.json")
    if description.get("device") != "cuda" or description.get("format_version") != FORMAT_VERSION:
        raise InputError(f"{folder}: not a cuda engine of format {FORMAT_VERSION}")
    where = engine.device()
    if checkpoint.fingerprint(folder) != description["quantized_sha256"]:
        raise InputError(f"{folder}: its files are not those that engine.json describes; deploy it again")
    return engine.CudaEngine(engine.build(checkpoint.load(folder), engine.BODIES[body], where), batch, where)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # deploying does without Triton
        return None

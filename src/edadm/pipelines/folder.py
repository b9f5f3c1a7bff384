"""A pipeline's folder as diffusers saves it: opened without running anything that it brings, copied without waste."""

import shutil
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError

from edadm.errors import InputError
from edadm.files import atomic_write, read_json, write_json
from edadm.pipelines.classes import ClassPipeline
from edadm.quantization import network
from edadm.quantized_unet import QuantizedUNet
from edadm.systems import system
from edadm.systems.folder import PARTS

INDEX = "model_index.json"
LIBRARIES = ("diffusers", "transformers", "edadm")  # that a part may come from
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")  # reading one can run code
OTHERS = (*PICKLES, ".msgpack", ".h5", ".onnx", ".onnx_data")  # weights in formats that nothing here reads
VARIANT = "fp16"  # of weights, as diffusers calls it in their files' names
UNET_INDEX = ["edadm", QuantizedUNet.__name__]


def index(folder: Path) -> dict[str, list[str]]:
    """The parts of a pipeline's folder, each with its library and class, once all of it may be opened.

    A folder without ``model_index.json`` is one of a system of this project: ``unet/``, ``scheduler/`` and perhaps
    ``class_embedder/`` and ``vae/``. InputError for anything else: no folder, a U-Net of an unknown kind, parts
    with code of their own, weights that are pickles only.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; a model of the hub must be downloaded first")
    if (folder / INDEX).is_file():
        entries = read_json(folder / INDEX)
        parts = {name: value for name, value in entries.items() if isinstance(value, list) and value[:1] != [None]}
        for name, value in parts.items():  # names become folders
            if not (name.isidentifier() and len(value) == 2 and all(isinstance(text, str) for text in value)):
                raise InputError(f"{folder / INDEX}: {name!r}: {value} is not a part's name, library and class")
    else:
        parts = {name: ["", ""] for name in PARTS if (folder / name).is_dir()}
    config = folder / "unet" / "config.json"
    if "unet" not in parts or "scheduler" not in parts or not config.is_file():
        raise InputError(f"{folder}: not a pipeline that diffusers saved, with {INDEX}, unet/ and scheduler/")
    for name, (library, _) in parts.items():
        if library and library not in LIBRARIES:
            raise InputError(f"{folder}: {name} comes from {library}; only parts of {', '.join(LIBRARIES)} are loaded")
        files = {path.suffix for path in (folder / name).glob("*")}
        pickled = sorted(files & set(PICKLES))
        if pickled and ".safetensors" not in files:
            raise InputError(
                f"{folder / name}: only {pickled[0]} weights, which can run code when they are read; save the pipeline"
                " with safetensors first"
            )
    try:
        network.arguments(read_json(config))
    except (InputError, KeyError, TypeError) as error:
        raise InputError(f"{config}: {error}") from error
    return parts


def is_quantized(folder: Path) -> bool:
    """Whether the U-Net of a pipeline's folder is a quantized one."""
    return "quantization_config" in read_json(Path(folder) / "unet" / "config.json")


def takes_text(folder: Path) -> bool:
    """Whether the pipeline in a folder draws from prompts."""
    return any(name.startswith("tokenizer") for name in index(folder))


def open_pipeline(folder: Path, **engine: Any) -> Any:
    """The pipeline in ``folder``, in float32 on the CPU; ``engine`` is for a quantized U-Net, see ``QuantizedUNet``.

    InputError as :func:`index`, and when diffusers cannot load it.
    """
    folder = Path(folder)
    index(folder)
    unet = {"unet": QuantizedUNet.from_pretrained(folder / "unet", **engine)} if is_quantized(folder) else {}
    weights = {path.name for path in (folder / "unet").glob("*.safetensors")}
    variant = VARIANT if not unet and weights and all(f".{VARIANT}" in name for name in weights) else None
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()  # it would warn that a quantized U-Net is of another class
    bars = diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.disable_progress_bar()
    try:
        if not (folder / INDEX).is_file() or read_json(folder / "unet" / "config.json").get("num_class_embeds"):
            return _class_pipeline(folder, **unet)
        return DiffusionPipeline.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            dtype=torch.float32,
            variant=variant,
            **unet,
        )
    except (
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
        SafetensorError,
        ImportError,
        KeyError,
    ) as error:
        raise InputError(f"{folder}: diffusers cannot load it ({' '.join(str(error).split())})") from error
    finally:
        diffusers_logging.set_verbosity(verbosity)
        if bars:
            diffusers_logging.enable_progress_bar()


def _class_pipeline(folder: Path, unet: QuantizedUNet | None = None) -> ClassPipeline:
    """A pipeline without text from its parts."""
    path = folder / "scheduler" / "scheduler_config.json"
    name = read_json(path).get("_class_name")
    kind = getattr(diffusers, name or "", None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise InputError(f"{path}: _class_name {name!r} is not a scheduler of diffusers")
    if (folder / "text_encoder").is_dir():
        raise InputError(f"{folder}: has a text encoder but no {INDEX}; save it as a pipeline of diffusers")
    embedder = system.load(folder).embedder if (folder / "class_embedder").is_dir() else None
    return ClassPipeline(
        unet=system.load_unet(folder) if unet is None else unet,
        scheduler=kind.from_pretrained(folder / "scheduler"),
        class_embedder=embedder,
        vae=system.load_autoencoder(folder),
    )


def weights(folder: Path) -> list[Path]:
    """The weight files of the U-Net of a pipeline's folder."""
    found = sorted((Path(folder) / "unet").glob("*.safetensors"))
    if not found:
        raise InputError(f"{folder}: its U-Net has no .safetensors file")
    return found


def assemble(source: Path, unet: Path, out: Path) -> None:
    """Fill the empty folder ``out``: ``unet`` as its U-Net, the other parts and the texts beside them of ``source``."""
    parts = index(source)
    left_out = shutil.ignore_patterns(*(f"*{suffix}" for suffix in OTHERS))
    for name in parts:
        if name != "unet" and (source / name).is_dir():
            shutil.copytree(source / name, out / name, ignore=left_out)
    shutil.copytree(unet, out / "unet")
    for path in source.iterdir():
        if path.is_file() and path.suffix in (".md", ".txt", ""):  # what it is, and its licence
            shutil.copyfile(path, out / path.name)
    _without_variant(out)
    if (source / INDEX).is_file():
        write_json(out / INDEX, read_json(source / INDEX) | {"unet": UNET_INDEX})


def _without_variant(folder: Path) -> None:
    """Call the half-precision files of parts as others are called, for the quantized U-Net has no such variant."""
    for path in sorted(folder.glob(f"*/*.{VARIANT}*")):
        plain = path.with_name(path.name.replace(f".{VARIANT}", "", 1))
        if plain.exists():
            path.unlink()
        elif path.suffix == ".json":  # which of several files holds a tensor
            atomic_write(plain, path.read_text().replace(f".{VARIANT}", ""))
            path.unlink()
        else:
            path.rename(plain)

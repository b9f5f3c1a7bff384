"""Reading checkpoints of strangers: tensors come out, nothing that a pickle asks for is run.

torch's restricted unpickler builds tensors, numbers, strings and containers only. What else a file names is looked at
before it is loaded: the classes that training libraries leave in a checkpoint become inert stubs, anything else is
refused. Tensors are mapped from the file (but for torch's format from before 2020), so that a file may be larger than
the memory.
"""

import os
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from edadm.errors import InputError

# packages whose objects published checkpoints hold beside the weights (callbacks, schedules, settings)
FOREIGN = ("ldm", "lightning", "lightning_fabric", "numpy", "omegaconf", "pytorch_lightning", "taming", "typing")
NESTED = "state_dict"  # where Lightning keeps the weights


class Stub:
    """Stands for an object of a foreign class: takes any arguments and any state, keeps and does nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file or of a file of ``torch.save`` (any ending), by name, on the CPU.

    A Lightning checkpoint's are those under ``state_dict``. InputError, one line, for a missing, damaged or hostile
    file, and for one that holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        content = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else _load_pickle(path)
    except InputError:
        raise
    except Exception as error:  # a file of strangers: whatever goes wrong in it must not be a traceback
        raise InputError(f"{path}: cannot be read as a checkpoint ({_reason(error)}); download it again") from error
    if isinstance(content, dict) and isinstance(content.get(NESTED), dict):
        content = content[NESTED]
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path}: holds no state dict but {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(f"{path}: not a state dict: {str(name)[:80]!r} is a {type(value).__name__}, not a tensor")
        _check_tensor(path, name, value)
    return dict(content)


def _reason(error: Exception) -> str:
    """What went wrong in a few words, without torch's advice to load the file regardless."""
    text = " ".join(str(error).split())
    asked = re.search(r"GLOBAL ([\w.]+)", text)
    if asked:
        return f"it asks for {asked[1]}, which was not run"
    text = re.split(r"\. | Check ", text.partition("WeightsUnpickler error: ")[2] or text)[0]
    return text[:200] or type(error).__name__


def _load_pickle(path: Path) -> Any:
    zipped = zipfile.is_zipfile(path)
    if zipped:
        _check_zip(path)
    elif tarfile.is_tarfile(path):
        raise InputError(f"{path}: torch's tar format of before 2017 is not read")
    stubs = [(Stub, name) for name in _foreign_names(path)] if zipped else []
    with torch.serialization.safe_globals(stubs):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


def _check_zip(path: Path) -> None:
    """InputError unless the archive is one as torch writes them: plain names, nothing compressed, nothing shared."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    for entry in entries:
        if entry.filename.startswith(("/", "\\")) or ".." in entry.filename.replace("\\", "/").split("/"):
            raise InputError(f"{path}: refused, its entry {entry.filename[:80]!r} points outside the archive")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise InputError(f"{path}: refused, its entry {entry.filename[:80]!r} is compressed; torch never does that")
    if sum(entry.file_size for entry in entries) > os.path.getsize(path):
        raise InputError(f"{path}: refused, its entries claim to be larger than the file")


def _foreign_names(path: Path) -> list[str]:
    """What the pickle of a zip file names beyond torch's own, all of it of ``FOREIGN`` packages, else InputError."""
    names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    refused = [name for name in names if name.partition(".")[0] not in FOREIGN]
    if refused:
        raise InputError(f"{path}: refused, it asks for {', '.join(refused[:3])[:200]}; nothing of it was run")
    return names


def _check_tensor(path: Path, name: str, tensor: Tensor) -> None:
    """InputError unless the tensor is a plain one that lies within the bytes that the file has for it."""
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout != torch.strided or tensor.is_quantized:
        raise InputError(f"{path}: {name[:80]!r} is not a plain tensor but {tensor.layout} {type(tensor).__name__}")
    if tensor.device.type != "cpu":
        raise InputError(f"{path}: {name[:80]!r} has no values")
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    needed = max(tensor.storage_offset() + reach + 1, tensor.numel())  # a stride of 0 would make much out of little
    if tensor.numel() and needed * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise InputError(f"{path}: {name[:80]!r} claims to be larger than its bytes in the file")

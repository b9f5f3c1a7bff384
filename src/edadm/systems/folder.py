"""A checkpoint folder in diffusers layout, as files: what is in it, and the hash of its weights.

``unet/`` and ``scheduler/`` are always there; ``vae/`` makes the system a latent one, ``class_embedder/`` a
class-conditional one, ``text_encoder/`` with ``tokenizer/`` and ``prompts/`` a text-conditional one.
"""

import hashlib
import shutil
from pathlib import Path

from edadm.errors import InputError
from edadm.files import atomic_folder
from edadm.params import CheckpointParams

WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"
AUTOENCODER_WEIGHTS = Path("vae") / WEIGHTS.name
PARTS = ("class_embedder", "prompts", "scheduler", "text_encoder", "tokenizer", "unet", "vae")


def weights_sha256(folder: Path) -> str:
    """SHA-256 of all weights of a checkpoint: that of ``cat FOLDER/*/*.safetensors``."""
    digest = hashlib.sha256()
    for path in sorted(path for part in PARTS for path in (folder / part).glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def fetch(params: CheckpointParams, out: Path) -> None:
    """Copy the checkpoint folder ``params.source`` to ``out``, once the hash of its weights is right."""
    source = Path(params.source)
    if not (source / WEIGHTS).is_file():
        raise InputError(f"checkpoint.source: {source} holds no {WEIGHTS}")
    found = weights_sha256(source)
    if found != params.sha256:
        raise InputError(
            f"{source}: the SHA-256 of its weights is {found}, but params.yaml expects {params.sha256}; "
            "restore the files, or change checkpoint.sha256 if the new weights are meant"
        )
    with atomic_folder(out) as folder:
        for part in PARTS:
            if (source / part).is_dir():
                shutil.copytree(source / part, folder / part)

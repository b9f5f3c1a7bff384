"""The parts of a published system's checkpoint folder: where each parameter comes from, and how they are written."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edadm.errors import InputError
from edadm.files import write_json
from edadm.systems import class_embedder
from edadm.systems.class_embedder import ClassEmbedder
from edadm.systems.originals import architectures, keys
from edadm.systems.originals.architectures import AVERAGED, KINDS, Widths
from edadm.systems.originals.keys import Source

DIFFUSERS_WEIGHTS, TRANSFORMERS_WEIGHTS = "diffusion_pytorch_model.safetensors", "model.safetensors"
UNET, FIRST_STAGE, CONDITION = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
TEXT = f"{CONDITION}transformer."
CLASS_ROWS = f"{CONDITION}embedding.weight"


@dataclass
class Part:
    """A network of the checkpoint: where each parameter comes from, and how the folder's configuration is written."""

    folder: str
    weights: str
    shapes: dict[str, tuple[int, ...]]
    sources: dict[str, Source]
    configure: Callable[[Path], None]
    heads: dict[str, int] = field(default_factory=dict)  # of each attention whose queries, keys and values are joint


def _network(folder: str, network: nn.Module, sources: dict[str, Source]) -> Part:
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    heads = {name: module.heads for name, module in network.named_modules() if hasattr(module, "to_q")}
    return Part(folder, DIFFUSERS_WEIGHTS, shapes, sources, network.save_config, heads)


def unet_place(kind: str) -> Callable[[str], str]:
    """From a U-Net's key to that of the weights to sample with, in a latent system's file."""
    return keys.averaged if kind in AVERAGED else UNET.__add__


def parts(kind: str, widths: Widths, scale: float, side: int | None = None) -> list[Part]:
    """The diffusers and transformers networks of a system; class rows and the scheduler are written by themselves."""
    unet = architectures.unet(kind, widths, side)
    names = list(unet.state_dict())
    if kind == "cifar10-ddim":
        return [_network("unet", unet, keys.ddpm(names, len(unet.config.block_out_channels)))]
    place = unet_place(kind)
    sources = {name: source._replace(key=place(source.key)) for name, source in keys.ldm_unet(names).items()}
    found = [_network("unet", unet, sources)]
    vae = architectures.autoencoder(kind, widths, scale, side)
    sources = keys.ddpm(vae.state_dict(), len(vae.config.block_out_channels))
    sources = {name: source._replace(key=FIRST_STAGE + source.key) for name, source in sources.items()}
    found.append(_network("vae", vae, sources))
    text = architectures.text_encoder(widths)
    if text is not None:
        config, shapes = text

        def configure(folder: Path) -> None:
            write_json(folder / "config.json", config)

        sources = {name: Source(TEXT + name) for name in shapes}
        found.append(Part("text_encoder", TRANSFORMERS_WEIGHTS, shapes, sources, configure))
    return found


def check_kind(kind: str) -> None:
    """InputError unless ``kind`` is one of ``KINDS``."""
    if kind not in KINDS:
        raise InputError(f"checkpoint: original {kind!r} is not one of {', '.join(KINDS)}")


def write(folder: Path, kind: str, parts: list[Part], tensors: Callable[[Part], dict[str, Tensor]]) -> None:
    """Write each part's configuration and tensors, and the scheduler, below ``folder``; one part at a time."""
    for part in parts:
        target = folder / part.folder
        target.mkdir()
        part.configure(target)
        save_file(tensors(part), target / part.weights, {"format": "pt"})
    architectures.scheduler(kind).save_pretrained(folder / "scheduler")


def write_classes(folder: Path, rows: Tensor) -> None:
    """Write ``class_embedder/`` with ``rows`` (classes + 1, width), the last for no class."""
    with torch.device("meta"):
        embedder = ClassEmbedder(len(rows) - 1, rows.shape[1])
    embedder.load_state_dict({"embedding.weight": rows.detach().float().contiguous()}, assign=True)
    class_embedder.save(embedder, folder / "class_embedder")

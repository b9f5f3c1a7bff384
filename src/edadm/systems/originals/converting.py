"""From an original checkpoint file to a folder in diffusers layout, and a folder of random weights beside it."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edadm.errors import InputError
from edadm.files import atomic_folder, write_json
from edadm.systems import class_embedder
from edadm.systems.class_embedder import ClassEmbedder
from edadm.systems.originals import architectures, keys
from edadm.systems.originals.architectures import AVERAGED, KINDS, PUBLISHED, SCALES, Widths
from edadm.systems.originals.keys import Source
from edadm.systems.originals.reading import read_state_dict

DIFFUSERS_WEIGHTS, TRANSFORMERS_WEIGHTS = "diffusion_pytorch_model.safetensors", "model.safetensors"
UNET, FIRST_STAGE, CONDITION = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
TEXT = f"{CONDITION}transformer."
CLASS_ROWS = f"{CONDITION}embedding.weight"
NAMED = 3  # so many keys does an error name

# what the originals keep beside the weights: the noise schedule, the average's bookkeeping, the running numbers
_BUFFERS = {
    *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod"),
    *("log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "logvar"),
    *("posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
    *("lvlb_weights", "scale_factor", "model_ema.decay", "model_ema.num_updates"),
    f"{TEXT}text_model.embeddings.position_ids",
}


@dataclass
class _Part:
    """A network of the checkpoint: where each parameter comes from, and how the folder's configuration is written."""

    folder: str
    weights: str
    shapes: dict[str, tuple[int, ...]]
    sources: dict[str, Source]
    configure: Callable[[Path], None]
    heads: dict[str, int] = field(default_factory=dict)  # of each attention whose queries, keys and values are joint


def _network_part(folder: str, network: nn.Module, sources: dict[str, Source]) -> _Part:
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    heads = {name: module.heads for name, module in network.named_modules() if hasattr(module, "to_q")}
    return _Part(folder, DIFFUSERS_WEIGHTS, shapes, sources, network.save_config, heads)


def _parts(kind: str, widths: Widths, scale: float, side: int | None = None) -> list[_Part]:
    """The diffusers and transformers networks of a system; class rows and the scheduler are written by themselves."""
    unet = architectures.unet(kind, widths, side)
    names = list(unet.state_dict())
    if kind == "cifar10-ddim":
        return [_network_part("unet", unet, keys.ddpm(names, len(unet.config.block_out_channels)))]
    place = keys.averaged if kind in AVERAGED else UNET.__add__
    sources = {name: source._replace(key=place(source.key)) for name, source in keys.ldm_unet(names).items()}
    parts = [_network_part("unet", unet, sources)]
    vae = architectures.autoencoder(kind, widths, scale, side)
    sources = keys.ddpm(vae.state_dict(), len(vae.config.block_out_channels))
    sources = {name: source._replace(key=FIRST_STAGE + source.key) for name, source in sources.items()}
    parts.append(_network_part("vae", vae, sources))
    text = architectures.text_encoder(widths)
    if text is not None:
        config, shapes = text

        def configure(folder: Path) -> None:
            write_json(folder / "config.json", config)

        sources = {name: Source(TEXT + name) for name in shapes}
        parts.append(_Part("text_encoder", TRANSFORMERS_WEIGHTS, shapes, sources, configure))
    return parts


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise InputError(f"checkpoint: original {kind!r} is not one of {', '.join(KINDS)}")


def _measure(kind: str, state: Mapping[str, Tensor]) -> Widths:
    """The widths that the weights say; InputError naming the keys when it lacks one of those that say them."""
    place = keys.averaged if kind in AVERAGED else UNET.__add__
    first = "conv_in.weight" if kind == "cifar10-ddim" else place("input_blocks.0.0.weight")
    sources = {"channels": (first, 0)}
    if kind != "cifar10-ddim":
        sources["autoencoder"] = (f"{FIRST_STAGE}encoder.conv_in.weight", 0)
    if PUBLISHED[kind].codes:
        sources["codes"] = (f"{FIRST_STAGE}quantize.embedding.weight", 0)
    if PUBLISHED[kind].context:
        sources["context"] = (place("middle_block.1.transformer_blocks.0.attn2.to_k.weight"), 1)
    if PUBLISHED[kind].classes:
        sources["classes"] = (CLASS_ROWS, 0)
    if PUBLISHED[kind].vocabulary:
        sources["vocabulary"] = (f"{TEXT}text_model.embeddings.token_embedding.weight", 0)
    missing = [key for key, axis in sources.values() if key not in state or state[key].dim() <= axis]
    if missing:
        raise InputError(f"not a {kind} checkpoint: {_list(missing, 'missing')}")
    sizes = {name: state[key].shape[axis] for name, (key, axis) in sources.items()}
    if "classes" in sizes:
        sizes["classes"] -= 1
    try:
        return Widths(**sizes)
    finally:
        if 0 in sizes.values():
            raise InputError(
                f"not a {kind} checkpoint: one of {', '.join(key for key, _ in sources.values())} is empty"
            )


def _list(names: Iterable[str], what: str) -> str:
    names = sorted(names)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more} {'is' if len(names) == 1 else 'are'} {what}"


def _known(kind: str, key: str) -> bool:
    """Whether an original of this kind may hold ``key`` though no part is made of it."""
    if key in _BUFFERS:
        return True
    if kind in AVERAGED:
        return key.startswith(UNET)  # the weights as trained, beside their average
    return kind != "cifar10-ddim" and key.startswith("model_ema.")


def _check_keys(kind: str, state: Mapping[str, Tensor], parts: list[_Part]) -> None:
    """InputError unless the file holds just what the parts need, in the right shapes and with finite values."""
    wanted = {source.key for part in parts for source in part.sources.values()}
    wanted |= {CLASS_ROWS} if PUBLISHED[kind].classes else set()
    missing = wanted - set(state)
    unused = [key for key in state if key not in wanted and not _known(kind, key)]
    if missing or unused:
        problems = [_list(missing, "missing")] if missing else []
        problems += [_list(unused, "not known")] if unused else []
        raise InputError(f"not a {kind} checkpoint: {'; '.join(problems)}")
    for part in parts:
        for name, (key, third) in part.sources.items():
            shape = part.shapes[name] if third is None else (3 * part.shapes[name][0], *part.shapes[name][1:])
            found = tuple(state[key].shape)
            if found[: len(shape)] != shape or prod(found) != prod(shape):
                raise InputError(f"not a {kind} checkpoint: {key} has shape {found}, not {shape}")
    for key in wanted:
        if not state[key].is_floating_point() or not state[key].isfinite().all():
            raise InputError(f"{key} holds values that are not finite floating-point numbers")


def _check_schedule(kind: str, state: Mapping[str, Tensor]) -> None:
    """InputError when the file was trained with another noise schedule than the published system."""
    ours = architectures.scheduler(kind).betas
    betas = state.get("betas")
    if betas is not None and (betas.shape != ours.shape or not torch.allclose(betas.float(), ours, rtol=1e-4)):
        raise InputError(f"not a {kind} checkpoint: its noise schedule (betas) is another one")


def _scale(kind: str, state: Mapping[str, Tensor]) -> float:
    """What the latents were multiplied with in training: in the file, or published."""
    scale = state.get("scale_factor")
    if scale is None:
        if kind not in SCALES and kind != "cifar10-ddim":
            raise InputError(f"not a {kind} checkpoint: scale_factor is missing")
        return SCALES.get(kind, 1.0)
    if scale.numel() != 1 or not scale.isfinite().all() or scale.item() <= 0:
        raise InputError(f"not a {kind} checkpoint: scale_factor is not a positive number")
    return scale.item()


def _tensor(state: Mapping[str, Tensor], part: _Part, name: str) -> Tensor:
    """A parameter as the folder holds it: float32, contiguous."""
    key, third = part.sources[name]
    tensor = state[key].detach()
    if third is not None:  # rows by head, in a head by third, as in QKVAttentionLegacy
        heads = part.heads[name.partition(".to_")[0]]
        tensor = tensor.reshape(heads, 3, -1, *tensor.shape[1:])[:, third]
    return tensor.reshape(part.shapes[name]).float().contiguous()


def _write(folder: Path, kind: str, parts: list[_Part], tensors: Callable[[_Part], dict[str, Tensor]]) -> None:
    for part in parts:
        target = folder / part.folder
        target.mkdir()
        part.configure(target)
        save_file(tensors(part), target / part.weights, {"format": "pt"})
    architectures.scheduler(kind).save_pretrained(folder / "scheduler")


def _write_classes(folder: Path, rows: Tensor) -> None:
    with torch.device("meta"):
        embedder = ClassEmbedder(len(rows) - 1, rows.shape[1])
    embedder.load_state_dict({"embedding.weight": rows.detach().float().contiguous()}, assign=True)
    class_embedder.save(embedder, folder / "class_embedder")


def convert(kind: str, source: Path, out: Path, side: int | None = None) -> None:
    """Write the checkpoint folder ``out`` in diffusers layout, float32, from the original file ``source``.

    Args:
        kind: which system's original it is, one of ``KINDS``.
        source: the file, as :func:`read_state_dict` reads it.
        out: the folder; it takes an old one's place once complete.
        side: of the pixels or latents to be drawn, if not the published one.

    Raises:
        InputError: the file is unreadable, or not this system's: the first missing and unknown keys are named.
    """
    _check_kind(kind)
    state = read_state_dict(source)
    try:
        _check_schedule(kind, state)
        widths, scale = _measure(kind, state), _scale(kind, state)
        parts = _parts(kind, widths, scale, side)
        _check_keys(kind, state, parts)
        if widths.classes and state[CLASS_ROWS].shape[1:] != (widths.context,):
            raise InputError(f"not a {kind} checkpoint: {CLASS_ROWS} has {tuple(state[CLASS_ROWS].shape)} numbers")
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    with atomic_folder(out) as folder:
        _write(folder, kind, parts, lambda part: {name: _tensor(state, part, name) for name in part.shapes})
        if widths.classes:
            _write_classes(folder, state[CLASS_ROWS])


def random_checkpoint(kind: str, out: Path, seed: int = 0, widths: Widths | None = None) -> None:
    """Write a checkpoint folder of the published architecture, full size, with random weights.

    The weights are those of torch's initialization in distribution, each tensor from its own generator, so that the
    same seed gives the same bytes. One network at a time is in memory. ``widths`` makes a narrower one.
    """
    _check_kind(kind)
    widths = widths or PUBLISHED[kind]
    with atomic_folder(out) as folder:
        parts = _parts(kind, widths, SCALES.get(kind, 1.0))
        _write(folder, kind, parts, lambda part: {name: _random(seed, name, part.shapes) for name in part.shapes})
        if widths.classes:
            rows = torch.randn(widths.classes + 1, widths.context, generator=_generator(seed, CLASS_ROWS))
            _write_classes(folder, rows)


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _random(seed: int, name: str, shapes: Mapping[str, tuple[int, ...]]) -> Tensor:
    """Uniform within 1/sqrt(inputs) for layers (torch's), 1 and 0 for norms, a normal distribution for embeddings."""
    shape, owner = shapes[name], name.rpartition(".")[0]
    if "embedding" in owner and len(shapes) and shape[0] != shape[-1] and f"{owner}.bias" not in shapes:
        return torch.randn(shape, generator=_generator(seed, name))
    weight: Any = shapes[f"{owner}.weight"]
    if len(weight) == 1:
        return torch.ones(shape) if name.endswith(".weight") else torch.zeros(shape)
    bound = prod(weight[1:]) ** -0.5
    return torch.rand(shape, generator=_generator(seed, name)).mul_(2 * bound).sub_(bound)

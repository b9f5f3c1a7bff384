"""From an original checkpoint file to a folder in diffusers layout."""

from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from edadm.errors import InputError
from edadm.files import atomic_folder
from edadm.systems.originals import architectures
from edadm.systems.originals.architectures import AVERAGED, PUBLISHED, SCALES, Widths
from edadm.systems.originals.parts import (
    CLASS_ROWS,
    FIRST_STAGE,
    TEXT,
    UNET,
    Part,
    check_kind,
    parts,
    unet_place,
    write,
    write_classes,
)
from edadm.systems.originals.reading import read_state_dict

NAMED = 3  # so many keys does an error name

# what the originals keep beside the weights: the noise schedule, the average's bookkeeping, the running numbers
_BUFFERS = {
    *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod"),
    *("log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "logvar"),
    *("posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
    *("lvlb_weights", "scale_factor", "model_ema.decay", "model_ema.num_updates"),
    f"{TEXT}text_model.embeddings.position_ids",
}


def _measure(kind: str, state: Mapping[str, Tensor]) -> Widths:
    """The widths that the weights say; InputError naming the keys when it lacks one of those that say them."""
    place = unet_place(kind)
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
        sizes["classes"] -= 1  # the last row is for no class
    empty = [sources[name][0] for name, size in sizes.items() if size < 1]
    if empty:
        raise InputError(f"not a {kind} checkpoint: {_list(empty, 'empty')}")
    return Widths(**sizes)


def _list(names: Iterable[str], what: str) -> str:
    names = sorted(names)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more} {'is' if len(names) == 1 else 'are'} {what}"


def _known(kind: str, key: str) -> bool:
    """Whether an original of this kind may hold ``key`` though no part is made of it."""
    if key in _BUFFERS or key.startswith(f"{FIRST_STAGE}loss."):  # the networks that the first stage's loss used
        return True
    if kind in AVERAGED:
        return key.startswith(UNET)  # the weights as trained, beside their average
    return kind != "cifar10-ddim" and key.startswith("model_ema.")


def _wanted(found: list[Part], widths: Widths) -> dict[str, tuple[int, ...]]:
    """Every key that the parts need, and its shape but for trailing axes of size 1."""
    wanted = {CLASS_ROWS: (widths.classes + 1, widths.context)} if widths.classes else {}
    for part in found:
        for name, (key, third) in part.sources.items():
            first, *others = part.shapes[name]
            wanted[key] = (first if third is None else 3 * first, *others)
    return wanted


def _check_keys(kind: str, state: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """InputError unless the file holds just what is wanted, in the right shapes and with finite values."""
    missing = wanted.keys() - state.keys()
    unused = [key for key in state if key not in wanted and not _known(kind, key)]
    if missing or unused:
        problems = [_list(missing, "missing")] if missing else []
        problems += [_list(unused, "not known")] if unused else []
        raise InputError(f"not a {kind} checkpoint: {'; '.join(problems)}")
    for key, shape in wanted.items():
        found = tuple(state[key].shape)
        if found[: len(shape)] != shape or prod(found) != prod(shape):
            raise InputError(f"not a {kind} checkpoint: {key} has shape {found}, not {shape}")
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


def _tensor(state: Mapping[str, Tensor], part: Part, name: str) -> Tensor:
    """A parameter as the folder holds it: float32, contiguous."""
    key, third = part.sources[name]
    tensor = state[key].detach()
    if third is not None:  # rows by head, in a head by third, as in QKVAttentionLegacy
        heads = part.heads[name.partition(".to_")[0]]
        tensor = tensor.reshape(heads, 3, -1, *tensor.shape[1:])[:, third]
    return tensor.reshape(part.shapes[name]).float().contiguous()


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
    check_kind(kind)
    state = read_state_dict(source)
    try:
        _check_schedule(kind, state)
        widths, scale = _measure(kind, state), _scale(kind, state)
        found = parts(kind, widths, scale, side)
        _check_keys(kind, state, _wanted(found, widths))
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    with atomic_folder(out) as folder:
        write(folder, kind, found, lambda part: {name: _tensor(state, part, name) for name in part.shapes})
        if widths.classes:
            write_classes(folder, state[CLASS_ROWS])

"""What a U-Net is called with: which tensors, under which names, in which order.

=============  =======================  ==============================================================
name           shape                    of
=============  =======================  ==============================================================
``x``          (n, c, h, w) float32     every network
``t``          (n,) int64 or float32    every network; float32 where a scheduler's steps have fractions
``context``    (n, tokens, width)       ``UNet2DConditionModel``: ``encoder_hidden_states``
``label``      (n,) int64               ``UNet2DModel`` with ``num_class_embeds``: ``class_labels``
``text_embeds``  (n, width) float32     the layout of SDXL (``addition_embed_type: text_time``)
``time_ids``   (n, sizes) float32       the same: image size, crop and target size
=============  =======================  ==============================================================
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edadm.errors import InputError

NAMES = ("x", "t", "context", "label", "text_embeds", "time_ids")
FINAL = "final"  # of a calibration set: what trajectories ended with (n, c, h, w), no argument of the network
ADDED = ("text_embeds", "time_ids")  # what diffusers passes as added_cond_kwargs
# settings of diffusers' U-Nets that ask for inputs which are not among these
_FURTHER = ("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim")


def arguments(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the tensors that a U-Net of this diffusers configuration takes, in their order.

    InputError when it needs others than those of this module.

    >>> arguments({"_class_name": "UNet2DConditionModel", "addition_embed_type": "text_time"})
    ('x', 't', 'context', 'text_embeds', 'time_ids')
    """
    kind = config["_class_name"]
    own, known = {
        "UNet2DModel": ((), {"num_class_embeds": ("label",)}),
        "UNet2DConditionModel": (("context",), {"addition_embed_type": ADDED}),
    }.get(kind, (None, {}))
    if own is None:
        raise InputError(f"a {kind} cannot be quantized, only a UNet2DModel or a UNet2DConditionModel")
    for key in _FURTHER:
        value = config.get(key)
        if value is None:
            continue
        if key not in known or (key == "addition_embed_type" and value != "text_time"):
            raise InputError(f"a {kind} with {key} {value!r} takes inputs that are not known here")
        own = (*own, *known[key])
    return ("x", "t", *own)


def shapes(config: Mapping[str, Any], size: tuple[int, int] | None = None) -> dict[str, list[int]]:
    """The shapes of :func:`arguments`, -1 where any size will do, for images of ``size`` (by default its own).

    InputError when the configuration does not say them.
    """
    size = size or config["sample_size"]
    if size is None:
        raise InputError("the U-Net's sample_size is null; put the side of what it takes into its config.json")
    height, width = size if isinstance(size, list | tuple) else (size, size)
    known = {"x": [-1, config["in_channels"], height, width], "t": [-1], "label": [-1]}
    names = arguments(config)
    if "context" in names:
        known["context"] = [-1, -1, _width(config["cross_attention_dim"])]
    if "time_ids" in names:
        sizes = 6  # height and width of image, crop and target; the rest of the linear's input is the text's
        text = config["projection_class_embeddings_input_dim"] - sizes * config["addition_time_embed_dim"]
        known |= {"text_embeds": [-1, text], "time_ids": [-1, sizes]}
    return {name: known[name] for name in names}


def fits(value: Tensor, shape: Sequence[int]) -> bool:
    """Whether a tensor is of ``shape``, in which -1 is any size."""
    return value.dim() == len(shape) and all(size in (-1, own) for size, own in zip(shape, value.shape, strict=True))


def check_inputs(config: Mapping[str, Any], inputs: Sequence[Tensor]) -> None:
    """InputError unless a U-Net of this configuration takes ``inputs``, (n, …) each, of any size of image."""
    wanted = shapes(config, tuple(inputs[0].shape[2:]))
    if len(inputs) != len(wanted) or not all(map(fits, inputs, wanted.values())):
        found = ", ".join(str(tuple(value.shape[1:])) for value in inputs)
        taken = ", ".join(f"{name} {tuple(shape[1:])}" for name, shape in wanted.items())
        raise InputError(f"the inputs, of shapes {found} each, are of another system: the network takes {taken}")


def _width(widths: int | Sequence[int]) -> int:
    """The width of a context, which may be given block by block."""
    known = set(widths) if isinstance(widths, list | tuple) else {widths}
    if len(known) > 1:
        raise InputError(f"the U-Net takes contexts of several widths ({widths}), which is not known here")
    return known.pop()


def forward(unet: nn.Module, inputs: Sequence[Tensor], **settings: Any) -> Any:
    """Call a diffusers U-Net with the tensors ``inputs``, in the order of :func:`arguments`."""
    if len(inputs) == 5:  # only the layout of SDXL has so many
        settings["added_cond_kwargs"] = dict(zip(ADDED, inputs[3:], strict=True))
    return unet(*inputs[:3], **settings)


def output(network: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    """What a network puts out: diffusers' wrap their tensor."""
    found = forward(network, inputs)
    return found if isinstance(found, Tensor) else found.sample


def bind(
    config: Mapping[str, Any],
    sample: Tensor,
    timestep: Tensor | float,
    encoder_hidden_states: Tensor | None = None,
    class_labels: Tensor | None = None,
    *,
    added_cond_kwargs: Mapping[str, Tensor] | None = None,
    **further: Any,
) -> dict[str, Tensor]:
    """The tensors by name, on the CPU, of a call in the form in which diffusers' pipelines make it.

    ``timestep`` may be a number, a tensor without axes or one of (1,) or (n,). InputError for an input that is missing,
    or that this network cannot take (``further``: ControlNet's residuals, attention masks and so on).
    """
    names = arguments(config)
    if len(sample) == 0:
        raise InputError("the U-Net is called with no samples")
    if "label" in names and class_labels is None:  # the third positional argument of a UNet2DModel
        encoder_hidden_states, class_labels = None, encoder_hidden_states
    given = {"context": encoder_hidden_states, "label": class_labels} | dict(added_cond_kwargs or {})
    unknown = [key for key, value in (given | further).items() if key not in names and value not in (None, {})]
    if unknown:
        raise InputError(f"the U-Net is called with {unknown[0]}, which a quantized U-Net of this kind does not take")
    missing = [name for name in names[2:] if given.get(name) is None]
    if missing:
        raise InputError(f"the U-Net is called without {missing[0]}")
    t = torch.as_tensor(timestep).detach().cpu().reshape(-1)
    if t.is_floating_point():
        t = t.long() if torch.equal(t, t.round()) else t.float()
    known = config.get("num_train_timesteps")
    if config.get("time_embedding_type") == "learned" and (
        t.is_floating_point() or not 0 <= t.min() <= t.max() < known
    ):
        raise InputError(f"timestep: {timestep} is not among the {known} whole steps that the U-Net has learned")
    values = {"x": sample, "t": t.expand(len(sample))} | {name: given[name] for name in names[2:]}
    if "label" in names:
        values["label"] = _labels(class_labels, config["num_class_embeds"], len(sample))
    return {
        name: value.detach().to("cpu", torch.float32 if value.is_floating_point() else torch.int64)
        for name, value in values.items()
    }


def _labels(labels: Tensor, classes: int, rows: int) -> Tensor:
    """One label a row, given for each or for all; InputError when there is no such class, which engines do not say."""
    wrong = [label for label in labels.flatten().tolist() if not 0 <= label < classes]
    if wrong:
        raise InputError(f"class_labels: there is no class {wrong[0]}; allowed: 0 to {classes - 1}")
    if labels.numel() not in (1, rows):
        raise InputError(f"class_labels: {labels.numel()} of them for {rows} samples")
    return labels.reshape(-1).expand(rows)

"""Tuning of what is stored in float, once every unit is learned: on the output of the whole network.

Units are learned one by one, so what their errors have in common passes through all of them; much of it is a bias that
images show. With the integers fixed, this learns the scales of weights and activations, the biases, and the weights
and biases of normalisations, so that the quantized network gives the full-precision network's output. Neither the size
of the model nor its speed changes. Scales alone are what PEQA learns (Kim et al. 2023), normalisations alone what norm
tweaking does (Li et al. 2024), both for language models.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from diffusers.models.embeddings import GaussianFourierProjection
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from tqdm import trange

from edadm.errors import InputError
from edadm.params import Reconstruction
from edadm.quantization.cache import Cache
from edadm.quantization.fbr import STEP_FLOOR, UnitResult, loss_curve, output_error, seed
from edadm.quantization.layers import set_mode, simulated, simulated_layers
from edadm.quantization.network import output
from edadm.quantization.units import Unit


@torch.enable_grad()
def tune(
    network: nn.Module,
    units: list[Unit],
    batches: list[tuple[Tensor, ...]],
    settings: Reconstruction,
    cache: Cache,
) -> UnitResult:
    """Learn the floats of a quantized ``network`` in place, from calibration ``batches`` of its inputs.

    The loss is the mean squared error of the output. Rates fall along a cosine from ``settings.rate_tuning``, which is
    relative for scales. Raises InputError when the loss is not finite.
    """
    rows = [torch.cat(parts) for parts in zip(*batches, strict=True)]
    with torch.no_grad():
        set_mode(network, "float")
        target = cache.gather((output(network, inputs) for inputs in batches), len(rows[0]))
        set_mode(network, "quantized")
    before = _error(network, batches, target)
    layers = list(simulated_layers(network).values())
    steps = [part.input_scale for part in simulated(network).values()]
    scales = [layer.weight_scale for layer in layers]
    growths = [torch.zeros_like(scale) for scale in scales]  # a scale is learned as exp(growth) times what it was
    others = [layer.bias for layer in layers if layer.bias is not None] + _normalisations(network)
    learned = [*steps, *growths, *others]
    for value in learned:
        value.requires_grad_(True)
    rate = settings.rate_tuning
    groups = [{"params": [step], "lr": rate * step.item()} for step in steps]
    optimizer = torch.optim.Adam([*groups, {"params": [*growths, *others]}], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.tuning)
    generator = torch.Generator().manual_seed(seed(settings, len(units)))
    losses = []

    def grow() -> None:
        for layer, scale, growth in zip(layers, scales, growths, strict=True):
            layer.weight_scale = scale * growth.exp()

    with _checkpointed(units):
        for iteration in trange(1, settings.tuning + 1, desc="tuning", unit="step"):
            chosen = torch.randint(len(target), (settings.batch,), generator=generator)
            grow()
            found = output(network, tuple(row[chosen] for row in rows))
            loss = (found - target[chosen].to(found.device)).square().mean()
            if not torch.isfinite(loss):
                raise InputError(f"the tuning loss is {loss.item()} at iteration {iteration}; lower rate_tuning")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            for step in steps:
                step.data.clamp_min_(STEP_FLOOR)
            losses.append(loss.item())
    for value in learned:
        value.requires_grad_(False)
    grow()
    return UnitResult("network", "network", loss_curve(losses), before, _error(network, batches, target))


@contextmanager
def _checkpointed(units: list[Unit]) -> Iterator[None]:
    """Within it, blocks keep no activations but compute them again: of all blocks together they may not fit."""
    blocks = [unit.module for unit in units if unit.kind == "block"]
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _normalisations(network: nn.Module) -> list[Tensor]:
    """The vectors among the parameters outside quantized layers: weights and biases of normalisations.

    They become the network's own: it may share them with the one that it was made of.
    """
    inside = {id(value) for part in simulated(network).values() for value in part.parameters()}
    found = []
    for module in network.modules():
        if isinstance(module, GaussianFourierProjection):  # frequencies, which are no learned ones
            continue
        for name, value in list(module.named_parameters(recurse=False)):
            if id(value) not in inside and value.dim() == 1:
                found.append(nn.Parameter(value.detach().clone(), requires_grad=False))
                setattr(module, name, found[-1])
    return found


@torch.no_grad()
def _error(network: nn.Module, batches: list[tuple[Tensor, ...]], target: Tensor) -> float:
    """The mean squared error of the output over all ``batches``."""
    outputs = (output(network, inputs).cpu() for inputs in batches)
    return output_error(outputs, target.split([len(inputs[0]) for inputs in batches]))

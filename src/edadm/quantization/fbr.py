"""FBR: fine-grained block reconstruction (method.md B), with AdaRound and learned activation steps.

Unit by unit in execution order, the rounding of the weights and the step sizes of the activations are learned so that
the quantized unit, fed by its quantized predecessors, gives the full-precision unit's output:
``L = L_block + gamma * sum of L_layer`` over the unit's layers but the last, with
``L(a, b) = mean over samples and places of sum over channels (a - b)^2``. gamma = 0 is plain block reconstruction. With
``fisher``, every squared error has the weight that ``fisher.py`` finds for its place.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from edadm.errors import InputError
from edadm.params import Recipe, Reconstruction
from edadm.quantization import fisher
from edadm.quantization.cache import Cache
from edadm.quantization.layers import SimulatedLayer, set_mode, simulated, simulated_layers
from edadm.quantization.network import forward
from edadm.quantization.quantizer import coin_flips
from edadm.quantization.units import Unit
from edadm.quantization.walk import PausedPasses, Rows, intercepted

CURVE_POINTS = 10  # of the loss curve, per unit
STEP_FLOOR = 1e-8
LEARNED = ("weight_integers", "bias", "input_scale")  # what learning sets, of layers and operands


@dataclass(frozen=True)
class UnitResult:
    """How learning one unit went."""

    unit: str
    kind: str
    curve: list[tuple[int, float]]  # (iteration, loss)
    error_before: float  # mean squared error of the unit's output with nearest rounding
    error_after: float


class _SquaredError(torch.autograd.Function):
    """By hand, because autograd's chain makes four tensors of the size of ``a`` where two will do."""

    @staticmethod
    def forward(ctx, a, b, weight):  # noqa: ANN001, ANN205, D102
        difference = a - b
        ctx.save_for_backward(difference, weight)
        squares = difference.square() if weight is None else difference.square().mul_(weight)
        sums = squares.sum(_channel_axis(a))
        ctx.places = sums.numel()
        return sums.mean()

    @staticmethod
    def backward(ctx, gradient):  # noqa: ANN001, ANN205, D102
        difference, weight = ctx.saved_tensors
        slope = 2 * gradient / ctx.places
        return difference * (slope if weight is None else slope * weight), None, None


def squared_error(a: Tensor, b: Tensor, weight: Tensor | None = None) -> Tensor:
    """Squared differences, summed over channels (dim 1 of images, else the last), mean over the rest; a scalar.

    ``weight`` has the shape of one sample. Differentiable in ``a``, not in ``b``.
    """
    return _SquaredError.apply(a, b, weight)


@torch.no_grad()
def initialise(unet: nn.Module, batches: list[tuple[Tensor, ...]], recipe: Recipe) -> None:
    """Set weight scales and, from all calibration batches in full precision, activation scales and zero points.

    Ranges come from histograms over the whole set, so the order of the batches does not matter.
    """
    parts = simulated(unet)
    set_mode(unet, "range")
    for inputs in tqdm(batches, desc="activation ranges", unit="batch"):
        forward(unet, inputs)
    for name, part in parts.items():
        if not (math.isfinite(part.observed.smallest) and math.isfinite(part.observed.largest)):
            raise InputError(f"{name}: its input held NaN or infinity during calibration")
    set_mode(unet, "histogram")
    for inputs in tqdm(batches, desc="activation histograms", unit="batch"):
        forward(unet, inputs)
    for part in parts.values():
        part.set_range(recipe.ranges)
    for layer in simulated_layers(unet).values():
        layer.set_weight_range(recipe.ranges)
    set_mode(unet, "quantized")


class _Outputs:
    """Collects what the given layers put out during a forward pass."""

    def __init__(self, layers: Iterable[SimulatedLayer]) -> None:
        self.layers = list(layers)
        self.seen: list[Tensor] = []

    def __enter__(self) -> "_Outputs":
        self.hooks = [layer.register_forward_hook(self._keep) for layer in self.layers]
        return self

    def _keep(self, _: nn.Module, __: tuple, output: Tensor) -> None:
        self.seen.append(output)

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()


def _run(
    unit: Unit, rows: Rows, mode: str, cache: Cache, inner: Iterable[SimulatedLayer] = ()
) -> tuple[Tensor, list[Tensor]]:
    """The outputs of the unit, and of its layers ``inner``, for all calls of ``rows``, as tables."""
    set_mode(unit.module, mode)
    tables: list[Tensor] = []
    start = 0
    with _Outputs(inner) as outputs:
        for call in rows.calls:
            outputs.seen.clear()
            found = [unit.module(*call.args, **call.kwargs), *outputs.seen]
            tables = tables or [cache.empty((rows.count, *each.shape[1:]), each.dtype) for each in found]
            for table, each in zip(tables, found, strict=True):
                table[start : start + len(each)] = each
            start += len(found[0])
    return tables[0], tables[1:]


def _channel_axis(output: Tensor) -> int:
    """Where the channels are: 1 in images (n, c, h, w), else the last axis."""
    return 1 if output.dim() == 4 else output.dim() - 1


def correct_bias(unit: nn.Module, layers: list[SimulatedLayer], outputs: list[Tensor], targets: list[Tensor]) -> None:
    """Move the mean error of each output channel of a unit into the bias of the last of its ``layers`` that has one.

    ``outputs`` and ``targets`` are the quantized and the exact outputs, batch by batch. That layer's output is taken
    to reach the unit's divided by nothing but its output factor, as in every residual, attention and transformer block
    of diffusers. The per-channel form of the bias correction of Nagel et al. 2019 (section 4.2), empirical and on the
    unit's output.
    """
    last = next((layer for layer in reversed(layers) if layer.bias is not None), None)
    axis = _channel_axis(targets[0])
    if last is None or len(last.bias) != targets[0].shape[axis]:
        return
    places = sum(target.numel() for target in targets) / len(last.bias)
    errors = [(target - output).double().transpose(axis, -1) for output, target in zip(outputs, targets, strict=True)]
    factor = getattr(unit, "output_scale_factor", getattr(unit, "rescale_output_factor", 1.0))
    mean = sum(error.flatten(0, -2).sum(0) for error in errors) / places
    last.bias += (factor * mean).float().to(last.bias.device)


def output_error(outputs: Iterable[Tensor], targets: Sequence[Tensor]) -> float:
    """The mean squared error of all ``outputs``, batch by batch."""
    total = sum((a - b).square().sum().item() for a, b in zip(outputs, targets, strict=True))
    return total / sum(a.numel() for a in targets)


def loss_curve(losses: list[float]) -> list[tuple[int, float]]:
    """The losses of all iterations as (iteration, mean since the point before), in about ``CURVE_POINTS`` points."""
    every = max(1, len(losses) // CURVE_POINTS)
    parts = [losses[start : start + every] for start in range(0, len(losses), every)]
    return [(index * every + len(part), sum(part) / len(part)) for index, part in enumerate(parts)]


def seed(settings: Reconstruction, index: int) -> int:
    """Of the random choices in learning unit ``index``."""
    return settings.seed * 100_003 + index


class Learner:
    """Learns one unit's rounding and step sizes; ``sensitivity`` has the weights of squared errors, by module."""

    def __init__(self, unit: Unit, settings: Reconstruction, index: int, sensitivity: Mapping[str, Tensor]) -> None:
        self.unit, self.settings = unit, settings
        named = simulated_layers(unit.module)
        prefix = len(unit.name) + 1
        self.layers = [named[name[prefix:]] if name != unit.name else named[""] for name in unit.layers]
        self.parts = list(simulated(unit.module).values())  # the layers, and the operands of attentions
        self.inner = self.layers[:-1] if settings.layer_loss else []
        self.weight = sensitivity.get(unit.name)
        self.inner_weights = [sensitivity.get(name) for name in unit.layers[: len(self.inner)]]
        self.generator = torch.Generator().manual_seed(seed(settings, index))

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        settings = self.settings
        alphas = [layer.start_rounding() for layer in self.layers]
        steps = [part.input_scale.requires_grad_(True) for part in self.parts]
        return [
            torch.optim.Adam(alphas, lr=settings.rate_rounding),
            torch.optim.Adam(steps, lr=settings.rate_steps),
        ]

    def _penalty(self, progress: float) -> Tensor:
        """AdaRound's pull towards 0 or 1: sum of 1 - |2h - 1|^beta, beta from 20 to 2 after a fifth of the run."""
        if progress < 0.2:
            return torch.zeros(())
        beta = 20 + (2 - 20) * (progress - 0.2) / 0.8
        return sum((1 - (2 * layer.soft_fraction() - 1).abs().pow(beta)).sum() for layer in self.layers)

    def learn(
        self, full: Rows, quantized: Rows, target: Tensor, layer_targets: list[Tensor]
    ) -> list[tuple[int, float]]:
        """Run the iterations and round hard; returns the loss curve. Raises InputError when the loss is not finite."""
        settings = self.settings
        set_mode(self.unit.module, "quantized")
        optimizers = self._optimizers()
        schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, settings.iterations) for o in optimizers]
        for part in self.parts:
            part.drop, part.generator = settings.activation_drop, self.generator
        losses = []
        with torch.enable_grad(), _Outputs(self.inner) as inner:
            for iteration in range(1, settings.iterations + 1):
                rows = torch.randint(full.count, (settings.batch,), generator=self.generator)
                call, exact = quantized.take(rows), full.take(rows)
                mixed = coin_flips(call.args[0].shape, settings.input_mix, self.generator).to(full.device)
                first = exact.args[0].lerp(call.args[0], mixed)
                inner.seen.clear()
                output = self.unit.module(first, *call.args[1:], **call.kwargs)
                loss = squared_error(output, target[rows].to(full.device), self.weight)
                for seen, wanted, weight in zip(inner.seen, layer_targets, self.inner_weights, strict=True):
                    loss = loss + settings.layer_loss * squared_error(seen, wanted[rows].to(full.device), weight)
                if settings.rounding_penalty:
                    loss = loss + settings.rounding_penalty * self._penalty(iteration / settings.iterations)
                if not torch.isfinite(loss):
                    raise InputError(
                        f"{self.unit.name}: the reconstruction loss is {loss.item()} at iteration {iteration}; "
                        "lower rate_rounding or rate_steps"
                    )
                for optimizer in optimizers:
                    optimizer.zero_grad()
                loss.backward()
                for optimizer, schedule in zip(optimizers, schedules, strict=True):
                    optimizer.step()
                    schedule.step()
                for part in self.parts:
                    part.input_scale.data.clamp_min_(STEP_FLOOR)
                losses.append(loss.item())
        for layer in self.layers:
            layer.harden_rounding()
        for part in self.parts:
            part.input_scale.requires_grad_(False)
            part.drop, part.generator = 0.0, None
        return loss_curve(losses)


def unit_state(unit: Unit) -> dict[str, Tensor]:
    """What learning decides in a unit: the weight integers, biases and step sizes of its layers."""
    return {
        f"{name}.{key}": getattr(part, key).detach().clone()
        for name, part in simulated(unit.module).items()
        for key in LEARNED
        if getattr(part, key, None) is not None
    }


def load_unit_state(unit: Unit, state: dict[str, Tensor]) -> None:
    """Put a state of ``unit_state`` back."""
    for name, part in simulated(unit.module).items():
        for key in LEARNED:
            if getattr(part, key, None) is not None:
                getattr(part, key).copy_(state[f"{name}.{key}"])


def _learned(learner: Learner, full: Rows, quantized: Rows, cache: Cache) -> tuple[UnitResult, Tensor, Tensor]:
    """How learning a unit went, its exact outputs and its quantized ones."""
    unit, sizes = learner.unit, [len(call.args[0]) for call in full.calls]
    target, layer_targets = _run(unit, full, "float", cache, learner.inner)
    targets = target.split(sizes)
    before = output_error(_run(unit, quantized, "quantized", cache)[0].split(sizes), targets)
    curve = learner.learn(full, quantized, target, layer_targets)
    del layer_targets
    output, _ = _run(unit, quantized, "quantized", cache)
    if learner.settings.bias_correction:
        correct_bias(unit.module, learner.layers, output.split(sizes), targets)
        output, _ = _run(unit, quantized, "quantized", cache)
    result = UnitResult(unit.name, unit.kind, curve, before, output_error(output.split(sizes), targets))
    return result, target, output


@torch.no_grad()
def reconstruct(
    unet: nn.Module,
    units: list[Unit],
    batches: list[tuple[Tensor, ...]],
    settings: Reconstruction,
    restore: Callable[[int], tuple[dict[str, Tensor], UnitResult] | None],
    keep: Callable[[int, dict[str, Tensor], UnitResult], None],
    cache: Cache,
) -> list[UnitResult]:
    """Learn every unit of an initialised ``unet`` in place, from calibration ``batches`` of network inputs.

    ``restore(index)`` gives a finished unit's state and result, or None; ``keep`` is called as a unit is finished: so
    a run that was killed goes on at the unit where it died, and ends with the same bytes.
    """
    results = []
    sensitivity = _sensitivity(unet, units, batches, settings) if settings.fisher else {}
    sizes = [len(inputs[0]) for inputs in batches]
    with intercepted(units):
        full, quantized = (PausedPasses(unet, batches, cache) for _ in range(2))
        for index, unit in enumerate(tqdm(units, desc="reconstruction", unit="unit")):
            learner = Learner(unit, settings, index, sensitivity)
            found = restore(index)
            if found is None:
                result, target, output = _learned(learner, full.rows, quantized.rows, cache)
                keep(index, unit_state(unit), result)
            else:
                state, result = found
                load_unit_state(unit, state)
                target, _ = _run(unit, full.rows, "float", cache)
                output, _ = _run(unit, quantized.rows, "quantized", cache)
            results.append(result)
            for passes, given in ((full, target), (quantized, output)):
                passes.resume([part.to(batches[0][0].device) for part in given.split(sizes)])
    set_mode(unet, "quantized")
    return results


def _sensitivity(
    unet: nn.Module, units: list[Unit], batches: list[tuple[Tensor, ...]], settings: Reconstruction
) -> dict[str, Tensor]:
    """The weights of the squared errors of every unit and every layer."""
    modules = {unit.name: unit.module for unit in units} | simulated_layers(unet)
    set_mode(unet, "float")
    found = fisher.sensitivities(unet, modules, batches, settings.seed)
    set_mode(unet, "quantized")
    return found

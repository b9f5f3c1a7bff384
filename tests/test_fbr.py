"""FBR on a tiny U-Net: units, gradients, gains, resuming and failing."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

from edadm.errors import InputError
from edadm.params import Recipe, Reconstruction
from edadm.quantization import fbr
from edadm.quantization.cache import Cache
from edadm.quantization.layers import COUNTED, Simulated, set_mode, simulated, simulated_layers
from edadm.quantization.quantizer import weight_grid
from edadm.quantization.reconstruction import UnitCheckpoints, quantize
from edadm.quantization.units import find_units, simulate
from edadm.quantization.walk import Call, PausedPasses, Rows, intercepted

LEARNED = Reconstruction(method="fbr", iterations=6, batch=8, rate_rounding=0.05, rate_steps=1e-4, bias_correction=True)


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    return tiny.unet()


@pytest.fixture(scope="module")
def data() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(64, 1, 8, 8, generator=generator),
        "t": torch.randint(0, 1000, (64,), generator=generator),
    }


def recipe(weights: int = 3, settings: Reconstruction = LEARNED) -> Recipe:
    return Recipe(weights=weights, activations=8, reconstruction=settings)


def prepared(unet: nn.Module, data: dict[str, torch.Tensor]) -> tuple[nn.Module, list, list]:
    model = copy.deepcopy(unet)
    batches = list(zip(data["x"].split(16), data["t"].split(16), strict=True))
    simulate(model, tuple(value[:1] for value in batches[0]), recipe())
    units = find_units(model, tuple(value[:1] for value in batches[0]))
    fbr.initialise(model, batches, recipe())
    return model, units, batches


def test_units_cover_every_layer_once_in_execution_order(unet: nn.Module, data: dict[str, torch.Tensor]) -> None:
    model, units, batches = prepared(unet, data)
    owned = [name for unit in units for name in unit.layers]
    assert sorted(owned) == sorted(simulated_layers(model))
    called: list[str] = []
    for name, layer in simulated_layers(model).items():
        layer.register_forward_pre_hook(lambda *_, name=name: called.append(name))
    model(*batches[0])
    assert called == owned
    assert [unit.name for unit in units][:3] == ["time_embedding.linear_1", "time_embedding.linear_2", "conv_in"]


def test_skip_shortcuts_are_split_where_the_skip_begins(unet: nn.Module, data: dict[str, torch.Tensor]) -> None:
    model, _, _ = prepared(unet, data)
    shortcut = model.up_blocks[1].resnets[1].conv_shortcut
    assert shortcut.channels == 8  # hidden 8 channels, skip 8 channels
    assert model.up_blocks[0].resnets[0].conv_shortcut.channels == 16


def test_paused_passes_give_the_plain_forward(unet: nn.Module, data: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """What they hold meanwhile lies in tables, here in files."""
    model, units, batches = prepared(unet, data)
    set_mode(model, "float")  # quantized, round-off could pass a rounding's edge
    cache = Cache(tmp_path, budget=0)
    with torch.no_grad():
        expected = torch.cat([model(*inputs).sample for inputs in batches])
        with intercepted(units):
            paused = PausedPasses(model, batches, cache)
            for unit in units:
                calls = paused.rows.calls
                assert len(calls) == len(batches) and cache.mapped > 0
                for values in zip(*(call.args for call in calls), strict=True):
                    assert len({value.untyped_storage().data_ptr() for value in values}) == 1
                outputs = [unit.module(*call.args, **call.kwargs) for call in calls]
                paused.resume(outputs)
    assert paused.rows.calls == []
    torch.testing.assert_close(torch.cat(outputs), expected)
    assert "forward" not in vars(units[0].module)


@pytest.fixture(params=["unet", "conditional"])
def every_kind(request: pytest.FixtureRequest) -> tuple[nn.Module, list, list]:
    """An initialised network with its attention's operands quantized, its units and batches: of images, of tokens."""
    model = tiny.unet() if request.param == "unet" else tiny.conditional_unet()
    inputs = tiny.inputs(32, channels=model.config.in_channels)
    inputs += () if request.param == "unet" else (tiny.context(32, 3),)
    batches = list(zip(*(value.split(16) for value in inputs), strict=True))
    with_operands = Recipe(weights=3, activations=8, attention=8, reconstruction=LEARNED)
    example = tuple(value[:1] for value in batches[0])
    simulate(model, example, with_operands)
    fbr.initialise(model, batches, with_operands)
    return model, find_units(model, example), batches


def gradients(
    network: tuple[nn.Module, list, list], settings: Reconstruction, monkeypatch: pytest.MonkeyPatch
) -> dict[str, tuple[float, float]]:
    """Of the last loss: the largest of each layer's rounding (0 for an operand), and that of its or its step size."""
    model, units, batches = network
    rounding: dict[nn.Module, float] = {}
    harden = fbr.SimulatedLayer.harden_rounding

    def look(layer: fbr.SimulatedLayer) -> None:
        rounding[layer] = largest(layer.alpha)
        harden(layer)

    def largest(parameter: nn.Parameter) -> float:
        return 0.0 if parameter.grad is None else parameter.grad.abs().max().item()

    monkeypatch.setattr(fbr.SimulatedLayer, "harden_rounding", look)
    fbr.reconstruct(model, units, batches, settings, lambda _: None, lambda *_: None, Cache())
    return {name: (rounding.get(part, 0.0), largest(part.input_scale)) for name, part in simulated(model).items()}


def test_gradients_reach_every_rounding_and_step(
    every_kind: tuple[nn.Module, list, list], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a block's own loss: in residual blocks, attention, transformer blocks, single layers."""
    model, units, _ = every_kind
    found = gradients(every_kind, replace(LEARNED, iterations=1, layer_loss=0.0), monkeypatch)
    layers = simulated_layers(model)
    assert found.keys() == simulated(model).keys() and found.keys() > layers.keys()
    assert [name for name, (_, step) in found.items() if not step] == []
    assert [name for name in layers if not found[name][0]] == []
    assert {type(unit.module).__name__ for unit in units} >= {"ResnetBlock2D"}


def test_the_layer_loss_alone_reaches_every_layer_but_the_last(
    every_kind: tuple[nn.Module, list, list], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The released code's does not: it compares outputs that carry no gradient (method.md B.3)."""
    _, units, _ = every_kind
    monkeypatch.setattr(fbr, "_sensitivity", lambda *_: {unit.name: torch.zeros(()) for unit in units})
    found = gradients(every_kind, replace(LEARNED, iterations=1, layer_loss=1.0, fisher=True), monkeypatch)
    blocks = [unit for unit in units if len(unit.layers) > 1]
    assert {type(unit.module).__name__ for unit in blocks} >= {"ResnetBlock2D"} and len(blocks) > 3
    for unit in blocks:
        reached = tuple(name for name in unit.layers if min(found[name]))
        assert reached == unit.layers[:-1], unit.name


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("shape", "axis"), [((4, 6, 5, 3), 1), ((4, 7, 6), 2), ((4, 6), 1)])
def test_the_squared_error_and_its_gradient_are_autograds(shape: tuple[int, ...], axis: int, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, weight = (torch.randn(size, generator=generator) for size in (shape, shape, shape[1:]))
    losses, gradients = [], []
    for plain in (False, True):
        values = a.clone().requires_grad_()
        if plain:
            loss = ((values - b) ** 2 * (weight if weighted else 1)).sum(axis).mean()
        else:
            loss = fbr.squared_error(values, b, weight if weighted else None)
        (0.8 * loss).backward()
        losses.append(loss.detach())
        gradients.append(values.grad)
    assert torch.allclose(*losses, rtol=1e-6)
    assert torch.allclose(*gradients, rtol=1e-6)


@pytest.mark.parametrize("layer_loss", [0.0, 0.7])
def test_the_loss_is_the_blocks_and_gamma_times_that_of_its_inner_layers(
    unet: nn.Module, data: dict[str, torch.Tensor], layer_loss: float
) -> None:
    """The first loss of a block, against the float block: at first the soft rounding is the float weight."""
    model, units, _ = prepared(unet, data)
    unit = next(unit for unit in units if unit.name == "down_blocks.0.resnets.0")
    original = unet.get_submodule(unit.name)
    generator = torch.Generator().manual_seed(4)
    x, emb = torch.randn(8, 8, 8, 8, generator=generator), torch.randn(8, 32, generator=generator)
    settings = Reconstruction(
        method="fbr", iterations=1, batch=8, layer_loss=layer_loss, input_mix=1.0, activation_drop=0.0
    )
    learner = fbr.Learner(unit, settings, 0, {})
    rows = Rows([Call((x, emb), {})], 8, Cache())
    with torch.no_grad():
        target, layer_targets = fbr._run(unit, rows, "float", Cache(), learner.inner)
    assert torch.equal(target, original(x, emb))
    assert len(layer_targets) == (2 if layer_loss else 0)

    # the rows that learning draws: the loss of these is computed here, with forward hooks on copies of the layers
    drawn = torch.randint(8, (8,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        simulated = copy.deepcopy(unit.module)
        layers = list(simulated_layers(simulated).values())
        for layer in layers:
            layer.mode = "quantized"
            scaled = layer.layer.weight / layer.weight_scale.view(-1, *[1] * (layer.layer.weight.dim() - 1))
            low, high = weight_grid(layer.bits)
            layer.weight_integers.copy_(scaled.clamp(low, high))
        found: dict[str, list[torch.Tensor]] = {"conv1": [], "time_emb_proj": []}
        for name in found:
            for block in (simulated, original):
                hook = lambda _, __, output, name=name: found[name].append(output)  # noqa: E731
                block.get_submodule(name).register_forward_hook(hook)
        expected = (simulated(x[drawn], emb[drawn]) - original(x[drawn], emb[drawn])).square().sum(1).mean()
        for ours, exact in found.values():
            expected += layer_loss * (ours - exact).square().sum(1).mean()
    ((_, loss),) = learner.learn(rows, rows, target, layer_targets)
    assert loss == pytest.approx(expected.item(), rel=1e-4)


class Block:
    """A unit's first loss on rows whose quantized inputs are far from the exact ones."""

    def __init__(self, unet: nn.Module, data: dict[str, torch.Tensor]) -> None:
        self.prepared = prepared(unet, data)

    def loss(self, **changes: object) -> float:
        settings = {"iterations": 1, "batch": 8, "layer_loss": 0.0, "input_mix": 0.0, "activation_drop": 0.0} | changes
        unit = next(u for u in copy.deepcopy(self.prepared)[1] if u.name == "down_blocks.0.resnets.0")
        generator = torch.Generator().manual_seed(4)
        exact, emb = torch.randn(8, 8, 8, 8, generator=generator), torch.randn(8, 32, generator=generator)
        full, other = (Rows([Call((x, emb), {})], 8, Cache()) for x in (exact, exact + 1))
        learner = fbr.Learner(unit, Reconstruction(method="fbr", **settings), 0, {})
        self.unit = unit
        with torch.no_grad():
            target, inner = fbr._run(unit, full, "float", Cache(), learner.inner)
        curve = learner.learn(full, other, target, inner)
        return curve[-1][1]


@pytest.fixture(scope="module")
def block(unet: nn.Module, data: dict[str, torch.Tensor]) -> Block:
    return Block(unet, data)


def test_activations_are_dropped_and_inputs_mixed(block: Block) -> None:
    """At first the soft rounding is the float weight: without quantized activations and inputs little is off."""
    off = block.loss(activation_drop=0.0)
    assert block.loss(activation_drop=1.0) < 0.05 * off  # what is left are weights beyond the range
    assert block.loss(activation_drop=0.5) == pytest.approx(off / 2, rel=0.5)
    mixed = [block.loss(activation_drop=1.0, input_mix=share) for share in (0.0, 0.5, 1.0)]
    assert mixed[0] < 0.05 * mixed[2] and mixed[0] < mixed[1] < mixed[2]


def test_the_rounding_penalty_is_adarounds(block: Block) -> None:
    """Nagel et al. 2020: sum of 1 - |2h - 1|^beta, where beta has come down to 2 at the end."""
    added = block.loss(rounding_penalty=0.01) - block.loss()
    expected = 0.0
    for layer in simulated_layers(block.unit.module).values():
        scaled = layer.layer.weight / layer.weight_scale.view(-1, *[1] * (layer.layer.weight.dim() - 1))
        fraction = scaled - scaled.floor()
        expected += (1 - (2 * fraction - 1).abs() ** 2).sum().item()
    assert added == pytest.approx(0.01 * expected, rel=0.02)


def test_both_rates_fall_along_half_a_cosine(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: dict[float, list[float]] = {}
    step = torch.optim.Adam.step

    def spy(optimizer: torch.optim.Adam, *args: object) -> object:
        (group,) = optimizer.param_groups
        rates.setdefault(group["initial_lr"], []).append(group["lr"])
        return step(optimizer, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    block.loss(iterations=4, rate_rounding=0.05, rate_steps=1e-4)
    assert rates.keys() == {0.05, 1e-4}
    for first, used in rates.items():
        assert used == pytest.approx([first * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)])


def test_every_activation_is_counted() -> None:
    """More than float32 counts to."""
    part, x = Simulated(8), torch.zeros(5 * COUNTED)
    x[0] = 1.0
    for part.mode in ("range", "histogram"):
        part.activations(x)
    assert part.observed.histogram.sum().item() == x.numel() > 2**24


def test_fisher_weights_reach_the_loss(unet: nn.Module, data: dict[str, torch.Tensor], tmp_path: Path) -> None:
    curves = []
    for fisher in (False, True):
        settings = Reconstruction(method="fbr", iterations=2, batch=8, fisher=fisher)
        results = quantize(copy.deepcopy(unet), data, recipe(settings=settings), tmp_path / str(fisher), "mark")
        curves.append([result.curve for result in results])
    assert all(plain != weighted for plain, weighted in zip(*curves, strict=True))


def test_tables_in_files_give_the_same_bytes(unet: nn.Module, data: dict[str, torch.Tensor], tmp_path: Path) -> None:
    in_memory, mapped = copy.deepcopy(unet), copy.deepcopy(unet)
    results = quantize(in_memory, data, recipe(), tmp_path / "memory", "mark")
    assert quantize(mapped, data, recipe(), tmp_path / "mapped", "mark", cache_bytes=50_000) == results
    assert list((tmp_path / "mapped" / "tables").iterdir()) == []
    assert not (tmp_path / "memory" / "tables").exists()
    for name, layer in simulated_layers(in_memory).items():
        other = mapped.get_submodule(name)
        assert torch.equal(layer.weight_integers, other.weight_integers), name
        assert torch.equal(layer.input_scale, other.input_scale), name


def test_reconstruction_lowers_the_error_on_data_it_has_not_seen(
    unet: nn.Module, data: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(2)
    fresh = torch.randn(64, 1, 8, 8, generator=generator), torch.randint(0, 1000, (64,), generator=generator)
    errors = {}
    for method in ("none", "fbr"):
        model = copy.deepcopy(unet)
        settings = Reconstruction(method=method, iterations=150, batch=16)
        quantize(model, data, recipe(settings=settings), tmp_path / method, "mark")
        with torch.no_grad():
            errors[method] = (model(*fresh).sample - unet(*fresh).sample).square().mean().item()
    assert errors["fbr"] < 0.8 * errors["none"]


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_bias_correction_removes_the_mean_error_of_every_channel(
    unet: nn.Module, data: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    """Of every unit's output as it was when it was corrected: run again, the odd integer flips on some processors.

    Residual and attention blocks divide their outputs by a ``scale``.
    """
    unet = copy.deepcopy(unet)
    for module in unet.modules():
        for factor in ("output_scale_factor", "rescale_output_factor"):
            if hasattr(module, factor):
                setattr(module, factor, scale)
    means: list[float] = []

    def spy(outputs: list[torch.Tensor], targets: list[torch.Tensor]) -> float:
        means.append((torch.cat(outputs) - torch.cat(targets)).transpose(0, 1).flatten(1).mean(1).abs().max().item())
        return error(outputs, targets)

    error = fbr.output_error
    monkeypatch.setattr(fbr, "output_error", spy)
    errors = {}
    for correct in (False, True):
        settings = Reconstruction(method="fbr", iterations=2, batch=8, bias_correction=correct)
        quantize(copy.deepcopy(unet), data, recipe(settings=settings), tmp_path / str(correct), "mark")
        errors[correct], means[:] = means[1::2], []  # after learning; before it, error is asked for too
    assert len(errors[True]) == len(errors[False]) == len(prepared(unet, data)[1])
    assert max(errors[True]) < 1e-6 and min(errors[False]) > 1e-4


def test_two_runs_and_a_resumed_run_agree_to_the_bit(
    unet: nn.Module, data: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    def states(model: nn.Module) -> dict[str, torch.Tensor]:
        return {
            f"{name}.{key}": getattr(layer, key)
            for name, layer in simulated_layers(model).items()
            for key in ("weight_integers", "weight_scale", "input_scale", "input_zero_point", "bias")
            if getattr(layer, key) is not None
        }

    first, second, resumed = (copy.deepcopy(unet) for _ in range(3))
    results = quantize(first, data, recipe(), tmp_path / "first", "mark")
    quantize(second, data, recipe(), tmp_path / "second", "mark")

    class Killed(Exception):
        pass

    with pytest.MonkeyPatch.context() as patch:
        keep = UnitCheckpoints.keep

        def dying(self: UnitCheckpoints, index: int, *rest: object) -> None:
            keep(self, index, *rest)
            if index == 4:
                raise Killed

        patch.setattr(UnitCheckpoints, "keep", dying)
        with pytest.raises(Killed):
            quantize(copy.deepcopy(unet), data, recipe(), tmp_path / "killed", "mark")
    learned: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        learn = fbr.Learner.learn
        patch.setattr(fbr.Learner, "learn", lambda self, *a: learned.append(self.unit.name) or learn(self, *a))
        again = quantize(resumed, data, recipe(), tmp_path / "killed", "mark")
    assert learned == [result.unit for result in results[5:]]
    assert again == results
    for other in (second, resumed):
        for name, value in states(first).items():
            assert torch.equal(value, states(other)[name]), name


def test_units_of_other_inputs_are_not_taken_over(
    unet: nn.Module, data: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    quantize(copy.deepcopy(unet), data, recipe(), tmp_path, "one")
    assert UnitCheckpoints(tmp_path, "one").restore(0) is not None
    assert UnitCheckpoints(tmp_path, "two").restore(0) is None
    path = tmp_path / "unit-0000.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    assert UnitCheckpoints(tmp_path, "one").restore(0) is None


def test_ranges_do_not_depend_on_the_order_of_the_batches(unet: nn.Module, data: dict[str, torch.Tensor]) -> None:
    scales = []
    for flip in (False, True):
        model = copy.deepcopy(unet)
        batches = list(zip(data["x"].split(16), data["t"].split(16), strict=True))
        simulate(model, tuple(value[:1] for value in batches[0]), recipe())
        fbr.initialise(model, batches[::-1] if flip else batches, recipe())
        layers = simulated_layers(model).values()
        scales.append([(layer.input_scale.item(), layer.input_zero_point.item()) for layer in layers])
    assert scales[0] == scales[1]


def test_bad_weights_and_losses_name_their_place(
    unet: nn.Module, data: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    broken = copy.deepcopy(unet)
    broken.conv_in.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="conv_in: its weight holds NaN"):
        quantize(broken, data, recipe(), tmp_path, "mark")
    broken = copy.deepcopy(unet)
    broken.mid_block.resnets[0].norm1.weight[2] = float("nan")
    with pytest.raises(InputError, match="^mid_block.resnets.0.norm1: its weight holds NaN"):
        quantize(broken, data, recipe(), tmp_path, "mark")
    bad = {**data, "x": data["x"].clone()}
    bad["x"][3] = float("inf")
    with pytest.raises(InputError, match="conv_in: its input held NaN or infinity"):
        quantize(copy.deepcopy(unet), bad, recipe(), tmp_path, "mark")
    wild = Reconstruction(method="fbr", iterations=2, batch=8, layer_loss=1e39)
    with pytest.raises(InputError, match="down_blocks.0.resnets.0: the reconstruction loss is"):
        quantize(copy.deepcopy(unet), data, recipe(settings=wild), tmp_path, "wild")
    missing = Recipe(weights=4, activations=8, eight_bit=("conv_first",))
    with pytest.raises(InputError, match="conv_first"):
        quantize(copy.deepcopy(unet), data, missing, tmp_path, "mark")

"""FBR on a tiny U-Net: units, gradients, gains, resuming and failing."""

import copy
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

from edadm.errors import InputError
from edadm.params import Recipe, Reconstruction
from edadm.quantization import fbr
from edadm.quantization.layers import simulated_layers
from edadm.quantization.reconstruction import UnitCheckpoints, quantize
from edadm.quantization.units import find_units, simulate
from edadm.quantization.walk import PausedPass, intercepted

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


def test_a_paused_pass_gives_the_plain_forward(unet: nn.Module, data: dict[str, torch.Tensor]) -> None:
    model, units, batches = prepared(unet, data)
    with torch.no_grad():
        expected = model(*batches[0]).sample
        outputs: list[torch.Tensor] = []
        with intercepted(units):
            paused = PausedPass(model, batches[0])
            for unit in units:
                outputs.append(unit.module(*paused.call.args, **paused.call.kwargs))
                paused.resume(outputs[-1])
    assert paused.call is None
    assert torch.equal(outputs[-1], expected)
    assert "forward" not in vars(units[0].module)


def test_gradients_reach_every_rounding_and_step(unet: nn.Module, data: dict[str, torch.Tensor]) -> None:
    model, units, batches = prepared(unet, data)
    start = {name: layer.input_scale.item() for name, layer in simulated_layers(model).items()}
    moved: set[str] = set()
    harden = fbr.SimulatedLayer.harden_rounding

    def spy(layer: fbr.SimulatedLayer) -> None:
        name = next(name for name, other in simulated_layers(model).items() if other is layer)
        if layer.alpha.grad is not None and layer.alpha.grad.abs().sum() > 0:
            moved.add(name)
        harden(layer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fbr.SimulatedLayer, "harden_rounding", spy)
        fbr.reconstruct(model, units, batches, LEARNED, lambda _: None, lambda *_: None)
    assert moved == set(simulated_layers(model))
    assert all(layer.input_scale.item() != start[name] for name, layer in simulated_layers(model).items())


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


def test_bias_correction_removes_the_mean_error_of_every_channel(
    unet: nn.Module, data: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    errors = {}
    for correct in (False, True):
        model = copy.deepcopy(unet)
        settings = Reconstruction(method="fbr", iterations=2, batch=8, bias_correction=correct)
        quantize(model, data, recipe(settings=settings), tmp_path / str(correct), "mark")
        inputs = data["x"], data["t"]
        with torch.no_grad():
            errors[correct] = (model(*inputs).sample - unet(*inputs).sample).mean((0, 2, 3)).abs().max().item()
    assert errors[True] < 1e-6 < 1e-3 < errors[False]


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
    with pytest.raises(InputError, match="conv_in: its weights hold NaN"):
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

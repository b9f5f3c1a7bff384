"""Tuning of the floats of a quantized network: what is learned, what stays, and against what."""

import copy
from pathlib import Path

import pytest
import tiny
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from edadm.errors import InputError
from edadm.params import Recipe, Reconstruction
from edadm.quantization import autoencoder, checkpoint, fbr, reconstruction, tuning
from edadm.quantization.layers import simulated, simulated_layers
from edadm.quantization.network import output
from edadm.quantization.reconstruction import UnitCheckpoints, quantize

ROWS = 64


def settings(**changes: object) -> Reconstruction:
    return Reconstruction(
        **{"method": "fbr", "iterations": 2, "batch": 16, "tuning": 40, "rate_tuning": 0.005} | changes
    )


def recipe(**changes: object) -> Recipe:
    return Recipe(weights=3, activations=8, attention=8, reconstruction=settings(**changes))


def inputs(seed: int, context: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = {
        "x": torch.randn(ROWS, 4 if context else 1, 8, 8, generator=generator),
        "t": torch.randint(0, 1000, (ROWS,), generator=generator),
    }
    return rows | ({"context": torch.randn(ROWS, 5, tiny.CONTEXT, generator=generator)} if context else {})


def test_the_networks_error_falls_on_data_that_it_has_not_seen(tmp_path: Path) -> None:
    exact = tiny.unet()
    data, fresh = (inputs(seed, context=False) for seed in (1, 2))
    errors, results = {}, {}
    for steps in (0, 40):
        model = copy.deepcopy(exact)
        results[steps] = quantize(model, data, recipe(tuning=steps), tmp_path / str(steps), "mark")
        with torch.no_grad():
            wanted = output(exact, tuple(fresh.values()))
            errors[steps] = (output(model, tuple(fresh.values())) - wanted).square().mean().item()
            own = (output(model, tuple(data.values())) - output(exact, tuple(data.values()))).square().mean().item()
    assert errors[40] < 0.8 * errors[0]
    *units, network = results[40]
    assert units == results[0] and (network.unit, network.kind) == ("network", "network")
    assert network.error_after == pytest.approx(own, rel=1e-3) and network.error_after < network.error_before


def test_every_float_is_learned_and_no_integer(tmp_path: Path) -> None:
    data, models = inputs(1, context=True), []
    for steps in (0, 3):
        models.append(tiny.conditional_unet())
        quantize(models[-1], data, recipe(tuning=steps), tmp_path / str(steps), "mark")
    plain, tuned = models
    for name, part in simulated(plain).items():
        other = tuned.get_submodule(name)
        assert other.input_scale != part.input_scale and other.input_zero_point == part.input_zero_point, name
    for name, layer in simulated_layers(plain).items():
        other = tuned.get_submodule(name)
        assert torch.equal(other.weight_integers, layer.weight_integers), name
        assert torch.equal(other.layer.weight, layer.layer.weight), name
        assert (other.weight_scale != layer.weight_scale).all() and (other.weight_scale > 0).all(), name
        assert layer.bias is None or not torch.equal(other.bias, layer.bias), name
    norms = [name for name, module in plain.named_modules() if isinstance(module, nn.GroupNorm | nn.LayerNorm)]
    assert norms
    for name in norms:
        for key in ("weight", "bias"):
            assert not torch.equal(getattr(plain.get_submodule(name), key), getattr(tuned.get_submodule(name), key))
    assert not any(value.requires_grad for value in (*tuned.parameters(), *tuned.buffers()))


def test_the_frequencies_of_a_time_embedding_are_not_learned() -> None:
    config = {name: value for name, value in tiny.unet().config.items() if not name.startswith("_")}
    model = UNet2DModel(**config | {"time_embedding_type": "fourier"})
    frequencies = model.time_proj.weight
    learned = {id(value) for value in tuning._normalisations(model)}
    assert model.time_proj.weight is frequencies and frequencies.dim() == 1 and id(frequencies) not in learned
    assert id(model.conv_norm_out.weight) in learned and id(model.conv_norm_out.bias) in learned


def test_a_run_killed_while_it_is_tuned_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = inputs(1, context=False)
    whole, again = tiny.unet(), tiny.unet()
    quantize(whole, data, recipe(tuning=3), tmp_path / "whole", "mark")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch.optim.Adam, "step", _interrupted_at_last(torch.optim.Adam.step))
        quantize(tiny.unet(), data, recipe(tuning=3), tmp_path / "killed", "mark")
    learned: list[str] = []
    learn = fbr.Learner.learn
    monkeypatch.setattr(fbr.Learner, "learn", lambda self, *a: learned.append(self.unit.name) or learn(self, *a))
    quantize(again, data, recipe(tuning=3), tmp_path / "killed", "mark")
    assert learned == []
    one, other = whole.state_dict(), again.state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_blocks_compute_their_activations_again_to_keep_few(tmp_path: Path) -> None:
    model, passes = tiny.conditional_unet(), {}
    for steps in (0, 3):
        tuned, seen = copy.deepcopy(model), []
        tuned.mid_block.attentions[0].transformer_blocks[0].norm1.register_forward_hook(
            lambda *_, seen=seen: seen.append(1)
        )
        quantize(tuned, inputs(1, context=True), recipe(tuning=steps), tmp_path / str(steps), "mark")
        passes[steps] = len(seen)
        assert not any("forward" in vars(part) for part in tuned.modules())
    batches = ROWS // reconstruction.BATCH
    assert passes[3] - passes[0] == 3 * batches + 3 * 2  # targets and both errors; twice in each step


def _interrupted_at_last(step: object) -> object:
    def interrupted(self: torch.optim.Adam, *args: object) -> None:
        if len(self.param_groups) > 1:  # the tuning's: learning has one group
            raise KeyboardInterrupt
        step(self, *args)

    return interrupted


def test_a_tuned_autoencoder_is_saved_with_its_normalisations(tmp_path: Path) -> None:
    vae = tiny.autoencoder()
    rows = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    own = autoencoder.recipe(recipe(tuning=3, fisher=True))
    network = autoencoder.RoundTrip(vae)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    reconstruction._quantize(network, (rows,), own, tmp_path, "mark", float("inf"), "cpu")
    layers, floats = reconstruction.integer_layers(vae)
    checkpoint.save(tmp_path / "vae", checkpoint.unet_config(tiny.autoencoder()), layers, floats, {})
    loaded = checkpoint.load(tmp_path / "vae").floats
    assert not torch.equal(loaded["decoder.conv_norm_out.weight"], before["decoder.conv_norm_out.weight"])
    assert torch.equal(loaded["encoder.conv_norm_out.weight"], before["encoder.conv_norm_out.weight"])


def test_a_loss_that_is_not_finite_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the tuning loss is .* lower rate_tuning"):
        quantize(tiny.unet(), inputs(1, context=False), recipe(rate_tuning=1e30), tmp_path, "mark")
    assert UnitCheckpoints(tmp_path, "mark").restore(0) is not None

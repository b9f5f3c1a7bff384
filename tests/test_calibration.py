"""The calibration set: one latent per trajectory, at the step it was allotted."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import nn

from edadm.errors import InputError
from edadm.params import CALIBRATORS, CalibrationParams
from edadm.quantization import calibration

STEPS = [900, 600, 300, 0]


class Network(nn.Module):
    """A U-Net of two layers with a middle block."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mid_block = nn.Conv2d(1, 6, 3, padding=1)
        self.last = nn.Conv2d(6, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.mid_block(x)))


def settings(**changes: object) -> CalibrationParams:
    defaults = {"samples": 23, "batch": 8, "diversity_weight": 1.2, "radius_quantile": 0.5, "seed": 3}
    return CalibrationParams(**(defaults | changes))


def trajectory_of(network: nn.Module):  # noqa: ANN201
    def trajectory(seeds: range) -> Iterator[tuple[int, torch.Tensor]]:
        x = torch.stack([torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        for step in STEPS:
            output = network(x)
            yield step, x
            x = 0.9 * x - 0.2 * output

    return trajectory


def test_the_feature_is_what_the_middle_attention_reads() -> None:
    """method.md A.2; of a network without one, what the middle block puts out."""
    unet, seen = tiny.unet(), []
    unet.mid_block.attentions[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    unet.mid_block.register_forward_hook(lambda _, args, output: seen.append(output))
    middle = calibration._MiddleFeatures(unet)
    unet(*tiny.inputs(2))
    assert torch.equal(middle.feature, seen[0]) and not torch.equal(seen[0], seen[1])
    unet.mid_block.attentions[0] = None
    middle = calibration._MiddleFeatures(unet)
    unet(*tiny.inputs(2))
    assert torch.equal(middle.feature, seen[-1])


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_each_trajectory_gives_its_latent_of_the_allotted_step(calibrator: str) -> None:
    network = Network()
    data, allocation, steps = calibration.collect(network, trajectory_of(network), calibrator, settings())
    assert steps == STEPS
    assert data["x"].shape == (23, 1, 4, 4)
    assert [(data["t"] == step).sum().item() for step in STEPS] == allocation.counts.tolist()
    if calibrator == "uniform":
        assert allocation.counts.tolist() == [5, 5, 5, 8]
    with torch.no_grad():
        for k in range(23):
            wanted = next(x for step, x in trajectory_of(network)(range(3 + k, 4 + k)) if step == data["t"][k])
            assert torch.allclose(data["x"][k], wanted[0], atol=1e-5)


def test_the_batch_size_of_later_trajectories_does_not_matter() -> None:
    network = Network()
    whole, *_ = calibration.collect(network, trajectory_of(network), "uniform", settings(batch=23))
    parts, *_ = calibration.collect(network, trajectory_of(network), "uniform", settings(batch=5))
    assert torch.equal(whole["t"], parts["t"])
    assert torch.allclose(whole["x"], parts["x"], atol=1e-5)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    network = Network()
    found = calibration.collect(network, trajectory_of(network), "tdac", settings())
    weights = tmp_path / "weights"
    weights.write_bytes(b"weights")
    out = tmp_path / "set" / "calibration-tdac.safetensors"
    calibration.write(out, *found, "tdac", settings(), weights)
    data = calibration.read(out)
    assert torch.equal(data["x"], found[0]["x"])
    assert torch.equal(data["t"], found[0]["t"])
    out.write_bytes(out.read_bytes()[:100])
    with pytest.raises(InputError, match="not a readable calibration set"):
        calibration.read(out)
    with pytest.raises(InputError, match="not a readable calibration set"):
        calibration.read(tmp_path / "nowhere.safetensors")


def test_radius_is_given_or_a_quantile() -> None:
    network = Network()
    _, allocation, _ = calibration.collect(network, trajectory_of(network), "tdac", settings())
    same = settings(radius=allocation.radius, radius_quantile=None)
    _, again, _ = calibration.collect(network, trajectory_of(network), "tdac", same)
    assert again.radius == allocation.radius
    assert torch.equal(again.density, allocation.density) and torch.equal(again.counts, allocation.counts)
    for changes in ({"radius": 1.0}, {"radius_quantile": None}):
        with pytest.raises(InputError, match="either radius or radius_quantile"):
            calibration.collect(network, trajectory_of(network), "tdac", settings(**changes))


def test_contexts_make_a_row_of_each_half(tmp_path: Path) -> None:
    data = {"x": torch.randn(5, 1, 4, 4), "t": torch.arange(5)}
    nothing, asked = torch.zeros(5, 1, 3), torch.arange(15.0).reshape(5, 1, 3)
    assert calibration.inputs(calibration.with_contexts(data, ())) == (data["x"], data["t"])
    x, t, context = calibration.inputs(calibration.with_contexts(data, (asked,)))
    assert torch.equal(x, data["x"]) and torch.equal(t, data["t"]) and torch.equal(context, asked)
    doubled = calibration.with_contexts(data, (nothing, asked))
    save_file(doubled, tmp_path / "set.safetensors")
    x, t, context = calibration.inputs(calibration.read(tmp_path / "set.safetensors"))
    for row in range(10):
        assert torch.equal(x[row], data["x"][row % 5]) and t[row] == row % 5
        assert torch.equal(context[row], (nothing if row < 5 else asked)[row % 5])
    for damage in ({"context": context[:9]}, {"surprise": t}):
        save_file(doubled | damage, tmp_path / "set.safetensors")
        with pytest.raises(InputError, match="of one length, this has"):
            calibration.read(tmp_path / "set.safetensors")


def test_unknown_calibrator_is_one_line() -> None:
    network = Network()
    with pytest.raises(InputError, match="'best' is not one of"):
        calibration.collect(network, trajectory_of(network), "best", settings())

"""The samplers against diffusers' schedulers and closed forms."""

import pytest
import torch
from diffusers import DDIMScheduler

from edadm.errors import InputError
from edadm.systems.samplers import Diffusion, ddim, timesteps


def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Any smooth function of x and t."""
    return torch.tanh(x * 0.7 + t.view(-1, 1, 1, 1) / 1000) - 0.1 * x.roll(1, -1)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(("spacing", "steps"), [("leading", 20), ("trailing", 20), ("trailing", 50)])
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_ddim_follows_diffusers(prediction: str, clip: bool, spacing: str, steps: int, schedule: str) -> None:
    scheduler = DDIMScheduler(
        beta_schedule=schedule, prediction_type=prediction, clip_sample=clip, timestep_spacing=spacing
    )
    scheduler.set_timesteps(steps)
    noise = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    visited = timesteps(spacing, steps, 1000)
    assert visited == scheduler.timesteps.tolist()
    x = noise
    ours = ddim(network, noise, Diffusion.from_scheduler(scheduler), visited)
    for step, before, after in ours:
        output = network(before, torch.tensor([step, step]))
        expected = scheduler.step(output, step, before, use_clipped_model_output=clip)
        assert torch.allclose(after, expected.prev_sample, atol=2e-5, rtol=1e-4)
        x = after
    assert torch.isfinite(x).all()


def test_eta_one_adds_the_noise_that_diffusers_adds() -> None:
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    generator, same = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    noise = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    steps = timesteps("leading", 10, 1000)
    fresh = lambda: torch.randn(noise.shape, generator=generator)  # noqa: E731
    for step, before, after in ddim(network, noise, Diffusion.from_scheduler(scheduler), steps, 1.0, fresh):
        added = torch.randn(noise.shape, generator=same) if step != steps[-1] else torch.zeros_like(noise)
        output = network(before, torch.tensor([step, step]))
        expected = scheduler.step(output, step, before, eta=1.0, variance_noise=added)
        assert torch.allclose(after, expected.prev_sample, atol=2e-5, rtol=1e-4)


def test_quadratic_spacing_is_the_published_list() -> None:
    visited = timesteps("quadratic", 100, 1000)
    assert visited[::-1][:7] == [0, 0, 0, 0, 1, 2, 2]
    assert visited[:2] == [800, 783]


def test_a_repeated_timestep_changes_nothing() -> None:
    diffusion = Diffusion.from_scheduler(DDIMScheduler(clip_sample=False))
    noise = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    steps = list(ddim(network, noise, diffusion, [500, 500, 100]))
    assert torch.allclose(steps[0][2], noise, atol=1e-6)


@pytest.mark.parametrize(("spacing", "steps"), [("leading", 0), ("leading", 1001), ("diagonal", 10)])
def test_bad_settings_are_one_line(spacing: str, steps: int) -> None:
    with pytest.raises(InputError, match="sampler"):
        timesteps(spacing, steps, 1000)

"""The samplers against diffusers' schedulers and closed forms."""

import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler

from edadm.errors import InputError
from edadm.systems.samplers import Diffusion, conditioned, ddim, plms, timesteps


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


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("end", [(1.0, 0), (0.0, 1)])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_plms_follows_diffusers(prediction: str, end: tuple[bool, int], steps: int) -> None:
    to_one, offset = bool(end[0]), end[1]  # latent diffusion: the last ᾱ is that of timestep 0, steps begin at 1
    settings = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    settings |= {"set_alpha_to_one": to_one, "steps_offset": offset, "prediction_type": prediction}
    scheduler = PNDMScheduler(**settings, skip_prk_steps=True)
    scheduler.set_timesteps(steps)
    diffusion = Diffusion.from_scheduler(DDIMScheduler(**settings, clip_sample=False))
    noise = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    calls = list(plms(network, noise, diffusion, timesteps("leading", steps, 1000, diffusion.offset)))
    assert [step for step, *_ in calls] == scheduler.timesteps.tolist()
    x = noise
    for step, before, after in calls:
        assert torch.allclose(before, x, atol=2e-5, rtol=1e-4)
        x = scheduler.step(network(x, torch.tensor([step, step])), step, x).prev_sample
        assert torch.allclose(after, x, atol=2e-5, rtol=1e-4)


def test_plms_of_one_step_is_ddim() -> None:
    diffusion = Diffusion.from_scheduler(DDIMScheduler(clip_sample=False))
    noise = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    (one,), (other,) = (list(sampler(network, noise, diffusion, [400])) for sampler in (plms, ddim))
    assert torch.equal(one[2], other[2])


def of_context(x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """A network that reads its context, and each row by itself."""
    return network(x, t) * context.mean((1, 2)).view(-1, 1, 1, 1)


@pytest.mark.parametrize("guidance", [1.5, 3.0, 7.5])
def test_guidance_is_the_formula(guidance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(3, 1, 4, 4, generator=generator), torch.tensor([5, 700, 20])
    nothing, asked = torch.randn(2, 3, 2, 6, generator=generator)
    rows = []

    def counting(*inputs: torch.Tensor) -> torch.Tensor:
        rows.append([len(value) for value in inputs])
        assert torch.equal(inputs[2], torch.cat([nothing, asked]))  # the unconditional half is first
        return of_context(*inputs)

    found = conditioned(counting, (nothing, asked), guidance)(x, t)
    unconditional, conditional = of_context(x, t, nothing), of_context(x, t, asked)
    expected = guidance * conditional + (1 - guidance) * unconditional
    assert torch.allclose(found, expected, atol=1e-5)
    assert rows == [[6, 6, 6]]


def test_without_guidance_nothing_is_doubled() -> None:
    x, t = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([5, 700, 20])
    asked = torch.randn(3, 2, 6, generator=torch.Generator().manual_seed(1))
    rows = []

    def counting(*inputs: torch.Tensor) -> torch.Tensor:
        rows.append(len(inputs[0]))
        return of_context(*inputs)

    assert torch.equal(conditioned(counting, (asked,))(x, t), of_context(x, t, asked))
    assert rows == [3]
    assert conditioned(network, ()) is network


@pytest.mark.parametrize(("steps", "train_steps"), [(100, 1000), (20, 1000), (50, 500), (7, 100)])
def test_quadratic_spacing_is_the_closed_form(steps: int, train_steps: int) -> None:
    visited = timesteps("quadratic", steps, train_steps)
    # linspace(0, sqrt(0.8 T), S)**2, in whole numbers: i**2 0.8 T / (S - 1)**2, rounded down
    expected = [index**2 * train_steps * 8 // (10 * (steps - 1) ** 2) for index in range(steps)][::-1]
    assert max(abs(a - b) for a, b in zip(visited, expected, strict=True)) <= 1  # the published list is float's
    assert visited[0] in (train_steps * 8 // 10, train_steps * 8 // 10 - 1) and visited[-1] == 0


def test_quadratic_spacing_is_the_published_list() -> None:
    visited = timesteps("quadratic", 100, 1000)
    assert visited[::-1][:7] == [0, 0, 0, 0, 1, 2, 2]
    assert visited[:2] == [800, 783]


def test_latent_diffusion_starts_at_one() -> None:
    for steps, first in ((200, [996, 991]), (20, [951, 901]), (500, [999, 997])):
        scheduler = DDIMScheduler(steps_offset=1)
        scheduler.set_timesteps(steps)
        visited = timesteps("leading", steps, 1000, 1)
        assert visited == scheduler.timesteps.tolist()
        assert visited[:2] == first and visited[-1] == 1
    with pytest.raises(InputError, match="leave the 1000"):
        timesteps("leading", 1000, 1000, 1)


def test_a_repeated_timestep_changes_nothing() -> None:
    diffusion = Diffusion.from_scheduler(DDIMScheduler(clip_sample=False))
    noise = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    steps = list(ddim(network, noise, diffusion, [500, 500, 100]))
    assert torch.allclose(steps[0][2], noise, atol=1e-6)


@pytest.mark.parametrize(("spacing", "steps"), [("leading", 0), ("leading", 1001), ("diagonal", 10)])
def test_bad_settings_are_one_line(spacing: str, steps: int) -> None:
    with pytest.raises(InputError, match="sampler"):
        timesteps(spacing, steps, 1000)

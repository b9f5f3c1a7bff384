"""The baseline calibrators' counts: exact sums, and their distributions."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from edadm.quantization import baselines

STEPS, SAMPLES = st.integers(1, 300), st.integers(0, 3000)


@given(STEPS, SAMPLES, st.integers(1, 400))
def test_uniform_gives_every_chosen_step_the_same_and_the_last_the_rest(steps: int, samples: int, stride: int) -> None:
    counts = baselines.uniform(steps, samples, stride).tolist()
    assert len(counts) == steps and sum(counts) == samples and min(counts) >= 0
    assert not any(count for step, count in enumerate(counts) if step % stride)
    chosen = counts[::stride]
    if samples >= len(chosen):
        each = samples // len(chosen)
        assert chosen[:-1] == [each] * (len(chosen) - 1)
        assert chosen[-1] - each == samples % len(chosen)
    else:
        assert max(chosen) <= 1


@given(STEPS, SAMPLES, st.integers(0, 2**32))
def test_normal_counts_are_whole_and_sum_exactly(steps: int, samples: int, seed: int) -> None:
    counts = baselines.normal(steps, samples, torch.Generator().manual_seed(seed))
    assert counts.shape == (steps,) and counts.dtype == torch.int64
    assert counts.sum() == samples and (counts >= 0).all()
    if samples > 1:  # stretched to both ends
        assert counts[0] > 0 and counts[-1] > 0


def test_normal_counts_are_those_of_the_drawn_times() -> None:
    """Against plain loops over the same draws, in diffusion time, reversed to sampling order."""
    drawn = [0.4 + 0.4 * v for v in torch.randn(500, generator=torch.Generator().manual_seed(5), dtype=torch.float64)]
    low, high = min(drawn), max(drawn)
    expected = [0] * 10
    for value in drawn:
        time = min(int((value - low) / (high - low) * 10), 9)
        expected[9 - time] += 1
    assert baselines.normal(10, 500, torch.Generator().manual_seed(5)).tolist() == expected
    assert max(expected) == max(expected[3:7])


def test_one_sample_of_either() -> None:
    assert baselines.uniform(4, 1, 2).tolist() == [1, 0, 0, 0]
    assert baselines.normal(4, 1, torch.Generator().manual_seed(0)).sum() == 1

"""Sensitivities against the Jacobian of a small network."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from edadm.quantization import fisher


class Network(nn.Module):
    """Takes x (n, 3) and t (n,); ``time`` sees t alone, ``idle`` has no influence."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.time, self.last, self.idle = (nn.Linear(*s) for s in ((3, 5), (1, 5), (5, 4), (3, 2)))
        self.requires_grad_(False)

    def forward(self, x: Tensor, t: Tensor) -> SimpleNamespace:
        hidden = torch.tanh(self.first(x) + self.time(t[:, None]))
        return SimpleNamespace(sample=self.last(hidden) + 0 * self.idle(x).sum(1, keepdim=True))


def test_sensitivities_are_the_squared_columns_of_the_jacobian() -> None:
    network = Network()
    x, t = torch.randn(3, generator=torch.Generator().manual_seed(1)), torch.tensor(0.3)
    rows = 6000  # of one sample, so that the mean is over the noise alone
    batches = [(x.expand(rows, 3), t.expand(rows))]
    found = fisher.sensitivities(network, dict(network.named_children()), batches, seed=2)
    hidden = torch.tanh(network.first(x) + network.time(t[None]))
    expected = ((network.last.weight * (1 - hidden**2)) ** 2).sum(0)
    for name in ("first", "time"):
        assert found[name].tolist() == pytest.approx((expected / expected.mean()).tolist(), rel=0.1)
    assert found["last"].tolist() == pytest.approx([1] * 4, rel=0.1)
    assert found["idle"].tolist() == [1, 1]
    assert not network.first._forward_hooks


def test_sensitivities_do_not_depend_on_the_batches() -> None:
    network = Network()
    generator = torch.Generator().manual_seed(1)
    x, t = torch.randn(32, 3, generator=generator), torch.rand(32, generator=generator)
    modules = {"first": network.first}
    whole = fisher.sensitivities(network, modules, [(x, t)], seed=2)
    parts = fisher.sensitivities(network, modules, list(zip(x.split(16), t.split(16), strict=True)), seed=2)
    assert torch.equal(whole["first"], parts["first"])

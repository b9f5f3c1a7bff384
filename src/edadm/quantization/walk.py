"""Forward passes that pause at every reconstruction unit.

FBR learns the units one after the other, each from the inputs that its predecessors produce. Re-running the network
up to the unit each time costs O(units^2) forwards; a paused pass costs one. Every calibration batch has its own
paused pass (a greenlet), which hands out the arguments of the next unit and goes on with the output given back.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from edadm.quantization.network import forward
from edadm.quantization.units import Unit


class Call(NamedTuple):
    """The arguments that a unit is called with."""

    args: tuple
    kwargs: dict[str, Any]


class PausedPass:
    """One forward pass of ``unet``, whose units must be intercepted, over one batch."""

    def __init__(self, unet: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._pass = greenlet(lambda: forward(unet, inputs))
        self.call: Call | None = self._pass.switch()

    def resume(self, output: Tensor) -> None:
        """Give the unit's output; ``call`` is then the next unit's call, or None once the pass is complete."""
        arrived = self._pass.switch(output)
        self.call = None if self._pass.dead else arrived


class intercepted:  # noqa: N801  (a context manager, named like a function)
    """Within the block, a paused pass that reaches one of ``units`` hands its call to whoever resumed it."""

    def __init__(self, units: list[Unit]) -> None:
        self.modules = [unit.module for unit in units]

    def __enter__(self) -> None:
        for module in self.modules:
            module.forward = self._pausing(module.forward)

    def __exit__(self, *_: object) -> None:
        for module in self.modules:
            del module.forward

    @staticmethod
    def _pausing(forward: Callable) -> Callable:
        def pause(*args: Any, **kwargs: Any) -> Any:
            current = getcurrent()
            if current.parent is None:  # called by the learner itself, not inside a paused pass
                return forward(*args, **kwargs)
            return current.parent.switch(Call(args, kwargs))

        return pause

"""Forward passes that pause at every reconstruction unit.

FBR learns the units one after the other, each from the inputs that its predecessors produce. Re-running the network
up to the unit each time costs O(units^2) forwards; a paused pass costs one. Every calibration batch has its own
paused pass (a greenlet), which hands out the arguments of the next unit and goes on with the output given back. All
batches' passes pause at the same unit, and what they hold there lies in tables of the cache.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from edadm.quantization.cache import Cache
from edadm.quantization.network import forward
from edadm.quantization.units import Unit


class Call(NamedTuple):
    """The arguments that a unit is called with."""

    args: tuple
    kwargs: dict[str, Any]


class Rows:
    """A unit's ``calls`` over all batches, ``count`` rows in all, from which random mini-batches are drawn.

    Of each call, as it comes, the values with one row a sample go into tables of ``cache``; on the CPU the call's own
    tensors, which a paused pass keeps, then are those rows, and what they were is free.
    """

    def __init__(self, calls: Iterable[Call], count: int, cache: Cache) -> None:
        self.count, self._cache = count, cache
        self.calls: list[Call] = []
        self._tables: dict[int | str, Any] = {}  # of positional arguments by place, of the others by name
        start = 0
        for call in calls:
            rows = len(call.args[0])
            for key, value in [*enumerate(call.args), *call.kwargs.items()]:
                self._keep(key, value, start, rows)
            self.calls.append(call)
            start += rows

    def _keep(self, key: int | str, value: Any, start: int, rows: int) -> None:
        if not (isinstance(value, Tensor) and value.dim() > 0 and len(value) == rows):
            self._tables[key] = value
            return
        if key not in self._tables:
            self._tables[key] = self._cache.empty((self.count, *value.shape[1:]), value.dtype)
        part = self._tables[key][start : start + rows]
        part.copy_(value)
        if value.device == part.device:
            value.data = part

    @property
    def device(self) -> torch.device:
        """Where the unit is computed; the tables are in RAM."""
        return self.calls[0].args[0].device

    def take(self, rows: Tensor) -> Call:
        """The call of the given rows."""

        def taken(value: Any) -> Any:
            per_row = isinstance(value, Tensor) and value.shape[:1] == (self.count,)
            return value[rows].to(self.device) if per_row else value

        found = {key: taken(value) for key, value in self._tables.items()}
        places = len(self.calls[0].args)
        return Call(tuple(found.pop(place) for place in range(places)), found)


class PausedPasses:
    """Forward passes of ``unet``, whose units must be intercepted, over ``batches``; ``rows`` are the unit's calls."""

    def __init__(self, unet: nn.Module, batches: Sequence[tuple[Tensor, ...]], cache: Cache) -> None:
        self._cache, self.count = cache, sum(len(inputs[0]) for inputs in batches)
        self._passes = [greenlet(lambda inputs=inputs: forward(unet, inputs)) for inputs in batches]
        self._advance([()] * len(batches))

    def resume(self, outputs: Iterable[Tensor]) -> None:
        """Give the unit's output for every batch; ``rows`` are then the next unit's, without calls after the last."""
        self._advance([(output,) for output in outputs])

    def _advance(self, given: Sequence[tuple[Tensor, ...]]) -> None:
        def calls() -> Iterator[Call]:
            for paused, values in zip(self._passes, given, strict=True):
                call = paused.switch(*values)
                if not paused.dead:
                    yield call

        self.rows = None  # the tables before these are free as soon as no pass holds them
        self.rows = Rows(calls(), self.count, self._cache)


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

"""Bad and hostile input: what is tried, how it is damaged, and what must hold of every case."""

import copy
import functools
import operator
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from edadm.errors import InputError

ROOM = 2**30  # bytes of address space that one case may take beyond what the process has
PATIENCE = 60  # seconds; a case takes milliseconds, so that only one that hangs comes near
LONGEST = 2000  # characters of a message
ODD = [None, True, 0, -1, 2**31, 10**30, 0.5, 1e300, "", "x", "../../x", [], {}, [[]], {"a": 1}]  # instead of a value
tried = 0  # cases so far, for the line at the end of the session


def examples(number: int) -> settings:
    """The profile of these tests: the same ``number`` of cases in every session."""
    return settings(
        max_examples=number,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def damaged(content: bytes, data: st.DataObject) -> bytes:
    """Some bits flipped, bytes overwritten, the end cut off, or something appended."""
    changed = bytearray(content)
    # headers and tables stand at both ends of a file
    places = st.integers(0, len(content) - 1) | st.integers(0, min(300, len(content) - 1))
    places |= places.map(lambda place: len(content) - 1 - place)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(places)] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.none() | places)
    return bytes(changed[:cut]) + data.draw(st.binary(max_size=8))


def leaves(value: Any, at: tuple = ()) -> Iterator[tuple]:
    """The places of everything inside a JSON value."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*at, key)
        yield from leaves(inner, (*at, key))


def replaced(value: Any, at: tuple, new: Any) -> Any:
    """A copy of a JSON value with ``new`` at one of its places."""
    changed = copy.deepcopy(value)
    holder(changed, at)[at[-1]] = new
    return changed


def holder(value: Any, at: tuple) -> Any:
    """The list or object inside a JSON value that a place is in."""
    return functools.reduce(operator.getitem, at[:-1], value)


class HangError(BaseException):
    """A case that did not end; not an Exception, so that nothing under test takes it for a fault of the file."""


def _give_up(*_: Any) -> None:
    raise HangError(f"not done after {PATIENCE} s")


@contextmanager
def bounded() -> Iterator[None]:
    """Fails what is in the block when it hangs, or wants much more memory than small files are worth."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(PATIENCE)
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


def attempt(read: Callable[..., Any], *arguments: Any) -> Any:
    """One case: what ``read`` gives; or None when it refuses the input, which it does in one line."""
    global tried
    tried += 1
    with bounded():
        try:
            return read(*arguments)
        except InputError as error:
            message = str(error)
    assert message.isprintable() and 0 < len(message) < LONGEST, message
    return None


def refused(read: Callable[..., Any], *arguments: Any) -> str:
    """One case that has to be refused: its message."""
    global tried
    tried += 1
    with bounded():
        try:
            found = read(*arguments)
        except InputError as error:
            message = str(error)
        else:
            raise AssertionError(f"taken: {arguments} -> {found!r:.200}")
    assert message.isprintable() and 0 < len(message) < LONGEST, message
    return message

"""Bad and hostile input: what is tried, how it is damaged, and what must hold of every case."""

import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings

from edadm.errors import InputError

ROOM = 2**30  # bytes of address space that one case may take beyond what the process has
PATIENCE = 60  # seconds; a case takes milliseconds, so that only one that hangs comes near
LONGEST = 2000  # characters of a message
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

"""What waits for sockets to become ready, behind four calls.

A poller has the calls of ``select.epoll``: the real one needs no wrapper and so
costs nothing, the others are adapted to it, and a simulation can stand in.
Events are bits of a mask. Spurious and stale events are normal: whoever gets
one tries the call and takes ``BlockingIOError`` for "not yet".

Which to take:

* ``epoll`` costs as much as there are events; the others cost as much as there
  are descriptors watched, and are here to be compared and as a way out;
* ``select`` cannot watch a descriptor above 1,023 (``DescriptorError``);
* level-triggered, an event comes again until it is dealt with; edge-triggered
  (``EDGE`` in the mask, epoll only) it comes once, and again after ``modify``:
  then whoever gets it has to read on until nothing is left.
"""

from __future__ import annotations

import math
import select
from collections.abc import Callable
from typing import Final, Protocol

READ: Final[int] = select.EPOLLIN
"""There is input, end of input, or a connection to accept."""
WRITE: Final[int] = select.EPOLLOUT
"""The kernel takes output again."""
ERROR: Final[int] = select.EPOLLERR | select.EPOLLHUP
"""Reported whether asked for or not: the socket failed or was reset."""
EDGE: Final[int] = select.EPOLLET | select.EPOLLRDHUP
"""To be asked for along with the others. The end of input is then told apart
(an event that is not ``READ`` alone), since no further event would tell of it."""


class DescriptorError(ValueError):
    """The poller cannot watch a descriptor with so high a number."""


class Poller(Protocol):
    """The four calls, and the end."""

    def register(self, fd: int, eventmask: int, /) -> None:
        """Watch ``fd`` for the events of the mask.

        Raises:
            DescriptorError: its number is too high for this poller.
        """

    def modify(self, fd: int, eventmask: int, /) -> None:
        """Watch ``fd``, which is registered, for other events."""

    def unregister(self, fd: int, /) -> None:
        """Forget ``fd``; to be called before it is closed."""

    def poll(self, timeout: float, maxevents: int, /) -> list[tuple[int, int]]:
        """Wait up to ``timeout`` seconds (-1: for ever) for some ``maxevents`` events.

        It may be more where the kernel has told of all of them anyway.
        """

    def close(self) -> None:
        """Give up what the poller holds of the kernel; calling it again does nothing."""


class PollPoller:
    """``poll(2)``: no limit on numbers, and all of them handed over at each call.

    >>> poller = PollPoller()
    >>> poller.poll(0, 1)
    []
    """

    def __init__(self) -> None:
        poll = select.poll()
        # The bits of poll are those of epoll, by design of the latter.
        self.register = poll.register
        self.modify = poll.modify
        self.unregister = poll.unregister
        self._poll = poll.poll

    def poll(self, timeout: float, maxevents: int, /) -> list[tuple[int, int]]:  # noqa: ARG002
        """Wait. All events are given: of a part, the first would always be the same."""
        return self._poll(-1 if timeout < 0 else math.ceil(timeout * 1000))

    def close(self) -> None:
        """Nothing is held."""


class SelectPoller:
    """``select(2)``: numbers up to 1,023 only, three sets handed over at each call.

    >>> poller = SelectPoller()
    >>> poller.poll(0, 1)
    []
    """

    LIMIT: Final = 1024
    """``FD_SETSIZE``: the C library's sets have this many bits."""

    def __init__(self) -> None:
        self._masks: dict[int, int] = {}
        self._readers: set[int] = set()
        self._writers: set[int] = set()

    def register(self, fd: int, eventmask: int, /) -> None:
        """Watch ``fd`` for the events of the mask.

        Raises:
            DescriptorError: its number is above 1,023.
        """
        if fd >= self.LIMIT:
            raise DescriptorError(
                f"select cannot watch descriptor {fd}, only those below {self.LIMIT}; "
                "epoll and poll can"
            )
        self._masks[fd] = 0
        self.modify(fd, eventmask)

    def modify(self, fd: int, eventmask: int, /) -> None:
        """Watch ``fd``, which is registered, for other events."""
        self._masks[fd] = eventmask
        for descriptors, bit in ((self._readers, READ), (self._writers, WRITE)):
            if eventmask & bit:
                descriptors.add(fd)
            else:
                descriptors.discard(fd)

    def unregister(self, fd: int, /) -> None:
        """Forget ``fd``."""
        del self._masks[fd]
        self._readers.discard(fd)
        self._writers.discard(fd)

    def poll(self, timeout: float, maxevents: int, /) -> list[tuple[int, int]]:  # noqa: ARG002
        """Wait. Errors show as readable or writable: select has no bit for them."""
        readable, writable, _ = select.select(
            self._readers, self._writers, (), None if timeout < 0 else timeout
        )
        events = dict.fromkeys(readable, READ)
        for fd in writable:
            events[fd] = events.get(fd, 0) | WRITE
        return list(events.items())

    def close(self) -> None:
        """Nothing is held."""


POLLERS: Final[dict[str, Callable[[], Poller]]] = {
    "epoll": select.epoll,
    "poll": PollPoller,
    "select": SelectPoller,
}
"""The pollers by name."""


def open_poller(name: str = "epoll") -> Poller:
    """A poller; without a name the one that serves best here.

    Raises:
        ValueError: there is none of that name.

    >>> poller = open_poller()
    >>> poller.poll(0, 1)
    []
    >>> poller.close()
    """
    if name not in POLLERS:
        raise ValueError(f"{name!r} is no poller: expected one of {', '.join(POLLERS)}")
    return POLLERS[name]()

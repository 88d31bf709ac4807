"""What waits for sockets to become ready, behind four calls.

A poller is whatever has the calls of ``select.epoll``: the real one needs no
wrapper and so costs nothing, and a simulation can stand in for it. Events are
bits of a mask. Spurious and stale events are normal: whoever gets one tries
the call and takes ``BlockingIOError`` for "not yet".
"""

from __future__ import annotations

import select
from typing import Final, Protocol

READ: Final[int] = select.EPOLLIN
"""There is input, end of input, or a connection to accept."""
WRITE: Final[int] = select.EPOLLOUT
"""The kernel takes output again."""
ERROR: Final[int] = select.EPOLLERR | select.EPOLLHUP
"""Reported whether asked for or not: the socket failed or was reset."""


class Poller(Protocol):
    """The four calls, level-triggered: an event comes again until it is dealt with."""

    def register(self, fd: int, eventmask: int, /) -> None:
        """Watch ``fd`` for the events of the mask."""

    def modify(self, fd: int, eventmask: int, /) -> None:
        """Watch ``fd``, which is registered, for other events."""

    def unregister(self, fd: int, /) -> None:
        """Forget ``fd``; to be called before it is closed."""

    def poll(self, timeout: float, maxevents: int, /) -> list[tuple[int, int]]:
        """Wait up to ``timeout`` seconds (-1: for ever) for at most ``maxevents`` events."""


def open_poller() -> select.epoll:
    """The poller that serves best here: epoll, level-triggered.

    >>> poller = open_poller()
    >>> poller.poll(0, 1)
    []
    >>> poller.close()
    """
    return select.epoll()

"""Which server gets a request, and when to try again. No I/O.

The rules:

* the server with the fewest requests under way gets the next one;
* a server that cannot be reached is ejected: left out for a while, twice as long
  at every further failure. Then the next request probes it, which costs that
  request little: nothing is sent yet, so another server can have it;
* when all are ejected, all are probed: to fail without trying would help nobody;
* a request is repeated only if nothing of it was sent, or if its caller says
  that it may be executed twice; after a pause with full jitter (a random share
  of a span that doubles, up to a cap), so that many clients do not come back
  together; and never past its deadline.

Back-off with full jitter: Marc Brooker, "Exponential Backoff And Jitter",
AWS Architecture Blog, 2015.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from typing import Final

from nbclient.errors import ClosedError, ConnectTimeout, NbclientError, RequestTimeout
from nbnet.notation import Address

EJECTED_FOR: Final = 0.25
"""Seconds for which a server is left out after its first failure."""
EJECTED_AT_MOST: Final = 30.0
"""Seconds for which it is left out after many."""


class Server:
    """One of a client's servers.

    Attributes:
        address: where it listens.
        name: the same as text.
        busy: requests under way there.
        opened: connections to it, as far as a front counts them.
        ejected_until: when it may be tried again; it is left out before.
        reason: what was wrong last, in words; empty if nothing was.
    """

    __slots__ = ("address", "busy", "ejected_until", "failures", "name", "opened", "reason")

    def __init__(self, address: Address) -> None:
        self.address = address
        self.name = str(address)
        self.busy = 0
        self.opened = 0
        self.failures = 0
        self.ejected_until = 0.0
        self.reason = ""


class Servers:
    """The servers of a client, all of which answer alike.

    Args:
        addresses: where they listen, at least one.
        jitter: a number from 0 to 1, a new one at each call.

    >>> from nbnet.notation import parse_address
    >>> servers = Servers([parse_address("a:1"), parse_address("b:1")])
    >>> first = servers.choose(0.0)
    >>> first.name
    'a:1'
    >>> servers.failed(first, "Connection refused", 0.0)
    >>> servers.choose(0.0).name
    'b:1'
    """

    def __init__(
        self, addresses: Sequence[Address], jitter: Callable[[], float] = random.random
    ) -> None:
        self.all: Final = tuple(map(Server, addresses))
        self._jitter = jitter
        self._turn = 0

    def choose(self, now: float, tried: Collection[Server] = ()) -> Server | None:
        """The server to have the next request; None if all were tried for it already."""
        every = self.all
        if len(every) == 1:
            return None if tried else every[0]
        self._turn += 1  # among equals, each has its turn
        start = self._turn - 1
        best: Server | None = None
        for number in range(start, start + len(every)):
            server = every[number % len(every)]
            if (
                # Later than that it is not: the clock must have been another one.
                not now < server.ejected_until <= now + EJECTED_AT_MOST
                and server not in tried
                and (best is None or server.busy < best.busy)
            ):
                best = server
        if best is None:
            left_out = [server for server in every if server not in tried]
            best = min(left_out, key=lambda server: server.ejected_until, default=None)
        return best

    def failed(self, server: Server, reason: str, now: float) -> None:
        """It could not be reached, or did not answer: leave it out for a while."""
        server.reason = reason
        server.failures += 1
        span = back_off(EJECTED_FOR, EJECTED_AT_MOST, server.failures - 1)
        # Half of it is certain: a server that was just tried is not tried again at once.
        server.ejected_until = now + span * (1 + self._jitter()) / 2

    def worked(self, server: Server) -> None:
        """It was reached: what was before is forgotten."""
        server.failures = 0
        server.ejected_until = 0.0
        server.reason = ""


def back_off(base: float, cap: float, times: int) -> float:
    """Seconds of the longest pause after so many earlier ones: doubling, up to the cap.

    >>> [back_off(0.05, 1.0, times) for times in (0, 1, 2, 10)]
    [0.05, 0.1, 0.2, 1.0]
    """
    return min(cap, base * 2.0 ** min(times, 64))


class Attempts:
    """How often one request was tried, and whether to try again.

    Args:
        retries: how many times at most to try again.
        base, cap: seconds of the longest first pause, and of the longest of all.
        idempotent: whether the request may be executed twice.
        deadline: when it has to be answered.
        jitter: a number from 0 to 1, a new one at each call.

    >>> attempts = Attempts(2, 0.05, 1.0, idempotent=False, deadline=5.0, jitter=lambda: 0.5)
    >>> attempts.pause(NbclientError("nothing was sent"), 0.0)
    0.025
    >>> attempts.pause(NbclientError("who knows", maybe_executed=True), 0.0) is None
    True
    """

    __slots__ = (
        "_base",
        "_cap",
        "_idempotent",
        "_jitter",
        "_retries",
        "deadline",
        "made",
        "maybe_executed",
    )

    def __init__(
        self,
        retries: int,
        base: float,
        cap: float,
        *,
        idempotent: bool,
        deadline: float,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.made = 0
        self._retries = retries
        self._base = base
        self._cap = cap
        self._idempotent = idempotent
        self.maybe_executed = False
        self.deadline = deadline
        self._jitter = jitter

    def pause(self, error: NbclientError, now: float) -> float | None:
        """Seconds to wait before the next attempt; None if the error is to be raised."""
        self.maybe_executed = self.maybe_executed or error.maybe_executed
        if error.maybe_executed and not self._idempotent:
            return None
        # What is raised in the end is of the last attempt, and speaks for all.
        error.maybe_executed = self.maybe_executed
        if isinstance(error, ClosedError):
            return None
        if isinstance(error, RequestTimeout) and not isinstance(error, ConnectTimeout):
            return None
        if self.made >= self._retries:
            return None
        pause = back_off(self._base, self._cap, self.made) * self._jitter()
        if now + pause >= self.deadline:
            return None
        self.made += 1
        return pause

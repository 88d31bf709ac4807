"""What goes wrong in the calls of a process: by chance, or the nth call of a kind.

Each kind of fault has a rate, and each run has rates of its own, most of them
nought: a run with a few kinds of faults, but many of those, finds more than one
with a little of everything.

A call that is refused although it could be done, or done in part, is followed by
the event that the kernel would tell of when the rest can be done.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

from nbnet.pollers import ERROR, READ, WRITE
from simulation.kernel import File, Kernel
from simulation.network import End

OUT_OF_RESOURCES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
ONE_FAILED: Final = (errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EHOSTUNREACH)
BROKEN: Final = (errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTUNREACH)
"""Errors after which a connection is of no more use."""


@dataclass(slots=True, kw_only=True)
class Rates:
    """How often each kind of fault happens, from 0 to 1, at each opportunity.

    Attributes:
        again: a call is refused although it could be done.
        short: a read or a send does only a part.
        meanwhile: something else happens at the start of a call.
        slow: a poll comes late, so that there are more events.
        few, shuffle, repeat, invent: of the events of a poll.
        accept: accepting fails; ``accept_again`` as for ``again``.
        broken: reading or sending fails for good; ``memory`` for want of memory.
        watch: the poller cannot watch, for want of memory.
        reset: a piece of data on its way resets the connection instead.
        vanish: from a piece of data on, nothing arrives any more.
    """

    again: float = 0.0
    short: float = 0.0
    meanwhile: float = 0.0
    slow: float = 0.0
    few: float = 0.0
    shuffle: float = 0.0
    repeat: float = 0.0
    invent: float = 0.0
    accept: float = 0.0
    broken: float = 0.0
    memory: float = 0.0
    watch: float = 0.0
    reset: float = 0.0
    vanish: float = 0.0


_HARMLESS: Final = frozenset(
    {"again", "short", "meanwhile", "slow", "few", "shuffle", "repeat", "invent", "accept"}
)


def draw_rates(rng: random.Random, *, harmless: bool) -> Rates:
    """Rates for a run; harmless ones excuse nothing that is not answered."""
    rates = Rates()
    for each in fields(Rates):
        chosen, often = rng.random(), rng.random()
        if each.name in _HARMLESS:
            if chosen < 0.5:
                setattr(rates, each.name, 0.5 * often**3)
        elif not harmless and chosen < 0.35:
            setattr(rates, each.name, 0.05 * often**2)
    return rates


class Faults:
    """Decides, at each call, what goes wrong.

    Args:
        rates: how often.
        script: errors by kind of call and its number, from 1.

    Attributes:
        done: the calls of the script that were made.
    """

    def __init__(
        self,
        kernel: Kernel,
        rates: Rates | None = None,
        script: Mapping[tuple[str, int], int] | None = None,
    ) -> None:
        self.kernel = kernel
        self.rates = rates or Rates()
        self.script = script or {}
        self.done: set[tuple[str, int]] = set()
        self._rng = kernel.rng

    def hits(self, rate: float) -> bool:
        """Whether it happens now; costs no random number where it never does."""
        return rate > 0 and self._rng.random() < rate

    def errno_for(self, kind: str, number: int, file: File | None) -> int:
        """What a call fails with; 0 for nothing."""
        code = self.script.get((kind, number))
        if code is not None:
            self.done.add((kind, number))
            self._follow(kind, code, file)
            return code
        code = self._draw(kind)
        if code:
            self._follow(kind, code, file)
        return code

    def _draw(self, kind: str) -> int:
        rates, rng = self.rates, self._rng
        if kind in ("recv", "send"):
            if self.hits(rates.again):
                return errno.EAGAIN
            if self.hits(rates.broken):
                return rng.choice(BROKEN)
            if self.hits(rates.memory):
                return rng.choice((errno.ENOBUFS, errno.ENOMEM))
        elif kind == "accept":
            if self.hits(rates.again):
                return errno.EAGAIN
            if self.hits(rates.accept):
                return rng.choice((*OUT_OF_RESOURCES, *ONE_FAILED))
        elif kind == "dial":
            if self.hits(rates.accept):
                return rng.choice((*OUT_OF_RESOURCES, errno.EADDRNOTAVAIL, errno.ENETUNREACH))
        elif kind in ("register", "modify") and self.hits(rates.watch):
            return rng.choice(
                (errno.ENOMEM, errno.ENOSPC) if kind == "register" else (errno.ENOMEM,)
            )
        return 0

    def _follow(self, kind: str, code: int, file: File | None) -> None:
        """What an error means to the connection, and the event after it."""
        if not isinstance(file, End):
            if code in ONE_FAILED and kind == "accept" and file is not None:
                file.drop_one()  # type: ignore[attr-defined]  # a listener
            return
        if code == errno.EAGAIN:
            file.wake(READ if kind == "recv" else WRITE)
            return
        file.disturb(f"{kind} failed")
        if code in BROKEN or code in (errno.EPIPE, errno.ENOTCONN):
            file.break_off()

    def cut(self, end: End, kind: str, size: int) -> int:
        """How many of so many bytes a read or a send does."""
        if size > 1 and self.hits(self.rates.short):
            end.wake(READ if kind == "recv" else WRITE)
            self.kernel.happened()
            return self._rng.choice((1, min(5, size - 1), self._rng.randrange(1, size)))
        return size

    def mangle(
        self, events: list[tuple[int, int]], interest: Mapping[int, tuple[File, int]]
    ) -> None:
        """Invent, repeat and shuffle events."""
        rng, rates = self._rng, self.rates
        if interest and self.hits(rates.invent):
            fd = rng.choice(list(interest))
            file, mask = interest[fd]
            if isinstance(file, End) and file.connected:
                found = rng.choice((READ, WRITE, READ | WRITE, ERROR, READ | ERROR))
                found &= mask | ERROR
                if found:
                    events.insert(rng.randrange(len(events) + 1), (fd, found))
        if events and self.hits(rates.repeat):
            event = rng.choice(events)
            if isinstance(interest[event[0]][0], End):
                events.insert(rng.randrange(len(events) + 1), event)
        if len(events) > 1 and self.hits(rates.shuffle):
            rng.shuffle(events)

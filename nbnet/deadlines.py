"""When which connection has to be looked at again.

A timer wheel: time is cut into ticks, and everything due in a tick stands in
one dict, by which they come due in the same order in each run. Parking, moving
and forgetting cost the same however many are parked, and nothing is kept of what
was forgotten (but an empty dict a tick): a timer goes with its connection.

The rule that keeps requests cheap: activity does not move a timer. Whoever is
found due says when it really has to end, and is parked again if that is later;
so a busy connection costs one look a timeout, not one a request.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from typing import Final, Generic, Protocol, TypeVar

TICK: Final = 0.125
"""Seconds in a tick: deadlines are kept to this precision, never early. A power
of two, so that times in ticks are exact."""


class Timed(Protocol):
    """What can be parked: hashable, with room to note where it is."""

    tick: int | None
    """The tick that it is parked in; None when it is not. For ``Deadlines`` alone."""


T = TypeVar("T", bound=Timed)


class Deadlines(Generic[T]):
    """Things by the time at which they are due, each at one time only.

    >>> class Thing:
    ...     tick = None
    >>> thing, deadlines = Thing(), Deadlines()
    >>> deadlines.park(thing, 3.0)
    >>> deadlines.next_due, list(deadlines.due(3.0))
    (3.125, [])
    >>> list(deadlines.due(4.0)) == [thing], len(deadlines)
    (True, 0)
    """

    __slots__ = ("_order", "_ticks")

    def __init__(self) -> None:
        self._ticks: dict[int, dict[T, None]] = {}  # an empty one goes when its turn comes
        self._order: list[int] = []  # the same ticks as a heap, each once

    def __len__(self) -> int:
        """How many things are parked."""
        return sum(map(len, self._ticks.values()))

    @property
    def next_due(self) -> float:
        """The time at which something is due; infinite if nothing is parked."""
        order, ticks = self._order, self._ticks
        while order and not ticks[order[0]]:
            del ticks[heapq.heappop(order)]
        return order[0] * TICK if order else math.inf

    def park(self, thing: T, when: float) -> None:
        """Have ``thing`` come due at ``when`` seconds, or up to a tick later, not before."""
        tick = math.floor(when / TICK) + 1
        if thing.tick == tick:
            return
        self.forget(thing)
        thing.tick = tick
        if tick in self._ticks:
            self._ticks[tick][thing] = None
        else:
            self._ticks[tick] = {thing: None}
            heapq.heappush(self._order, tick)

    def park_by(self, thing: T, when: float) -> None:
        """As ``park``, but leave alone what comes due before that anyway."""
        if thing.tick is None or thing.tick * TICK > when + TICK:
            self.park(thing, when)

    def forget(self, thing: T) -> None:
        """Let ``thing`` never come due; nothing happens if it is not parked."""
        if thing.tick is not None:
            del self._ticks[thing.tick][thing]
            thing.tick = None

    def due(self, now: float) -> Iterator[T]:
        """Take out, one by one, what is due at ``now`` seconds, in order of ticks.

        Of one tick, what was parked last comes first. In between anything may be parked
        and forgotten.
        """
        while self.next_due <= now:
            thing, _ = self._ticks[self._order[0]].popitem()
            thing.tick = None
            yield thing

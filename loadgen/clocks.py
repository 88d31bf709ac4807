"""How far the clock of another host is from ours: found out by round trips, as NTP does.

A question is asked at one moment of our clock and answered at another; in
between the host read its own. If both ways took the same time, it read it in
the middle. The error is at most half of the round trip, so of several samples
the one of the shortest counts.

Only monotonic clocks are compared: nobody sets them, and what the wall clocks of
the hosts say does not matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class Sample(NamedTuple):
    """One round trip; nanoseconds.

    Attributes:
        asked, answered: on our clock.
        theirs: what the host's clock said meanwhile.
    """

    asked: int
    theirs: int
    answered: int

    @property
    def round_trip(self) -> int:
        """How long it took."""
        return self.answered - self.asked


@dataclass(frozen=True, slots=True)
class Offset:
    """How far another clock is ahead of ours.

    Attributes:
        ahead: nanoseconds to add to a moment of ours.
        within: nanoseconds by which that may be wrong.
    """

    ahead: int
    within: int

    def there(self, moment: int) -> int:
        """A moment of our clock, on theirs.

        >>> Offset(ahead=5_000, within=10).there(1_000)
        6000
        """
        return moment + self.ahead

    def differs(self, other: Offset) -> bool:
        """Whether both cannot be of the same two clocks: one of these has drifted."""
        return abs(self.ahead - other.ahead) > self.within + other.within


def estimate(samples: Iterable[Sample]) -> Offset:
    """The offset by the best of some samples.

    Raises:
        ValueError: there is none, or one was answered before it was asked.

    >>> estimate([Sample(0, 1_500, 1_000), Sample(2_000, 3_050, 2_100)])
    Offset(ahead=1000, within=50)
    """
    best = min(samples, key=lambda sample: sample.round_trip, default=None)
    if best is None:
        raise ValueError("no sample to estimate an offset from")
    if best.round_trip < 0:
        raise ValueError(f"answered {-best.round_trip} ns before it was asked")
    middle = best.asked + best.round_trip // 2
    # Half of an odd number of nanoseconds counts in full.
    return Offset(best.theirs - middle, best.round_trip - best.round_trip // 2)

"""When requests are due in an open loop: arrivals planned ahead of any reply.

An open loop sends by the clock, whether or not the server keeps up, as users
do. The rate over time is a row of stages, each a straight line from one rate
to another. Their integral says how many requests are due up to a moment;
arrivals are where it passes 0, 1, 2 ... (``constant``), or where it passes the
sums of exponentially distributed numbers (``poisson``: the arrivals of many
independent users, with the same mean).

Every worker takes its own part of one schedule: of constant arrivals every
n-th, of Poisson arrivals an independent stream of the n-th part of the rate,
since such streams add up to one.
"""

from __future__ import annotations

import bisect
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

_AT_A_TIME: Final = 31
COUNTED_EXACTLY: Final = 100_000
"""Arrivals that are counted one by one when a run ends before they were sent."""


class Stage(NamedTuple):
    """A part of the schedule: requests a second, in a straight line from ``start`` to ``end``."""

    seconds: float
    start: float
    end: float

    @property
    def requests(self) -> float:
        """How many requests are due in it."""
        return (self.start + self.end) / 2 * self.seconds


class Schedule:
    """The moments at which one worker is to send, in nanoseconds from the start, ascending.

    Args:
        stages: the rate of all workers together.
        poisson: whether arrivals are random; else they are evenly spread.
        seed: with the same one, random arrivals are the same.
        worker: the number of this worker, from 0.
        workers: how many there are.

    >>> list(Schedule([Stage(0.005, 1000, 1000)]))
    [0, 1000000, 2000000, 3000000, 4000000]
    >>> list(Schedule([Stage(0.005, 1000, 1000)], worker=1, workers=2))
    [1000000, 3000000]
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        poisson: bool = False,
        seed: int = 0,
        worker: int = 0,
        workers: int = 1,
    ) -> None:
        self._stages = stages
        self._workers = workers
        counts = (
            _random_counts(seed, worker, workers) if poisson else itertools.count(worker, workers)
        )
        self.times = _times(stages, counts)
        """The arrivals still to come."""

    def __iter__(self) -> Iterator[int]:
        return self.times

    def count(self, end: int) -> int:
        """Use up the arrivals before ``end``, in nanoseconds, and give their number.

        The first 100,000 are counted; how many more are due follows from the rate.

        >>> Schedule([Stage(0.005, 1000, 1000)]).count(3_000_000)
        3
        """
        number = last = 0
        # One more than is promised, to know whether any are left.
        for due in itertools.islice(self.times, COUNTED_EXACTLY + 1):
            if due >= end:
                return number
            number += 1
            last = due
        if number <= COUNTED_EXACTLY:
            return number
        left = round((self._total(end) - self._total(last)) / self._workers)
        return number + max(0, left - 1)

    def _total(self, moment: int) -> float:
        """Requests due up to a moment, of all workers."""
        total, left = 0.0, moment / 1e9
        for seconds, start, end in self._stages:
            spent = min(left, seconds)
            total += (start + (end - start) / seconds * spent / 2) * spent
            left -= spent
        return total


def _random_counts(seed: int, worker: int, workers: int) -> Iterator[float]:
    """Sums of exponentially distributed numbers with a mean of ``workers``."""
    uniform = random.Random(f"{seed}/{worker}").random
    log, count = math.log, 0.0
    while True:
        # By inversion; 1 - uniform() is never 0.
        count -= log(1.0 - uniform()) * workers
        yield count


def _times(stages: Sequence[Stage], counts: Iterator[float]) -> Iterator[int]:
    """Where the number of requests due passes each of ``counts``, in nanoseconds."""
    begin, passed = 0.0, 0.0  # seconds, and requests due, before the stage
    count: float = next(counts)
    for stage in stages:
        seconds, start, end = stage
        after = passed + stage.requests
        if start == end:
            begin_ns = begin * 1e9
            while count < after:  # never at a rate of 0
                # Some at a time, which is less work for each; of those over the
                # end the first is kept for the next stage.
                some: list[float] = [count, *itertools.islice(counts, _AT_A_TIME)]
                number = bisect.bisect_left(some, after)
                if number < len(some):
                    count, *rest = some[number:]
                    counts = itertools.chain(rest, counts)
                else:
                    count = next(counts)
                yield from [
                    round(begin_ns + (each - passed) * 1e9 / start) for each in some[:number]
                ]
        else:
            slope = (end - start) / seconds
            while count < after:
                due = count - passed
                # The root of start * t + slope / 2 * t**2 = due, in the form that
                # also holds for a slope near 0; rounding may take it below 0.
                root = math.sqrt(max(0.0, start * start + 2 * slope * due))
                yield round((begin + (2 * due / (start + root) if due else 0.0)) * 1e9)
                count = next(counts)
        begin, passed = begin + seconds, after

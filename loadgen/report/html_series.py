"""What the charts of the HTML report show: a run of any length in a few hundred points.

A point that stands for several seconds keeps the worst of them: the highest p99, the
slowest second, the most failures. A mean alone would hide a stall of a long run.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from loadgen.histogram import Histogram
from loadgen.tally import Interval

POINTS: Final = 300
"""Of a line in a chart, at most."""


@dataclass(frozen=True, slots=True)
class Bin:
    """One point of the charts over time: a second of the run, or several in a row.

    Attributes:
        start, end: seconds measured.
        rate: verified replies a second; None where too little was measured to tell.
        lowest: the least of any second in it.
        failed: requests that were wrong, failed or timed out in its worst second.
        p50: the middle one of its seconds', in nanoseconds.
        p99: the highest of its seconds'.
    """

    start: float
    end: float
    rate: float | None
    lowest: float | None
    failed: int
    p50: int | None
    p99: int | None

    @property
    def middle(self) -> float:
        """Where it stands on the time axis."""
        return (self.start + self.end) / 2


def bins(series: Sequence[Interval], points: int = POINTS) -> list[Bin]:
    """The series in at most so many points.

    >>> series = [Interval(start=float(at), requests=10, p99=2000 + at) for at in range(5)]
    >>> [(each.start, each.end, each.rate, each.p99) for each in bins(series, points=3)]
    [(0.0, 2.0, 10.0, 2001), (2.0, 4.0, 10.0, 2003), (4.0, 5.0, 10.0, 2004)]
    """
    size = max(1, math.ceil(len(series) / points))
    return [_bin(series[at : at + size]) for at in range(0, len(series), size)]


def _bin(seconds: Sequence[Interval]) -> Bin:
    rates = []
    requests, measured = 0, 0.0
    for each in seconds:
        # Of the last second only a part may have been measured; a very small one, in
        # which replies of the end are counted, says nothing of the rate.
        part = each.seconds
        if part >= 0.5 or (each.start == 0 and part > 0):
            requests, measured = requests + each.requests, measured + part
            rates.append(each.requests / part)
    return Bin(
        start=seconds[0].start,
        end=seconds[-1].start + seconds[-1].seconds,
        rate=requests / measured if measured else None,
        lowest=min(rates, default=None),
        failed=max(each.bad for each in seconds),
        p50=_median(each.p50 for each in seconds),
        p99=max((each.p99 for each in seconds if each.p99 is not None), default=None),
    )


def _median(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return statistics.median_low(known) if known else None


def percentile_curve(histogram: Histogram, points: int = POINTS) -> list[tuple[float, float]]:
    """Logarithms of ``1 / (1 - p)`` and of the nanoseconds there, evenly up to the highest.

    >>> histogram = Histogram()
    >>> histogram.record(range(1, 1001))
    >>> [(x, round(10 ** y)) for x, y in percentile_curve(histogram, points=4)]
    [(0.0, 1), (1.0, 900), (2.0, 990), (3.0, 1000)]
    """
    end = math.log10(len(histogram))
    places = [end * at / (points - 1) for at in range(points)]
    # The last value is the whole: its place is 1 / (1 - p) for the one before.
    percents = [100 * (1 - 10**-place) for place in places[:-1]] + [100.0]
    values = histogram.percentiles(percents)
    return [(x, math.log10(max(1, value))) for x, value in zip(places, values, strict=True)]

"""A server of known capacity under a load generator of known strength, without either."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from loadgen.capacity import Figures, Result, Step, Terms, search
from loadgen.histogram import Histogram, bucket_indices
from loadgen.plan import Plan
from loadgen.report.capacity import Findings
from loadgen.slo import parse_slo
from nbnet.notation import Address

MS = 1_000_000
OVERHEAD = 4.0
_SLOTS = 200

Measure = Callable[[float, float], Figures]


def terms(slo: str = "p99<10ms", **changes: Any) -> Terms:
    """The command's own, if it is not told otherwise."""
    return Terms(slo=parse_slo(slo), overhead=OVERHEAD, **changes)


def served(rate: float, seconds: float, limit: float, **changes: Any) -> Figures:
    """What is measured where no more than ``limit`` requests a second get through."""
    count = max(1, int(rate * seconds / _SLOTS))
    share = min(1.0, limit / rate)
    sent = math.floor(_SLOTS * share)
    latency: dict[int, int] = {}
    for slot in range(sent):
        waits = slot / _SLOTS * seconds * (1 / share - 1)
        [bucket] = bucket_indices([MS + int(waits * 1e9)])
        latency[bucket] = latency.get(bucket, 0) + count
    figures: dict[str, Any] = {
        "planned": _SLOTS * count,
        "sent": sent * count,
        "on_time": sent * count,
        "held": 50,
        "latency": Histogram(latency),
        "service": timed(50 * MS if share < 1 else MS),
        "busy": 1.0 if share < 1 else 0.1,
    }
    return Figures(**(figures | changes))


def timed(nanoseconds: int) -> Histogram:
    """One latency."""
    histogram = Histogram()
    histogram.record([nanoseconds])
    return histogram


def disturbed(rate: float, seconds: float) -> Figures:
    """A stall amid a step whose other requests were answered at once."""
    figures = served(rate, seconds, math.inf)
    figures.latency.merge(dict.fromkeys(bucket_indices([300 * MS]), figures.sent // 20))
    return figures


def ruined(rate: float, seconds: float) -> Figures:
    """A step in which hardly anything was answered, whatever the server can do."""
    return served(rate, seconds, rate / 10)


class Simulation:
    """Measures on a clock of its own.

    Args:
        capacity: requests a second that the server answers.
        loader: requests a second that the load generator sends.
        odd: what to measure in place of that, by the number of the step, from 0.
    """

    def __init__(
        self,
        capacity: float,
        *,
        loader: float = math.inf,
        odd: dict[int, Measure] | None = None,
    ) -> None:
        self.capacity = capacity
        self.loader = loader
        self.odd = odd or {}
        self.now = 100.0
        self.told: list[Step] = []

    def measure(self, rate: float, seconds: float) -> Figures:
        """One step."""
        self.now += seconds + OVERHEAD
        if len(self.told) in self.odd:
            return self.odd[len(self.told)](rate, seconds)
        if rate > self.loader and self.loader < self.capacity:
            return served(rate, seconds, self.loader, loader_bound=True, reason="it was busy")
        return served(rate, seconds, self.capacity)

    def search(self, terms: Terms) -> Result:
        """The whole search, which has to keep to what it announces."""
        result = search(terms, self.measure, clock=lambda: self.now, tell=self.told.append)
        assert list(result.steps) == self.told
        assert self.now - 100.0 <= terms.seconds
        return result


def found(**changes: Any) -> Result:
    """A search that found 39,800 of a server's 41,000."""
    return Simulation(41_000).search(terms(**changes))


def findings(result: Result, **changes: Any) -> Findings:
    """Of a search that took a minute."""
    values: dict[str, Any] = {
        "plan": Plan(rate=1.0),
        "target": Address("127.0.0.1", 6789),
        "embedded": False,
        "workers": 1,
        "started_at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "seconds": 61.0,
    }
    return Findings(result=result, **(values | changes))

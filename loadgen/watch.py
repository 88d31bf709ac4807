"""While a run goes on: whether a threshold has failed for good.

It has if nothing to come can mend it: a wrong reply stays one. Of rates, shares
and percentiles that is never certain; they have failed if what was measured in
``SURE_FROM`` seconds or more is beyond the limit, in favour of the server: what
is on its way counts as if it were there, and so does what an open loop should have
sent in the last ``SURE_FROM`` seconds: it catches up after a short stall.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from loadgen.plan import Plan
from loadgen.tally import Phase, Snapshot, Tally
from loadgen.thresholds import BAD, METRICS, Result, Threshold, Unit, Whole, time_of

SURE_FROM: Final = 1.0
"""Seconds measured from which on rates, shares and percentiles may end a run."""
_ROUND: Final = 0.25
"""Seconds from one snapshot of an engine to the next."""


@dataclass(slots=True)
class Watch:
    """Tells, from one snapshot to the next, whether a threshold has failed for good.

    With several workers, rates and the like are looked at when each of them has
    told of the same moment: the others' replies would be missing.

    Attributes:
        workers: how many engines there are.
        failed: the first that failed.
    """

    thresholds: Sequence[Threshold]
    plan: Plan
    workers: int
    failed: Result | None = None
    _round: int = 0
    _heard: int = 0
    _least: float = 0.0

    def look(self, snapshot: Snapshot, tally: Tally) -> bool:
        """Whether this snapshot, already in the tally, made one fail that had not before."""
        if self.failed is not None or snapshot.phase in (Phase.DRAINING, Phase.DONE):
            return False  # nothing is left to be spared
        complete = self._completes(snapshot)
        for threshold in self.thresholds:
            bounds = self._bounds(threshold, tally, complete)
            if bounds is not None and threshold.holds_between(*bounds):
                # The end that is known by now: only the least of all can still shrink.
                known = bounds[1] if threshold.metric.endswith("min") else bounds[0]
                self.failed = Result(threshold, known, False)
                return True
        return False

    def _completes(self, snapshot: Snapshot) -> bool:
        """Whether every engine has told of the moment that this snapshot is of."""
        if snapshot.phase is not Phase.MEASURING:
            return False
        number = int(snapshot.elapsed / _ROUND)
        if number > self._round:
            self._round, self._heard, self._least = number, 0, snapshot.elapsed
        if number == self._round:
            self._heard += 1
            self._least = min(self._least, snapshot.elapsed)
        return number == self._round and self._heard == self.workers

    def _bounds(
        self, threshold: Threshold, tally: Tally, complete: bool
    ) -> tuple[float, float] | None:
        """Between what the value will be in the end; None if there is no telling yet."""
        metric = METRICS.get(threshold.metric)
        sure = complete and self._least >= SURE_FROM
        if metric is None:
            return _time_bounds(threshold.metric, tally, sure)
        if metric.whole is Whole.CORE or threshold.metric in ("unsent", "served"):
            return None  # engines tell in the end
        value = metric.count(tally)
        if metric.whole is Whole.ASKED:
            asked = self.plan.connections
            most = value if tally.phase in (Phase.WARMING, Phase.MEASURING) else asked
            return (value / asked, most / asked) if threshold.unit is Unit.SHARE else (value, most)
        if threshold.unit is Unit.COUNT:
            return value, math.inf
        if not sure:
            return None
        # Replies on their way may still come in time, and those to what is late.
        counts, due = tally.counts, _due(self.plan, self._least)
        high = value
        if threshold.metric in ("rate", "verified"):
            high += counts.sent - counts.verified - sum(getattr(counts, bad) for bad in BAD)
            just_due = due - _due(self.plan, self._least - SURE_FROM)
            high += max(0, min(due - counts.sent, just_due))
        if threshold.unit is Unit.RATE:
            if self.plan.stages:
                return None  # what is slow now may be planned so
            return value / tally.elapsed, high / self._least
        planned = max(counts.sent, due)
        whole = metric.out_of(self.plan, tally, planned)
        return (value / whole, high / whole) if whole else None


def _time_bounds(metric: str, tally: Tally, sure: bool) -> tuple[float, float] | None:
    figure = metric.rpartition(".")[2]
    if not (sure or figure in ("max", "min")):
        return None
    value = time_of(metric, tally)
    if value is None:
        return None
    if figure == "max":
        return value, math.inf
    return (0.0 if figure == "min" else value), value


def _due(plan: Plan, elapsed: float) -> int:
    """Requests that an open loop was to send in so many seconds from the end of the warm-up."""
    if not plan.is_open_loop:
        return 0
    due, begins = 0.0, -plan.warmup
    for stage in plan.schedule_stages:
        ends = begins + stage.seconds
        since, until = max(begins, 0.0), min(ends, elapsed)
        if until > since:
            slope = (stage.end - stage.start) / stage.seconds
            middle = stage.start + slope * ((since + until) / 2 - begins)
            due += middle * (until - since)
        begins = ends
    return int(due if plan.requests is None else min(due, plan.requests))

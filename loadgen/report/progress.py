"""What is told of a run while it goes on, on standard error.

On a terminal it is a display that is redrawn (``loadgen.report.live``); elsewhere
a line every five seconds, and none of a run that is shorter. Both say what
``Watcher`` finds in a tally, and cost the parent process less than 1 % of a core.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from loadgen.plan import Plan
from loadgen.tally import SECONDS_OPEN, Counts, Phase, Tally
from nbnet.notation import format_duration

LINE_EVERY: Final = 5.0
"""Seconds between lines where there is no terminal, and before the first."""
assert LINE_EVERY <= SECONDS_OPEN, "a line tells of all that came since the one before"
_SETTLED: Final = 0.2
"""Seconds after which a second has been heard of from every engine, as a rule."""
_EARLY: Final = 0.05
"""Seconds by which something may come before its time, since snapshots come a little
unevenly: otherwise every other one would be passed over."""

Clock = Callable[[], float]
Draw = Callable[[Tally], None]


@contextlib.contextmanager
def live_progress(plan: Plan, *, clock: Clock = time.monotonic) -> Iterator[Draw]:
    """Give what tells of a tally; to be called for each snapshot, and cheap to call.

    A terminal is left as it was found, whatever ends the block.

    Args:
        plan: what was asked.
        clock: monotonic seconds.
    """
    if sys.stderr.isatty():
        from loadgen.report.live import live_display  # loads rich, which takes its time

        with live_display(plan, clock) as draw:
            if draw is not None:
                yield draw
                return
    yield Lines(plan, clock, lambda line: print(line, file=sys.stderr, flush=True)).draw


@contextlib.contextmanager
def no_progress() -> Iterator[Draw]:
    """Tell nothing."""
    yield lambda _: None


class Pace:
    """Lets something happen so many times a second at most.

    >>> pace = Pace(0.25)
    >>> [pace.allows(now) for now in (10.0, 10.1, 10.26, 10.49, 10.6)]
    [True, False, True, True, False]
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._due = -math.inf

    def allows(self, now: float) -> bool:
        """Whether it may happen now; then it counts as done."""
        if now < self._due - _EARLY:
            return False
        self._due = max(self._due, now) + self._interval
        return True


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes:
        phase: what it does, in words.
        state: how far that is, in words; may be empty.
        share: the same from 0 to 1.
    """

    phase: str
    state: str
    share: float


class Watcher:
    """Finds out how far a run is, from one tally to the next."""

    def __init__(self, plan: Plan, clock: Clock) -> None:
        self._plan = plan
        self._clock = clock
        self._warm_at: float | None = None

    def look(self, tally: Tally) -> Progress:
        """How far the run is by this tally."""
        plan, counts, phase = self._plan, tally.counts, tally.phase
        if phase in (Phase.CONNECTING, Phase.READY):
            made = f"{counts.held:,} of {plan.connections:,}"
            return Progress(phase.value, made, _share(counts.held, plan.connections))
        if phase is Phase.WARMING:
            # Engines do not tell how far they are with it.
            if self._warm_at is None:
                self._warm_at = self._clock()
            passed = self._clock() - self._warm_at
            return Progress(phase.value, _left(plan.warmup - passed), _share(passed, plan.warmup))
        if phase is Phase.MEASURING:
            return self._measuring(tally)
        late = counts.sent - answered(counts)
        if phase is Phase.DRAINING:
            return Progress("waiting for late replies", f"{late:,} left" if late > 0 else "", 1.0)
        return Progress(phase.value, "", 1.0)

    def _measuring(self, tally: Tally) -> Progress:
        plan, phase = self._plan, tally.phase.value
        left = plan.duration - tally.elapsed
        share = _share(tally.elapsed, plan.duration)
        if plan.requests is None:
            return Progress(phase, _left(left), share)
        done = answered(tally.counts)
        state = f"{max(0, plan.requests - done):,} requests left"
        if done and tally.elapsed:
            # The duration may be a bound that nobody asked for.
            left = min(left, (plan.requests - done) * tally.elapsed / done)
            state += f", {_span(math.ceil(max(0.0, left)))}"
        return Progress(phase, state, max(share, _share(done, plan.requests)))


class Lines:
    """A line every five seconds, for logs.

    Args:
        plan: what was asked.
        clock: monotonic seconds.
        write: takes the lines.
    """

    def __init__(self, plan: Plan, clock: Clock, write: Callable[[str], None]) -> None:
        self._plan = plan
        self._clock = clock
        self._write = write
        self._watcher = Watcher(plan, clock)
        self._due = clock() + LINE_EVERY
        self._told = 0  # lines of the measured time that were due so far

    def draw(self, tally: Tally) -> None:
        """Write a line of the tally, if it is time to."""
        progress = self._watcher.look(tally)
        if tally.phase is Phase.DONE:
            return
        if tally.phase is Phase.MEASURING:
            self._due = self._clock() + LINE_EVERY
            # By the time measured, so that each line is of whole seconds.
            due = int((tally.elapsed - _SETTLED) // LINE_EVERY)
            if due > self._told:
                self._told = due
                self._write(self._measured(tally))
        elif self._clock() >= self._due:
            self._due += LINE_EVERY * ((self._clock() - self._due) // LINE_EVERY + 1)
            said = [progress.state, *faults(tally.counts)]
            self._write(f"{progress.phase}: {', '.join(filter(None, said))}".removesuffix(": "))

    def _measured(self, tally: Tally) -> str:
        plan, last = self._plan, tally.last(int(LINE_EVERY))
        each = tally.requests_by_second(int(LINE_EVERY))
        rate = sum(each) / len(each) if each else tally.rate
        if plan.requests is None:
            head = f"{_span(tally.elapsed)} of {_span(plan.duration)}"
        else:
            head = f"{answered(tally.counts):,} of {plan.requests:,} requests"
        parts = [f"{rate:,.0f} requests/s"]
        if last is not None and last.p50 is not None and last.p99 is not None:
            parts += [f"p50 {brief(last.p50)}", f"p99 {brief(last.p99)}"]
        return f"{head}: {', '.join([*parts, *(faults(tally.counts) or ['0 bad'])])}"


def answered(counts: Counts) -> int:
    """Requests of which nothing is to come any more."""
    return counts.verified + counts.wrong + counts.failed + counts.timed_out


def connected(plan: Plan, counts: Counts) -> int:
    """Connections held now.

    >>> connected(Plan(connections=5), Counts(held=5, lost=3, reconnected=1))
    3
    """
    # One that has had its requests is no loss, and its successor is counted.
    return max(0, min(plan.connections, counts.held - counts.lost + counts.reconnected))


def faults(counts: Counts) -> list[str]:
    """What went wrong so far: requests, connections that ended, connections not made.

    >>> faults(Counts(wrong=2, failed=1000, lost=2))
    ['1,002 bad', '2 lost']
    """
    return [
        f"{number:,} {what}"
        for number, what in (
            (counts.wrong + counts.failed + counts.timed_out, "bad"),
            (counts.lost, "lost"),
            (counts.failed_to_connect, "not connected"),
        )
        if number
    ]


def brief(nanoseconds: int) -> str:
    """A latency as short as people can compare it.

    >>> brief(1_234_567)
    '1.23 ms'
    """
    return format_duration(nanoseconds / 1e9)


def _share(part: float, whole: float) -> float:
    return min(1.0, part / whole) if whole else 1.0


def _left(seconds: float) -> str:
    return f"{_span(math.ceil(max(0.0, seconds)))} left"


def _span(seconds: float) -> str:
    """Whole seconds, as short as can be.

    >>> _span(12.9), _span(125), _span(3720)
    ('12 s', '2m05s', '1h02m')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest} s"

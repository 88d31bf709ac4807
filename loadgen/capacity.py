"""The search for the highest rate that holds an objective, without any I/O.

It is handed what measures at a rate, and decides what to measure next:

1. from the start rate it doubles until a rate does not hold (or, if the first
   does not, quarters until one does);
2. between the two it halves, geometrically, down to the precision;
3. the best rate is confirmed by a longer run, or a lower one in its place.

Noise only ever makes a rate look worse. So what held once has held, until the
confirmation says otherwise; what did not hold is measured once more before it
counts, unless it missed by far (half of all requests over the bound, and a tenth
not answered in time). The rate right above the answer has in any case been
measured twice: where a rate misses by far and one little below it holds, the
two contradict each other, and so do a rate that held and its confirmation that
misses, which is repeated. One bad step, wherever it is, costs its time alone.

The search ends in a time that is known before: steps and confirmations are
bounded, and none is begun that does not fit.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from loadgen.histogram import Histogram
from loadgen.report import Run
from loadgen.slo import Slo
from loadgen.verdict import NOTICEABLE_LAG, REACHED

UP: Final = 2.0
"""The factor from one rate to the next while all hold."""
DOWN: Final = 4.0
"""The same downwards, while none holds."""
LOWEST: Final = 1.0
"""Requests a second below which there is no search."""
CONFIRMATIONS: Final = 6
"""Longer runs at most, of the best rate and of lower ones, with their repetitions."""
FAR: Final = 0.9
"""The share of the requests answered in time below which a miss may be a clear one."""
ALL_WAITING: Final = 0.8
"""The share of the possible requests in flight from which on there is no free connection."""
UNCHANGED: Final = 2.0
"""The factor below which a server's own time has not grown with the rate."""


class Outcome(enum.Enum):
    """What a step came to."""

    HELD = "held"
    SLO_MISSED = "SLO missed"
    RATE_MISSED = "rate missed"
    """Too few of the planned requests could be sent."""
    LOADER_BOUND = "loader-bound"
    """It did not hold, and that is the load generator's doing."""
    WRONG = "wrong replies"
    UNCONNECTED = "no connection"
    INTERRUPTED = "interrupted"


_NO_LIMITS: Final = (Outcome.WRONG, Outcome.UNCONNECTED, Outcome.INTERRUPTED)


class Limit(enum.Enum):
    """What keeps the rate from being higher."""

    SERVER = "server"
    LOADER = "loader"
    CONNECTIONS = "connections"
    """All of them waited for replies, which took no longer than at a low rate."""
    MAX_RATE = "max-rate"
    UNKNOWN = "unknown"
    """The search ended before it was found."""


class Ending(enum.Enum):
    """Why a search ended."""

    FOUND = "found"
    TIME = "out of time"
    WRONG = "wrong replies"
    UNCONNECTED = "no connection"
    """Nor when it was tried again."""
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was measured at a rate.

    Attributes:
        planned, sent: requests.
        on_time: right replies that came before the time was over.
        wrong: replies that were not right.
        failed: requests without a reply.
        held, unconnected: connections made, and not made.
        latency: of all replies, since their requests were due, in nanoseconds.
        service: the same since they were sent.
        busy: the share of the possible requests in flight, on average.
        loader_bound: whether the figures are rather the loader's.
        reason: why, and what to do.
        interrupted: whether somebody ended it early.
    """

    planned: int
    sent: int
    on_time: int
    wrong: int = 0
    failed: int = 0
    held: int = 1
    unconnected: int = 0
    latency: Histogram = field(default_factory=Histogram)
    service: Histogram = field(default_factory=Histogram)
    busy: float = 0.0
    loader_bound: bool = False
    reason: str | None = None
    interrupted: bool = False

    @classmethod
    def of(cls, run: Run) -> Figures:
        """The figures of a run."""
        counts, loader = run.tally.counts, run.loader
        planned = counts.sent + counts.unsent
        lag = Histogram(counts.lag)
        # Where it noticed most requests late that a connection was free for.
        behind = (
            counts.sent < REACHED * planned
            and 2 * len(lag) > counts.sent
            and lag.percentile(99) > NOTICEABLE_LAG
        )
        return cls(
            planned=planned,
            sent=counts.sent,
            on_time=counts.on_time,
            wrong=counts.wrong,
            failed=counts.failed + counts.timed_out,
            held=counts.held,
            unconnected=counts.failed_to_connect,
            latency=run.tally.latency,
            service=run.tally.service,
            busy=loader.in_flight / run.plan.in_flight,
            loader_bound=bool(loader.bound) or behind,
            reason=loader.reason or ("requests went out late" if behind else None),
            interrupted=run.interrupted,
        )

    def percentile(self, percent: float) -> float:
        """Seconds that this share of the planned requests does not exceed; infinite beyond them.

        >>> latency = Histogram()
        >>> latency.record([1_000_000] * 98)
        >>> measured = Figures(planned=100, sent=98, on_time=98, latency=latency)
        >>> round(measured.percentile(98), 4), measured.percentile(99)
        (0.001, inf)
        """
        replies = len(self.latency)
        rank = math.floor(percent * max(self.planned, replies) / 100 + 0.5)
        if not replies or rank > replies:
            return math.inf
        # The middle of the rank, clear of rounding to either side.
        return self.latency.percentile(100 * max(rank, 1) / replies) / 1e9

    @property
    def mean(self) -> float:
        """Seconds, of the replies; infinite without any."""
        return self.latency.mean / 1e9 if self.latency else math.inf

    @property
    def slowest(self) -> float:
        """Seconds, of the replies; infinite without any."""
        return self.latency.max / 1e9 if self.latency else math.inf

    @property
    def errors(self) -> float:
        """The share of the requests sent that failed or got a wrong reply."""
        return (self.failed + self.wrong) / self.sent if self.sent else 0.0

    @property
    def sent_share(self) -> float:
        """The share of the planned requests that was sent."""
        return self.sent / self.planned if self.planned else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What is searched for, and how. Times in seconds, rates in requests a second.

    Attributes:
        slo: what has to hold.
        start: the rate to begin with.
        max_rate: the highest to try.
        precision: how far the lowest rate that does not hold may be above the answer.
        step: how long each rate is measured.
        confirm: how long the answer is.
        sent_share: the share of the planned requests that has to be sent.
        overhead: what a step takes beyond its measured time, at most.
        max_time: how long the whole may take; None is as long as the steps need.

    Raises:
        ValueError: they make no sense.
    """

    slo: Slo
    start: float = 1000.0
    max_rate: float = 1e6
    precision: float = 0.05
    step: float = 3.0
    confirm: float = 10.0
    sent_share: float = REACHED
    overhead: float = 0.0
    max_time: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.start <= self.max_rate < math.inf:
            raise ValueError(
                f"a start rate of {self.start:,.10g}: more than 0 is needed, and at most the "
                f"highest rate, {self.max_rate:,.10g}"
            )
        if not 0.001 <= self.precision <= 0.5:
            raise ValueError(
                f"a precision of {100 * self.precision:g} %: 0.1 % to 50 % is possible"
            )
        if not 0 < self.sent_share <= 1:
            raise ValueError(f"{100 * self.sent_share:g} % of the requests: up to 100 % are needed")
        if not (self.step > 0 and self.confirm > 0):
            raise ValueError("steps of 0 s: more than 0 is needed")
        least = self.step + self.confirm + 2 * self.overhead
        if self.max_time is not None and self.max_time < least:
            raise ValueError(
                f"{self.max_time:g} s are too short: one step and a confirmation may take "
                f"{least:.0f} s"
            )

    @property
    def lowest(self) -> float:
        """The lowest rate to try."""
        return min(LOWEST, self.start)

    @property
    def most_steps(self) -> int:
        """Steps at most, without confirmations."""
        up = math.ceil(math.log(self.max_rate / self.start, UP))
        down = math.ceil(math.log(self.start / self.lowest, DOWN))
        halves = math.ceil(math.log2(math.log(DOWN) / math.log(1 + self.precision)))
        # Each of these may be measured twice, and so the two that they begin between.
        return 1 + max(up, down) + 2 * halves + 2

    @property
    def seconds(self) -> float:
        """How long the search may take."""
        steps = self.most_steps * (self.step + self.overhead)
        whole = steps + CONFIRMATIONS * (self.confirm + self.overhead)
        return whole if self.max_time is None else min(whole, self.max_time)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A rate that was measured.

    Attributes:
        rate: requests a second.
        seconds: for how long.
        confirms: whether it is one of the longer runs.
        repeats: whether the same was measured just before.
        outcome: what it came to.
        why: in words, what was missed; empty if it held.
    """

    rate: float
    seconds: float
    confirms: bool
    repeats: bool
    figures: Figures
    outcome: Outcome
    why: str

    @property
    def held(self) -> bool:
        """Whether the rate held."""
        return self.outcome is Outcome.HELD


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a search came to.

    Attributes:
        terms: what was searched for.
        steps: in the order in which they were measured.
        confirmed: the run that confirms the answer.
        best: the highest rate that held, confirmed or not.
        limit: what keeps it from being higher.
        reason: of a loader that is the limit, why, and what to do.
        ending: why the search ended.
    """

    terms: Terms
    steps: tuple[Step, ...]
    confirmed: Step | None
    best: float | None
    limit: Limit
    reason: str | None
    ending: Ending


def assess(figures: Figures, terms: Terms) -> tuple[Outcome, str]:
    """What a step came to, and why."""
    if figures.interrupted:
        return Outcome.INTERRUPTED, "ended early"
    if figures.wrong:
        return Outcome.WRONG, f"{figures.wrong:,} of {figures.sent:,}"
    if not figures.held:
        return Outcome.UNCONNECTED, "none could be made"
    why = []
    rate_missed = figures.sent_share < terms.sent_share
    if rate_missed:
        # Rounded down: 99.0 % are not too few.
        why.append(f"{math.floor(1000 * figures.sent_share) / 10:.1f} % sent")
    if figures.unconnected:
        why.append(f"{figures.unconnected:,} connections not made")
    if figures.failed and not terms.slo.allows_errors:
        why.append(f"{figures.failed:,} requests failed")
    why += terms.slo.missed(figures)
    if not why:
        return Outcome.HELD, ""
    if figures.loader_bound:
        return Outcome.LOADER_BOUND, ", ".join(why)
    return Outcome.RATE_MISSED if rate_missed else Outcome.SLO_MISSED, ", ".join(why)


def is_clear(figures: Figures, terms: Terms) -> bool:
    """Whether a miss is so far off that no short disturbance explains it."""
    return (
        figures.on_time < FAR * figures.planned and not figures.percentile(50) <= terms.slo.longest
    )


def search(
    terms: Terms,
    measure: Callable[[float, float], Figures],
    *,
    clock: Callable[[], float],
    tell: Callable[[Step], None] = lambda _: None,
) -> Result:
    """Search for the highest rate that holds.

    Args:
        measure: measures at a rate for so many seconds, once the server has settled.
        clock: monotonic seconds.
        tell: is called with each step when it is over.

    A ``KeyboardInterrupt`` out of any of them ends the search, which gives what it found.
    """
    return _Search(terms, measure, clock, tell).run()


class _EndError(Exception):
    """The search ends here."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending)
        self.ending = ending


class _Search:
    def __init__(
        self,
        terms: Terms,
        measure: Callable[[float, float], Figures],
        clock: Callable[[], float],
        tell: Callable[[Step], None],
    ) -> None:
        self._terms = terms
        self._measure = measure
        self._clock = clock
        self._tell = tell
        self._until = clock() + terms.seconds
        self._left = terms.most_steps
        self._confirmations = CONFIRMATIONS
        self._steps: list[Step] = []
        self._low: float | None = None  # the highest rate that held
        self._missed: dict[float, int] = {}  # rates that did not, and how often
        self._confirmed: Step | None = None

    def run(self) -> Result:
        ending = Ending.FOUND
        try:
            try:
                while (rate := self._next()) is not None:
                    self._try(rate)
            except _EndError as over:
                if over.ending is not Ending.TIME:
                    raise
                ending = Ending.TIME
            self._confirm()
        except _EndError as over:
            ending = over.ending
        except KeyboardInterrupt:
            ending = Ending.INTERRUPTED
        limit, reason = self._limit()
        return Result(
            terms=self._terms,
            steps=tuple(self._steps),
            confirmed=self._confirmed,
            best=self._confirmed.rate if self._confirmed else self._low,
            limit=limit,
            reason=reason,
            ending=ending,
        )

    @property
    def _high(self) -> float | None:
        """The lowest rate that did not hold."""
        return min(self._missed, default=None)

    def _next(self) -> float | None:
        """The rate to measure next; None when the answer is known."""
        terms, low, high = self._terms, self._low, self._high
        if low is None:
            if high is None:
                return terms.start
            return max(high / DOWN, terms.lowest) if high > terms.lowest else None
        if high is None:
            return min(low * UP, terms.max_rate) if low < terms.max_rate else None
        if high > low * (1 + terms.precision):
            return between(low, high)
        return high if self._missed[high] == 1 else None

    def _try(self, rate: float) -> None:
        """Measure a rate, a second time if it did not hold and might have."""
        terms = self._terms
        step = self._step(rate, terms.step, repeats=rate in self._missed)
        if not step.held:
            self._missed[rate] = self._missed.get(rate, 0) + 1
            if self._missed[rate] > 1 or is_clear(step.figures, terms):
                return
            step = self._step(rate, terms.step, repeats=True)
            self._missed[rate] += 1
        if step.held:
            self._low = rate
            self._missed.pop(rate, None)

    def _confirm(self) -> None:
        """Hold the best rate for longer, or a lower one; each time farther below."""
        rate, terms = self._low, self._terms
        if rate is None:
            return
        down = 1 + terms.precision
        while rate >= terms.lowest:
            step = self._step(rate, terms.confirm, confirms=True)
            # The first rate has held before, which a miss contradicts, however clear it is.
            if not step.held and (rate == self._low or not is_clear(step.figures, terms)):
                step = self._step(rate, terms.confirm, confirms=True, repeats=True)
            if step.held:
                self._confirmed = step
                return
            rate, down = round_rate(rate / down), down * down

    def _step(
        self, rate: float, seconds: float, *, confirms: bool = False, repeats: bool = False
    ) -> Step:
        """Measure once, if there is time for it."""
        terms = self._terms
        needed = seconds + terms.overhead
        if confirms:
            self._confirmations -= 1
            spent = self._confirmations < 0
        else:
            self._left -= 1
            spent = self._left < 0
            needed += terms.confirm + terms.overhead  # what is found has to be confirmed
        if spent or self._clock() + needed > self._until:
            raise _EndError(Ending.TIME)
        figures = self._measure(rate, seconds)
        outcome, why = assess(figures, terms)
        step = Step(
            rate=rate,
            seconds=seconds,
            confirms=confirms,
            repeats=repeats,
            figures=figures,
            outcome=outcome,
            why=why,
        )
        self._steps.append(step)
        self._tell(step)
        if outcome is Outcome.INTERRUPTED:
            raise _EndError(Ending.INTERRUPTED)
        if outcome is Outcome.WRONG:  # a matter of no rate
            raise _EndError(Ending.WRONG)
        if [each.outcome for each in self._steps[-2:]] == [Outcome.UNCONNECTED] * 2:
            raise _EndError(Ending.UNCONNECTED)
        return step

    def _limit(self) -> tuple[Limit, str | None]:
        """What stands above the answer, and of the loader, why."""
        best = self._confirmed.rate if self._confirmed else self._low
        above = [
            step
            for step in self._steps
            if not step.held
            and step.outcome not in _NO_LIMITS
            and (best is None or step.rate > best or step.confirms)
        ]
        if not above:
            at_most = best is not None and best >= self._terms.max_rate
            return (Limit.MAX_RATE if at_most else Limit.UNKNOWN), None
        lowest = min(step.rate for step in above)
        step = [step for step in above if step.rate == lowest][-1]
        if step.outcome is Outcome.LOADER_BOUND:
            return Limit.LOADER, step.figures.reason
        return (Limit.CONNECTIONS if self._all_waited(step.figures) else Limit.SERVER), None

    def _all_waited(self, figures: Figures) -> bool:
        """Whether there were too few connections for a server that was as quick as ever."""
        held = [step for step in self._steps if step.held and step.figures.service]
        if not held or figures.busy < ALL_WAITING:
            return False
        unloaded = min(held, key=lambda step: step.rate).figures.service.percentile(50)
        return figures.service.percentile(50) < UNCHANGED * unloaded


def round_rate(rate: float) -> float:
    """To three significant digits.

    >>> round_rate(41_487.3), round_rate(2.2360)
    (41500.0, 2.24)
    """
    return float(f"{rate:.3g}")


def between(low: float, high: float) -> float:
    """The geometric middle, rounded where that keeps it between.

    >>> between(1000, 2000), between(1000.2, 1000.4) == math.sqrt(1000.2 * 1000.4)
    (1410.0, True)
    """
    middle = math.sqrt(low * high)
    rounded = round_rate(middle)
    # Rounded to either end it would be no progress; near one, little.
    off = abs(math.log(rounded / middle))
    return rounded if off < math.log(high / low) / 8 else middle

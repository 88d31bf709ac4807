"""When a run fails: ``METRIC OP VALUE``, as in ``p99>5ms``.

The rules:

* an expression says when the run fails, not when it is fine;
* ``METRICS`` and ``SOURCES`` are all there is; help and errors are made from them;
* what was not measured fails: a limit on latency is not kept by a run without replies.
"""

from __future__ import annotations

import enum
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from loadgen.histogram import Histogram
from loadgen.plan import Plan, PlanError, parse_rate, parse_share
from loadgen.tally import Tally
from nbnet.notation import format_duration, parse_count, parse_duration

if TYPE_CHECKING:
    from loadgen.verdict import Loader


class Unit(enum.Enum):
    """What a value may be; the words are those of error messages."""

    TIME = "a time like 5ms"
    COUNT = "a count like 5k"
    RATE = "a rate like 40k"
    SHARE = "a share like 0.1% (0% to 100%)"


class Whole(enum.Enum):
    """What a share is of."""

    PLANNED = "requests planned"
    ASKED = "connections asked"
    MADE = "connections made"
    CORE = "a core"


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure with one value a run.

    Attributes:
        about: what it is.
        whole: what 100 % of it are.
        unit: of a value that is no share; None if it can only be a share.
        counts: the fields of ``Counts`` that it is the sum of.
        covers: the faults of which a threshold on this metric speaks: it alone
            decides whether they fail the run.
    """

    about: str
    whole: Whole
    unit: Unit | None = Unit.COUNT
    counts: tuple[str, ...] = ()
    covers: tuple[str, ...] = ()

    @property
    def units(self) -> tuple[Unit, ...]:
        """What its value may be."""
        return (Unit.SHARE,) if self.unit is None else (self.unit, Unit.SHARE)

    def count(self, tally: Tally) -> int:
        """What was counted of it."""
        return sum(getattr(tally.counts, each) for each in self.counts)

    def out_of(self, plan: Plan, tally: Tally, planned: int) -> int:
        """What a share of it is of, where so many requests were planned."""
        if self.whole is Whole.ASKED:
            return plan.connections
        if self.whole is Whole.MADE:
            return tally.counts.held + tally.counts.reconnected
        return planned


BAD: Final = ("wrong", "failed", "timed_out")
"""What becomes of a request that is not answered rightly, by the names in ``Counts``."""
METRICS: Final = {
    "rate": Metric("verified replies a second", Whole.PLANNED, Unit.RATE, ("on_time",)),
    "errors": Metric("wrong, failed and timed_out together", Whole.PLANNED, counts=BAD, covers=BAD),
    "wrong": Metric("wrong replies", Whole.PLANNED, counts=("wrong",), covers=("wrong",)),
    "failed": Metric(
        "requests whose connection ended", Whole.PLANNED, counts=("failed",), covers=("failed",)
    ),
    "timed_out": Metric(
        "requests without a reply", Whole.PLANNED, counts=("timed_out",), covers=("timed_out",)
    ),
    "sent": Metric("requests sent", Whole.PLANNED, counts=("sent",)),
    "verified": Metric("replies that were right", Whole.PLANNED, counts=("verified",)),
    "late": Metric("requests sent over 1 ms late", Whole.PLANNED, counts=("late",)),
    "unsent": Metric("requests due and not sent", Whole.PLANNED, counts=("unsent",)),
    "held": Metric(
        "connections made", Whole.ASKED, counts=("held",), covers=("failed_to_connect",)
    ),
    "unconnected": Metric(
        "connections not made",
        Whole.ASKED,
        counts=("failed_to_connect",),
        covers=("failed_to_connect",),
    ),
    "served": Metric("connections with a right reply", Whole.MADE, counts=("served",)),
    "lost": Metric("connections lost", Whole.MADE, counts=("lost",), covers=("lost",)),
    "cpu": Metric("what each worker used of its core", Whole.CORE, None),
}
"""Figures with one value a run, by name."""
SOURCES: Final[dict[str, tuple[str, Callable[[Tally], Histogram]]]] = {
    "latency": ("since a request was due", lambda tally: tally.latency),
    "service": ("since it was sent", lambda tally: tally.service),
    "connect": ("of making connections", lambda tally: tally.connect),
    "server": ("until a reply was here", lambda tally: Histogram(tally.counts.server)),
    "loader": ("from there until it was read", lambda tally: Histogram(tally.counts.wait)),
    "lag": ("by which sends were noticed late", lambda tally: Histogram(tally.counts.lag)),
}
"""Times; of each there are percentiles, mean, min and max. The first needs no name."""
OPERATORS: Final[dict[str, Callable[[float, float], bool]]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
}
_FIGURES: Final = "mean, min, max or a percentile like p99.9"
_DEFAULT_SOURCE, *_OTHER_SOURCES = SOURCES
NAMES: Final = (
    f"p50, p99.9, mean, min, max (alone of {_DEFAULT_SOURCE}, or as in service.p99 of "
    f"{', '.join(_OTHER_SOURCES)}), {', '.join(METRICS)}"
)
"""All metrics, in a line."""

# Compiled when they are used, as most runs have no threshold.
_EXPRESSION: Final = r"(?s)\s*([\w.]*)\s*(<=|>=|==|!=|<|>)?\s*(.*?)\s*"
_PERCENTILE: Final = r"p([0-9]{1,3}(?:\.[0-9]{1,9})?)"


@dataclass(frozen=True, slots=True)
class Threshold:
    """A limit; the run fails if it holds.

    Attributes:
        expression: as it was given.
        metric: what of the run.
        comparison: one of ``OPERATORS``.
        limit: seconds, a count, a rate a second, or a share from 0 to 1.
        unit: which of them.
        shown: the limit for people.
    """

    expression: str
    metric: str
    comparison: str
    limit: float
    unit: Unit
    shown: str

    def holds(self, value: float) -> bool:
        """Whether the run fails with this value."""
        return OPERATORS[self.comparison](value, self.limit)

    def holds_between(self, low: float, high: float) -> bool:
        """Whether the run fails with every value from ``low`` to ``high``."""
        if self.comparison == "!=":
            return not low <= self.limit <= high
        return self.holds(low) and self.holds(high)

    def __str__(self) -> str:
        """The expression, evenly spaced."""
        return f"{self.metric} {self.comparison} {self.shown}"


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a threshold.

    Attributes:
        value: in the unit of its limit; None if that was not measured.
        passed: whether the limit was kept.
    """

    threshold: Threshold
    value: float | None
    passed: bool

    @property
    def expression(self) -> str:
        """The threshold as it was given."""
        return self.threshold.expression

    @property
    def shown(self) -> str:
        """The value for people, with as many digits as it takes to see whether it passed.

        >>> Result(parse_threshold("rate<40k"), 39_999.7, False).shown
        '39,999.7/s'
        """
        if self.value is None:
            return "not measured"
        if self.threshold.unit is Unit.COUNT:
            return f"{self.value:,.0f}"
        if self.threshold.unit is Unit.TIME:
            return self._time(self.value)
        share = self.threshold.unit is Unit.SHARE
        scale, decimals = (100, 2) if share else (1, 0 if self.value >= 100 else 2)
        number = Decimal(self.value) * scale
        while decimals < 12 and self._misleads(float(round(number, decimals) / scale)):
            decimals += 1
        return f"{number:,.{decimals}f}{' %' if share else '/s'}"

    def _time(self, seconds: float) -> str:
        digits = 3
        while digits < 12 and self._misleads(float(f"{seconds:.{digits - 1}e}")):
            digits += 1
        text = format_duration(seconds)
        if digits == 3:
            return text
        unit = text.split()[1]
        return f"{seconds / parse_duration(f'1{unit}'):.{digits}g} {unit}"

    def _misleads(self, rounded: float) -> bool:
        """Whether a rounded value says something else than the value."""
        assert self.value is not None
        return self.threshold.holds(rounded) != self.threshold.holds(self.value)

    def __str__(self) -> str:
        """What was measured and the limit, as in ``p99 12.3 ms > 5ms``."""
        threshold = self.threshold
        if self.value is None:
            return f"{threshold.metric} was not measured"
        return f"{threshold.metric} {self.shown} {threshold.comparison} {threshold.shown}"


def parse_threshold(text: str) -> Threshold:
    """The threshold in ``p99>5ms``, ``errors > 0.1%``, ``rate<40k``.

    Raises:
        ValueError: the text is none; the line says what would do, and at which
            position, counted from 1.

    >>> str(parse_threshold("service.p99.9>=5ms"))
    'service.p99.9 >= 5ms'
    >>> parse_threshold("p99>5xs")
    Traceback (most recent call last):
    ValueError: 'p99>5xs': expected a time like 5ms at position 5
    """
    match = re.fullmatch(_EXPRESSION, text)
    assert match is not None  # any text is three parts, be they empty
    metric, comparison, value = match[1], match[2], match[3]
    units = _units(text, metric, match.start(1))
    if comparison is None:
        raise _error(text, f"an operator, one of {' '.join(OPERATORS)},", match.start(3))
    for unit in units:
        try:
            limit = _parse_value(value, unit)
        except ValueError:
            continue
        # A time without a unit is in seconds; whoever meant others is to see it.
        shown = f"{value}s" if unit is Unit.TIME and value[-1].isdigit() else value
        return Threshold(text, metric, comparison, limit, unit, shown)
    raise _error(text, " or ".join(unit.value for unit in units), match.start(3))


def _units(text: str, metric: str, start: int) -> Sequence[Unit]:
    """What the value of a metric may be."""
    if metric in METRICS:
        return METRICS[metric].units
    source, dot, figure = metric.partition(".")
    if not dot or source not in SOURCES:
        source, figure = "", metric
    percentile = re.fullmatch(_PERCENTILE, figure)
    if figure in ("mean", "min", "max") or (percentile and 0 < float(percentile[1]) <= 100):
        return (Unit.TIME,)
    if source:
        raise _error(text, _FIGURES, start + len(source) + 1)
    if percentile:
        raise _error(text, "a percentile above p0 and up to p100", start)
    raise _error(text, f"one of {NAMES}", start)


def _parse_value(text: str, unit: Unit) -> float:
    if unit is Unit.TIME:
        return parse_duration(text)
    if unit is Unit.RATE:
        return parse_rate(text)
    return parse_count(text) if unit is Unit.COUNT else parse_share(text)


def _error(text: str, expected: str, start: int) -> ValueError:
    return ValueError(f"{text!r}: expected {expected} at position {start + 1}")


def check(thresholds: Iterable[Threshold], plan: Plan) -> None:
    """Refuse thresholds on what the plan does not measure.

    Raises:
        PlanError: there is such a one; the line says what the plan lacks.
    """
    if plan.is_open_loop:
        return
    for threshold in thresholds:
        metric = threshold.metric
        needs = "--rate or --stages"
        if metric == "unsent":
            if plan.requests is not None:
                continue
            needs += " or --requests"
        elif not (
            metric == "late"
            or metric.startswith("lag.")
            or (metric == "rate" and threshold.unit is Unit.SHARE)
        ):
            continue
        raise PlanError(
            f"--fail-if: {threshold.expression!r}: needs {needs}, without it nothing is planned"
        )


def evaluate(
    thresholds: Iterable[Threshold], plan: Plan, tally: Tally, loader: Loader
) -> tuple[Result, ...]:
    """What became of each threshold in a run that is over.

    >>> from loadgen.verdict import examine
    >>> tally = Tally()
    >>> [str(each) for each in evaluate(
    ...     [parse_threshold("wrong>0"), parse_threshold("p99>5ms")],
    ...     Plan(), tally, examine(tally, 1))]
    ['wrong 0 > 0', 'p99 was not measured']
    """
    results = []
    for threshold in thresholds:
        value = _value(threshold, plan, tally, loader)
        results.append(Result(threshold, value, value is not None and not threshold.holds(value)))
    return tuple(results)


def _value(threshold: Threshold, plan: Plan, tally: Tally, loader: Loader) -> float | None:
    metric = METRICS.get(threshold.metric)
    if metric is None:
        return time_of(threshold.metric, tally)
    if metric.whole is Whole.CORE:
        return None if loader.bound is None else loader.cpu_percent / 100
    part = metric.count(tally)
    if threshold.unit is Unit.COUNT:
        return part
    if threshold.unit is Unit.RATE:
        return tally.rate if tally.elapsed else None
    whole = metric.out_of(plan, tally, tally.counts.sent + tally.counts.unsent)
    return part / whole if whole else None


def time_of(metric: str, tally: Tally) -> float | None:
    """What the name of a time stands for, in seconds; None if there was none.

    >>> time_of("service.p99", Tally()) is None
    True
    """
    source, _, figure = metric.partition(".")
    if source not in SOURCES:
        source, figure = _DEFAULT_SOURCE, metric
    histogram = SOURCES[source][1](tally)
    if not histogram:
        return None
    if figure.startswith("p"):
        return histogram.percentile(float(figure[1:])) / 1e9
    return float(getattr(histogram, figure)) / 1e9


def uncovered(faults: Counter[str], results: Iterable[Result]) -> Counter[str]:
    """The faults that no threshold speaks of, by their names in ``Counts``.

    A request that goes bad costs its connection: where a threshold allows the
    first, it allows as many of the second.

    >>> uncovered(Counter(failed=2, lost=3), [Result(parse_threshold("errors>5"), 2, True)])
    Counter({'lost': 1})
    """
    left = Counter(faults)
    for result in results:
        metric = METRICS.get(result.threshold.metric)
        for fault in metric.covers if metric is not None else ():
            number = left.pop(fault, 0)
            if fault in BAD:
                left["lost"] -= min(number, left["lost"])
    return +left

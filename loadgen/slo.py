"""What a rate has to hold: ``p99<10ms``, ``p99<10ms,errors<0.1%``.

Clauses are written as thresholds are, and say what is fine where those say what
is not: ``METRIC < VALUE`` or ``METRIC <= VALUE``, of latency and of errors. All of
them have to hold. A request that was due and got no reply is slower than every
one that got its own: leaving it out would make a percentile the better the more
a server leaves unanswered.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final, Protocol

from loadgen.thresholds import Threshold, Unit, parse_threshold
from nbnet.notation import format_duration

_METRIC: Final = re.compile(r"\s*([\w.]*)\s*([<>=!]*)")
_PERCENTILE: Final = re.compile(r"p[0-9.]+")


class Measured(Protocol):
    """What a clause is about. Times in seconds."""

    def percentile(self, percent: float) -> float:
        """The time that this share of all requests does not exceed; infinite without a reply."""

    @property
    def mean(self) -> float:
        """The mean time of the replies."""

    @property
    def slowest(self) -> float:
        """The longest time of a reply."""

    @property
    def errors(self) -> float:
        """The share of the requests sent that got no reply, or a wrong one."""


@dataclass(frozen=True, slots=True)
class Slo:
    """The clauses, all of which have to hold.

    >>> str(parse_slo("p99 < 10ms, errors<0.1%"))
    'p99<10ms,errors<0.1%'
    """

    clauses: tuple[Threshold, ...]

    def __str__(self) -> str:
        return ",".join(str(clause).replace(" ", "") for clause in self.clauses)

    def missed(self, measured: Measured) -> list[str]:
        """What is not met, with its value, for people."""
        return [
            _describe(clause.metric, value)
            for clause in self.clauses
            if not clause.holds(value := _value(clause.metric, measured))
        ]

    @property
    def allows_errors(self) -> bool:
        """Whether a clause says how many; else there may be none."""
        return any(clause.metric == "errors" for clause in self.clauses)

    @property
    def latencies(self) -> list[Threshold]:
        """The clauses about a time."""
        return [clause for clause in self.clauses if clause.unit is Unit.TIME]

    @property
    def longest(self) -> float:
        """The longest time that any clause allows, in seconds; infinite if none is about time."""
        return max((clause.limit for clause in self.latencies), default=math.inf)


def _value(metric: str, measured: Measured) -> float:
    if metric == "mean":
        return measured.mean
    if metric == "max":
        return measured.slowest
    if metric == "errors":
        return measured.errors
    return measured.percentile(float(metric.removeprefix("p")))


def _describe(metric: str, value: float) -> str:
    if metric == "errors":
        return f"errors {100 * value:.3g} %"
    return f"{metric} {'unanswered' if math.isinf(value) else format_duration(value)}"


def parse_slo(text: str) -> Slo:
    """The clauses in ``p99<10ms,errors<0.1%``.

    Raises:
        ValueError: the text says no such thing; the line says what would do, and
            at which position, counted from 1.

    >>> [(each.metric, each.limit) for each in parse_slo("p99.9<=2.5ms,errors<1%").clauses]
    [('p99.9', 0.0025), ('errors', 0.01)]
    """
    return Slo(tuple(_parse_clause(part) for part in text.split(",")))


def _parse_clause(text: str) -> Threshold:
    match = _METRIC.match(text)
    assert match is not None  # any text begins with what may be nothing
    metric, operator = match.groups()

    def refused(expected: str, position: int) -> ValueError:
        return ValueError(f"{text!r}: expected {expected} at position {position + 1}")

    if metric not in ("mean", "max", "errors") and not _PERCENTILE.fullmatch(metric):
        raise refused("one of p50, p99.9, mean, max, errors, as in p99<10ms,", match.start(1))
    if operator not in ("<", "<="):
        raise refused("< or <=, as an objective says what is fine,", match.start(2))
    value = text[match.end() :].strip()
    if metric == "errors" and not value.endswith("%"):
        raise refused("a share like 0.1%", match.end())
    if metric != "errors" and value[-1:].isdigit():  # seconds elsewhere, and hardly meant here
        raise refused(f"a unit, as in {metric}<10ms,", match.end())
    clause = parse_threshold(text)
    if not clause.limit and (operator == "<" or clause.unit is Unit.TIME):
        raise refused("more than 0", match.end())
    return clause

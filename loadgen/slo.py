"""What a rate has to hold: ``p99<10ms``, ``p99<10ms,errors<0.1%``.

A clause is METRIC < VALUE or METRIC <= VALUE, and all of them have to hold. A
request that was due and got no reply is slower than every one that got its own:
leaving it out would make a percentile the better the more a server leaves
unanswered.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from nbnet.notation import format_duration, parse_duration

_CLAUSE: Final = re.compile(r"\s*([a-z]+[0-9.]*)\s*(<=?)\s*([^\s<=]+)\s*")
_PERCENTILE: Final = re.compile(r"p([0-9]{2}(?:\.[0-9]{1,2})?)")
_SHARE: Final = re.compile(r"([0-9]{1,3}(?:\.[0-9]+)?)%")
_EXPECTED: Final = "expected one like p99<10ms or errors<0.1% (p50 to p99.99, mean, max, errors)"


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
class Clause:
    """One bound: seconds of a latency, or a share of errors."""

    metric: str
    inclusive: bool
    bound: float
    text: str

    @property
    def is_latency(self) -> bool:
        """Whether it bounds a time."""
        return self.metric != "errors"

    def value(self, measured: Measured) -> float:
        """What is to be compared with the bound."""
        read: dict[str, Callable[[], float]] = {
            "mean": lambda: measured.mean,
            "max": lambda: measured.slowest,
            "errors": lambda: measured.errors,
        }
        if self.metric in read:
            return read[self.metric]()
        return measured.percentile(float(self.metric.removeprefix("p")))

    def holds(self, measured: Measured) -> bool:
        """Whether it is met."""
        value = self.value(measured)
        return value <= self.bound if self.inclusive else value < self.bound

    def describe(self, measured: Measured) -> str:
        """The metric and its value, for people."""
        value = self.value(measured)
        if not self.is_latency:
            return f"errors {100 * value:.3g} %"
        return f"{self.metric} {'unanswered' if math.isinf(value) else format_duration(value)}"


@dataclass(frozen=True, slots=True)
class Slo:
    """The clauses, all of which have to hold.

    >>> str(parse_slo("p99 < 10ms, errors<0.1%"))
    'p99<10ms,errors<0.1%'
    """

    clauses: tuple[Clause, ...]

    def __str__(self) -> str:
        return ",".join(clause.text for clause in self.clauses)

    def missed(self, measured: Measured) -> list[str]:
        """What is not met, with its value, for people."""
        return [each.describe(measured) for each in self.clauses if not each.holds(measured)]

    @property
    def allows_errors(self) -> bool:
        """Whether a clause says how many; else there may be none."""
        return any(not each.is_latency for each in self.clauses)

    @property
    def longest(self) -> float:
        """The longest time that any clause allows, in seconds; infinite if none is about time."""
        return max((each.bound for each in self.clauses if each.is_latency), default=math.inf)


def parse_slo(text: str) -> Slo:
    """The clauses in ``p99<10ms,errors<0.1%``.

    Raises:
        ValueError: the text says no such thing.

    >>> [(each.metric, each.bound) for each in parse_slo("p99.9<=2.5ms,errors<1%").clauses]
    [('p99.9', 0.0025), ('errors', 0.01)]
    """
    return Slo(tuple(_parse_clause(part) for part in text.split(",")))


def _parse_clause(text: str) -> Clause:
    match = _CLAUSE.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is no objective: {_EXPECTED}")
    metric, operator, value = match.groups()
    if metric == "errors":
        share = _SHARE.fullmatch(value)
        if not share:
            raise ValueError(f"{text!r} is no objective: expected a share like errors<0.1%")
        bound = float(share[1]) / 100
    else:
        percentile = _PERCENTILE.fullmatch(metric)
        known = metric in ("mean", "max") or (percentile and float(percentile[1]) >= 50)
        if not known:
            raise ValueError(f"{text!r} is no objective: {_EXPECTED}")
        if value[-1].isdigit():  # seconds elsewhere, and hardly ever meant here
            raise ValueError(f"{text!r} is no objective: say the unit, as in {metric}<10ms")
        try:
            bound = parse_duration(value)
        except ValueError as error:
            raise ValueError(f"{text!r} is no objective: {error}") from None
    if not bound and operator == "<":
        raise ValueError(f"{text!r} is no objective: nothing is below 0")
    return Clause(metric, operator == "<=", bound, f"{metric}{operator}{value}")

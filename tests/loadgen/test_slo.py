"""Objectives: their grammar, and what holds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.slo import parse_slo


@dataclass(frozen=True)
class Flat:
    """Every request took as long as its share is."""

    mean: float = 0.5
    slowest: float = 1.0
    errors: float = 0.0

    def percentile(self, percent: float) -> float:
        return percent / 100


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("p99<991ms", True),
        ("p99<990ms", False),
        ("p99<=990ms", True),
        ("p99.99<1s", True),
        ("p50<500ms", False),
        ("mean<501ms", True),
        ("max<1s", False),
        ("max<=1s", True),
        ("errors<0.1%", True),
        ("errors<=0%", True),
        ("p99<1s,errors<1%", True),
        (" p99 < 1s , max <= 900ms ", False),
    ],
)
def test_an_objective_holds_where_each_of_its_clauses_does(text: str, holds: bool) -> None:
    assert (not parse_slo(text).missed(Flat())) is holds


def test_what_is_missed_is_said_with_its_value() -> None:
    slo = parse_slo("p99<10ms,mean<1s,errors<1%")
    assert slo.missed(Flat(errors=0.0234)) == ["p99 990 ms", "errors 2.34 %"]
    assert parse_slo("max<1s").missed(Flat(slowest=math.inf)) == ["max unanswered"]


def test_what_a_search_asks_of_an_objective() -> None:
    assert parse_slo("p50<10ms,p99<1s,errors<90%").longest == 1.0
    assert parse_slo("errors<1%").longest == math.inf
    assert parse_slo("errors<1%").allows_errors
    assert not parse_slo("p99<1s").allows_errors


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "'': expected one of p50, p99.9, mean, max, errors, as in p99<10ms, at position 1"),
        ("p99<10ms,", "'': expected one of"),
        ("p99>10ms", "expected < or <=, as an objective says what is fine, at position 4"),
        ("p99==10ms", "expected < or <="),
        ("p99", "expected < or <="),
        ("p0<10ms", "expected a percentile above p0 and up to p100 at position 1"),
        ("p101<10ms", "up to p100"),
        ("average<10ms", "mean, max, errors"),
        ("rate<10k", "mean, max, errors"),
        ("service.p99<10ms", "mean, max, errors"),
        ("p99<10", "'p99<10': expected a unit, as in p99<10ms, at position 5"),
        ("p99<ten", "expected a time like 5ms at position 5"),
        ("p99<", "expected a time like 5ms at position 5"),
        ("p99<0ms", "expected more than 0 at position 5"),
        ("max<=0ms", "expected more than 0 at position 6"),
        ("errors<0%", "expected more than 0"),
        ("errors<5", "expected a share like 0.1% at position 8"),
        ("errors<1ms", "expected a share like 0.1%"),
        ("errors<101%", "expected a count like 5k or a share"),
    ],
)
def test_what_is_no_objective_is_refused_in_a_line(text: str, says: str) -> None:
    with pytest.raises(ValueError, match="expected") as refused:
        parse_slo(text)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


METRICS = st.one_of(
    st.sampled_from(["mean", "max"]),
    st.integers(50, 99).map(lambda whole: f"p{whole}"),
    st.integers(5000, 9999).map(lambda hundredths: f"p{hundredths / 100:.2f}"),
)
LATENCIES = st.tuples(
    METRICS, st.sampled_from(["<", "<="]), st.integers(1, 999), st.sampled_from(["us", "ms", "s"])
).map(lambda parts: "".join(map(str, parts)))
ERRORS = st.integers(1, 100).map(lambda percent: f"errors<{percent}%")


@given(st.lists(st.one_of(LATENCIES, ERRORS), min_size=1, max_size=5))
def test_an_objective_is_written_as_it_was_read(clauses: list[str]) -> None:
    text = ",".join(clauses)
    slo = parse_slo(text)
    assert str(slo) == text
    assert str(parse_slo(str(slo))) == text


@given(st.text("p9<=0.1smeanrox,% \u0663", max_size=12))
def test_any_other_text_is_refused_in_order(text: str) -> None:
    try:
        assert parse_slo(text).clauses
    except ValueError as error:
        assert "at position" in str(error)  # noqa: PT017

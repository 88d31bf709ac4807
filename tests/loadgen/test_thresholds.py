"""When a run fails: the grammar, what is measured, and what a threshold allows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.plan import Plan, PlanError
from loadgen.tally import Counts, Tally
from loadgen.thresholds import (
    METRICS,
    NAMES,
    OPERATORS,
    SOURCES,
    Result,
    Threshold,
    Unit,
    check,
    evaluate,
    parse_threshold,
    uncovered,
)
from loadgen.verdict import examine

from .runs import MS, open_loop, recorded, snapshots

# The grammar -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "metric", "comparison", "limit", "unit"),
    [
        ("p99>5ms", "p99", ">", 0.005, Unit.TIME),
        ("p99.9 >= 20ms", "p99.9", ">=", 0.02, Unit.TIME),
        (" mean>1m30s ", "mean", ">", 90.0, Unit.TIME),
        ("max>1", "max", ">", 1.0, Unit.TIME),
        ("service.p50!=0", "service.p50", "!=", 0.0, Unit.TIME),
        ("latency.min<1us", "latency.min", "<", 1e-6, Unit.TIME),
        ("p100>1s", "p100", ">", 1.0, Unit.TIME),
        ("errors>0.1%", "errors", ">", 0.001, Unit.SHARE),
        ("errors>0.29%", "errors", ">", 29 / 10_000, Unit.SHARE),
        ("wrong==5k", "wrong", "==", 5000, Unit.COUNT),
        ("held<100%", "held", "<", 1.0, Unit.SHARE),
        ("rate<=40k", "rate", "<=", 40_000.0, Unit.RATE),
        ("rate<0.5/s", "rate", "<", 0.5, Unit.RATE),
        ("rate<95%", "rate", "<", 0.95, Unit.SHARE),
        ("cpu>90%", "cpu", ">", 0.9, Unit.SHARE),
    ],
)
def test_a_threshold_is_a_metric_an_operator_and_a_value(
    text: str, metric: str, comparison: str, limit: float, unit: Unit
) -> None:
    threshold = parse_threshold(text)
    assert (threshold.expression, threshold.metric, threshold.comparison) == (
        text,
        metric,
        comparison,
    )
    assert (threshold.limit, threshold.unit) == (limit, unit)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("p99>5xs", "expected a time like 5ms at position 5"),
        ("p99>5%", "expected a time like 5ms at position 5"),
        ("p99 >= -1ms", "expected a time like 5ms at position 8"),
        ("p99>", "expected a time like 5ms at position 5"),
        ("p99>5ms, p50>1ms", "expected a time like 5ms at position 5"),
        ("errors>5ms", "expected a count like 5k or a share like 0.1% (0% to 100%) at position 8"),
        ("errors>101%", "expected a count like 5k or a share like 0.1% (0% to 100%) at position 8"),
        ("cpu>0.9", "expected a share like 0.1% (0% to 100%) at position 5"),
        ("rate<1ms", "expected a rate like 40k or a share like 0.1% (0% to 100%) at position 6"),
        ("p99", "expected an operator, one of > >= == != < <=, at position 4"),
        ("p99=5ms", "expected an operator, one of > >= == != < <=, at position 4"),
        ("p99 is 5ms", "expected an operator, one of > >= == != < <=, at position 5"),
        ("service.p>5ms", "expected mean, min, max or a percentile like p99.9 at position 9"),
        ("service.errors>5", "expected mean, min, max or a percentile like p99.9 at position 9"),
        ("p0>5ms", "expected a percentile above p0 and up to p100 at position 1"),
        ("p100.1>5ms", "expected a percentile above p0 and up to p100 at position 1"),
        ("  eror>5", f"expected one of {NAMES} at position 3"),
        ("", f"expected one of {NAMES} at position 1"),
        (">5ms", f"expected one of {NAMES} at position 1"),
        ("P99>5ms", f"expected one of {NAMES} at position 1"),
        ("p٩٩>5ms", f"expected one of {NAMES} at position 1"),
    ],
)
def test_anything_else_is_refused_with_what_would_do_and_where(text: str, says: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        parse_threshold(text)
    assert str(caught.value) == f"{text!r}: {says}"


_METRICS = st.sampled_from([*METRICS, *(f"{source}.p99" for source in SOURCES), "mean", "p99.99"])
_VALUES = st.sampled_from(["0", "5ms", "1m30s", "0.1%", "100%", "40k", "1.5M", "7/s", "2.5"])


def parsed(text: str) -> Threshold | str:
    """The threshold, or what is said instead."""
    try:
        return parse_threshold(text)
    except ValueError as error:
        return str(error)


@given(_METRICS, st.sampled_from(list(OPERATORS)), _VALUES, st.sampled_from(["", " ", "\t\n"]))
def test_what_is_parsed_reads_the_same_when_it_is_written_out(
    metric: str, comparison: str, value: str, space: str
) -> None:
    threshold = parsed(f"{space}{metric}{space}{comparison}{space}{value}{space}")
    if isinstance(threshold, Threshold):
        assert (threshold.metric, threshold.comparison) == (metric, comparison)
        again = parsed(str(threshold))
        assert again == replace(threshold, expression=str(threshold))
    else:
        assert " at position " in threshold


@given(st.text() | st.text(alphabet="p9.<>=! 5ms%er"))
def test_no_text_is_anything_but_a_threshold_or_refused_in_one_line(text: str) -> None:
    threshold = parsed(text)
    if isinstance(threshold, Threshold):
        assert threshold.expression == text
    else:
        assert threshold.isprintable()
        assert " at position " in threshold


def test_every_metric_stands_in_the_list_that_people_are_shown() -> None:
    assert all(name in NAMES for name in [*METRICS, *SOURCES])


def test_the_manual_says_of_each_metric_what_it_is() -> None:
    manual = (Path(__file__).parents[2] / "docs" / "how-to" / "thresholds.md").read_text()
    for name, about in [
        *((name, metric.about) for name, metric in METRICS.items()),
        *((name, about) for name, (about, _) in SOURCES.items()),
    ]:
        assert f"| `{name}` | {about} |" in manual


@pytest.mark.parametrize(
    ("text", "plan", "needs"),
    [
        ("lag.p99>1ms", Plan(), "--rate or --stages"),
        ("late>0", Plan(), "--rate or --stages"),
        ("rate<95%", Plan(), "--rate or --stages"),
        ("unsent>0", Plan(), "--rate or --stages or --requests"),
        ("unsent>0", Plan(requests=5), None),
        ("rate<5", Plan(), None),
        ("lag.p99>1ms", Plan(rate=5.0), None),
        ("rate<95%", Plan(duration=1.0, stages=((1.0, 5.0),)), None),
    ],
)
def test_what_the_plan_does_not_measure_is_refused(
    text: str, plan: Plan, needs: str | None
) -> None:
    thresholds = [parse_threshold("p99>1s"), parse_threshold(text)]
    if needs is None:
        check(thresholds, plan)
        return
    with pytest.raises(PlanError, match=f"^--fail-if: '{text}': needs {needs}, without it"):
        check(thresholds, plan)


# What is measured ---------------------------------------------------------------


def result(text: str, tally: Tally, plan: Plan | None = None) -> Result:
    [only] = evaluate([parse_threshold(text)], plan or Plan(), tally, examine(tally, 1))
    return only


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("p50>1s", 2e-3),
        ("p99.9>1s", 4e-3),
        ("max>1s", 4e-3),
        ("min>1s", 2e-3),
        ("mean>1s", (980 * 2e-3 + 10 * 4e-3) / 990),
        ("latency.p50>1s", 2e-3),
        ("service.p50>1s", 1e-3),
        ("connect.p100>1s", 7e-4),
        ("server.p50>1s", 9e-4),
        ("loader.p50>1s", 1e-5),
        ("lag.p99>1s", 3e-5),
    ],
)
def test_times_are_those_of_the_report(text: str, value: float) -> None:
    run = open_loop()
    found = result(text, run.tally, run.plan)
    assert found.value == pytest.approx(value, rel=1e-3)
    assert found.passed


TALLY = snapshots(
    Counts(
        held=8,
        failed_to_connect=2,
        reconnected=2,
        lost=3,
        sent=500,
        verified=480,
        on_time=450,
        wrong=1,
        failed=4,
        timed_out=15,
        unsent=500,
        late=20,
        cpu_seconds=1.0,
    ),
    Counts(),
)


@pytest.mark.parametrize(
    ("metric", "value", "share"),
    [
        ("errors", 20, 0.02),
        ("wrong", 1, 0.001),
        ("failed", 4, 0.004),
        ("timed_out", 15, 0.015),
        ("sent", 500, 0.5),
        ("verified", 480, 0.48),
        ("late", 20, 0.02),
        ("unsent", 500, 0.5),
        ("held", 8, 0.8),
        ("unconnected", 2, 0.2),
        ("lost", 3, 0.3),
        ("rate", 225.0, 0.45),
        ("cpu", None, 0.5),
    ],
)
def test_counts_are_in_requests_and_connections_and_shares_of_what_was_planned(
    metric: str, value: float | None, share: float
) -> None:
    plan = Plan(connections=10, rate=500.0)
    assert result(f"{metric}>99%", TALLY, plan).value == share
    if value is not None:
        found = result(f"{metric}>999", TALLY, plan).value
        assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("comparison", "passing"),
    [("<", [5, 6]), ("<=", [6]), (">", [4, 5]), (">=", [4]), ("==", [4, 6]), ("!=", [5])],
)
def test_the_run_fails_if_the_expression_holds(comparison: str, passing: list[int]) -> None:
    for wrong in (4, 5, 6):
        found = result(f"wrong{comparison}5", snapshots(Counts(wrong=wrong)))
        assert found.passed == (wrong in passing)


@pytest.mark.parametrize("comparison", list(OPERATORS))
@pytest.mark.parametrize(
    "metric", ["p99", "max", "service.min", "connect.p50", "server.mean", "lag.p99"]
)
def test_a_time_of_which_there_is_none_fails(metric: str, comparison: str) -> None:
    found = result(f"{metric}{comparison}5ms", snapshots(Counts(held=1, sent=1, timed_out=1)))
    assert (found.value, found.passed, str(found)) == (None, False, f"{metric} was not measured")


@pytest.mark.parametrize("text", ["errors>1%", "rate<5", "lost>1%", "cpu>1%"])
def test_a_share_of_nothing_and_a_rate_in_no_time_fail(text: str) -> None:
    found = result(text, Tally())
    assert (found.value, found.passed, found.shown) == (None, False, "not measured")


# For people --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value", "shown"),
    [
        ("p99>5ms", 0.0123, "p99 12.3 ms > 5ms"),
        ("p99 > 5", 0.0123, "p99 12.3 ms > 5s"),
        ("p99>5ms", 0.005000001, "p99 5.000001 ms > 5ms"),
        ("p99>0", 0.0, "p99 0 s > 0s"),
        ("wrong>0", 12_345, "wrong 12,345 > 0"),
        ("errors>0.1%", 0.0025, "errors 0.25 % > 0.1%"),
        ("errors>0%", 1e-7, "errors 0.00001 % > 0%"),
        ("held<100%", 0.999999, "held 99.9999 % < 100%"),
        ("held<100%", 1.0, "held 100.00 % < 100%"),
        ("errors>0.29%", 29 / 10_000, "errors 0.29 % > 0.29%"),
        ("rate<40k", 39_999.7, "rate 39,999.7/s < 40k"),
        ("rate<40k", 12_345.67, "rate 12,346/s < 40k"),
        ("rate<2", 1.5, "rate 1.50/s < 2"),
    ],
)
def test_a_value_is_shown_with_as_many_digits_as_tell_it_from_the_limit(
    text: str, value: float, shown: str
) -> None:
    assert str(Result(parse_threshold(text), value, passed=True)) == shown


# What a threshold allows ----------------------------------------------------------


def left(*thresholds: str, **faults: int) -> dict[str, int]:
    results = [Result(parse_threshold(each), 0, passed=True) for each in thresholds]
    return dict(uncovered(Counter(faults), results))


def test_faults_that_no_threshold_speaks_of_are_left() -> None:
    assert left("p99>5ms", "rate<5", wrong=1, lost=2) == {"wrong": 1, "lost": 2}


def test_those_that_one_speaks_of_are_not() -> None:
    assert left("errors>9", wrong=1, failed=2, timed_out=3) == {}
    assert left("failed>9", wrong=1, failed=2, timed_out=3) == {"wrong": 1, "timed_out": 3}
    assert left("wrong>9%", wrong=1, failed=2) == {"failed": 2}
    assert left("held<5", failed_to_connect=2, lost=1) == {"lost": 1}
    assert left("unconnected>5", failed_to_connect=2) == {}
    assert left("lost>5", lost=2, failed=2) == {"failed": 2}


def test_requests_that_may_go_bad_may_take_their_connections_with_them_but_no_others() -> None:
    assert left("errors>9", failed=2, lost=2) == {}
    assert left("errors>9", failed=2, lost=5) == {"lost": 3}
    assert left("errors>9", timed_out=5, lost=2) == {}
    assert left("errors>9", "failed>9", failed=2, lost=3) == {"lost": 1}


def test_recorded_percentiles_are_exact_enough_to_be_compared() -> None:
    tally = snapshots(Counts(held=1, sent=1, verified=1, latency=recorded(5 * MS)))
    assert not result("p99>4.99ms", tally).passed
    assert result("p99>5.01ms", tally).passed

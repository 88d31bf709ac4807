"""What counts come to: a line and an exit code."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from loadgen import verdict
from loadgen.plan import Plan
from loadgen.tally import Counts, Tally
from loadgen.thresholds import Result, parse_threshold
from loadgen.traffic import Traffic
from loadgen.verdict import Verdict, examine, judge, notes

from .runs import MS, recorded, snapshots


def fine(**faults: int) -> Counts:
    """The counts of a fine run, but for the faults."""
    counts = Counts(held=2, sent=5, verified=5)
    for name, number in faults.items():
        setattr(counts, name, number)
    return counts


def test_a_run_in_which_every_reply_is_right_is_fine() -> None:
    assert judge(fine(), interrupted=False) == Verdict("OK: every reply verified", 0)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("wrong", "1,234 wrong replies"),
        ("failed", "1,234 failed requests"),
        ("timed_out", "1,234 requests without a reply"),
        ("failed_to_connect", "1,234 connections not made"),
        ("lost", "1,234 connections lost"),
    ],
)
def test_a_single_fault_fails_the_run_and_is_named(name: str, text: str) -> None:
    assert judge(fine(**{name: 1234}), interrupted=False) == Verdict(f"FAILED: {text}", 1)


def test_all_faults_are_named() -> None:
    counts = fine(wrong=1, failed=2, timed_out=3, failed_to_connect=4, lost=5)
    assert judge(counts, interrupted=False) == Verdict(
        "FAILED: 1 wrong reply, 2 failed requests, 3 requests without a reply, "
        "4 connections not made, 5 connections lost",
        1,
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("wrong", "1 wrong reply"),
        ("failed", "1 failed request"),
        ("timed_out", "1 request without a reply"),
        ("failed_to_connect", "1 connection not made"),
        ("lost", "1 connection lost"),
    ],
)
def test_one_fault_is_named_in_the_singular(name: str, text: str) -> None:
    assert judge(fine(**{name: 1}), interrupted=False).text == f"FAILED: {text}"


def test_a_run_that_sent_nothing_has_verified_nothing() -> None:
    verdict = Verdict("FAILED: no request was sent in the measured time", 1)
    assert judge(Counts(held=2), interrupted=False) == verdict


def test_without_any_connection_that_is_the_verdict() -> None:
    counts = Counts(failed_to_connect=3)
    verdict = Verdict("FAILED: no connection could be made", 4)
    assert judge(counts, interrupted=False) == verdict


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        (fine(), "INTERRUPTED: every reply so far verified"),
        (fine(wrong=2), "INTERRUPTED: 2 wrong replies"),
        (Counts(), "INTERRUPTED: every reply so far verified"),
    ],
)
def test_an_interrupted_run_says_so_and_what_it_found(counts: Counts, text: str) -> None:
    assert judge(counts, interrupted=True) == Verdict(text, 130)


# Thresholds --------------------------------------------------------------------


def result(expression: str, value: float | None, *, passed: bool) -> Result:
    return Result(parse_threshold(expression), value, passed)


KEPT = result("p50>5ms", 0.001, passed=True)
BROKEN = result("p99>5ms", 0.0123, passed=False)
UNMEASURED = result("max>1s", None, passed=False)


def test_a_threshold_that_failed_fails_the_run_with_a_code_of_its_own() -> None:
    assert judge(fine(), interrupted=False, thresholds=[KEPT, BROKEN, UNMEASURED]) == Verdict(
        "FAILED: 2 of 3 thresholds: p99 12.3 ms > 5ms, max was not measured", 3
    )
    assert judge(fine(wrong=2), interrupted=False, thresholds=[BROKEN]) == Verdict(
        "FAILED: 1 of 1 threshold: p99 12.3 ms > 5ms; 2 wrong replies", 3
    )


def test_faults_of_which_a_failed_threshold_tells_are_told_once() -> None:
    failed = result("failed>1", 2, passed=False)
    assert judge(fine(failed=2, lost=3), interrupted=False, thresholds=[failed]) == Verdict(
        "FAILED: 1 of 1 threshold: failed 2 > 1; 1 connection lost", 3
    )


def test_a_run_that_kept_its_thresholds_is_fine_and_says_so() -> None:
    assert judge(fine(), interrupted=False, thresholds=[KEPT, KEPT]) == Verdict(
        "OK: every reply verified, 2 thresholds passed", 0
    )


@pytest.mark.parametrize(
    ("expression", "faults", "verdict"),
    [
        ("errors>9", {"failed": 2, "lost": 2}, ("OK: 2 failed requests, 2 connections lost", 0)),
        ("errors>1%", {"wrong": 1}, ("OK: 1 wrong reply", 0)),
        ("failed>9", {"failed": 2, "wrong": 1}, ("FAILED: 1 wrong reply", 1)),
        ("lost>9", {"failed": 2, "lost": 2}, ("FAILED: 2 failed requests", 1)),
        ("errors>9", {"failed": 1, "lost": 2}, ("FAILED: 1 connection lost", 1)),
        ("held<1", {"failed_to_connect": 1}, ("OK: 1 connection not made", 0)),
        ("p99>5ms", {"timed_out": 1}, ("FAILED: 1 request without a reply", 1)),
    ],
)
def test_faults_that_a_threshold_speaks_of_and_allows_do_not_fail_the_run(
    expression: str, faults: dict[str, int], verdict: tuple[str, int]
) -> None:
    text, code = verdict
    kept = result(expression, 0, passed=True)
    passed = ", 1 threshold passed" if code == 0 else ""
    assert judge(fine(**faults), interrupted=False, thresholds=[kept]) == Verdict(
        text + passed, code
    )


def test_a_run_that_a_threshold_ended_says_when() -> None:
    ended = judge(fine(), interrupted=False, thresholds=[BROKEN], aborted_at=1.25)
    assert ended == Verdict("FAILED: 1 of 1 threshold: p99 12.3 ms > 5ms; aborted at 1.25 s", 3)
    early = judge(fine(), interrupted=False, thresholds=[BROKEN], aborted_at=0.0)
    assert early.text.endswith("; aborted before the measured time")


def test_thresholds_change_nothing_without_a_connection_or_when_interrupted() -> None:
    assert judge(Counts(), interrupted=False, thresholds=[BROKEN]).exit_code == 4
    allowed = judge(fine(wrong=1), interrupted=True, thresholds=[result("wrong>1", 1, passed=True)])
    assert allowed == Verdict("INTERRUPTED: 1 wrong reply", 130)
    assert judge(fine(), interrupted=True, thresholds=[KEPT, BROKEN]) == Verdict(
        "INTERRUPTED: every reply so far verified; 1 of 2 thresholds failed: p99 12.3 ms > 5ms",
        130,
    )


def test_a_run_that_sent_nothing_is_not_fine_because_its_thresholds_are_kept() -> None:
    assert judge(Counts(held=2), interrupted=False, thresholds=[KEPT]).exit_code == 1


def test_what_is_missing_of_the_figures_is_told_before_thresholds_and_faults() -> None:
    lost = ["1 of 2 hosts was lost"]
    ended = judge(fine(wrong=1), interrupted=False, thresholds=[KEPT, BROKEN], losses=lost)
    assert ended == Verdict(
        "FAILED: 1 of 2 hosts was lost; 1 of 2 thresholds failed: p99 12.3 ms > 5ms; 1 wrong reply",
        1,
    )
    assert judge(fine(), interrupted=False, losses=lost).text == (
        "FAILED: 1 of 2 hosts was lost; every other reply verified"
    )


# Whose figures these are -------------------------------------------------------


def measured(cpu: float, *, served: int = 200_000, waited: int = 400_000, **more: Any) -> Tally:
    """A second in which a worker used so much of a core and replies waited so long for it."""
    counts = Counts(
        held=50,
        sent=100,
        verified=100,
        on_time=100,
        latency=recorded(*[served + waited] * 100),
        server=recorded(served),
        wait=recorded(waited),
        cpu_seconds=cpu,
    )
    for name, value in more.items():
        setattr(counts, name, value)
    return snapshots(counts)


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "usable_cores", lambda: 2)


def test_where_nothing_was_measured_nobody_is_the_bottleneck() -> None:
    loader = examine(snapshots(Counts(held=1)), 1)
    assert (loader.bound, loader.reason, loader.cpu_percent) == (None, None, 0.0)


@pytest.mark.parametrize(
    ("tally", "bound"),
    [
        (measured(0.5), False),
        (measured(0.95), True),
        (measured(0.95, waited=100_000), False),
        (measured(0.95, waited=100_000, lag=recorded(2 * MS)), True),
        (measured(0.5, lag=recorded(2 * MS)), False),
        (measured(0.5, lag=recorded(20 * MS)), True),
        (measured(0.92, wait=Counter()), False),
        (measured(0.97, wait=Counter()), True),
    ],
    ids=[
        "idle",
        "busy and waited for",
        "busy and the server slower",
        "busy and late",
        "idle and a little late",
        "idle and very late",
        "busy without samples",
        "very busy without samples",
    ],
)
def test_the_loader_is_the_bottleneck_if_it_is_busy_and_replies_wait_for_it(
    tally: Tally, bound: bool
) -> None:
    loader = examine(tally, 1)
    assert (loader.bound, loader.reason is not None) == (bound, bound)


@pytest.mark.parametrize(
    ("cores", "advice"),
    [(2, "more machines"), (4, "use --workers 2 of the 4 cores"), (16, "use --workers 2 of")],
)
def test_more_workers_are_advised_only_where_there_are_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, advice: str
) -> None:
    monkeypatch.setattr(verdict, "usable_cores", lambda: cores)
    assert advice in str(examine(measured(0.95), 1).reason)


def test_the_share_of_a_core_is_that_of_each_worker() -> None:
    assert examine(measured(1.0), 2).cpu_percent == pytest.approx(50.0)


def test_figures_that_do_not_fit_together_are_said_to() -> None:
    # A hundred requests a second of 600 ms each are 60 in flight.
    tally = measured(0.1, served=600 * MS, waited=0, in_flight_seconds=30.0)
    loader = examine(tally, 1)
    assert not loader.obeys_little
    assert loader.rate_times_latency == pytest.approx(60.0, rel=1e-3)
    assert labels(Plan(rate=100.0), tally) == ["LITTLE'S LAW"]
    tally.elapsed = 0.5
    assert labels(Plan(rate=100.0), tally) == [], "in less than 600 ms nothing has to fit"
    fitting = measured(0.1, served=600 * MS, waited=0, in_flight_seconds=55.0)
    assert labels(Plan(rate=100.0), fitting) == []


def labels(plan: Plan, tally: Tally) -> list[str]:
    return [note.partition(":")[0] for note in notes(plan, tally, examine(tally, 1))]


def test_where_no_reply_is_right_the_expectation_may_be_wrong() -> None:
    tally = snapshots(Counts(held=1, sent=3, wrong=3))
    assert labels(Plan(), tally) == ["NONE RIGHT"]
    [note] = notes(Plan(traffic=Traffic(expect="echo")), tally, examine(tally, 1))
    assert note.startswith("NONE RIGHT: no reply was what --expect echo demands; ")
    assert labels(Plan(traffic=Traffic(expect="none")), tally) == []
    assert "NONE RIGHT" not in labels(
        Plan(), snapshots(Counts(held=1, sent=3, wrong=2, verified=1))
    )


def test_the_gravest_is_said_first() -> None:
    tally = measured(0.95, unsent=100)
    assert labels(Plan(rate=200.0), tally) == ["RATE MISSED", "LOADER-BOUND"]
    [missed, _] = notes(Plan(rate=200.0), tally, examine(tally, 1))
    assert missed.endswith("the loader did not keep up")


def test_a_rate_is_missed_from_one_request_in_a_hundred_on() -> None:
    assert labels(Plan(rate=101.0), measured(0.1, unsent=1)) == []
    assert labels(Plan(rate=102.0), measured(0.1, unsent=2)) == ["RATE MISSED"]


def test_a_closed_loop_says_what_it_cannot_see() -> None:
    assert labels(Plan(), measured(0.1)) == ["NOTE"]
    assert labels(Plan(), snapshots(Counts(held=1))) == []

"""While a run goes on: which thresholds end it, and when."""

from __future__ import annotations

from typing import Any

import pytest

from loadgen.plan import Plan
from loadgen.tally import Counts, Phase, Snapshot, Tally
from loadgen.thresholds import parse_threshold
from loadgen.watch import Watch

from .runs import MS, recorded

CLOSED = Plan(connections=10)
OPEN = Plan(connections=10, rate=1000.0)


class Going:
    """A run that goes on, watched for one threshold."""

    def __init__(self, threshold: str, plan: Plan = CLOSED, workers: int = 1) -> None:
        self.tally = Tally()
        self.watch = Watch([parse_threshold(threshold)], plan, workers)

    def hear(self, elapsed: float, phase: Phase = Phase.MEASURING, **counts: Any) -> bool:
        """Whether the run ends when an engine tells this."""
        snapshot = Snapshot(phase=phase, elapsed=elapsed, counts=Counts(**counts))
        self.tally.add(snapshot)
        return self.watch.look(snapshot, self.tally)


def test_a_count_that_is_exceeded_ends_the_run_at_once_and_only_once() -> None:
    going = Going("wrong>1")
    assert not going.hear(0.25, wrong=1)
    assert going.hear(0.5, wrong=1)
    assert going.watch.failed is not None
    assert (going.watch.failed.value, going.watch.failed.passed) == (2, False)
    assert not going.hear(0.75, wrong=1)


@pytest.mark.parametrize(
    ("threshold", "ends"),
    [
        ("wrong>4", True),
        ("wrong>=5", True),
        ("wrong!=4", True),
        ("wrong!=5", False),
        ("wrong!=6", False),
        ("wrong<9", False),
        ("wrong<=9", False),
        ("wrong==5", False),
        ("verified<9", False),
        ("unsent>=0", False),
        ("cpu>=0%", False),
    ],
)
def test_a_count_ends_the_run_only_if_it_cannot_come_out_of_it_by_growing(
    threshold: str, ends: bool
) -> None:
    assert Going(threshold).hear(0.25, sent=5, wrong=5) == ends


@pytest.mark.parametrize(
    ("threshold", "ends"),
    [("max>5ms", True), ("max<10ms", False), ("min<5ms", True), ("min>1ms", False)],
)
def test_the_longest_time_can_only_grow_and_the_shortest_only_shrink(
    threshold: str, ends: bool
) -> None:
    assert Going(threshold).hear(0.25, latency=recorded(3 * MS, 6 * MS)) == ends


@pytest.mark.parametrize(
    "threshold", ["p99>5ms", "mean>5ms", "errors>1%", "rate<95%", "rate<1k", "service.p50>5ms"]
)
def test_percentiles_shares_and_rates_end_it_after_a_second(threshold: str) -> None:
    going = Going(threshold, OPEN)
    bad: dict[str, Any] = {"sent": 100, "failed": 50, "verified": 50, "on_time": 50}
    for elapsed in (0.25, 0.5, 0.75):
        assert not going.hear(elapsed, latency=recorded(6 * MS), **bad)
    assert going.hear(1.0, latency=recorded(6 * MS), **bad)
    assert going.watch.failed is not None
    assert going.watch.failed.value is not None


def test_a_value_of_which_there_is_none_yet_ends_nothing() -> None:
    for threshold in ("p99>5ms", "max>5ms", "lost>1%", "errors>1%"):
        assert not Going(threshold).hear(1.0)


def test_replies_on_their_way_count_for_the_server() -> None:
    # Each takes 100 ms, so that the last 100 are not here yet.
    assert not Going("rate<95%", OPEN).hear(1.0, sent=1000, verified=900, on_time=900)
    assert not Going("verified<95%", OPEN).hear(1.0, sent=1000, verified=900)
    assert not Going("rate<950", OPEN).hear(1.0, sent=1000, verified=900, on_time=900)
    assert Going("rate<95%", OPEN).hear(1.0, sent=1000, verified=900, on_time=900, failed=100)


@pytest.mark.parametrize("threshold", ["rate<95%", "rate<950", "verified<95%"])
def test_who_lags_by_less_than_a_second_can_catch_up(threshold: str) -> None:
    stalled: dict[str, Any] = {"sent": 2100, "verified": 2090, "on_time": 2090}
    assert not Going(threshold, OPEN).hear(3.0, **stalled)
    slow: dict[str, Any] = {"sent": 1800, "verified": 1790, "on_time": 1790}
    assert Going(threshold, OPEN).hear(3.0, **slow)


@pytest.mark.parametrize(("sent", "ends"), [(450, False), (430, True)])
def test_with_stages_what_was_planned_so_far_is_the_measure(sent: int, ends: bool) -> None:
    # 500 requests in the warm-up at 500/s; then from 0 to 1,000/s in 4 s are 1,125 in the
    # first three, of which 625 in the last of these.
    plan = Plan(duration=4.0, stages=((4.0, 1000.0),), warmup=1.0)
    assert Going("rate<95%", plan).hear(3.0, sent=sent, verified=sent, on_time=sent) == ends
    assert not Going("rate<1k", plan).hear(3.0, sent=sent, verified=sent, on_time=sent)


def test_no_more_is_planned_than_the_requests_asked() -> None:
    plan = Plan(rate=1000.0, requests=300)
    assert not Going("rate<95%", plan).hear(1.0, sent=300, verified=300, on_time=300)


def test_with_several_workers_a_rate_is_that_of_all_at_the_same_moment() -> None:
    half: dict[str, Any] = {"sent": 200, "verified": 200, "on_time": 200}
    going = Going("rate<95%", OPEN, workers=2)
    assert not going.hear(1.0, **half)
    assert not going.hear(1.01, **half)  # by a second behind, at most
    assert not going.hear(1.25)  # the other was as fast, for all that is known
    assert not going.hear(1.5)
    assert going.hear(1.5)


def test_a_worker_that_tells_late_ends_nothing() -> None:
    going = Going("p99>5ms", workers=2)
    assert not going.hear(1.0, latency=recorded(6 * MS))
    assert not going.hear(1.25)
    assert not going.hear(1.0)
    assert going.hear(1.26)


def test_connections_are_waited_for_until_measuring_begins() -> None:
    going = Going("held<100%")
    assert not going.hear(0.0, Phase.CONNECTING, held=4)
    assert not going.hear(0.0, Phase.READY, held=5)
    assert going.hear(0.0, Phase.WARMING)
    assert going.watch.failed is not None
    assert going.watch.failed.value == 0.9


def test_a_connection_that_could_not_be_made_ends_the_run_while_connecting() -> None:
    assert Going("unconnected>0").hear(0.0, Phase.CONNECTING, held=4, failed_to_connect=1)
    assert not Going("unconnected<5").hear(0.0, Phase.CONNECTING, held=4, failed_to_connect=1)


@pytest.mark.parametrize("phase", [Phase.DRAINING, Phase.DONE])
def test_when_the_measured_time_is_over_nothing_is_ended(phase: Phase) -> None:
    assert not Going("wrong>0").hear(10.0, phase, wrong=1)

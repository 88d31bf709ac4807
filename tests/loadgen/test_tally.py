"""Snapshots of any number of engines add up, whatever order they come in."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.hdr import decode
from loadgen.histogram import Histogram
from loadgen.tally import (
    MISMATCHES_KEPT,
    SECONDS_OPEN,
    Counts,
    Interval,
    Mismatch,
    Phase,
    Snapshot,
    Tally,
)

from .runs import recorded


def filled(number: int) -> Counts:
    """Counts in which every field differs from every other."""
    counts = Counts()
    for position, each in enumerate(fields(Counts), start=1):
        value = number * position
        if isinstance(getattr(counts, each.name), Counter):
            setattr(counts, each.name, Counter({position: value, 1000: 1}))
        else:
            setattr(counts, each.name, value)
    return counts


def snapshot(elapsed: float, phase: Phase = Phase.MEASURING, **counts: int) -> Snapshot:
    return Snapshot(phase=phase, elapsed=elapsed, counts=Counts(**counts))  # type: ignore[arg-type]  # all of them ints


def test_the_sum_of_counts_is_the_sum_of_each_field() -> None:
    total = filled(1)
    total.add(filled(10))
    for position, each in enumerate(fields(Counts), start=1):
        value = getattr(total, each.name)
        if isinstance(value, Counter):
            assert value == {position: 11 * position, 1000: 2}
        else:
            assert value == 11 * position


def test_adding_leaves_what_is_added_alone() -> None:
    other = filled(10)
    filled(1).add(other)
    assert other == filled(10)


def test_the_order_of_snapshots_does_not_matter_to_the_sum() -> None:
    snapshots = [
        Snapshot(phase=Phase.MEASURING, elapsed=n / 4, counts=filled(n)) for n in range(1, 20)
    ]
    tallies = []
    for seed in range(3):
        random.Random(seed).shuffle(snapshots)
        tally = Tally()
        for each in snapshots:
            tally.add(each)
        tallies.append((tally.counts, tally.elapsed, tally.series))
    assert tallies[0] == tallies[1] == tallies[2]


def test_a_tally_follows_the_phase_and_the_longest_time() -> None:
    tally = Tally()
    assert (tally.phase, tally.elapsed, tally.rate) == (Phase.CONNECTING, 0.0, 0.0)
    tally.add(snapshot(2.0))
    tally.add(snapshot(1.5, Phase.DRAINING))
    assert (tally.phase, tally.elapsed) == (Phase.DRAINING, 2.0)


def test_the_rate_counts_only_what_came_in_the_measured_time() -> None:
    tally = Tally()
    tally.add(snapshot(1.0, verified=100, on_time=100))
    tally.add(snapshot(2.0, Phase.DONE, verified=60, on_time=50))
    assert tally.rate == 75.0


def in_second(second: int, **counts: Any) -> Snapshot:
    return Snapshot(
        phase=Phase.MEASURING, elapsed=second + 0.5, second=second, counts=Counts(**counts)
    )


def test_the_series_is_in_order_without_gaps_and_adds_up() -> None:
    tally = Tally()
    tally.add(snapshot(0.0, Phase.CONNECTING, held=2))  # not part of the measured time
    for second in (3, 0, 1, 0, 0):
        tally.add(in_second(second, verified=10, failed=second))
    assert [(each.start, each.requests, each.failed) for each in tally.series] == [
        (0.0, 30, 0),
        (1.0, 10, 1),
        (2.0, 0, 0),
        (3.0, 10, 3),
    ]
    assert tally.counts.verified == 50
    assert tally.counts.held == 2


def test_percentiles_of_a_second_are_those_of_its_latencies_alone() -> None:
    slow, fast = Histogram(), Histogram()
    slow.record([1_000_000] * 100)
    fast.record([1_000] * 99 + [2_000])
    tally = Tally()
    tally.add(in_second(0, latency=slow.counts))
    tally.add(in_second(2, latency=fast.counts))
    first, empty, last = tally.series
    assert (first.p50, first.p99) == (slow.max, slow.max)
    assert (empty.p50, empty.p99) == (None, None)
    assert (last.p50, last.p99) == (1_000, 1_000)


def test_a_long_run_keeps_the_counts_of_few_seconds_and_the_figures_of_all() -> None:
    tally = Tally()
    for second in range(1000):
        tally.add(in_second(second, verified=second))
    assert len(tally._open) <= SECONDS_OPEN + 1
    assert [each.requests for each in tally.series] == list(range(1000))
    tally.add(in_second(0, verified=7))  # far too late for its own second, but not lost
    assert sum(each.requests for each in tally.series) == sum(range(1000)) + 7


def test_each_second_has_all_that_is_told_of_it_when_it_is_over_as_before() -> None:
    counts = filled(1)
    counts.errors = Counter({"EOF": 2, "reset": 1})
    tally = Tally()
    tally.add(in_second(0))
    tally.add(Snapshot(phase=Phase.MEASURING, elapsed=2.0, second=1, counts=counts))
    open_ = tally.series[1]
    assert (open_.start, open_.seconds) == (1.0, 1.0)
    for name in ("failed", "wrong", "timed_out", "sent", "unsent", "late", "lost", "reconnected"):
        assert getattr(open_, name) == getattr(counts, name) > 0
    assert open_.requests == counts.verified
    assert open_.in_flight == counts.in_flight_seconds
    assert open_.errors == counts.errors
    times = Histogram(counts.latency).percentiles([50, 90, 99, 99.9, 100])
    assert [open_.p50, open_.p90, open_.p99, open_.p999, open_.max] == times
    tally.add(in_second(2 + SECONDS_OPEN))
    assert 1 not in tally._open
    assert tally.series[1] == open_


def test_the_last_second_is_as_long_as_it_was_measured() -> None:
    tally = Tally()
    tally.add(in_second(0, in_flight_seconds=3.0))
    assert [(each.seconds, each.in_flight) for each in tally.series] == [(0.5, 6.0)]
    tally.add(in_second(1, in_flight_seconds=1.0))
    assert [(each.seconds, each.in_flight) for each in tally.series] == [(1.0, 3.0), (0.5, 2.0)]
    tally.add(in_second(3))
    tally.elapsed = 2.0  # an engine ran on a little
    assert [each.seconds for each in tally.series] == [1.0, 1.0, 0.0, 0.0]
    assert tally.series[3].in_flight == 0.0


def test_what_failed_while_connecting_is_not_part_of_the_series() -> None:
    tally = Tally()
    for phase in (Phase.CONNECTING, Phase.READY, Phase.DONE):
        counts = Counts(failed_to_connect=1, errors=Counter({"connect: refused": 1}))
        tally.add(Snapshot(phase=phase, elapsed=0.0, counts=counts))
    assert tally.series == []
    tally.add(in_second(0, errors=Counter({"EOF": 1})))
    assert [each.errors for each in tally.series] == [{"EOF": 1}]
    assert tally.counts.errors == {"connect: refused": 3, "EOF": 1}


def test_a_day_takes_some_megabytes() -> None:
    tally = Tally()
    for second in range(0, 86_401, 100):  # seconds in which nothing came are kept alike
        tally.add(in_second(second, verified=10**9))
    assert len(tally._over) * tally._over.itemsize < 15_000_000


def test_histograms_of_each_second_are_kept_encoded_when_asked_for() -> None:
    tally = Tally(keep_histograms=True)
    recorded = Histogram()
    recorded.record([1_000, 2_000])
    for second in range(20):
        tally.add(in_second(second, latency=recorded.counts))
    tally.add(in_second(21, latency=recorded.counts, service=Counter({7: 2})))
    encoded = list(tally.encoded())
    assert [each.start for each in encoded] == [float(second) for second in range(22)]
    assert [each.seconds for each in encoded] == [1.0] * 21 + [0.5]
    assert decode(encoded[0].latency).counts == recorded.counts
    assert (encoded[0].latency_max, encoded[0].service) == (2_000, None)
    assert (decode(encoded[20].latency).counts, encoded[20].latency_max) == (Counter(), 0)
    assert encoded[21].service is not None
    assert decode(encoded[21].service).counts == {7: 2}
    assert encoded[21].service_max == 7


def test_histograms_of_each_second_are_not_kept_when_nobody_asked() -> None:
    with pytest.raises(ValueError, match="were not kept"):
        list(Tally().encoded())


def test_only_the_first_mismatches_are_kept() -> None:
    mismatches = [
        Mismatch(n, "EOF", b"sent", b"expected", b"got") for n in range(MISMATCHES_KEPT + 4)
    ]
    tally = Tally()
    for start in range(0, len(mismatches), 4):
        counts, some = Counts(wrong=4), mismatches[start : start + 4]
        tally.add(Snapshot(phase=Phase.MEASURING, elapsed=1.0, counts=counts, mismatches=some))
    assert tally.mismatches == mismatches[:MISMATCHES_KEPT]


def test_latencies_and_connect_times_are_histograms() -> None:
    latency, connect = Histogram(), Histogram()
    latency.record([1_000, 2_000, 3_000])
    connect.record([500])
    tally = Tally()
    counts = Counts(latency=latency.counts, connect=connect.counts)
    tally.add(Snapshot(phase=Phase.DONE, elapsed=1.0, counts=counts))
    assert tally.latency.counts == latency.counts
    assert tally.connect.counts == connect.counts


# The last seconds -------------------------------------------------------------


def counted(second: int, *latencies: int) -> Snapshot:
    return Snapshot(
        phase=Phase.MEASURING,
        elapsed=second + 0.5,
        second=second,
        counts=Counts(verified=len(latencies), latency=recorded(*latencies)),
    )


def test_there_is_no_last_second_before_the_first_is_over() -> None:
    tally = Tally()
    assert tally.last() is None
    tally.add(Snapshot(phase=Phase.CONNECTING, elapsed=0.0, second=9, counts=Counts()))
    tally.add(counted(0, 5))
    assert (tally.last(), tally.requests_by_second(30)) == (None, [])


def figures(interval: Interval | None) -> tuple[float, int, int | None, int | None]:
    assert interval is not None
    return interval.start, interval.requests, interval.p50, interval.p99


def test_the_last_second_is_the_one_before_the_newest_also_when_an_engine_is_late() -> None:
    tally = Tally()
    for snapshot in (counted(0, 5), counted(1, 7, 7), counted(2, 9)):
        tally.add(snapshot)
    assert figures(tally.last()) == (1.0, 2, 7, 7)
    tally.add(counted(2, 100))
    assert figures(tally.last()) == (1.0, 2, 7, 7)
    tally.add(counted(1, 1000))
    assert figures(tally.last()) == (1.0, 3, 7, 1000)
    assert tally.last() == tally.series[1]


@given(
    st.lists(st.tuples(st.integers(0, 40), st.lists(st.integers(1, 2000), max_size=3))),
    st.integers(1, SECONDS_OPEN),
)
def test_the_last_seconds_are_those_of_the_series(
    words: list[tuple[int, list[int]]], seconds: int
) -> None:
    tally = Tally()
    for second, latencies in words:
        tally.add(counted(second, *latencies))
        over = tally.series[:-1]
        assert tally.requests_by_second(30) == [each.requests for each in over[-30:]]
        last = tally.last(seconds)
        assert (last is None) == (not over)
        if last is not None:
            assert last.requests == sum(each.requests for each in over[-seconds:])
            assert tally.last() == over[-1]


@pytest.mark.parametrize("seconds", [0, SECONDS_OPEN + 1])
def test_more_seconds_than_are_kept_are_refused(seconds: int) -> None:
    with pytest.raises(ValueError, match=f"{seconds} seconds: 1 to {SECONDS_OPEN} are kept"):
        Tally().last(seconds)

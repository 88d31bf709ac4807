"""What an engine counts from one snapshot to the next."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.histogram import Histogram
from loadgen.recording import FOLD_AT, Recorder
from loadgen.tally import MISMATCHES_KEPT, Counts, Mismatch, Phase, Snapshot

TIMES = st.lists(st.integers(0, 10**13), max_size=3 * FOLD_AT)


def snapshot(recorder: Recorder, in_flight: int = 0) -> Snapshot:
    return recorder.snapshot(Phase.MEASURING, 1.0, 0, in_flight)


@given(latencies=TIMES, lags=TIMES, folds=st.integers(0, 5))
def test_all_that_was_collected_is_counted_once(
    latencies: list[int], lags: list[int], folds: int
) -> None:
    recorder = Recorder(open_loop=True)
    recorder.latencies += latencies
    recorder.services += latencies
    recorder.lags += lags
    for _ in range(folds):
        recorder.fold()
    counts = snapshot(recorder).counts
    expected = Histogram()
    expected.record(latencies)
    assert counts.latency == counts.service == expected.counts
    assert counts.lag.total() == len(lags)
    assert (counts.verified, counts.on_time) == (len(latencies), len(latencies))
    assert recorder.slowest == max(latencies, default=0)
    assert snapshot(recorder).counts == Counts()


def test_a_fold_takes_so_many_values_and_no_more() -> None:
    recorder = Recorder(open_loop=False)
    recorder.latencies += range(FOLD_AT + 10)
    recorder.fold()
    assert recorder.counts.verified == FOLD_AT
    assert recorder.latencies == list(range(10))


def test_a_closed_loop_has_no_service_times_of_its_own() -> None:
    recorder = Recorder(open_loop=False)
    recorder.latencies += [1, 2]
    assert not snapshot(recorder).counts.service


def test_requests_sent_are_those_answered_lost_and_in_flight() -> None:
    recorder = Recorder(open_loop=False)
    recorder.latencies += [1, 2, 3]
    recorder.counts.failed = 4
    assert snapshot(recorder, in_flight=10).counts.sent == 17
    recorder.counts.wrong = recorder.counts.timed_out = 1
    assert recorder.sent_in_all(in_flight=2) == 3 + 4 + 2 + 2
    assert snapshot(recorder, in_flight=2).counts.sent == 2 - 8
    assert recorder.sent_in_all(in_flight=0) == 3 + 4 + 2


def test_replies_after_the_end_are_not_on_time() -> None:
    recorder = Recorder(open_loop=False)
    recorder.latencies += [1, 2]
    recorder.end()
    recorder.latencies += [3]
    counts = snapshot(recorder).counts
    assert (counts.verified, counts.on_time) == (3, 2)


def test_a_warm_up_is_forgotten_but_for_what_went_wrong() -> None:
    recorder = Recorder(open_loop=True)
    recorder.latencies += [1, 2]
    recorder.services += [1, 2]
    recorder.connects += [5]
    recorder.counts.wrong = 1
    recorder.counts.errors["wrong payload"] = 1
    recorder.counts.late = 7
    recorder.forget()
    counts = snapshot(recorder, in_flight=3).counts
    assert (counts.verified, counts.late, counts.wrong, counts.sent) == (0, 0, 1, 4)
    assert not counts.latency
    assert counts.errors == {"wrong payload": 1}
    assert counts.connect.total() == 1
    assert recorder.sent_in_all(in_flight=0) == 2 + 1


def test_only_the_first_mismatches_are_kept_over_all_snapshots() -> None:
    recorder = Recorder(open_loop=False)
    given_out = []
    for number in range(MISMATCHES_KEPT + 5):
        recorder.keep(Mismatch(number, "wrong payload", b"", b"", b""))
        given_out += snapshot(recorder).mismatches
    assert [each.connection for each in given_out] == list(range(MISMATCHES_KEPT))


@pytest.mark.parametrize("values", [range(1, 10**10, 10**5 + 7)], ids=["spread over 10 s"])
def test_what_is_kept_is_bounded_however_long_a_run_is(values: range) -> None:
    """100,000 different latencies, and as many again: no more buckets than there are."""
    recorder = Recorder(open_loop=True)
    sizes = []
    for _ in range(2):
        for start in range(0, len(values), FOLD_AT):
            some = values[start : start + FOLD_AT]
            recorder.latencies += some
            recorder.services += some
            recorder.fold()
        sizes.append(len(recorder.counts.latency))
    assert sizes[0] == sizes[1] < 34_000
    # Six kinds of times at the very most, a dictionary and its numbers each.
    assert 6 * (sys.getsizeof(recorder.counts.latency) + 2 * 32 * sizes[1]) < 64 << 20

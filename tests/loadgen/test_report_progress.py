"""What is told of a run while it goes on: in which words, how often, and where."""

from __future__ import annotations

from collections import Counter

import pytest

from loadgen.plan import Plan
from loadgen.report.progress import Lines, Pace, Watcher, connected, live_progress
from loadgen.tally import Counts, Phase, Snapshot, Tally

from .runs import MS, recorded

PLAN = Plan(connections=5000, duration=30.0)
# The duration is a bound that nobody asked for.
COUNTED = Plan(connections=5000, duration=24 * 3600.0, requests=2_000_000)


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def tally_at(phase: Phase, elapsed: float = 0.0, **counts: int) -> Tally:
    tally = Tally()
    tally.add(Snapshot(phase=phase, elapsed=elapsed, counts=Counts(**counts)))  # type: ignore[arg-type]  # all of them ints
    return tally


def second(tally: Tally, number: int, requests: int, latency: int = 2 * MS) -> None:
    """Four snapshots, a second's worth, as an engine sends them."""
    for quarter in range(1, 5):
        counts = Counts(
            verified=requests // 4,
            on_time=requests // 4,
            latency=Counter(dict.fromkeys(recorded(latency), requests // 4)),
        )
        elapsed = number + quarter / 4
        tally.add(Snapshot(phase=Phase.MEASURING, elapsed=elapsed, second=number, counts=counts))


# How far a run is ------------------------------------------------------------


@pytest.mark.parametrize(
    ("tally", "plan", "phase", "state", "share"),
    [
        (tally_at(Phase.CONNECTING, held=1250), PLAN, "connecting", "1,250 of 5,000", 0.25),
        (tally_at(Phase.READY, held=5000), PLAN, "ready", "5,000 of 5,000", 1.0),
        (tally_at(Phase.MEASURING, 12.0), PLAN, "measuring", "18 s left", 0.4),
        (tally_at(Phase.MEASURING, 29.75), PLAN, "measuring", "1 s left", 29.75 / 30),
        (tally_at(Phase.MEASURING, 30.2), PLAN, "measuring", "0 s left", 1.0),
        (
            tally_at(Phase.MEASURING, 12.0, verified=499_999, wrong=1),
            COUNTED,
            "measuring",
            "1,500,000 requests left, 36 s",
            0.25,
        ),
        (
            tally_at(Phase.DRAINING, 30.0, sent=1010, verified=999, failed=1),
            PLAN,
            "waiting for late replies",
            "10 left",
            1.0,
        ),
        (
            tally_at(Phase.DRAINING, 30.0, sent=9, verified=9),
            PLAN,
            "waiting for late replies",
            "",
            1.0,
        ),
        (tally_at(Phase.DONE, 30.0), PLAN, "done", "", 1.0),
    ],
)
def test_each_phase_tells_how_far_it_is(
    tally: Tally, plan: Plan, phase: str, state: str, share: float
) -> None:
    progress = Watcher(plan, Clock()).look(tally)
    assert (progress.phase, progress.state) == (phase, state)
    assert progress.share == pytest.approx(share)


def test_a_number_of_requests_of_which_none_is_answered_yet_promises_no_time() -> None:
    progress = Watcher(COUNTED, Clock()).look(tally_at(Phase.MEASURING, 1.0))
    assert progress.state == "2,000,000 requests left"


def test_a_duration_that_ends_before_the_requests_do_is_the_time_left() -> None:
    plan = Plan(connections=1, duration=10.0, requests=1_000_000)
    progress = Watcher(plan, Clock()).look(tally_at(Phase.MEASURING, 5.0, verified=10))
    assert (progress.state, progress.share) == ("999,990 requests left, 5 s", 0.5)


def test_the_warm_up_goes_by_the_clock() -> None:
    clock = Clock()
    watcher = Watcher(Plan(warmup=4.0), clock)
    watcher.look(tally_at(Phase.CONNECTING))
    clock.now += 100
    assert watcher.look(tally_at(Phase.WARMING)).state == "4 s left"
    clock.now += 3
    progress = watcher.look(tally_at(Phase.WARMING))
    assert (progress.phase, progress.state, progress.share) == ("warming up", "1 s left", 0.75)


def test_connections_that_come_and_go_are_never_more_than_asked() -> None:
    assert connected(Plan(connections=10), Counts(held=10, reconnected=500)) == 10
    assert connected(Plan(connections=10), Counts(held=1, lost=3)) == 0


# Lines -----------------------------------------------------------------------


def drawn(plan: Plan, *tallies: Tally, clock: Clock | None = None) -> list[str]:
    lines: list[str] = []
    told = Lines(plan, clock or Clock(), lines.append)
    for tally in tallies:
        told.draw(tally)
    return lines


def test_every_five_seconds_measured_a_line_tells_of_all_five() -> None:
    lines: list[str] = []
    told = Lines(PLAN, Clock(), lines.append)
    tally = Tally()
    for number in range(11):
        second(tally, number, requests=4000 if number % 5 else 8000, latency=(number + 1) * MS)
        told.draw(tally)
        told.draw(tally)
    assert lines == [
        "6 s of 30 s: 4,800 requests/s, p50 2.00 ms, p99 5.00 ms, 0 bad",
        "11 s of 30 s: 4,800 requests/s, p50 7.00 ms, p99 10.0 ms, 0 bad",
    ]


def test_nothing_is_told_before_the_first_five_seconds() -> None:
    assert drawn(PLAN, tally_at(Phase.MEASURING, 4.99), tally_at(Phase.DONE, 5.5)) == []


def test_faults_are_told_in_the_line() -> None:
    tally = tally_at(Phase.MEASURING, 5.25, verified=99, wrong=1, failed=2, timed_out=3, lost=4)
    [line] = drawn(PLAN, tally)
    assert line.endswith(" requests/s, 6 bad, 4 lost")


def test_a_number_of_requests_is_counted_in_place_of_seconds() -> None:
    [line] = drawn(COUNTED, tally_at(Phase.MEASURING, 5.25, verified=42_000, on_time=42_000))
    assert line == "42,000 of 2,000,000 requests: 8,000 requests/s, 0 bad"


def test_long_connecting_is_told_by_the_clock() -> None:
    clock, lines = Clock(), list[str]()
    told = Lines(PLAN, clock, lines.append)
    for passed in (0.0, 4.9, 5.1, 9.9, 22.0, 23.0, 25.0):
        clock.now = 1000 + passed
        told.draw(tally_at(Phase.CONNECTING, held=int(100 * passed), failed_to_connect=1))
    assert lines == [
        f"connecting: {held} of 5,000, 1 not connected" for held in ("509", "2,200", "2,500")
    ]


def test_waiting_for_late_replies_is_told_when_it_takes_long_itself() -> None:
    clock, lines = Clock(), list[str]()
    told = Lines(PLAN, clock, lines.append)
    late = tally_at(Phase.DRAINING, 30.0, sent=3)
    for tally, passed in ((tally_at(Phase.MEASURING, 4.0), 4.0), (late, 8.0), (late, 9.5)):
        clock.now = 1000 + passed
        told.draw(tally)
    assert lines == ["waiting for late replies: 3 left"]


def test_lines_go_to_standard_error_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with live_progress(PLAN) as draw:
        draw(tally_at(Phase.MEASURING, 4.0))
        draw(tally_at(Phase.MEASURING, 5.25))
    out, err = capsys.readouterr()
    assert (out, err) == ("", "5 s of 30 s: 0 requests/s, 0 bad\n")


# Pace ------------------------------------------------------------------------


def test_nothing_happens_more_often_than_its_pace_in_the_long_run() -> None:
    pace = Pace(0.25)
    assert sum(pace.allows(number / 100) for number in range(1000)) <= 41


def test_what_comes_about_in_time_is_never_passed_over() -> None:
    pace = Pace(0.25)
    assert all(pace.allows(10 + number / 4 + (-1) ** number * 0.02) for number in range(100))


def test_a_pause_is_not_made_up_for() -> None:
    pace = Pace(0.25)
    assert [pace.allows(now) for now in (0.0, 10.0, 10.1, 10.15)] == [True, True, False, False]

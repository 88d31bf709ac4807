"""What is called a difference, and what is not."""

from __future__ import annotations

import random
from typing import Any

import pytest

from loadgen.compare import FIGURES, Comparison, Finding, Method, Row, compare, orders, pairs_needed

from .documents import run_of


def rates(*values: float) -> list[dict[str, Any]]:
    """Runs of so many requests a second."""
    return [run_of(value) for value in values]


def row(comparison: Comparison, name: str) -> Row:
    """The row of a figure."""
    [found] = [each for each in comparison.rows if each.figure.name == name]
    return found


DRIFTING = [1000.0, 1900.0, 950.0, 2000.0, 1100.0, 1700.0, 1300.0, 900.0, 1800.0, 1000.0]
"""The speed of a machine that changes it by two from pair to pair."""


# Pairs -----------------------------------------------------------------------


def test_a_server_compared_with_itself_is_neither_faster_nor_slower() -> None:
    same = rates(*DRIFTING)
    found = compare(same, same, paired=True)
    assert found.method is Method.PAIRS
    assert {each.finding for each in found.rows} == {Finding.NOTHING}
    assert found.deciding.change is not None
    assert found.deciding.change[:3] == (1.0, 1.0, 1.0)


def test_pairs_tell_a_difference_that_is_smaller_than_what_the_machine_does_in_between() -> None:
    noise = random.Random(1)
    slower = [each / 1.2 * noise.uniform(0.97, 1.03) for each in DRIFTING]
    found = compare(rates(*DRIFTING), rates(*slower), paired=True)
    assert found.finding is Finding.SLOWER
    change = found.deciding.change
    assert change is not None
    assert 0.78 < change.low < 1 / 1.2 < change.high < 0.88
    assert row(found, "p50").finding is Finding.SLOWER, "latency that rises is slower as well"
    assert compare(rates(*slower), rates(*DRIFTING), paired=True).finding is Finding.FASTER


def test_what_lies_within_one_per_cent_is_not_called_however_sure_it_is() -> None:
    b = [each * 0.992 for each in DRIFTING]
    assert compare(rates(*DRIFTING), rates(*b), paired=True).finding is Finding.NOTHING
    b = [each * 0.988 for each in DRIFTING]
    assert compare(rates(*DRIFTING), rates(*b), paired=True).finding is Finding.SLOWER


def test_seven_pairs_show_nothing_and_the_note_says_how_many_would() -> None:
    found = compare(rates(*[1000.0] * 7), rates(*[500.0] * 7), paired=True)
    assert found.finding is Finding.NOTHING
    assert any("TOO FEW" in note and "at least 8" in note for note in found.notes)
    found = compare(rates(*[1000.0] * 8), rates(*[500.0] * 8), paired=True)
    assert (found.finding, found.notes) == (Finding.SLOWER, ())
    assert pairs_needed() == 8


def test_an_interval_that_would_hide_a_difference_is_told() -> None:
    b = [each * factor for each, factor in zip(DRIFTING, [0.8, 1.2] * 5, strict=True)]
    found = compare(rates(*DRIFTING), rates(*b), paired=True)
    assert found.finding is Finding.NOTHING
    [note] = found.notes
    assert note.startswith("WIDE: a difference of up to 20% would not have shown")


def test_slower_by_more_than_a_limit_takes_the_whole_interval() -> None:
    b = [each * factor for each, factor in zip(DRIFTING, [0.9, 0.92] * 5, strict=True)]
    found = compare(rates(*DRIFTING), rates(*b), paired=True)
    assert found.finding is Finding.SLOWER
    assert found.slower_by_more_than(0.05)
    assert not found.slower_by_more_than(0.09), "some pairs are above"
    faster = compare(rates(*b), rates(*DRIFTING), paired=True)
    assert not faster.slower_by_more_than(0.05)


def test_runs_without_their_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="2 runs and 1 runs are no pairs"):
        compare(rates(1, 2), rates(1), paired=True)
    with pytest.raises(ValueError, match="a run at least"):
        compare([], rates(1), paired=False)


def called_different(spell: int, times: int = 400) -> float:
    """How often equal servers are, on a machine that others take for so many runs on end."""
    source, called = random.Random(spell), 0
    for _ in range(times):
        speed: list[float] = []
        while len(speed) < 20:
            speed += [source.uniform(0.5, 1.0)] * source.randint(1, 2 * spell)
        sides: tuple[list[float], list[float]] = ([], [])
        for number, (first, second) in enumerate(orders(10, source)):
            sides[first].append(speed[2 * number] * source.uniform(0.9, 1.1))
            sides[second].append(speed[2 * number + 1] * source.uniform(0.9, 1.1))
        found = compare(rates(*sides[0]), rates(*sides[1]), paired=True, confidence=0.95)
        called += found.finding is not Finding.NOTHING
    return called / times


@pytest.mark.parametrize("spell", [1, 3, 10])
def test_disturbances_that_last_for_runs_make_no_difference(spell: int) -> None:
    assert called_different(spell) < 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5


# Which figure decides --------------------------------------------------------


def test_an_open_loop_is_decided_by_p99_and_has_the_service_time_as_well() -> None:
    a = [run_of(latency=0.001, p99=each / 1e6, loop="open") for each in DRIFTING]
    b = [run_of(latency=0.001, p99=each / 1e6 * 1.5, loop="open") for each in DRIFTING]
    found = compare(a, b, paired=True)
    assert (found.deciding.figure.name, found.finding) == ("p99", Finding.SLOWER)
    assert row(found, "service-p99").finding is Finding.SLOWER
    assert row(found, "rate").finding is Finding.NOTHING
    assert compare(a, b, paired=True, by="p50").finding is Finding.NOTHING


def test_a_closed_loop_has_no_service_time_of_its_own() -> None:
    found = compare(rates(1, 1), rates(1, 1), paired=True)
    assert [each.figure for each in found.rows] == [
        each for each in FIGURES if each.name != "service-p99"
    ]
    with pytest.raises(ValueError, match="no figure 'service-p99': expected one of rate, mean"):
        compare(rates(1), rates(1), paired=True, by="service-p99")


# Errors and nothing at all ---------------------------------------------------


def test_requests_that_fail_are_counted_as_a_difference_and_told() -> None:
    a = rates(*DRIFTING)
    b = [run_of(each, failed=100) for each in DRIFTING]
    found = compare(a, b, paired=True)
    assert found.finding is Finding.NOTHING
    errors = row(found, "errors")
    assert errors.finding is Finding.MORE
    assert errors.change is not None
    assert errors.change.middle == pytest.approx(0.01)
    assert found.notes == ("RUNS FAILED: 10 of 10 of B; the first: FAILED: 100 failed requests",)
    assert row(compare(b, a, paired=True), "errors").finding is Finding.FEWER


def test_a_server_that_answers_nothing_is_slower_by_every_figure() -> None:
    working, silent = rates(*DRIFTING), rates(*[0.0] * 10)
    for by in ("rate", "p99"):
        found = compare(working, silent, paired=True, by=by)
        assert found.finding is Finding.SLOWER
        assert found.slower_by_more_than(10.0 if by == "p99" else 0.9)
        assert compare(silent, working, paired=True, by=by).finding is Finding.FASTER
        assert compare(silent, silent, paired=True, by=by).finding is Finding.NOTHING


# Samples ---------------------------------------------------------------------


def test_runs_of_two_times_are_compared_by_ranks_with_a_warning() -> None:
    a, b = rates(100, 104, 98, 101, 103), rates(82, 80, 79, 84, 81)
    found = compare(a, b, paired=False)
    assert (found.method, found.finding) == (Method.SAMPLES, Finding.SLOWER)
    assert any(note.startswith("NOT IN TURN") for note in found.notes)
    mixed = compare(a, rates(82, 80, 102, 84, 81), paired=False)
    assert mixed.finding is Finding.NOTHING


def test_too_few_runs_show_nothing() -> None:
    found = compare(rates(100, 101, 102, 103), rates(10, 11, 12, 13), paired=False)
    assert found.finding is Finding.NOTHING
    assert any(note.startswith("TOO FEW: with so few runs") for note in found.notes)
    found = compare(rates(100), rates(10, 11, 12, 13, 14), paired=False)
    assert found.finding is Finding.NOTHING


# Seconds ---------------------------------------------------------------------


def series(seed: int, factor: float = 1.0, seconds: int = 30) -> list[dict[str, Any]]:
    """A run whose seconds scatter by 2 %."""
    noise = random.Random(seed)
    each = [factor * noise.gauss(1000, 20) for _ in range(seconds)]
    return [run_of(sum(each) / len(each), series=each)]


def test_one_run_compared_with_itself_shows_nothing() -> None:
    run = series(1)
    found = compare(run, run, paired=False)
    assert found.method is Method.SECONDS
    assert {each.finding for each in found.rows} == {Finding.NOTHING}
    assert any(note.startswith("ONE RUN A SIDE") for note in found.notes)


def test_one_run_a_side_tells_only_what_is_above_ten_per_cent() -> None:
    found = compare(series(1), series(2, 0.8), paired=False)
    assert found.finding is Finding.SLOWER
    assert row(found, "p99").finding is Finding.SLOWER
    assert row(found, "p90").finding is Finding.NOTHING, "no second has it"
    assert not found.slower_by_more_than(0.3)
    assert compare(series(1), series(2, 0.93), paired=False).finding is Finding.NOTHING


def test_seconds_that_follow_each_other_closely_count_little() -> None:
    drifting = [1000 + 20 * second for second in range(30)]
    a, b = [run_of(series=drifting)], [run_of(series=[0.5 * each for each in drifting])]
    found = compare(a, b, paired=False)
    assert found.finding is Finding.NOTHING
    assert any(note.startswith("TOO FEW") for note in found.notes)


@pytest.mark.parametrize("seconds", [0, 1, 3, 5])
def test_short_runs_show_nothing(seconds: int) -> None:
    a, b = [run_of(series=[1000] * seconds)], [run_of(500, series=[500] * seconds)]
    assert compare(a, b, paired=True).finding is Finding.NOTHING


# Notes -----------------------------------------------------------------------


def test_loads_that_differ_and_runs_that_measure_the_loader_are_told() -> None:
    a = [run_of(bound=True) for _ in range(8)]
    b = [run_of(connections=2) for _ in range(8)]
    loads, loader = compare(a, b, paired=True).notes
    assert loads == "NOT THE SAME LOAD: connections 1 and 2"
    assert loader.startswith("LOADER-BOUND: 8 of 16 runs")


def test_runs_of_different_machines_are_said_to_be() -> None:
    [other] = rates(1000.0)
    other["environment"] = {"python": "3.13"}
    found = compare(rates(1000.0), [other], paired=False)
    assert any(note.startswith("NOT THE SAME MACHINE: ") for note in found.notes)


def test_seconds_that_do_not_tell_leave_the_plain_change() -> None:
    a, b = (run_of(1000.0, series=[1000.0] * 12) for _ in range(2))
    for second in (*a["series"], *b["series"]):
        second["p50"] = second["p99"] = None
    found = compare([a], [b], paired=False)
    change = row(found, "p50").change
    assert change is not None
    assert change[:3] == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("runs", [1, 6])
def test_what_was_not_measured_shows_nothing(runs: int) -> None:
    measured = run_of(series=[1000.0] * 30)
    nothing = measured | {"requests": dict.fromkeys(measured["requests"], 0)}
    for a, b in ((measured, nothing), (nothing, measured), (nothing, nothing)):
        found = row(compare([a] * runs, [b] * runs, paired=False), "errors")
        assert (found.change, found.finding) == (None, Finding.NOTHING)

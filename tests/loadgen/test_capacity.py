"""The search on simulated servers: what it finds, what disturbs it, and how long it takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.capacity import (
    Ending,
    Figures,
    Limit,
    Outcome,
    Result,
    assess,
    between,
    is_clear,
)
from loadgen.tally import Counts

from .runs import MS, fine, finished, loader_bound, open_loop, rate_missed, recorded, snapshots
from .searches import Measure, Simulation, disturbed, ruined, served, terms, timed


def assert_found(result: Result, capacity: float) -> None:
    """A confirmed rate, below what is known by no more than the precision."""
    precision = 1 + result.terms.precision
    assert result.confirmed is not None
    assert result.confirmed.rate == result.best
    # What a server does for a moment over its capacity breaks the objective only by and by.
    assert capacity / precision * 0.995 <= result.confirmed.rate <= capacity * 1.005


# What it finds ---------------------------------------------------------------


@settings(max_examples=50)
@given(st.floats(20, 900_000), st.sampled_from([0.01, 0.05, 0.2]), st.floats(1, 1e6))
def test_the_answer_is_as_close_to_the_capacity_as_asked(
    capacity: float, precision: float, start: float
) -> None:
    result = Simulation(capacity).search(terms(precision=precision, start=start))
    assert_found(result, capacity)
    assert (result.limit, result.ending) == (Limit.SERVER, Ending.FOUND)


def test_rates_double_until_one_does_not_hold_and_are_halved_in_between() -> None:
    simulation = Simulation(5_000)
    result = simulation.search(terms())
    rates = [step.rate for step in result.steps]
    assert rates[:5] == [1000, 2000, 4000, 8000, 5660]
    assert rates[5:9] == [4760, 5190, 5190, 4970], "a narrow miss is measured again"
    assert (rates[-1], result.steps[-1].seconds, result.steps[-1].confirms) == (4970, 10.0, True)
    assert [step.seconds for step in result.steps[:-1]] == [3.0] * (len(rates) - 1)


def test_from_a_start_that_does_not_hold_rates_are_quartered() -> None:
    result = Simulation(70).search(terms())
    assert [step.rate for step in result.steps[:4]] == [1000, 250, 62.5, 125]
    assert_found(result, 70)


def test_a_rate_below_one_request_a_second_is_only_tried_if_asked_for() -> None:
    result = Simulation(0.5).search(terms(start=10))
    assert min(step.rate for step in result.steps) == 1.0
    assert (result.confirmed, result.best, result.limit) == (None, None, Limit.SERVER)
    assert_found(Simulation(0.5).search(terms(start=0.4)), 0.5)


def test_the_highest_rate_asked_for_may_hold() -> None:
    result = Simulation(50_000).search(terms(max_rate=20_000))
    assert (result.best, result.limit) == (20_000, Limit.MAX_RATE)
    assert max(step.rate for step in result.steps) == 20_000


def test_a_load_generator_that_cannot_send_more_is_told_from_the_server() -> None:
    result = Simulation(90_000, loader=40_000).search(terms())
    assert_found(result, 40_000)
    assert (result.limit, result.reason) == (Limit.LOADER, "it was busy")
    assert Outcome.LOADER_BOUND in {step.outcome for step in result.steps}


def test_a_busy_load_generator_does_not_matter_where_the_rate_holds() -> None:
    figures = served(1000, 3, math.inf, loader_bound=True)
    assert assess(figures, terms()) == (Outcome.HELD, "")


def test_connections_that_all_wait_for_a_server_as_quick_as_ever_are_the_limit() -> None:
    class Slow(Simulation):
        def measure(self, rate: float, seconds: float) -> Figures:
            self.now += seconds
            over = rate > 5_000
            return served(rate, seconds, 5_000, service=timed(9 * MS if over else 8 * MS))

    result = Slow(math.inf).search(terms())
    assert_found(result, 5_000)
    assert result.limit is Limit.CONNECTIONS


# What disturbs it ------------------------------------------------------------


@pytest.mark.parametrize("bad", [disturbed, ruined])
@pytest.mark.parametrize("capacity", [300, 5_000, 40_000])
def test_one_bad_step_wherever_it_is_changes_the_answer_no_more_than_the_precision(
    capacity: float, bad: Measure
) -> None:
    steps = len(Simulation(capacity).search(terms()).steps)
    for number in range(steps):
        result = Simulation(capacity, odd={number: bad}).search(terms())
        assert_found(result, capacity)
        assert result.limit in (Limit.SERVER, Limit.UNKNOWN)


def test_a_miss_that_a_disturbance_explains_is_measured_again() -> None:
    result = Simulation(40_000, odd={1: disturbed}).search(terms())
    first, second, third = result.steps[1:4]
    assert (first.rate, first.outcome, first.repeats) == (2000, Outcome.SLO_MISSED, False)
    assert (second.rate, second.outcome, second.repeats) == (2000, Outcome.HELD, True)
    assert third.rate == 4000


def test_a_miss_by_far_is_not_measured_again_at_once() -> None:
    result = Simulation(5_000).search(terms())
    assert [step.rate for step in result.steps].count(8000) == 1
    assert is_clear(served(8000, 3, 5000), terms())
    assert not is_clear(served(5100, 3, 5000), terms())
    assert not is_clear(disturbed(8000, 3), terms())


def test_a_miss_by_far_right_above_what_holds_is_a_contradiction_and_measured_again() -> None:
    result = Simulation(40_000, odd={3: ruined}).search(terms())
    eight_thousands = [step for step in result.steps if step.rate == 8000]
    assert [(step.held, step.repeats) for step in eight_thousands] == [(False, False), (True, True)]
    assert_found(result, 40_000)


def test_the_rate_right_above_the_answer_was_measured_twice() -> None:
    result = Simulation(5_000).search(terms())
    assert result.best is not None
    above = [step for step in result.steps if result.best < step.rate <= 1.06 * result.best]
    assert len(above) == 2
    assert not any(step.held for step in above)


# Confirming ------------------------------------------------------------------


class Tiring(Simulation):
    """A server that cannot keep up for long what it does for a moment."""

    def __init__(self, capacity: float, lasting: float) -> None:
        super().__init__(capacity)
        self.lasting = lasting

    def measure(self, rate: float, seconds: float) -> Figures:
        self.now += seconds
        return served(rate, seconds, self.lasting if seconds > 5 else self.capacity)


def test_what_is_not_confirmed_is_tried_lower_until_it_is() -> None:
    result = Tiring(10_000, 9_300).search(terms())
    assert result.confirmed is not None
    assert 8_500 <= result.confirmed.rate <= 9_300
    rates = [step.rate for step in result.steps if step.confirms]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == rates[1], "the first is repeated"
    assert result.limit is Limit.SERVER


def test_nothing_is_confirmed_of_what_holds_for_a_moment_alone() -> None:
    result = Tiring(10_000, 100).search(terms())
    assert result.confirmed is None
    assert result.best is not None
    assert result.ending is Ending.TIME
    assert result.limit is Limit.SERVER


def test_below_the_lowest_rate_nothing_is_tried_in_order_to_confirm_it() -> None:
    result = Tiring(10, 0.1).search(terms(start=1, max_rate=1))
    assert {step.rate for step in result.steps} == {1.0}
    assert (result.confirmed, result.best, result.ending) == (None, 1.0, Ending.FOUND)


@pytest.mark.parametrize("bad", [disturbed, ruined])
def test_a_confirmation_that_misses_contradicts_what_held_and_is_repeated(bad: Measure) -> None:
    quiet = Simulation(5_000).search(terms())
    result = Simulation(5_000, odd={len(quiet.steps) - 1: bad}).search(terms())
    assert result.best == quiet.best
    assert [step.held for step in result.steps if step.confirms] == [False, True]


# How it ends -----------------------------------------------------------------


def test_wrong_replies_end_it_at_once() -> None:
    wrong: Measure = lambda rate, seconds: served(rate, seconds, math.inf, wrong=3)  # noqa: E731
    result = Simulation(9_000, odd={2: wrong}).search(terms())
    assert len(result.steps) == 3
    assert (result.ending, result.confirmed, result.best) == (Ending.WRONG, None, 2000)
    assert result.steps[-1].outcome is Outcome.WRONG


def interrupt(*_: float) -> Figures:
    """An interrupt between two runs."""
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "interruption",
    [interrupt, lambda rate, seconds: served(rate, seconds, math.inf, interrupted=True)],
)
def test_an_interrupt_gives_what_was_found_so_far(interruption: Measure) -> None:
    result = Simulation(9_000, odd={2: interruption}).search(terms())
    assert (result.ending, result.confirmed, result.best) == (Ending.INTERRUPTED, None, 2000)
    assert result.limit is Limit.UNKNOWN


def test_a_server_that_goes_away_is_asked_for_again_before_it_is_given_up() -> None:
    gone = Figures(planned=0, sent=0, on_time=0, held=0, unconnected=50)
    assert assess(gone, terms()) == (Outcome.UNCONNECTED, "none could be made")
    back = Simulation(9_000, odd={2: lambda *_: gone}).search(terms())
    assert_found(back, 9_000)
    never: Measure = lambda *_: gone  # noqa: E731
    result = Simulation(9_000, odd=dict.fromkeys(range(2, 99), never)).search(terms())
    assert (result.ending, len(result.steps), result.best) == (Ending.UNCONNECTED, 4, 2000)
    assert result.limit is Limit.UNKNOWN


@settings(max_examples=50)
@given(st.floats(30, 300), st.floats(20, 900_000))
def test_it_ends_in_the_time_that_it_may_take(seconds: float, capacity: float) -> None:
    asked = terms(max_time=seconds, start=1.0)
    result = Simulation(capacity).search(asked)  # which looks at its clock
    assert result.best is not None
    assert result.best <= capacity * 1.005
    # Time is kept back for one confirmation, which may miss by a hair.
    assert any(step.confirms for step in result.steps)


def test_a_search_that_is_out_of_time_confirms_what_it_has() -> None:
    result = Simulation(900_000).search(terms(max_time=45))
    assert (result.ending, result.limit) == (Ending.TIME, Limit.UNKNOWN)
    assert (result.best, len(result.steps)) == (8000, 5)


def test_the_steps_of_a_search_are_bounded_whatever_is_measured() -> None:
    flips: dict[int, Measure] = {
        number: (ruined, disturbed)[number % 2] for number in range(1, 100, 2)
    }
    bad: Measure = disturbed
    always, early = dict.fromkeys(range(100), bad), dict.fromkeys(range(5), bad)
    for odd in ({}, flips, always, early):
        result = Simulation(40_000, odd=odd).search(terms())  # which looks at its clock
        assert sum(not step.confirms for step in result.steps) <= result.terms.most_steps


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"start": 0.0}, "a start rate of 0: more than 0"),
        ({"start": 5e3, "max_rate": 1e3}, "a start rate of 5,000: .* the highest rate, 1,000"),
        ({"precision": 0.0}, "a precision of 0 %"),
        ({"precision": 0.6}, "a precision of 60 %"),
        ({"sent_share": 0.0}, "0 % of the requests"),
        ({"step": 0.0}, "steps of 0 s"),
        ({"max_time": 20.0}, "20 s are too short: one step and a confirmation may take 21 s"),
    ],
)
def test_terms_that_make_no_sense_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        terms(**changes)


# Judging a step --------------------------------------------------------------


@pytest.mark.parametrize(
    ("figures", "outcome", "why"),
    [
        (served(1000, 3, 1000), Outcome.HELD, ""),
        (served(1000, 3, 700), Outcome.RATE_MISSED, "70.0 % sent, p99 unanswered"),
        (disturbed(1000, 3), Outcome.SLO_MISSED, "p99 300 ms"),
        (served(1000, 3, 1000, failed=2), Outcome.SLO_MISSED, "2 requests failed"),
        (served(1000, 3, 1000, unconnected=2), Outcome.SLO_MISSED, "2 connections not made"),
        (served(1000, 3, 1000, wrong=2), Outcome.WRONG, "2 of 3,000"),
        (served(1000, 3, 700, loader_bound=True), Outcome.LOADER_BOUND, "70.0 % sent, p99 una"),
    ],
)
def test_a_step_is_judged_in_words(figures: Figures, outcome: Outcome, why: str) -> None:
    got, because = assess(figures, terms())
    assert got is outcome
    assert because.startswith(why)


def test_errors_may_be_allowed() -> None:
    figures = served(1000, 3, 1000, failed=3)  # of 3,000
    assert assess(figures, terms("p99<10ms,errors<=0.1%"))[0] is Outcome.HELD
    assert assess(figures, terms("p99<10ms,errors<0.1%")) == (Outcome.SLO_MISSED, "errors 0.1 %")


def test_how_many_requests_have_to_be_sent_may_be_said() -> None:
    figures = served(1000, 3, 960)
    assert assess(figures, terms("p50<1s"))[0] is Outcome.RATE_MISSED
    assert assess(figures, terms("p50<1s", sent_share=0.95))[0] is Outcome.HELD


def test_requests_without_a_reply_are_the_slowest_of_a_percentile() -> None:
    latency = recorded(*[MS] * 90)
    figures = Figures.of(finished(snapshots(Counts(held=1, sent=95, unsent=5, latency=latency))))
    assert figures.percentile(90) == pytest.approx(0.001, rel=0.01)
    assert figures.percentile(91) == math.inf
    assert Figures(planned=0, sent=0, on_time=0).percentile(50) == math.inf


@pytest.mark.parametrize("make", [fine, open_loop, rate_missed, loader_bound])
def test_figures_are_those_of_the_run(make: Callable[[], Any]) -> None:
    run = make()
    counts, figures = run.tally.counts, Figures.of(run)
    assert (figures.sent, figures.planned) == (counts.sent, counts.sent + counts.unsent)
    assert (figures.on_time, figures.held) == (counts.on_time, counts.held)
    assert figures.loader_bound is bool(run.loader.bound)
    assert figures.reason == run.loader.reason


def test_a_load_generator_that_was_late_with_what_it_could_have_sent_is_the_limit() -> None:
    run = rate_missed()
    run.tally.counts.lag = recorded(*[5 * MS] * 400)
    figures = Figures.of(run)
    assert figures.loader_bound
    assert figures.reason == "requests went out late"


@given(st.floats(0.5, 1e6), st.floats(1.002, 4))
def test_the_rate_between_two_is_between_them(low: float, factor: float) -> None:
    middle = between(low, low * factor)
    assert low < middle < low * factor
    # Neither part is much more than half, so that the number of steps is bounded.
    assert math.log(middle / low) <= 0.63 * math.log(factor)
    assert math.log(low * factor / middle) <= 0.63 * math.log(factor)

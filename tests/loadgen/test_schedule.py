"""Arrivals: where they should be by the integral of the rate, whoever sends them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.schedule import COUNTED_EXACTLY, Schedule, Stage

quiet = settings(deadline=None, derandomize=True, max_examples=50)
SECOND = 1_000_000_000
STEADY = [Stage(1.0, 1000, 1000)]

# Quarters of seconds and whole rates: floats hold the number of requests exactly.
RATES = st.integers(0, 60).map(float)
STAGES = st.lists(
    st.builds(Stage, st.integers(1, 12).map(lambda quarters: quarters / 4), RATES, RATES),
    min_size=1,
    max_size=5,
)


def due_before(stages: Sequence[Stage], moment: int) -> Fraction:
    """The integral of the rate up to a moment in nanoseconds."""
    total, left = Fraction(0), Fraction(moment, SECOND)
    for stage in stages:
        seconds, start, end = map(Fraction, stage)
        spent = min(left, seconds)
        total += start * spent + (end - start) / seconds * spent**2 / 2
        left -= spent
    return total


def length(stages: Sequence[Stage]) -> int:
    return round(sum(stage.seconds for stage in stages) * SECOND)


def ascends(times: Sequence[int]) -> bool:
    return all(before <= after for before, after in itertools.pairwise(times))


# Constant arrivals -------------------------------------------------------------------


def test_a_steady_rate_is_evenly_spread() -> None:
    assert list(Schedule(STEADY)) == [number * 1_000_000 for number in range(1000)]


def test_a_rate_that_divides_no_second_does_not_drift() -> None:
    times = list(Schedule([Stage(3000.0, 3, 3)]))
    assert times == [round(number * SECOND / 3) for number in range(9000)]


@pytest.mark.parametrize(
    ("rate", "times"),
    [
        (0.5, [0, 2 * SECOND]),
        (0.25, [0]),
        (0.001, [0]),
        (5e-324, [0]),
        (0.0, []),
    ],
)
def test_less_than_one_request_a_second(rate: float, times: list[int]) -> None:
    assert list(Schedule([Stage(4.0, rate, rate)])) == times


def test_a_billion_a_second_lie_a_nanosecond_apart() -> None:
    schedule = Schedule([Stage(60.0, 1e9, 1e9)])
    assert list(itertools.islice(schedule, 1000)) == list(range(1000))


def test_a_ramp_from_nought_gets_ever_faster() -> None:
    times = list(Schedule([Stage(2.0, 0, 4)]))  # the integral is t**2
    assert times == [round(math.sqrt(number) * SECOND) for number in range(4)]


def test_a_ramp_down_to_nought_gets_ever_slower() -> None:
    times = list(Schedule([Stage(2.0, 4, 0)]))  # the integral is 4t - t**2
    assert times == [round((2 - math.sqrt(4 - number)) * SECOND) for number in range(4)]


def test_a_stage_goes_on_where_the_one_before_has_ended() -> None:
    # Each of the stages holds one request and a half.
    stages = [Stage(1.5, 1, 1), Stage(1.0, 0, 0), Stage(1.5, 1, 1)]
    assert list(Schedule(stages)) == [0, SECOND, 3 * SECOND]


def test_at_a_rate_of_nought_nothing_is_due() -> None:
    times = list(Schedule([Stage(1.0, 0, 0), Stage(1.0, 10, 10), Stage(1.0, 0, 0)]))
    assert times == [SECOND + number * SECOND // 10 for number in range(10)]


@quiet
@given(STAGES)
def test_arrivals_are_where_the_integral_passes_whole_numbers(stages: list[Stage]) -> None:
    times = list(Schedule(stages))
    assert ascends(times)
    assert len(times) == math.ceil(due_before(stages, length(stages)))
    fastest = max(max(stage.start, stage.end) for stage in stages)
    nanosecond = Fraction(fastest) / SECOND
    for number, due in enumerate(times):
        assert abs(due_before(stages, due) - number) <= nanosecond


@quiet
@given(STAGES, st.integers(1, 7))
def test_the_parts_of_all_workers_are_the_whole(stages: list[Stage], workers: int) -> None:
    parts = [list(Schedule(stages, worker=worker, workers=workers)) for worker in range(workers)]
    whole = list(Schedule(stages))
    assert sorted(itertools.chain(*parts)) == whole
    # Each takes every n-th, so that none gets a burst.
    for worker, part in enumerate(parts):
        assert part == whole[worker::workers]


# Poisson arrivals --------------------------------------------------------------------


def poisson(stages: Sequence[Stage], seed: int = 1, worker: int = 0, workers: int = 1) -> list[int]:
    schedule = Schedule(stages, poisson=True, seed=seed, worker=worker, workers=workers)
    return list(schedule)


def test_the_same_seed_gives_the_same_random_arrivals() -> None:
    assert poisson(STEADY, seed=5) == poisson(STEADY, seed=5)
    assert poisson(STEADY, seed=5) != poisson(STEADY, seed=6)


def test_workers_have_random_arrivals_of_their_own() -> None:
    parts = [poisson(STEADY, worker=worker, workers=4) for worker in range(4)]
    assert len({tuple(part) for part in parts}) == 4
    assert not set(parts[0]) & set(parts[1])


@quiet
@given(STAGES, st.integers(0, 1000), st.integers(1, 4))
def test_random_arrivals_ascend_and_lie_within_the_stages(
    stages: list[Stage], seed: int, workers: int
) -> None:
    times = poisson(stages, seed, workers - 1, workers)
    assert ascends(times)
    assert all(0 <= due <= length(stages) for due in times)


@pytest.mark.parametrize("workers", [1, 4])
def test_random_gaps_are_exponentially_distributed(workers: int) -> None:
    parts = [
        poisson([Stage(20.0, 1000, 1000)], worker=worker, workers=workers)
        for worker in range(workers)
    ]
    times = sorted(itertools.chain(*parts))
    gaps = sorted(after - before for before, after in itertools.pairwise([0, *times]))
    count = len(gaps)
    # Of 20,000: their number has a standard deviation of 141, their mean one of 0.7 %.
    assert abs(count - 20_000) < 4 * 141
    mean = sum(gaps) / count
    assert mean == pytest.approx(1e6, rel=0.03)
    # Kolmogorov and Smirnov: a distance of 1.63 / sqrt(n) is exceeded once in a hundred.
    distance = max(
        abs((rank + 0.5) / count - (1 - math.exp(-gap / 1e6))) for rank, gap in enumerate(gaps)
    )
    assert distance < 1.63 / math.sqrt(count)


def test_random_arrivals_follow_a_ramp() -> None:
    stages = [Stage(10.0, 0, 2000), Stage(10.0, 2000, 0)]
    times = poisson(stages)
    # As many as the integral says in each window, give or take four standard deviations.
    for second in range(20):
        begin, end = second * SECOND, (second + 1) * SECOND
        expected = float(due_before(stages, end) - due_before(stages, begin))
        found = sum(begin <= due < end for due in times)
        assert abs(found - expected) < 4 * math.sqrt(expected)


# Counting ----------------------------------------------------------------------------


@quiet
@given(STAGES, st.booleans(), st.integers(1, 3), st.integers(0, 50), st.floats(0, 1.2))
def test_a_count_is_that_of_the_arrivals_left(
    stages: list[Stage], random: bool, workers: int, taken: int, share: float
) -> None:
    end = int(length(stages) * share)
    schedule, same = (Schedule(stages, poisson=random, workers=workers) for _ in range(2))
    for _ in range(taken):
        next(schedule.times, None)
        next(same.times, None)
    assert schedule.count(end) == sum(due < end for due in same)


@pytest.mark.parametrize("number", [COUNTED_EXACTLY - 1, COUNTED_EXACTLY, COUNTED_EXACTLY + 1])
@pytest.mark.parametrize("rest", [0.25, 5.25])
def test_a_hundred_thousand_are_counted_exactly(number: int, rest: float) -> None:
    rate = 100_000.0
    stages = [Stage(1.0, rate, rate), Stage(1.0, rate, rate)]
    assert Schedule(stages).count(1 + (number - 1) * 10_000) == number
    # The same at the end of all arrivals, wherever the end itself is.
    stages = [Stage((number - 0.5) / rate, rate, rate)]
    assert Schedule(stages).count(round(rest * SECOND)) == min(number, math.ceil(rest * rate))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("random", [False, True])
def test_more_are_counted_by_the_rate(workers: int, random: bool) -> None:
    stages = [Stage(10.0, 100_000, 300_000), Stage(5.0, 0, 0), Stage(10.0, 300_000, 0)]
    schedule = Schedule(stages, poisson=random, seed=1, worker=workers - 1, workers=workers)
    expected = float(due_before(stages, 20 * SECOND)) / workers
    # Of random ones a standard deviation is the root of their number.
    allowed = 4 * math.sqrt(COUNTED_EXACTLY) if random else 1
    assert abs(schedule.count(20 * SECOND) - expected) <= allowed


def test_nothing_is_left_to_count_at_the_end() -> None:
    schedule = Schedule(STEADY)
    assert len(list(schedule)) == 1000
    assert schedule.count(2 * SECOND) == 0

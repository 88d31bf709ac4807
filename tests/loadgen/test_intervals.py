"""Intervals hold what they promise, whatever the noise."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen import intervals
from loadgen.intervals import blocks, independent, of_change, of_median, of_pairs

POSITIVE = st.floats(0.01, 100)
PAIRS = st.lists(st.tuples(POSITIVE, POSITIVE), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("n", "low", "high", "confidence"), [(6, 1, 6, 0.969), (10, 2, 9, 0.979), (20, 6, 15, 0.959)]
)
def test_medians_have_the_intervals_of_the_published_table(
    n: int, low: int, high: int, confidence: float
) -> None:
    found = of_median(range(1, n + 1), 0.95)
    assert (found.low, found.high, round(found.confidence, 3)) == (low, high, confidence)


@pytest.mark.parametrize(
    ("n", "skipped", "confidence"), [(6, 0, 0.969), (8, 3, 0.961), (10, 8, 0.951)]
)
def test_pairs_leave_out_what_the_signed_ranks_allow(
    n: int, skipped: int, confidence: float
) -> None:
    pairs = [(0.0, float(2**each)) for each in range(n)]
    found = of_pairs(pairs, 0.95, ratios=False)
    means = sorted((2.0**i + 2.0**j) / 2 for i in range(n) for j in range(i, n))
    assert (found.low, found.high) == (means[skipped], means[-1 - skipped])
    assert round(found.confidence, 3) == confidence


@pytest.mark.parametrize(
    ("m", "n", "skipped", "confidence"), [(4, 4, 0, 0.971), (5, 5, 2, 0.968), (8, 10, 17, 0.957)]
)
def test_samples_leave_out_what_the_rank_sums_allow(
    m: int, n: int, skipped: int, confidence: float
) -> None:
    a, b = [1.01**each for each in range(m)], [2.0**each for each in range(n)]
    found = of_change(a, b, 0.95, ratios=False)
    differences = sorted(y - x for x in a for y in b)
    assert (found.low, found.high) == (differences[skipped], differences[-1 - skipped])
    assert round(found.confidence, 3) == confidence


def test_too_few_values_say_how_little_they_show() -> None:
    assert of_median([3.0], 0.95) == (3.0, 3.0, 3.0, 0.0)
    assert of_pairs([(1, 2)] * 5, 0.95).confidence == 0.9375
    assert of_change([1, 2, 3], [1, 2, 3], 0.95).confidence == 0.9


def steady(noise: random.Random) -> float:
    """As textbooks have it."""
    return noise.gauss(0, 0.3)


def wild(noise: random.Random) -> float:
    """Now and then something takes the machine for a while."""
    return noise.gauss(0, 0.05) + (noise.random() < 0.2) * noise.uniform(-1.5, 1.5)


@pytest.mark.parametrize("noise", [steady, wild])
@pytest.mark.parametrize("n", [6, 10, 15])
def test_equal_pairs_are_called_different_no_oftener_than_promised(
    noise: Callable[[random.Random], float], n: int
) -> None:
    source = random.Random(n)
    times = 500
    called = 0
    for _ in range(times):
        pairs = [(1.0, math.exp(noise(source))) for _ in range(n)]
        found = of_pairs(pairs, 0.95)
        called += not found.low <= 1 <= found.high
    # Three standard deviations above.
    assert called / times < 0.05 + 3 * math.sqrt(0.05 * 0.95 / times)


def test_one_disturbed_pair_in_twelve_does_not_hide_a_difference() -> None:
    pairs = [(1.0, 0.8 + 0.002 * each) for each in range(11)]
    assert of_pairs([*pairs, (1.0, 50.0)], 0.95).high < 0.83


@given(PAIRS)
def test_turning_pairs_round_turns_the_interval_round(pairs: list[tuple[float, float]]) -> None:
    there = of_pairs(pairs, 0.95)
    back = of_pairs([(y, x) for x, y in pairs], 0.95)
    assert there.low <= there.middle * (1 + 1e-9)
    assert there.middle <= there.high * (1 + 1e-9)
    assert back[:3] == pytest.approx((1 / there.middle, 1 / there.high, 1 / there.low))


@given(st.lists(POSITIVE, min_size=1, max_size=9), st.lists(POSITIVE, min_size=1, max_size=9))
def test_a_sample_compared_with_itself_holds_no_difference(a: list[float], b: list[float]) -> None:
    same = of_change(a, a, 0.95)
    assert same.low <= 1 <= same.high
    there, back = of_change(a, b, 0.9), of_change(b, a, 0.9)
    assert (back.low, back.high) == pytest.approx((1 / there.high, 1 / there.low))


def test_nothing_and_without_end_are_values_too() -> None:
    none = [(1.0, 0.0)] * 6
    assert of_pairs(none, 0.95)[:3] == (0.0, 0.0, 0.0)
    assert of_pairs([(y, x) for x, y in none], 0.95).low == math.inf
    assert of_pairs([(0.0, 0.0)] * 6, 0.95)[:3] == (1.0, 1.0, 1.0)
    mixed = of_pairs([(1.0, 0.0), (0.0, 1.0)] * 5, 0.95)
    assert (mixed.low, mixed.high) == (0.0, math.inf)


@pytest.mark.parametrize("n", [20, 30])
def test_many_values_are_approximated_closely(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source = random.Random(n)
    pairs = [(source.uniform(1, 2), source.uniform(1, 2)) for _ in range(n)]
    first, second = [x for x, _ in pairs[:20]], [y for _, y in pairs[:20]]
    exact = of_pairs(pairs, 0.95), of_change(first, second, 0.95)
    monkeypatch.setattr(intervals, "EXACT_PAIRS", 0)
    monkeypatch.setattr(intervals, "EXACT_UP_TO", 0)
    close = of_pairs(pairs, 0.95), of_change(first, second, 0.95)
    for one, other in zip(exact, close, strict=True):
        assert other == pytest.approx(one, rel=0.01)


def test_a_series_is_worth_less_the_more_its_values_resemble_their_neighbours() -> None:
    source = random.Random(1)
    shocks = [source.gauss(0, 1) for _ in range(200)]
    worth = []
    for memory in (0.0, 0.5, 0.9):
        level, series = 0.0, []
        for shock in shocks:
            level = memory * level + shock
            series.append(level)
        worth.append(independent(series))
    none, some, much = worth
    assert 150 < none <= 200
    assert 40 < some < 90
    assert much < 20


def test_blocks_have_all_of_a_series() -> None:
    assert blocks([float(each) for each in range(7)], 3) == [0.5, 2.5, 5.0]
    assert blocks([4.0], 1) == [4.0]

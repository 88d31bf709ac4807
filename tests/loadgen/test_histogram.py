"""The histogram against plain lists, its layout against figures worked out by hand, and all of
it against HdrHistogram's Python implementation."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from loadgen.histogram import Histogram, bucket_indices, bucket_range

from .reference import PERCENTS, Recordings, counted, heavy_tailed, recordings, reference

HOUR = 3_600_000_000_000
"""Nanoseconds."""

# All magnitudes alike: uniform integers would nearly all be minutes long.
nanoseconds = st.integers(0, 42).flatmap(lambda bits: st.integers(0, 1 << bits))
latencies = st.lists(nanoseconds, min_size=1, max_size=200)
# How fast examples are made says nothing about the code.
quiet = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def recorded(values: list[int]) -> Histogram:
    histogram = Histogram()
    histogram.record(values)
    return histogram


def highest(value: int) -> int:
    """The highest value of the bucket that a value falls into."""
    [index] = bucket_indices([value])
    return bucket_range(index)[1]


# The layout ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "index", "lowest", "top"),
    [
        # Up to 2,047 each value has its own bucket.
        (0, 0, 0, 0),
        (1, 1, 1, 1),
        (1023, 1023, 1023, 1023),
        (2047, 2047, 2047, 2047),
        # 2,048 to 4,095 in 1,024 buckets of 2 each.
        (2048, 2048, 2048, 2049),
        (2049, 2048, 2048, 2049),
        (4095, 3071, 4094, 4095),
        # 4,096 to 8,191 in 1,024 buckets of 4 each.
        (4096, 3072, 4096, 4099),
        (8191, 4095, 8188, 8191),
        # 1 ms: 2**19 < 10**6 < 2**20, so buckets of 2**(20 - 11) = 512:
        # 9 * 1,024 + 10**6 // 512 = 9,216 + 1,953.
        (1_000_000, 11_169, 999_936, 1_000_447),
        # 1 s: 2**29 < 10**9 < 2**30, so buckets of 2**19 = 524,288:
        # 19 * 1,024 + 10**9 // 524,288 = 19,456 + 1,907.
        (1_000_000_000, 21_363, 999_817_216, 1_000_341_503),
    ],
)
def test_the_layout_is_that_of_hdrhistogram(value: int, index: int, lowest: int, top: int) -> None:
    assert bucket_indices([value]) == [index]
    assert bucket_range(index) == (lowest, top)


@quiet
@given(nanoseconds)
@example(2047)
@example(2048)
@example(HOUR)
def test_a_value_lies_inside_its_bucket(value: int) -> None:
    [index] = bucket_indices([value])
    lowest, top = bucket_range(index)
    assert lowest <= value <= top


@quiet
@given(st.integers(0, 34_000))
@example(2047)
@example(2048)
def test_index_and_range_are_each_others_inverse(index: int) -> None:
    lowest, top = bucket_range(index)
    assert bucket_indices([lowest, top]) == [index, index]
    assert bucket_range(index + 1)[0] == top + 1, "no value is left out between two buckets"


@quiet
@given(st.integers(0, 34_000))
def test_a_bucket_is_never_wider_than_a_thousandth_of_its_values(index: int) -> None:
    lowest, top = bucket_range(index)
    assert (top - lowest) * 1000 <= lowest


def test_an_hour_fits_in_the_promised_number_of_buckets() -> None:
    assert bucket_indices([HOUR])[0] < 34_000


@quiet
@given(st.lists(nanoseconds))
def test_indices_come_in_the_order_of_the_values(values: list[int]) -> None:
    assert bucket_indices(values) == [bucket_indices([value])[0] for value in values]


# Counting --------------------------------------------------------------------


def test_an_empty_histogram_is_all_zero() -> None:
    histogram = Histogram()
    assert not histogram
    assert len(histogram) == 0
    assert (histogram.min, histogram.mean, histogram.max) == (0, 0.0, 0)
    assert histogram.percentiles([0, 50, 100]) == [0, 0, 0]


@quiet
@given(latencies, latencies)
def test_merging_is_recording_all_together(first: list[int], second: list[int]) -> None:
    merged = recorded(first)
    merged.merge(recorded(second).counts)
    assert merged.counts == recorded(first + second).counts


@quiet
@given(latencies)
def test_nothing_is_lost(values: list[int]) -> None:
    histogram = recorded(values)
    assert histogram
    assert len(histogram) == len(values)
    assert Histogram(histogram.counts).counts == histogram.counts


def test_a_histogram_made_from_counts_leaves_them_alone() -> None:
    counts = Counter({5: 2})
    Histogram(counts).record([5])
    assert counts == {5: 2}


@quiet
@given(latencies)
def test_minimum_and_maximum_enclose_the_values_within_a_thousandth(values: list[int]) -> None:
    histogram = recorded(values)
    assert min(values) * 0.999 <= histogram.min <= min(values)
    assert max(values) <= histogram.max <= max(values) * 1.001


@quiet
@given(latencies)
def test_the_mean_is_that_of_the_values_within_a_thousandth(values: list[int]) -> None:
    mean = sum(values) / len(values)
    assert recorded(values).mean == pytest.approx(mean, rel=1e-3)


# Percentiles -----------------------------------------------------------------


@quiet
@given(latencies, st.floats(0, 100))
@example([1, 2, 3, 4], 62.5)
@example([5000], 1e-300)
def test_a_percentile_is_that_of_the_sorted_list(values: list[int], percent: float) -> None:
    assume(percent != 0)
    rank = max(1, int(percent * len(values) / 100 + 0.5))
    assert recorded(values).percentile(percent) == highest(sorted(values)[rank - 1])


@pytest.mark.parametrize(
    ("percent", "value"),
    [(0, 1), (0.4, 1), (50, 50), (90, 90), (99, 99), (99.4, 99), (99.5, 100), (100, 100)],
)
def test_the_percentiles_of_one_to_a_hundred(percent: float, value: int) -> None:
    assert recorded([*range(1, 101)]).percentile(percent) == value


@quiet
@given(latencies, st.lists(st.floats(0, 100)))
def test_percentiles_in_one_pass_are_the_single_ones_in_the_order_given(
    values: list[int], percents: list[float]
) -> None:
    histogram = recorded(values)
    assert histogram.percentiles(percents) == [histogram.percentile(each) for each in percents]


def test_a_rank_in_the_middle_of_two_values_is_the_upper_one() -> None:
    # 33.3 % of 500 is 166.5.
    assert recorded([*range(1, 501)]).percentile(33.3) == 167


@quiet
@given(latencies)
def test_the_percentile_of_0_is_the_minimum(values: list[int]) -> None:
    histogram = recorded(values)
    assert histogram.percentile(0) == histogram.min


@quiet
@given(latencies)
def test_percentiles_over_100_are_the_maximum(values: list[int]) -> None:
    histogram = recorded(values)
    assert histogram.percentile(100.1) == histogram.max


def test_the_percentile_of_100_is_the_maximum_of_more_counts_than_a_float_holds() -> None:
    assert Histogram({5000: 2**62 - 1}).percentile(100) == bucket_range(5000)[1]


@quiet
@given(latencies)
def test_percentiles_rise_up_to_the_maximum(values: list[int]) -> None:
    histogram = recorded(values)
    percentiles = histogram.percentiles(range(101))
    assert percentiles == sorted(percentiles)
    assert percentiles[-1] == histogram.max


# The reference ---------------------------------------------------------------


def assert_agrees(recordings: Recordings, percents: list[float]) -> None:
    histogram, other = counted(recordings), reference(recordings)
    assert len(histogram) == other.get_total_count()
    assert histogram.percentiles(percents) == [
        other.get_value_at_percentile(percent) for percent in percents
    ]
    assert histogram.min == other.get_min_value()
    assert histogram.max == other.get_max_value()
    # The sum is the same; the reference rounds it to a float before it divides.
    assert histogram.mean == pytest.approx(other.get_mean_value(), rel=1e-15)


@settings(quiet, max_examples=50)
@given(recordings, st.lists(st.floats(0, 100), max_size=5))
@example([(0, 1)], [])
@example([(10**13, 1)], [])
@example([(0, 1), (10**13, 10**11)], [])
@example([(value, 1) for value in range(1, 501)], [33.3])
def test_figures_are_those_of_the_reference(recordings: Recordings, percents: list[float]) -> None:
    assert_agrees(recordings, [*PERCENTS, *percents])


@pytest.mark.parametrize("size", [1, 10, 1000, 50_000])
def test_figures_of_a_heavy_tail_are_those_of_the_reference(size: int) -> None:
    assert_agrees(heavy_tailed(size), PERCENTS)


def test_figures_of_nothing_are_those_of_the_reference() -> None:
    assert_agrees([], PERCENTS)

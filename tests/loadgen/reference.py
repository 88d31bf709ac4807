"""The same data in loadgen's histogram and in HdrHistogram's Python implementation."""

from __future__ import annotations

import random
from typing import Any, TypeAlias

from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]  # ships no types
from hypothesis import strategies as st

from loadgen.histogram import Histogram, bucket_indices

Recordings: TypeAlias = list[tuple[int, int]]
"""Values in nanoseconds and how often each was seen."""

HIGHEST = 10**13
"""Nanoseconds, nearly three hours."""

PERCENTS: list[float] = [0, 0.001, 1, 12.5, 25, 33.3, 50, 75, 90, 95, 99, 99.9, 99.99, 99.999, 100]

# All magnitudes alike: uniform integers would nearly all be hours long.
_values = st.integers(0, 44).flatmap(lambda bits: st.integers(0, min(1 << bits, HIGHEST)))
# Small enough for the reference: it takes ranks of more than 2**51 counts for higher than all.
_times = st.one_of(st.just(1), st.integers(1, 10), st.integers(1, 10**11))
recordings = st.lists(st.tuples(_values, _times), min_size=1, max_size=200)


def counted(recordings: Recordings) -> Histogram:
    histogram = Histogram()
    for value, times in recordings:
        [index] = bucket_indices([value])
        histogram.merge({index: times})
    return histogram


def reference(recordings: Recordings) -> Any:
    """An ``HdrHistogram`` for the same range as ``encode`` writes."""
    largest = max((value for value, _ in recordings), default=0)
    histogram = HdrHistogram(1, (1 << max(11, largest.bit_length())) - 1, 3)
    for value, times in recordings:
        assert histogram.record_value(value, times)
    return histogram


def counts_of(reference: Any) -> dict[int, int]:
    """What the reference counted in each bucket that has anything."""
    return {index: count for index, count in enumerate(reference.counts) if count}


def heavy_tailed(size: int) -> Recordings:
    """Latencies around 100 us, some of them as bad as can be."""
    dice = random.Random(size)
    return [(min(HIGHEST, int(100_000 * dice.paretovariate(0.5))), 1) for _ in range(size)]

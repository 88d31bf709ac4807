"""Latency counts in the bucket layout of HdrHistogram.

Values are whole nanoseconds. The layout is the one that HdrHistogram uses for
a lowest value of 1 and 3 significant digits: up to 2,047 every value has a
bucket of its own; above, each power of two is cut into 1,024 buckets, so a
bucket is never wider than 0.1 % of its values. Counts are exact, merging is
adding, and an hour of latencies fits in at most 34,000 buckets however long
the run is. Layout and rounding: http://hdrhistogram.org.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

_EXACT: Final = 2048
"""Values below this have a bucket each: the least power of two that is at least
2 * 10**3, for 3 significant digits."""
_MASK: Final = _EXACT - 1
_EXACT_BITS: Final = 11  # bits of _MASK
_HALF_BITS: Final = 10  # log2 of the buckets in each further power of two


def bucket_indices(values: Iterable[int]) -> list[int]:
    """The bucket that each value falls into.

    >>> bucket_indices([0, 2047, 2048, 2049, 4096])
    [0, 2047, 2048, 2048, 3072]
    """
    # In one piece, without a call per value: this runs inside the load loop.
    return [
        ((shift := (value | _MASK).bit_length() - _EXACT_BITS) << _HALF_BITS) + (value >> shift)
        for value in values
    ]


def bucket_range(index: int) -> tuple[int, int]:
    """The lowest and the highest value of a bucket.

    >>> bucket_range(2047), bucket_range(2048)
    ((2047, 2047), (2048, 2049))
    """
    shift = max(0, (index >> _HALF_BITS) - 1)
    lowest = (index - (shift << _HALF_BITS)) << shift
    return lowest, lowest + (1 << shift) - 1


class Histogram:
    """How often each latency occurred.

    Args:
        counts: bucket index to count, as ``counts`` gives them.

    >>> histogram = Histogram()
    >>> histogram.record([1000, 1000, 5000])
    >>> len(histogram), histogram.percentile(50), histogram.max
    (3, 1000, 5003)
    """

    __slots__ = ("counts",)

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self.counts: Counter[int] = Counter(counts)

    def __len__(self) -> int:
        """How many values were recorded."""
        return self.counts.total()

    def __bool__(self) -> bool:
        return bool(self.counts)

    def record(self, values: Iterable[int]) -> None:
        """Count values, in nanoseconds, none negative."""
        self.counts.update(bucket_indices(values))

    def merge(self, counts: Mapping[int, int]) -> None:
        """Add the counts of another histogram."""
        self.counts.update(counts)

    @property
    def min(self) -> int:
        """The lowest value, rounded down to its bucket; 0 without any."""
        return bucket_range(min(self.counts))[0] if self.counts else 0

    @property
    def max(self) -> int:
        """The highest value, rounded up to its bucket; 0 without any."""
        return bucket_range(max(self.counts))[1] if self.counts else 0

    @property
    def mean(self) -> float:
        """The mean of all values, each taken as the middle of its bucket; 0 without any."""
        if not self.counts:
            return 0.0
        total = 0
        for index, count in self.counts.items():
            lowest, highest = bucket_range(index)
            total += count * (lowest + (highest - lowest + 1) // 2)
        return total / len(self)

    def percentile(self, percent: float) -> int:
        """The value that this share of all values does not exceed; 0 without any.

        As in HdrHistogram's Python implementation: the rank is rounded to the
        nearest value, and that value up to the highest of its bucket. The share
        of 0 is the exception: that is ``min``. Over 100 is 100.
        """
        return self.percentiles([percent])[0]

    def percentiles(self, percents: Iterable[float]) -> list[int]:
        """``percentile`` for several shares in one pass, in the order given."""
        count = len(self)
        percents = list(percents)
        # Multiplied first, as there: 33.3 / 100 * 500 is a little less than 166.5. The rank of
        # 100 % of more counts than a float holds may come out as one too many.
        ranks = [
            max(1, min(count, int(min(percent, 100.0) * count / 100 + 0.5))) for percent in percents
        ]
        values = dict.fromkeys(ranks, 0)
        waiting = sorted(values, reverse=True)
        seen = 0
        for index in sorted(self.counts):
            seen += self.counts[index]
            while waiting and waiting[-1] <= seen:
                values[waiting.pop()] = bucket_range(index)[1]
        return [
            values[rank] if percent else self.min
            for percent, rank in zip(percents, ranks, strict=True)
        ]

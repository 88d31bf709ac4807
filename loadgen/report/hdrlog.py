"""Latencies in the two text files of HdrHistogram, for its plotters and its log tools.

Both have milliseconds where they have plain numbers, and the forms of the Java
implementation at version 2 (``outputPercentileDistribution``,
``PercentileIterator``, ``HistogramLogWriter``):

- ``.hgrm``, the percentile distribution of the whole run, of latency alone;
- ``.hlog``, an interval log with the histogram of each second, of latency and, in
  an open loop, of service time with the tag ``service``. Log tools add
  its intervals up, over any part of the run.

Source: https://github.com/HdrHistogram/HdrHistogram.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from loadgen.hdr import encode
from loadgen.histogram import Histogram, bucket_range
from loadgen.report import Run
from nbnet import __version__

MILLISECOND: Final = 1e6
"""In nanoseconds."""
TICKS: Final = 5
"""Rows for each halving of the distance to 100 %, as Java's tools have it."""
_SUB_BUCKETS: Final = 2048
_SUB_BUCKET_BITS: Final = 11


def hgrm(run: Run) -> Iterator[str]:
    """The percentile distribution of the latencies, in milliseconds, line by line."""
    return distribution(run.tally.latency)


def distribution(histogram: Histogram, unit: float = MILLISECOND) -> Iterator[str]:
    """A histogram as ``.hgrm``: value, share reached, count to there, 1 / (1 - share).

    Args:
        unit: nanoseconds of the unit that values are shown in.

    >>> histogram = Histogram()
    >>> histogram.record([5])
    >>> for line in list(distribution(histogram, unit=1))[2:4]:
    ...     print(line, end="")
           5.000 0.000000000000          1           1.00
           5.000 1.000000000000          1
    """
    yield f"{'Value':>12} {'Percentile':>14} {'TotalCount':>10} {'1/(1-Percentile)':>14}\n"
    yield "\n"
    for value, level, count in _steps(histogram):
        row = f"{value / unit:12.3f} {level / 100:2.12f} {count:10d}"
        yield f"{row}\n" if level == 100 else f"{row} {1 / (1 - level / 100):14.2f}\n"
    deviation = _standard_deviation(histogram)
    buckets = max(_SUB_BUCKET_BITS, histogram.max.bit_length()) - _SUB_BUCKET_BITS + 1
    yield f"#[Mean    = {histogram.mean / unit:12.3f}, StdDeviation   = {deviation / unit:12.3f}]\n"
    yield f"#[Max     = {histogram.max / unit:12.3f}, Total count    = {len(histogram):12d}]\n"
    yield f"#[Buckets = {buckets:12d}, SubBuckets     = {_SUB_BUCKETS:12d}]\n"


def _steps(histogram: Histogram) -> Iterator[tuple[int, float, int]]:
    """Value, level in per cent, and count up to the value, of each row.

    The level rises by equal steps until half of what is left to 100 is done, by
    half as wide ones in the next half, and so on; a bucket has a row for each level that
    it reaches, the last one but one and the row of 100.
    """
    total = len(histogram)
    level, seen = 0.0, 0
    for index in sorted(histogram.counts):
        seen += histogram.counts[index]
        value = bucket_range(index)[1]
        while 100.0 * seen / total >= level:
            yield value, level, seen
            halvings = int(math.log(100.0 / (100.0 - level)) / math.log(2))
            level += 100.0 / (TICKS * 2 ** (halvings + 1))
            if seen == total:
                yield value, 100.0, seen
                return


def _standard_deviation(histogram: Histogram) -> float:
    """Of all values, each taken as the middle of its bucket."""
    if not histogram:
        return 0.0
    mean = histogram.mean
    squares = 0.0
    for index, count in histogram.counts.items():
        lowest, highest = bucket_range(index)
        squares += count * (lowest + (highest - lowest + 1) // 2 - mean) ** 2
    return math.sqrt(squares / len(histogram))


def hlog(run: Run) -> Iterator[str]:
    """The interval log, line by line: version 1.3, which has tags.

    Raises:
        ValueError: the run's tally did not keep the histograms of each second.
    """
    begun = run.tally.measured_from or run.started_at
    since_epoch = f"{begun.timestamp():.3f} (seconds since epoch)"
    yield f"#[Logged with loadgen {__version__}]\n"
    yield "#[Histogram log format version 1.3]\n"
    yield f"#[BaseTime: {since_epoch}]\n"
    yield f"#[StartTime: {since_epoch}, {begun:%a %b %d %H:%M:%S %Z %Y}]\n"
    yield '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"\n'
    nothing = encode(Histogram())
    for each in run.tally.encoded():
        when = f"{each.start:.3f},{each.seconds:.3f}"
        yield f"{when},{each.latency_max / MILLISECOND:.3f},{each.latency}\n"
        if run.plan.is_open_loop:
            highest = each.service_max / MILLISECOND
            yield f"Tag=service,{when},{highest:.3f},{each.service or nothing}\n"

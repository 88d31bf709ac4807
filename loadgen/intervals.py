"""Intervals for medians and for changes, from a handful of runs on a noisy machine.

No shape of the noise is assumed: only in how many of all equally likely orders
values come out as they did when nothing differs. So a run that something else
disturbed does not move an interval far, and its confidence is exact and at least
what is asked. Where there are too few values for that, the interval is as wide as
they are, and says the lower confidence that it has.

Sources: J.-Y. Le Boudec, Performance Evaluation of Computer and Communication
Systems (EPFL Press 2010), theorem 2.1, for medians; M. Hollander and D. A. Wolfe,
Nonparametric Statistical Methods (2nd edition, Wiley 1999), sections 3.1 to 3.3 for
changes within pairs (Hodges and Lehmann's estimate, Tukey's interval by the ranks of
Wilcoxon) and 4.1 to 4.3 for those between two samples (the same estimate, Moses'
interval by the ranks of Mann and Whitney); A. M. Law, Simulation Modeling and
Analysis (5th edition, McGraw-Hill 2015), section 9.5.3, for the means of batches.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

EXACT_UP_TO: Final = 40
"""Values of both samples together up to which ranks are counted, not approximated."""
EXACT_PAIRS: Final = 60
"""The same of pairs."""
MOST_BLOCKS: Final = 12
"""A series is cut into so many blocks at most; more say little more of its noise."""


class Interval(NamedTuple):
    """A median or a change, and where it lies with so much confidence (0 to 1)."""

    middle: float
    low: float
    high: float
    confidence: float


def ratio(value: float, base: float) -> float:
    """``value`` by ``base``; 1 where both are 0 or both infinite, and infinite by 0.

    >>> ratio(3.0, 2.0), ratio(1.0, 0.0), ratio(0.0, 0.0)
    (1.5, inf, 1.0)
    """
    if value == base:
        return 1.0
    if base:
        return value / base
    return math.inf


def of_median(values: Iterable[float], confidence: float) -> Interval:
    """The median of independent values, and where the true one lies.

    Args:
        confidence: that is wanted; with fewer than 6 values 0.95 cannot be had.

    >>> of_median([5, 1, 4, 2, 3, 6, 9, 7, 8], 0.95)
    Interval(middle=5, low=2, high=8, confidence=0.9609375)
    """
    ordered = sorted(values)
    n = len(ordered)
    ways = [math.comb(n, each) for each in range(n + 1)]
    return _between(ordered, ways, confidence)


def of_pairs(
    pairs: Iterable[tuple[float, float]], confidence: float, *, ratios: bool = True
) -> Interval:
    """How the second of a pair differs from the first, of pairs that are independent.

    The means of each two changes (of each with itself, too) are put in order: the
    one in the middle is the estimate, and as many are cut off either end as the
    ranks of Wilcoxon's signed rank test allow. Noise has to be as likely to make a
    change larger as smaller, which it is where either of a pair may come first.

    Args:
        ratios: whether the second by the first is meant, whose means are geometric,
            or else the second less the first.
        confidence: that is wanted; with fewer than 6 pairs 0.95 cannot be had.

    >>> pairs = [(100, 80), (200, 164), (50, 39), (120, 97), (90, 72), (300, 246)]
    >>> [round(each, 3) for each in of_pairs(pairs, 0.95)]
    [0.804, 0.78, 0.82, 0.969]
    """
    if ratios:
        changes = [_log(ratio(second, first)) for first, second in pairs]
    else:
        changes = [second - first for first, second in pairs]
    n = len(changes)
    means = sorted(
        # Of nothing at all and without end, whose mean is anything.
        0.0 if math.isnan(mean := (one + other) / 2) else mean
        for number, one in enumerate(changes)
        for other in changes[number:]
    )
    found = _between(means, _signed_ranks(n), confidence)
    if not ratios:
        return found
    middle, low, high = (math.exp(each) for each in found[:3])
    return Interval(middle, low, high, found.confidence)


def of_change(
    a: Iterable[float], b: Iterable[float], confidence: float, *, ratios: bool = True
) -> Interval:
    """How values of one sample differ from those of another, not paired with them.

    Args:
        ratios: whether b by a is meant, or else b less a.
        confidence: that is wanted; with fewer than 4 values a side 0.95 cannot be had.

    >>> of_change([1.0, 1.1, 0.9, 1.0], [2.0, 2.2, 1.8, 2.0], 0.95)[1:3]
    (1.6363636363636362, 2.4444444444444446)
    """
    first, second = list(a), list(b)
    ordered = sorted(ratio(y, x) if ratios else y - x for x in first for y in second)
    return _between(ordered, _rank_sums(len(first), len(second)), confidence)


def _between(ordered: Sequence[float], ways: Sequence[float], confidence: float) -> Interval:
    """The inner values that are still far enough out.

    Args:
        ways: in how many of all ways, which are equally likely when nothing
            differs, just so many of the values are too low.
    """
    total, outside, skipped = sum(ways), ways[0], 0
    for more in ways[1 : (len(ordered) + 1) // 2]:
        if 2 * (outside + more) > (1 - confidence) * total:
            break
        outside += more
        skipped += 1
    low, high = ordered[skipped], ordered[-1 - skipped]
    return Interval(_middle(ordered), low, high, max(0.0, 1 - 2 * outside / total))


def _middle(ordered: Sequence[float]) -> float:
    one, other = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return one if one == other else (one + other) / 2


def _log(value: float) -> float:
    return math.log(value) if value else -math.inf


def _signed_ranks(n: int) -> Sequence[float]:
    """In how many ways the ranks of those pairs that point up have just such a sum.

    >>> _signed_ranks(3)
    [1, 1, 1, 2, 1, 1, 1]
    """
    most = n * (n + 1) // 2
    if n > EXACT_PAIRS:
        return _normal(most, math.sqrt(most * (2 * n + 1) / 12))
    ways = [1] + [0] * most
    for rank in range(1, n + 1):
        for total in range(most, rank - 1, -1):
            ways[total] += ways[total - rank]
    return ways


def _rank_sums(m: int, n: int) -> Sequence[float]:
    """In how many orders of m and n values just so many pairs are the wrong way round.

    >>> _rank_sums(2, 2)
    [1, 1, 2, 1, 1]
    """
    if m + n > EXACT_UP_TO:
        return _normal(m * n, math.sqrt(m * n * (m + n + 1) / 12))
    # ways[i][j] of i and j values: the last of all is one of either sample.
    ways: list[list[list[int]]] = [[[1] for _ in range(n + 1)] for _ in range(m + 1)]
    for i in range(1, m + 1):
        for j in range(1, n + 1):
            counts = [0] * (i * j + 1)
            for u, number in enumerate(ways[i - 1][j]):
                counts[u + j] += number
            for u, number in enumerate(ways[i][j - 1]):
                counts[u] += number
            ways[i][j] = counts
    return ways[m][n]


def _normal(most: int, deviation: float) -> Sequence[float]:
    """The same by the normal distribution, which it comes close to, as shares.

    Args:
        most: the highest count or sum that there is; half of it is the mean.
    """
    below = [
        0.5 * (1 + math.erf((each + 0.5 - most / 2) / deviation / math.sqrt(2)))
        for each in range(most + 1)
    ]
    return [below[0], *(high - low for low, high in itertools.pairwise(below))]


def independent(values: Sequence[float]) -> int:
    """How many independent values a series is worth, whose neighbours resemble each other.

    By its correlation from one value to the next, which is estimated too low from
    few values and corrected for that (Kendall 1954), as if it fell by that factor
    with each further step.

    >>> independent([1, 2, 1, 2, 2, 1, 1, 2, 1, 2] * 3), independent(range(30))
    (27, 0)
    """
    n = len(values)
    if n < 6:
        return 0
    mean = sum(values) / n
    off = [value - mean for value in values]
    power = sum(each * each for each in off)
    raw = sum(x * y for x, y in itertools.pairwise(off)) / power if power else 0.0
    corrected = max((n * raw + 1) / (n - 4), 1 / (n - 4), 0.0)
    return max(0, int(n * (1 - corrected) / (1 + corrected)))


def blocks(values: Sequence[float], count: int) -> list[float]:
    """The means of so many neighbouring parts of a series, of about equal length.

    >>> blocks([1.0, 3.0, 5.0, 7.0, 8.0], 2)
    [2.0, 6.666666666666667]
    """
    ends = [len(values) * each // count for each in range(count + 1)]
    parts = [values[start:end] for start, end in itertools.pairwise(ends)]
    return [sum(part) / len(part) for part in parts]

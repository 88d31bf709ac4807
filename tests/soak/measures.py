"""What is measured of processes, and what may be concluded from it."""

from __future__ import annotations

import itertools
import math
import resource
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MIB: Final = 1 << 20
_PAGE: Final = resource.getpagesize()
CONFIDENCE: Final = 0.95


def resident(pid: int) -> float:
    """Resident memory in MiB.

    Raises:
        OSError: the process is gone.
    """
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE / MIB


def descriptors(pid: int) -> tuple[int, int]:
    """Its open sockets, and all other descriptors.

    Raises:
        OSError: the process is gone.
    """
    sockets = others = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:  # closed meanwhile, or that of this directory
            continue
        if target.startswith("socket:"):
            sockets += 1
        elif target != f"/proc/{pid}/fd":
            others += 1
    return sockets, others


def at_most(replies: int) -> float:
    """The share of wrong replies that is still possible when none of so many was wrong.

    With 95 % confidence: the largest probability p with (1 - p)**n >= 0.05, which is
    nearly 3/n, the rule of three (Hanley and Lippman-Hand, "If nothing goes wrong, is
    everything all right?", JAMA 249, 1983). It speaks of requests like these.

    >>> round(at_most(1_000_000) * 1e6, 3)
    2.996
    """
    return -math.expm1(math.log(1 - CONFIDENCE) / replies) if replies else 1.0


@dataclass(frozen=True, slots=True)
class Slope:
    """How fast something grows, an hour, with its 95 % confidence interval.

    ``seconds`` is the time that the samples span, of all series together.
    """

    value: float
    low: float
    high: float
    seconds: float

    def __str__(self) -> str:
        if math.isinf(self.high):
            return "too few samples"
        return (
            f"{self.value:+.2f} MB/h ({self.low:+.2f} to {self.high:+.2f}) "
            f"over {self.seconds:.0f} s"
        )


UNKNOWN: Final = Slope(0.0, -math.inf, math.inf, 0.0)


def slope(series: Sequence[Sequence[tuple[float, float]]]) -> Slope:
    """The slope that several processes have in common, each from a level of its own.

    Least squares. What is left over is correlated from one sample to the next, as memory
    stays where it went: so the samples count as fewer, (1 - r) / (1 + r) of them where r
    is that correlation (Santer et al., Journal of Geophysical Research 105, 2000).

    Args:
        series: for each process, seconds and values.

    >>> print(slope([[(t, 5 + t / 3600 + 0.01 * (t % 3)) for t in range(60)]]))
    +1.08 MB/h (+0.63 to +1.53) over 59 s
    """
    xs: list[list[float]] = []
    ys: list[list[float]] = []
    rests: list[float] = []
    pairs: list[tuple[float, float]] = []
    for one in series:
        if len(one) > 2:
            middle = statistics.fmean(x for x, _ in one), statistics.fmean(y for _, y in one)
            xs.append([x - middle[0] for x, _ in one])
            ys.append([y - middle[1] for _, y in one])
    spread = sum(x * x for each in xs for x in each)
    if not spread:
        return UNKNOWN
    rate = sum(x * y for a, b in zip(xs, ys, strict=True) for x, y in zip(a, b, strict=True))
    rate /= spread
    for a, b in zip(xs, ys, strict=True):
        rest = [y - rate * x for x, y in zip(a, b, strict=True)]
        rests += rest
        pairs += itertools.pairwise(rest)
    squares = sum(rest * rest for rest in rests)
    count = len(rests)
    correlation = max(0.0, sum(a * b for a, b in pairs) / squares) if squares else 0.0
    freedom = count * (1 - correlation) / (1 + correlation) - len(xs) - 1
    if freedom < 2:
        return UNKNOWN
    error = student(freedom) * math.sqrt(squares / freedom / spread)
    seconds = sum(each[-1] - each[0] for each in xs)
    return Slope(3600 * rate, 3600 * (rate - error), 3600 * (rate + error), seconds)


def student(freedom: float) -> float:
    """Student's t for a two-sided interval of 95 %: Cornish and Fisher's expansion.

    >>> [round(student(n), 2) for n in (3, 5, 10, 100)]
    [3.16, 2.57, 2.23, 1.98]
    """
    z = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))

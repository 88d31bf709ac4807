"""Whether a server differs from another, or only the machine from minute to minute.

Runs are documents of schema ``loadgen/1``. The comparison is one of three:

* *pairs*: a run of each, one right after the other, time after time. A machine
  that changes its speed changes it for both runs of a pair, so only the changes
  within pairs are looked at (Wilcoxon's signed ranks). Which one comes first is
  drawn by lot (R. A. Fisher, The Design of Experiments, 1935): then either sign of
  a change is as likely when nothing differs, however the machine drifts and however
  long a disturbance lasts. A fixed order A B, B A cancels a steady drift too, but
  has the B's of two pairs side by side, where one disturbance meets both.
* *samples*: runs of A, and runs of B at another time. Ranks of all of them
  (Mann and Whitney) tell whether they differ, not whether it was the server.
* *seconds*: one run a side. All there is are the seconds within each; they are put
  together to blocks that are about independent. How runs differ from each other
  does not show in them, so only differences above 10 % are called.

A figure is called different when the whole interval of its change lies beyond a
floor, 1 %: that it is not nought is no news, and little matters. The intervals are
explained in ``loadgen.intervals``. That runs are what has to be repeated, and
that the change and its interval are what has to be told, is due to T. Kalibera
and R. Jones, Quantifying Performance Changes with Effect Size Confidence Intervals
(arXiv:2007.10899).

Of many figures one is always off by chance. So one decides, and it is chosen before
anything is measured: requests/s of a closed loop, p99 of an open one.
"""

from __future__ import annotations

import enum
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from loadgen import intervals
from loadgen.intervals import Interval, ratio

Document = Mapping[str, Any]

CONFIDENCE: Final = 0.99
"""Of equals, one comparison in a hundred may be called different: builds hang on it."""
FLOOR: Final = 0.01
"""The change up to which nothing is called."""
SECONDS_FLOOR: Final = 0.10
"""The same where there is but one run a side."""
WIDE: Final = 0.05
"""The largest change that the interval of equals may hold without a word."""
ERRORS_FLOOR: Final = 0.0001
"""The same of the share of requests that failed, as a difference."""


class NoSuchFigureError(ValueError):
    """No figure has the name that was to decide."""


class Kind(enum.Enum):
    """What a figure is, and so what changes of it mean."""

    RATE = "rate"
    """Higher is faster."""
    TIME = "time"
    """Lower is faster."""
    SHARE = "share"
    """Of all requests. It is often nought, so its change is a difference."""


class Finding(enum.StrEnum):
    """What can be said of B, as against A."""

    FASTER = "faster"
    SLOWER = "slower"
    MORE = "more"
    FEWER = "fewer"
    NOTHING = "no difference shown"


class Method(enum.StrEnum):
    """What is compared with what; see the module."""

    PAIRS = "pairs"
    SAMPLES = "samples"
    SECONDS = "seconds"


@dataclass(frozen=True, slots=True)
class Figure:
    """One of the figures that are compared.

    Attributes:
        name: by which it is asked for.
        label: for people.
        kind: what it is.
        path: where it stands in a document; none of errors, which are counted.
        each_second: its name in the series of a document, if it is in there.
    """

    name: str
    label: str
    kind: Kind
    path: tuple[str, ...] = ()
    each_second: str | None = None

    def of(self, run: Document) -> float | None:
        """Its value in a run: seconds, per second or a share; None where it was not measured.

        Where no reply came, every latency is infinite: that is no way to be fast.
        """
        if self.kind is Kind.SHARE:
            requests = run["requests"]
            bad = requests["wrong"] + requests["failed"] + requests["timed_out"]
            return bad / requests["sent"] if requests["sent"] else None
        value: Any = run
        for key in self.path:
            value = value[key]
        return math.inf if value is None else float(value)


FIGURES: Final = (
    Figure("rate", "requests/s", Kind.RATE, ("throughput", "requests_per_second"), "requests"),
    Figure("mean", "latency mean", Kind.TIME, ("latency_seconds", "mean")),
    Figure("p50", "latency p50", Kind.TIME, ("latency_seconds", "p50"), "p50"),
    Figure("p90", "latency p90", Kind.TIME, ("latency_seconds", "p90")),
    Figure("p99", "latency p99", Kind.TIME, ("latency_seconds", "p99"), "p99"),
    Figure("p99.9", "latency p99.9", Kind.TIME, ("latency_seconds", "p99.9")),
    Figure("service-p99", "service p99", Kind.TIME, ("service_seconds", "p99")),
    Figure("errors", "errors", Kind.SHARE),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A figure of both sides.

    Attributes:
        figure: which.
        a, b: the median of the runs, and where the true one lies; None where
            it was not measured.
        change: B by A, or B less A of a share; None if it cannot be told.
        finding: what can be said.
    """

    figure: Figure
    a: Interval | None
    b: Interval | None
    change: Interval | None
    finding: Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What comes out.

    Attributes:
        method: how the runs were compared.
        runs_a, runs_b: how many there were.
        confidence: that a finding needs.
        floor: the change up to which nothing is called.
        rows: every figure.
        deciding: the one that decides.
        notes: what has to be said of it, the gravest first.
    """

    method: Method
    runs_a: int
    runs_b: int
    confidence: float
    floor: float
    rows: tuple[Row, ...]
    deciding: Row
    notes: tuple[str, ...]

    @property
    def finding(self) -> Finding:
        """What can be said of B as a whole."""
        return self.deciding.finding

    def slower_by_more_than(self, limit: float) -> bool:
        """Whether B is, with confidence: its rate lower, or its latency higher, by that share.

        With one run a side, a limit below 10 % is taken as that.
        """
        row = self.deciding
        found = _judge(row.figure, row.change, max(limit, self.floor), self.confidence)
        return found is Finding.SLOWER


def compare(
    a: Sequence[Document],
    b: Sequence[Document],
    *,
    paired: bool,
    by: str | None = None,
    confidence: float = CONFIDENCE,
) -> Comparison:
    """Compare runs of B with runs of A.

    Args:
        paired: whether the first of A was measured right before or after the first
            of B, and so on.
        by: the name of the figure that decides; None takes requests/s of a closed
            loop and p99 of an open one.
        confidence: that a finding needs, 0 to 1, of each figure by itself.

    Raises:
        NoSuchFigureError: no figure has that name.
        ValueError: a side has no runs, or there is a run without its pair.
    """
    if not a or not b:
        raise ValueError("each side needs a run at least")
    if paired and len(a) != len(b):
        raise ValueError(f"{len(a)} runs and {len(b)} runs are no pairs")
    is_open = a[0]["plan"]["loop"] == "open"
    # In a closed loop a request is due when it is sent.
    figures = [each for each in FIGURES if is_open or each.name != "service-p99"]
    name = by or ("p99" if is_open else "rate")
    if name not in {each.name for each in figures}:
        raise NoSuchFigureError(
            f"no figure {name!r}: expected one of {', '.join(each.name for each in figures)}"
        )
    if len(a) == len(b) == 1:
        method, floor = Method.SECONDS, SECONDS_FLOOR
        change = partial(_change_of_seconds, a[0], b[0], _worth(a[0], b[0]), confidence)
    elif paired:
        method, floor = Method.PAIRS, FLOOR
        change = partial(_change_of_pairs, a, b, confidence)
    else:
        method, floor = Method.SAMPLES, FLOOR
        change = partial(_change_of_samples, a, b, confidence)
    rows = []
    for figure in figures:
        changed = change(figure)
        rows.append(
            Row(
                figure=figure,
                a=_side(figure, a, confidence),
                b=_side(figure, b, confidence),
                change=changed,
                finding=_judge(figure, changed, floor, confidence),
            )
        )
    deciding = next(row for row in rows if row.figure.name == name)
    return Comparison(
        method=method,
        runs_a=len(a),
        runs_b=len(b),
        confidence=confidence,
        floor=floor,
        rows=tuple(rows),
        deciding=deciding,
        notes=tuple(_notes(a, b, method, deciding, confidence)),
    )


def orders(pairs: int, source: random.Random) -> list[tuple[int, int]]:
    """Which side is measured first in each pair, 0 or 1, and which second.

    >>> orders(4, random.Random(1))
    [(0, 1), (0, 1), (1, 0), (0, 1)]
    """
    return [source.choice(((0, 1), (1, 0))) for _ in range(pairs)]


def pairs_needed(confidence: float = CONFIDENCE) -> int:
    """How many pairs it takes at least for a finding of that confidence.

    >>> pairs_needed(0.95), pairs_needed(0.99)
    (6, 8)
    """
    pairs = 1
    while 2 * 0.5**pairs > 1 - confidence:
        pairs += 1
    return pairs


def _side(figure: Figure, runs: Sequence[Document], confidence: float) -> Interval | None:
    values = _measured(figure, runs)
    return intervals.of_median(values, confidence) if values else None


def _measured(figure: Figure, runs: Sequence[Document]) -> list[float]:
    return [value for value in map(figure.of, runs) if value is not None]


def _change_of_pairs(
    a: Sequence[Document], b: Sequence[Document], confidence: float, figure: Figure
) -> Interval | None:
    pairs = []
    for one, other in zip(a, b, strict=True):
        x, y = figure.of(one), figure.of(other)
        if x is not None and y is not None:
            pairs.append((x, y))
    is_share = figure.kind is Kind.SHARE
    return intervals.of_pairs(pairs, confidence, ratios=not is_share) if pairs else None


def _change_of_samples(
    a: Sequence[Document], b: Sequence[Document], confidence: float, figure: Figure
) -> Interval | None:
    first, second = _measured(figure, a), _measured(figure, b)
    if not first or not second:
        return None
    return intervals.of_change(first, second, confidence, ratios=figure.kind is not Kind.SHARE)


def _change_of_seconds(
    a: Document, b: Document, worth: tuple[int, int], confidence: float, figure: Figure
) -> Interval | None:
    x, y = figure.of(a), figure.of(b)
    if x is None or y is None:
        return None
    is_share = figure.kind is Kind.SHARE
    plain = y - x if is_share else ratio(y, x)
    if figure.each_second is None or min(worth) == 0:
        return Interval(plain, plain, plain, 0.0)
    sides = []
    for run, count in zip((a, b), worth, strict=True):
        values = [each[figure.each_second] for each in _whole_seconds(run)]
        known = [float(value) for value in values if value is not None]
        sides.append(intervals.blocks(known, min(count, len(known))) if known else [])
    if not all(sides):
        return Interval(plain, plain, plain, 0.0)
    return intervals.of_change(sides[0], sides[1], confidence)


def _worth(*runs: Document) -> tuple[int, int]:
    """How many blocks each run is cut into."""
    one, other = (
        min(
            intervals.MOST_BLOCKS,
            intervals.independent([float(each["requests"]) for each in _whole_seconds(run)]),
        )
        for run in runs
    )
    return one, other


def _whole_seconds(run: Document) -> Sequence[Document]:
    """Without the first, in which a run gets going, and what is left at the end."""
    return [each for each in run["series"] if 1 <= each["t"] <= run["duration_seconds"] - 1]


def _judge(figure: Figure, change: Interval | None, floor: float, confidence: float) -> Finding:
    if change is None or change.confidence < confidence:
        return Finding.NOTHING
    if figure.kind is Kind.SHARE:
        lower, higher = Finding.FEWER, Finding.MORE
        low, high = -ERRORS_FLOOR, ERRORS_FLOOR
    else:
        lower, higher = Finding.SLOWER, Finding.FASTER
        if figure.kind is Kind.TIME:
            lower, higher = higher, lower
        low, high = 1 - floor, 1 + floor
    if change.high < low:
        return lower
    return higher if change.low > high else Finding.NOTHING


def _notes(
    a: Sequence[Document],
    b: Sequence[Document],
    method: Method,
    deciding: Row,
    confidence: float,
) -> list[str]:
    found = []
    for name, runs in (("A", a), ("B", b)):
        bad = [str(run["verdict"]) for run in runs if not run["verdict"].startswith("OK")]
        if bad:
            found.append(f"RUNS FAILED: {len(bad)} of {len(runs)} of {name}; the first: {bad[0]}")
    different = [
        f"{key} {a[0]['plan'].get(key)} and {b[0]['plan'].get(key)}"
        for key in a[0]["plan"]
        if a[0]["plan"].get(key) != b[0]["plan"].get(key)
    ]
    if different:
        found.append(f"NOT THE SAME LOAD: {', '.join(different)}")
    if a[0]["environment"] != b[0]["environment"]:
        found.append("NOT THE SAME MACHINE: system, processors or Python of the loader differ")
    bound = sum(bool(run["loader"]["bound"]) for run in (*a, *b))
    if bound:
        found.append(
            f"LOADER-BOUND: {bound} of {len(a) + len(b)} runs measure the load generator rather "
            "than the server, so a difference of the servers may not show"
        )
    if method is Method.SECONDS:
        found.append(
            "ONE RUN A SIDE: only its seconds could be compared, which do not tell how much runs "
            f"differ anyway; less than {SECONDS_FLOOR:.0%} is not called; repeat with --repeat"
        )
    if deciding.change is not None and deciding.change.confidence < confidence:
        found.append(f"TOO FEW: {_too_few(method, deciding.change.confidence, confidence)}")
    elif deciding.finding is Finding.NOTHING and (hidden := _hidden(deciding)) > WIDE:
        found.append(
            f"WIDE: a difference of up to {hidden:.0%} would not have shown; more runs (shorter "
            "ones will do) or a quieter machine narrow it down"
        )
    if method is not Method.PAIRS:
        found.append(
            "NOT IN TURN: the machine may have changed its speed between A and B, which looks as "
            "if a server had; loadgen compare --a TARGET --b TARGET takes them in turn"
        )
    return found


def _hidden(row: Row) -> float:
    """How large a change may be that the interval holds, as a share."""
    if row.change is None or row.figure.kind is Kind.SHARE:
        return 0.0
    return max(abs(1 - row.change.low), abs(row.change.high - 1))


def _too_few(method: Method, reached: float, confidence: float) -> str:
    if method is Method.SECONDS:
        return (
            "this figure is not in the series, or the runs are too short or too uneven; "
            "give them 20 s at least"
        )
    what = "pairs" if method is Method.PAIRS else "runs"
    needed = f"at least {pairs_needed(confidence)}" if method is Method.PAIRS else "more"
    return (
        f"with so few {what} even if all of them agree confidence is {reached:.1%}, not "
        f"{confidence:.0%}; use {needed}"
    )

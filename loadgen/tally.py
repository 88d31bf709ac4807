"""What was counted: snapshots of engines, and their sum over a run.

An engine reports what it counted since its last report. Such differences may be
added in any order and over any number of engines, and the sum is exact.
"""

from __future__ import annotations

import enum
import sys
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Final

from loadgen.hdr import encode
from loadgen.histogram import Histogram

SECONDS_OPEN: Final = 5
"""How late, in seconds, a snapshot may be and still count for its own second."""
MISMATCHES_KEPT: Final = 10
"""Wrong replies that are kept with their bytes; the others are only counted."""


class Phase(enum.Enum):
    """What an engine is doing."""

    CONNECTING = "connecting"
    READY = "ready"
    """All attempts to connect have ended; the word to start is awaited."""
    WARMING = "warming up"
    MEASURING = "measuring"
    DRAINING = "draining"
    """The time is over; replies still on their way are awaited."""
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A reply that was not the expected one, with frames as on the wire.

    ``got`` begins where the reply should, and ends with what had arrived when it
    first differed. ``sent`` and ``expected`` are empty where nothing was asked.
    """

    connection: int
    kind: str
    sent: bytes
    expected: bytes
    got: bytes


@dataclass(slots=True, kw_only=True)
class Counts:
    """Everything that is counted; the sum of two is the sum of each field.

    Attributes:
        held: connections made.
        failed_to_connect: connections that could not be made.
        lost: connections that ended before the run did, by the server or because
            they were out of step.
        sent: requests sent.
        verified: replies that were right; ``on_time`` of them came before the
            measured time was over.
        wrong: replies that were not.
        failed: requests whose connection ended before the reply.
        timed_out: requests whose reply took longer than allowed, or did not come
            before the run had to end.
        unsent: requests that were due in the measured time and not sent, because
            no connection was free or the engine did not keep up.
        late: requests sent more than a millisecond after they were due.
        reconnected: connections made in place of others.
        served: connections on which a reply came that was right; told when they end.
        sent_bytes, received_bytes: of requests sent and replies verified, with
            their headers.
        errors: what ended connections, or kept them from being made, by kind.
        latency: bucket counts of a ``Histogram``: of replies, since their requests
            were due. ``service``: since they were sent; empty in a closed loop,
            where it is the same. ``connect``: of making connections.
        lag: how late an engine noticed that a request was due, if it could be sent.
        server, wait: of a sample of replies, from the request to their arrival in
            this machine's kernel, and from there until the engine read them.
        in_flight_seconds: the integral of the number of requests in flight.
        cpu_seconds: the engine's own processor time while measuring.
    """

    held: int = 0
    failed_to_connect: int = 0
    lost: int = 0
    sent: int = 0
    verified: int = 0
    on_time: int = 0
    wrong: int = 0
    failed: int = 0
    timed_out: int = 0
    unsent: int = 0
    late: int = 0
    reconnected: int = 0
    served: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    latency: Counter[int] = field(default_factory=Counter)
    service: Counter[int] = field(default_factory=Counter)
    connect: Counter[int] = field(default_factory=Counter)
    lag: Counter[int] = field(default_factory=Counter)
    server: Counter[int] = field(default_factory=Counter)
    wait: Counter[int] = field(default_factory=Counter)
    in_flight_seconds: float = 0.0
    cpu_seconds: float = 0.0

    def add(self, other: Counts) -> None:
        """Add the counts of ``other`` to these."""
        for each in fields(Counts):
            mine, theirs = getattr(self, each.name), getattr(other, each.name)
            if isinstance(mine, Counter):
                mine.update(theirs)
            else:
                setattr(self, each.name, mine + theirs)


@dataclass(slots=True, kw_only=True)
class Snapshot:
    """What one engine counted since its snapshot before this one.

    Attributes:
        phase: what the engine was doing.
        elapsed: seconds measured so far.
        second: which second of the measured time the counts are of, from 0.
        counts: the differences.
        mismatches: the wrong replies among them, the first few.
    """

    phase: Phase
    elapsed: float
    second: int = 0
    counts: Counts
    mismatches: list[Mismatch] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """One second of the series, or what ``Tally.last`` gives of several.

    What ``Counts`` has under the same name, in this second alone, and:

    Attributes:
        start: seconds measured when it began.
        seconds: how long it was: 1, but for the last one.
        requests: replies verified in it.
        in_flight: requests in flight, on average.
        p50, p90, p99, p999, max: of its latencies in nanoseconds; None without any.
        errors: what ended connections in it, by kind; the connecting before the
            measured time is not part of the series.
    """

    start: float
    seconds: float = 1.0
    requests: int = 0
    failed: int = 0
    wrong: int = 0
    timed_out: int = 0
    sent: int = 0
    unsent: int = 0
    late: int = 0
    lost: int = 0
    reconnected: int = 0
    in_flight: float = 0.0
    p50: int | None = None
    p90: int | None = None
    p99: int | None = None
    p999: int | None = None
    max: int | None = None
    errors: dict[str, int] = field(default_factory=dict)

    @property
    def bad(self) -> int:
        """Requests that came to nothing good: wrong, failed or timed out."""
        return self.wrong + self.failed + self.timed_out


@dataclass(frozen=True, slots=True)
class Encoded:
    """The latencies of one second as text, as in an ``.hlog`` file.

    Attributes:
        start, seconds: as of an ``Interval``.
        latency, service: the encoded histograms; no service in a closed loop.
        latency_max, service_max: the highest values in nanoseconds.
    """

    start: float
    seconds: float
    latency: str
    latency_max: int
    service: str | None = None
    service_max: int = 0


_COUNTED: Final = (
    "verified",
    "failed",
    "wrong",
    "timed_out",
    "sent",
    "unsent",
    "late",
    "lost",
    "reconnected",
)
_PERCENTS: Final = (50, 90, 99, 99.9, 100)
_COLUMNS: Final = len(_COUNTED) + 1 + len(_PERCENTS)


def _figures(counts: Counts) -> list[int]:
    """What is kept of a second, all integers: a row of ``_COLUMNS``, -1 for none."""
    times = Histogram(counts.latency).percentiles(_PERCENTS) if counts.latency else None
    return [
        *(getattr(counts, name) for name in _COUNTED),
        round(counts.in_flight_seconds * 1e9),
        *(times or [-1] * len(_PERCENTS)),
    ]


def _encode(counts: Counts) -> tuple[str, int, str | None, int]:
    """The last fields of ``Encoded``."""
    latency, service = Histogram(counts.latency), Histogram(counts.service)
    # Of an open loop each reply is in both.
    if not service:
        return encode(latency), latency.max, None, 0
    return encode(latency), latency.max, encode(service), service.max


class Tally:
    """The sum of all snapshots of a run.

    Args:
        keep_histograms: keep the latencies of each second, encoded: a kilobyte or
            two a second, where the series takes 150 bytes.

    Attributes:
        counts: everything counted.
        mismatches: the first wrong replies.
        elapsed: seconds measured, the longest of all engines.
        phase: what the engine heard of last is doing.
        measured_from: when measuring began, if whoever collects the snapshots says so.

    >>> tally = Tally()
    >>> counts = Counts(sent=2, verified=1)
    >>> tally.add(Snapshot(phase=Phase.MEASURING, elapsed=0.25, second=0, counts=counts))
    >>> tally.add(Snapshot(phase=Phase.DONE, elapsed=1.5, second=1, counts=counts))
    >>> tally.counts.sent, [(interval.start, interval.seconds) for interval in tally.series]
    (4, [(0.0, 1.0), (1.0, 0.5)])
    """

    def __init__(self, *, keep_histograms: bool = False) -> None:
        self.counts = Counts()
        self.mismatches: list[Mismatch] = []
        self.elapsed = 0.0
        self.phase = Phase.CONNECTING
        self.measured_from: datetime | None = None
        # A day has 86,400 seconds, so of those that are over little is kept: rows
        # of figures, and what went wrong where anything did.
        self._over = array("q")
        self._errors: dict[int, dict[str, int]] = {}
        self._encoded: list[tuple[str, int, str | None, int]] | None = (
            [] if keep_histograms else None
        )
        # Only the last seconds are kept with all their counts, in case an
        # engine is late: the memory of a tally hardly grows with the run.
        self._open: dict[int, Counts] = {}
        self._seconds_over = 0
        self._last: dict[int, Interval] = {}  # by how many seconds; until more is counted for them

    def add(self, snapshot: Snapshot) -> None:
        """Add one snapshot, of any engine."""
        self.counts.add(snapshot.counts)
        self.elapsed = max(self.elapsed, snapshot.elapsed)
        self.phase = snapshot.phase
        room = MISMATCHES_KEPT - len(self.mismatches)
        self.mismatches += snapshot.mismatches[:room]
        if snapshot.elapsed:  # else it is of the connecting, or of the warm-up
            second = max(snapshot.second, self._seconds_over)
            if second not in self._open or second != max(self._open):
                self._last.clear()
            self._open.setdefault(second, Counts()).add(snapshot.counts)
            while self._seconds_over < second - SECONDS_OPEN:
                self._close(self._open.pop(self._seconds_over, Counts()))

    def _close(self, counts: Counts) -> None:
        """Reduce the first open second to what is kept of it."""
        self._over.extend(_figures(counts))
        if counts.errors:
            # Each snapshot comes with strings of its own.
            self._errors[self._seconds_over] = {
                sys.intern(kind): number for kind, number in counts.errors.items()
            }
        if self._encoded is not None:
            self._encoded.append(_encode(counts))
        self._seconds_over += 1

    def intervals(self) -> Iterator[Interval]:
        """Each second measured, in order; one in which nothing came is there too."""
        for second in range(self._seconds_over):
            row = self._over[second * _COLUMNS : (second + 1) * _COLUMNS]
            yield self._interval(second, row, self._errors.get(second, {}))
        for second, counts in self._still_open():
            yield self._interval(second, _figures(counts), counts.errors)

    @property
    def series(self) -> list[Interval]:
        """All ``intervals``."""
        return list(self.intervals())

    def encoded(self) -> Iterator[Encoded]:
        """The latencies of each second measured, in order.

        Raises:
            ValueError: the tally was not told to keep them.
        """
        if self._encoded is None:
            raise ValueError("the histograms of each second were not kept")
        for second, each in enumerate(self._encoded):
            yield Encoded(float(second), self._length(second), *each)
        for second, counts in self._still_open():
            yield Encoded(float(second), self._length(second), *_encode(counts))

    def _still_open(self) -> Iterator[tuple[int, Counts]]:
        for second in range(self._seconds_over, max(self._open, default=-1) + 1):
            yield second, self._open.get(second, Counts())

    def _length(self, second: int) -> float:
        return max(0.0, min(1.0, self.elapsed - second))

    def _interval(self, second: int, row: Sequence[int], errors: Mapping[str, int]) -> Interval:
        seconds = self._length(second)
        requests, failed, wrong, timed_out, sent, unsent, late, lost, reconnected, flown = row[:10]
        p50, p90, p99, p999, highest = (None if value < 0 else value for value in row[10:])
        return Interval(
            start=float(second),
            seconds=seconds,
            requests=requests,
            failed=failed,
            wrong=wrong,
            timed_out=timed_out,
            sent=sent,
            unsent=unsent,
            late=late,
            lost=lost,
            reconnected=reconnected,
            in_flight=flown / 1e9 / seconds if seconds else 0.0,
            p50=p50,
            p90=p90,
            p99=p99,
            p999=p999,
            max=highest,
            errors=dict(errors),
        )

    def last(self, seconds: int = 1) -> Interval | None:
        """The last full second, or so many together; None before the first is over.

        A second is over when something of a later one is counted. An engine that
        is later than that still counts, when it comes. Cheap: nothing is computed
        twice, and nothing of the rest of the series.

        Args:
            seconds: how many, at most ``SECONDS_OPEN``; fewer if there were not so many.
        """
        if not 1 <= seconds <= SECONDS_OPEN:
            raise ValueError(f"{seconds} seconds: 1 to {SECONDS_OPEN} are kept")
        end = max(self._open, default=0)
        if not end:
            return None
        if seconds not in self._last:
            start, counts = max(0, end - seconds), Counts()
            for second in range(start, end):
                counts.add(self._open.get(second, Counts()))
            together = self._interval(start, _figures(counts), counts.errors)
            self._last[seconds] = replace(together, seconds=float(end - start))
        return self._last[seconds]

    def requests_by_second(self, seconds: int) -> list[int]:
        """Replies verified in each of the last full seconds, at most so many, in order."""
        end = max(self._open, default=0)
        return [
            self._over[second * _COLUMNS]  # the first column
            if second < self._seconds_over
            else self._open.get(second, Counts()).verified
            for second in range(max(0, end - seconds), end)
        ]

    @property
    def latency(self) -> Histogram:
        """All latencies, in nanoseconds."""
        return Histogram(self.counts.latency)

    @property
    def service(self) -> Histogram:
        """Latencies from the actual sends, in nanoseconds; in a closed loop there are no others."""
        return Histogram(self.counts.service or self.counts.latency)

    @property
    def connect(self) -> Histogram:
        """How long connections took to make, in nanoseconds."""
        return Histogram(self.counts.connect)

    @property
    def rate(self) -> float:
        """Verified replies a second of the measured time; 0 before there is any."""
        return self.counts.on_time / self.elapsed if self.elapsed else 0.0

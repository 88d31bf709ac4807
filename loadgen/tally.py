"""What was counted: snapshots of engines, and their sum over a run.

An engine reports what it counted since its last report. Such differences may be
added in any order and over any number of engines, and the sum is exact.
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Final

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


@dataclass(frozen=True, slots=True)
class Interval:
    """One second of the series, or what ``Tally.last`` gives of several.

    Attributes:
        start: seconds measured when it began.
        requests: replies verified in it.
        failed: requests that failed in it.
        p50, p99: percentiles of its latencies in nanoseconds; None without any.
    """

    start: float
    requests: int
    failed: int
    p50: int | None
    p99: int | None

    @classmethod
    def of(cls, second: int, *counts: Counts) -> Interval:
        """What is kept of a second's counts, or of those of several from that one on."""
        p50, p99 = None, None
        latency = Histogram(counts[0].latency)
        for each in counts[1:]:
            latency.merge(each.latency)
        if latency:
            p50, p99 = latency.percentiles([50, 99])
        verified, failed = (
            sum(each.verified for each in counts),
            sum(each.failed for each in counts),
        )
        return cls(float(second), verified, failed, p50, p99)


class Tally:
    """The sum of all snapshots of a run.

    Attributes:
        counts: everything counted.
        mismatches: the first wrong replies.
        elapsed: seconds measured, the longest of all engines.
        phase: what the engine heard of last is doing.

    >>> tally = Tally()
    >>> counts = Counts(sent=2, verified=1)
    >>> tally.add(Snapshot(phase=Phase.MEASURING, elapsed=0.25, second=0, counts=counts))
    >>> tally.add(Snapshot(phase=Phase.DONE, elapsed=1.5, second=1, counts=counts))
    >>> tally.counts.sent, [interval.start for interval in tally.series]
    (4, [0.0, 1.0])
    """

    def __init__(self) -> None:
        self.counts = Counts()
        self.mismatches: list[Mismatch] = []
        self.elapsed = 0.0
        self.phase = Phase.CONNECTING
        self._over: list[Interval] = []
        # Only the last seconds are kept with all their counts, in case an
        # engine is late: the memory of a tally hardly grows with the run.
        self._open: dict[int, Counts] = {}
        self._last: dict[int, Interval] = {}  # by how many seconds; until more is counted for them

    def add(self, snapshot: Snapshot) -> None:
        """Add one snapshot, of any engine."""
        self.counts.add(snapshot.counts)
        self.elapsed = max(self.elapsed, snapshot.elapsed)
        self.phase = snapshot.phase
        room = MISMATCHES_KEPT - len(self.mismatches)
        self.mismatches += snapshot.mismatches[:room]
        if snapshot.phase is not Phase.CONNECTING:
            second = max(snapshot.second, len(self._over))
            if second not in self._open or second != max(self._open):
                self._last.clear()
            self._open.setdefault(second, Counts()).add(snapshot.counts)
            while len(self._over) < second - SECONDS_OPEN:
                first = len(self._over)
                self._over.append(Interval.of(first, self._open.pop(first, Counts())))

    @property
    def series(self) -> list[Interval]:
        """Each second measured, in order; one in which nothing came is there too."""
        end = max(self._open, default=-1) + 1
        return self._over + [
            Interval.of(second, self._open.get(second, Counts()))
            for second in range(len(self._over), end)
        ]

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
            start = max(0, end - seconds)
            counts = [self._open.get(second, Counts()) for second in range(start, end)]
            self._last[seconds] = Interval.of(start, *counts)
        return self._last[seconds]

    def requests_by_second(self, seconds: int) -> list[int]:
        """Replies verified in each of the last full seconds, at most so many, in order."""
        end = max(self._open, default=0)
        return [
            self._over[second].requests
            if second < len(self._over)
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

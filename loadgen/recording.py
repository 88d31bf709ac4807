"""What an engine counts, from one snapshot to the next.

The load loop only appends to lists; they are folded into counts some hundred
values at a time, so that no request waits for the folding of many. What is kept
does not grow with the length of the run: bucket counts, and the lists up to the
next fold.

Requests sent need no counter of their own: each was answered, rightly or
wrongly, failed, timed out, or is in flight.
"""

from __future__ import annotations

from typing import Final

from loadgen.histogram import bucket_indices
from loadgen.tally import MISMATCHES_KEPT, Counts, Mismatch, Phase, Snapshot

FOLD_AT: Final = 256
"""Values of a list that are counted at a time; it takes about as long as five requests."""


class Recorder:
    """Collects measurements, all times in nanoseconds.

    Attributes:
        counts: since the last snapshot.
        latencies: of replies verified, since their requests were due.
        services: the same since the requests were sent; only of an open loop,
            elsewhere they are the same.
        lags: how late the loop noticed that a request was due.
        waits: how long replies waited in the kernel until they were read;
            ``servers``, how long they took until then. Of a sample.
        connects: how long connections took to make.
        slowest: the longest of the latencies folded so far.
        on_time: whether the measured time is not over yet.
    """

    def __init__(self, *, open_loop: bool) -> None:
        self.counts = Counts()
        self.latencies: list[int] = []
        self.services: list[int] = []
        self.lags: list[int] = []
        self.waits: list[int] = []
        self.servers: list[int] = []
        self.connects: list[int] = []
        self.slowest = 0
        self.on_time = True
        self._open_loop = open_loop
        self._in_flight_before = 0
        self._answered = 0  # up to the last snapshot
        self._mismatches: list[Mismatch] = []
        self._mismatches_kept = 0

    def fold(self) -> None:
        """Count a part of the values collected; to be called while there are many."""
        latencies = self.latencies[-FOLD_AT:]
        del self.latencies[-FOLD_AT:]
        counts = self.counts
        counts.verified += len(latencies)
        if self.on_time:
            counts.on_time += len(latencies)
        counts.latency.update(bucket_indices(latencies))
        self.slowest = max(self.slowest, max(latencies, default=0))
        if self._open_loop:
            counts.service.update(bucket_indices(self.services[-FOLD_AT:]))
            del self.services[-FOLD_AT:]
        if len(self.lags) >= FOLD_AT:
            counts.lag.update(bucket_indices(self.lags))
            self.lags.clear()

    def fold_all(self) -> None:
        """Count all values collected."""
        while self.latencies:
            self.fold()
        counts = self.counts
        for values, into in (
            (self.lags, counts.lag),
            (self.waits, counts.wait),
            (self.servers, counts.server),
            (self.connects, counts.connect),
        ):
            if values:
                into.update(bucket_indices(values))
                values.clear()

    def keep(self, mismatch: Mismatch) -> None:
        """Keep a wrong reply, if it is one of the first."""
        if self._mismatches_kept < MISMATCHES_KEPT:
            self._mismatches_kept += 1
            self._mismatches.append(mismatch)

    def sent_in_all(self, in_flight: int) -> int:
        """Requests sent since the very start, when so many are in flight."""
        counts = self.counts
        answered = counts.verified + len(self.latencies) + counts.wrong
        return self._answered + answered + counts.failed + counts.timed_out + in_flight

    def forget(self) -> None:
        """Begin anew after the warm-up: what is measured is dropped, what went wrong stays.

        Requests in flight count as if they were sent now.
        """
        self.fold_all()
        old, self.counts = self.counts, Counts()
        self._answered += old.verified
        kept = self.counts
        kept.wrong, kept.failed, kept.timed_out = old.wrong, old.failed, old.timed_out
        kept.lost, kept.reconnected, kept.connect = old.lost, old.reconnected, old.connect
        kept.served, kept.errors = old.served, old.errors

    def end(self) -> None:
        """The measured time is over: replies that come now are not on time."""
        self.fold_all()
        self.on_time = False

    def snapshot(self, phase: Phase, elapsed: float, second: int, in_flight: int) -> Snapshot:
        """What was counted since the snapshot before."""
        self.fold_all()
        counts, self.counts = self.counts, Counts()
        answered = counts.verified + counts.wrong + counts.failed + counts.timed_out
        counts.sent = answered + in_flight - self._in_flight_before
        self._answered += answered
        self._in_flight_before = in_flight
        mismatches, self._mismatches = self._mismatches, []
        return Snapshot(
            phase=phase, elapsed=elapsed, second=second, counts=counts, mismatches=mismatches
        )

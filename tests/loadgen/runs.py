"""Finished runs, made by hand."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from loadgen.histogram import Histogram
from loadgen.plan import Plan
from loadgen.report import Run
from loadgen.tally import Counts, Mismatch, Phase, Snapshot, Tally
from loadgen.verdict import judge
from nbnet.notation import Target

MS = 1_000_000


def recorded(*values: int) -> Any:
    """Bucket counts of nanoseconds."""
    histogram = Histogram()
    histogram.record(values)
    return histogram.counts


def snapshots(*counts: Counts, mismatches: list[Mismatch] | None = None) -> Tally:
    """The tally of a run that measured so many seconds, one after the other."""
    tally = Tally()
    for second, each in enumerate(counts, start=1):
        phase = Phase.DONE if second == len(counts) else Phase.MEASURING
        tally.add(Snapshot(phase=phase, elapsed=float(second), second=second - 1, counts=each))
    tally.mismatches += mismatches or []
    return tally


def finished(tally: Tally, *, embedded: bool = True, interrupted: bool = False) -> Run:
    """A run of two connections that was to take 2 seconds."""
    return Run(
        plan=Plan(connections=2, duration=2.0),
        target=Target("127.0.0.1", 6789),
        embedded=embedded,
        started_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        interrupted=interrupted,
        tally=tally,
        verdict=judge(tally.counts, interrupted=interrupted),
    )


def fine() -> Run:
    """Two seconds of four requests each, every reply verified."""
    first = Counts(
        held=2,
        sent=6,
        verified=4,
        on_time=4,
        sent_bytes=48,
        received_bytes=32,
        latency=recorded(1 * MS, 1 * MS, 2 * MS, 3 * MS),
        connect=recorded(500_000, 700_000),
        cpu_seconds=0.5,
    )
    second = Counts(
        sent=2,
        verified=4,
        on_time=2,
        sent_bytes=16,
        received_bytes=32,
        latency=recorded(4 * MS, 4 * MS, 4 * MS, 10 * MS),
        cpu_seconds=0.25,
    )
    return finished(snapshots(first, second))


def failed() -> Run:
    """A second in which a reply was wrong, another was lost, and one never came."""
    counts = Counts(
        held=1,
        failed_to_connect=1,
        lost=1,
        sent=5,
        verified=2,
        on_time=2,
        wrong=1,
        failed=1,
        timed_out=1,
        sent_bytes=40,
        received_bytes=16,
        latency=recorded(1 * MS, 2 * MS),
        connect=recorded(500_000),
    )
    counts.errors.update(
        {"connect: Connection refused": 1, "wrong reply": 3, "closed by the server": 2}
    )
    mismatch = Mismatch(2, b"00003abc", b"00003cba", b"00003abc")
    return finished(snapshots(counts, mismatches=[mismatch]), embedded=False)


def interrupted_while_connecting() -> Run:
    """Nothing was measured."""
    tally = Tally()
    tally.add(Snapshot(phase=Phase.DONE, elapsed=0.0, counts=Counts(held=1)))
    return finished(tally, interrupted=True)

"""Finished runs, made by hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from loadgen.histogram import Histogram
from loadgen.hosts import HostFigures, losses
from loadgen.plan import Plan
from loadgen.report import Run
from loadgen.tally import Counts, Mismatch, Phase, Snapshot, Tally
from loadgen.thresholds import evaluate, parse_threshold
from loadgen.verdict import examine, judge
from nbnet.notation import Address

MS = 1_000_000


def recorded(*values: int) -> Any:
    """Bucket counts of nanoseconds."""
    histogram = Histogram()
    histogram.record(values)
    return histogram.counts


def snapshot(second: int, counts: Counts, phase: Phase = Phase.MEASURING) -> Snapshot:
    """What was counted in a second, when it is over."""
    return Snapshot(phase=phase, elapsed=second + 1.0, second=second, counts=counts)


def snapshots(*counts: Counts, mismatches: list[Mismatch] | None = None) -> Tally:
    """The tally of a run that measured so many seconds, one after the other."""
    tally = Tally(keep_histograms=True)
    for second, each in enumerate(counts):
        tally.add(
            snapshot(second, each, Phase.DONE if second + 1 == len(counts) else Phase.MEASURING)
        )
    tally.mismatches += mismatches or []
    return tally


def finished(
    tally: Tally,
    plan: Plan | None = None,
    *,
    embedded: bool = True,
    interrupted: bool = False,
    workers: int = 1,
    thresholds: tuple[str, ...] = (),
) -> Run:
    """A run of two connections that was to take 2 seconds, if it is not told otherwise."""
    plan = plan or Plan(connections=2, duration=2.0)
    loader = examine(tally, workers)
    results = evaluate(map(parse_threshold, thresholds), plan, tally, loader)
    return Run(
        plan=plan,
        target=Address("127.0.0.1", 6789),
        embedded=embedded,
        workers=workers,
        started_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        interrupted=interrupted,
        tally=tally,
        loader=loader,
        verdict=judge(tally.counts, interrupted=interrupted, thresholds=results),
        thresholds=results,
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
        in_flight_seconds=2.0,
        cpu_seconds=0.5,
    )
    second = Counts(
        sent=2,
        verified=4,
        on_time=2,
        sent_bytes=16,
        received_bytes=32,
        latency=recorded(4 * MS, 4 * MS, 4 * MS, 10 * MS),
        in_flight_seconds=2.0,
        cpu_seconds=0.25,
    )
    return finished(snapshots(first, second))


def open_loop(**changes: Any) -> Run:
    """A second of a thousand requests, of which some went late and some not at all."""
    counts = Counts(
        held=2,
        sent=990,
        verified=990,
        on_time=990,
        unsent=10,
        late=5,
        latency=recorded(*[2 * MS] * 980, *[4 * MS] * 10),
        service=recorded(*[1 * MS] * 980, *[2 * MS] * 10),
        lag=recorded(10_000, 30_000),
        server=recorded(900_000, 1 * MS),
        wait=recorded(10_000, 20_000),
        connect=recorded(500_000, 700_000),
        in_flight_seconds=1.0,
        cpu_seconds=0.3,
    )
    for name, value in changes.items():
        setattr(counts, name, value)
    plan = Plan(connections=2, duration=1.0, rate=1000.0, poisson=True)
    return finished(snapshots(counts), plan, embedded=False)


def rate_missed() -> Run:
    """One that could send only half of its requests, since the server was slow."""
    return open_loop(sent=500, verified=500, on_time=500, unsent=500, late=400)


def loader_bound() -> Run:
    """A closed loop whose replies wait for the load generator."""
    counts = Counts(
        held=50,
        sent=80_000,
        verified=80_000,
        on_time=80_000,
        latency=recorded(*[600_000] * 80_000),
        server=recorded(*[200_000] * 1600),
        wait=recorded(*[400_000] * 1600),
        connect=recorded(500_000),
        in_flight_seconds=48.0,
        cpu_seconds=0.97,
    )
    return finished(snapshots(counts), Plan(connections=50, duration=1.0))


def on_hosts(number: int = 2) -> Run:
    """A second on so many hosts, of which the last was lost half-way."""
    whole = Counts()
    hosts = []
    for host in range(1, number + 1):
        lost = host == number
        counts = Counts(
            held=25,
            sent=1000 * host,
            verified=1000 * host,
            on_time=1000 * host,
            latency=recorded(*[host * MS] * (1000 * host)),
            connect=recorded(500_000),
            in_flight_seconds=float(host * host),
            cpu_seconds=0.0 if lost else 0.5,
        )
        whole.add(counts)
        hosts.append(
            HostFigures(
                host=f"10.0.0.{host}",
                name=f"load-{host}",
                workers=1,
                cores=2,
                counts=counts,
                elapsed=0.5 if lost else 1.0,
                clock_offset=12.5 * host,
                start_within=0.0012,
                lost="its Dask worker ended" if lost else None,
            )
        )
    run = finished(snapshots(whole), Plan(connections=25 * number, duration=1.0), embedded=False)
    verdict = judge(whole, interrupted=False, losses=losses(hosts))
    return replace(run, workers=number, hosts=tuple(hosts), verdict=verdict)


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
    counts.errors.update({"connect: refused": 1, "wrong payload": 3, "EOF": 2})
    mismatch = Mismatch(2, "wrong payload", b"00003abc", b"00003cba", b"00003abc")
    return finished(snapshots(counts, mismatches=[mismatch]), embedded=False)


def interrupted_while_connecting() -> Run:
    """Nothing was measured."""
    tally = Tally()
    tally.add(Snapshot(phase=Phase.DONE, elapsed=0.0, counts=Counts(held=1)))
    return finished(tally, interrupted=True)

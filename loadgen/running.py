"""Carrying a plan out: check the machine, start the engines, collect what they count."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import Final, Protocol, TypeAlias, TypeVar

from loadgen import preflight
from loadgen.embedded import embedded_server
from loadgen.hosts import HostFigures, losses
from loadgen.metrics import served_metrics
from loadgen.plan import ClusterPlan, Job, Plan, TlsPlan
from loadgen.report import Run
from loadgen.report.progress import live_progress, no_progress
from loadgen.tally import Snapshot, Tally
from loadgen.thresholds import Threshold, check, evaluate
from loadgen.traffic import Message
from loadgen.verdict import EXIT_NO_CONNECTION, Verdict, examine, judge
from loadgen.watch import Watch
from loadgen.workers import Workers
from nbnet.command import CommandError
from nbnet.machine import usable_cores
from nbnet.notation import Address

T = TypeVar("T")
Observer: TypeAlias = Callable[[Tally, Callable[[], Run]], None]
"""Called after each snapshot, some times a second, with the tally, and with what makes a
report's ``Run`` of it: some milliseconds of work, so not to be done each time."""

CONNECTIONS_A_WORKER: Final = 50
"""Fewer are not worth a further process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a plan is carried out.

    Attributes:
        target: the server; None starts the bundled one.
        workers: how many processes; None takes as many as there are cores free.
        sources: addresses of this machine to connect from.
        tls: how to encrypt; None does not.
        embedded: whether the target is the bundled server, see ``standing``.
        cluster: whose hosts run the workers, so many each; None runs them here.
    """

    target: Address | None = None
    workers: int | None = 1
    sources: tuple[str, ...] = ()
    tls: TlsPlan | None = None
    embedded: bool = False
    cluster: ClusterPlan | None = None


class Crew(Protocol):
    """The engines of a run, wherever they are: their snapshots, until all are done."""

    def __iter__(self) -> Iterator[Snapshot]:
        """Every snapshot of every engine."""

    def stop(self) -> None:
        """Have them stop sending and report; may be called from a signal handler."""


def run(
    plan: Plan,
    site: Site,
    report: Callable[[Run], T],
    *,
    thresholds: Sequence[Threshold] = (),
    abort_on_fail: bool = False,
    observers: Sequence[Observer] = (),
    on_snapshot: Callable[[Snapshot], None] = lambda _: None,
    keep_histograms: bool = False,
    quiet: bool = False,
    metrics: str | None = None,
) -> T:
    """Run a plan and give what ``report`` makes of it.

    The first SIGINT or SIGTERM ends it early, with a report; the second at once.

    Args:
        thresholds: limits that the run has to keep.
        abort_on_fail: whether the first that it has not ends it, with a report.
        observers: to be called while it goes on. They must not block: what they
            raise ends the run.
        on_snapshot: is given each snapshot as it comes, under the same rules.
        keep_histograms: whether the tally keeps the latencies of each second.
        quiet: whether nothing is told of it while it goes on.
        metrics: HOST:PORT to serve live figures at.

    Raises:
        PlanError, TrafficError: this machine cannot run it, or does not measure
            what a threshold is on.
        CommandError: the host is unknown, or metrics cannot be served.
        EmbeddedServerError, WorkerError: a process failed; why stands on stderr.
        KeyboardInterrupt: a second signal came.
    """
    check(thresholds, plan)
    embedded = site.embedded or site.target is None
    with contextlib.ExitStack() as stack:
        publish = stack.enter_context(
            no_progress() if metrics is None else served_metrics(metrics, plan)
        )
        engines, workers, target, hosts = (
            _engines_here(plan, site, stack, quiet=quiet)
            if site.cluster is None
            else _engines_elsewhere(plan, site, site.cluster, stack, quiet=quiet)
        )
        tally = Tally(keep_histograms=keep_histograms)
        watch = Watch(thresholds if abort_on_fail else (), plan, workers)
        aborted_at: float | None = None
        started_at = datetime.now(UTC)

        def summed_up(*, ended: bool, interrupted: bool) -> Run:
            # Engines tell their processor time in the end: those of a lost host never do.
            lost = sum(host.workers for host in hosts() if host.lost is not None)
            loader = examine(tally, max(1, workers - lost), hosts=len(hosts()))
            results = tuple(
                # What ended the run has failed, whatever late replies make of it.
                watch.failed
                if watch.failed and watch.failed.threshold is each.threshold and each.passed
                else each
                for each in evaluate(thresholds, plan, tally, loader)
            )
            verdict = judge(
                tally.counts,
                interrupted=interrupted,
                thresholds=results,
                aborted_at=aborted_at,
                losses=losses(hosts()),
            )
            return Run(
                plan=plan,
                target=target,
                embedded=embedded,
                workers=workers,
                started_at=started_at,
                interrupted=interrupted,
                tally=tally,
                loader=loader,
                verdict=verdict if ended else _incomplete(verdict),
                thresholds=results,
                aborted_at=aborted_at,
                hosts=hosts(),
            )

        with _interrupts_stop(engines) as signals:
            with no_progress() if quiet else live_progress(plan) as draw:
                for snapshot in engines:
                    tally.add(snapshot)
                    on_snapshot(snapshot)
                    if tally.measured_from is None and snapshot.elapsed:
                        measured = timedelta(seconds=snapshot.elapsed)
                        tally.measured_from = datetime.now(UTC) - measured
                    if watch.look(snapshot, tally):
                        aborted_at = tally.elapsed
                        engines.stop()
                    publish(tally)
                    draw(tally)
                    for observe in observers:
                        observe(tally, lambda: summed_up(ended=False, interrupted=True))
            # Reported before anything is waited for, so that a further Ctrl-C
            # cannot lose what was measured.
            signals.over = True
            return report(summed_up(ended=True, interrupted=signals.seen))


_Engines: TypeAlias = tuple[Crew, int, Address, Callable[[], tuple[HostFigures, ...]]]
"""Engines, how many, the server, and what their hosts did."""


def _engines_here(plan: Plan, site: Site, stack: contextlib.ExitStack, *, quiet: bool) -> _Engines:
    """Start the engines of a plan on this machine, and the bundled server without a target."""
    embedded = site.embedded or site.target is None
    workers = site.workers or spare_workers(plan, embedded=embedded)
    preflight.check_machine(plan, workers, embedded=embedded)
    shares = [plan.share(worker, workers) for worker in range(workers)]
    messages = plan.traffic.build(plan.seed, plan.in_flight)
    # The bundled server's limit of open files is the one that the check above has raised.
    target, _ = stack.enter_context(standing(site, quiet=quiet))
    jobs = make_jobs(plan, shares, messages, site, target)
    return stack.enter_context(Workers(jobs)), workers, target, tuple


def _engines_elsewhere(
    plan: Plan, site: Site, cluster: ClusterPlan, stack: contextlib.ExitStack, *, quiet: bool
) -> _Engines:
    """Have the hosts of a cluster prepare for a plan."""
    from loadgen.cluster import Cluster  # most runs do without

    assert site.target is not None
    tell = (lambda _: None) if quiet else (lambda line: print(line, file=sys.stderr, flush=True))
    engines = stack.enter_context(Cluster(plan, site, cluster, tell=tell))
    return engines, engines.workers, site.target, lambda: engines.figures


def make_jobs(
    plan: Plan,
    shares: Sequence[Plan],
    messages: tuple[Message, ...],
    site: Site,
    target: Address,
    *,
    first: int = 0,
    workers: int | None = None,
) -> list[Job]:
    """What each worker of this machine is to do.

    Args:
        plan: of all workers here.
        shares: of each.
        messages: what all workers send.
        first: the number of the first worker here.
        workers: how many there are, here and elsewhere; None is those here.

    Raises:
        PlanError: there are too few ports.
        CommandError: the host is unknown.
    """
    workers = workers or len(shares)
    try:
        address = preflight.resolve(target)
    except OSError as error:
        raise CommandError(
            f"cannot connect to {target}: {error.strerror}", EXIT_NO_CONNECTION
        ) from error
    sources = preflight.choose_sources(plan, address, site.sources)
    jobs = []
    for worker, share in enumerate(shares, first):
        begin = worker % len(sources) if sources else 0
        jobs.append(
            Job(
                plan=share,
                address=address,
                # Each worker has payloads of its own: one that is faster than another
                # would come upon those that the other has in flight.
                messages=messages[worker::workers] if plan.traffic.unique else messages,
                worker=worker,
                workers=workers,
                # Each begins with another one: they are used evenly by all.
                sources=sources[begin:] + sources[:begin],
                tls=site.tls,
            )
        )
    return jobs


def _incomplete(verdict: Verdict) -> Verdict:
    """Of a run that has not ended: what an interrupted one has, under another name."""
    _, _, found = verdict.text.partition(": ")
    return Verdict(f"INCOMPLETE: the run had not ended; {found}", verdict.exit_code)


@contextlib.contextmanager
def standing(site: Site, *, quiet: bool = False) -> Iterator[tuple[Address, Site]]:
    """Where the server is, and a site that any number of runs may use meanwhile.

    Without a target that is the bundled server, started here and stopped at the end.

    Raises:
        EmbeddedServerError: it did not start.
    """
    if site.target is not None:
        yield site.target, site
        return
    with embedded_server() as target:
        if not quiet:
            print(f"no --target: started the bundled server on {target}", file=sys.stderr)
        yield target, replace(site, target=target, embedded=True)


def spare_workers(plan: Plan, *, embedded: bool) -> int:
    """As many workers as there are cores that the bundled server leaves, if they pay."""
    cores = usable_cores() - embedded
    most = plan.senders // CONNECTIONS_A_WORKER
    if plan.requests is not None:
        most = min(most, plan.requests)
    return max(1, min(cores, most))


@dataclass(slots=True)
class _Signals:
    """What came meanwhile.

    Attributes:
        seen: whether one asked for an early end.
        over: whether there is nothing left to be ended early.
    """

    seen: bool = False
    over: bool = False


@contextlib.contextmanager
def _interrupts_stop(crew: Crew) -> Iterator[_Signals]:
    """The first SIGINT or SIGTERM has the workers report, the second ends at once.

    When all is over SIGTERM does at once: a report may wait for ever, for somebody who
    reads from a pipe. A Ctrl-C that comes too late should not cost it.
    """
    signals = _Signals()

    def interrupt(number: int, _frame: FrameType | None) -> None:
        if signals.seen or (signals.over and number == signal.SIGTERM):
            raise KeyboardInterrupt
        signals.seen = True
        crew.stop()

    before = {each: signal.signal(each, interrupt) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

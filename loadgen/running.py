"""Carrying a plan out: check the machine, start the engines, collect what they count."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import FrameType
from typing import Final, TypeVar

from loadgen import preflight
from loadgen.embedded import embedded_server
from loadgen.plan import Job, Plan, TlsPlan
from loadgen.report import Run
from loadgen.report.progress import live_progress
from loadgen.tally import Tally
from loadgen.verdict import EXIT_NO_CONNECTION, examine, judge
from loadgen.workers import Workers
from nbnet.command import CommandError
from nbnet.machine import usable_cores
from nbnet.notation import Address

T = TypeVar("T")

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
    """

    target: Address | None = None
    workers: int | None = 1
    sources: tuple[str, ...] = ()
    tls: TlsPlan | None = None
    embedded: bool = False


def run(plan: Plan, site: Site, report: Callable[[Run], T]) -> T:
    """Run a plan and give what ``report`` makes of it.

    The first SIGINT or SIGTERM ends it early, with a report; the second at once.

    Raises:
        PlanError, TrafficError: this machine cannot run it.
        CommandError: the host is unknown.
        EmbeddedServerError, WorkerError: a process failed; why stands on stderr.
        KeyboardInterrupt: a second signal came.
    """
    embedded = site.embedded or site.target is None
    workers = site.workers or spare_workers(plan, embedded=embedded)
    preflight.check_machine(plan, workers, embedded=embedded)
    shares = [plan.share(worker, workers) for worker in range(workers)]
    messages = plan.traffic.build(plan.seed, plan.in_flight)
    # The bundled server's limit of open files is the one that the check above has raised.
    with standing(site) as (target, _):
        try:
            address = preflight.resolve(target)
        except OSError as error:
            raise CommandError(
                f"cannot connect to {target}: {error.strerror}", EXIT_NO_CONNECTION
            ) from error
        sources = preflight.choose_sources(plan, address, site.sources)
        jobs = [
            Job(
                plan=share,
                address=address,
                # Each worker has payloads of its own: one that is faster than another
                # would come upon those that the other has in flight.
                messages=messages[worker::workers] if plan.traffic.unique else messages,
                worker=worker,
                workers=workers,
                # Each begins with another one: they are used evenly by all.
                sources=sources[worker % len(sources) :] + sources[: worker % len(sources)]
                if sources
                else (),
                tls=site.tls,
            )
            for worker, share in enumerate(shares)
        ]
        tally = Tally()
        started_at = datetime.now(UTC)
        with Workers(jobs) as engines, _interrupts_stop(engines) as interrupted:
            with live_progress(plan) as draw:
                for snapshot in engines:
                    tally.add(snapshot)
                    draw(tally)
            # Reported before anything is waited for, so that a further Ctrl-C
            # cannot lose what was measured.
            return report(
                Run(
                    plan=plan,
                    target=target,
                    embedded=embedded,
                    workers=workers,
                    started_at=started_at,
                    interrupted=interrupted(),
                    tally=tally,
                    loader=examine(tally, workers),
                    verdict=judge(tally.counts, interrupted=interrupted()),
                )
            )


@contextlib.contextmanager
def standing(site: Site) -> Iterator[tuple[Address, Site]]:
    """Where the server is, and a site that any number of runs may use meanwhile.

    Without a target that is the bundled server, started here and stopped at the end.

    Raises:
        EmbeddedServerError: it did not start.
    """
    if site.target is not None:
        yield site.target, site
        return
    with embedded_server() as target:
        print(f"no --target: started the bundled server on {target}", file=sys.stderr)
        yield target, replace(site, target=target, embedded=True)


def spare_workers(plan: Plan, *, embedded: bool) -> int:
    """As many workers as there are cores that the bundled server leaves, if they pay."""
    cores = usable_cores() - embedded
    most = plan.senders // CONNECTIONS_A_WORKER
    if plan.requests is not None:
        most = min(most, plan.requests)
    return max(1, min(cores, most))


@contextlib.contextmanager
def _interrupts_stop(workers: Workers) -> Iterator[Callable[[], bool]]:
    """The first SIGINT or SIGTERM has the workers report, the second ends at once.

    Gives what tells whether there was one.
    """
    seen = False

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal seen
        if seen:
            raise KeyboardInterrupt
        seen = True
        workers.stop()

    before = {each: signal.signal(each, interrupt) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

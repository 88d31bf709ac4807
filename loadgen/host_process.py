"""The child process that runs the engines of one host of a cluster.

It is to a host what ``loadgen.running`` is to a machine of its own: whether the
plan can be carried out is found out here, where it applies, and the engines are
its children. What it hears and tells stands in ``loadgen.share``.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
import threading
from dataclasses import replace
from typing import Any, cast

from loadgen import children, preflight
from loadgen.plan import Job, PlanError
from loadgen.running import Site, make_jobs
from loadgen.share import CONNECT, LENGTH, Share, Told
from loadgen.tally import Counts
from loadgen.traffic import TrafficError
from loadgen.worker import START
from loadgen.workers import WorkerError, Workers
from nbnet.command import EXIT_USAGE, CommandError


def main() -> None:
    """Run the share that stands on standard input."""
    children.die_with_parent()
    # Messages have the pipe to themselves: whatever else prints goes to stderr.
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    share = cast(Share, pickle.load(sys.stdin.buffer))

    def tell(kind: Told, value: Any = None) -> None:
        body = pickle.dumps((kind, value))
        output.write(LENGTH.pack(len(body)) + body)
        output.flush()

    try:
        jobs = prepare(share)
    except (PlanError, TrafficError, CommandError, ValueError) as error:
        code = error.code if isinstance(error, CommandError) else EXIT_USAGE
        message = error.message if isinstance(error, CommandError) else str(error)
        tell(Told.REFUSED, (message, code))
        return
    tell(Told.PREPARED)
    # From here on unbuffered: a thread that waits in a buffer's lock is in the way of the end.
    if os.read(sys.stdin.fileno(), START.size) != CONNECT:  # stopped before it began
        tell(Told.DONE, (0, Counts()))
        return
    number, total = 0, Counts()
    try:
        with Workers(jobs, when_ready=lambda: tell(Told.READY)) as workers:
            threading.Thread(target=_obey, args=(workers, sys.stdin.fileno()), daemon=True).start()
            for snapshot in workers:
                tell(Told.SNAPSHOT, snapshot)
                number += 1
                total.add(snapshot.counts)
    except WorkerError as error:
        tell(Told.FAILED, str(error))
        return
    tell(Told.DONE, (number, total))


def prepare(share: Share) -> list[Job]:
    """What the engines of this host are to do, if it can be done here.

    Raises:
        PlanError, TrafficError, CommandError: it cannot.
        ValueError: a file of TLS cannot be used.
    """
    plans = share.plans()
    # What this machine has to hold: nothing else of the plan matters to the checks.
    here = replace(
        share.plan,
        connections=sum(each.connections for each in plans),
        active=sum(each.senders for each in plans),
    )
    preflight.check_machine(here, share.workers, embedded=False)
    if share.tls is not None:
        from nbnet.tls import client_context

        client_context(share.tls.authority, share.tls.certificate, share.tls.key)
    return make_jobs(
        here,
        plans,
        share.plan.traffic.build(share.plan.seed, share.plan.in_flight),
        Site(target=share.target, sources=own_addresses(share.sources), tls=share.tls),
        share.target,
        first=share.first,
        workers=share.workers_in_all,
    )


def own_addresses(sources: tuple[str, ...]) -> tuple[str, ...]:
    """Those of some addresses that this machine has.

    Raises:
        PlanError: it has none of them.

    >>> own_addresses(("127.0.0.1", "192.0.2.1"))
    ('127.0.0.1',)
    """
    own = tuple(source for source in sources if _is_own(source))
    if sources and not own:
        raise PlanError(f"--source {', '.join(sources)}: none of them is an address of this host")
    return own


def _is_own(source: str) -> bool:
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.bind((source, 0))
        except OSError:
            return False
    return True


def _obey(workers: Workers, descriptor: int) -> None:
    """Wait for the moment to start, and for the word to stop."""
    # Each is written in one piece, and shorter than what a pipe cuts.
    while word := os.read(descriptor, START.size):
        workers.start(START.unpack(word)[0])
    workers.stop()


if __name__ == "__main__":
    main()

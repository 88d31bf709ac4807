"""What passes between the controller of a run and the process that runs one host's engines.

On standard input that process is given a pickled ``Share``, then words of eight
bytes: ``CONNECT``, later the moment to start; the end of it is the word to stop.
On standard output it tells what ``Told`` lists, each pickled with its length
before it, so that the agent between them passes it on unread.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from loadgen.plan import Plan, TlsPlan
from loadgen.worker import START
from nbnet.notation import Address

LENGTH: Final = struct.Struct("!I")
"""What stands before each message: how many bytes it has."""
CONNECT: Final = START.pack(0)
"""The word to make the connections; any other is the moment to start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one host is to do.

    Attributes:
        plan: of all hosts together.
        target: the server, as this host finds it.
        first, workers: the number of its first engine, and how many it runs.
        workers_in_all: how many all hosts run.
        sources: addresses to connect from, of any host: those of this one are used.
        tls: how to encrypt, with files of this host.
    """

    plan: Plan
    target: Address
    first: int
    workers: int
    workers_in_all: int
    sources: tuple[str, ...] = ()
    tls: TlsPlan | None = None

    def plans(self) -> list[Plan]:
        """The share of each engine here.

        Raises:
            PlanError: as of ``Plan.share``.
        """
        numbers = range(self.first, self.first + self.workers)
        return [self.plan.share(number, self.workers_in_all) for number in numbers]


class Told(StrEnum):
    """What a host tells; each comes with the value that stands beside it."""

    REFUSED = "refused"  # a line, and an exit code: the plan cannot be carried out here
    PREPARED = "prepared"  # None: it can; the word to connect is awaited
    READY = "ready"  # None: all attempts to connect have ended; the word to start is awaited
    SNAPSHOT = "snapshot"  # a Snapshot, of any of its engines
    DONE = "done"  # how many snapshots there were, and the sum of their Counts
    FAILED = "failed"  # a line: an engine's process ended early

"""What a run measured, written for people and for programs.

Every report is made from a ``Run`` alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from loadgen.hosts import HostFigures, host_notes
from loadgen.plan import Plan
from loadgen.tally import Tally
from loadgen.thresholds import Result
from loadgen.verdict import Loader, Verdict, notes
from nbnet.notation import Address

PERCENTILES: Final = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished run.

    Attributes:
        plan: what was asked.
        target: the server.
        embedded: whether that was the bundled server, started for the run.
        workers: how many processes ran it.
        started_at: when, with time zone.
        interrupted: whether somebody ended it early.
        tally: what was counted.
        loader: the load generator's own share in what was measured.
        verdict: what it comes to.
        thresholds: what became of each, in the order given.
        aborted_at: seconds measured when one of them ended the run; None if none did.
        hosts: of a cluster, what each did; none if this machine ran it.
    """

    plan: Plan
    target: Address
    embedded: bool
    workers: int
    started_at: datetime
    interrupted: bool
    tally: Tally
    loader: Loader
    verdict: Verdict
    thresholds: tuple[Result, ...] = ()
    aborted_at: float | None = None
    hosts: tuple[HostFigures, ...] = ()

    @property
    def notes(self) -> list[str]:
        """What has to be said of the figures, the gravest first."""
        return [*host_notes(self.hosts), *notes(self.plan, self.tally, self.loader)]

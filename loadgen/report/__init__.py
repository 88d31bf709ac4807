"""What a run measured, written for people and for programs.

Every report is made from a ``Run`` alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from loadgen.plan import Plan
from loadgen.tally import Tally
from loadgen.verdict import Verdict
from nbnet.notation import Target

PERCENTILES: Final = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished run.

    Attributes:
        plan: what was asked.
        target: the server.
        embedded: whether that was the bundled server, started for the run.
        started_at: when, with time zone.
        interrupted: whether somebody ended it early.
        tally: what was counted.
        verdict: what it comes to.
    """

    plan: Plan
    target: Target
    embedded: bool
    started_at: datetime
    interrupted: bool
    tally: Tally
    verdict: Verdict

"""What a run comes to: one line and an exit code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from loadgen.tally import Counts
from nbnet.command import EXIT_FAILED, EXIT_INTERRUPTED

EXIT_FINE: Final = 0
EXIT_NO_CONNECTION: Final = 4


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome in words, and the code that the command exits with."""

    text: str
    exit_code: int


def judge(counts: Counts, *, interrupted: bool) -> Verdict:
    """Judge a run by what was counted.

    >>> judge(Counts(held=1, sent=3, verified=3), interrupted=False)
    Verdict(text='OK: every reply verified', exit_code=0)
    """
    faults = ", ".join(
        f"{number:,} {what}"
        for number, what in (
            (counts.wrong, "wrong replies"),
            (counts.failed, "failed requests"),
            (counts.timed_out, "requests without a reply"),
            (counts.failed_to_connect, "connections not made"),
            (counts.lost, "connections lost"),
        )
        if number
    )
    if interrupted:
        return Verdict(f"INTERRUPTED: {faults or 'every reply so far verified'}", EXIT_INTERRUPTED)
    if not counts.held:
        return Verdict("FAILED: no connection could be made", EXIT_NO_CONNECTION)
    if faults:
        return Verdict(f"FAILED: {faults}", EXIT_FAILED)
    return Verdict("OK: every reply verified", EXIT_FINE)

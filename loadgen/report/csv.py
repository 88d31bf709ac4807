"""The series of a run as CSV (RFC 4180): a line a second, for spreadsheets and plots.

Times are seconds, to the nanosecond; a cell is empty where nothing came to be
measured. What ended connections has a column for each kind that occurred.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any, Final

from loadgen.report import Run
from loadgen.tally import Interval

COLUMNS: Final = (
    "t",
    "seconds",
    "requests",
    "failed",
    "wrong",
    "timed_out",
    "sent",
    "unsent",
    "late",
    "lost",
    "reconnected",
    "in_flight",
    "p50_seconds",
    "p90_seconds",
    "p99_seconds",
    "p99.9_seconds",
    "max_seconds",
)
"""Those that are always there, as the JSON's ``series`` has them. ``errors: KIND`` follow."""


class _Line:
    """What the writer writes into: it has the last line."""

    text = ""

    def write(self, text: str) -> None:
        self.text = text


def series(run: Run) -> Iterator[str]:
    """The lines, the first one naming the columns."""
    # Only those of the measured time: others would be columns of nothing.
    kinds = sorted({kind for interval in run.tally.intervals() for kind in interval.errors})
    line = _Line()
    writer = csv.writer(line)
    writer.writerow([*COLUMNS, *(f"errors: {kind}" for kind in kinds)])
    yield line.text
    for interval in run.tally.intervals():
        writer.writerow([*_cells(interval), *(interval.errors.get(kind, 0) for kind in kinds)])
        yield line.text


def _cells(interval: Interval) -> list[Any]:
    return [
        int(interval.start),
        f"{interval.seconds:.3f}",
        interval.requests,
        interval.failed,
        interval.wrong,
        interval.timed_out,
        interval.sent,
        interval.unsent,
        interval.late,
        interval.lost,
        interval.reconnected,
        f"{interval.in_flight:.3f}",
        *map(_seconds, (interval.p50, interval.p90, interval.p99, interval.p999, interval.max)),
    ]


def _seconds(nanoseconds: int | None) -> str:
    return "" if nanoseconds is None else f"{nanoseconds / 1e9:.9f}"

"""The summary that people read: one screen, at most 80 columns."""

from __future__ import annotations

import textwrap
from typing import Final

from loadgen.histogram import Histogram
from loadgen.report import Run
from nbnet.notation import format_duration as _time

_PERCENTILES: Final = (50, 90, 99, 99.9, 99.99)
_WIDTH: Final = 80
_SHOWN_BYTES: Final = 20
"""Bytes of a frame shown of a wrong reply."""


def summary(run: Run) -> str:
    """The run as text, without a newline at the end; the verdict stands last."""
    counts, tally = run.tally.counts, run.tally
    server = f"{run.target} (bundled server)" if run.embedded else str(run.target)
    lines = [
        f"{run.plan.connections:,} connections to {server}, {_time(tally.elapsed)} measured",
        "",
        _row(
            "connections",
            (run.plan.connections, "asked"),
            (counts.held, "held"),
            (counts.failed_to_connect, "failed"),
            (counts.lost, "lost"),
        ),
        _row("requests", (counts.sent, "sent")),
        _row(
            "replies",
            (counts.verified, "verified"),
            (counts.wrong, "wrong"),
            (counts.failed, "failed"),
            (counts.timed_out, "missing"),
        ),
        f"{'throughput':<12}{tally.rate:,.0f} requests/s",
        "",
        *_table(("latency", tally.latency), ("connect", tally.connect)),
    ]
    if counts.errors:
        lines += ["", "errors"]
        lines += [f"  {number:>9,}  {kind}" for kind, number in counts.errors.most_common()]
    if tally.mismatches:
        lines += ["", "wrong replies, the first few (hex)"]
        for mismatch in tally.mismatches:
            lines += [
                f"  connection {mismatch.connection}",
                f"    sent      {_hex(mismatch.sent)}",
                f"    expected  {_hex(mismatch.expected)}",
                f"    got       {_hex(mismatch.got)}",
            ]
    return "\n".join([*lines, "", *textwrap.wrap(run.verdict.text, _WIDTH)])


def _row(name: str, *cells: tuple[int, str]) -> str:
    return f"{name:<12}" + "   ".join(f"{number:,} {what}" for number, what in cells)


def _table(*rows: tuple[str, Histogram]) -> list[str]:
    """Histograms below each other, with a head of what each column is."""
    head = ["", "mean", *(f"p{percent:g}" for percent in _PERCENTILES), "max"]
    table = [head]
    for name, histogram in rows:
        values = [histogram.mean, *histogram.percentiles(_PERCENTILES), histogram.max]
        # Nothing recorded is no latency of 0.
        table.append([name, *(_time(value / 1e9) if histogram else "-" for value in values)])
    return [f"{row[0]:<10}" + "".join(f"{cell:>10}" for cell in row[1:]) for row in table]


def _hex(data: bytes) -> str:
    more = len(data) - _SHOWN_BYTES
    return data[:_SHOWN_BYTES].hex() + (f"... and {more:,} bytes more" if more > 0 else "")

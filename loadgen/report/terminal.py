"""The summary that people read: one screen, at most 80 columns."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Final

from loadgen.histogram import Histogram
from loadgen.hosts import HostFigures
from loadgen.plan import Plan
from loadgen.report import Run
from loadgen.tally import Mismatch
from loadgen.thresholds import Result
from nbnet.notation import format_duration as _time

SHOWN: Final = (50.0, 90.0, 99.0, 99.9, 99.99)
"""Percentiles that are shown if no others are asked for."""
_MOST_SHOWN: Final = 19
"""Three tables below each other, with mean and max."""
_PERCENTILE: Final = re.compile(r"[0-9]{1,2}(\.[0-9]{1,4})?")
_COLUMN: Final = 10
_COLUMNS: Final = 7
_WIDTH: Final = 80
_LABEL: Final = 12
_EXPRESSION: Final = 40
"""Characters shown of a threshold; the metrics with the longest names fit."""
_HOSTS: Final = 16
"""Hosts shown of a cluster; a JSON report has all of them."""
_SENT_BYTES: Final = 8
"""Bytes shown of the request whose reply was wrong; a JSON report has all of it."""
_REPLY_BYTES: Final = 7
"""Bytes shown of that reply, and of the right one, from where they differ."""


def parse_percentiles(text: str) -> tuple[float, ...]:
    """The percentiles in ``50,90,99.9``, in this order, each once.

    Raises:
        ValueError: the text is no such list, or names more than the summary has room for.

    >>> parse_percentiles("50,99.9")
    (50.0, 99.9)
    """
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not _PERCENTILE.fullmatch(part) or not float(part):
            raise ValueError(
                f"{part!r} is no percentile: expected numbers over 0 and under 100 with up to 4 "
                "decimals, like 50,90,99.9"
            )
    percentiles = tuple(dict.fromkeys(map(float, parts)))
    if len(percentiles) > _MOST_SHOWN:
        raise ValueError(f"{len(percentiles)} percentiles: at most {_MOST_SHOWN} are shown")
    return percentiles


def summary(run: Run, percentiles: Sequence[float] = SHOWN) -> str:
    """The run as text, without a newline at the end; the verdict stands last.

    Args:
        percentiles: of the latencies, as ``parse_percentiles`` gives them.
    """
    counts, tally, plan = run.tally.counts, run.tally, run.plan
    server = f"{run.target} (bundled server)" if run.embedded else str(run.target)
    lines = [
        f"{plan.connections:,} connections to {server}, {_time(tally.elapsed)} measured",
        *textwrap.wrap(_load(plan), _WIDTH),
        "",
        *_row(
            "connections",
            (plan.connections, "asked"),
            (counts.held, "held"),
            (counts.failed_to_connect, "failed"),
            (counts.lost, "lost"),
            *([(counts.reconnected, "replaced")] if counts.reconnected else []),
        ),
        *_row(
            "requests",
            *([(counts.sent + counts.unsent, "planned")] if plan.is_open_loop else []),
            (counts.sent, "sent"),
            *([(counts.late, "late")] if plan.is_open_loop else []),
            *([(counts.unsent, "unsent")] if plan.is_open_loop or counts.unsent else []),
        ),
        *_row(
            "replies",
            (counts.verified, "verified"),
            (counts.wrong, "wrong"),
            (counts.failed, "failed"),
            (counts.timed_out, "missing"),
        ),
        f"{'throughput':<{_LABEL}}{tally.rate:,.0f} requests/s",
        *_loader(run),
        "",
        *_latencies(run, percentiles),
    ]
    if run.hosts:
        lines += ["", *_hosts(run.hosts)]
    if counts.errors:
        lines += ["", "errors"]
        lines += [f"  {number:>9,}  {kind}" for kind, number in counts.errors.most_common()]
    if tally.mismatches:
        lines += ["", *_wrong_replies(tally.mismatches)]
    for note in run.notes:
        lines += ["", *textwrap.wrap(note, _WIDTH)]
    if run.thresholds:
        lines += ["", *_thresholds(run.thresholds)]
    return "\n".join([*lines, "", *textwrap.wrap(run.verdict.text, _WIDTH)])


def _load(plan: Plan) -> str:
    """What was done, in a line."""
    parts = []
    if plan.stages:
        steps = ", ".join(f"{rate:,.0f}/s in {_time(seconds)}" for seconds, rate in plan.stages)
        parts.append(f"open loop, {plan.rate or 0:,.0f}/s to {steps}")
    elif plan.rate is not None:
        parts.append(f"open loop, {plan.rate:,.10g} requests/s")
    else:
        parts.append("closed loop")
    if plan.poisson:
        parts.append("Poisson arrivals")
    if plan.pipeline > 1:
        parts.append(f"{plan.pipeline} in flight each")
    if plan.think:
        parts.append(f"{_time(plan.think)} between")
    if plan.active is not None:
        parts.append(f"{plan.active:,} active")
    if plan.requests_per_connection is not None:
        parts.append(f"{plan.requests_per_connection:,} a connection")
    if plan.warmup:
        parts.append(f"{_time(plan.warmup)} warm-up before")
    return ", ".join(parts)


def _loader(run: Run) -> list[str]:
    """The load generator's own share."""
    if run.loader.bound is None:
        return []
    workers = "1 worker" if run.workers == 1 else f"{run.workers} workers, each"
    parts = [f"{workers} {run.loader.cpu_percent:.0f} % of a core"]
    parts.append(f"{run.loader.in_flight:,.1f} in flight")
    lag = Histogram(run.tally.counts.lag)
    if lag:
        parts.append(f"schedule lag p99 {_time(lag.percentile(99) / 1e9)}")
    return _line("loader", parts, ", ")


def _latencies(run: Run, percentiles: Sequence[float]) -> list[str]:
    counts, tally = run.tally.counts, run.tally
    rows = [("latency", tally.latency)]
    if counts.service:
        rows.append(("service", tally.service))
    if counts.wait:
        rows += [("  server", Histogram(counts.server)), ("  loader", Histogram(counts.wait))]
    table = _table([*rows, ("connect", tally.connect)], percentiles)
    if counts.service:
        table.append("latency: since a request was due; service: since it was sent")
    if counts.wait:
        table.append(
            f"server, loader: until a reply was here, until it was read; {counts.wait.total():,} "
            "sampled"
        )
    return table


def _hosts(hosts: Sequence[HostFigures]) -> list[str]:
    """Each in a line; of many, those that were lost and then the slowest."""
    shown = sorted(hosts, key=lambda host: (host.lost is None, -_p99(host)))[:_HOSTS]
    if len(hosts) <= _HOSTS:
        shown = list(hosts)
    rows = [("hosts", "workers", "held", "verified", "requests/s", "p99", "cpu", "start")]
    for host in shown:
        rows.append(
            (
                f"  {host.host}",
                f"{host.workers:,}",
                f"{host.counts.held:,}",
                f"{host.counts.verified:,}",
                f"{host.rate:,.0f}",
                _time(_p99(host) / 1e9) if host.latency else "-",
                "-" if host.cpu_percent is None else f"{host.cpu_percent:.0f} %",
                "lost" if host.lost else _within(host),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    if len(hosts) > len(shown):
        lines.append(f"  and {len(hosts) - len(shown):,} more, with a lower p99: see --json")
    return lines


def _p99(host: HostFigures) -> int:
    return host.latency.percentile(99) if host.latency else 0


def _within(host: HostFigures) -> str:
    return "-" if host.start_within is None else f"+-{_time(host.start_within)}"


def _row(name: str, *cells: tuple[int, str]) -> list[str]:
    """Counts beside each other."""
    return _line(name, [f"{number:,} {what}" for number, what in cells], "   ")


def _line(name: str, cells: Iterable[str], gap: str) -> list[str]:
    """Cells beside each other; those that do not fit, below."""
    lines = [f"{name:<{_LABEL}}"]
    for cell in cells:
        if len(lines[-1]) + len(cell) > _WIDTH - len(gap):
            lines.append(" " * _LABEL)
        lines[-1] += cell + gap
    lines[-1] = lines[-1].removesuffix(gap)
    return [line.rstrip() for line in lines]


def _table(rows: Iterable[tuple[str, Histogram]], percentiles: Sequence[float]) -> list[str]:
    """Histograms below each other, with a head of what each column is.

    Columns that do not fit stand in a further table below.
    """
    table = [["", "mean", *(f"p{percent:g}" for percent in percentiles), "max"]]
    for name, histogram in rows:
        values = [histogram.mean, *histogram.percentiles(percentiles), histogram.max]
        # Nothing recorded is no latency of 0.
        table.append([name, *(_time(value / 1e9) if histogram else "-" for value in values)])
    lines: list[str] = []
    for first in range(1, len(table[0]), _COLUMNS):
        if lines:
            lines.append("")
        for name, *cells in (row[:1] + row[first : first + _COLUMNS] for row in table):
            lines.append(f"{name:<{_COLUMN}}" + "".join(f"{cell:>{_COLUMN}}" for cell in cells))
    return lines


def _thresholds(results: Sequence[Result]) -> list[str]:
    """Each in a line: whether it was kept, and what was measured."""
    rows = [("thresholds", "fails if", "measured")]
    for result in results:
        expression = textwrap.shorten(str(result.threshold), _EXPRESSION, placeholder=" ...")
        rows.append(("  ok" if result.passed else "  FAILED", expression, result.shown))
    left, right = (max(len(row[column]) for row in rows) for column in (1, 2))
    return [
        f"{status:<{_LABEL}}{expression:<{left}}  {value:>{right}}"
        for status, expression, value in rows
    ]


def _wrong_replies(mismatches: Sequence[Mismatch]) -> list[str]:
    """Each in a line: how the request begins, and the reply from where it differs."""
    head = "wrong replies, in hex: how the request begins, and the reply from where it differs"
    lines = [
        *textwrap.wrap(head, _WIDTH),
        _mismatch("conn", "", "byte", "sent", "expected", "got"),
    ]
    for mismatch in mismatches:
        pairs = zip(mismatch.expected, mismatch.got, strict=False)
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
        at = sum(1 for _ in same)
        lines.append(
            _mismatch(
                str(mismatch.connection),
                mismatch.kind,
                str(at),
                _hex(mismatch.sent, _SENT_BYTES),
                _hex(mismatch.expected[at:], _REPLY_BYTES),
                _hex(mismatch.got[at:], _REPLY_BYTES),
            )
        )
    return lines


def _mismatch(connection: str, kind: str, at: str, sent: str, expected: str, got: str) -> str:
    return f"{connection:>6} {kind:<16} {at:>5}  {sent:<16}  {expected:<14}  {got}"


def _hex(data: bytes, shown: int) -> str:
    return data[:shown].hex() or "-"

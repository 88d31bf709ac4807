"""The lower part of the HTML report: whose latency it is, what went wrong, what was asked."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, Final

from loadgen.histogram import Histogram
from loadgen.report import Run
from loadgen.report import html_parts as parts
from loadgen.report.json import document
from loadgen.tally import Mismatch
from loadgen.thresholds import Result
from nbnet.notation import format_duration as _time

_ROWS: Final = 50
"""Kinds of errors, and stages of a plan, that are shown."""
_BEFORE: Final = 8
"""Bytes shown before the one that differs."""
_BYTES: Final = 32
"""Bytes shown of a request, and of a reply from a little before it differs."""


def thresholds(results: Sequence[Result]) -> str:
    """Which limits were kept, with what was measured; nothing without any."""
    if not results:
        return ""
    rows = [
        (
            parts.text(str(result.threshold)),
            "ok" if result.passed else "<b>FAILED</b>",
            parts.text(result.shown),
        )
        for result in results
    ]
    return parts.section("Thresholds", parts.table(("fails if", "", "measured"), rows))


def split(run: Run) -> str:
    """How much of the latency is the server's, and what the load generator did."""
    loader, counts = run.loader, run.tally.counts
    if loader.bound is None:
        return ""
    shown = ""
    if counts.wait:
        server, wait = Histogram(counts.server).mean, Histogram(counts.wait).mean
        share = 100 * server / ((server + wait) or 1)
        shown = (
            f'<div class="split" role="img" aria-label="server {share:.0f} %, loader '
            f'{100 - share:.0f} %"><span style="width:{share:.2f}%"></span>'
            f'<span style="width:{100 - share:.2f}%"></span></div>\n'
            f'<p class="key"><span class="line-0">server {_time(server / 1e9)}, '
            f"{share:.0f} %</span>"
            f' <span class="line-1">load generator {_time(wait / 1e9)}, {100 - share:.0f} %</span>'
            f" on average, of {counts.wait.total():,} sampled replies</p>\n"
        )
    lag = Histogram(counts.lag)
    rows = [
        ("Processes", f"{run.workers:,}"),
        ("Processor time", f"{loader.cpu_percent:.0f} % of a core each"),
        ("In flight", f"{loader.in_flight:,.1f} requests on average"),
        (
            "Rate times latency",
            f"{loader.rate_times_latency:,.1f} (Little's law: as many as in flight)",
        ),
    ]
    if lag:
        rows.append(("Schedule lag p99", _time(lag.percentile(99) / 1e9)))
    return parts.section(
        "Server and load generator", f'<div class="narrow">{shown}{parts.pairs(rows)}</div>'
    )


def hosts(run: Run) -> str:
    """What each host of a cluster did; nothing of a run on one machine."""
    if not run.hosts:
        return ""
    rows = [
        (
            parts.text(host.host),
            f"{host.workers:,}",
            f"{host.counts.held:,}",
            f"{host.counts.verified:,}",
            f"{host.rate:,.0f}",
            _time(host.latency.percentile(99) / 1e9) if host.latency else "-",
            "-" if host.cpu_percent is None else f"{host.cpu_percent:.0f} %",
            "<b>LOST</b>" if host.lost else "ok",
        )
        for host in run.hosts
    ]
    head = ("host", "processes", "held", "verified", "requests/s", "p99", "cpu", "")
    return parts.section("Hosts", parts.table(head, rows))


def errors(run: Run) -> str:
    """What ended connections, the most frequent first."""
    kinds = run.tally.counts.errors.most_common()
    if not kinds:
        return ""
    rows = [[parts.text(kind), f"{number:,}"] for kind, number in kinds[:_ROWS]]
    if len(kinds) > _ROWS:
        rest = kinds[_ROWS:]
        rows.append([f"{len(rest):,} more kinds", f"{sum(number for _, number in rest):,}"])
    words = "What ended connections, or kept them from being made."
    table = parts.table(["kind", "count"], rows)
    return parts.section(
        "Errors by kind", f'<div class="narrow"><p class="quiet">{words}</p>\n{table}</div>\n'
    )


def wrong_replies(mismatches: Sequence[Mismatch]) -> str:
    """Those that were kept, each beside what it had to be."""
    if not mismatches:
        return ""
    shown = "".join(_wrong_reply(each) for each in mismatches)
    words = "In hex, with headers; replies from a little before the byte that differs."
    return parts.section(
        "Wrong replies", f'<p class="quiet">{words} The first {len(mismatches)}.</p>\n{shown}'
    )


def _wrong_reply(mismatch: Mismatch) -> str:
    pairs = zip(mismatch.expected, mismatch.got, strict=False)
    shorter = min(len(mismatch.expected), len(mismatch.got))
    at = next((at for at, (one, other) in enumerate(pairs) if one != other), shorter)
    start = max(0, at - _BEFORE)
    rows = "".join(
        f"<tr><th>{name}</th><td>{_hex(data, begin, mark)}</td>"
        f"<td>{_characters(data, begin)}</td></tr>\n"
        for name, data, begin, mark in (
            ("sent", mismatch.sent, 0, None),
            ("expected", mismatch.expected, start, at),
            ("got", mismatch.got, start, at),
        )
    )
    return (
        f'<p class="reply"><strong>{parts.text(mismatch.kind)}</strong>, connection '
        f"{mismatch.connection:,}, differs at byte {at:,}</p>\n"
        f'<div class="wide"><table class="hex">\n{rows}</table></div>\n'
    )


def _hex(data: bytes, start: int, mark: int | None) -> str:
    """Bytes from ``start`` on, that at ``mark`` in evidence."""
    if not data:
        return "-"
    cells = [
        f"<mark>{byte:02x}</mark>" if at == mark else f"{byte:02x}"
        for at, byte in enumerate(data[start : start + _BYTES], start)
    ]
    left = len(data) - start - len(cells)
    before = "... " if start else ""
    return before + " ".join(cells) + (f" ... {left:,} more" if left > 0 else "")


def _characters(data: bytes, start: int) -> str:
    shown = data[start : start + _BYTES]
    return escape("".join(chr(byte) if 32 <= byte < 127 else "." for byte in shown))


def plan(run: Run) -> str:
    """What was asked, and where it ran."""
    told: dict[str, Any] = document(run)
    plan, environment = run.plan, told["environment"]
    rows = [
        ("Target", parts.text(run.target) + (" (bundled server)" if run.embedded else "")),
        ("Connections", f"{plan.connections:,}, of which {plan.senders:,} send"),
        ("Duration", _time(plan.duration)),
        ("Loop", "open" if plan.is_open_loop else "closed"),
    ]
    if plan.rate is not None:
        rows.append(("Rate", f"{plan.rate:,.10g} requests/s"))
    if plan.stages:
        stages = [f"{_time(seconds)} to {rate:,.10g}/s" for seconds, rate in plan.stages[:_ROWS]]
        more = len(plan.stages) - len(stages)
        rows.append(("Stages", ", ".join([*stages, *([f"{more:,} more"] if more else [])])))
    if plan.is_open_loop:
        rows.append(("Arrivals", "Poisson" if plan.poisson else "constant"))
    rows += [
        ("Requests at most", "no bound" if plan.requests is None else f"{plan.requests:,}"),
        ("Think time", _time(plan.think)),
        ("In flight a connection", f"{plan.pipeline:,} at most"),
        (
            "Requests a connection",
            "no bound"
            if plan.requests_per_connection is None
            else f"{plan.requests_per_connection:,}",
        ),
        ("Lost connections", "replaced" if plan.reconnect else "not replaced"),
        (
            "Payloads",
            parts.text(plan.traffic.describe()) + (", unique" if plan.traffic.unique else ""),
        ),
        ("Expected", parts.text(plan.traffic.expect)),
        ("Warm-up", _time(plan.warmup)),
        (
            "Connect rate",
            "no bound" if plan.connect_rate is None else f"{plan.connect_rate:,.10g}/s",
        ),
        ("Connect timeout", _time(plan.connect_timeout)),
        ("Timeout, grace", f"{_time(plan.timeout)}, {_time(plan.grace)}"),
        ("Seed", f"{plan.seed}"),
    ]
    machine = [
        ("loadgen", parts.text(told["version"])),
        ("Python", parts.text(f"{environment['implementation']} {environment['python']}")),
        ("System", parts.text(environment["system"])),
        ("Processors", parts.text(environment["processors"])),
        ("Begun", parts.text(run.started_at.isoformat(" ", "seconds"))),
    ]
    return (
        '<div class="pair">\n'
        + parts.section("Plan", parts.pairs(rows))
        + parts.section("Environment", parts.pairs(machine))
        + "</div>\n"
    )

"""The run as one page for a browser, complete in itself: nothing is fetched, nothing runs.

The verdict comes first, then what has to be said of the figures, then these.
Whatever came from outside (a target, an error, bytes of a reply) goes through
``html_parts.text``, and the page's own policy forbids scripts and requests besides.
However long the run was, the page stays below 300 KB: a chart has some 300
points at most, of which each keeps the worst of its seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import resources
from typing import Final

from loadgen.histogram import Histogram
from loadgen.report import Run
from loadgen.report import html_charts as charts
from loadgen.report import html_details as details
from loadgen.report import html_parts as parts
from loadgen.report.html_charts import Axis, Line, Tip
from loadgen.report.html_series import Bin, bins, percentile_curve
from loadgen.verdict import EXIT_FINE
from nbnet.command import EXIT_INTERRUPTED
from nbnet.notation import format_duration as _time

_PERCENTILES: Final = (50, 90, 99, 99.9, 99.99)
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(run: Run) -> str:
    """The run as an HTML document."""
    style = resources.files("loadgen.report").joinpath("page.css").read_text(encoding="utf-8")
    word = run.verdict.text.partition(":")[0]
    sections = (
        _notes(run),
        details.thresholds(run.thresholds),
        _key_figures(run),
        _over_time(run),
        _distribution(run),
        details.split(run),
        details.hosts(run),
        details.errors(run),
        details.wrong_replies(run.tally.mismatches),
        details.plan(run),
    )
    return f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{parts.text(word)} - loadgen {parts.text(run.target)}</title>
<style>
{style}</style>
</head>
<body>
<main>
{_head(run)}
{"".join(section for section in sections if section)}</main>
</body>
</html>
"""


def _head(run: Run) -> str:
    code = run.verdict.exit_code
    kind = "good" if code == EXIT_FINE else "open" if code == EXIT_INTERRUPTED else "bad"
    word, _, rest = run.verdict.text.partition(": ")
    server = parts.text(run.target) + (" (bundled server)" if run.embedded else "")
    started = run.started_at.isoformat(" ", "seconds")
    return f"""\
<header class="verdict {kind}" role="status">
<h1><span class="word">{parts.text(word)}</span> <span>{parts.text(rest)}</span></h1>
</header>
<p class="what"><strong>{run.plan.connections:,} connections to {server}</strong>,
{_load(run)}, {_time(run.tally.elapsed)} measured, begun <time>{parts.text(started)}</time></p>
"""


def _load(run: Run) -> str:
    plan = run.plan
    if plan.stages:
        return "open loop in stages"
    return "closed loop" if plan.rate is None else f"open loop at {plan.rate:,.10g} requests/s"


def _notes(run: Run) -> str:
    shown = []
    for note in run.notes:
        word, colon, rest = note.partition(": ")
        kind = "note" if word == "NOTE" else "note warn"
        shown.append(
            f'<li class="{kind}"><strong>{parts.text(word)}{colon.strip()}</strong> '
            f"{parts.text(rest, 2000)}</li>\n"
        )
    return f'<ul class="notes">\n{"".join(shown)}</ul>\n' if shown else ""


def _key_figures(run: Run) -> str:
    counts, latency = run.tally.counts, run.tally.latency
    p50, p99 = latency.percentiles([50, 99])
    wrong = counts.wrong + counts.failed + counts.timed_out
    sent = f"{counts.verified:,} verified"
    if run.plan.is_open_loop:
        sent += f", {counts.late:,} late, {counts.unsent:,} unsent"
    connections = f"{counts.failed_to_connect:,} failed, {counts.lost:,} lost"
    if counts.reconnected:
        connections += f", {counts.reconnected:,} replaced"
    figures = [
        ("Throughput", f"{run.tally.rate:,.0f}", "requests/s", ""),
        ("Latency p50", *_split_unit(p50, latency), ""),
        ("Latency p99", *_split_unit(p99, latency), ""),
        ("Latency max", *_split_unit(latency.max, latency), ""),
        ("Requests", f"{counts.sent:,}", "sent", sent),
        (
            "Errors",
            f"{wrong:,}",
            "requests",
            f"{counts.wrong:,} wrong, {counts.failed:,} failed, {counts.timed_out:,} missing",
        ),
        (
            "Connections",
            f"{counts.held:,}",
            "held",
            connections,
        ),
    ]
    cells = "".join(
        f"<div{_bad(name == 'Errors' and bool(wrong))}><dt>{name}</dt>"
        f"<dd><b>{value}</b> {unit}{f' <small>{more}</small>' if more else ''}</dd></div>\n"
        for name, value, unit, more in figures
    )
    return f'<dl class="figures">\n{cells}</dl>\n'


def _bad(is_bad: bool) -> str:
    return ' class="bad"' if is_bad else ""


def _split_unit(nanoseconds: float, histogram: Histogram) -> tuple[str, str]:
    """Number and unit apart; nothing recorded is no latency of 0."""
    number, _, unit = _time(nanoseconds / 1e9).partition(" ") if histogram else ("-", "", "")
    return number, unit


def _over_time(run: Run) -> str:
    points = bins(run.tally.series)
    if not points or not run.tally.elapsed:
        return ""
    width = points[0].end - points[0].start
    merged = width > 1
    each = f"each point is {_time(width)}" if merged else ""
    x = charts.time_axis(run.tally.elapsed)
    shown = [_throughput(run, points, x, each), _latency_over_time(run, points, x, each)]
    counts = run.tally.counts
    if counts.failed:
        failed: list[tuple[float, float | None]] = [(each.middle, each.failed) for each in points]
        shown.append(
            parts.figure(
                "Failures",
                f"requests in the worst second of {_time(width)}"
                if merged
                else "requests a second",
                [Line("", failed)],
                x,
                charts.linear_axis(max(each.failed for each in points), _count, whole=True),
                run.target,
                tips=[Tip(b.start, b.end, f"{_at(b)}: {b.failed:,} failed") for b in points],
                kind="failed",
            )
        )
    elif not (counts.wrong or counts.timed_out):
        shown.append('<p class="quiet">No request failed at any time.</p>\n')
    return parts.section("Over time", f'<div class="charts">\n{"".join(shown)}</div>\n')


def _throughput(run: Run, points: Sequence[Bin], x: Axis, each: str) -> str:
    lines = [Line("mean" if each else "", [(b.middle, b.rate) for b in points])]
    if each:
        lines.append(Line("slowest second", [(b.middle, b.lowest) for b in points]))
    most = max((b.rate for b in points if b.rate is not None), default=0.0)
    return parts.figure(
        "Throughput",
        ", ".join(filter(None, ["requests/s", each])),
        lines,
        x,
        charts.linear_axis(most, _count),
        run.target,
        tips=[
            Tip(b.start, b.end, f"{_at(b)}: {b.rate:,.0f} requests/s")
            for b in points
            if b.rate is not None
        ],
    )


def _latency_over_time(run: Run, points: Sequence[Bin], x: Axis, each: str) -> str:
    known = [ns for b in points for ns in (b.p50, b.p99) if ns is not None]
    if not known:
        return '<p class="quiet">No latency was measured.</p>\n'
    return parts.figure(
        "Latency",
        f"{each}: middle p50, highest p99; log scale" if each else "log scale",
        [
            Line("p50", [(b.middle, _log(b.p50)) for b in points]),
            Line("p99", [(b.middle, _log(b.p99)) for b in points]),
        ],
        x,
        charts.log_time_axis(min(known), max(known)),
        run.target,
        tips=[
            Tip(
                b.start,
                b.end,
                f"{_at(b)}: p50 {_time(b.p50 / 1e9)}, p99 {_time(b.p99 / 1e9)}",
            )
            for b in points
            if b.p50 is not None and b.p99 is not None
        ],
    )


def _distribution(run: Run) -> str:
    counts, tally = run.tally.counts, run.tally
    rows = [("latency", tally.latency)]
    if counts.service:
        rows.append(("service", tally.service))
    if counts.wait:
        rows += [("server", Histogram(counts.server)), ("loader", Histogram(counts.wait))]
    rows.append(("connect", tally.connect))
    lines = [row for row in rows if row[0] in ("latency", "service") and row[1]]
    shown = [_curve("Latency by percentile", lines, run)] if lines else []
    if tally.connect:
        shown.append(_curve("Connect time by percentile", [("connect", tally.connect)], run))
    words = []
    if counts.service:
        words.append("Latency: since a request was due; service: since it was sent.")
    if counts.wait:
        words.append(
            "Server: until a reply was here; loader: until it was read; "
            f"{counts.wait.total():,} replies sampled."
        )
    table = parts.table(
        ["", "mean", *(f"p{percent:g}" for percent in _PERCENTILES), "max"],
        [[name, *_values(histogram)] for name, histogram in rows],
    )
    return parts.section(
        "Distribution",
        f'<div class="charts">\n{"".join(shown)}</div>\n{table}'
        + (f'<p class="quiet">{" ".join(words)}</p>\n' if words else ""),
    )


def _values(histogram: Histogram) -> list[str]:
    if not histogram:
        return ["-"] * (len(_PERCENTILES) + 2)
    values = [histogram.mean, *histogram.percentiles(_PERCENTILES), histogram.max]
    return [_time(value / 1e9) for value in values]


def _curve(title: str, rows: Sequence[tuple[str, Histogram]], run: Run) -> str:
    lines = [Line(name, percentile_curve(histogram)) for name, histogram in rows]
    return parts.figure(
        title,
        "log scale",
        lines if len(lines) > 1 else [Line("", lines[0].points)],
        charts.percentile_axis(max(len(histogram) for _, histogram in rows)),
        charts.log_time_axis(
            min(histogram.min for _, histogram in rows), max(histogram.max for _, histogram in rows)
        ),
        run.target,
    )


def _log(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else math.log10(max(1, nanoseconds))


def _at(point: Bin) -> str:
    return f"{point.start:,.0f} to {point.end:,.6g} s"


def _count(value: float) -> str:
    return f"{value:,.10g}"

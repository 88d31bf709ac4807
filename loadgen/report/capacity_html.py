"""What a search for capacity found, as one page that needs nothing else.

No script, nothing from the network, light or dark as the reader has it; all
that comes from outside is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any, Final
from xml.etree import ElementTree as ET

from loadgen.capacity import Step
from loadgen.report.capacity import (
    Findings,
    advice,
    answer,
    by_rate,
    curve,
    format_rate,
    format_share,
    format_time,
    headline,
    verdict,
)
from loadgen.report.html_charts import load_pygal

_LINES: Final = ((50.0, "var(--p50)"), (99.0, "var(--p99)"))
_SVG: Final = "http://www.w3.org/2000/svg"
_STYLE: Final = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2024; --faint: #6a7279;
  --rule: #d8dce0; --p50: #2f6fb0; --p99: #c2410c; --slo: #6b21a8; --good: #18743a;
  --bad: #b42318; }
@media (prefers-color-scheme: dark) { :root { --paper: #16191c; --ink: #e4e7ea; --faint: #99a2aa;
  --rule: #363c42; --p50: #6fb1ee; --p99: #fb923c; --slo: #c99bf5; --good: #5fce8a;
  --bad: #ff8a80; } }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin-bottom: 0; }
.answer { font-size: 1.15rem; font-weight: 600; }
.faint { color: var(--faint); }
svg { width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .25rem .75rem; text-align: right; border-bottom: 1px solid var(--rule); }
th:last-child, td:last-child { text-align: left; }
.held { color: var(--good); }
.missed { color: var(--bad); }
"""


def page(findings: Findings) -> str:
    """The page: the answer, the curve of latency over rate, and every step."""
    result = findings.result
    rows = "\n".join(_row(step) for step in by_rate(result))
    notes = "".join(f"<p>{escape(note)}</p>\n" for note in advice(findings))
    about = (
        f"{headline(findings)}, {result.terms.step:g} s a step, "
        f"{findings.started_at:%Y-%m-%d %H:%M} UTC, {format_time(findings.seconds)} in all"
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Capacity of {escape(str(findings.target))}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Capacity of {escape(str(findings.target))}</h1>
<p class="faint">{escape(about)}</p>
<p class="answer">{escape(answer(findings))}</p>
{notes}{_figure(findings)}
<table>
<thead><tr><th>rate/s</th><th>sent</th><th>p50</th><th>p99</th><th>verdict</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
</body>
</html>
"""


def _row(step: Step) -> str:
    figures = step.figures
    cells = (
        format_rate(step.rate),
        format_share(figures),
        format_time(figures.percentile(50)),
        format_time(figures.percentile(99)),
    )
    kind = "held" if step.held else "missed"
    return (
        "<tr>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + f'<td class="{kind}">{escape(verdict(step))}</td></tr>'
    )


def _figure(findings: Findings) -> str:
    """The chart, where there is something to draw."""
    steps = [step for step in curve(findings.result) if math.isfinite(step.figures.percentile(50))]
    if len(steps) < 2:
        return ""
    return (
        f"<figure>{_chart(steps, findings)}"
        '<figcaption class="faint">Latency over rate, both on logarithmic scales. Requests without '
        "a reply count as slower than all others: where they are too many, a line ends."
        "</figcaption></figure>"
    )


def _chart(steps: Sequence[Step], findings: Findings) -> str:
    pygal, style_of = load_pygal()

    terms = findings.result.terms
    bounds = terms.slo.latencies
    style = style_of(
        background="transparent",
        plot_background="transparent",
        foreground="var(--ink)",
        foreground_strong="var(--ink)",
        foreground_subtle="var(--faint)",
        guide_stroke_color="var(--rule)",
        major_guide_stroke_color="var(--rule)",
        colors=(*(colour for _, colour in _LINES), *["var(--slo)"] * len(bounds), "var(--good)"),
        # Else it works them out of the colours, which only the reader's browser knows.
        value_colors=["var(--ink)"] * (len(_LINES) + len(bounds) + 1),
        font_family="system-ui, sans-serif",
        label_font_size=13,
        major_label_font_size=13,
        legend_font_size=14,
        title_font_size=14,
        stroke_width="2",
        stroke_opacity="1",
        transition="0s",
    )
    points = {
        percent: [
            (math.log10(step.rate), _height(seconds))
            for step in steps
            if math.isfinite(seconds := step.figures.percentile(percent)) and seconds > 0
        ]
        for percent, _ in _LINES
    }
    rates = [step.rate for step in steps]
    times = [10**y / 1e9 for line in points.values() for _, y in line]
    times += [each.limit for each in bounds]
    chart: Any = pygal.XY(
        style=style,
        js=(),
        height=420,
        width=900,
        dots_size=3,
        show_legend=True,
        legend_at_bottom=True,
        legend_at_bottom_columns=4,
        margin_bottom=40,
        x_title="requests/s",
        show_x_guides=True,
        disable_xml_declaration=True,
        no_prefix=True,
    )
    chart.x_labels = [
        {"value": math.log10(rate), "label": format_rate(rate)}
        for rate in _ticks(min(rates), max(rates))
    ]
    heights = _ticks(min(times), max(times))
    chart.y_labels = [
        {"value": _height(seconds), "label": format_time(seconds)} for seconds in heights
    ]
    for percent, _ in _LINES:
        chart.add(f"p{percent:g}", points[percent])
    for each in bounds:
        level = _height(each.limit)
        ends = [(math.log10(min(rates)), level), (math.log10(max(rates)), level)]
        # pygal writes labels as text of the tree, which is escaped with it.
        chart.add(
            str(each).replace(" ", ""), ends, show_dots=False, stroke_style={"dasharray": "6, 4"}
        )
    if findings.result.confirmed is not None:
        at = math.log10(findings.result.confirmed.rate)
        ends = [(at, _height(heights[0])), (at, _height(heights[-1]))]
        chart.add("confirmed", ends, show_dots=False, stroke_style={"dasharray": "2, 3"})
    return _without_scripts(chart.render_tree())


def _height(seconds: float) -> float:
    # Of nanoseconds: pygal draws an axis where a scale passes 0.
    return math.log10(seconds * 1e9)


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times each power of ten, from below what there is to above it."""
    decades = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 2)
    values = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    first = max((n for n, value in enumerate(values) if value <= low), default=0)
    last = next((n for n, value in enumerate(values) if value >= high), len(values) - 1)
    if last - first < 12:
        return values[first : last + 1]
    return [10.0**decade for decade in decades]


def _without_scripts(tree: Any) -> str:
    """The chart as text, without the data that pygal leaves for its script."""
    for parent in list(tree.iter()):
        for child in list(parent):
            if not isinstance(child.tag, str) or child.tag.rpartition("}")[2] == "script":
                parent.remove(child)
    ET.register_namespace("", _SVG)
    return ET.tostring(tree, encoding="unicode")

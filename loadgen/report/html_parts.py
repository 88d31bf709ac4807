"""Pieces of the HTML report's page: escaped text, tables, figures, sections.

Names and cells are HTML where a function says so, else they are escaped here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from loadgen.report import html_charts as charts
from loadgen.report.html_charts import Axis, Line, Tip


def text(value: object, limit: int = 300) -> str:
    """Anything, fit to stand in the page, in quotes as well."""
    return escape(charts.visible(str(value), limit))


def figure(
    title: str,
    unit: str,
    lines: Sequence[Line],
    x: Axis,
    y: Axis,
    server: object,
    *,
    tips: Iterable[Tip] = (),
    kind: str = "",
) -> str:
    """A chart with its title, unit and, of lines that have one, names; ``server`` is any text."""
    keys = "".join(
        f' <span class="line-{at}">{escape(line.name)}</span>'
        for at, line in enumerate(lines)
        if line.name
    )
    drawn = charts.chart(lines, x, y, label=f"{title} of {server}", tips=tips)
    return (
        f'<figure class="{kind}"><figcaption><strong>{title}</strong> <small>{unit}</small>'
        f'<span class="key">{keys}</span></figcaption>\n{drawn}</figure>\n'
    )


def section(title: str, content: str) -> str:
    """HTML with a heading."""
    return f"<section><h2>{title}</h2>\n{content}</section>\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML; the first of a row is its name, the others are numbers."""
    heads = "".join(f'<th scope="col">{each}</th>' for each in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(f"<td>{each}</td>" for each in row[1:])
        + "</tr>\n"
        for row in rows
    )
    return (
        f'<div class="wide"><table class="numbers"><thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{body}</tbody></table></div>\n"
    )


def pairs(rows: Iterable[tuple[str, str]]) -> str:
    """Names beside values, both HTML."""
    body = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>\n" for name, value in rows)
    return f'<dl class="pairs">\n{body}</dl>\n'

"""Charts for the HTML report: lines over an axis, drawn by pygal, styled by the page's CSS.

pygal lays the chart out; what it adds for a browser of its own (scripts, style
sheets, comments, ids) is taken away again, so that an SVG is only shapes, text
and class names. Axes are made here: pygal's logarithmic ones drop points and
choose their own labels, so values come as logarithms with labels to match.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from xml.etree import ElementTree as ET

WIDTH: Final = 560
HEIGHT: Final = 250
"""Of a chart, in units that are pixels on a wide screen."""
_MARGIN: Final = 0.02
"""The share of its range that pygal leaves free on either side of an axis."""
_LABEL: Final = 8
"""Characters to which labels of the y axis are filled up, so that charts below each
other have their time axes in line."""
_SVG: Final = "{http://www.w3.org/2000/svg}"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a chart: its name, and points from left to right; None is a gap."""

    name: str
    points: Sequence[tuple[float, float | None]]


@dataclass(frozen=True, slots=True)
class Axis:
    """From where to where, the labels with their positions, and what stands below them."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    title: str = ""


@dataclass(frozen=True, slots=True)
class Tip:
    """What a browser shows while the pointer is between two positions of the x axis."""

    left: float
    right: float
    text: str


def visible(text: str, limit: int = 300) -> str:
    r"""Text of any origin as people can see it: nothing invisible, and not without end.

    It still has to be escaped.

    >>> visible("a\x00b\u202ec")
    'a\\x00b\\u202ec'
    >>> visible("x" * 500, limit=3)
    'xxx...'
    """
    shown = text[:limit]
    if not shown.isprintable():
        shown = "".join(
            each if each.isprintable() else each.encode("unicode_escape").decode() for each in shown
        )
    return shown + ("..." if len(text) > limit else "")


def chart(lines: Iterable[Line], x: Axis, y: Axis, *, label: str, tips: Iterable[Tip] = ()) -> str:
    """The lines as an ``<svg>`` to stand in a page; ``label`` says what it shows.

    >>> axis = linear_axis(10, "{:g}".format)
    >>> chart([Line("a", [(0, 1), (5, 10)])], axis, axis, label="a<b")[:57]
    '<svg viewBox="0 0 560 250" role="img" aria-label="a&lt;b"'
    """
    root = _drawn(lines, x, y)
    svg = ET.Element(
        "svg",
        {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img", "aria-label": visible(label)},
    )
    graph = next(each for each in root if each.get("class", "").startswith("graph"))
    plot = next(each for each in graph if each.get("class") == "plot")
    for each in (plot, next(each for each in graph if each.get("class") == "titles")):
        svg.append(_bare(each))
    _add_tips(svg, plot, x, tips)
    return ET.tostring(svg, encoding="unicode")


def load_pygal() -> tuple[Any, Any]:
    """pygal and the class of its styles; loaded late, since most runs do without."""
    import pygal  # type: ignore[import-untyped]  # ships no types
    from pygal.style import Style  # type: ignore[import-untyped]  # the same

    # It leaves a finder for its maps behind, of a kind that Python 3.11 warns of at every
    # later import and newer ones ignore.
    sys.meta_path[:] = [each for each in sys.meta_path if type(each).__module__ != "pygal"]
    return pygal, Style


def _drawn(lines: Iterable[Line], x: Axis, y: Axis) -> ET.Element:
    """What pygal makes of it."""
    pygal, style_of = load_pygal()
    figure = pygal.XY(
        js=[],
        css=[],
        style=style_of(label_font_size=12, title_font_size=12),
        disable_xml_declaration=True,
        width=WIDTH,
        height=HEIGHT,
        margin=0,
        margin_top=8,
        margin_right=14,
        margin_bottom=8,
        spacing=8,
        show_legend=False,
        show_dots=False,
        show_x_guides=True,
        allow_interruptions=True,
        truncate_label=-1,
        xrange=(x.low, x.high),
        range=(y.low, y.high),
        x_title=visible(x.title),
    )
    figure.x_labels = [{"value": at, "label": visible(text)} for at, text in x.ticks]
    figure.y_labels = [{"value": at, "label": visible(text).rjust(_LABEL)} for at, text in y.ticks]
    for line in lines:
        figure.add(None, _with_dots(line.points))  # the page names them, beside the chart
    # Read again, as pygal may use lxml, and the parser leaves its comments out.
    return ET.fromstring(figure.render())


def _with_dots(
    points: Sequence[tuple[float, float | None]],
) -> list[tuple[float, float | None]]:
    """Points with those that have no neighbour twice: a line to itself is a dot."""
    shown: list[tuple[float, float | None]] = []
    for at, (x, y) in enumerate(points):
        shown.append((x, y))
        before = points[at - 1][1] if at else None
        after = points[at + 1][1] if at + 1 < len(points) else None
        if y is not None and before is None and after is None:
            shown.append((x, y))
    return shown


def _bare(element: ET.Element) -> ET.Element:
    """An element without what only pygal's own scripts use."""
    bare = ET.Element(element.tag.removeprefix(_SVG))
    for name, value in sorted(element.attrib.items()):  # class before d
        if name == "d":
            bare.set(name, _rounded(value))
            start, _, end = bare.get("d", "")[1:].partition(" L")
            if start == end:
                bare.set("class", "dot")
        elif name in ("class", "x", "y", "width", "height", "transform") and value:
            bare.set(name, value if name in ("class", "transform") else f"{float(value):.1f}")
    if element.text:
        bare.text = element.text.strip()
    for child in element:
        tag = child.tag.removeprefix(_SVG)
        # A title here is the raw value of a label's position.
        if tag in ("path", "text", "rect") or (tag == "g" and (len(child) or child.text)):
            bare.append(_bare(child))
    return bare


def _rounded(path: str) -> str:
    """A path in tenths of a pixel, which is half its size.

    >>> _rounded("M0.000000 214.068 h639.600000")
    'M0.0 214.1 h639.6'
    """
    parts = []
    for part in path.split():
        letter, number = (part[0], part[1:]) if part[0].isalpha() else ("", part)
        parts.append(f"{letter}{float(number):.1f}" if number else letter)
    return " ".join(parts)


def _add_tips(svg: ET.Element, plot: ET.Element, x: Axis, tips: Iterable[Tip]) -> None:
    background = next(each for each in plot if each.get("class") == "background")
    width, height = float(background.get("width", 0)), background.get("height", "0")
    low = x.low - _MARGIN * (x.high - x.low)
    scale = width / ((1 + 2 * _MARGIN) * (x.high - x.low))
    group = ET.SubElement(svg, "g", {"class": "tips", "transform": plot.get("transform", "")})
    for tip in tips:
        place = {"x": f"{(tip.left - low) * scale:.1f}", "y": "0", "height": height}
        place["width"] = f"{(tip.right - tip.left) * scale:.1f}"
        rect = ET.SubElement(group, "rect", place)
        ET.SubElement(rect, "title").text = visible(tip.text)


def linear_axis(most: float, label: Callable[[float], str], *, whole: bool = False) -> Axis:
    """From 0 to a round number that is at least ``most``; ``whole`` has no label between integers.

    >>> linear_axis(86_103, "{:,.0f}".format).ticks[-1]
    (100000.0, '100,000')
    >>> [label for _, label in linear_axis(2, "{:g}".format, whole=True).ticks]
    ['0', '1', '2']
    """
    step = nice_step(max(most, 1e-9), 5)
    if whole:
        step = max(1.0, step)
    count = max(1, math.ceil(most / step - 1e-9))
    ticks = [round(at * step, 9) for at in range(count + 1)]
    return Axis(0.0, ticks[-1], [(at, label(at)) for at in ticks])


def nice_step(span: float, most: int, steps: Sequence[float] = (1, 2, 5, 10)) -> float:
    """The least round distance of which ``span`` holds at most so many.

    >>> nice_step(30, 5), nice_step(24, 6, (1, 2, 3, 4, 6, 10))
    (10.0, 4.0)
    """
    size = 10.0 ** math.floor(math.log10(span / most))
    return next(each * size for each in steps if each * size * most >= span * (1 - 1e-9))


def time_axis(seconds: float) -> Axis:
    """The measured time, from 0, in a unit that suits it.

    >>> time_axis(86_400).ticks[1], time_axis(86_400).title
    ((14400.0, '4'), 'hours measured')
    >>> time_axis(30).ticks[1], time_axis(30).title
    ((5.0, '5'), 'seconds measured')
    """
    size, unit = next(
        (size, unit)
        for size, unit, until in (
            (1.0, "seconds", 300.0),
            (60.0, "minutes", 3 * 3600.0),
            (3600.0, "hours", math.inf),
        )
        if seconds <= until
    )
    span = max(seconds, 1e-3) / size
    step = nice_step(span, 6, (1, 2, 3, 4, 6, 10) if unit == "hours" else (1, 2, 5, 10))
    ticks = [at * step for at in range(int(span / step + 1e-9) + 1)]
    labels = [(at * size, f"{at:,.6g}") for at in ticks]
    return Axis(0.0, span * size, labels, f"{unit} measured")


def log_time_axis(least: float, most: float) -> Axis:
    """Nanoseconds as their logarithms, with labels such as ``2 ms``.

    >>> [label for _, label in log_time_axis(900_000, 9_000_000).ticks]
    ['500 us', '1 ms', '2 ms', '5 ms', '10 ms']
    """
    least, most = max(1.0, least), max(1.0, most)
    decades = range(int(math.log10(least)), math.ceil(math.log10(most)) + 2)
    marks = [digit * 10**decade for decade in decades for digit in (1, 2, 5)]
    low = max(mark for mark in marks if mark <= least)
    high = min(mark for mark in marks if mark >= most and mark > low)
    ticks = [mark for mark in marks if low <= mark <= high]
    if len(ticks) > 7:
        ticks = [mark for mark in ticks if str(mark)[0] == "1"]
    return Axis(math.log10(low), math.log10(high), [(math.log10(at), _short(at)) for at in ticks])


def percentile_axis(count: int) -> Axis:
    """``1 / (1 - p)`` as its logarithm, up to the last of so many values.

    >>> [label for _, label in percentile_axis(2000).ticks]
    ['50 %', '90 %', '99 %', '99.9 %']
    """
    high = max(1.0, math.log10(max(1, count)))
    ticks = [(math.log10(2), "50 %"), (1.0, "90 %")]
    ticks += [
        (float(nines), "99" + "." * (nines > 2) + "9" * (nines - 2) + " %")
        for nines in range(2, int(high + 1e-9) + 1)
    ]
    return Axis(0.0, high, ticks, "percentile, on a logarithmic scale of 1 / (1 - p)")


def _short(nanoseconds: int) -> str:
    size, unit = next(
        (size, unit)
        for size, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "us"), (1, "ns"))
        if nanoseconds >= size
    )
    return f"{nanoseconds / size:,g} {unit}"

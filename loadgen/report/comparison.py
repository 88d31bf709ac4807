"""A comparison of runs, for people (80 columns) and for programs (``loadgen-compare/1``)."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any, Final

from loadgen.compare import Comparison, Document, Finding, Kind, Row
from loadgen.intervals import Interval
from nbnet import __version__
from nbnet.notation import format_duration

_WIDTH: Final = 80


def table(comparison: Comparison, a: str, b: str) -> str:
    """The comparison as text, without a newline at the end; what it comes to stands last.

    Args:
        a, b: what was compared, for people.
    """
    lines = [
        *_wrapped(f"A  {a}{_spread(comparison.deciding, comparison.runs_a, 'a')}", "   "),
        *_wrapped(f"B  {b}{_spread(comparison.deciding, comparison.runs_b, 'b')}", "   "),
        "",
        _line("", "A", "B", "B against A", ""),
        *(
            _line(
                row.figure.label,
                _value(row, row.a),
                _value(row, row.b),
                _change(row),
                row.finding if row.change else "",
            )
            for row in comparison.rows
        ),
    ]
    for note in comparison.notes:
        lines += ["", *textwrap.wrap(note, _WIDTH)]
    return "\n".join([*lines, "", *textwrap.wrap(conclusion(comparison), _WIDTH)])


def conclusion(comparison: Comparison) -> str:
    """What it comes to, in a sentence: of B, by the figure that decides."""
    row, found = comparison.deciding, comparison.finding
    if row.change is None:
        return f"NO DIFFERENCE SHOWN: {row.figure.label} was not measured on both sides"
    head = found.upper() if found is Finding.NOTHING else f"B IS {found.upper()}"
    if row.figure.kind is Kind.SHARE and found is not Finding.NOTHING:
        head = f"B HAS {found.upper()} ERRORS"
    said = f"{head}: {row.figure.label} {_change(row)}"
    if row.change.confidence:
        said += f" with {100 * row.change.confidence:.3g} % confidence"
    errors = next(each for each in comparison.rows if each.figure.kind is Kind.SHARE)
    if errors is not row and errors.finding is not Finding.NOTHING:
        said += f"; and {errors.finding} of its requests failed"
    return said


def document(
    comparison: Comparison, a: Sequence[Document], b: Sequence[Document], names: Sequence[str]
) -> dict[str, Any]:
    """The comparison as JSON values, with all runs; what is infinite is null."""
    return {
        "schema": "loadgen-compare/1",
        "version": __version__,
        "method": str(comparison.method),
        "confidence": comparison.confidence,
        "floor": comparison.floor,
        "figures": {
            row.figure.name: {
                "kind": row.figure.kind.value,
                "a": _interval(row.a),
                "b": _interval(row.b),
                "difference" if row.figure.kind is Kind.SHARE else "ratio": _interval(row.change),
                "finding": str(row.finding),
            }
            for row in comparison.rows
        },
        "decided_by": comparison.deciding.figure.name,
        "finding": str(comparison.finding),
        "notes": list(comparison.notes),
        "a": {"name": names[0], "runs": list(a)},
        "b": {"name": names[1], "runs": list(b)},
    }


def shown(kind: Kind, value: float) -> str:
    """A figure for people.

    >>> shown(Kind.RATE, 86103.4), shown(Kind.TIME, 0.114), shown(Kind.SHARE, 0.0123)
    ('86,103', '114 ms', '1.23 %')
    """
    if math.isinf(value):
        return "-"
    if kind is Kind.RATE:
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    if kind is Kind.TIME:
        return format_duration(value)
    return f"{100 * value:.3g} %"


def _interval(interval: Interval | None) -> dict[str, float | None] | None:
    if interval is None:
        return None
    names = ("middle", "low", "high", "confidence")
    return {
        name: value if math.isfinite(value) else None
        for name, value in zip(names, interval, strict=True)
    }


def _line(label: str, a: str, b: str, change: str, finding: str) -> str:
    return f"{label:<13}{a:>9}{b:>10}  {change:<26} {finding}".rstrip()


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def _spread(row: Row, runs: int, side: str) -> str:
    """How many runs there are, and where the true median of what decides lies."""
    said = f": {runs:,} run{'s' if runs > 1 else ''}"
    interval = row.a if side == "a" else row.b
    if interval is None or runs == 1 or math.isinf(interval.middle):
        return said
    low, high = shown(row.figure.kind, interval.low), shown(row.figure.kind, interval.high)
    return f"{said}, {row.figure.label} {low} to {high}"


def _value(row: Row, interval: Interval | None) -> str:
    return "-" if interval is None else shown(row.figure.kind, interval.middle)


def _change(row: Row) -> str:
    """``+1.2 % (-3.4 to +5.6)``; of errors, in percentage points."""
    change = row.change
    if change is None:
        return "-"
    base = 0.0 if row.figure.kind is Kind.SHARE else 1.0
    middle, low, high = (_signed(each - base) for each in change[:3])
    if change.confidence == 0:
        return f"{middle} %"
    return f"{middle} % ({low} to {high})"


def _signed(share: float) -> str:
    """Per cent with their sign, of three digits or fewer.

    >>> _signed(0.0123), _signed(-0.5), _signed(0.0), _signed(12.0)
    ('+1.2', '-50.0', '0', '+1200')
    """
    if math.isinf(share):
        return "+inf"
    percent = 100 * share
    if round(percent, 1) == 0 and abs(percent) < 0.005:
        return "0"
    places = 2 if abs(percent) < 0.095 else 1 if abs(percent) < 99.95 else 0
    return f"{percent:+.{places}f}"

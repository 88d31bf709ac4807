"""Runs of one plan, time after time: how much they differ, for people and for programs.

For programs: schema ``loadgen-repeat/1``, which has the document of each run.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any, Final

from loadgen.compare import CONFIDENCE, FIGURES
from loadgen.intervals import of_median
from loadgen.report import Run
from loadgen.report import json as json_report
from loadgen.report.comparison import shown
from nbnet import __version__

_WIDTH: Final = 80
_EACH: Final = [
    figure for figure in FIGURES if figure.name in ("rate", "p50", "p99", "p99.9", "errors")
]
"""Figures that the line of a run has."""
_COLUMNS: Final = ("median", "lowest", "highest", "apart")


def head() -> str:
    """What stands over the lines of runs."""
    return f"{'run':<6}" + "".join(f"{figure.label:>14}" for figure in _EACH)


def line(number: int, run: Run) -> str:
    """A run."""
    document = json_report.document(run)
    values = [(figure.kind, figure.of(document)) for figure in _EACH]
    cells = ["-" if value is None else shown(kind, value) for kind, value in values]
    return f"{number:<6}" + "".join(f"{cell:>14}" for cell in cells)


def spread(runs: Sequence[Run]) -> str:
    """The median of each figure, how far the runs lie apart, and how they ended."""
    documents = [json_report.document(run) for run in runs]
    lines = [f"{len(runs)} runs".ljust(14) + "".join(f"{name:>12}" for name in _COLUMNS)]
    for figure in FIGURES:
        found = [value for value in map(figure.of, documents) if value is not None]
        values = [value for value in found if math.isfinite(value)]
        if not values or (figure.name == "service-p99" and not runs[0].plan.is_open_loop):
            continue
        median = of_median(values, CONFIDENCE).middle
        apart = max(values) - min(values)
        cells = [shown(figure.kind, each) for each in (median, min(values), max(values))]
        # In parts of the median, as everybody's own scale.
        cells.append(f"{100 * apart / median:.1f} %" if median else "-")
        lines.append(f"{figure.label:<14}" + "".join(f"{cell:>12}" for cell in cells))
    # A note may have figures of its own: one of a kind is enough.
    notes = {note.partition(":")[0]: note for run in reversed(runs) for note in run.notes}
    for kind, note in notes.items():
        times = sum(each.startswith(f"{kind}:") for run in runs for each in run.notes)
        of = f" ({times} of {len(runs)} runs)" if times < len(runs) else ""
        lines += ["", *textwrap.wrap(f"{note}{of}", _WIDTH)]
    return "\n".join([*lines, "", *textwrap.wrap(_verdict(runs), _WIDTH)])


def _verdict(runs: Sequence[Run]) -> str:
    """The worst of them."""
    worst = max(runs, key=lambda run: run.verdict.exit_code).verdict
    bad = sum(run.verdict.exit_code != 0 for run in runs)
    return worst.text if bad in (0, len(runs)) else f"{worst.text} ({bad} of {len(runs)} runs)"


def document(runs: Sequence[Run]) -> dict[str, Any]:
    """All runs as JSON values."""
    return {
        "schema": "loadgen-repeat/1",
        "version": __version__,
        "runs": [json_report.document(run) for run in runs],
    }

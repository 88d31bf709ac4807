"""The parts of pages that are made from the code: by which function each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from manual import docstrings, options, tables
from manual.pages import PAGES, fill, generated_in

PARTS: Final[dict[str, Callable[[], str]]] = {
    **{f"cli:{program}": partial(options.command_pages, program) for program in options.APPS},
    **{
        f"api:{module}": partial(docstrings.module_page, module)
        for module in ("nbnet", "nbclient", "nbclient.testing")
    },
    "api:fixture": docstrings.fixture_page,
    "limits": tables.limits,
    "metrics:nbnet": tables.server_metrics,
    "metrics:loadgen": tables.load_metrics,
    "states:diagram": tables.state_diagram,
    "states:table": tables.state_table,
    "states:events": tables.event_table,
    "thresholds": tables.thresholds,
    "thresholds:times": tables.threshold_times,
    "json:keys": tables.json_keys,
    "json:shared": tables.json_shared,
}


def current(text: str) -> str:
    """A page with these parts as they have to be."""
    for name in generated_in(text):
        text = fill(text, name, PARTS[name]())
    return text


def stale() -> Iterator[tuple[Path, str]]:
    """The pages that are not current, and what they have to be."""
    for path in PAGES:
        text = path.read_text("utf-8")
        due = current(text)
        if text != due:
            yield path, due

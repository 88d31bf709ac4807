"""What the commands beside the field have in common: options of time, and of files to write."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from results import Results, as_json, chart, described, fill, markdown, show


def add_timing(parser: argparse.ArgumentParser, *, rounds: int, seconds: float) -> None:
    """How long, how often, in which order."""
    parser.add_argument("--quick", action="store_true", help="fewer loads")
    parser.add_argument(
        "--rounds", type=int, default=rounds, help="%(default)s; 6 or more for intervals of 95 %%"
    )
    parser.add_argument("--seconds", type=float, default=seconds, help="of each (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the order within rounds")


def timing(options: argparse.Namespace) -> dict[str, Any]:
    """The same as arguments."""
    return {name: getattr(options, name) for name in ("rounds", "seconds", "seed")}


def add_files(parser: argparse.ArgumentParser) -> None:
    """Where to write what was found."""
    parser.add_argument(
        "--markdown",
        type=Path,
        metavar="FILE",
        help="put the tables between their marks in this page",
    )
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the first table")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value")


def write(
    options: argparse.Namespace, found: Sequence[Results], machine: Mapping[str, str]
) -> None:
    """Print it, and write the files that were asked for."""
    for each in found:
        show(each)
    print(f"\n{described(machine)}")
    if options.markdown is not None:
        write_page(options.markdown, found, machine)
    if options.svg is not None:
        chart(found[0], options.svg)
    if options.json is not None:
        options.json.write_text(as_json(found, machine))


def write_page(page: Path, found: Sequence[Results], machine: Mapping[str, str]) -> None:
    """Put the tables, and what they were measured on, between their marks."""
    for number, each in enumerate(found):
        text = markdown(each)
        fill(page, each.name, text if number else f"{described(machine)}\n\n{text}")

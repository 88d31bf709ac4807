"""All of it beside the field: servers, load generators, clients.

    python benchmarks/field.py [--quick] [--write docs]

Runs ``field_servers.py``, ``field_loaders.py`` and ``field_clients.py`` one after the
other, each with its own rounds and times, in about 25 minutes on two processors. With
``--write`` the tables in ``performance.md`` of that directory are replaced, and its
charts and ``performance.json``, every value measured, are written beside it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import field_clients
import field_loaders
import field_servers
import reports
from environment import add_options, machine, prepare
from results import FEWEST_ROUNDS, as_json, chart, described, show

CHARTED = ("servers", "loaders", "clients", "async-clients")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    reports.add_timing(parser, rounds=FEWEST_ROUNDS, seconds=1.2)
    add_options(parser)
    parser.add_argument("--write", type=Path, metavar="DIRECTORY", help="where to write the page")
    options = parser.parse_args()
    environment = prepare(options.environment, install=not options.no_install)
    timing: dict[str, Any] = reports.timing(options)
    quick = options.quick
    servers, loaders = field_servers, field_loaders
    found = []
    for part in (
        servers.run(
            environment,
            servers.contenders(environment),
            servers.QUICK if quick else servers.LOADS,
            servers.IDLE,
            **timing,
        ),
        loaders.run(
            environment,
            loaders.contenders(environment),
            loaders.QUICK if quick else loaders.LOADS,
            **timing,
        ),
        field_clients.run(environment, quick=quick, **timing),
    ):
        for each in part:
            show(each)
        found += part
    about = machine(environment)
    print(f"\n{described(about)}")
    if options.write is not None:
        reports.write_page(options.write / "performance.md", found, about)
        for each in found:
            if each.name in CHARTED:
                chart(each, options.write / f"performance-{each.name}.svg")
        (options.write / "performance.json").write_text(as_json(found, about) + "\n")


if __name__ == "__main__":
    main()

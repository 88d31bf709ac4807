"""Change the code in every small way that mutmut knows, and see which changes no test finds.

    scripts/mutation [MODULE...]      # framing, connection, states, exchange, pipeline

Needs ``pip install 'mutmut>=3.8'``. Works in a copy of the tree, with a process a core, and plays
each mutant against the tests named in ``targets.py``: the first that fails, or takes many
times as long as it should, has found it. Entries of the tables in ``nbnet.states``, which
mutmut does not touch, are left out and sent elsewhere one by one.

Prints the survivors with their changes, then a line for each module: mutants, found,
score, and of the survivors those that ``equivalent.toml`` knows as no bugs, with the reason.
The exit code is 1 if a survivor is not known, or one that is known is no more.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from mutation.known import Known, read_known
from mutation.playing import Outcome, play
from mutation.tables import play_tables
from mutation.targets import TARGETS


def main(arguments: list[str] | None = None) -> int:
    """Run the command; its exit code."""
    parser = argparse.ArgumentParser(
        prog="scripts/mutation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    if unknown := set(options.modules) - set(TARGETS):
        parser.error(f"no such module: {', '.join(sorted(unknown))}")
    known = read_known()
    outcomes = []
    for name in options.modules or TARGETS:
        target = TARGETS[name]
        with tempfile.TemporaryDirectory(prefix="mutation-") as place:
            playing = play_tables if target.tables else play
            outcomes.append(playing(name, target, Path(place), options.processes))
        _tell_survivors(outcomes[-1], known)
    heads = ("mutants", "found", "by time", "score", "equivalent", "left")
    print("module      " + "".join(f"{head:>12}" for head in heads))
    for outcome in outcomes:
        equivalent = len([each for each in outcome.survivors if known.why(each)])
        figures = (
            f"{outcome.mutants:,}",
            f"{outcome.found:,}",
            f"{outcome.out_of_time:,}",
            f"{outcome.found / outcome.mutants:.1%}",
            f"{equivalent:,}",
            f"{len(outcome.survivors) - equivalent:,}",
        )
        print(f"{outcome.name:<12}" + "".join(f"{figure:>12}" for figure in figures))
    gone = known.gone(outcomes)
    for survivor in gone:
        print(f"equivalent.toml: {survivor} is found, or no mutant any more")
    left = [each for outcome in outcomes for each in outcome.survivors if not known.why(each)]
    return 1 if left or gone else 0


def _tell_survivors(outcome: Outcome, known: Known) -> None:
    for survivor in outcome.survivors:
        why = known.why(survivor)
        print(f"{'equivalent' if why else 'SURVIVED'} {survivor}")
        if why:
            print(f"    {why}")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

"""Mutants of the tables in ``nbnet.states``, which mutmut leaves alone: it changes functions.

Each move is left out, and each leads to another state; each interest is taken out of a state's
mask or into it; each state is taken out of a set or into it. A mutant is played in a process of
its own, which is told its number::

    PYTHONPATH=tests python -m mutation.tables 17 tests/nbnet/test_states.py
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

# Nothing that takes a table over by name may be imported here.
from mutation.known import Survivor
from mutation.playing import TEST_OPTIONS, Outcome, copy_tree
from mutation.targets import Target
from nbnet import states
from nbnet.pollers import READ, WRITE
from nbnet.states import INTEREST, MOVABLE, READS, TRANSITIONS, State

LONGEST = 600.0
"""Seconds that the tests may take."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A change to a table: in which, of what to what, and what does it in this process."""

    table: str
    old: str
    new: str
    apply: Callable[[], object]


def mutants() -> Iterator[Mutant]:
    """All of them, in the order of the tables."""
    for (before, event), after in TRANSITIONS.items():
        pair = before, event
        old = f"({before}, {event}): {after},"
        yield Mutant("TRANSITIONS", old, "", partial(TRANSITIONS.pop, pair))
        # CLOSED is where most end, which says little of one that leads there already.
        other = State.CLOSED if after is not State.CLOSED else State.READING
        new = f"({before}, {event}): {other},"
        yield Mutant("TRANSITIONS", old, new, partial(TRANSITIONS.__setitem__, pair, other))
    for state, mask in INTEREST.items():
        for bit in (READ, WRITE):
            change = partial(INTEREST.__setitem__, state, mask ^ bit)
            yield Mutant("INTEREST", f"{state}: {mask},", f"{state}: {mask ^ bit},", change)
    for name, members in (("READS", READS), ("MOVABLE", MOVABLE)):
        for state in State:
            old, new = (str(state), "") if state in members else ("", str(state))
            yield Mutant(name, old, new, partial(setattr, states, name, members ^ {state}))


def play_tables(name: str, target: Target, place: Path, processes: int) -> Outcome:
    """Play all mutants of the tables; ``place`` is an empty directory."""
    copy_tree(place)
    all_mutants = list(mutants())

    def lives(number: int) -> bool | None:
        command = [sys.executable, "-m", "mutation.tables", str(number), *target.tests]
        environment = {"PYTHONPATH": "tests:.", "PATH": ""}
        try:
            done = subprocess.run(
                command, cwd=place, env=environment, capture_output=True, timeout=LONGEST
            )
        except subprocess.TimeoutExpired:
            return None
        return done.returncode == 0

    if not lives(-1):
        raise SystemExit("scripts/mutation: the tests fail without any mutant")
    with ThreadPoolExecutor(processes) as pool:
        alive = list(pool.map(lives, range(len(all_mutants))))
    survivors = [
        Survivor(name, mutant.table, mutant.old, mutant.new)
        for mutant, lived in zip(all_mutants, alive, strict=True)
        if lived
    ]
    return Outcome(name, len(all_mutants), alive.count(None), survivors)


def main() -> int:
    """Play the mutant of the number given, -1 for none, in this process."""
    number, *tests = sys.argv[1:]
    if int(number) >= 0:
        [mutant] = islice(mutants(), int(number), int(number) + 1)
        mutant.apply()
    import pytest

    # The tables had to be changed before pytest could rewrite the package's assertions.
    quiet = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
    return int(pytest.main([*TEST_OPTIONS, *quiet, "-x", "-q", *tests]))


if __name__ == "__main__":
    sys.exit(main())

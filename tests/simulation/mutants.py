"""Deliberate bugs, each of which the simulation has to find within its number of seeds.

They are data (``mutants.toml``) and shown to be found by a command::

    PYTHONPATH=tests .venv/bin/python -m simulation.mutants            # all
    PYTHONPATH=tests .venv/bin/python -m simulation.mutants close-at-once

Each is played in a process of its own, in which the module is compiled from its
changed source. A line tells at which seed it was found, and by what; the exit code is
1 if one was not. A mutant whose text is not in the module once is an error: the
code has moved on, and the mutant has to follow.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.machinery
import importlib.util
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

FILE = Path(__file__).with_name("mutants.toml")
TESTS = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Mutant:
    """A bug: what is replaced by what, and where it has to show."""

    name: str
    why: str
    module: str
    old: str
    new: str
    world: str
    seeds: int

    def apply(self, source: str) -> str:
        """The source with the bug.

        Raises:
            ValueError: what is to be replaced does not stand there once.
        """
        found = source.count(self.old)
        if found != 1:
            raise ValueError(f"mutant {self.name}: its text is {found} times in {self.module}")
        return source.replace(self.old, self.new)


class _MutantLoader(SourceFileLoader):
    """Compiles a module from its changed source, past all caches."""

    mutant: Mutant

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        source = self.mutant.apply(Path(path).read_text(encoding="utf-8"))
        return compile(source, path, "exec")


class _MutantFinder(importlib.abc.MetaPathFinder):
    """Finds the one module that is changed."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname != self._mutant.module:
            return None
        found = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        assert found is not None
        assert found.origin is not None
        loader = _MutantLoader(fullname, found.origin)
        loader.mutant = self._mutant
        return importlib.util.spec_from_file_location(fullname, found.origin, loader=loader)


def mutants() -> dict[str, Mutant]:
    """All of them by name."""
    data = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return {name: Mutant(name=name, **values) for name, values in data.items()}


def hunt(mutant: Mutant) -> str | None:
    """Play seeds until the bug shows, in this process, which is spoilt afterwards.

    Returns:
        What was seen first; None if nothing was.
    """
    sys.meta_path.insert(0, _MutantFinder(mutant))
    from simulation.kernel import SimulationFailure
    from simulation.runs import run_seed

    for seed in range(mutant.seeds):
        try:
            run_seed(mutant.world, seed)
        except SimulationFailure as failure:
            return str(failure).partition("\n")[0]
    return None


def play(mutant: Mutant) -> tuple[bool, str]:
    """Hunt in a process of its own; whether it was found, and what was said."""
    command = [sys.executable, "-m", "simulation.mutants", "--here", mutant.name]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr or done.stdout)
    return done.returncode == 0, done.stdout.strip()


def main(arguments: list[str] | None = None) -> int:
    """Hunt those that the arguments name; the exit code."""
    known = mutants()
    parser = argparse.ArgumentParser(prog="simulation.mutants", description="Hunt deliberate bugs.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; without, all")
    parser.add_argument("--here", action="store_true", help="in this process: for one alone")
    options = parser.parse_args(arguments)
    chosen = [known[name] for name in options.names or known]
    if options.here:
        seen = hunt(chosen[0])
        print(seen or f"not found in {chosen[0].seeds} seeds")
        return 0 if seen else 1
    survived = 0
    for mutant in chosen:
        found, said = play(mutant)
        survived += not found
        print(f"{'found   ' if found else 'SURVIVED'} {mutant.name:<34} {said}", flush=True)
    print(f"{len(chosen) - survived} of {len(chosen)} found")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())

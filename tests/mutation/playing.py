"""Playing the mutants of one module, in a copy of the tree."""

from __future__ import annotations

import ast
import json
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mutation.known import Survivor
from mutation.targets import Target

ROOT: Final = Path(__file__).parents[2]
MEMORY: Final = 4 * 1024**3
"""Bytes of address space of a process: some mutants never stop collecting."""

TEST_OPTIONS: Final = ("-p", "mutation.plugin", "-p", "no:cacheprovider")
MUTMUT: Final = (sys.executable, "-c", "from mutmut.__main__ import cli; cli()")
SETTINGS: Final = """\
[mutmut]
source_paths =
    nbnet
    nbclient
    loadgen
only_mutate =
    {module}
pytest_add_cli_args =
    {options}
pytest_add_cli_args_test_selection =
    {tests}
timeout_multiplier = 30.0
"""

# What mutmut makes of how the tests of a mutant ended: nothing failed, or none was played.
_SURVIVED: Final = (None, 0, 5, 33)
# Killed by a limit, or by mutmut's clock.
_OUT_OF_TIME: Final = (36, 24, -24, 152, 255, -9)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the mutants of a module.

    Attributes:
        name: of the target.
        mutants: how many there are.
        out_of_time: how many were found because the tests took too long.
        survivors: those that no test found.
    """

    name: str
    mutants: int
    out_of_time: int
    survivors: list[Survivor]

    @property
    def found(self) -> int:
        """How many were found."""
        return self.mutants - len(self.survivors)


def play(name: str, target: Target, place: Path, processes: int) -> Outcome:
    """Play all mutants that mutmut makes of a module; ``place`` is an empty directory.

    Raises:
        SystemExit: mutmut cannot be run, or a test fails without any mutant.
    """
    copy_tree(place)
    source = place / target.module
    source.write_text(without_property_decorators(source.read_text(encoding="utf-8")))
    settings = SETTINGS.format(
        module=target.module,
        options="\n    ".join(TEST_OPTIONS),
        tests="\n    ".join(target.tests),
    )
    (place / "setup.cfg").write_text(settings)
    done = subprocess.run(
        [*MUTMUT, "run", "--max-children", str(processes)],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=_bound_memory,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout[-5000:]}\nscripts/mutation: mutmut failed, see above")
    meta = place / "mutants" / f"{target.module}.meta"
    codes: dict[str, int | None] = json.loads(meta.read_text())["exit_code_by_key"]
    survivors = [
        _survivor(name, mutant, place) for mutant, code in codes.items() if code in _SURVIVED
    ]
    out_of_time = sum(code in _OUT_OF_TIME for code in codes.values())
    return Outcome(name, len(codes), out_of_time, survivors)


def without_property_decorators(source: str) -> str:
    """The same with ``name = property(name)`` behind each property, for mutmut to see it.

    It leaves out what is decorated.

    >>> print(without_property_decorators('''class A:
    ...     @property
    ...     def one(self):
    ...         return 1
    ... '''), end="")
    class A:
        def one(self):
            return 1
        one = property(one)
    """
    lines: dict[int, str] = dict(enumerate(source.splitlines(), 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and len(node.decorator_list) == 1:
            [decorator] = node.decorator_list
            if isinstance(decorator, ast.Name) and decorator.id == "property":
                indent = " " * node.col_offset
                assert node.end_lineno is not None
                lines[node.end_lineno] += f"\n{indent}{node.name} = property({node.name})"
                del lines[decorator.lineno]
    return "\n".join(lines.values()) + "\n"


def copy_tree(place: Path) -> None:
    """Put what the tests of a module need into an empty directory."""
    for name in ("nbnet", "nbclient", "loadgen", "tests"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", place)


def _bound_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def _survivor(name: str, mutant: str, place: Path) -> Survivor:
    """What mutmut shows of a mutant: the lines that it changes."""
    shown = subprocess.run(
        [*MUTMUT, "show", mutant], cwd=place, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.splitlines()
    function = mutant.rpartition(".")[2].partition("__mutmut_")[0]
    function = function.removeprefix("x").removeprefix("_").replace("ǁ", ".")
    changes = [line for line in shown if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    old, new = (" ".join(line[1:].strip() for line in changes if line[0] == sign) for sign in "-+")
    return Survivor(name, function.strip("."), old, new)

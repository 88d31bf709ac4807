"""The commands of a page, from the blocks in which they stand."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from manual.options import APPS, known_options
from manual.pages import ROOT, Block

OURS: Final = frozenset(APPS)


@dataclass(frozen=True, slots=True)
class Command:
    """A command line, and what a page shows that it prints; None where it shows nothing."""

    text: str
    shown: str | None

    @property
    def is_server(self) -> bool:
        """Whether it goes on while others run."""
        return bool(re.match(r"(\S*/)?nbnet serve\b", self.text))


def commands_of(block: Block) -> list[Command]:
    """What stands in a block for a shell.

    >>> block = Block("a.md", 1, "console", "$ a \\\\\\n  b\\n1\\n$ c  # why\\n", None)
    >>> commands_of(block)
    [Command(text='a b', shown='1'), Command(text='c', shown='')]
    """
    text = re.sub(r" *\\\n *", " ", block.text)
    if block.language == "console":
        parts = re.split(r"^\$ ", text, flags=re.MULTILINE)
        assert not parts[0].strip(), f"{block.place}: a block begins with what no command printed"
        lines = [part.partition("\n") for part in parts[1:]]
        return [Command(_bare(line), shown.strip("\n")) for line, _, shown in lines]
    return [Command(_bare(line), None) for line in text.splitlines() if _bare(line)]


def commands_in(value: Any) -> Iterator[str]:
    """The commands in a document of YAML: steps of a workflow, what containers run."""
    if isinstance(value, dict):
        run = value.get("run")
        if isinstance(run, str):
            yield from (line for line in re.sub(r"\\\n", " ", run).splitlines() if line.strip())
        words = [*value.get("command", ()), *value.get("args", ())] if "image" in value else []
        if words:
            yield shlex.join(words)
        for each in value.values():
            yield from commands_in(each)
    elif isinstance(value, list):
        for each in value:
            yield from commands_in(each)


def check_options(text: str, place: str) -> None:
    """Every option of our programs and scripts exists, whether or not the command is run."""
    for words in _simple_commands(text):
        words[0] = words[0].rsplit("/", 1)[-1]
        told = [word.partition("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)]
        if words[0] in OURS:
            unknown = set(told) - known_options(words)
            assert not unknown, f"{place}: {words[0]} has no {', '.join(sorted(unknown))}"
        elif words[0].startswith("python") and len(words) > 1:
            _check_script(words[1:], told, place)
        elif words[0] == "pytest":
            for path in (word for word in words[1:] if word.startswith("tests/")):
                assert (ROOT / path).exists(), f"{place}: there is no {path}"


def _check_script(words: list[str], told: list[str], place: str) -> None:
    """A script of the project: its options stand in its text."""
    if any(word.endswith("...") for word in words[:2]):  # any of them
        return
    if words[0].startswith("benchmarks/"):
        sources = [ROOT / words[0]]
    elif words[0] == "-m" and (ROOT / "tests" / words[1].partition(".")[0]).is_dir():
        module = ROOT / "tests" / words[1].replace(".", "/")
        sources = [module / "__main__.py"] if module.is_dir() else [module.with_suffix(".py")]
    else:
        return
    text = sources[0].read_text("utf-8")
    for option in told:
        assert option == "-m" or f'"{option}"' in text, f"{place}: {words} has no {option}"


def _bare(line: str) -> str:
    """A line without its comment."""
    return re.sub(r"(^|\s+)# .*$", "", line).strip()


def _simple_commands(text: str) -> Iterator[list[str]]:
    """The words of each command in a line of them.

    >>> list(_simple_commands("A=1 a 'x|y' | b && c"))
    [['a', 'x|y'], ['b'], ['c']]
    """
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|()")
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word.strip(";&|()"):
            if words or not re.match(r"\w+=", word):
                words.append(word)
        elif words:
            yield words
            words = []

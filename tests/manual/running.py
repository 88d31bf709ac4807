"""What a page shows, done: its commands run, its code executed, its files read.

All of a page happens in one directory of its own, in the order of the page:

* a block of Python is executed; those of a page share their names. A line such as
  ``client.request(b"abc")  # b"cba"`` is checked. One with tests is run by pytest;
* a command has to exit with 0, unless the page shows what it complains of, or its
  code by ``echo $?``; what it prints has to be what the page shows (``likeness``);
* ``nbnet serve`` goes on to the end of the page, on a port of the kernel's choosing,
  which takes the place of the page's in all that follows. Port 6789 has a server
  also where the page starts none; other ports refuse;
* what takes its time is made smaller (``exceptions.INSTEAD``).
"""

from __future__ import annotations

import ast
import configparser
import contextlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import yaml  # type: ignore[import-untyped]  # ships no types
from support.commands import run_here
from support.serving import started

import loadgen.cli
import nbclient.cli
from manual.exceptions import DEFAULT_PORT, INSTEAD
from manual.likeness import alike, masked
from manual.pages import Block
from manual.shell import Command, check_options, commands_in, commands_of
from nbnet import Server
from nbnet.config import read_options
from nbnet.notation import Target

PATIENCE: Final = 300.0
"""Seconds that a command may take on a slow machine."""
_HERE: Final[dict[str, Callable[[], None]]] = {
    "nbclient": nbclient.cli.main,
    "loadgen": loadgen.cli.main,
}
"""Commands that need no process of their own."""
_PORT: Final = re.compile(
    r"""((?:127\.0\.0\.1|localhost)(?:"?, |:))(\d{4,5})\b"""  # also in a tuple
)
_FIXED: Final = re.compile(r"--port[ =](\d+)")


class Running:
    """A page that is being done.

    Args:
        place: the directory in which all of it happens.
        stack: what is to be ended with the page.
    """

    def __init__(self, place: Path, stack: contextlib.ExitStack) -> None:
        self._place = place
        self._stack = stack
        self._names: dict[str, Any] = {"__name__": "page"}
        self._ports: dict[str, int] = {}
        self._code = 0  # of the last command

    def do(self, block: Block, skipped: Callable[[str], bool]) -> None:
        """Do what a block says.

        Args:
            block: the block.
            skipped: whether a command is not to be run; its options are looked at
                all the same.
        """
        if block.file is not None:
            path = (self._place / block.file).resolve()
            inside = path.is_relative_to(self._place.resolve())
            assert inside, f"{block.place}: {block.file} leads out of the page's directory"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self._moved(block.text))
        match block.language:
            case "python":
                self._python(block)
            case "console" | "sh":
                for command in commands_of(block):
                    check_options(command.text, block.place)
                    if not skipped(command.text):
                        self._command(command, block.place)
            case "toml":
                values = tomllib.loads(block.text)
                if block.file is not None:  # else it is an excerpt of something else
                    read_options({}, self._place / block.file)
                assert values
            case "yaml":
                documents = list(yaml.safe_load_all(block.text))
                assert all(documents), block.place
                for text in commands_in(documents):
                    check_options(text, block.place)
            case "json":
                assert json.loads(block.text)
            case "ini":
                parser = configparser.ConfigParser(strict=False)
                parser.optionxform = str  # type: ignore[assignment,method-assign]
                parser.read_string(block.text)
                assert parser.sections(), block.place
            case _:
                raise AssertionError(
                    f"{block.place}: nothing is done with a block of {block.language!r}: "
                    "name it in manual/exceptions.py with the reason, or teach manual/running.py"
                )

    # Python ------------------------------------------------------------------------

    def _python(self, block: Block) -> None:
        text = self._moved(block.text)
        if re.search(r"^(async )?def test_", text, re.MULTILINE):
            self._tests(block, text)
        elif block.file is None:
            lead = "\n" * (block.line - 1)
            self._names["_same"] = _same
            exec(compile(lead + _checking(text), block.page, "exec"), self._names)
        else:
            compile(text, block.file, "exec")  # who imports it, runs it

    def _tests(self, block: Block, text: str) -> None:
        path = self._place / (block.file or "test_page.py")
        path.write_text(text)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", path.name]
        done = self._run(command)
        assert done.returncode == 0, f"{block.place}\n{done.stdout}"
        assert "passed" in done.stdout

    # Commands ------------------------------------------------------------------------

    def _command(self, command: Command, place: str) -> None:
        if command.is_server:
            self._serve(command, place)
            return
        if command.text == "echo $?":
            assert command.shown == str(self._code), f"{place}: it exited with {self._code}"
            return
        text = self._moved(command.text)
        for pattern, smaller in INSTEAD:
            text = re.sub(pattern, smaller, text)
        printed = self._printed(text)
        fine = self._code == 0 or bool(command.shown)
        assert fine, f"{place}: {text}\nexited with {self._code}\n{printed}"
        if command.shown:
            assert alike(command.shown, printed), (
                f"{place}: {text}\nshown:   {masked(command.shown)}\nprinted: {masked(printed)}"
            )

    def _printed(self, text: str) -> str:
        """Run a command; what a terminal would show."""
        words = shlex.split(text, comments=True)
        if not re.search(r"[|&;<>$`]", re.sub(r"'[^']*'", "", text)) and words[0] in _HERE:
            for path in self._place.glob("*.py"):  # of another page, by the same name
                sys.modules.pop(path.stem, None)
            ended = run_here(_HERE[words[0]], *words[1:], environment=self._environment())
            self._code = ended.returncode
            return (ended.stderr + ended.stdout).decode()
        done = self._run(["sh", "-c", text])
        self._code = done.returncode
        return str(done.stdout)

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self._place,
            env={**os.environ, **self._environment()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
        )

    def _environment(self) -> dict[str, str]:
        programs = Path(sys.executable).parent
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        target = f"127.0.0.1:{self._port(DEFAULT_PORT)}"
        return {"PATH": path, "NBNET_TARGET": target, "PYTHONPATH": str(self._place)}

    def _serve(self, command: Command, place: str) -> None:
        """Start a server; what it says is what the page shows."""
        text = command.text.removesuffix("&").strip()
        words = shlex.split(self._elsewhere(text))[1:]
        serving = self._stack.enter_context(
            started(
                [sys.executable, "-m", "nbnet", *words], cwd=self._place, env=self._environment()
            )
        )
        found = _FIXED.search(text)
        if isinstance(serving.address, Target):
            self._ports[found[1] if found else DEFAULT_PORT] = serving.address.port
        lines = (command.shown or "listening on 127.0.0.1:1").splitlines()
        if (metrics := re.search(r"--metrics \S+:(\d+)", text)) is not None:
            line = serving.wait_for("metrics on http://")
            told = re.search(r"http://[^/]*:(\d+)/metrics", line)
            assert told is not None, line
            self._ports[metrics[1]] = int(told[1])
            lines = lines[:1]
        said = [f"listening on {serving.address}", *(serving.line() for _ in lines[1:])]
        assert alike("\n".join(lines), "\n".join(said)), f"{place}: {said}"

    def _elsewhere(self, text: str) -> str:
        """The command line of a server with ports of the kernel's choosing."""
        text = re.sub(r"(--metrics \S+):\d+", r"\1:0", _FIXED.sub("", text))
        return text if "--unix" in text else f"{text} --port 0"

    # Ports ---------------------------------------------------------------------------

    def _moved(self, text: str) -> str:
        """Something of the page with the ports at which its servers really are."""
        return _PORT.sub(lambda found: f"{found[1]}{self._port(found[2])}", text)

    def _port(self, shown: str) -> int:
        if shown not in self._ports:
            if shown == DEFAULT_PORT:
                self._ports[shown] = self._stack.enter_context(Server(port=0)).address[1]
            else:
                bound = self._stack.enter_context(socket.socket())
                bound.bind(("127.0.0.1", 0))  # taken, and nobody listens
                self._ports[shown] = bound.getsockname()[1]
        return self._ports[shown]


def _same(value: object, shown: object) -> None:
    assert value == shown, f"the page shows {shown!r}, but it is {value!r}"


def _checking(text: str) -> str:
    """Code in which what stands in comments is checked.

    >>> _checking("a(1)  # 2\\nb(1)  # a comment\\n")
    '_same(a(1), 2)\\nb(1)  # a comment\\n'
    """

    def checked(found: re.Match[str]) -> str:
        indent, expression, comment = found.groups()
        try:
            ast.literal_eval(comment)
            ast.parse(expression.strip(), mode="eval")
        except (ValueError, SyntaxError):
            return found[0]
        return f"{indent}_same({expression}, {comment})"

    return re.sub(r"^( *)(\S.*?)  # (.+)$", checked, text, flags=re.MULTILINE)

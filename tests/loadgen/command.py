"""The command, called in this process or run as one of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from support.forking import Forked

from loadgen.cli import main

from .processes import children_of

PATIENCE = 30.0
"""Seconds that a process may take on a slow machine."""


@dataclass(frozen=True, slots=True)
class Ended:
    """What the command said and exited with."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The only line on standard error, where nothing stands on standard output."""
        assert self.out == ""
        [line] = self.err.splitlines()
        return line


def call(*arguments: str) -> Ended:
    """Run the command in this process; its engines and its server are processes all the same."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        mock.patch.object(sys, "argv", ["loadgen", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 0
    return Ended(code, out.getvalue(), err.getvalue())


def measure(*arguments: str) -> tuple[int, Any]:
    """Run the command in this process; its exit code and its figures."""
    ended = call(*arguments, "--json", "-")
    assert ended.out, ended.err
    return ended.code, json.loads(ended.out)


@contextlib.contextmanager
def running(*arguments: str, stderr: int = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    """Fork the command, in a session of its own; neither it nor a child of it is left."""
    process = Forked[str](
        [sys.executable, "-m", "loadgen", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            for pid in children_of(process.pid).values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.kill()

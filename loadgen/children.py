"""Child processes of a run: an engine or a server each, never left behind.

A child is a module of this package, run by the same interpreter. It is in a
session of its own, so that Ctrl-C in the terminal reaches the parent alone,
which then ends the run in order; and the kernel kills it when the thread that
started it ends, and so when its parent dies, however that happens.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import IO, Final

from nbnet import machine

STOP_SECONDS: Final = 3.0
"""How long a child may take to end by itself before it is killed."""


def start(module: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Run a module of this package, with pipes to its standard input and output.

    Its ``sys.argv[2:]`` are the arguments.
    """
    return subprocess.Popen(
        # -P: what lies in the current directory is not to be imported.
        [sys.executable, "-P", "-m", module, str(os.getpid()), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )


def reap(child: subprocess.Popen[bytes]) -> None:
    """Let a child end that was told to, or kill it; returns when it is gone."""
    with contextlib.ExitStack() as stack:
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                stack.callback(_close, pipe)
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _close(pipe: IO[bytes]) -> None:
    # What a dead child has not read cannot be flushed to it.
    with contextlib.suppress(BrokenPipeError):
        pipe.close()


def die_with_parent() -> None:
    """Called by a child first of all: be killed when the parent ends.

    ``start`` passes the parent's number as the first argument.
    """
    machine.die_with_parent(int(sys.argv[1]))

"""A command run in this process, where one of its own would add nothing but its start."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TextIO

import pytest


def run_here(
    main: Callable[[], None],
    *arguments: str | bytes,
    stdin: bytes = b"",
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Call what a console script calls; what it printed and its exit code.

    An exception that would end the process with a traceback is raised here. A
    command that forks fails: its child would be one of the tests'.
    """
    words = [os.fsdecode(argument) for argument in arguments]
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with pytest.MonkeyPatch.context() as patch, _fed(stdin) as source, _process_kept():
        for name, value in (environment or {}).items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["command", *words])
        patch.setattr(sys, "stdin", source)
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        patch.setattr(sys, "excepthook", sys.excepthook)  # which typer replaces
        patch.setattr(os, "fork", _not_here)
        code = _exit_code(main)
    return subprocess.CompletedProcess(words, code, _written(out), _written(err))


def _exit_code(main: Callable[[], None]) -> int:
    code: object = None
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    assert code is None or isinstance(code, int)
    return code or 0


def _written(stream: io.TextIOWrapper) -> bytes:
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue()


@contextlib.contextmanager
def _fed(data: bytes) -> Iterator[TextIO]:
    """A pipe from which this can be read, as a shell would make one for a standard input."""
    reading, writing = os.pipe()

    def feed() -> None:
        # The command may have enough before it has all.
        with contextlib.suppress(BrokenPipeError), os.fdopen(writing, "wb", buffering=0) as end:
            rest = memoryview(data)
            while rest:
                rest = rest[end.write(rest) :]

    feeder = threading.Thread(target=feed, name="standard input")
    try:
        with os.fdopen(reading, encoding="utf-8") as source:
            feeder.start()
            yield source
    finally:
        feeder.join()


def _not_here() -> int:
    raise AssertionError("a command that forks is to be tested as a process of its own")


@contextlib.contextmanager
def _process_kept() -> Iterator[None]:
    """Put back what ``nbnet serve`` changes for the rest of its process."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        for number, handler in handlers.items():
            signal.signal(number, handler)

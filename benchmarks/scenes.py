"""What the benchmarks of one server share: ``nbnet serve`` and ``loadgen`` as processes."""

from __future__ import annotations

import contextlib
import json
import math
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nbnet.notation import Target, parse_target

PAGE = resource.getpagesize()
UNEVEN = 8.0
"""Standard deviations by which one worker may get more connections than the mean: the
kernel spreads them over listeners by a hash."""


def processes(connections: int, files: int) -> int:
    """How many processes a side needs, so that none gets more than it may have open.

    >>> processes(10_000, 19_968), processes(1_000_000, 19_968)
    (1, 53)
    """
    count = math.ceil(connections / files)
    while connections / count + UNEVEN * math.sqrt(connections / count) > files and count > 1:
        count += 1
    return count


class Server:
    """A server that runs.

    Attributes:
        process: the supervisor.
        address: where it listens.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stderr is not None
        self._errors = process.stderr
        self.address: Target = parse_target(self._errors.readline().split()[-1])

    def wait_for(self, text: str) -> str:
        """Read what it logs until a line has this text."""
        for line in self._errors:
            if text in line:
                return line
        raise SystemExit(f"the server ended without saying {text!r}")

    def workers(self) -> list[int]:
        """Its worker processes."""
        pid = self.process.pid
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]

    def wait_until_up(self, count: int) -> None:
        """Wait until so many workers have been started."""
        deadline = time.monotonic() + 120
        while len(self.workers()) < count:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the server did not start its workers")
            time.sleep(0.1)

    def memory(self) -> float:
        """Resident memory of the workers, in MiB."""
        pages = 0
        for worker in self.workers():
            pages += int(Path(f"/proc/{worker}/statm").read_text().split()[1])
        return pages * PAGE / (1 << 20)


@contextlib.contextmanager
def serving(*options: str, level: str = "error", files: int | None = None) -> Iterator[Server]:
    """A server in processes of its own, with so many open files allowed."""

    def limit() -> None:
        if files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    with subprocess.Popen(
        [sys.executable, "-m", "nbnet", "serve", "--port", "0", "--log-level", level, *options],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,  # noqa: PLW1509  (there are no threads here)
        cwd=Path(__file__).parent,  # handlers of the benchmarks are found by name
    ) as process:
        try:
            yield Server(process)
        finally:
            process.terminate()


class Load:
    """Verified requests that go on until they are stopped, or for so long."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def stop(self) -> None:
        """Have it end now."""
        self._process.send_signal(signal.SIGINT)

    def result(self) -> Any:
        """What it measured, as loadgen's JSON; waits for the end."""
        return json.loads(self._process.communicate()[0])


@contextlib.contextmanager
def loading(target: Target, conns: int, seconds: float) -> Iterator[Load]:
    """Verified requests on so many connections."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "loadgen", "--target", str(target), "--conns", str(conns)),
            *("--duration", f"{seconds}s", "--json", "-"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield Load(process)
    finally:
        process.kill()
        process.wait()

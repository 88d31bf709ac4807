"""Servers and what loads them, as processes on processors of their own.

Servers run on the first processor, loaders on the last, so that neither takes the time of
the other and the figures of one run can be set beside those of the next.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from environment import LOADER_CORE, SERVER_CORE

from nbnet.machine import die_with_parent

TICKS = os.sysconf("SC_CLK_TCK")
START_WITHIN = 30.0
"""Seconds."""
LOAD_WITHIN = 120.0
"""Seconds after which a loader that has not ended is killed."""


class LoadError(Exception):
    """A loader did not come to a figure: a wrong reply, a lost connection, no reply."""


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def running(command: str | Sequence[str], port: int) -> Iterator[int]:
    """A server on its processor, from when it takes connections; gives its process number.

    Args:
        command: a word of it that is ``{port}`` stands for the port.

    Raises:
        SystemExit: it does not listen.
    """
    words = shlex.split(command) if isinstance(command, str) else command
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [
                "taskset",
                "-c",
                str(SERVER_CORE),
                *(word.replace("{port}", str(port)) for word in words),
            ],
            stdout=subprocess.DEVNULL,
            stderr=said,
            # A benchmark that is killed leaves no server behind.
            preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509
        )
        try:
            deadline = time.monotonic() + START_WITHIN
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except ConnectionRefusedError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        said.seek(0)
                        last = "".join(said.read().splitlines()[-1:])
                        raise SystemExit(
                            f"did not start: {shlex.join(words)}: {last or 'it said nothing'}"
                        ) from None
                    time.sleep(0.05)
            yield process.pid
        finally:
            process.kill()
            process.wait()


def tree(pid: int) -> list[int]:
    """A process, its children and theirs, as many as there are now."""
    found, left = [], [pid]
    while left:
        one = left.pop()
        found.append(one)
        for children in Path(f"/proc/{one}").glob("task/*/children"):
            try:
                left.extend(map(int, children.read_text().split()))
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended in between
    return found


def cpu_seconds(pid: int) -> float:
    """Processor time that a process, its children and theirs have used.

    Those that have ended are in it once their parent has taken notice.
    """
    total = 0.0
    for one in tree(pid):
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        # Of the process in user and system mode, then of children that it waited for.
        total += sum(map(int, fields[11:15])) / TICKS
    return total


def memory(pid: int) -> int:
    """Bytes of memory of a process, its children and theirs; shared pages count in parts."""
    total = 0
    for one in tree(pid):
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return total


@dataclass(frozen=True)
class Measured:
    """What one run of a loader came to.

    Attributes:
        rate: verified replies a second.
        server_cpu: seconds of processor time that the server used for one.
        loader_cpu: the same of the loader.
        loader_memory: the most bytes that were seen of the loader, if it was looked at.
    """

    rate: float
    server_cpu: float
    loader_cpu: float
    loader_memory: int = 0

    @property
    def loader_busy(self) -> float:
        """The share of its processor that the loader used."""
        return self.loader_cpu * self.rate


def load(command: Sequence[str], server: int, *, watch_memory: bool = False) -> Measured:
    """Run a loader on its processor.

    It prints "started" when it begins to measure, or else its beginning counts as that
    of the server's time; then one JSON document, either loadgen's or an object with
    ``requests``, ``seconds`` and ``cpu_seconds``.

    Raises:
        LoadError: it failed, or came to no figure.
    """
    name = Path(command[0]).name
    before, used, text = cpu_seconds(server), 0.0, ""
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(
            ["taskset", "-c", str(LOADER_CORE), *command],
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        ) as process,
        watching_memory(process.pid if watch_memory else None) as most,
    ):
        assert process.stdout is not None
        patience = threading.Timer(LOAD_WITHIN, process.kill)
        patience.start()
        for line in process.stdout:
            if line == "started\n":
                before = cpu_seconds(server)
                continue
            if not text:
                used = cpu_seconds(server) - before
            text += line
        status = process.wait()
        patience.cancel()
        said.seek(0)
        reason = "".join(said.read().strip().splitlines()[-1:])
    wait_for_rest(server)
    if status or not text:
        raise LoadError(reason or f"{name}: exit {status}")
    requests, seconds, cpu = _figures(json.loads(text))
    if not requests:
        raise LoadError(f"{name}: no reply came while it measured")
    return Measured(requests / seconds, used / requests, cpu / requests, max(most, default=0))


def wait_for_rest(server: int) -> None:
    """Wait until a server has nothing to do: thousands of connections have just ended."""
    deadline = time.monotonic() + START_WITHIN
    before = -1.0
    while (now := cpu_seconds(server)) > before and time.monotonic() < deadline:
        before = now
        time.sleep(0.05)


def _figures(document: dict[str, Any]) -> tuple[float, float, float]:
    """Requests, the seconds that they took, and the loader's processor time."""
    if "schema" not in document:
        return document["requests"], document["seconds"], document["cpu_seconds"]
    seconds = document["duration_seconds"]
    rate = document["throughput"]["requests_per_second"]
    return rate * seconds, seconds, document["loader"]["cpu_percent"] / 100 * seconds


@contextmanager
def watching_memory(pid: int | None) -> Iterator[list[int]]:
    """Look at a process's memory again and again, if one is given; what was seen."""
    seen: list[int] = []
    over = threading.Event()

    def watch(pid: int) -> None:
        while not over.wait(0.1):
            seen.append(memory(pid))

    threads = [threading.Thread(target=watch, args=(pid,))] if pid is not None else []
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in threads:
            thread.join()


def loadgen(port: int, connections: int, seconds: float, in_flight: int, size: int) -> list[str]:
    """The command of the project's own load generator.

    It warms up for a second: the others, too, measure once all connections were answered.
    """
    command = [sys.executable, "-m", "loadgen", "--quiet", "--target", f"127.0.0.1:{port}"]
    command += ["--conns", str(connections), "--duration", f"{seconds}s", "--json", "-"]
    return [*command, "--warmup", "1s", "--pipeline", str(in_flight), "--payload-size", str(size)]


def nbnet_serve(*options: str) -> list[str]:
    """The command of the bundled server, with ``{port}``."""
    command = [sys.executable, "-m", "nbnet", "serve", "--port", "{port}", "--log-level", "error"]
    return [*command, *options]

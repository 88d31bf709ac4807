"""``nbnet serve`` in a process of its own, for tests; always reaped.

``serving`` forks it; ``serving_by_command`` starts an interpreter, as a shell does.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nbnet.notation import Target, parse_target
from support.forking import Forked

TIMEOUT = 20.0
"""Seconds that anything here may take."""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "nbnet", *arguments]


class Serving:
    """A server that runs; its standard error is read line by line.

    Attributes:
        address: where it listens; a text for a unix socket.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        first = self.line()
        assert first.startswith("listening on "), first + self.rest()
        where = first.split()[-1]
        self.address: Target | str = where if where.startswith("unix:") else parse_target(where)

    def line(self) -> str:
        """The next line that it says."""
        assert self.process.stderr is not None
        return self.process.stderr.readline().rstrip("\n")

    def wait_for(self, text: str) -> str:
        """Read on until a line has this text; give the line."""
        seen = []
        while line := self.line():
            seen.append(line)
            if text in line:
                return line
        raise AssertionError(f"the server ended without saying {text!r} but {seen}")

    def rest(self) -> str:
        """Everything that it says until its end."""
        return self.process.communicate(timeout=TIMEOUT)[1]

    def end(self, number: signal.Signals = signal.SIGTERM) -> str:
        """End it with a signal; everything that it says until then. It must exit with 0."""
        self.process.send_signal(number)
        said = self.rest()
        assert self.process.returncode == 0, said
        return said

    def children(self) -> list[int]:
        """Its child processes now: workers, and what serves metrics."""
        pid = self.process.pid
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]

    def connect(self) -> socket.socket:
        if isinstance(self.address, Target):
            return socket.create_connection(self.address, timeout=TIMEOUT)
        peer = socket.socket(socket.AF_UNIX)
        peer.settimeout(TIMEOUT)
        peer.connect(self.address.removeprefix("unix:"))
        return peer

    def ask(self, request: bytes) -> bytes:
        """Send, close the sending side, and give all that comes."""
        with self.connect() as peer:
            peer.sendall(request)
            peer.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: peer.recv(65536), b""))


def serving(*arguments: str, **popen: Any) -> contextlib.AbstractContextManager[Serving]:
    """A server with these options, on a port of the kernel's choosing."""
    return started(command("serve", "--port", "0", *arguments), by=Forked, **popen)


def serving_by_command(*arguments: str, **popen: Any) -> contextlib.AbstractContextManager[Serving]:
    """The same with an interpreter of its own."""
    return started(command("serve", "--port", "0", *arguments), **popen)


@contextlib.contextmanager
def started(
    arguments: list[str],
    *,
    by: type[subprocess.Popen[str]] = subprocess.Popen,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[Serving]:
    """A program that serves and says so as ``nbnet serve`` does."""
    process = by(
        arguments,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=None if env is None else {**os.environ, **env},
    )
    with process:
        try:
            yield Serving(process)
        finally:
            process.kill()


def read(peer: socket.socket, size: int) -> bytes:
    """So many bytes; fewer if the peer closes before."""
    data = bytearray()
    while len(data) < size and (piece := peer.recv(size - len(data))):
        data += piece
    return bytes(data)


def exchange(peer: socket.socket, request: bytes, size: int) -> bytes:
    """Send a request and read so many bytes."""
    peer.sendall(request)
    return read(peer, size)


def wait_for_end(pid: int) -> None:
    """Wait until a process that need not be a child is gone."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        assert poller.poll(TIMEOUT * 1000), f"process {pid} goes on"
    finally:
        os.close(descriptor)

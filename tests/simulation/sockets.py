"""Sockets as a process has them: descriptors of connections, and listeners.

Here faults happen, and misuse is seen: what is called on a descriptor that is
closed fails the run.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from typing import Any

from nbnet.pollers import READ
from simulation.kernel import Process, os_error
from simulation.network import End
from simulation.poller import Poller


class Socket:
    """A descriptor of an end, as a process has it."""

    def __init__(self, process: Process, end: End, fd: int) -> None:
        self.process = process
        self.end = end
        self.fd = fd
        self._open = True

    def fileno(self) -> int:
        return self.fd

    def setblocking(self, flag: bool, /) -> None:
        assert not flag
        self.process.file(self.fd)

    def recv(self, size: int, /) -> bytes:
        self._check()
        return read(self.process, self.fd, size)

    def send(self, data: bytes | bytearray | memoryview, /) -> int:
        self._check()
        return write(self.process, self.fd, bytes(data))

    def shutdown(self, how: int, /) -> None:
        self._check()
        assert how == 1
        self.process.enter("shutdown", self.fd)
        self.end.shutdown()
        self.process.kernel.happened()
        if self.end.account is not None:
            self.end.account.shut()

    def close(self) -> None:
        if not self._open:
            self.process.kernel.fail(f"{self.process.name}: descriptor {self.fd} is closed twice")
        self.process.enter("close", self.fd)
        self._open = False
        if self.end.account is not None:
            self.end.account.closed()
        self.process.close(self.fd)

    def _check(self) -> None:
        if not self._open:
            self.process.kernel.fail(f"{self.process.name}: {self.fd} is used after it was closed")


def read(process: Process, fd: int, size: int) -> bytes:
    """As ``os.read`` of a process."""
    process.enter("recv", fd)
    end = process.file(fd)
    assert isinstance(end, End)
    if process.faults is not None and end.inbox:
        size = process.faults.cut(end, "recv", min(size, len(end.inbox)))
    data = end.read(size)
    process.moved_in += len(data)
    process.kernel.note("read", len(data))
    if data:
        process.kernel.happened()
    process.kernel.say("%s: reads %d: %.60r", process.name, fd, data)
    if end.account is not None and data:
        end.account.took(data)
    return data


def write(process: Process, fd: int, data: bytes) -> int:
    """As ``os.write`` of a process."""
    process.enter("send", fd)
    end = process.file(fd)
    assert isinstance(end, End)
    whole = len(data)
    if process.faults is not None:
        data = data[: process.faults.cut(end, "send", whole)]
    sent = end.write(data)
    process.moved_out += sent
    process.kernel.note("sent", sent)
    process.kernel.happened()
    process.kernel.say("%s: sends %d: %d of %d: %.60r", process.name, fd, sent, whole, data)
    if end.account is not None:
        end.account.gave(data[:sent])
    return sent


class Listener:
    """A listening socket of a process.

    Attributes:
        backlog: connections that may wait.
        on_accept: is given each end that is accepted, before anything is read.
    """

    def __init__(self, process: Process, backlog: int = 128) -> None:
        self.process = process
        self.backlog = backlog
        self.watchers: list[tuple[Poller, int]] = []
        self.queue: deque[tuple[End, Any]] = deque()
        self.on_accept: Callable[[End], None] = lambda _end: None
        self.is_closed = False
        self._fd = process.install(self)

    def fileno(self) -> int:
        return self._fd

    def mask(self) -> int:
        return READ if self.queue else 0

    def accept(self) -> tuple[Socket, Any]:
        process = self.process
        process.enter("accept", self._fd)
        process.file(self._fd)
        if not self.queue:
            raise os_error(errno.EAGAIN)
        end, address = self.queue[0]
        fd = process.install(end)
        self.queue.popleft()
        process.accepted += 1
        process.opened += 1
        process.kernel.happened()
        process.kernel.say("%s: accepts %d", process.name, fd)
        self.on_accept(end)
        return Socket(process, end, fd), address

    def drop_one(self) -> None:
        """One that waits has failed meanwhile."""
        if self.queue:
            end, _ = self.queue.popleft()
            end.disturb("accepting it failed")
            end.abort()
            end.closed = True

    def close(self) -> None:
        if self.is_closed:
            self.process.kernel.fail(f"{self.process.name}: a listener is closed twice")
        self.process.enter("close", self._fd)
        self.process.close(self._fd)

    def release(self) -> None:
        self.is_closed = True
        for end, _ in self.queue:
            end.disturb("the listener was closed")
            end.abort()
            end.closed = True
        self.queue.clear()

    def arrive(self, end: End, address: object) -> bool:
        """Somebody connects; whether there is room for one more that waits."""
        if len(self.queue) >= self.backlog:
            return False
        self.queue.append((end, address))
        for poller, fd in self.watchers:
            poller.wake(fd, READ)
        return True

"""A kernel in memory, for running the real event loop without sockets.

It has what the loop is given from outside: a poller (level- and edge-triggered),
sockets, a listener, a clock and a wake-up. File descriptors are reused lowest first, as
the real kernel does, and every misuse (registering twice, closing twice, using
a closed socket) is an error. Time passes only when nothing is ready.

A test is a list of ``steps`` and a timetable (``at``): whenever nothing is
ready the next step runs; after the last one, time goes on.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable

from nbnet.pollers import EDGE, ERROR, READ, WRITE


def error(code: int) -> OSError:
    """What a system call raises for an errno."""
    return OSError(code, os.strerror(code))


class FakeSocket:
    """One end of a connection; the test plays the peer."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.fd = -1
        self.inbox: deque[bytes | OSError] = deque()  # b"" is the end of input
        self.room = 1 << 30  # bytes that the kernel takes before it refuses
        self.received = bytearray()  # what the peer got
        self.send_error: OSError | None = None
        self.closed = False
        self.write_shut = False
        self.hung_up = False
        self.recvs = self.sends = 0  # calls so far
        self.taken = 0  # bytes read so far
        self.refused = False  # whether the last send did not take all

    def fileno(self) -> int:
        return self.fd

    def setblocking(self, flag: bool, /) -> None:
        assert not flag

    def recv(self, size: int, /) -> bytes:
        assert not self.closed
        self.recvs += 1
        if not self.inbox:
            raise BlockingIOError(errno.EAGAIN, "")
        item = self.inbox[0]
        if isinstance(item, OSError):
            raise item
        if not item:
            return b""  # the end stays the end
        self.taken += len(item[:size])
        self.inbox[0] = item[size:]
        if not self.inbox[0]:
            self.inbox.popleft()
        return item[:size]

    def send(self, data: bytes | bytearray | memoryview, /) -> int:
        assert not self.closed
        assert not self.write_shut
        self.sends += 1
        if self.send_error is not None:
            raise self.send_error
        self.refused = len(data) > self.room
        if not self.room:
            raise BlockingIOError(errno.EAGAIN, "")
        sent = bytes(data[: self.room])
        self.room -= len(sent)
        self.received += sent
        return len(sent)

    def shutdown(self, how: int, /) -> None:
        assert how == 1
        assert not self.write_shut
        self.sends += 1
        if self.send_error is not None:
            raise error(errno.ENOTCONN)
        self.write_shut = True

    def close(self) -> None:
        assert not self.closed, "closed twice"
        assert self.fd not in self.kernel.interest, "closed while registered"
        self.closed = True
        self.kernel.free(self.fd)

    def ready(self) -> int:
        """The events that a poller would report."""
        mask = READ if self.inbox else 0
        if self.room or self.send_error is not None:
            mask |= WRITE
        return mask | (ERROR if self.hung_up else 0)

    def changed(self, since: object) -> tuple[int, object]:
        """The events that an edge-triggered poller would report, and where it is now."""
        arrived = (
            self.taken + sum(len(item) for item in self.inbox if isinstance(item, bytes)),
            sum(not item or isinstance(item, OSError) for item in self.inbox),
            self.hung_up,
            self.send_error is None,
        )
        mask = self.ready() if since != arrived else 0
        if mask & READ and b"" in self.inbox:
            mask |= EDGE & ~READ  # the end of input is told apart
        if self.refused and self.room:
            self.refused = False
            mask |= WRITE
        return mask, arrived


class FakeListener:
    """A listening socket; ``queue`` holds connections and errors to come."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.fd = kernel.allocate(self)
        self.queue: deque[FakeSocket | OSError] = deque()
        self.closed = False

    def fileno(self) -> int:
        return self.fd

    def accept(self) -> tuple[FakeSocket, tuple[str, int]]:
        if not self.queue:
            raise BlockingIOError(errno.EAGAIN, "")
        item = self.queue.popleft()
        if isinstance(item, OSError):
            raise item
        item.fd = self.kernel.allocate(item)
        return item, ("192.0.2.1", 40000 + item.fd)

    def close(self) -> None:
        self.closed = True

    def ready(self) -> int:
        return READ if self.queue else 0


class FakeWakeUp:
    """A flag with a descriptor."""

    def __init__(self, kernel: Kernel) -> None:
        self.fd = kernel.allocate(self)
        self.is_set = False

    def fileno(self) -> int:
        return self.fd

    def set(self) -> None:
        self.is_set = True

    def clear(self) -> None:
        self.is_set = False

    def ready(self) -> int:
        return READ if self.is_set else 0


class Kernel:
    """The descriptors, the poller and the clock.

    Attributes:
        interest: the poller's registrations, descriptor to mask.
        injected: events that the next poll reports besides the real ones.
        polls: how often the poller was asked.
        stalled: set by a step during which the process stood still: as the kernel does
            it, the wait ends with its time and gives nothing, whatever has come.
    """

    def __init__(self) -> None:
        self.open: dict[int, FakeSocket | FakeListener | FakeWakeUp] = {}
        self.interest: dict[int, int] = {}
        self.reported: dict[int, object] = {}  # edge-triggered: what the loop knows
        self.injected: list[tuple[int, int]] = []
        self.steps: deque[Callable[[], object]] = deque()
        self.timetable: list[tuple[float, Callable[[], object]]] = []
        self.now = 0.0
        self.polls = 0
        self.stalled = False
        self.listener = FakeListener(self)
        self.wake_up = FakeWakeUp(self)

    def allocate(self, thing: FakeSocket | FakeListener | FakeWakeUp) -> int:
        fd = next(fd for fd in range(3, 1 << 20) if fd not in self.open)
        self.open[fd] = thing
        return fd

    def free(self, fd: int) -> None:
        del self.open[fd]

    def connect(self) -> FakeSocket:
        """A peer connects; the loop has yet to accept it."""
        socket = FakeSocket(self)
        self.listener.queue.append(socket)
        return socket

    def at(self, when: float, action: Callable[[], object]) -> None:
        """Have something happen at a time, when no step is left."""
        self.timetable.append((when, action))
        self.timetable.sort(key=lambda entry: entry[0])

    # The clock and the poller, as the loop sees them.

    def clock(self) -> float:
        return self.now

    def register(self, fd: int, eventmask: int, /) -> None:
        assert fd not in self.interest, "registered twice"
        assert fd in self.open
        self.interest[fd] = eventmask

    def modify(self, fd: int, eventmask: int, /) -> None:
        assert fd in self.interest, "modified without being registered"
        self.interest[fd] = eventmask
        self.reported.pop(fd, None)

    def unregister(self, fd: int, /) -> None:
        del self.interest[fd]
        self.reported.pop(fd, None)

    def close(self) -> None:
        raise AssertionError("the loop does not own the poller")

    def poll(self, timeout: float, maxevents: int, /) -> list[tuple[int, int]]:
        self.polls += 1
        assert self.polls < 10_000, "the loop spins"
        waited = False
        while True:
            events, self.injected = self.injected, []
            for fd, mask in self.interest.items():
                if len(events) >= maxevents:
                    break  # what was not reported is, the next time
                thing = self.open[fd]
                if mask & EDGE and isinstance(thing, FakeSocket):
                    ready, self.reported[fd] = thing.changed(self.reported.get(fd))
                else:
                    ready = thing.ready()
                ready &= mask | ERROR
                if ready:
                    events.append((fd, ready))
            if events or waited or not timeout:
                return events[:maxevents]
            if self.steps:
                self.steps.popleft()()
                if self.stalled:
                    self.stalled = False
                    return []
            elif self.timetable and (timeout < 0 or self.timetable[0][0] <= self.now + timeout):
                when, action = self.timetable.pop(0)
                timeout -= max(0.0, when - self.now)
                self.now = max(self.now, when)
                action()
            else:
                assert timeout >= 0, "the loop waits for ever and nothing is left to happen"
                self.now += timeout
                waited = True


class FakeTlsSocket(FakeSocket):
    """A socket that speaks TLS, as far as the loop can tell.

    A read from the kernel takes a whole record (an item of ``inbox``) and gives
    as much of it as was asked for; of the rest no poller knows. ``script`` is
    what calls meet in turn before they go through: for ``handshake``, ``recv``
    and ``send`` the event that TLS wants, or an error.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.wants = 0
        self.hidden = b""
        self.script: dict[str, deque[int | OSError]] = {
            "handshake": deque(),
            "recv": deque(),
            "send": deque(),
        }
        self.steps = 0  # of the handshake

    def _play(self, call: str, natural: int) -> None:
        if self.script[call]:
            item = self.script[call].popleft()
            if isinstance(item, OSError):
                raise item
            self.wants = item if item != natural else 0
            raise BlockingIOError(errno.EAGAIN, "")
        self.wants = 0

    def handshake(self) -> bool:
        self.steps += 1
        try:
            self._play("handshake", 0)
        except BlockingIOError:
            return False
        return True

    def peer_name(self) -> str | None:
        return "a name"

    def recv(self, size: int, /) -> bytes:
        self._play("recv", READ)
        if not self.hidden:
            self.hidden = super().recv(1 << 20)
        data, self.hidden = self.hidden[:size], self.hidden[size:]
        return data

    def send(self, data: bytes | bytearray | memoryview, /) -> int:
        self._play("send", WRITE)
        return super().send(data)

"""epoll of a simulated process, level- and edge-triggered as the kernel's is.

As there, a change of a file puts it on the ready list of those who watch it for
that; a poll goes through the list, asks each file what there is, and reports
that. A level-triggered one then stays on the list, an edge-triggered one leaves
it until the next change. ``modify`` looks at once, as ``register`` does.

Faults make a batch smaller, shuffle it, repeat an event in it and invent some.
"""

from __future__ import annotations

import math
import select
from collections.abc import Callable
from typing import Final

from nbnet.pollers import ERROR
from simulation.kernel import FOREVER, MS, SECOND, US, File, Process

EDGE: Final = select.EPOLLET
HANGUP: Final = select.EPOLLHUP
HALF_CLOSED: Final = select.EPOLLRDHUP
FAILED: Final = select.EPOLLERR


class Poller:
    """Waits for events on the files of a process.

    Attributes:
        interest: what is registered: the file and its mask, by descriptor.
        before_poll: called whenever the process polls; checks stand there.
    """

    def __init__(self, process: Process) -> None:
        self.process = process
        self.interest: dict[int, tuple[File, int]] = {}
        self.before_poll: Callable[[], None] = lambda: None
        self.ready: dict[int, None] = {}

    def register(self, fd: int, eventmask: int, /) -> None:
        kernel = self.process.kernel
        file = self.process.file(fd)
        if fd in self.interest:
            kernel.fail(f"{self.process.name}: descriptor {fd} is registered twice")
        self.process.enter("register", fd)
        self.interest[fd] = (file, eventmask)
        file.watchers.append((self, fd))
        self._look(fd, file, eventmask)

    def modify(self, fd: int, eventmask: int, /) -> None:
        kernel = self.process.kernel
        if fd not in self.interest:
            kernel.fail(f"{self.process.name}: descriptor {fd} is modified and not registered")
        self.process.enter("modify", fd)
        file = self.process.file(fd)
        self.interest[fd] = (file, eventmask)
        self._look(fd, file, eventmask)

    def unregister(self, fd: int, /) -> None:
        kernel = self.process.kernel
        if fd not in self.interest:
            kernel.fail(f"{self.process.name}: descriptor {fd} is unregistered and was not")
        self.process.enter("unregister", fd)
        file, _ = self.interest.pop(fd)
        self.ready.pop(fd, None)
        file.watchers.remove((self, fd))
        kernel.happened()

    def close(self) -> None:
        self.process.kernel.fail("a loop closes the poller, which it does not own")

    def _look(self, fd: int, file: File, mask: int) -> None:
        self.process.kernel.happened()
        if file.mask() & (mask | ERROR):
            self.ready[fd] = None

    def wake(self, fd: int, bits: int) -> None:
        """The file has changed; which events that may be, 0 for any."""
        if not bits or bits & (self.interest[fd][1] | ERROR):
            self.ready[fd] = None

    def has_events(self) -> bool:
        """Whether a poll would report something now."""
        for fd in list(self.ready):
            file, mask = self.interest[fd]
            if file.mask() & (mask | ERROR):
                return True
            del self.ready[fd]
        return False

    def poll(self, timeout: float, maxevents: int, /) -> list[tuple[int, int]]:
        """As ``select.epoll.poll``, which rounds up to milliseconds."""
        kernel = self.process.kernel
        self.process.enter("poll", -1)
        self.process.polls()
        self.before_poll()
        until = FOREVER if timeout < 0 else kernel.now + math.ceil(timeout * 1000) * MS
        faults = self.process.faults
        if faults is not None and faults.hits(faults.rates.slow):
            for _ in range(kernel.rng.randrange(1, 8)):  # it is late: more has come meanwhile
                kernel.step_within(2 * MS)
        kernel.wait(self.has_events, until)
        events = self._collect(maxevents)
        if not events and not timeout:
            kernel.now += US  # what the call itself takes
        kernel.say("%s: polls %s", self.process.name, events)
        return events

    def wait(self, seconds: float) -> bool:
        """Wait so long for events, to the nanosecond, and leave them to ``poll``."""
        kernel = self.process.kernel
        self.process.enter("wait", -1)
        kernel.wait(self.has_events, kernel.now + round(seconds * SECOND))
        return self.has_events()

    def _collect(self, most: int) -> list[tuple[int, int]]:
        faults = self.process.faults
        if faults is not None and faults.hits(faults.rates.few):
            most = min(most, faults.kernel.rng.randrange(1, 4))
        events: list[tuple[int, int]] = []
        for fd in list(self.ready):
            if len(events) >= most:
                break
            del self.ready[fd]
            file, mask = self.interest[fd]
            found = file.mask() & (mask | ERROR)
            if found:
                events.append((fd, found))
                if not mask & EDGE:
                    self.ready[fd] = None
        if faults is not None:
            faults.mangle(events, self.interest)
        return events

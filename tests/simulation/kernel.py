"""The simulated kernel: one clock, what is going to happen, processes, and who runs.

Time is whole nanoseconds. What is to happen stands in a queue (``at``), and
happens when everybody waits, or in the middle of a call where a fault says so.

Several processes run in threads, of which one runs at a time: whoever waits
chooses, by the seed, who goes on (``wait``), so that their order is the seed's.

A process has descriptors, lowest number first, and counts its calls by kind.
Using a closed descriptor, closing one twice or while it is registered, or
registering it twice fails the run; so does a process that polls again and again
while nothing happens.
"""

from __future__ import annotations

import errno
import heapq
import os
import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from simulation.faults import Faults
    from simulation.poller import Poller

US: Final = 1_000
MS: Final = 1_000_000
SECOND: Final = 1_000_000_000
FOREVER: Final = 1 << 62

_SPINS: Final = 100
"""Polls of a process with nothing happening in between, from which on it spins."""
_MOST_EVENTS: Final = 300_000
"""Events of a run from which on it will not end."""


class SimulationFailure(AssertionError):  # noqa: N818
    """A promise was broken, or the kernel was misused."""


class Ended(BaseException):
    """The run has failed elsewhere: this process is to end."""


def os_error(code: int) -> OSError:
    """What a system call raises for an errno."""
    return OSError(code, os.strerror(code))


class File(Protocol):
    """What a descriptor stands for."""

    watchers: list[tuple[Poller, int]]

    def mask(self) -> int:
        """The events that are there now."""

    def release(self) -> None:
        """The last descriptor is closed."""


class Process:
    """Descriptors, and how many calls were made.

    Attributes:
        name: for the trace.
        files: what is open, by descriptor.
        most_files: descriptors that it may have; one more is ``EMFILE``.
        calls: so far, by kind.
        faults: what goes wrong in its calls; None is nothing.
        on_call: called at the start of every call; may raise (a signal).
        moved_in, moved_out: bytes read and sent.
        accepted, opened, closed: sockets, by what happened to them.
    """

    def __init__(self, kernel: Kernel, name: str, faults: Faults | None = None) -> None:
        self.kernel = kernel
        self.name = name
        self.files: dict[int, File] = {}
        self.most_files = 1 << 20
        self.calls: Counter[str] = Counter()
        self.faults = faults
        self.on_call: Callable[[str], None] | None = None
        self.moved_in = self.moved_out = 0
        self.accepted = self.opened = self.closed = 0
        self._free: list[int] = []
        self._next = 3
        self._idle_polls = 0
        self._seen = 0

    def install(self, file: File) -> int:
        """The lowest descriptor that is free, for a file.

        Raises:
            OSError: the process has as many as it may (``EMFILE``).
        """
        if len(self.files) >= self.most_files:
            raise os_error(errno.EMFILE)
        if self._free:
            fd = heapq.heappop(self._free)
        else:
            fd, self._next = self._next, self._next + 1
        self.files[fd] = file
        return fd

    def enter(self, kind: str, fd: int) -> None:
        """Begin a call: others do something meanwhile, a signal comes, the call fails.

        Raises:
            OSError: a fault says so.
        """
        kernel = self.kernel
        if kernel.failure is not None:
            raise Ended
        number = self.calls[kind] = self.calls[kind] + 1
        kernel.note(kind, fd)
        if self.on_call is not None:
            self.on_call(kind)
        faults = self.faults
        if faults is not None:
            if faults.hits(faults.rates.meanwhile):
                kernel.step_within(5 * MS)
            code = faults.errno_for(kind, number, self.files.get(fd))
            if code:
                kernel.happened()
                kernel.say("%s: %s(%d) fails: %s", self.name, kind, fd, errno.errorcode[code])
                raise os_error(code)

    def file(self, fd: int) -> File:
        """What a descriptor stands for; it must be open."""
        if fd not in self.files:
            self.kernel.fail(f"{self.name}: descriptor {fd} is used and not open")
        return self.files[fd]

    def close(self, fd: int) -> None:
        """Close a descriptor, which must be open and registered nowhere."""
        file = self.file(fd)
        if any(number == fd for _, number in file.watchers):
            self.kernel.fail(f"{self.name}: descriptor {fd} is closed while it is registered")
        del self.files[fd]
        heapq.heappush(self._free, fd)
        self.closed += 1
        self.kernel.happened()
        file.release()

    def polls(self) -> None:
        """It polls: something must have happened since it last did."""
        if self._seen != self.kernel.happenings:
            self._seen, self._idle_polls = self.kernel.happenings, 0
        self._idle_polls += 1
        if self._idle_polls > _SPINS:
            self.kernel.fail(f"{self.name} spins: it polls and does nothing")


class _Task:
    """A process that runs in a thread of its own, as the scheduler sees it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.can_run: Callable[[], bool] = lambda: True
        self.until = FOREVER
        self.turn = threading.Semaphore(0)
        self.done = False


class Kernel:
    """The clock, the queue of what is to happen, and who runs.

    Args:
        seed: of everything random.
        trace: takes a line for each step; None is faster.

    Attributes:
        now: nanoseconds.
        happenings: counts whatever is progress; a loop that polls without any spins.
        events: things that happened and calls that were made.
        digest: a number that two equal runs share.
        longest_gap: the longest time that has passed in the middle of a call.
        failure: why the run has failed; None as long as it has not.
    """

    def __init__(self, seed: int, trace: Callable[[str], None] | None = None) -> None:
        self.rng = random.Random(seed)
        self.now = 1000 * SECOND
        self.happenings = 0
        self.events = 0
        self.digest = 0
        self.longest_gap = 0
        self.failure: str | None = None
        self._trace = trace
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._serial = 0
        self._tasks: list[_Task] = []
        self._current: _Task | None = None
        self._errors: list[BaseException] = []
        self._over = threading.Semaphore(0)

    # What is told -----------------------------------------------------------------

    def fail(self, reason: str) -> None:
        """The run has failed: raised here, and kept for the end, since loops catch much."""
        if self.failure is None:
            self.failure = f"{reason} (at {self.now / SECOND:.6f} s)"
            self.say("FAILED: %s", reason)
        raise SimulationFailure(self.failure)

    def say(self, text: str, *values: object) -> None:
        """A line of the trace."""
        if self._trace is not None:
            self._trace(f"{self.now / SECOND:12.6f}  {text % values}")

    def note(self, kind: str, value: int) -> None:
        """Count a step into ``digest``; strings by their bytes, which have no hash order."""
        self.events += 1
        if self.events > _MOST_EVENTS and self.failure is None:
            self.fail("the run does not end")
        self.digest = (
            self.digest * 1_000_003 + self.now + value + len(kind) * 31 + ord(kind[-1])
        ) & 0xFFFF_FFFF_FFFF_FFFF

    def happened(self) -> None:
        """Something has changed: whoever polls has a reason."""
        self.happenings += 1

    # Time ---------------------------------------------------------------------------

    def seconds(self) -> float:
        """The clock of a process, in seconds."""
        return self.now / SECOND

    def nanoseconds(self) -> int:
        """The same in nanoseconds."""
        return self.now

    def at(self, when: int, action: Callable[[], None]) -> None:
        """Have something happen at a time, after what was put in before for the same."""
        self._serial += 1
        heapq.heappush(self._queue, (when, self._serial, action))

    def after(self, delay: int, action: Callable[[], None]) -> None:
        """Have something happen so many nanoseconds from now."""
        self.at(self.now + delay, action)

    def jump(self, nanoseconds: int) -> None:
        """The machine was suspended: everything in between is late."""
        self.say("the clock jumps by %.3f s", nanoseconds / SECOND)
        self.happened()
        self.now += nanoseconds

    def step_within(self, nanoseconds: int) -> None:
        """Have the next thing happen, if that is soon, in the middle of somebody's call."""
        if self._queue and self._queue[0][0] <= self.now + nanoseconds:
            before = self.now
            self._step(FOREVER)
            self.longest_gap = max(self.longest_gap, self.now - before)

    def _step(self, limit: int) -> None:
        if self.failure is not None:
            raise Ended
        if self._queue and self._queue[0][0] <= limit:
            when, _, action = heapq.heappop(self._queue)
            self.now = max(self.now, when)
            self.happened()
            self.note("event", 0)
            action()
        elif limit >= FOREVER:
            self.fail("everybody waits for ever")
        else:
            self.happened()
            self.now = limit

    # Who runs -----------------------------------------------------------------------

    def wait(self, can_run: Callable[[], bool], until: int) -> None:
        """Wait, as the running process, until something holds or a time has come."""
        me = self._current
        if me is None:  # it is the only one
            while self.now < until and not can_run():
                self._step(until)
            return
        me.can_run, me.until = can_run, until
        self._hand_over(me)

    def run(self, *processes: tuple[str, Callable[[], None]]) -> None:
        """Run processes, one at a time, until all have ended.

        Raises:
            BaseException: what the first that failed has raised.
        """
        threads = []
        for name, main in processes:
            task = _Task(name)
            self._tasks.append(task)
            threads.append(
                threading.Thread(target=self._run_task, args=(task, main), name=name, daemon=True)
            )
        for thread in threads:
            thread.start()
        self._current = first = self.rng.choice(self._tasks)
        first.turn.release()
        self._over.acquire()
        for thread in threads:
            thread.join()
        self._current = None
        self._tasks.clear()
        if self._errors:
            raise self._errors[0]

    def _run_task(self, task: _Task, main: Callable[[], None]) -> None:
        task.turn.acquire()
        try:
            if self.failure is None:
                main()
        except Ended:
            pass
        except BaseException as error:
            self._errors.append(error)
            self.failure = self.failure or f"{task.name} ended with {error!r}"
        task.done = True
        if all(each.done for each in self._tasks):
            self._over.release()
            return
        try:
            self._hand_over(task)
        except (Ended, SimulationFailure) as error:
            if isinstance(error, SimulationFailure):
                self._errors.append(error)
            self._release(next(each for each in self._tasks if not each.done))

    def _hand_over(self, me: _Task) -> None:
        chosen = me if self.failure is not None and not me.done else self._choose()
        if chosen is not me:
            self._release(chosen)
            if me.done:
                return
            me.turn.acquire()
        if self.failure is not None:
            raise Ended

    def _release(self, task: _Task) -> None:
        self._current = task
        task.turn.release()

    def _choose(self) -> _Task:
        waiting = [task for task in self._tasks if not task.done]
        if self.failure is not None:
            return waiting[0]
        while True:
            able = [task for task in waiting if self.now >= task.until or task.can_run()]
            if able:
                return able[0] if len(able) == 1 else self.rng.choice(able)
            self._step(min(task.until for task in waiting))

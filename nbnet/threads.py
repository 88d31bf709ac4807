"""Threads for handlers that block: jobs go in, done jobs come out.

The loop gives each request to the pool as a ``Job`` and makes the reply of it
when it comes back; which thread ran it and in what order they end does not
matter, since a connection sends its replies in the order of its requests.

The rules:

* a thread touches nothing but the job that it has;
* threads are daemons: a handler that never returns cannot keep the process;
* an exception of a handler travels in the job, to the thread of the loop.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from nbnet.handlers import Bound

END_SECONDS: Final = 1.0
"""How long ``close`` waits for threads that are still at work."""


class Job:
    """One request for a thread, and then its reply.

    Attributes:
        abandoned: set when nobody waits for the reply any more.
        done: whether it came back; set by the loop.
        reply: what the handler returned.
        error: what it raised instead.
        nanoseconds: how long it ran.
    """

    __slots__ = ("abandoned", "done", "error", "handler", "nanoseconds", "payload", "reply")

    def __init__(self, handler: Bound, payload: bytes) -> None:
        self.handler = handler
        self.payload = payload
        self.abandoned = False
        self.done = False
        self.reply = b""
        self.error: BaseException | None = None
        self.nanoseconds = 0

    def run(self) -> None:
        """Call the handler; raises nothing."""
        if self.abandoned:
            return
        started = time.perf_counter_ns()
        try:
            self.reply = self.handler(self.payload)
        except BaseException as error:  # the loop decides what it costs
            self.error = error
        self.nanoseconds = time.perf_counter_ns() - started


class Pool(Protocol):
    """What a loop and its connections need of the threads.

    Attributes:
        window: jobs that one connection may have in the pool at a time, fewer
            than there are threads: a slow handler is to stop its own connection.
    """

    window: int

    def submit(self, owner: object, job: Job, /) -> None: ...
    def take_done(self) -> list[tuple[object, Job]]: ...


class ThreadPool:
    """Threads that run jobs.

    Args:
        threads: how many, at least 1.
        on_done: called in a thread after a job is done, to wake the loop.

    Raises:
        ValueError: there are to be none.

    >>> done = threading.Event()
    >>> pool = ThreadPool(2, done.set)
    >>> pool.submit("somebody", Job(bytes.upper, b"abc"))
    >>> done.wait(10)
    True
    >>> [(owner, job.reply) for owner, job in pool.take_done()]
    [('somebody', b'ABC')]
    >>> pool.close()
    """

    def __init__(self, threads: int, on_done: Callable[[], None]) -> None:
        if threads < 1:
            raise ValueError(f"{threads} threads cannot work, expected at least 1")
        self.window = max(1, threads // 2)
        self._todo: queue.SimpleQueue[tuple[object, Job] | None] = queue.SimpleQueue()
        self._done: deque[tuple[object, Job]] = deque()
        self._on_done = on_done
        self._threads = [
            threading.Thread(target=self._work, name=f"nbnet handler {number}", daemon=True)
            for number in range(1, threads + 1)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, owner: object, job: Job, /) -> None:
        """Have a thread run a job; it comes back with its owner from ``take_done``."""
        self._todo.put((owner, job))

    def take_done(self) -> list[tuple[object, Job]]:
        """The jobs done since the last call; those abandoned come back too."""
        done = self._done
        return [done.popleft() for _ in range(len(done))]

    def close(self) -> None:
        """End the threads that have nothing to do; leave the others to their fate."""
        for _ in self._threads:
            self._todo.put(None)
        deadline = time.monotonic() + END_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (item := self._todo.get()) is not None:
            item[1].run()
            self._done.append(item)
            del item  # a waiting thread is not to hold on to a connection
            self._on_done()

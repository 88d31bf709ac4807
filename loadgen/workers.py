"""The engines of a run on this machine, each in a process of its own.

The parent only reads snapshots, so that whatever it does with them (drawing,
writing) never holds up a measured loop. When all engines have their connections
it names the moment at which all of them start.
"""

from __future__ import annotations

import contextlib
import pickle
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Final, Self

from loadgen import children
from loadgen.plan import Job
from loadgen.tally import Phase, Snapshot
from loadgen.worker import START

READER: Final = "loadgen snapshots"
"""The name of the threads that wait for snapshots."""
START_TOGETHER: Final = 20_000_000
"""Nanoseconds from the word to start to the start, so that all have heard it."""


class WorkerError(RuntimeError):
    """An engine's process ended before it said that it was done."""


class Workers:
    """Starts an engine a job and gives their snapshots as they come.

    Use as a context manager: at its end no process is left.

    Args:
        jobs: what each engine is to do.
        when_ready: called, while iterating, when all engines have their connections;
            whoever gives it calls ``start``. Without it they start then.

    Raises (while iterating):
        WorkerError: a process ended early; its own words stand on stderr.
    """

    def __init__(self, jobs: list[Job], when_ready: Callable[[], None] | None = None) -> None:
        self._jobs = jobs
        self._when_ready = when_ready or self._start_now
        self._children: list[subprocess.Popen[bytes]] = []
        self._ready: list[subprocess.Popen[bytes]] = []
        self._snapshots: queue.SimpleQueue[tuple[int, Snapshot | None]] = queue.SimpleQueue()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for number, job in enumerate(self._jobs):
                child = children.start("loadgen.worker")
                stack.callback(children.reap, child)
                assert child.stdin is not None
                # A child that is dead already shows when its output ends.
                with contextlib.suppress(BrokenPipeError):
                    pickle.dump(job, child.stdin)
                    child.stdin.flush()
                reader = threading.Thread(
                    target=self._read, args=(number, child.stdout), name=READER, daemon=True
                )
                reader.start()
                # Before its pipe is closed under it, and after the child is gone.
                stack.callback(reader.join)
                stack.callback(child.kill)  # one that was done has ended already
                self._children.append(child)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __iter__(self) -> Iterator[Snapshot]:
        """Every snapshot of every engine, until all are done."""
        working = set(range(len(self._children)))
        connecting = set(working)
        while working:
            number, snapshot = self._snapshots.get()
            if snapshot is None:
                if self._children[number].wait():
                    # The others would go on, for nothing: what this one had counted is lost.
                    raise WorkerError("an engine's process failed")
                working.discard(number)
            else:
                if snapshot.phase is Phase.READY:
                    self._ready.append(self._children[number])
                yield snapshot
            if connecting and (snapshot is None or snapshot.phase is Phase.READY):
                connecting.discard(number)
                if not connecting:
                    self._when_ready()

    def stop(self) -> None:
        """Have the engines stop sending and report; may be called from a signal handler."""
        for child in self._children:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError, ValueError):
                child.stdin.close()

    def _start_now(self) -> None:
        self.start(time.monotonic_ns() + (START_TOGETHER if len(self._ready) > 1 else 0))

    def start(self, moment: int) -> None:
        """Have the engines start that are ready.

        Args:
            moment: nanoseconds of this machine's monotonic clock.
        """
        message = START.pack(moment)
        for child in self._ready:
            assert child.stdin is not None
            # It may be dead, or told to stop meanwhile.
            with contextlib.suppress(BrokenPipeError, ValueError):
                child.stdin.write(message)
                child.stdin.flush()

    def _read(self, number: int, output: IO[bytes]) -> None:
        # A child that died amid a snapshot leaves anything behind; its exit code
        # tells, not what pickle makes of the pieces.
        try:
            with contextlib.suppress(Exception):
                while True:
                    self._snapshots.put((number, pickle.load(output)))
        finally:
            self._snapshots.put((number, None))

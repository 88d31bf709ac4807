"""The engines of a run on this machine, each in a process of its own.

The parent only reads snapshots, so that whatever it does with them (drawing,
writing) never holds up a measured loop.
"""

from __future__ import annotations

import contextlib
import pickle
import queue
import threading
from collections.abc import Iterator
from typing import IO, Self

from loadgen import children
from loadgen.plan import Job
from loadgen.tally import Snapshot


class WorkerError(RuntimeError):
    """An engine's process ended before it said that it was done."""


class Workers:
    """Starts an engine a job and gives their snapshots as they come.

    Use as a context manager: at its end no process is left.

    Raises (while iterating):
        WorkerError: a process ended early; its own words stand on stderr.
    """

    def __init__(self, jobs: list[Job]) -> None:
        self._jobs = jobs
        self._children = [children.start("loadgen.worker") for _ in jobs]
        self._snapshots: queue.SimpleQueue[Snapshot | None] = queue.SimpleQueue()
        self._readers = [
            threading.Thread(target=self._read, args=(child.stdout,), daemon=True)
            for child in self._children
        ]

    def __enter__(self) -> Self:
        for job, child in zip(self._jobs, self._children, strict=True):
            assert child.stdin is not None
            # A child that is dead already shows when its output ends.
            with contextlib.suppress(BrokenPipeError):
                pickle.dump(job, child.stdin)
                child.stdin.flush()
        for reader in self._readers:
            reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        for child, reader in zip(self._children, self._readers, strict=True):
            child.kill()  # one that was done has ended already
            reader.join()  # before its pipe is closed under it
            children.reap(child)

    def __iter__(self) -> Iterator[Snapshot]:
        """Every snapshot of every engine, until all are done."""
        open_streams = len(self._children)
        while open_streams:
            snapshot = self._snapshots.get()
            if snapshot is None:
                open_streams -= 1
            else:
                yield snapshot
        if any(child.wait() for child in self._children):
            raise WorkerError("an engine's process failed")

    def stop(self) -> None:
        """Have the engines stop sending and report; may be called from a signal handler."""
        for child in self._children:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError, ValueError):
                child.stdin.close()

    def _read(self, output: IO[bytes]) -> None:
        try:
            while True:
                self._snapshots.put(pickle.load(output))
        except (EOFError, pickle.UnpicklingError):  # the latter: it died amid a snapshot
            self._snapshots.put(None)

"""The child process that runs an engine: a job comes in, snapshots go out.

On standard input a pickled job, then the moment to start; its end is the word
to stop. On standard output pickled snapshots.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import pickle
import select
import struct
import sys
import time
from pathlib import Path
from typing import Final, cast

from loadgen import children
from loadgen.dialing import KernelDialer
from loadgen.engine import Engine
from loadgen.plan import Job
from loadgen.tally import Snapshot
from loadgen.traffic import Pool
from nbnet.machine import raise_fd_limit

START: Final = struct.Struct("!q")
"""The moment to start: nanoseconds of the monotonic clock, which all processes share."""
_PIPE_SIZE: Final = 1 << 20
"""Bytes that the pipe holds: so many snapshots that the engine never waits for
who reads them."""
_TIMER_SLACK: Final = "1000"
"""Nanoseconds by which the kernel may delay the end of a wait, in place of 50,000."""


class PipeControl:
    """The word to start or to stop, through a pipe."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        """The end to read from."""
        return self._descriptor

    def read(self) -> int | None:
        """The moment to start; None at the end of the pipe: stop."""
        # Written in one piece, and shorter than what a pipe cuts.
        message = os.read(self._descriptor, START.size)
        return cast(int, START.unpack(message)[0]) if message else None


def main() -> None:
    """Run the job that stands on standard input."""
    children.die_with_parent()
    raise_fd_limit()
    job = cast(Job, pickle.load(sys.stdin.buffer))
    # Snapshots have the pipe to themselves: whatever else prints goes to stderr.
    descriptor = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with contextlib.suppress(OSError):  # not allowed so much, or no such file
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    with contextlib.suppress(OSError):
        Path("/proc/self/timerslack_ns").write_text(_TIMER_SLACK)

    with os.fdopen(descriptor, "wb") as output, contextlib.closing(select.epoll()) as poller:

        def emit(snapshot: Snapshot) -> None:
            pickle.dump(snapshot, output)
            output.flush()

        pollers = [poller.fileno()]
        engine = Engine(
            job.plan,
            Pool(job.messages, job.first_message),
            job.schedule,
            dialer=KernelDialer(job.address, job.sources, job.tls),
            poller=poller,
            # An epoll can itself be waited for, by what takes microseconds.
            wait=lambda seconds: select.select(pollers, (), (), seconds)[0],
            clock=time.monotonic_ns,
            cpu_clock=time.process_time_ns,
            control=PipeControl(sys.stdin.fileno()),
            emit=emit,
        )
        # No collection may stop the measured loop; it makes no cycles.
        gc.freeze()
        gc.disable()
        engine.run()


if __name__ == "__main__":
    main()

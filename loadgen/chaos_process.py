"""The process of the abusers of ``loadgen chaos``: apart from the engines, which measure.

On standard input a pickled ``Storm``, then a byte to begin; its end is the word
to stop. On standard output a byte when all is ready, then the pickled outcomes.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from typing import Final, cast

from loadgen import children
from loadgen.chaos_storm import Abusers, Outcome, Storm
from loadgen.dialing import KernelDialer
from nbnet.machine import raise_fd_limit

NICENESS: Final = 5
"""By how much the abusers come after those that measure, where there are too few cores."""
_ALARM: Final = 10
"""Seconds over ``Storm.longest`` after which the kernel ends the process."""


class StormError(RuntimeError):
    """The abusers' process ended before it said what became of them."""


class AbuserProcess:
    """The abusers in a process of their own, ready to begin."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        self.begun = False

    def begin(self) -> None:
        """Let them loose."""
        assert self._child.stdin is not None
        self.begun = True
        with contextlib.suppress(BrokenPipeError):  # a dead child is noticed at the end
            self._child.stdin.write(b"!")
            self._child.stdin.flush()

    def stop(self) -> None:
        """End those that are left, soon; may be called from a signal handler."""
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._child.stdin.close()

    def outcomes(self) -> list[Outcome]:
        """Wait until all are done; what became of them.

        Raises:
            StormError: the process failed; why stands on stderr.
        """
        assert self._child.stdout is not None
        try:
            return cast("list[Outcome]", pickle.load(self._child.stdout))
        except (EOFError, pickle.UnpicklingError) as error:
            raise StormError("the abusers' process failed") from error


@contextlib.contextmanager
def abuser_process(storm: Storm) -> Generator[AbuserProcess, None, None]:
    """Start the abusers' process; at the end it is gone.

    Raises:
        StormError: it did not start.
    """
    child = children.start("loadgen.chaos_process")
    try:
        assert child.stdin is not None
        assert child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            pickle.dump(storm, child.stdin)
            child.stdin.flush()
        # Before anything is measured: the start of an interpreter takes a core.
        if not child.stdout.read(1):
            raise StormError("the abusers' process did not start")
        yield AbuserProcess(child)
    finally:
        child.kill()  # one that was done has ended already
        children.reap(child)


def main() -> None:
    """The child: run the storm that stands on standard input."""
    children.die_with_parent()
    raise_fd_limit()
    os.nice(NICENESS)
    storm = cast(Storm, pickle.load(sys.stdin.buffer))
    output = sys.stdout.buffer
    output.write(b"!")
    output.flush()
    outcomes = [Outcome(name=name) for name in storm.abuses]
    if os.read(sys.stdin.fileno(), 1):
        signal.alarm(int(storm.longest) + _ALARM)
        with contextlib.closing(select.epoll()) as poller:
            outcomes = Abusers(
                storm,
                dialer=KernelDialer(storm.address),
                poller=poller,
                clock=time.monotonic,
                stopping=sys.stdin.fileno(),
            ).run()
    with contextlib.suppress(BrokenPipeError):
        pickle.dump(outcomes, output)
        output.flush()


if __name__ == "__main__":
    main()

"""Commands in processes of their own that are forked, not started: 20 ms instead of 300.

Most of a start is imports. ``Forked`` is ``subprocess.Popen`` for ``python -m nbnet`` and
the like, and for ``python -c``: the process has a number, streams, signals, an exit code,
an environment and a directory of its own. It comes from a process that has imported the
commands before (``forkserver``), of which there is one for each process of tests. So it
is no child of this one, ``/proc`` has another command line, and it has loaded more.

What a test says of the start itself needs ``subprocess``: closed streams, variables that
the interpreter reads, what is imported when, memory, limits that are inherited.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, AnyStr

from support import forkserver

_ENVIRONMENT = dict(os.environ)
"""That of the process that forks."""
_READ_AT_THE_START = ("PYTHON", "LC_", "LANG", "LD_")


class Forked(subprocess.Popen[AnyStr]):
    """A command that runs.

    Args:
        args: the interpreter, ``-m`` or ``-c``, a module or a program, and arguments.
        popen: of ``subprocess.Popen``: ``stdin``, ``stdout``, ``stderr``, ``text``.

    Raises:
        ValueError: it needs an interpreter of its own.
    """

    def __init__(
        self,
        args: Sequence[str | bytes],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        start_new_session: bool = False,
        **popen: Any,
    ) -> None:
        words = [os.fsdecode(word) for word in args]
        environment = dict(os.environ if env is None else env)
        if words[0] != sys.executable or words[1] not in ("-m", "-c"):
            raise ValueError(f"{words[:2]}: expected {sys.executable} and -m or -c")
        for name, _ in environment.items() ^ _ENVIRONMENT.items():
            if name.startswith(_READ_AT_THE_START):
                raise ValueError(f"{name} is read when an interpreter starts: use subprocess")
        self._request = {
            "words": words[1:],
            "cwd": str(cwd or Path.cwd()),
            "environment": environment,
            "session": start_new_session,
        }
        self._looking = threading.Lock()
        self._answers: socket.socket
        unknown = popen.keys() - {"stdin", "stdout", "stderr", "text"}
        assert not unknown, unknown
        super().__init__(args, **popen)

    def _execute_child(self, *arguments: Any) -> None:
        # The base class has made the pipes: this process's ends and the child's in turn.
        ends: list[int] = [*arguments[10:16]]
        given = enumerate((ends[0], ends[3], ends[5]))
        streams: list[int] = [number if end == -1 else end for number, end in given]
        self._answers, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with there:
                message = json.dumps(self._request).encode()
                socket.send_fds(_forkserver(), [message], [*streams, there.fileno()])
        finally:
            self._close_pipe_fds(*ends)  # type: ignore[attr-defined]
        answer, descriptors, _, _ = socket.recv_fds(
            self._answers, forkserver.ANSWER.size, 1, socket.MSG_CMSG_CLOEXEC
        )
        if not answer:
            raise RuntimeError("the fork server ended")
        [self._descriptor] = descriptors
        [self.pid] = forkserver.ANSWER.unpack(answer)
        self._child_created = True

    def poll(self) -> int | None:
        """Its exit code, if it has ended."""
        self._look(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; its exit code.

        Raises:
            subprocess.TimeoutExpired: it goes on.
        """
        if not self._look(timeout):
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def send_signal(self, sig: int) -> None:
        """Send a signal, to nobody if it has ended."""
        with self._looking:
            if self.returncode is None:
                try:
                    signal.pidfd_send_signal(self._descriptor, sig)
                except ProcessLookupError:
                    return

    def _look(self, timeout: float | None) -> bool:
        """Wait for so long, if need be; whether it has ended."""
        with self._looking:
            if self.returncode is not None:
                return True
            # Another thread may be told first, and close its own.
            answers = self._answers.dup()
        with answers:
            poller = select.poll()
            poller.register(answers, select.POLLIN)
            if not poller.poll(None if timeout is None else 1000 * timeout):
                return False
        with self._looking:
            if self.returncode is None:
                self._note_end()
        return True

    def _note_end(self) -> None:
        answer = self._answers.recv(forkserver.ANSWER.size)
        self._answers.close()
        os.close(self._descriptor)
        if not answer:
            self.returncode = -signal.SIGKILL
            raise RuntimeError("the fork server ended, and its children with it")
        [status] = forkserver.ANSWER.unpack(answer)
        self.returncode = os.waitstatus_to_exitcode(status)


def run(
    args: Sequence[str | bytes], *, timeout: float, **popen: Any
) -> subprocess.CompletedProcess[Any]:
    """As ``subprocess.run``, and standard streams that are not given are read to their end."""
    streams = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    with Forked[Any](args, **streams | popen) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
    return subprocess.CompletedProcess(args, process.returncode, out, err)


@cache
def _forkserver() -> socket.socket:
    """The way to the process that forks, which ends with this one."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with there:
        process = subprocess.Popen(
            [sys.executable, forkserver.__file__, str(there.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[there.fileno()],
            env=_ENVIRONMENT,
            start_new_session=True,  # Ctrl-C is for the tests
        )

    def end() -> None:
        here.shutdown(socket.SHUT_RDWR)  # also where a copy was left
        here.close()
        process.wait()

    atexit.register(end)
    return here

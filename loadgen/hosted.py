"""A server that is started by a command line, for as long as a run takes.

The command is told a port that was free a moment before, by ``{port}`` in its
words. It runs in a session of its own, without a shell, and all of the session is
ended with it; the kernel kills it when the load generator dies, however that
happens. What it writes on standard error is only told if it does not start.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import IO, Final

from loadgen import children
from nbnet.notation import Address

START_SECONDS: Final = 10.0
"""How long a command may take until it accepts connections."""
_LOOK_AGAIN: Final = 0.02
_NOT_STARTED: Final = 127
"""What the child exits with that cannot become the command; shells do the same."""


class HostedError(RuntimeError):
    """A command did not come to accept connections; the message says which and why."""


@contextlib.contextmanager
def hosted(command: str) -> Iterator[Address]:
    """Start a server, wait until it accepts connections on 127.0.0.1, and end it at the end.

    Args:
        command: its words, as in a shell, with ``{port}`` for the port.

    Raises:
        HostedError: it did not start, or did not accept connections within 10 s.
    """
    port = _free_port()
    words = [word.replace("{port}", str(port)) for word in split(command)]
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "loadgen.hosted", str(os.getpid()), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
        try:
            _wait_until_accepting(child, port, command, errors)
            yield Address("127.0.0.1", port)
        finally:
            _end(child)


def split(command: str) -> list[str]:
    """The words of a command.

    Raises:
        ValueError: it has none, no ``{port}``, or a quote that does not end.

    >>> split("nbnet serve --port {port}")
    ['nbnet', 'serve', '--port', '{port}']
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ValueError(f"{command!r}: {str(error).lower()}") from error
    if not any("{port}" in word for word in words):
        raise ValueError(f"{command!r} has no {{port}}: say where the port belongs")
    return words


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _wait_until_accepting(
    child: subprocess.Popen[bytes], port: int, command: str, errors: IO[bytes]
) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            return
        code = child.poll()
        if code is not None:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines()
            raise HostedError(
                f"{command!r} ended with {code} before it took connections"
                + (f": {said[-1]}" if said else "")
            )
        if time.monotonic() > deadline:
            raise HostedError(
                f"{command!r} takes no connections on 127.0.0.1:{port} after {START_SECONDS:.0f} s"
            )
        time.sleep(_LOOK_AGAIN)


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a command and whatever it started in its session; returns when it is gone."""
    _signal_all(child, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(children.STOP_SECONDS)
    _signal_all(child, signal.SIGKILL)
    child.wait()


def _signal_all(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def main() -> None:
    """The child: become the command, which dies with the parent."""
    children.die_with_parent()
    try:
        os.execvp(sys.argv[2], sys.argv[2:])
    except OSError as error:
        print(f"{sys.argv[2]}: {error.strerror}", file=sys.stderr)
        sys.exit(_NOT_STARTED)


if __name__ == "__main__":
    main()

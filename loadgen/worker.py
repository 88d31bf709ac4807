"""The child process that runs an engine: a job comes in, snapshots go out."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import pickle
import socket
import sys
import time
from typing import cast

from loadgen import children
from loadgen.engine import Engine
from loadgen.plan import Job
from loadgen.tally import Snapshot
from loadgen.traffic import reversed_text
from nbnet.machine import SocketAddress, raise_fd_limit
from nbnet.pollers import open_poller


def dial(address: SocketAddress) -> socket.socket:
    """Begin a connection without waiting for it.

    Raises:
        OSError: the kernel refused at once.
    """
    connection = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.connect(address.sockaddr)
    except BlockingIOError:
        pass
    except BaseException:
        connection.close()
        raise
    return connection


def connect_error(connection: socket.socket) -> int:
    """How a connection that was begun came out: an errno, 0 for well."""
    error = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        return error
    try:
        to_itself = connection.getsockname() == connection.getpeername()
    except OSError as gone:  # reset since
        return gone.errno or errno.ENOTCONN
    # TCP lets a socket connect to itself when the port that it was given is the
    # one it asks for: nobody listens there.
    return errno.ECONNREFUSED if to_itself else 0


def main() -> None:
    """Read a pickled job from standard input; pickle snapshots to standard output.

    Standard input becomes readable again when the parent wants the run to stop.
    """
    children.die_with_parent()
    raise_fd_limit()
    job = cast(Job, pickle.load(sys.stdin.buffer))
    # Snapshots have the pipe to themselves: whatever else prints goes to stderr.
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def emit(snapshot: Snapshot) -> None:
        pickle.dump(snapshot, output)
        output.flush()

    with contextlib.closing(open_poller()) as poller:
        engine = Engine(
            job.plan,
            reversed_text(job.plan.payload),
            dial=lambda: dial(job.address),
            connect_error=connect_error,
            poller=poller,
            clock=time.monotonic_ns,
            cpu_clock=time.process_time_ns,
            control=sys.stdin.fileno(),
            emit=emit,
        )
        # No collection may stop the measured loop; it makes no cycles.
        gc.freeze()
        gc.disable()
        engine.run()


if __name__ == "__main__":
    main()

"""The child process that runs an engine: a job comes in, snapshots go out."""

from __future__ import annotations

import gc
import pickle
import socket
import sys
import time
from typing import cast

from loadgen import children
from loadgen.engine import Engine
from loadgen.plan import Address, Job, raise_fd_limit
from loadgen.tally import Snapshot
from loadgen.traffic import reversed_text
from nbnet.pollers import open_poller


def dial(address: Address) -> socket.socket:
    """Begin a connection without waiting for it.

    Raises:
        OSError: the kernel refused at once.
    """
    connection = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if address.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.connect(address.sockaddr)
    except BlockingIOError:
        pass
    except BaseException:
        connection.close()
        raise
    return connection


def main() -> None:
    """Read a pickled job from standard input; pickle snapshots to standard output.

    Standard input becomes readable again when the parent wants the run to stop.
    """
    children.die_with_parent()
    raise_fd_limit()
    job = cast(Job, pickle.load(sys.stdin.buffer))
    output = sys.stdout.buffer

    def emit(snapshot: Snapshot) -> None:
        pickle.dump(snapshot, output)
        output.flush()

    with open_poller() as poller:
        engine = Engine(
            job.plan,
            reversed_text(job.plan.payload),
            dial=lambda: dial(job.address),
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

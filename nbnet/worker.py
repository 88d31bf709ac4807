"""One process of a supervised server: the child's side.

It serves until it is told to stop, or to hand its connections to the process
that takes its place. It talks with the supervisor in small JSON messages over a
unix socket that keeps them apart (``Control``).

The rules:

* it ends with its supervisor, however that ends;
* what it cannot start with (a handler that does not import) is told to the
  supervisor, in words for people;
* Ctrl-C and SIGHUP are for the supervisor alone, and ignored here.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from typing import Any, Self

from nbnet.counters import Counters
from nbnet.handover import Arrival, Departure
from nbnet.pollers import READ
from nbnet.running import Forced, open_loop, signals_stop
from nbnet.settings import Settings

log = logging.getLogger("nbnet")


class Control:
    """One end of the talk between the supervisor and a worker: whole messages, maybe a socket.

    Neither waits: the supervisor has others to hear, and the end of a worker may
    stay open in a process that a handler has forked.

    >>> one, other = Control.pair()
    >>> one.send({"ready": True})
    >>> other.receive()
    ({'ready': True}, None)
    >>> one.close()
    >>> other.receive() is None
    True
    >>> other.close()
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    @classmethod
    def pair(cls) -> tuple[Self, Self]:
        """Two ends that are connected."""
        kind = socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK
        one, other = socket.socketpair(socket.AF_UNIX, kind)
        return cls(one), cls(other)

    def fileno(self) -> int:
        """For a poller; readable when a message came or the other end is gone."""
        return self._connection.fileno()

    def send(self, message: dict[str, Any], passed: socket.socket | None = None) -> None:
        """Send a message, and a socket with it; nothing happens if the other end is gone."""
        descriptors = [] if passed is None else [passed.fileno()]
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
            socket.send_fds(self._connection, [json.dumps(message).encode()], descriptors)

    def receive(self) -> tuple[dict[str, Any], socket.socket | None] | None:
        """The next message; None when the other end is gone.

        Raises:
            BlockingIOError: there is none yet.
        """
        try:
            data, descriptors, _, _ = socket.recv_fds(self._connection, 65536, 1)
        except ConnectionResetError:
            return None
        if not data:
            return None
        passed = socket.socket(fileno=descriptors[0]) if descriptors else None
        if passed is not None:  # not for what a handler starts
            passed.set_inheritable(False)
        return json.loads(data), passed

    def close(self) -> None:
        """Close this end; calling it again does nothing."""
        self._connection.close()


def run_worker(
    read: Callable[[], Settings],
    listeners: Sequence[socket.socket],
    control: Control,
    link: socket.socket | None,
    expected: int,
    publish: Callable[[Counters], None],
) -> bool:
    """Serve until told to end; say whether it could.

    Args:
        read: makes the settings, here and now.
        listeners: sockets to accept from; this process's copies are closed.
        control: to the supervisor.
        link: where the connections of the process come from that this one replaces.
        expected: how many they are, more or less.
        publish: called now and then with what has been counted.
    """
    try:
        settings = read()
    except (ValueError, TypeError) as error:
        control.send({"failed": str(error)})
        return False
    with (
        contextlib.suppress(Forced),
        open_loop(listeners, settings, publish) as (loop, wake_up),
        signals_stop(loop, wake_up, signal.SIGTERM),
    ):
        # For the socket of a hand-over, however many files are open by then.
        spare = [os.open(os.devnull, os.O_RDONLY)]

        def hear() -> None:
            while spare:
                os.close(spare.pop())
            try:
                heard = control.receive()
            except BlockingIOError:
                return
            if heard is None:
                loop.stop()  # the supervisor is gone
                loop.unwatch(control.fileno())
            elif heard[1] is not None:
                # Once they have moved, what is left has to end.
                Departure(loop, heard[1], lambda well: loop.leave() if well else None)

        loop.watch(control.fileno(), READ, hear)
        if link is not None:
            Arrival(loop, link, expected)
        control.send({"ready": True, "drain": settings.limits.drain})
        # What start-up allocated lives as long as the process: the garbage
        # collector need not walk it again and again.
        gc.freeze()
        loop.run()
    return True

"""Making connections: begun without waiting, finished when the kernel says so.

Used for all connections at the start, and to replace those that failed. What
becomes of an attempt is told to the two callbacks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

from loadgen.connection import TIMEOUT, Connection, Socket, kind_of_error
from nbnet.pollers import READ, WRITE, Poller


class Dialer(Protocol):
    """The way to the server."""

    read_size: int
    """Bytes that a read has to ask for at least, so that none stay behind unseen."""

    def dial(self) -> Socket:
        """Begin a connection and give its non-blocking socket.

        Raises:
            BlockingIOError: not now, but after a while.
            OSError: the kernel refuses at once.
        """

    def advance(self, socket: Any, /) -> tuple[Socket, int]:
        """Go on with one that was begun.

        Gives the socket to use from now on, of the same descriptor, and the event
        to wait for; 0 if the connection is made.

        Raises:
            OSError: it failed.
        """

    def stamped(self, socket: Any, /) -> Callable[[int], tuple[bytes, int]] | None:
        """A way to read that also tells how many nanoseconds the last bytes have waited.

        A negative number says that it is not known; None, that it never is.
        """


class Opener:
    """The attempts under way.

    Args:
        made: takes a connection, which is registered for ``READ``.
        failed: takes the number of one that was not made, whether it would have
            been one that sends, and the reason.
    """

    def __init__(
        self,
        dialer: Dialer,
        poller: Poller,
        clock: Callable[[], int],
        *,
        made: Callable[[Connection], None],
        failed: Callable[[int, bool, str], None],
    ) -> None:
        self._dialer = dialer
        self._poller = poller
        self._clock = clock
        self._made = made
        self._failed = failed
        self._begun: dict[int, Connection] = {}

    def __len__(self) -> int:
        """How many attempts are under way."""
        return len(self._begun)

    def __contains__(self, fd: int) -> bool:
        return fd in self._begun

    def begin(self, number: int, *, sends: bool) -> bool:
        """Begin a connection; whether that was possible now."""
        begun = self._clock()
        try:
            socket = self._dialer.dial()
        except BlockingIOError:
            return False
        except OSError as error:
            self._failed(number, sends, kind_of_error(error))
            return True
        connection = Connection(socket, number, sends=sends, begun=begun)
        try:
            self._poller.register(connection.fd, WRITE)
        except OSError as error:  # the kernel may be out of memory, or of watches
            socket.close()
            self._failed(number, sends, kind_of_error(error))
            return True
        self._begun[connection.fd] = connection
        return True

    def handle(self, fd: int) -> None:
        """Go on with an attempt that the poller has an event for."""
        connection = self._begun[fd]
        try:
            socket, event = self._dialer.advance(connection.socket)
            if socket is not connection.socket:
                connection.adopt(socket)
            self._poller.modify(fd, event or READ)
        except OSError as error:
            self._fail(connection, kind_of_error(error))
            return
        if not event:
            del self._begun[fd]
            self._made(connection)

    def expire(self, before: int) -> None:
        """Fail the attempts that were begun before a moment, in nanoseconds."""
        # They stand in the order of their beginnings.
        for connection in list(self._begun.values()):
            if connection.begun >= before:
                return
            self._fail(connection, TIMEOUT)

    def abandon(self) -> int:
        """Close all attempts without failing them; how many there were."""
        count = len(self._begun)
        for connection in self._begun.values():
            self._close(connection)
        self._begun.clear()
        return count

    def _fail(self, connection: Connection, kind: str) -> None:
        del self._begun[connection.fd]
        self._close(connection)
        self._failed(connection.number, connection.sends, kind)

    def _close(self, connection: Connection) -> None:
        # A socket that is lost when it is taken over for TLS takes its descriptor with it.
        with contextlib.suppress(OSError):
            self._poller.unregister(connection.fd)
        connection.socket.close()

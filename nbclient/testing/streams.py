"""``FakeStream``: the blocking client's end of a connection, in simulated time."""

from __future__ import annotations

import errno
import math
import threading
from collections.abc import Callable
from typing import Final, Self

from nbclient.testing.connection import FakeConnection
from nbclient.testing.faults import os_error

READ_SIZE: Final = 64 * 1024
"""Bytes given by one receive at most, unless it asks for another number."""


class WouldHangError(AssertionError):
    """A blocking call, made without a timeout, waits for what never comes.

    It is no error of the network, so that no client takes it for one.

    >>> from nbclient.testing import FakeServer
    >>> FakeServer().connect().receive(timeout=None)
    Traceback (most recent call last):
    nbclient.testing.streams.WouldHangError: receive() without a timeout would wait for ever
    """


class Clock:
    """The simulated time of a blocking stream, in seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def wait(self, until: float, timeout: float | None, what: str) -> None:
        """Let the time pass at once.

        Raises:
            TimeoutError: it is longer than the timeout.
            WouldHangError: it would never end.
        """
        if timeout is not None and until - self.now > timeout:
            # It takes no time: a front that tries again, since by its own clock
            # some is left, must not get through by that.
            raise TimeoutError("timed out")
        if until == math.inf:
            raise WouldHangError(f"{what} without a timeout would wait for ever")
        self.now = max(self.now, until)


class Turn:
    """Refuses a second call while one is under way, by the error that it is given."""

    def __init__(self, busy: Callable[[], Exception]) -> None:
        self._busy = busy
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise self._busy()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class FakeStream:
    """The blocking client's end of a connection: what ``Client`` wants of a transport.

    It never blocks; the time is simulated. Two threads that send at a time, or
    receive at a time, are a bug and a ``RuntimeError``.

    >>> from nbclient.testing import FakeServer, Fault
    >>> server = FakeServer(faults=[Fault(delay=2)])
    >>> with server.connect() as stream:
    ...     sent = stream.send(b"00003abc", timeout=5)
    ...     try:
    ...         stream.receive(timeout=1.5)
    ...     except TimeoutError:
    ...         stream.receive(timeout=2)
    b'00003cba'
    """

    def __init__(self, connection: FakeConnection, clock: Clock) -> None:
        self._connection = connection
        self._clock = clock
        self._sending = Turn(lambda: RuntimeError("two threads send on one stream"))
        self._receiving = Turn(lambda: RuntimeError("two threads receive on one stream"))
        self._closed = False
        self._aborted = False

    def send(self, data: bytes | memoryview, timeout: float | None) -> int:
        """Pass bytes on; give how many were taken, at least one if there are any.

        Raises:
            TimeoutError: none were taken in the seconds given.
            WouldHangError: none would ever be, and there is no timeout.
            OSError: the connection was reset, aborted or closed.
        """
        with self._sending:
            self._check_open()
            if self._aborted:
                raise os_error(errno.EPIPE)
            self._clock.wait(self._connection.writable_at(), timeout, "send()")
            data = bytes(data)
            if taken := self._connection.receive_some(data):
                return taken
            self._clock.wait(self._connection.writable_at(), timeout, "send()")
            self._connection.receive(data)
            return len(data)

    def receive(self, timeout: float | None) -> bytes:
        """Up to 64 KiB of what has come; ``b""`` is the end.

        Raises:
            TimeoutError: nothing came in the seconds given, and nothing is lost.
            WouldHangError: nothing would ever come, and there is no timeout.
            OSError: the connection was reset or closed.
        """
        with self._receiving:
            self._check_open()
            while (data := self._connection.take(READ_SIZE)) is None:
                self._clock.wait(self._connection.readable_at(), timeout, "receive()")
            return data

    def readable(self) -> bool:
        """Whether ``receive`` would not wait."""
        return self._connection.readable_at() <= self._clock.now

    def abort(self) -> None:
        """Shut both directions, from any thread."""
        self._aborted = True
        self._connection.close()

    def close(self) -> None:
        """Close it. May be called again."""
        self._closed = True
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise os_error(errno.EBADF)

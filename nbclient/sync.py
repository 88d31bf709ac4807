"""The blocking front: ``Client``. Mirrored, name by name, by ``nbclient.trio``.

Rules kept by both fronts:

* a connection is made when it is needed and kept for the next request;
* a request takes the connection out of its place and puts it back only if the
  exchange on it is idle. Whatever comes between the first byte sent and the
  last byte of the reply (a fault, a timeout, Ctrl-C) closes it: a late
  reply must not reach a later request;
* a kept connection that has become readable was closed by the server, or has
  bytes that nobody asked for: it is dropped and another one made;
* nothing is sent twice: a request that failed is the caller's to repeat.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

from nbclient.exchange import Exchange
from nbclient.settings import DEFAULT_TARGET, DEFAULT_TIMEOUT, Settings
from nbnet.machine import look_up

READ_SIZE: Final = 64 * 1024
"""Bytes asked of the kernel in one read."""


class Client:
    """Sends requests to one server and waits for the replies.

    For one thread at a time. It connects at the first request, and again after
    a fault.

    Args:
        target: the server, as ``"HOST:PORT"`` or a tuple of both.
        timeout: seconds that one request may take, connecting included (looking
            up a host name is not: the system cannot be interrupted in that);
            None for no limit.

    Raises:
        ValueError: the target is no address, or the timeout is not positive.

    >>> from nbnet import Server
    >>> with Server(port=0) as server, Client(server.address) as client:
    ...     client.request(b"abc")
    ...     list(client.request_many([b"de", b"fgh"]))
    b'cba'
    [b'ed', b'hgf']
    """

    def __init__(
        self,
        target: str | tuple[str, int] = DEFAULT_TARGET,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
    ) -> None:
        self._settings = Settings.read(target, timeout)
        self._kept: _Connection | None = None
        self._used: set[_Connection] = set()
        self._closed = False

    def request(self, payload: bytes) -> bytes:
        """Send a payload of 1 to 99,999 bytes; give the payload of the reply.

        Raises:
            ValueError: the payload is empty or too long; nothing was sent.
            TypeError: the payload is no bytes; nothing was sent.
            ConnectError: no connection could be made; nothing was sent.
            RequestTimeout: the time is over.
            ProtocolError: the server sent something that is no reply.
            ConnectionLost: the server closed the connection before replying.
            ClosedError: the client is closed.

        >>> from nbnet import Server
        >>> with Server(bytes.upper, port=0) as server, Client(server.address) as client:
        ...     client.request(b"abc")
        b'ABC'
        """
        deadline = _Deadline(self._settings)
        with self._connection() as connection:
            exchange = connection.exchange
            exchange.add(payload)
            connection.send(exchange.take(), deadline)
            while (reply := exchange.next_reply()) is None:
                connection.receive(deadline)
            # A reply with more behind it may not be the right one.
            exchange.check()
            return reply

    def request_many(self, payloads: Iterable[bytes]) -> Generator[bytes, None, None]:
        """Send payloads one after the other; give their replies in that order.

        The requests are pipelined: payloads are taken, and sent, ahead of the
        replies, up to 64 KiB of them. So the iterable may be of any length, but
        it must not wait for a reply before it goes on. The timeout is for each
        next reply and does not count the time that the iterable and the caller
        take.

        The replies have a connection to themselves; another request made
        meanwhile opens a second one. Leaving before the last reply closes it.
        An error, from the iterable or an unfit payload too, ends the generator
        where it occurs, and replies outstanding are lost.

        Raises:
            TypeError: this is no iterable, or a payload is no bytes.
            ValueError: a payload is empty or too long.
            NbclientError: as for ``request``, after the replies that came before.

        >>> from nbnet import Server
        >>> with Server(port=0) as server, Client(server.address) as client:
        ...     for reply in client.request_many(b"%d0" % n for n in range(3)):
        ...         print(reply)
        b'00'
        b'01'
        b'02'
        """
        return self._replies(iter(payloads))

    def close(self) -> None:
        """Close the connection, also one that is in use. May be called again."""
        self._closed = True
        if self._kept is not None:
            self._used.add(self._kept)
            self._kept = None
        while self._used:
            self._used.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _replies(self, payloads: Iterator[bytes]) -> Generator[bytes, None, None]:
        with self._connection() as connection:
            exchange = connection.exchange
            while True:
                data = exchange.fill(payloads)
                if not exchange.outstanding:
                    return
                deadline = _Deadline(self._settings)
                if data:
                    connection.send(data, deadline)
                while (reply := exchange.next_reply()) is None:
                    connection.receive(deadline)
                # All that one read brought is given before more is sent, so that
                # requests go out in batches of the same size.
                while reply is not None:
                    yield reply
                    reply = exchange.next_reply()

    @contextmanager
    def _connection(self) -> Iterator[_Connection]:
        """A connection to have for oneself."""
        connection, self._kept = self._kept, None
        if connection is not None and connection.stale:
            connection.close()
            connection = None
        if self._closed:
            raise self._settings.closed()
        if connection is None:
            connection = _Connection(self._settings)
        try:
            self._used.add(connection)
            yield connection
        finally:
            self._used.discard(connection)
            if connection.exchange.idle and self._kept is None:
                self._kept = connection
            else:
                connection.close()


class _Deadline:
    """When a request has to be done."""

    __slots__ = ("_end", "_settings")

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._end = None if settings.timeout is None else time.monotonic() + settings.timeout

    def left(self) -> float | None:
        """Seconds left, for ``settimeout``; None for no limit."""
        if self._end is None:
            return None
        left = self._end - time.monotonic()
        if left <= 0:  # 0 would mean non-blocking
            raise self._settings.timed_out()
        return left


class _Connection:
    """A socket, connected with the first bytes to send, and the exchange on it."""

    __slots__ = ("_settings", "_socket", "exchange")

    def __init__(self, settings: Settings) -> None:
        self.exchange = Exchange()
        self._settings = settings
        self._socket: socket.socket | None = None

    @property
    def stale(self) -> bool:
        """Whether there is something to read although nothing is outstanding."""
        if self._socket is None:
            return False
        self._socket.settimeout(0)
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            pass  # broken, and so of no more use
        return True

    def send(self, data: bytes, deadline: _Deadline) -> None:
        if self._socket is None:
            self._socket = _connect(self._settings, deadline)
        self._socket.settimeout(deadline.left())
        try:
            self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            # Replies sent before may still be there to be read, and reading will
            # tell of the end.
            return
        except OSError as error:
            raise _translate(error, self._settings) from error

    def receive(self, deadline: _Deadline) -> None:
        assert self._socket is not None
        self._socket.settimeout(deadline.left())
        try:
            data = self._socket.recv(READ_SIZE)
        except OSError as error:
            raise _translate(error, self._settings) from error
        self.exchange.receive(data)

    def close(self) -> None:
        self.exchange.poison(self._settings.closed())
        if self._socket is not None:
            self._socket.close()


def _connect(settings: Settings, deadline: _Deadline) -> socket.socket:
    """A connection to the first of the host's addresses that takes one."""
    try:
        found = look_up(settings.address)
    except OSError as error:
        raise settings.cannot_connect([error]) from error
    causes: list[OSError] = []
    for family, address in found:
        left = deadline.left()
        try:
            return _connect_one(socket.socket(family, socket.SOCK_STREAM), address, left)
        except OSError as error:
            if _is_deadline(error):
                raise settings.timed_out() from error
            causes.append(error)
    raise settings.cannot_connect(causes) from causes[0]


def _connect_one(
    connecting: socket.socket, address: tuple[object, ...], timeout: float | None
) -> socket.socket:
    try:
        connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connecting.settimeout(timeout)
        connecting.connect(address)
        _check_peer(connecting)
    except BaseException:
        connecting.close()
        raise
    return connecting


def _check_peer(connected: socket.socket) -> None:
    # TCP lets a socket connect to itself when the port that it was given is the
    # one it asks for: nobody listens there.
    if connected.getsockname() == connected.getpeername():
        raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))


def _translate(error: OSError, settings: Settings) -> Exception:
    return settings.timed_out() if _is_deadline(error) else settings.lost(error)


def _is_deadline(error: OSError) -> bool:
    """Whether our own timeout has passed; the kernel's ETIMEDOUT is a TimeoutError too."""
    return isinstance(error, TimeoutError) and error.errno is None

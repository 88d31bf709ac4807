"""The trio front: ``AsyncClient``. Mirrors ``nbclient.sync`` name by name, rules and all.

What trio adds:

* a cancellation between the first byte sent and the last byte of the reply
  closes the connection, as a timeout does, and goes on to the caller;
* no nursery, no task in the background;
* no cancel scope is open while a generator gives a reply.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio

from nbclient.exchange import Exchange
from nbclient.settings import DEFAULT_TARGET, DEFAULT_TIMEOUT, Settings


class AsyncClient(trio.abc.AsyncResource):
    """Sends requests to one server and awaits the replies.

    For any number of tasks of one trio run; their requests wait for each other,
    first come, first served. It connects at the first request, and again after
    a fault.

    Args:
        target: the server, as ``"HOST:PORT"`` or a tuple of both.
        timeout: seconds that one request may take, connecting and waiting for
            other tasks included; None for no limit.

    Raises:
        ValueError: the target is no address, or the timeout is not positive.

    >>> from nbnet import Server
    >>> async def main(address):
    ...     async with AsyncClient(address) as client:
    ...         print(await client.request(b"abc"))
    ...         async for reply in client.request_many([b"de", b"fgh"]):
    ...             print(reply)
    >>> with Server(port=0) as server:
    ...     trio.run(main, server.address)
    b'cba'
    b'ed'
    b'hgf'
    """

    def __init__(
        self,
        target: str | tuple[str, int] = DEFAULT_TARGET,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
    ) -> None:
        self._settings = Settings.read(target, timeout)
        self._lock = trio.Lock()
        self._kept: _Connection | None = None
        self._used: set[_Connection] = set()
        self._closed = False

    async def request(self, payload: bytes) -> bytes:
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
        >>> async def main(address):
        ...     async with AsyncClient(address) as client:
        ...         return await client.request(b"abc")
        >>> with Server(bytes.upper, port=0) as server:
        ...     trio.run(main, server.address)
        b'ABC'
        """
        with _deadline(self._settings):
            async with self._lock, self._connection() as connection:
                exchange = connection.exchange
                exchange.add(payload)
                await connection.send(exchange.take())
                while (reply := exchange.next_reply()) is None:
                    await connection.receive()
                # A reply with more behind it may not be the right one.
                exchange.check()
                return reply

    def request_many(
        self, payloads: Iterable[bytes] | AsyncIterable[bytes]
    ) -> AsyncGenerator[bytes, None]:
        """Send payloads one after the other; give their replies in that order.

        The requests are pipelined: payloads are taken, and sent, ahead of the
        replies, up to 64 KiB of them. So the iterable may be of any length, but
        it must not wait for a reply before it goes on. The timeout is for each
        next reply and does not count the time that the iterable and the caller
        take.

        The replies have a connection to themselves; another request made
        meanwhile opens a second one. Leaving before the last reply closes it;
        whoever may leave uses ``contextlib.aclosing``, as with every
        asynchronous generator. An error, from the iterable or an unfit payload
        too, ends the generator where it occurs, and replies outstanding are
        lost.

        Raises:
            TypeError: this is no iterable, or a payload is no bytes.
            ValueError: a payload is empty or too long.
            NbclientError: as for ``request``, after the replies that came before.

        >>> from nbnet import Server
        >>> async def main(address):
        ...     async with AsyncClient(address) as client:
        ...         async for reply in client.request_many(b"%d0" % n for n in range(3)):
        ...             print(reply)
        >>> with Server(port=0) as server:
        ...     trio.run(main, server.address)
        b'00'
        b'01'
        b'02'
        """
        if isinstance(payloads, AsyncIterable):
            return self._replies(aiter(payloads))
        return self._replies(iter(payloads))

    async def aclose(self) -> None:
        """Close the connection, also one that is in use. May be called again."""
        self._closed = True
        if self._kept is not None:
            self._used.add(self._kept)
            self._kept = None
        while self._used:
            await self._used.pop().aclose()
        await trio.lowlevel.checkpoint()

    async def _replies(
        self, payloads: Iterator[bytes] | AsyncIterator[bytes]
    ) -> AsyncGenerator[bytes, None]:
        async with self._connection() as connection:
            exchange = connection.exchange
            while True:
                data = await _fill(exchange, payloads)
                if not exchange.outstanding:
                    return
                with _deadline(self._settings):
                    if data:
                        await connection.send(data)
                    while (reply := exchange.next_reply()) is None:
                        await connection.receive()
                # All that one read brought is given before more is sent, so that
                # requests go out in batches of the same size.
                while reply is not None:
                    yield reply
                    reply = exchange.next_reply()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[_Connection]:
        """A connection to have for oneself."""
        connection, self._kept = self._kept, None
        if connection is not None and connection.stale:
            await connection.aclose()
            connection = None
        if self._closed:
            raise self._settings.closed()
        if connection is None:
            connection = _Connection(self._settings)
        self._used.add(connection)
        try:
            yield connection
        finally:
            self._used.discard(connection)
            if connection.exchange.idle and self._kept is None:
                self._kept = connection
            else:
                await connection.aclose()


@contextmanager
def _deadline(settings: Settings) -> Iterator[None]:
    """``trio.fail_after`` with an error of our own."""
    with trio.move_on_after(settings.limit) as scope:
        yield
    if scope.cancelled_caught:
        raise settings.timed_out()


async def _fill(exchange: Exchange, payloads: Iterator[bytes] | AsyncIterator[bytes]) -> bytes:
    """``Exchange.fill`` for both kinds of iterators."""
    if isinstance(payloads, Iterator):
        return exchange.fill(payloads)
    if exchange.room:
        async for payload in payloads:
            exchange.add(payload)
            if not exchange.room:
                break
    return exchange.take()


class _Connection:
    """A stream, connected with the first bytes to send, and the exchange on it."""

    __slots__ = ("_settings", "_stream", "exchange")

    def __init__(self, settings: Settings) -> None:
        self.exchange = Exchange()
        self._settings = settings
        self._stream: trio.abc.Stream | None = None

    @property
    def stale(self) -> bool:
        """Whether there is something to read although nothing is outstanding."""
        # Streams other than sockets cannot tell.
        return isinstance(self._stream, trio.SocketStream) and self._stream.socket.is_readable()

    async def send(self, data: bytes) -> None:
        if self._stream is None:
            self._stream = await _connect(self._settings)
            self.exchange.check()  # closed meanwhile?
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError:
            # Replies sent before may still be there to be read, and reading will
            # tell of the end.
            return
        except trio.ClosedResourceError as error:
            raise self._settings.closed() from error

    async def receive(self) -> None:
        assert self._stream is not None
        try:
            data = await self._stream.receive_some()
        except trio.BrokenResourceError as error:
            raise self._settings.lost(error.__cause__ or error) from error
        except trio.ClosedResourceError as error:
            raise self._settings.closed() from error
        self.exchange.receive(bytes(data))  # no copy of what is bytes already

    async def aclose(self) -> None:
        self.exchange.poison(self._settings.closed())
        if self._stream is not None:
            # Shielded, as an error on its way must not turn into a cancellation.
            # Closing by force does not block.
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(self._stream)


async def _connect(settings: Settings) -> trio.abc.Stream:
    """A connection to the first of the host's addresses that takes one."""
    try:
        return await trio.open_tcp_stream(*settings.address)
    except (OSError, UnicodeError) as error:
        attempts = error.__cause__
        causes = attempts.exceptions if isinstance(attempts, ExceptionGroup) else [error]
        raise settings.cannot_connect(causes) from error

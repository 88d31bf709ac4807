"""The trio front: ``AsyncClient``. Mirrors ``nbclient.sync`` name by name.

Its rules are those of the blocking front, and besides:

* many tasks share few connections: requests of all of them are on the way at a
  time, and each task gets its own reply;
* no nursery, no task in the background. A connection has roles: to open it, to
  send, to read. Whoever waits and finds a role free takes it, for all who wait,
  and whoever is done leaves it to another;
* a task may be cancelled at every checkpoint. If it is known how much of its
  request was sent, the connection stays in step, and a reply that is still due
  is dropped when it comes. If it is not known, the connection is closed, and the
  others on it fail with an error that says so;
* a connection on which a request timed out gets no further ones;
* no cancel scope is open while a generator gives a reply.
"""

from __future__ import annotations

import errno
import os
import time
import warnings
import weakref
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
)
from itertools import count
from typing import TYPE_CHECKING, TypeAlias

import trio

from nbclient.errors import (
    ClosedError,
    ConnectError,
    ConnectionLost,
    ConnectTimeout,
    NbclientError,
)
from nbclient.events import Event, Hook, Watch
from nbclient.exchange import encode_request, encode_requests
from nbclient.pipeline import AT_ONCE, Pipeline, take_at_once
from nbclient.servers import Attempts, Server, Servers
from nbclient.settings import (
    DEFAULT_TARGET,
    DEFAULT_TIMEOUT,
    DEFAULT_WINDOW,
    Default,
    Settings,
    Targets,
    reasons_of,
)
from nbclient.trio_connection import Call, Connection
from nbnet.framing import HEADER_SIZE
from nbnet.notation import Address

if TYPE_CHECKING:
    import ssl

Connect: TypeAlias = Callable[[Address], Awaitable[trio.abc.Stream]]
"""Makes a connection to a server."""


class AsyncClient(trio.abc.AsyncResource):
    """Sends requests to a server and awaits the replies.

    For trio, not for asyncio; for any number of tasks of one trio run, which share
    the connections. It
    connects at the first request, again after a fault, and once more, up to
    ``max_connections``, when all connections have requests under way.

    Args:
        target: the server: ``"HOST:PORT"``, ``"[IPv6]:PORT"``, ``"tls://HOST:PORT"``,
            ``"unix:PATH"``, or a tuple of host and port. Or a sequence of these:
            several servers that answer alike.
        timeout: seconds that one request may take, connecting and retries
            included; None for no limit. Cancel scopes do as well.
        connect_timeout: seconds that one attempt to connect may take; None for no
            limit of its own, or, of several servers, an equal share of ``timeout``.
        max_connections: how many may be shared at a time, to each server. Each
            ``request_many`` under way has one of its own besides.
        retries: how often a request is tried again at most. That happens when
            nothing of it was sent, or when it may be executed twice.
        backoff: seconds of the longest pause before the first retry; it doubles
            with each further one, and a random share of it is waited for.
        backoff_cap: seconds of the longest pause of all.
        tls: whether to speak TLS, or with which ``ssl.SSLContext``; by default,
            if a target or one of the following says so.
        tls_ca: a file of certificates to trust, in PEM; the system's without.
        tls_cert, tls_key: files with a certificate to show, and its key.
        tls_server_name: the name that the server's certificate must have; by
            default the host.
        on_event: called with an ``nbclient.Event`` for what happens inside.
        connect: makes the connections: any ``trio.abc.Stream`` will do.

    Raises:
        ValueError: a target is no address, a number is out of its range, or a
            file for TLS cannot be used.

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
        target: Targets = DEFAULT_TARGET,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        connect_timeout: float | None = None,
        max_connections: int = 4,
        retries: int = 2,
        backoff: float = 0.05,
        backoff_cap: float = 2.0,
        tls: bool | ssl.SSLContext | None = None,
        tls_ca: str | os.PathLike[str] | None = None,
        tls_cert: str | os.PathLike[str] | None = None,
        tls_key: str | os.PathLike[str] | None = None,
        tls_server_name: str | None = None,
        on_event: Hook | None = None,
        connect: Connect | None = None,
    ) -> None:
        self._closed = True  # as long as the arguments may be wrong
        self._forget()
        self._settings = settings = Settings.read(
            target,
            timeout=timeout,
            connect_timeout=connect_timeout,
            max_connections=max_connections,
            retries=retries,
            backoff=backoff,
            backoff_cap=backoff_cap,
            tls=tls,
            tls_ca=tls_ca,
            tls_cert=tls_cert,
            tls_key=tls_key,
            tls_server_name=tls_server_name,
            on_event=on_event,
        )
        self._connect: Connect = connect or (lambda address: open_stream(address, settings))
        self._servers = Servers(settings.addresses)
        self._most = settings.max_connections * len(settings.addresses)
        self._observer = settings.observer
        self._numbers = count(1)
        self._closed = False
        _clients.add(self)

    async def request(
        self,
        payload: bytes,
        *,
        idempotent: bool = False,
        timeout: float | Default | None = Default.CLIENTS,  # noqa: ASYNC109 (as in the other front)
    ) -> bytes:
        """Send a payload of 1 to 99,999 bytes; give the payload of the reply.

        Args:
            payload: what to send.
            idempotent: whether the server may execute the request twice: then
                it is tried again also if a connection breaks before the reply.
            timeout: seconds for this request, in place of the client's.

        Raises:
            LocalProtocolError: the payload is empty or too long; nothing was sent.
            TypeError: the payload is no bytes; nothing was sent.
            ConnectError: no connection could be made; nothing was sent.
            RequestTimeout: the time is over.
            RemoteProtocolError: the server sent something that is no reply.
            ConnectionLost: the server closed the connection before replying, or
                another request on it was cancelled while it was being sent.
            ClosedError: the client is closed.

        >>> from nbnet import Server
        >>> async def main(address):
        ...     async with AsyncClient(address) as client:
        ...         return await client.request(b"abc")
        >>> with Server(bytes.upper, port=0) as server:
        ...     trio.run(main, server.address)
        b'ABC'
        """
        frame = encode_request(payload)
        limit = self._settings.limit(timeout)
        try:
            deadline = trio.current_time() + limit
        except RuntimeError as error:
            raise RuntimeError(
                "AsyncClient is for trio; under asyncio, use Client in asyncio.to_thread"
            ) from error
        number = next(self._numbers) if self._observer.active else 0
        attempts: Attempts | None = None
        tried: list[Server] = []
        while True:
            connection = self._choose(tried)
            call = Call(frame, deadline, limit)
            if number:
                self._tell_begin(connection, call, number)
            connection.enter(call)
            try:
                while call.reply is None and call.error is None:
                    if (connection.sending and connection.reading) or not await connection.serve(
                        call
                    ):
                        call.waiter = trio.lowlevel.current_task()
                        if connection.stream is None:
                            await connection.wait_open(call)
                        else:
                            await trio.lowlevel.wait_task_rescheduled(call.abort)
                        if connection.heir is call:
                            connection.heir = None
            except BaseException:
                connection.exchange.abandon(call)
                raise
            finally:
                if connection.leave(call):
                    await connection.aclose()
                if number:
                    self._tell_end(connection, call, number)
            if call.reply is not None:
                return call.reply
            assert call.error is not None
            attempts = attempts or self._settings.attempts(deadline, idempotent=idempotent)
            await self._go_on(connection, call.error, attempts, tried, number)
            self._check(attempts)

    def request_many(
        self,
        payloads: Iterable[bytes] | AsyncIterable[bytes],
        *,
        window: int = DEFAULT_WINDOW,
    ) -> AsyncGenerator[bytes, None]:
        """Send payloads one after the other; give their replies in that order.

        The requests are pipelined: payloads are taken, and sent, ahead of the
        replies. So the iterable may be of any length, and memory is bounded;
        but it must not wait for a reply before it goes on; while it makes a
        payload, replies that have come wait. The timeout is for each next reply
        and does not count the time that the iterable and the caller take.

        The replies have a connection to themselves; leaving before the last
        reply closes it, and whoever may leave uses ``contextlib.aclosing``, as
        with every asynchronous generator. Only connecting is tried again. An
        error, from the iterable or an unfit payload too, ends the generator
        where it occurs, and replies outstanding are lost.

        Args:
            payloads: of 1 to 99,999 bytes each.
            window: how many may be unanswered at a time. There are never more
                than 64 KiB of them, or one larger one.

        Raises:
            TypeError: this is no iterable, or a payload is no bytes.
            LocalProtocolError: a payload is empty or too long.
            ValueError: the window is below 1.
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
        if window < 1:
            raise ValueError(f"a window of {window} requests lets none through")
        if isinstance(payloads, AsyncIterable):
            return self._replies(aiter(payloads), window)
        return self._replies(iter(payloads), window)

    async def aclose(self) -> None:
        """Close all connections, also those in use: what waits for them fails.

        May be called again; closes also if it is cancelled.

        >>> async def main():
        ...     client = AsyncClient()
        ...     await client.aclose()
        ...     await client.request(b"abc")
        >>> trio.run(main)
        Traceback (most recent call last):
        nbclient.errors.ClosedError: the client for 127.0.0.1:6789 is closed
        """
        self._closed = True
        connections = list(self._open)
        for connection in connections:
            connection.end(self._settings.closed(connection.peer))
        with trio.CancelScope(shield=True):
            for connection in connections:
                await connection.aclose()
        await trio.lowlevel.checkpoint()

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        if not self._closed and any(connection.stream for connection in self._open):
            _warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        settings = getattr(self, "_settings", None)
        return f"<nbclient.AsyncClient for {settings.names if settings else 'nothing'}>"

    # One attempt -----------------------------------------------------------------

    async def _go_on(
        self,
        connection: Connection,
        error: NbclientError,
        attempts: Attempts,
        tried: list[Server],
        number: int,
    ) -> None:
        """Let another attempt follow, at once or after a pause, or raise the error."""
        if not error.maybe_executed and not isinstance(error, ClosedError):
            lost = connection.worked and isinstance(error, ConnectionLost)
            if connection.stale or lost:
                return  # others may have ended with it; that is no attempt yet
        if isinstance(error, ConnectError | ConnectTimeout):
            if connection.server not in tried:
                tried.append(connection.server)
            late = trio.current_time() >= attempts.deadline
            if len(tried) < len(self._servers.all) and not late:
                return
            if len(tried) > 1:
                reasons = {server.name: server.reason for server in tried}
                cause, error = error, self._settings.cannot_connect(reasons)
                error.__cause__ = cause
            tried.clear()
        pause = attempts.pause(error, trio.current_time())
        if pause is None:
            raise error
        self._observer(Event("retry", error.peer, pause, request=number, error=error))
        await trio.sleep(pause)

    def _tell_begin(self, connection: Connection, call: Call, number: int) -> None:
        size = len(call.frame) - HEADER_SIZE
        call.started = trio.current_time()
        self._observer(Event("request", connection.peer, size=size, request=number))

    def _tell_end(self, connection: Connection, call: Call, number: int) -> None:
        peer, seconds = connection.peer, trio.current_time() - call.started
        if call.reply is None:
            event = Event("failed", peer, seconds, request=number, error=call.error)
        else:
            event = Event("reply", peer, seconds, size=len(call.reply), request=number)
        self._observer(event)

    # Many ------------------------------------------------------------------------

    async def _replies(
        self, payloads: Iterator[bytes] | AsyncIterator[bytes], window: int
    ) -> AsyncGenerator[bytes, None]:
        started = trio.current_time()
        batch, _ = await _take(payloads, 1)
        if not batch:
            self._check()
            await trio.lowlevel.checkpoint()
            return
        encode_requests(batch)  # before a connection is made for it
        connection = await self._connection_for_replies()
        pipeline = Pipeline(connection.peer, window)
        limit = self._settings.timeout
        watch: Watch | None = None
        if self._observer.active:
            watch = Watch(self._observer, connection.peer, self._numbers, trio.current_time)
            watch.sent(batch)
        try:
            pipeline.add(batch, trio.current_time() - started)
            ended = False
            deadline = trio.current_time() + limit  # of the next reply
            while True:
                if not await connection.send_many(pipeline, deadline):
                    ended = True  # nothing more can be sent; replies may still come
                if not pipeline.outstanding and pipeline.fault is None:
                    break
                wait = ended or not pipeline.wanted
                replies = await connection.receive_many(pipeline, deadline, wait=wait)
                for reply in replies:
                    if connection.closed:
                        raise self._settings.closed(connection.peer, maybe_executed=True)
                    if watch is not None:
                        watch.replied(reply)
                    yield reply
                if replies:
                    deadline = trio.current_time() + limit
                if not ended and pipeline.fault is None and (wanted := pipeline.wanted):
                    started = trio.current_time()
                    batch, ended = await _take(payloads, wanted)
                    took = trio.current_time() - started
                    deadline += took  # that of the iterable does not count
                    if batch:
                        pipeline.add(batch, took)
                        if watch is not None:
                            watch.sent(batch)
        except NbclientError as error:
            if watch is not None:
                watch.failed(error)
            raise
        finally:
            if watch is not None:
                watch.failed(None)  # the caller has left
            if pipeline.idle and self._has_room(connection.server):
                self._shared.append(connection)
            else:
                connection.end(self._settings.closed(connection.peer))
                with trio.CancelScope(shield=True):
                    await connection.aclose()

    async def _connection_for_replies(self) -> Connection:
        """A connection to have for oneself."""
        limit = self._settings.timeout
        deadline = trio.current_time() + limit
        attempts = self._settings.attempts(deadline, idempotent=False)
        tried: list[Server] = []
        while True:
            self._check()
            connection = self._take_idle()
            if connection is None:
                connection = self._make(self._choose_server(tried))
            try:
                if await connection.prepare(deadline, limit):
                    return connection
            except NbclientError as error:
                await self._go_on(connection, error, attempts, tried, 0)

    # The connections -------------------------------------------------------------

    def _choose(self, tried: list[Server]) -> Connection:
        """The connection to have the next request, maybe one that is yet to be opened."""
        self._check()
        best: Connection | None = None
        least = 0
        for connection in self._shared:
            load = connection.exchange.load
            if (best is None or load < least) and connection.server not in tried:
                best, least = connection, load
        if best is not None and (not least or len(self._shared) >= self._most):
            return best
        server = self._choose_server(tried)
        if best is not None and not self._has_room(server):
            return best
        connection = self._make(server)
        self._shared.append(connection)
        return connection

    def _choose_server(self, tried: list[Server]) -> Server:
        for each in self._servers.all:
            each.busy = 0
        for connection in self._open:
            connection.server.busy += connection.exchange.load
        server = self._servers.choose(trio.current_time(), tried)
        assert server is not None  # who has tried them all does not ask
        return server

    def _make(self, server: Server) -> Connection:
        connection = Connection(server, self._settings, self._connect, self)
        self._open.add(connection)
        return connection

    def retire(self, connection: Connection) -> None:
        """Part of ``Owner``, for connections alone: give it no further requests."""
        if connection in self._shared:
            self._shared.remove(connection)

    def gone(self, connection: Connection) -> None:
        """Part of ``Owner``: it is closed."""
        self._open.discard(connection)

    def reached(self, server: Server) -> None:
        """Part of ``Owner``: a connection could be made."""
        self._servers.worked(server)

    def missed(self, server: Server, reason: str) -> None:
        """Part of ``Owner``: no connection could be made, or a reply did not come in time."""
        self._servers.failed(server, reason, trio.current_time())

    def _has_room(self, server: Server) -> bool:
        shared = sum(connection.server is server for connection in self._shared)
        return shared < self._settings.max_connections and not self._closed

    def _take_idle(self) -> Connection | None:
        """Take a connection that has nothing to do away from those that are shared."""
        for connection in reversed(self._shared):
            in_use = connection.sending or connection.reading  # until its task has run
            if connection.stream is not None and connection.exchange.idle and not in_use:
                self._shared.remove(connection)
                return connection
        return None

    def _check(self, attempts: Attempts | None = None) -> None:
        if self._closed:
            maybe_executed = attempts is not None and attempts.maybe_executed
            raise self._settings.closed(maybe_executed=maybe_executed)

    def _forget(self) -> None:
        """Begin with no connections: of a new client, or of a copy in a forked child.

        The child has its own copies of the descriptors; closing them tells the
        server nothing. trio is not asked to: its epoll is shared with the parent.
        """
        for connection in getattr(self, "_open", ()):
            stream = connection.stream
            if isinstance(stream, trio.SSLStream):
                stream = stream.transport_stream
            if isinstance(stream, trio.SocketStream):
                os.close(stream.socket.detach())
        self._open: set[Connection] = set()
        self._shared: list[Connection] = []


_clients: weakref.WeakSet[AsyncClient] = weakref.WeakSet()


def _forked() -> None:
    for client in list(_clients):
        client._forget()  # noqa: SLF001  (a friend)


if hasattr(os, "register_at_fork"):  # Windows has none
    os.register_at_fork(after_in_child=_forked)


async def open_stream(address: Address, settings: Settings) -> trio.abc.Stream:
    """Connect to a server.

    Raises:
        OSError: no connection could be made, or TLS not agreed on.
    """
    stream: trio.SocketStream
    if address.tls:
        settings.check_tls_name(address)
    if address.path:
        stream = await trio.open_unix_socket(address.path)
    else:
        try:
            stream = await trio.open_tcp_stream(address.host, address.port)
        except UnicodeError as error:  # a label that is empty or too long
            raise OSError("Name or service not known") from error
        if stream.socket.getsockname() == stream.socket.getpeername():
            # TCP connects to itself when nobody listens on a port that it gives out.
            await trio.aclose_forcefully(stream)
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    if not address.tls:
        return stream
    assert settings.context is not None
    secure = trio.SSLStream(
        stream,
        settings.context,
        server_hostname=settings.tls_name(address),
        https_compatible=True,  # who waits for a farewell can wait for long
    )
    try:
        await secure.do_handshake()
    except BaseException as error:
        await trio.aclose_forcefully(stream)
        if isinstance(error, trio.BrokenResourceError):
            raise OSError(reasons_of(error.__cause__ or error)) from error
        raise
    return secure


async def _take(
    payloads: Iterator[bytes] | AsyncIterator[bytes], wanted: int
) -> tuple[list[bytes], bool]:
    """``take_at_once`` for both kinds of iterators."""
    if isinstance(payloads, Iterator):
        return take_at_once(payloads, wanted, time.monotonic)
    batch: list[bytes] = []
    soon = time.monotonic() + AT_ONCE
    async for payload in payloads:
        batch.append(payload)
        if len(batch) == wanted or time.monotonic() > soon:
            return batch, False
    return batch, True

"""The blocking front: ``Client``. Mirrored, name by name, by ``nbclient.trio``.

Rules kept by both fronts:

* a connection is made when it is needed and kept for further requests;
* a request that was not answered for whatever reason (a fault, a timeout,
  Ctrl-C) never leaves its reply to a later one;
* a kept connection that has become readable was closed by the server, or has
  bytes that nobody asked for: it is dropped and another one made;
* what was sent is not sent again, unless the caller allows it.

Rules kept here besides: a connection belongs to one request at a time. Who has
none left to take waits for one to come back, and looks for itself then: nothing
is handed from one thread to another, so nothing can get lost on the way.
"""

from __future__ import annotations

import math
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from itertools import count, islice
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeAlias

from nbclient.dialing import Stream, open_stream
from nbclient.errors import ClosedError, NbclientError, RequestTimeout
from nbclient.events import Event, Hook, Watch
from nbclient.exchange import encode_request, encode_requests
from nbclient.pipeline import Pipeline, take_at_once
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
from nbclient.sync_connection import Connection
from nbnet.framing import HEADER_SIZE
from nbnet.notation import Address

if TYPE_CHECKING:
    import ssl


Connect: TypeAlias = Callable[[Address, float | None], Stream]
"""Makes a connection to a server, within so many seconds (None: no limit)."""


class Client:
    """Sends requests to a server and waits for the replies.

    For any number of threads. It connects at the first request, again after a
    fault, and once more for each request that comes while all connections are
    in use. In a forked child it begins anew.

    Args:
        target: the server: ``"HOST:PORT"``, ``"[IPv6]:PORT"``, ``"tls://HOST:PORT"``,
            ``"unix:PATH"``, or a tuple of host and port. Or a sequence of these:
            several servers that answer alike.
        timeout: seconds that one request may take, connecting and retries
            included (looking up a host name is not: the system cannot be
            interrupted in that); None for no limit.
        connect_timeout: seconds that one attempt to connect may take; None for no
            limit of its own, or, of several servers, an equal share of ``timeout``.
        max_connections: how many there may be at a time, to all servers together.
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
        connect: makes the connections, in place of sockets.

    Raises:
        ValueError: a target is no address, a number is out of its range, or a
            file for TLS cannot be used.

    >>> from nbnet import Server
    >>> with Server(port=0) as server, Client(server.address) as client:
    ...     client.request(b"abc")
    ...     list(client.request_many([b"de", b"fgh"]))
    b'cba'
    [b'ed', b'hgf']
    """

    def __init__(
        self,
        target: Targets = DEFAULT_TARGET,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        connect_timeout: float | None = None,
        max_connections: int = 100,
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
        self._open: weakref.WeakSet[Connection] = weakref.WeakSet()
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
        self._connect = connect or (lambda address, left: open_stream(address, left, settings))
        self._servers = Servers(settings.addresses)
        self._observer = settings.observer
        self._numbers = count(1)
        self._forget()
        self._closed = False
        _clients.add(self)

    def request(
        self,
        payload: bytes,
        *,
        idempotent: bool = False,
        timeout: float | Default | None = Default.CLIENTS,
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
            ConnectionLost: the server closed the connection before replying.
            ClosedError: the client is closed.

        >>> from nbnet import Server
        >>> with Server(bytes.upper, port=0) as server, Client(server.address) as client:
        ...     client.request(b"abc")
        b'ABC'
        """
        frame = encode_request(payload)
        limit = self._settings.limit(timeout)
        deadline = time.monotonic() + limit
        number = next(self._numbers) if self._observer.active else 0
        attempts: Attempts | None = None
        while True:
            try:
                if number:
                    return self._observed(frame, deadline, limit, number)
                return self._attempt(frame, deadline, limit)[0]
            except NbclientError as error:
                attempts = attempts or self._settings.attempts(deadline, idempotent=idempotent)
                self._pause(attempts, error, number)

    def request_many(
        self, payloads: Iterable[bytes], *, window: int = DEFAULT_WINDOW
    ) -> Generator[bytes, None, None]:
        """Send payloads one after the other; give their replies in that order.

        The requests are pipelined: payloads are taken, and sent, ahead of the
        replies. So the iterable may be of any length, and memory is bounded;
        but it must not wait for a reply before it goes on; while it makes a
        payload, replies that have come wait. The timeout is for each next reply
        and does not count the time that the iterable and the caller take.

        The replies have a connection to themselves; leaving before the last
        reply closes it. Only connecting is tried again. An error, from the
        iterable or an unfit payload too, ends the generator where it occurs,
        and replies outstanding are lost.

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
        >>> with Server(port=0) as server, Client(server.address) as client:
        ...     for reply in client.request_many(b"%d0" % n for n in range(3)):
        ...         print(reply)
        b'00'
        b'01'
        b'02'
        """
        if window < 1:
            raise ValueError(f"a window of {window} requests lets none through")
        return self._replies(iter(payloads), window)

    def close(self) -> None:
        """Close all connections, also those in use: what waits for them fails.

        May be called again, and from any thread.

        >>> client = Client()
        >>> client.close()
        >>> client.request(b"abc")
        Traceback (most recent call last):
        nbclient.errors.ClosedError: the client for 127.0.0.1:6789 is closed
        """
        with self._lock:
            self._closed = True
            idle: list[Connection] = []
            for stack in self._idle.values():
                with suppress(IndexError):
                    while True:
                        idle.append(stack.pop())
            self._open.difference_update(idle)
            for connection in idle:
                connection.forget()
            used = list(self._open)
            self._freed.notify_all()
        self._closing.set()
        for connection in idle:
            self._close(connection)
        for connection in used:
            connection.abort()  # whoever uses it closes it

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        if self._open and not self._closed:
            _warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            for connection in self._open:
                if connection.stream is not None:
                    connection.stream.close()

    def __repr__(self) -> str:
        settings = getattr(self, "_settings", None)
        return f"<nbclient.Client for {settings.names if settings else 'nothing'}>"

    # One attempt -----------------------------------------------------------------

    def _attempt(self, frame: bytes, deadline: float, limit: float) -> tuple[bytes, str]:
        """The reply, and who gave it."""
        # What stands here costs all requests; what is called, few of them.
        connection: Connection | None = None
        if not self._waiting:  # or it would be they who wait for ever
            try:  # noqa: SIM105  (which costs more, and this costs all requests)
                connection = self._only_idle.pop()
            except IndexError:  # none is idle, or there are several servers
                pass
        if connection is None or not self._is_fit(connection):
            connection = self._check_out(deadline, limit)
        try:
            reply = connection.ask(frame, deadline, limit)
        except BaseException as error:  # Ctrl-C too: the reply may come all the same
            self._discard(connection)
            if isinstance(error, RequestTimeout):
                self._unanswered(connection.server, error)
            raise
        if connection.in_step:
            connection.idle.append(connection)
            if self._closed or self._waiting:
                self._given_back()
        else:
            self._discard(connection)
        return reply, connection.peer

    def _observed(self, frame: bytes, deadline: float, limit: float, number: int) -> bytes:
        """The same, for whoever watches."""
        tell, every = self._observer, self._servers.all
        peer = every[0].name if len(every) == 1 else ""
        tell(Event("request", peer, size=len(frame) - HEADER_SIZE, request=number))
        started = time.monotonic()
        try:
            reply, peer = self._attempt(frame, deadline, limit)
        except BaseException as error:
            seconds = time.monotonic() - started
            cause = error if isinstance(error, NbclientError) else None
            peer = cause.peer if cause and cause.peer else peer
            tell(Event("failed", peer, seconds, request=number, error=cause))
            raise
        seconds = time.monotonic() - started
        tell(Event("reply", peer, seconds, size=len(reply), request=number))
        return reply

    def _pause(self, attempts: Attempts, error: NbclientError, number: int) -> None:
        """Wait before another attempt; raise the error if there is none to be."""
        pause = attempts.pause(error, time.monotonic())
        if pause is None:
            raise error
        self._observer(Event("retry", error.peer, pause, request=number, error=error))
        self._closing.wait(pause)

    # Many ------------------------------------------------------------------------

    def _replies(self, payloads: Iterator[bytes], window: int) -> Generator[bytes, None, None]:
        started = time.monotonic()
        batch = list(islice(payloads, 1))
        if not batch:
            self._check()
            return
        encode_requests(batch)  # before a connection is made for it
        connection = self._connection_for_replies()
        pipeline = Pipeline(connection.peer, window)
        limit = self._settings.timeout
        watch: Watch | None = None
        if self._observer.active:
            watch = Watch(self._observer, connection.peer, self._numbers, time.monotonic)
            watch.sent(batch)
        try:
            pipeline.add(batch, time.monotonic() - started)
            ended = False
            deadline = time.monotonic() + limit  # of the next reply
            while True:
                if not connection.send_many(pipeline, deadline):
                    ended = True  # nothing more can be sent; replies may still come
                if not pipeline.outstanding and pipeline.fault is None:
                    break
                wait = ended or not pipeline.wanted
                replies = connection.receive_many(pipeline, deadline, wait=wait)
                for reply in replies:
                    if connection.aborted:
                        raise self._settings.closed(connection.peer, maybe_executed=True)
                    if watch is not None:
                        watch.replied(reply)
                    yield reply
                if replies:
                    deadline = time.monotonic() + limit
                if not ended and pipeline.fault is None and (wanted := pipeline.wanted):
                    started = time.monotonic()
                    batch, ended = take_at_once(payloads, wanted, time.monotonic)
                    took = time.monotonic() - started
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
            connection.in_step = pipeline.idle
            self._check_in(connection)

    def _connection_for_replies(self) -> Connection:
        limit = self._settings.timeout
        deadline = time.monotonic() + limit
        attempts = self._settings.attempts(deadline, idempotent=False)
        while True:
            try:
                return self._check_out(deadline, limit)
            except NbclientError as error:
                self._pause(attempts, error, 0)

    # The pool --------------------------------------------------------------------

    def _check_out(self, deadline: float, limit: float) -> Connection:
        """The same, after having looked at all that there are."""
        reasons: dict[str, str] = {}
        tried: list[Server] = []
        while True:
            connection = self._take(deadline, limit, tried)
            try:
                if connection.stream is None:
                    self._dial(connection, deadline, limit)
                elif not self._is_fit(connection):
                    continue
            except NbclientError as error:
                self._discard(connection)
                tried.append(connection.server)
                reasons[connection.peer] = connection.server.reason
                if len(tried) < len(self._servers.all) and time.monotonic() < deadline:
                    continue
                if len(reasons) == 1 or isinstance(error, ClosedError):
                    raise
                raise self._settings.cannot_connect(reasons) from error
            except BaseException:
                self._discard(connection)
                raise
            return connection

    def _is_fit(self, connection: Connection) -> bool:
        """Whether the server has left it open, and in step; if not, it is let go of."""
        assert connection.stream is not None
        if not connection.stream.readable():
            return True
        self._discard(connection)
        return False

    def _take(self, deadline: float, limit: float, tried: list[Server]) -> Connection:
        """An idle connection, or one that is yet to be made."""
        evicted: Connection | None = None
        with self._lock:
            behind = self._waiting > 0  # who came first is served first
            while True:
                self._check()
                server = self._choose(tried)
                idle = self._idle[server]
                if not behind:
                    with suppress(IndexError):
                        return idle.pop()  # the last one used: the others may rest
                    full = len(self._open) >= self._settings.max_connections
                    if not full or (evicted := self._evict()) is not None:
                        connection = Connection(server, self._settings, idle)
                        self._open.add(connection)
                        break
                left = deadline - time.monotonic()
                if left <= 0:
                    self._freed.notify()
                    raise self._settings.pool_timed_out(limit)
                # Who gives one back does so without the lock, and then looks for
                # those who wait: whoever waits has to look again.
                self._waiting += 1
                try:
                    if behind or not any(self._idle.values()):
                        self._freed.wait(min(left, threading.TIMEOUT_MAX))
                except BaseException:
                    self._freed.notify()
                    raise
                finally:
                    self._waiting -= 1
                behind = False
        if evicted is not None:
            self._close(evicted)
        return connection

    def _choose(self, tried: list[Server]) -> Server:
        every = self._servers.all
        if len(every) > 1:
            for each in every:
                each.busy = each.opened - len(self._idle[each])
        server = self._servers.choose(time.monotonic(), tried)
        assert server is not None  # who has tried them all does not ask
        return server

    def _evict(self) -> Connection | None:
        """Give up an idle connection to another server, to make room."""
        for idle in self._idle.values():
            with suppress(IndexError):
                connection = idle.pop(0)
                self._open.discard(connection)
                connection.forget()
                return connection
        return None

    def _dial(self, connection: Connection, deadline: float, limit: float) -> None:
        server, settings = connection.server, self._settings
        started = time.monotonic()
        left = min(deadline - started, settings.connect_timeout)
        failure: NbclientError
        try:
            if left <= 0:
                raise TimeoutError
            connection.stream = self._connect(server.address, None if left == math.inf else left)
        except OSError as error:
            now = time.monotonic()
            if isinstance(error, TimeoutError) and error.errno is None:
                failure = settings.connect_timed_out(
                    min(limit, settings.connect_timeout), server.name
                )
                reason = str(failure)
            else:
                reason = reasons_of(error)
                failure = settings.cannot_connect({server.name: reason})
            with self._lock:
                self._servers.failed(server, reason, now)
            self._observer(Event("connect", server.name, now - started, error=failure))
            raise failure from error
        with self._lock:
            self._servers.worked(server)
            self._check()
        self._observer(Event("connect", server.name, time.monotonic() - started))

    def _unanswered(self, server: Server, error: NbclientError) -> None:
        """It let a request wait too long: others may be better, if there are any."""
        with self._lock:
            self._servers.failed(server, str(error), time.monotonic())

    def _check_in(self, connection: Connection) -> None:
        if not connection.in_step:
            self._discard(connection)
            return
        connection.idle.append(connection)
        self._given_back()

    def _given_back(self) -> None:
        """A connection is idle again. Who waits, or closes, may have looked just before."""
        if self._closed:
            self.close()
        elif self._waiting:
            with self._lock:
                self._freed.notify()

    def _discard(self, connection: Connection) -> None:
        with self._lock:
            self._open.discard(connection)
            connection.forget()
            if self._waiting:
                self._freed.notify()
        self._close(connection)

    def _close(self, connection: Connection) -> None:
        if connection.stream is not None:
            connection.stream.close()
            self._observer(Event("close", connection.peer))

    def _check(self) -> None:
        if self._closed:
            raise self._settings.closed()

    def _forget(self) -> None:
        """Begin with no connections: of a new client, or of a copy in a forked child.

        The child has its own copies of the descriptors; closing them tells the
        server nothing. Locks may be held by threads that it does not have.
        """
        for connection in self._open:
            connection.forget()
            if connection.stream is not None:
                connection.stream.close()
        self._open = weakref.WeakSet()
        self._idle: dict[Server, list[Connection]] = {s: [] for s in self._servers.all}
        self._only_idle = self._idle[self._servers.all[0]] if len(self._idle) == 1 else []
        self._lock = threading.RLock()
        self._freed = threading.Condition(self._lock)
        self._waiting = 0  # threads that wait for it
        self._closing = threading.Event()


_clients: weakref.WeakSet[Client] = weakref.WeakSet()


def _forked() -> None:
    for client in list(_clients):
        client._forget()  # noqa: SLF001  (a friend)


if hasattr(os, "register_at_fork"):  # Windows has none
    os.register_at_fork(after_in_child=_forked)

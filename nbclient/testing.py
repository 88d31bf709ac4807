"""A server in memory, for the tests of programs that use ``Client`` or ``AsyncClient``.

>>> from nbclient import Client
>>> server = FakeServer(bytes.upper)
>>> server.inject(Fault(delay=1.5), None, Fault(cut=7))  # the next three replies
>>> with Client(connect=server.connect, retries=0) as client:
...     client.request(b"abc"), client.request(b"de")
(b'ABC', b'DE')
>>> server.requests, server.open
([b'abc', b'de'], 0)

``AsyncClient(connect=server.open_stream)`` is the same for trio.

No sockets, no threads, no tasks: a request is answered inside the call that
sends it. Rules kept here:

* on the wire it is the real server: the same frames and line ends are taken,
  replies are in order and have 0 to 99,999 bytes; broken frames, and a handler
  that raises or returns something unfit, cost their connection, after the
  replies before, and nothing of the fault is told; a peer that ends its side
  gets all its replies, then the end. While too many replies are unread, no more
  requests are taken;
* once the server has ended a connection, what is sent to it is thrown away;
  after a reset sending fails;
* **time is trio's or simulated.** The streams for trio wait by trio's clock, so
  that a ``MockClock`` works. The blocking ones never wait: a wait that fits in
  the timeout is over at once; another raises ``TimeoutError`` at once and may be
  repeated, as if no time had passed. The client's own clock knows nothing of
  that: waits of several calls do not add up to a timeout. A wait without timeout
  for what never comes raises ``WouldHangError``;
* the rule for cancelling is that of real streams: a receive that is cancelled
  or timed out has lost nothing; a send has passed on none, some or all of its
  bytes: ``FakeServer.clog`` says how many;
* many threads may use one server, each with a stream of its own; streams for
  trio, and what acts on them, belong to the thread of trio.
"""

from __future__ import annotations

import errno
import functools
import math
import operator
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Self, TypeAlias

from nbnet.framing import FrameDecoder, FrameError, encode_frame
from nbnet.notation import Address, parse_address

if TYPE_CHECKING:  # who tests the blocking client may not have trio loaded
    from trio.abc import HalfCloseableStream

__all__ = ["SILENT", "FakeConnection", "FakeServer", "FakeStream", "Fault", "WouldHangError"]

READ_SIZE: Final = 64 * 1024
"""Bytes given by one receive at most, unless it asks for another number."""
HIGH_WATER: Final = 256 * 1024
"""Bytes of unread replies above which no more requests are taken, as in the real server."""

ANYWHERE: Final = parse_address("127.0.0.1:6789")
"""The address of a connection that was made without one."""


class WouldHangError(AssertionError):
    """A blocking call, made without a timeout, waits for what never comes.

    It is no error of the network, so that no client takes it for one.

    >>> FakeServer().connect().receive(timeout=None)
    Traceback (most recent call last):
    nbclient.testing.WouldHangError: receive() without a timeout would wait for ever
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is wrong with one reply. Faults may be combined.

    Attributes:
        delay: seconds until it is sent; later replies of the connection wait as
            well. ``math.inf``: it never comes (``SILENT``).
        raw: bytes sent in place of the frame.
        corrupt: a position in the frame and the bytes to write over it there;
            they may reach beyond its end.
        copies: how often it is sent; 0 leaves it out, and the next reply comes
            in its place.
        cut: the connection ends after so many bytes of it. Later requests are
            not executed.
        reset: the cut is a reset; otherwise a close.
        pieces: bytes given by each receive in turn; what is left is the last.

    Raises:
        ValueError: a value makes no sense.

    >>> server = FakeServer()
    >>> server.inject(Fault(cut=7, pieces=(3,)))
    >>> stream = server.connect()
    >>> stream.send(b"00003abc", timeout=1)
    8
    >>> [stream.receive(timeout=1) for _ in range(3)]
    [b'000', b'03cb', b'']
    """

    delay: float = 0.0
    raw: bytes | None = None
    corrupt: tuple[int, bytes] | None = None
    copies: int = 1
    cut: int | None = None
    reset: bool = False
    pieces: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.delay >= 0:  # nor is it NaN
            raise ValueError(f"a delay of {self.delay} s: expected at least 0")
        if self.copies < 0:
            raise ValueError(f"{self.copies} copies: expected at least 0")
        if self.corrupt is not None and self.corrupt[0] < 0:
            raise ValueError(f"bytes to corrupt at {self.corrupt[0]}: expected at least 0")
        if self.cut is not None and self.cut < 0:
            raise ValueError(f"a cut after {self.cut} bytes: expected at least 0")
        if self.reset and self.cut is None:
            raise ValueError("a reset needs a cut, which says after how many bytes")
        if any(size < 1 for size in self.pieces):
            raise ValueError(f"pieces of {self.pieces} bytes: expected at least 1 each")

    def spoil(self, frame: bytes) -> bytes:
        """The bytes that are sent for a reply.

        >>> Fault(corrupt=(2, b"x"), copies=2).spoil(b"00001a")
        b'00x01a00x01a'
        """
        if self.raw is not None:
            frame = self.raw
        if self.corrupt is not None:
            at, data = self.corrupt
            frame = frame[:at].ljust(at, b"\0") + data + frame[at + len(data) :]
        return (frame * self.copies)[: self.cut]

    def split(self, data: bytes) -> Iterator[bytes]:
        """The pieces of what is sent.

        >>> list(Fault(pieces=(1, 3)).split(b"00001a"))
        [b'0', b'000', b'1a']
        """
        start = 0
        for size in self.pieces:
            yield data[start : start + size]
            start += size
        yield data[start:]


SILENT: Final = Fault(delay=math.inf)
"""The reply never comes, nor does any behind it."""
_FLAWLESS: Final = Fault()

Faults: TypeAlias = Iterable[Fault | None] | Callable[[bytes], Fault | None]
"""The faults of replies in the order of their requests, or what finds the fault by
the request's payload, which is the surer way where many run at a time."""


class _Cut(NamedTuple):
    after: int
    reset: bool


class _Clog(NamedTuple):
    taken: int
    delay: float


class _Script:
    """What is still to go wrong, for all connections of a server; safe under threads."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults if callable(faults) else iter(faults)
        self.injected: deque[Fault | None] = deque()
        self.cuts: deque[_Cut] = deque()
        self.clogs: deque[_Clog] = deque()
        self.refusals: float = 0
        self.lock = threading.Lock()

    def next_fault(self, payload: bytes, *records: list[bytes]) -> Fault:
        """Put a request on record, and give the fault of its reply."""
        with self.lock:  # or requests and faults might not be in the same order
            for record in records:
                record.append(payload)
            if self.injected:
                return self.injected.popleft() or _FLAWLESS
            if not callable(self.faults):
                return next(self.faults, None) or _FLAWLESS
        return self.faults(payload) or _FLAWLESS

    def next_clog(self) -> _Clog | None:
        with self.lock:
            return self.clogs.popleft() if self.clogs else None


class FakeServer:
    """A server in memory. It answers all addresses.

    For several servers, choose by the address::

        servers = {6789: FakeServer(), 6790: FakeServer()}
        Client(["a:6789", "b:6790"], connect=lambda address, timeout:
               servers[address.port].connect(address, timeout))

    Args:
        handler: what answers a request; the payload backwards by default. It
            runs in the call that sends the request and may be called by several
            threads at a time.
        faults: what is wrong with the replies: faults in the order in which the
            requests arrive on all connections together (None: a good reply), or
            a function from a request's payload to its fault.
        connect_delay: seconds that connecting takes; ``math.inf``: for ever. May
            be changed at any time.
        high_water: bytes of unread replies on a connection above which nothing
            more is taken from it.

    Attributes:
        requests: the payloads executed, in the order of their arrival.
        connections: each ``FakeConnection`` ever made, in order.
        refused: how many attempts to connect were refused.
        errors: why the server ended connections: a ``FrameError``, what the
            handler raised, or what was wrong with what it returned.

    >>> server = FakeServer(bytes.upper)
    >>> stream = server.connect()
    >>> stream.send(b"00003abc", timeout=5)
    8
    >>> stream.receive(timeout=5)
    b'00003ABC'
    >>> server.requests, server.open
    ([b'abc'], 1)
    """

    def __init__(
        self,
        handler: Callable[[bytes], bytes] = lambda payload: payload[::-1],
        *,
        faults: Faults = (),
        connect_delay: float = 0.0,
        high_water: int = HIGH_WATER,
    ) -> None:
        self.handler = handler
        self.connect_delay = connect_delay
        self.high_water = high_water
        self.requests: list[bytes] = []
        self.connections: list[FakeConnection] = []
        self.refused = 0
        self.errors: list[BaseException] = []
        self._script = _Script(faults)

    @property
    def open(self) -> int:
        """Connections that the client has not closed, also those that the server has ended.

        >>> server = FakeServer()
        >>> with server.connect(), server.connect():
        ...     server.open
        2
        >>> server.open
        0
        """
        return sum(connection.open for connection in self.connections)

    # What goes wrong -------------------------------------------------------------

    def inject(self, *faults: Fault | None) -> None:
        """Faults for the next replies, one each (None: a good reply), before all others.

        >>> server = FakeServer()
        >>> server.inject(Fault(raw=b"HTTP/1.1 400"))
        """
        with self._script.lock:
            self._script.injected += faults

    def cut(self, after: int = 0, *, reset: bool = False, times: int = 1) -> None:
        """End each of the next connections once it has sent so many bytes of replies.

        Args:
            after: bytes that still reach the client.
            reset: by a reset; otherwise by a close.
            times: how many connections.

        >>> server = FakeServer()
        >>> server.cut(after=3)
        >>> stream = server.connect()
        >>> stream.send(b"00003abc", timeout=5)
        8
        >>> stream.receive(timeout=5), stream.receive(timeout=5)
        (b'000', b'')
        """
        if after < 0:
            raise ValueError(f"a cut after {after} bytes: expected at least 0")
        with self._script.lock:
            self._script.cuts += [_Cut(after, reset)] * times

    def clog(self, taken: int = 0, delay: float = math.inf) -> None:
        """Let the next send pass on ``taken`` bytes at once, and block after them.

        Whoever cancels it meanwhile has sent ``taken`` bytes: none, some or all of
        them. A blocking send returns their number, and it is the next one that blocks.

        Args:
            taken: bytes that reach the server at once.
            delay: seconds until the others do; ``math.inf``: never.

        >>> server = FakeServer()
        >>> server.clog(taken=6)
        >>> stream = server.connect()
        >>> stream.send(b"00003abc", timeout=5)
        6
        >>> stream.send(b"bc", timeout=5)
        Traceback (most recent call last):
        TimeoutError: timed out
        """
        with self._script.lock:
            self._script.clogs.append(_Clog(taken, delay))

    def refuse(self, times: float = math.inf) -> None:
        """Refuse the next attempts to connect; without a number, until ``accept``.

        >>> server = FakeServer()
        >>> server.refuse()
        >>> server.connect()  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ConnectionRefusedError: [Errno ...] Connection refused
        """
        with self._script.lock:
            self._script.refusals = times

    def accept(self) -> None:
        """Refuse no more.

        >>> server = FakeServer()
        >>> server.refuse()
        >>> server.accept()
        >>> server.connect().close()
        """
        self.refuse(0)

    def drop(self, *, reset: bool = False) -> None:
        """End all connections now, as a restart does: replies under way are lost.

        >>> server = FakeServer()
        >>> stream = server.connect()
        >>> server.drop()
        >>> stream.receive(timeout=5)
        b''
        """
        for connection in list(self.connections):
            connection.drop(reset=reset)

    # What clients connect with -----------------------------------------------------

    def connect(self, address: Address = ANYWHERE, timeout: float | None = None) -> FakeStream:
        """For ``Client(connect=...)``: a connection without waiting; the time is simulated.

        Raises:
            ConnectionRefusedError: as ``refuse`` wants it.
            TimeoutError: ``connect_delay`` is longer than the timeout, in seconds.
            WouldHangError: it takes for ever, and there is no timeout.
        """
        clock = _Clock()
        clock.wait(self.connect_delay, timeout, "connect()")
        return FakeStream(self._admit(address, clock), clock)

    async def open_stream(self, address: Address = ANYWHERE) -> HalfCloseableStream:
        """For ``AsyncClient(connect=...)``: a connection for trio, by trio's clock.

        Raises:
            ConnectionRefusedError: as ``refuse`` wants it.

        >>> import trio
        >>> async def main():
        ...     async with await FakeServer().open_stream() as stream:
        ...         await stream.send_all(b"00003abc")
        ...         return await stream.receive_some()
        >>> trio.run(main)
        b'00003cba'
        """
        import trio

        await trio.sleep(self.connect_delay)
        return _open_trio_stream(self._admit(address, trio.current_time))

    def _admit(self, address: Address, clock: Callable[[], float]) -> FakeConnection:
        script = self._script
        with script.lock:
            if script.refusals > 0:
                script.refusals -= 1
                self.refused += 1
                raise _os_error(errno.ECONNREFUSED)
            cut = script.cuts.popleft() if script.cuts else None
            connection = FakeConnection(self, script, address, clock)
            self.connections.append(connection)
        if cut is not None:
            connection.cut(cut.after, reset=cut.reset)
        return connection


class _Piece(NamedTuple):
    due: float  # when it arrives, by the clock of the connection
    data: bytes
    alone: bool  # not to be given together with others


class _End(NamedTuple):
    due: float
    reset: bool


class FakeConnection:
    """A connection as the server sees it; they are in ``FakeServer.connections``.

    Attributes:
        address: where the client wanted to connect to.
        requests: the payloads executed, in order.
        open: whether the client has not closed it, although the server may have
            ended it.

    >>> server = FakeServer()
    >>> with server.connect() as stream:
    ...     server.connections[0].say(b"who asked?")
    ...     stream.readable(), stream.receive(timeout=5)
    (True, b'who asked?')
    >>> server.connections[0].open
    False
    """

    def __init__(
        self, server: FakeServer, script: _Script, address: Address, clock: Callable[[], float]
    ) -> None:
        self.address = address
        self.requests: list[bytes] = []
        self.open = True
        self.wake: Callable[[], object] = lambda: None  # tells the stream that something changed
        self._server = server
        self._script = script
        self._clock = clock
        self._decoder = FrameDecoder()
        self._output: deque[_Piece] = deque()
        self._unread = 0  # bytes of output
        self._end: _End | None = None  # once set, nothing is executed or sent any more
        self._last_due = -math.inf  # replies must not overtake
        self._cut: _Cut | None = None
        self._clogged_until = -math.inf
        # For what other threads may do: say, drop, abort. Not held in the handler.
        self._lock = threading.RLock()

    # For tests ---------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether the server executes and sends nothing more on it."""
        return self._end is not None

    def say(self, data: bytes) -> None:
        """Send bytes that nobody asked for, behind the replies under way."""
        self._send(data)

    def drop(self, *, reset: bool = False) -> None:
        """End it now: replies that have not arrived are lost."""
        with self._lock:
            if not self.open:
                return
            now = self._clock()
            while self._output and self._output[-1].due > now:
                self._unread -= len(self._output.pop().data)
            if self._end is None or self._end.due > now:
                self._end = _End(now, reset)
        self.wake()

    def cut(self, after: int, *, reset: bool = False) -> None:
        """End it after so many more bytes of replies."""
        with self._lock:
            self._cut = _Cut(after, reset)
            self._send(b"")  # may be the end already

    # For the streams: requests -------------------------------------------------------

    def writable_at(self, size: int = 1) -> float:
        """When the server takes so many more bytes; ``math.inf``: not by itself."""
        with self._lock:
            if self._end is not None:  # it takes all, and throws it away
                return min(self._clogged_until, self._end.due)
            if size and self._unread > self._server.high_water:
                return math.inf
            return self._clogged_until

    def receive_some(self, data: bytes) -> int:
        """The first of a send: give how many bytes were taken at once."""
        clog = self._script.next_clog() if data else None
        taken = len(data) if clog is None else min(len(data), clog.taken)
        self.receive(data[:taken])
        if clog is not None:
            self._clogged_until = self._clock() + clog.delay
        return taken

    def receive(self, data: bytes) -> None:
        """Take bytes and answer the requests that they complete.

        Raises:
            BrokenPipeError: the connection was reset.
        """
        if self._end is not None:
            if self._end.reset and self._end.due <= self._clock():
                raise _os_error(errno.EPIPE)
            return
        for payload in self._decoder.feed(data):
            if not self.ended:
                self._answer(payload)
        if self._decoder.error is not None:
            self._fail(self._decoder.error)

    def receive_eof(self) -> None:
        """The client sends no more: it gets the replies under way, then the end."""
        try:
            self._decoder.finish()
        except FrameError as error:
            self._fail(error)
        self._finish(reset=False)

    def close(self) -> None:
        """The client reads and sends no more."""
        with self._lock:
            if self.open:
                self.open = False
                self._output.clear()
                self._unread = 0
                self._end = _End(-math.inf, reset=False)
        self.wake()

    # For the streams: replies ----------------------------------------------------------

    def readable_at(self) -> float:
        """When the next bytes, or the end, arrive; ``math.inf``: not by themselves."""
        with self._lock:
            if self._output:
                return self._output[0].due
            return math.inf if self._end is None else self._end.due

    def take(self, size: int) -> bytes | None:
        """Up to so many of the bytes that have arrived; none (``b""``) are the end.

        None: nothing has arrived.

        Raises:
            ConnectionResetError: instead of an end by a close.
        """
        with self._lock:
            now = self._clock()
            if self.readable_at() > now:
                return None
            if not self._output:
                if self._end is not None and self._end.reset:
                    raise _os_error(errno.ECONNRESET)
                return b""
            parts: list[bytes] = []
            while size and self._output and self._output[0].due <= now:
                due, data, alone = self._output[0]
                if alone and parts:
                    break
                self._output.popleft()
                parts.append(data[:size])
                if len(data) > size:
                    self._output.appendleft(_Piece(due, data[size:], alone))
                size -= len(parts[-1])
                if alone:
                    break
            got = b"".join(parts)
            self._unread -= len(got)
        self.wake()  # there may be room for requests
        return got

    # How it goes on inside -------------------------------------------------------------

    def _answer(self, payload: bytes) -> None:
        fault = self._script.next_fault(payload, self.requests, self._server.requests)
        try:
            frame = encode_frame(self._server.handler(payload))
        except (Exception, SystemExit) as error:  # as in the real server
            self._fail(error)
            return
        self._send(fault.spoil(frame), fault)
        if fault.cut is not None:
            self._finish(reset=fault.reset)

    def _fail(self, error: BaseException) -> None:
        if not self.ended:
            self._server.errors.append(error)
            self._finish(reset=False)

    def _send(self, data: bytes, fault: Fault = _FLAWLESS) -> None:
        with self._lock:
            if self._end is not None:
                return
            self._last_due = max(self._last_due, self._clock() + fault.delay)
            cut = self._cut
            if cut is not None:
                data = data[: cut.after]
                self._cut = cut._replace(after=cut.after - len(data))
            for piece in fault.split(data):
                if piece:
                    self._output.append(_Piece(self._last_due, piece, bool(fault.pieces)))
            self._unread += len(data)
            if self._cut is not None and self._cut.after == 0:
                self._finish(reset=self._cut.reset)
        self.wake()

    def _finish(self, *, reset: bool) -> None:
        """Let the connection end behind the replies under way."""
        with self._lock:
            if self._end is None:
                self._end = _End(self._last_due, reset)
        self.wake()


# Blocking --------------------------------------------------------------------------


class _Clock:
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


class _Turn:
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

    >>> server = FakeServer(faults=[Fault(delay=2)])
    >>> with server.connect() as stream:
    ...     sent = stream.send(b"00003abc", timeout=5)
    ...     try:
    ...         stream.receive(timeout=1.5)
    ...     except TimeoutError:
    ...         stream.receive(timeout=2)
    b'00003cba'
    """

    def __init__(self, connection: FakeConnection, clock: _Clock) -> None:
        self._connection = connection
        self._clock = clock
        self._sending = _Turn(lambda: RuntimeError("two threads send on one stream"))
        self._receiving = _Turn(lambda: RuntimeError("two threads receive on one stream"))
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
                raise _os_error(errno.EPIPE)
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
            raise _os_error(errno.EBADF)


# trio ------------------------------------------------------------------------------


def _open_trio_stream(connection: FakeConnection) -> HalfCloseableStream:
    return _trio_stream_type()(connection)


@functools.cache
def _trio_stream_type() -> Callable[[FakeConnection], HalfCloseableStream]:
    """The class of the streams for trio, made when the first is wanted: it needs trio's."""
    import trio

    class FakeTrioStream(trio.abc.HalfCloseableStream):
        """The client's end of a connection, by the rules and the clock of trio."""

        def __init__(self, connection: FakeConnection) -> None:
            self._connection = connection
            self._changed = trio.lowlevel.ParkingLot()
            self._sending = _Turn(lambda: trio.BusyResourceError("two tasks send on one stream"))
            self._receiving = _Turn(
                lambda: trio.BusyResourceError("two tasks receive on one stream")
            )
            self._sent_eof = False
            connection.wake = self._changed.unpark_all

        async def send_all(self, data: bytes | bytearray | memoryview) -> None:
            with self._sending:
                self._check_sending()
                await trio.lowlevel.checkpoint()  # cancelled here, nothing was sent
                await self._wait_until(self._connection.writable_at)
                data = bytes(data)
                self._check_sending()
                try:
                    taken = self._connection.receive_some(data)
                    rest = data[taken:]
                    await self._wait_until(lambda: self._connection.writable_at(len(rest)))
                    self._check_sending()
                    if rest:
                        self._connection.receive(rest)
                except OSError as error:
                    raise trio.BrokenResourceError("the connection was reset") from error

        async def wait_send_all_might_not_block(self) -> None:
            with self._sending:
                self._check_open()
                await trio.lowlevel.checkpoint()
                await self._wait_until(self._connection.writable_at)
                self._check_open()

        async def send_eof(self) -> None:
            with self._sending:
                self._check_open()
                await trio.lowlevel.checkpoint()
                self._check_open()
                self._sent_eof = True
                self._connection.receive_eof()

        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            size = READ_SIZE if max_bytes is None else operator.index(max_bytes)
            if size < 1:
                raise ValueError(f"max_bytes is {max_bytes}, expected at least 1")
            with self._receiving:
                self._check_open()
                # Once bytes are taken there is no checkpoint that could lose them.
                await trio.lowlevel.checkpoint()
                await self._wait_until(self._connection.readable_at)
                self._check_open()
                try:
                    data = self._connection.take(size)
                except OSError as error:
                    raise trio.BrokenResourceError("the connection was reset") from error
                assert data is not None  # nobody else takes
                return data

        async def aclose(self) -> None:
            self._connection.close()
            await trio.lowlevel.checkpoint()

        async def _wait_until(self, due: Callable[[], float]) -> None:
            """Until a time that may change whenever anything happens."""
            while (deadline := due()) > trio.current_time():
                with trio.move_on_at(deadline):
                    await self._changed.park()

        def _check_open(self) -> None:
            if not self._connection.open:
                raise trio.ClosedResourceError("the stream is closed")

        def _check_sending(self) -> None:
            self._check_open()
            if self._sent_eof:
                raise trio.ClosedResourceError("the end was sent already")

    return FakeTrioStream


def _os_error(number: int) -> OSError:
    """The error of the operating system with this number, of its proper class."""
    return OSError(number, os.strerror(number))

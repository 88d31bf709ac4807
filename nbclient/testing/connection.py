"""``FakeConnection``: requests in, replies out, each piece at its time. Does not wait.

The streams of both kinds ask it when something will have come (``readable_at``)
or will be taken (``writable_at``), wait for that in their own way, and then take
or give. What has no time of its own is due at ``math.inf``: only another call can
bring it about, and that calls ``wake``.
"""

from __future__ import annotations

import errno
import math
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from nbclient.testing.faults import FLAWLESS, Cut, Fault, Script, os_error
from nbnet.framing import FrameDecoder, FrameError, encode_frame
from nbnet.notation import Address

if TYPE_CHECKING:
    from nbclient.testing.server import FakeServer


class Piece(NamedTuple):
    """Bytes under way to the client."""

    due: float  # when it arrives, by the clock of the connection
    data: bytes
    alone: bool  # not to be given together with others


class End(NamedTuple):
    """The end of the stream of replies: when it arrives, and of which kind it is."""

    due: float
    reset: bool


class FakeConnection:
    """A connection as the server sees it; they are in ``FakeServer.connections``.

    Attributes:
        address: where the client wanted to connect to.
        requests: the payloads executed, in order.
        open: whether the client has not closed it, although the server may have
            ended it.

    >>> from nbclient.testing import FakeServer
    >>> server = FakeServer()
    >>> with server.connect() as stream:
    ...     server.connections[0].say(b"who asked?")
    ...     stream.readable(), stream.receive(timeout=5)
    (True, b'who asked?')
    >>> server.connections[0].open
    False
    """

    def __init__(
        self, server: FakeServer, script: Script, address: Address, clock: Callable[[], float]
    ) -> None:
        self.address = address
        self.requests: list[bytes] = []
        self.open = True
        self.wake: Callable[[], object] = lambda: None  # tells the stream that something changed
        self._server = server
        self._script = script
        self._clock = clock
        self._decoder = FrameDecoder()
        self._output: deque[Piece] = deque()
        self._unread = 0  # bytes of output
        self._end: End | None = None  # once set, nothing is executed or sent any more
        self._last_due = -math.inf  # replies must not overtake
        self._cut: Cut | None = None
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
                self._end = End(now, reset)
        self.wake()

    def cut(self, after: int, *, reset: bool = False) -> None:
        """End it after so many more bytes of replies."""
        with self._lock:
            self._cut = Cut(after, reset)
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
                raise os_error(errno.EPIPE)
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
                self._end = End(-math.inf, reset=False)
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
                    raise os_error(errno.ECONNRESET)
                return b""
            parts: list[bytes] = []
            while size and self._output and self._output[0].due <= now:
                due, data, alone = self._output[0]
                if alone and parts:
                    break
                self._output.popleft()
                parts.append(data[:size])
                if len(data) > size:
                    self._output.appendleft(Piece(due, data[size:], alone))
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

    def _send(self, data: bytes, fault: Fault = FLAWLESS) -> None:
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
                    self._output.append(Piece(self._last_due, piece, bool(fault.pieces)))
            self._unread += len(data)
            if self._cut is not None and self._cut.after == 0:
                self._finish(reset=self._cut.reset)
        self.wake()

    def _finish(self, *, reset: bool) -> None:
        """Let the connection end behind the replies under way."""
        with self._lock:
            if self._end is None:
                self._end = End(self._last_due, reset)
        self.wake()

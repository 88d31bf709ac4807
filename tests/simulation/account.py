"""What a server owes on a connection, by a second, simple reading of the protocol.

An ``Account`` is told every byte that the server reads and sends on one
connection. It cuts the input into requests in the plainest way, knows the reply
to each (``answer``), and fails the run at the first byte that is sent and not
owed at that place at that time, and when the server ends the stream owing something.

What a payload asks for is its first letter; all contain the number of their
connection and of the request, so that none is like another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from simulation.kernel import Kernel
from simulation.network import End

HEADER: Final = 5
MOST: Final = 99_999

REVERSE, EMPTY, GROW, RAISE, UNFIT, LONG, EXIT = b"r", b"e", b"g", b"x", b"u", b"l", b"q"
FAILING: Final = (RAISE, UNFIT, LONG, EXIT)
"""What makes the handler fail, each in its way."""


def answer(payload: bytes) -> bytes | None:
    """The reply to a payload; None for one at which the handler fails."""
    kind = payload[:1]
    if kind == REVERSE:
        return payload[::-1]
    if kind == EMPTY:
        return b""
    if kind == GROW:
        return (payload * 5)[:MOST]
    return None


def frame(payload: bytes) -> bytes:
    """A payload with its length before it."""
    return str(len(payload)).zfill(HEADER).encode() + payload


class HandlerBroke(Exception):  # noqa: N818
    """What the handler raises where it is to."""


class Handler:
    """The server's handler, which knows what it may be asked.

    Attributes:
        known: payloads that were sent, and whether they were handled.
        answered: how many got a reply that is fit.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.known: dict[bytes, bool] = {}
        self.before: Callable[[], None] = lambda: None  # called at each request
        self.answered = 0
        self.failed = 0
        self.many = False  # whether a payload may come any number of times
        self.repeatable: set[bytes] = set()  # those that may

    def __call__(self, payload: bytes) -> bytes:
        if self.known.get(payload, True) and not (self.many or payload in self.repeatable):
            what = "a second time" if payload in self.known else "that nobody has sent"
            self.kernel.fail(f"the handler is given {payload[:40]!r} {what}")
        self.known[payload] = True
        self.before()
        self.kernel.note("handle", len(payload))
        reply = answer(payload)
        if reply is None:
            self.failed += 1
            kind = payload[:1]
            if kind == RAISE:
                raise HandlerBroke(payload[:20])
            if kind == EXIT:
                raise SystemExit
            return b"l" * 100_000 if kind == LONG else "unfit"  # type: ignore[return-value]
        self.answered += 1
        return reply


class Account:
    """Of one connection of a server.

    Args:
        max_frame: the longest payload taken.
        ended: called when the server has closed it, see ``unpaid``.

    Attributes:
        taken, given: bytes read and sent.
        asked: whole requests read; ``replies``, whole replies sent.
        owed: the replies to them, as they have to be on the wire.
        fault: whether what was read ends in something that is no frame, or a
            request at which the handler fails; nothing is owed for what follows.
        progress: when something was last read or sent.
        moved: when something was last sent, or a reply was first owed after all were.
        is_shut: whether the server has ended its stream.
    """

    def __init__(
        self, kernel: Kernel, end: End, max_frame: int, ended: Callable[[Account], None]
    ) -> None:
        self.kernel = kernel
        self.end = end
        self.taken = self.given = self.asked = 0
        self.replies = 0
        self._ends: list[int] = []  # of the replies owed
        self.owed = bytearray()
        self.fault = ""
        self.progress = self.moved = kernel.now
        self.is_shut = self.is_closed = False
        self._max_frame = max_frame
        self._ended = ended
        self._buffer = bytearray()

    @property
    def unpaid(self) -> int:
        """Bytes of replies owed and not sent."""
        return len(self.owed) - self.given

    @property
    def partial(self) -> int:
        """Bytes read of a request that is not whole."""
        return len(self._buffer)

    def took(self, data: bytes) -> None:
        self.progress = self.kernel.now
        if self.is_shut:
            return  # thrown away
        self.taken += len(data)
        if self.fault:
            return
        buffer = self._buffer
        buffer += data
        while not self.fault:
            while buffer[:2] == b"\r\n":
                del buffer[:2]
            header = bytes(buffer[:HEADER])
            if header == b"\r":
                return
            if any(byte not in b"0123456789" for byte in header):
                self.fault = "a bad header"
                return
            if len(header) < HEADER:
                return
            size = int(header)
            if not 1 <= size <= self._max_frame:
                self.fault = "a bad length"
                return
            if len(buffer) < HEADER + size:
                return
            payload = bytes(buffer[HEADER : HEADER + size])
            del buffer[: HEADER + size]
            reply = answer(payload)
            if reply is None:
                self.fault = "a request at which the handler fails"
                return
            self.asked += 1
            if not self.unpaid:
                self.moved = self.kernel.now
            self.owed += frame(reply)
            self._ends.append(len(self.owed))

    def gave(self, data: bytes) -> None:
        self.progress = self.kernel.now
        if data:
            self.moved = self.kernel.now
        if self.is_shut:
            self.kernel.fail("the server sends after the end of its stream")
        expected = self.owed[self.given : self.given + len(data)]
        if data != expected:
            self.kernel.fail(
                f"a wrong reply: byte {self.given} on is {data[:60]!r}, owed is {expected[:60]!r}"
            )
        self.given += len(data)
        while self.replies < self.asked and self._ends[self.replies] <= self.given:
            self.replies += 1

    def shut(self) -> None:
        if self.unpaid:
            self.kernel.fail(f"the server ends its stream and owes {self.unpaid} bytes of replies")
        self.is_shut = True
        self.progress = self.kernel.now

    def closed(self) -> None:
        self.is_closed = True
        self._ended(self)

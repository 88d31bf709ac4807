"""One connection of the load: its requests in flight, and what its bytes mean.

No I/O here: the engine reads and sends, and asks here what it has read. The
request that is to be answered next is the head of the line; its fields are
attributes, so that a connection with one request in flight, the usual one, has
no queue to look at. Those behind it wait in ``behind``.

``ready`` is the whole reply that the next read brings if all is well, and None
if the next read has to be looked at more closely, for any reason: nothing is in
flight, a part of the reply has come already, a request was not sent whole, or
any reply will do. So one comparison tells the usual case.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from typing import Final, NamedTuple, Protocol

from loadgen.traffic import Message
from nbnet.framing import FrameDecoder

# What can be wrong with bytes that came.
WRONG_PAYLOAD: Final = "wrong payload"
WRONG_LENGTH: Final = "wrong length"
BAD_HEADER: Final = "bad header"
UNEXPECTED_BYTES: Final = "unexpected bytes"
"""Bytes that no request asked for, or not yet."""

# What can happen to a connection.
EOF: Final = "EOF"
RESET: Final = "reset"
TIMEOUT: Final = "timeout"
REFUSED: Final = "refused"
_KINDS: Final = {
    errno.ECONNRESET: RESET,
    errno.EPIPE: RESET,
    errno.ECONNABORTED: RESET,
    errno.ETIMEDOUT: TIMEOUT,
    errno.ECONNREFUSED: REFUSED,
}
_HEADER: Final = 5
NEVER: Final = 1 << 62
"""A number of requests, or a moment in nanoseconds, that is not reached."""


class Socket(Protocol):
    """What the engine needs of a connecting or connected, non-blocking socket."""

    def recv(self, size: int, /) -> bytes: ...
    def send(self, data: bytes | memoryview, /) -> int: ...
    def close(self) -> None: ...
    def fileno(self) -> int: ...


class Request(NamedTuple):
    """A request in flight: when it was due and when it was sent, in nanoseconds.

    Or several that were sent as one, in ``parts``; their replies come as one, too,
    as a rule, and then cost what one does.
    """

    message: Message
    parts: tuple[Message, ...]
    due: int
    sent: int


class Connection:
    """A connection, made or being made.

    Attributes:
        number: 1 for the first one asked for, and so on.
        sends: whether it is one of those that send.
        begun: when its making began, in nanoseconds.
        ready: see above.
        message, parts, due, sent: the head of the line, see ``Request``; ``message``
            is None without any in flight.
        behind: the requests in flight behind it, if there ever were any.
        matched: bytes of the reply to the head that came and were right.
        unsent: what the kernel has not taken, a piece for each request.
        replies: replies verified.
        granted: requests that it may send, or has sent.
        decoder: of a connection to which any reply is right.
        ended: whether it is given up; it is closed after the batch.
    """

    __slots__ = (
        "begun",
        "behind",
        "decoder",
        "due",
        "ended",
        "fd",
        "granted",
        "matched",
        "message",
        "number",
        "parts",
        "ready",
        "recv",
        "replies",
        "send",
        "sends",
        "sent",
        "socket",
        "unsent",
    )

    def __init__(self, socket: Socket, number: int, *, sends: bool, begun: int) -> None:
        self.adopt(socket)
        self.number = number
        self.sends = sends
        self.begun = begun
        self.ready: bytes | None = None
        self.message: Message | None = None
        self.parts: tuple[Message, ...] = ()
        self.due = self.sent = begun
        self.behind: deque[Request] | None = None  # most connections never need one
        self.matched = 0
        self.unsent: deque[bytes] = deque()
        self.replies = 0
        self.granted = 0
        self.decoder: FrameDecoder | None = None
        self.ended = False

    def adopt(self, socket: Socket) -> None:
        """Go on with another socket of the same descriptor."""
        self.socket = socket
        self.fd = socket.fileno()
        self.recv = socket.recv
        self.send = socket.send

    @property
    def in_flight(self) -> int:
        """How many requests wait for their replies."""
        if self.message is None:
            return 0
        behind = sum(len(request.parts) or 1 for request in self.behind or ())
        return (len(self.parts) or 1) + behind

    @property
    def outstanding(self) -> list[Message]:
        """The requests in flight, the one to be answered next first."""
        if self.message is None:
            return []
        found = [*(self.parts or (self.message,))]
        for request in self.behind or ():
            found += request.parts or (request.message,)
        return found

    def add(self, message: Message, due: int, sent: int, parts: tuple[Message, ...] = ()) -> None:
        """Put a request into the line."""
        if self.message is None:
            self.message, self.parts, self.due, self.sent = message, parts, due, sent
            self.look()
        else:
            if self.behind is None:
                self.behind = deque()
            self.behind.append(Request(message, parts, due, sent))

    def answered(self) -> int:
        """Take the head, which is answered, out of the line; how many requests that were."""
        count = len(self.parts) or 1
        self.matched = 0
        self.replies += count
        if self.behind:
            self.message, self.parts, self.due, self.sent = self.behind.popleft()
            self.look()
        else:
            self.message = self.ready = None
            self.parts = ()
        return count

    def take_apart(self) -> None:
        """Have each part of the head stand in the line by itself."""
        if self.parts:
            first, *others = self.parts
            if self.behind is None:
                self.behind = deque()
            self.behind.extendleft(
                Request(other, (), self.due, self.sent) for other in reversed(others)
            )
            self.message, self.parts = first, ()

    def look(self) -> None:
        """Set ``ready`` by all the rest."""
        # With TLS or a small window a request may be cut at any byte.
        if self.message is None or self.matched or self.unsent:
            self.ready = None
        else:
            self.ready = self.message.expected or None


def kind_of_fault(expected: bytes, got: bytes) -> str:
    """What is wrong with the bytes of a reply that is not the expected one.

    >>> kind_of_fault(b"00003cba", b"00003abc")
    'wrong payload'
    >>> kind_of_fault(b"00003cba", b"00002cb"), kind_of_fault(b"00003cba", b"HTTP/1.1")
    ('wrong length', 'bad header')
    """
    header = got[:_HEADER]
    if not expected:
        return UNEXPECTED_BYTES
    if not header.isdigit():
        return BAD_HEADER
    return WRONG_LENGTH if header != expected[: len(header)] else WRONG_PAYLOAD


def kind_of_error(error: OSError) -> str:
    """What an error of the kernel means to a connection.

    >>> kind_of_error(ConnectionResetError(104, "Connection reset by peer"))
    'reset'
    """
    code = error.errno
    if code in _KINDS:
        return _KINDS[code]
    return error.strerror or (os.strerror(code) if code else str(error))

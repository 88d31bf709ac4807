"""Requests and their replies on one connection. No I/O.

Frames carry no number: the first reply belongs to the first request, and one
step lost would hand every later reply to the wrong caller. So the rules are:

* replies are given in the order of the requests, each one once;
* a reply that nobody asked for is a fault, and so is any byte after the last
  reply outstanding; only CR LF is skipped there, as before any header;
* the end of the stream with replies outstanding is a fault;
* replies that came before a fault are still given, then the fault is raised,
  again and again: a poisoned exchange never works again, and its connection
  has to be closed;
* a connection may serve another request only while its exchange is ``idle``;
* what an exchange answers does not depend on how the stream was cut into reads.

Both fronts go round like this::

    add or fill  ->  bytes to send  ->  receive, until next_reply gives one
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from nbclient.errors import ConnectionLost, NbclientError, ProtocolError
from nbnet.framing import MAX_PAYLOAD, FrameDecoder, encode_frame

WINDOW: Final = 64 * 1024
"""Bytes of requests that may be unanswered at a time, headers included."""


def encode_request(payload: bytes) -> bytes:
    """The frame of a request, whose payload has 1 to 99,999 bytes.

    Raises:
        ValueError: the payload is empty or too long.
        TypeError: the payload is no bytes.

    >>> encode_request(b"abc")
    b'00003abc'
    """
    frame = encode_frame(payload)
    if not payload:
        raise ValueError(f"a request cannot be empty: its payload has 1 to {MAX_PAYLOAD} bytes")
    return frame


class Exchange:
    """The requests on one connection and the replies due for them.

    Args:
        window: bytes of requests that may be unanswered at a time; a single
            frame may be larger, and is then alone on the way.

    >>> exchange = Exchange()
    >>> exchange.fill(iter([b"abc", b"de"]))
    b'00003abc00002de'
    >>> exchange.receive(b"00003cba0000")
    >>> exchange.next_reply(), exchange.next_reply(), exchange.outstanding
    (b'cba', None, 1)
    """

    __slots__ = (
        "_decoder",
        "_fault",
        "_in_flight",
        "_queue",
        "_queued",
        "_replies",
        "_sizes",
        "_window",
    )

    def __init__(self, window: int = WINDOW) -> None:
        # The window bounds the memory that requests take, and it is what lets a
        # front send without reading at the same time. A server may stop reading
        # until its replies are read; then what it has not taken yet must fit
        # between the two ends, or both would wait for ever. It does: by default
        # the receiving kernel buffers 64 KiB, and the sending one some more. A
        # larger frame goes when nothing is outstanding: then there is no unread
        # reply that could keep the server from reading it.
        self._window = window
        self._decoder = FrameDecoder(min_payload=0)
        self._queue: deque[bytes] = deque()  # frames to send
        self._queued = 0  # their bytes
        self._sizes: deque[int] = deque()  # of the frames sent and not answered
        self._in_flight = 0  # their sum
        self._replies: deque[bytes] = deque()  # received, not given yet
        self._fault: NbclientError | None = None

    @property
    def outstanding(self) -> int:
        """Requests that were sent and are not answered."""
        return len(self._sizes)

    @property
    def room(self) -> bool:
        """Whether the window lets another request be added."""
        return self._in_flight + self._queued < self._window

    @property
    def idle(self) -> bool:
        """Whether nothing is under way and nothing was at fault."""
        return not (self._sizes or self._queue or self._replies or self._fault)

    def add(self, payload: bytes) -> None:
        """Take a request of 1 to 99,999 bytes, to be sent when the window allows.

        Raises:
            ValueError: the payload is empty or too long; nothing was taken.
            TypeError: the payload is no bytes; nothing was taken.
            NbclientError: the exchange is poisoned.
        """
        self.check()
        frame = encode_request(payload)
        self._queue.append(frame)
        self._queued += len(frame)

    def take(self) -> bytes:
        """The bytes to send now, maybe none: what was added, as far as the window goes.

        Their requests are outstanding from here on.

        Raises:
            NbclientError: the exchange is poisoned.
        """
        self.check()
        queue = self._queue
        frames: list[bytes] = []
        while queue and (not self._in_flight or self._in_flight + len(queue[0]) <= self._window):
            frame = queue.popleft()
            size = len(frame)
            self._sizes.append(size)
            self._in_flight += size
            self._queued -= size
            frames.append(frame)
        return b"".join(frames)

    def fill(self, payloads: Iterator[bytes]) -> bytes:
        """Add payloads as long as there is room; give the bytes to send now.

        Raises:
            ValueError: a payload is empty or too long.
            TypeError: a payload is no bytes.
            NbclientError: the exchange is poisoned.
        """
        self.check()
        if self.room:
            for payload in payloads:
                self.add(payload)
                if not self.room:
                    break
        return self.take()

    def receive(self, data: bytes) -> None:
        """Take the next bytes of the stream; none (``b""``) say that it has ended.

        Raises:
            NbclientError: the exchange was poisoned before.
        """
        self.check()
        if not data:
            self._fault = ConnectionLost(self._describe_end())
            return
        payloads = self._decoder.feed(data)
        asked = payloads[: len(self._sizes)]
        for _ in asked:
            self._in_flight -= self._sizes.popleft()
        self._replies += asked
        self._fault = self._find_fault(data, len(payloads) - len(asked))

    def next_reply(self) -> bytes | None:
        """The next reply in order; None as long as it is not whole.

        Raises:
            NbclientError: it will never come, the exchange is poisoned.
        """
        if self._replies:
            return self._replies.popleft()
        self.check()
        return None

    def check(self) -> None:
        """Make sure that nothing is wrong.

        Raises:
            NbclientError: the exchange is poisoned.
        """
        if self._fault is not None:
            raise self._fault

    def poison(self, fault: NbclientError) -> None:
        """Let nothing more happen; an earlier fault stays the one that is raised."""
        self._replies.clear()
        self._fault = self._fault or fault

    def _find_fault(self, data: bytes, unasked: int) -> ProtocolError | None:
        error = self._decoder.error
        rest = self._decoder.unfinished
        if rest == 1 and data.endswith(b"\r"):
            rest = 0  # may be the half of a CR LF: the next byte will tell
        if unasked or (not self._sizes and (rest or error)):
            fault = ProtocolError("the server sent bytes that nobody asked for")
        elif error:
            fault = ProtocolError(f"the server broke the protocol: {error}")
        else:
            return None
        fault.__cause__ = error
        return fault

    def _describe_end(self) -> str:
        count = len(self._sizes)
        if not count:
            return "the server closed the connection"
        replies = "a reply" if count == 1 else f"{count} replies"
        text = f"the server closed the connection with {replies} outstanding"
        if unfinished := self._decoder.unfinished:
            text += f", {unfinished} bytes into the next"
        return text

"""One served connection: bytes in, replies out. Knows no sockets.

The loop feeds what it read to ``receive`` and sends what that gives; what the
kernel refuses goes back through ``block``, and ``unsent`` is what to send when
the kernel takes output again. Every other event has a method of its own. Each
may change ``state``; the loop then acts on the new state.

The rules:

* replies leave in the order of the requests;
* a fault (broken frames, a handler that fails) ends the connection, but the
  replies to the requests before it are sent first;
* nothing of a fault is told to the peer.
"""

from __future__ import annotations

import contextlib
import logging

from nbnet.framing import FrameDecoder, FrameError, encode_frame, encode_frames
from nbnet.handlers import Handler
from nbnet.limits import Limits
from nbnet.states import TRANSITIONS, Event, State

log = logging.getLogger("nbnet")


class Connection:
    """The protocol's side of one connection.

    Attributes:
        state: what the connection is doing; changed only along the table.
        peer: who it is, for the log.
        unsent: encoded replies that the kernel has not taken yet.
        requests: replies earned so far.

    >>> from nbnet.handlers import reverse
    >>> connection = Connection(reverse, Limits(), "somebody")
    >>> connection.receive(b"00003abc00002")
    b'00003cba'
    """

    __slots__ = ("_decoder", "_handler", "_limits", "peer", "requests", "state", "unsent")

    def __init__(self, handler: Handler, limits: Limits, peer: str) -> None:
        self.state = State.READING
        self.peer = peer
        self.unsent = bytearray()
        self.requests = 0
        self._handler = handler
        self._limits = limits
        self._decoder = FrameDecoder(max_payload=limits.max_frame)

    def receive(self, data: bytes) -> bytes:
        """Take bytes from the peer; give the replies to send, maybe none.

        After a fault the state is no longer one that reads; what is returned
        is still to be sent.
        """
        payload = self._decoder.feed_one(data)
        if payload is None:
            return self._receive_many(data)
        try:
            reply = encode_frame(self._handler(payload))
        except Exception as error:  # a handler may raise anything; it ends this connection alone
            return self._fail([], error)
        self.requests += 1
        return reply

    def block(self, rest: bytes | memoryview) -> None:
        """The kernel did not take ``rest`` of the replies just received."""
        self.unsent += rest
        if self.state is State.READING:
            self._move(Event.BLOCKED)
        if self.state is State.WRITING and len(self.unsent) > self._limits.high_water:
            self._move(Event.HIGH)

    def take(self, count: int) -> None:
        """The kernel took ``count`` bytes of ``unsent``, maybe none."""
        del self.unsent[:count]
        if self.state is State.PAUSED and len(self.unsent) < self._limits.low_water:
            self._move(Event.LOW)
        if not self.unsent and self.state in (State.WRITING, State.FLUSHING):
            self._move(Event.FLUSHED)

    def receive_eof(self) -> None:
        """The peer will send no more."""
        if self.state is not State.LINGERING:
            try:
                self._decoder.finish()
            except FrameError as error:
                self._report(error)
        self._move(Event.EOF)

    def stop(self) -> None:
        """The server is stopping: send what was earned, read no more."""
        if self.state in (State.READING, State.WRITING, State.PAUSED):
            self._move(Event.STOP)

    def lose(self, reason: str) -> None:
        """The connection is gone, or has to go."""
        log.debug("%s: %s", self.peer, reason)
        self._move(Event.LOST)

    def _receive_many(self, data: bytes) -> bytes:
        payloads = self._decoder.feed(data)
        handler = self._handler
        replies: list[bytes] = []
        try:
            for payload in payloads:
                replies.append(handler(payload))
            out = encode_frames(replies)
        except Exception as error:  # as above
            return self._fail(replies, error)
        self.requests += len(replies)
        if self._decoder.error is not None:
            self._report(self._decoder.error)
            self._move(Event.FAULT)
        return out

    def _fail(self, replies: list[bytes], error: Exception) -> bytes:
        """End on a request that got no fit reply; give the replies before it."""
        log.error("%s: closing, the handler failed: %s", self.peer, error, exc_info=error)
        self._move(Event.FAULT)
        earned: list[bytes] = []
        with contextlib.suppress(TypeError, ValueError):
            for reply in replies:
                earned.append(encode_frame(reply))
        self.requests += len(earned)
        return b"".join(earned)

    def _report(self, error: FrameError) -> None:
        log.info("%s: closing, protocol error: %s", self.peer, error)

    def _move(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state, event]

"""Requests and their replies on one connection. No I/O.

Frames carry no number: the first reply belongs to the first request, and one
step lost would hand every later reply to the wrong caller. So the rules are:

* replies are given in the order of the requests, each one once;
* a reply that nobody asked for is a fault, and so is any byte after the last
  reply outstanding; only CR LF is skipped there, as before any header;
* the end of the stream is a fault, whether or not replies are outstanding;
* nothing is believed behind a fault, and nothing works again: the connection
  has to be closed;
* a caller that gives up does not take the reply along: if the request was sent,
  its reply is still due, and is dropped when it comes;
* what is answered does not depend on how the stream was cut into reads.

``Ledger`` keeps these rules for whoever counts requests. ``Exchange`` is for
many callers that share a connection, ``nbclient.pipeline`` for one that has it
alone and sends ahead. All go round like this::

    add  ->  take: bytes to send  ->  receive: what the bytes that came complete
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from copy import copy
from itertools import chain
from typing import Any, Final

from nbclient.errors import (
    ConnectionLost,
    LocalProtocolError,
    NbclientError,
    RemoteProtocolError,
)
from nbnet.framing import (
    HEADER_SIZE,
    HEADERS,
    MAX_PAYLOAD,
    TABLE_SIZE,
    FrameDecoder,
    encode_frame,
    encode_frames,
)

WINDOW: Final = 64 * 1024
"""Bytes of requests that may be unanswered at a time, headers included.

It bounds the memory that requests take, and it is what lets a front send
without reading at the same time. A server may stop reading until its replies
are read; then what it has not taken yet must fit between the two ends, or both
would wait for ever. It does: by default the receiving kernel buffers 64 KiB,
and the sending one some more. A larger frame goes when nothing is outstanding:
then there is no unread reply that could keep the server from reading it."""


def encode_request(payload: bytes) -> bytes:
    """The frame of a request, whose payload has 1 to 99,999 bytes.

    Raises:
        LocalProtocolError: the payload is empty or too long.
        TypeError: the payload is no bytes.

    >>> encode_request(b"abc")
    b'00003abc'
    """
    if type(payload) is bytes and 0 < len(payload) < TABLE_SIZE:
        return HEADERS[len(payload)] + payload  # as encode_frame does, without the call
    try:
        if payload:
            return encode_frame(payload)
    except (TypeError, ValueError):
        pass
    raise _unfit(payload)


def encode_requests(payloads: Sequence[bytes]) -> bytes:
    """The frames of several requests, one after the other.

    Raises:
        LocalProtocolError: a payload is empty or too long.
        TypeError: a payload is no bytes.

    >>> encode_requests([b"abc", b"de"])
    b'00003abc00002de'
    """
    try:
        if all(payloads):
            return encode_frames(payloads)
    except (TypeError, ValueError):
        pass
    return b"".join(map(encode_request, payloads))


_REPLIES: Final = FrameDecoder(min_payload=0).alone


def sole_reply(data: bytes) -> bytes | None:
    """The reply in bytes that are one short reply, whole and alone; None for all else.

    What a server sends that was asked once looks like this nearly always. For
    whoever has one request outstanding, and nothing of its reply yet.

    >>> sole_reply(b"00003cba"), sole_reply(b"00003cb")
    (b'cba', None)
    """
    try:
        if _REPLIES[len(data) - HEADER_SIZE] == data[:HEADER_SIZE]:
            return data[HEADER_SIZE:]
    except IndexError:  # longer than the table
        pass
    return None


def _unfit(payload: bytes) -> Exception:
    if not isinstance(payload, bytes):
        return TypeError(f"a payload is bytes, not {type(payload).__name__}")
    size = len(payload)
    what = f"has {size} bytes" if size else "is empty"
    return LocalProtocolError(f"the payload of a request {what}: it may have 1 to {MAX_PAYLOAD}")


class Ledger:
    """What was sent on a connection and is not answered yet.

    Args:
        peer: the server, for errors to name.

    Attributes:
        outstanding: requests that were sent and are not answered.
        in_flight: their bytes; those of a batch count until all of it is answered.
        fault: what was wrong; None as long as nothing is. Never raised itself:
            ``failure`` makes an error of it for each who is concerned.
        out_of_step: whether that was a byte too many: the replies that came with
            it may be those to other requests.

    >>> ledger = Ledger("127.0.0.1:6789")
    >>> ledger.sent(2, 15)
    >>> ledger.receive(b"00003cba0000")
    [b'cba']
    >>> ledger.outstanding
    1
    """

    __slots__ = (
        "_batches",
        "_decoder",
        "_peer",
        "fault",
        "in_flight",
        "out_of_step",
        "outstanding",
    )

    def __init__(self, peer: str) -> None:
        self.outstanding = 0
        self.in_flight = 0
        self.fault: NbclientError | None = None
        self.out_of_step = False
        self._peer = peer
        self._batches: deque[tuple[int, int]] = deque()  # what was sent: requests and bytes
        self._decoder = FrameDecoder(min_payload=0)

    @property
    def idle(self) -> bool:
        """Whether nothing is under way and nothing was at fault."""
        return not (self.outstanding or self.fault or self._decoder.unfinished)

    def sent(self, count: int, size: int) -> None:
        """So many requests, of so many bytes together, go out now."""
        self.outstanding += count
        self.in_flight += size
        self._batches.append((count, size))

    def receive(self, data: bytes) -> list[bytes]:
        """Take the next bytes of the stream; give the replies now complete, in order.

        A fault behind them is in ``fault`` then. No bytes (``b""``) say that the
        stream has ended.
        """
        if self.fault is not None:
            return []
        if not data:
            self.poison(ConnectionLost(self._describe_end(), peer=self._peer))
            return []
        replies = self._decoder.feed(data)
        unasked = len(replies) - self.outstanding
        if unasked > 0:
            del replies[-unasked:]
        self._settle(len(replies))
        self._find_fault(data, unasked > 0)
        return replies

    def poison(self, fault: NbclientError) -> None:
        """Let nothing more happen; an earlier fault stays the one that is told."""
        self.fault = self.fault or fault

    def failure(self, *, maybe_executed: bool) -> NbclientError:
        """An error of one's own that tells of the fault."""
        fault = self.fault
        assert fault is not None
        error = copy(fault)
        error.__cause__ = fault.__cause__
        error.peer = self._peer
        error.stage = fault.stage or ("receiving" if maybe_executed else "sending")
        error.maybe_executed = maybe_executed
        return error

    def _settle(self, count: int) -> None:
        """So many of the oldest requests are answered."""
        self.outstanding -= count
        batches = self._batches
        while count:
            first, size = batches[0]
            if count < first:
                batches[0] = first - count, size
                return
            count -= first
            self.in_flight -= size
            batches.popleft()

    def _find_fault(self, data: bytes, unasked: bool) -> None:
        error = self._decoder.error
        rest = self._decoder.unfinished
        if rest == 1 and data.endswith(b"\r"):
            rest = 0  # may be the half of a CR LF: the next byte will tell
        if unasked or (not self.outstanding and (rest or error)):
            self.out_of_step = True
            text = f"{self._peer} sent bytes that nobody asked for"
        elif error:
            text = f"{self._peer} broke the protocol: {error}"
        else:
            return
        fault = RemoteProtocolError(text, peer=self._peer)
        fault.__cause__ = error
        self.poison(fault)

    def _describe_end(self) -> str:
        count = self.outstanding
        if not count:
            return f"{self._peer} closed the connection"
        replies = "a reply" if count == 1 else f"{count} replies"
        text = f"{self._peer} closed the connection with {replies} outstanding"
        if unfinished := self._decoder.unfinished:
            text += f", {unfinished} bytes into the next"
        return text


class Request:
    """One request on a connection that is shared, and what came of it.

    Attributes:
        frame: what to send.
        deadline: when it has to be answered, in the front's seconds.
        limit: the seconds from its beginning until then.
        reply: the payload of the reply; None as long as there is none.
        error: why there will be none.
        waiter: whatever the front needs in order to tell who waits.
    """

    # Class attributes until they change: to make one is to set three.
    reply: bytes | None = None
    error: NbclientError | None = None
    waiter: Any = None
    sent = False
    abandoned = False

    def __init__(self, frame: bytes, deadline: float, limit: float = math.inf) -> None:
        self.frame = frame
        self.deadline = deadline
        self.limit = limit

    @property
    def done(self) -> bool:
        """Whether there is a reply or an error."""
        return self.reply is not None or self.error is not None


class Exchange(Ledger):
    """Requests of many callers on one connection.

    Args:
        peer: the server, for errors to name.
        window: bytes of requests that may be unanswered at a time; a single
            frame may be larger, and is then alone on the way.

    Attributes:
        load: requests that wait to be sent or answered.
        wanted: those of them whose callers still wait.

    >>> exchange = Exchange("127.0.0.1:6789")
    >>> first, second = Request(b"00001a", 1.0), Request(b"00001b", 1.0)
    >>> exchange.add(first), exchange.add(second)
    (None, None)
    >>> exchange.take()
    b'00001a00001b'
    >>> exchange.abandon(first)
    >>> [request.reply for request in exchange.complete(b"00001A00001B")]
    [b'B']
    """

    __slots__ = ("_due", "_in_order", "_latest", "_queue", "_queued", "_window", "load", "wanted")

    def __init__(self, peer: str, window: int = WINDOW) -> None:
        super().__init__(peer)
        self._window = window
        self._queue: deque[Request] = deque()  # to be sent
        self._queued = 0  # their bytes
        self._due: deque[Request] = deque()  # sent and not answered
        self.load = self.wanted = 0
        self._latest = -math.inf  # deadline that was added
        self._in_order = True  # whether those who came first have the earlier ones

    @property
    def sendable(self) -> bool:
        """Whether there is something to send, as far as the window goes."""
        queue = self._queue
        return bool(queue) and (
            not self.in_flight or self.in_flight + len(queue[0].frame) <= self._window
        )

    @property
    def idle(self) -> bool:
        """Whether nothing is under way and nothing was at fault."""
        return not (self.load or self.fault or self._decoder.unfinished)

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for the reply to a request that was sent."""
        return any(not request.abandoned for request in self._due)

    def add(self, request: Request) -> None:
        """Take a request, to be sent when the window allows."""
        self._queue.append(request)
        self._queued += len(request.frame)
        if not self.wanted:
            self._in_order = True
        elif request.deadline < self._latest:
            self._in_order = False
        self._latest = request.deadline
        self.load += 1
        self.wanted += 1

    def take(self) -> bytes:
        """The bytes to send now, maybe none: what was added, as far as the window goes.

        Their requests are outstanding from here on.
        """
        queue, due = self._queue, self._due
        size, room = self._queued, self._window - self.in_flight
        if size <= room:
            taken = list(queue)
            queue.clear()
        else:
            taken, size = [], 0
            while queue:
                next_size = len(queue[0].frame)
                if size + next_size > room and (taken or self.in_flight):
                    break
                taken.append(queue.popleft())
                size += next_size
        if not taken:
            return b""
        for request in taken:
            request.sent = True
        due.extend(taken)
        self._queued -= size
        self.sent(len(taken), size)
        return b"".join([request.frame for request in taken])

    def complete(self, data: bytes) -> list[Request]:
        """Take the next bytes of the stream; give the requests that are answered now.

        Those behind a fault are not among them: ``fail`` gives these.
        """
        replies = self.receive(data)
        if self.out_of_step:
            # Nobody knows which of those that came with it are right: all fail.
            return []
        self.load -= len(replies)
        due = self._due
        done = []
        for reply in replies:
            request = due.popleft()
            if not request.abandoned:
                request.reply = reply
                done.append(request)
        self.wanted -= len(done)
        return done

    def abandon(self, request: Request) -> None:
        """Its caller has given up: nobody is to get the reply. Others are not concerned."""
        if request.abandoned or request.done:
            return
        request.abandoned = True
        self.wanted -= 1
        if not request.sent:
            self._queue.remove(request)
            self._queued -= len(request.frame)
            self.load -= 1

    def expire(self, now: float) -> list[Request]:
        """The requests whose deadline has passed, abandoned, as their callers are to be."""
        late = [
            request
            for request in (*self._due, *self._queue)
            if request.deadline <= now and not request.abandoned
        ]
        for request in late:
            self.abandon(request)
        return late

    def next_deadline(self) -> float:
        """When the first of those that are waited for has to be answered; infinite for none."""
        waited_for = (r.deadline for r in chain(self._due, self._queue) if not r.abandoned)
        return next(waited_for, math.inf) if self._in_order else min(waited_for, default=math.inf)

    def waiting(self) -> Request | None:
        """The first request that has a waiter; None without one."""
        return next((r for r in chain(self._due, self._queue) if r.waiter is not None), None)

    def most_patient(self) -> Request | None:
        """The request with a waiter that has the latest deadline; None without one."""
        waiting = (r for r in chain(self._due, self._queue) if r.waiter is not None)
        return max(waiting, key=lambda request: request.deadline, default=None)

    def fail(self) -> list[Request]:
        """End all requests with the fault; give those that were not abandoned."""
        failed = [request for request in (*self._due, *self._queue) if not request.abandoned]
        for request in failed:
            request.error = self.failure(maybe_executed=request.sent)
        self._due.clear()
        self._queue.clear()
        self._queued = self.load = self.wanted = 0
        return failed

"""One served connection: bytes in, replies out. Knows no sockets.

The loop feeds what it read to ``receive`` and sends what that gives; what the
kernel refuses goes back through ``block``, and ``unsent`` is what to send when
the kernel takes output again. Every other event has a method of its own. Each
may change ``state``; the loop then acts on the new state.

The rules:

* replies leave in the order of the requests, whoever answers them: the handler
  here and now, or threads of a pool (``collect`` what they have done);
* a fault (broken frames, a handler that fails) ends the connection, but the
  replies to the requests before it are sent first;
* nothing of a fault is told to the peer;
* no more requests are answered in one go than the limits allow; the others
  wait, and while any waits nothing is read.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Sequence
from typing import Final

from nbnet.counters import Counters
from nbnet.framing import (
    HEADERS,
    TABLE_SIZE,
    FrameDecoder,
    FrameError,
    encode_frame,
    encode_frames,
)
from nbnet.handlers import Bound
from nbnet.limits import Limits
from nbnet.notation import Target
from nbnet.proxy import Header, HeaderDecoder, ProxyError
from nbnet.states import MOVABLE, TRANSITIONS, Event, State
from nbnet.threads import Job, Pool

log = logging.getLogger("nbnet")

_HANDLER_FAILURES: Final = (Exception, SystemExit)
"""What a handler may raise to the cost of its connection alone. Only
``KeyboardInterrupt`` and its like end the server."""

RECENTLY: Final = 1.0
"""Seconds. When the server stops, a connection whose last request is older than
this counts as idle and is ended at once; the others have as long to close."""

_PORTION: Final = 128
"""Requests answered between two looks at how much output they made: output may
be over the high-water mark by as many replies. Fewer would slow down pipelining."""

_EMPTY: Final = bytearray()  # shared, so never to be changed
_NO_HEADERS: Final[tuple[bytes | None, ...]] = ()
_NO_JOBS: Final[deque[Job]] = deque()  # shared, so never to be changed


class Connection:
    """The protocol's side of one connection.

    Args:
        handler: what answers a request.
        limits: the bounds to keep.
        counters: what is counted for all connections together.
        peer: who it is, for the log and for limits.
        now: the time, in the loop's seconds.
        proxied: whether a PROXY header has to say who it is before anything else.
        secure: whether TLS has to be agreed on before requests come.
        pool: threads that run the handler; without, it runs in ``receive``.

    Attributes:
        handler: what answers a request; may be changed between calls.
        state: what the connection is doing; changed only along the table.
        peer: who it is; until a PROXY header says better, the proxy.
        requests: how many have been answered.
        unsent: encoded replies that the kernel has not taken yet.
        waiting: requests read and not answered yet.
        frame_since: when the request that is not whole yet began; None without one.

    >>> from nbnet.handlers import reverse
    >>> connection = Connection(reverse, Limits(), Counters(), "somebody", 0.0)
    >>> connection.receive(b"00003abc00002", 1.0)
    b'00003cba'
    """

    __slots__ = (
        "_active",
        "_alone",
        "_counters",
        "_decoder",
        "_eof",
        "_introduction",
        "_jobs",
        "_limits",
        "_moved",
        "_pool",
        "_portion",
        "_stopping",
        "frame_since",
        "handler",
        "peer",
        "requests",
        "state",
        "unsent",
        "waiting",
    )

    def __init__(
        self,
        handler: Bound,
        limits: Limits,
        counters: Counters,
        peer: Target | str,
        now: float,
        *,
        proxied: bool = False,
        secure: bool = False,
        pool: Pool | None = None,
    ) -> None:
        self.state = State.HANDSHAKING if secure else State.READING
        self._introduction: HeaderDecoder | None = None
        if proxied:
            self.state = State.INTRODUCING
            self._introduction = HeaderDecoder()
        self.handler = handler
        self.peer = peer
        self.requests = 0
        # Most connections need neither most of the time: no buffer of their own.
        self.unsent = _EMPTY
        self.waiting: Sequence[bytes] = ()
        self.frame_since: float | None = None
        self._active = now  # when the last whole request came, or the connection
        self._moved = now  # when output last made progress, or lingering began
        self._eof = False
        self._stopping = False
        self._limits = limits
        self._counters = counters
        self._pool = pool
        self._portion = min(_PORTION, limits.frames_per_turn)
        self._jobs = _NO_JOBS if pool is None else deque()  # with threads, in order
        self._decoder = FrameDecoder(max_payload=limits.max_frame)
        self._alone = self._decoder.alone if pool is None else _NO_HEADERS

    def receive(self, data: bytes, now: float) -> bytes:
        """Take bytes from the peer; give the replies to send, maybe none.

        Afterwards the state may be one that does not read; what is returned is
        to be sent all the same.
        """
        reply = self.receive_one(data, now)
        return self.receive_any(data, now) if reply is None else reply

    def receive_one(self, data: bytes, now: float) -> bytes | None:
        """``receive`` for one whole, short request, as peers send that wait for each reply.

        None: it is something else and nothing has been done; ``receive_any`` is
        to take it. Empty: the handler failed, and the state has changed. In all
        other cases it has not.
        """
        try:
            if self._alone[len(data) - 5] != data[:5]:
                return None
        except IndexError:  # longer than the table
            return None
        self._active = now
        handler = self.handler  # as a local: Python 3.11 calls it faster
        try:
            reply = handler(data[5:])
            # What encode_frame does, without the call.
            if type(reply) is bytes and len(reply) < TABLE_SIZE:
                reply = HEADERS[len(reply)] + reply
            else:
                reply = encode_frame(reply)
        except _HANDLER_FAILURES as error:  # it ends this connection alone
            return self._fail([], error)
        self.requests += 1
        return reply

    def receive_any(self, data: bytes, now: float) -> bytes:
        """``receive`` for what ``receive_one`` does not take."""
        return self._answer(self._decode(data, now), now)

    def resume(self, now: float) -> bytes:
        """Answer the next of the requests that wait; give the replies to send."""
        return self._answer(self.waiting, now)

    @property
    def introduction_needs(self) -> int:
        """Bytes to read next for ``introduce``, at most; only while ``INTRODUCING``."""
        assert self._introduction is not None
        return self._introduction.needs

    def introduce(self, data: bytes) -> Header | None:
        """Take bytes of the PROXY header; give it once it is whole.

        Then ``introduced`` or ``lose`` is to follow. What is no header ends the
        connection.
        """
        assert self._introduction is not None
        try:
            return self._introduction.feed(data)
        except ProxyError as error:
            self._distrust(str(error))
            return None

    def introduced(self, now: float, *, secure: bool) -> None:
        """The header was taken: requests may come, or TLS before them."""
        self._introduction = None
        self._active = now
        self._move(Event.TO_AGREE if secure else Event.INTRODUCED)

    def agree(self, now: float) -> None:
        """TLS is agreed on: requests may come."""
        self._active = now
        self._move(Event.AGREED)

    def disagree(self, reason: str) -> None:
        """TLS cannot be agreed on; the peer has been told why and is to read it."""
        log.debug("%s: closing, TLS: %s", self.peer, reason)
        self._move(Event.FAULT)

    def collect(self, now: float) -> bytes:
        """Threads have done something; give the replies to send, in order, maybe none."""
        jobs = self._jobs
        replies: list[bytes] = []
        while jobs and jobs[0].done:
            job = jobs.popleft()
            if job.error is not None:
                if not isinstance(job.error, _HANDLER_FAILURES):
                    raise job.error
                return self._fail(replies, job.error)
            replies.append(job.reply)
        try:
            output = encode_frames(replies)
        except (TypeError, ValueError) as error:
            return self._fail(replies, error)
        self.requests += len(replies)
        self._give_out(now)
        return output

    def pack(self) -> tuple[bytes, bytes]:
        """What another process needs to go on: requests unanswered or begun, replies unsent.

        Only in a ``MOVABLE`` state. While ``INTRODUCING`` it is the part of the
        PROXY header that has come.
        """
        if self._introduction is not None:
            return bytes(self._introduction.held), b""
        return b"".join(map(encode_frame, self.waiting)) + self._decoder.held, bytes(self.unsent)

    def unpack(self, unread: bytes, unsent: bytes, now: float) -> None:
        """Go on where the process that packed it has stopped; for a new connection."""
        if self._introduction is not None:
            self._introduction.held += unread
            return
        self.waiting = self._decode(unread, now) if unread else ()
        if self.waiting:
            self._move(Event.MORE)
        elif self._decoder.error is not None:  # these limits are stricter
            self._caught_up(now)
        self.block(unsent, now)

    def move_out(self) -> None:
        """Another process serves the peer from here on."""
        self._let_go(Event.MOVED)

    def block(self, rest: bytes | memoryview, now: float) -> None:
        """The kernel did not take ``rest`` of the replies just made."""
        if rest:
            if self.unsent:
                self.unsent += rest
            else:
                self.unsent = bytearray(rest)
                self._moved = now
            self._counters.unsent += len(rest)
            if self.state in (State.READING, State.WORKING):
                self._move(Event.BLOCKED)
            self._check_high()

    def take(self, count: int, now: float) -> None:
        """The kernel took ``count`` bytes of ``unsent``, maybe none."""
        if count:
            if count < len(self.unsent):
                del self.unsent[:count]
            else:
                self.unsent = _EMPTY
            self._counters.unsent -= count
            self._moved = now
        if not self.unsent:
            self._flushed(now)
        elif self.state is State.BUSY:
            self._move(Event.BLOCKED)
        elif self.state is State.PAUSED:
            if not self.waiting and len(self.unsent) <= self._limits.low_water:
                self._move(Event.LOW)
                self._read_again(now)
        else:
            self._check_high()

    def receive_eof(self) -> None:
        """The peer will send no more; only in a state that reads, so that none waits."""
        self._eof = True
        if self.state is State.INTRODUCING:
            assert self._introduction is not None
            if self._introduction.held:
                self._distrust("the connection ended within the PROXY header")
            else:  # somebody looked whether the server is there
                self._move(Event.EOF)
            return
        if self.state is State.LINGERING:
            self._move(Event.EOF)
            return
        try:
            self._decoder.finish()
        except FrameError as error:
            self._report(error)
        self._move(Event.EOF)

    def stop(self, now: float) -> None:
        """The server is stopping: answer what was begun, and end.

        A connection that was idle for a while is ended at once. One that was
        not may have more on the way, or replies in the kernel that closing with
        unread input would cut off.
        """
        self._stopping = True
        if self.state in (State.INTRODUCING, State.HANDSHAKING):
            self.lose("the server stops")
        if self.waiting or self.state not in MOVABLE:
            return  # it ends by itself, or once it is caught up
        recently = now - self._active < RECENTLY and (self.requests or self._decoder.offset)
        if self.unsent or (recently and not self._decoder.unfinished):
            self._move(Event.STOP)
        elif not self._decoder.unfinished:
            self.lose("the server stops")

    def lose(self, reason: str) -> None:
        """The connection is gone, or has to go at once."""
        log.debug("%s: %s", self.peer, reason)
        self._let_go(Event.LOST)

    def linger(self, now: float) -> None:
        """The write side is shut now."""
        self._moved = now

    def deadline(self) -> tuple[float, str]:
        """When the connection has to end unless something happens, and what is missing."""
        limits = self._limits
        if self.state is State.LINGERING:
            # Unlike the others, this one cannot be switched off.
            linger = min(limits.linger, RECENTLY) if self._stopping else limits.linger
            return self._moved + linger, "linger"
        if self.state is State.INTRODUCING:
            start, limit, kind = self._active, limits.frame_timeout, "proxy"
        elif self.state is State.HANDSHAKING:
            start, limit, kind = self._active, limits.handshake_timeout, "handshake"
        elif self.unsent:
            start, limit, kind = self._moved, limits.write_timeout, "write"
        elif self.waiting or self._jobs:
            return math.inf, "turn"  # it is the server's turn, not the peer's
        elif self.frame_since is not None:
            start, limit, kind = self.frame_since, limits.frame_timeout, "frame"
        elif self.requests or self._decoder.offset:
            start, limit, kind = self._active, limits.idle_timeout, "idle"
        else:
            start, limit, kind = self._active, limits.first_byte_timeout, "first_byte"
        return start + limit if limit else math.inf, kind

    # How it goes on inside -------------------------------------------------------

    def _decode(self, data: bytes, now: float) -> list[bytes]:
        payloads = self._decoder.feed(data)
        if self._pool is None:
            self._alone = self._decoder.alone
        if payloads:
            self._active = now
        if not self._decoder.unfinished:
            self.frame_since = None
        elif payloads or self.frame_since is None:
            self.frame_since = now
        return payloads

    def _answer(self, payloads: Sequence[bytes], now: float) -> bytes:
        """Answer as many requests as one turn allows; the others wait."""
        if self._pool is not None:
            self.waiting = payloads
            self._give_out(now)
            return b""
        if len(payloads) <= self._portion:
            return self._answer_all(payloads, now)
        handler = self.handler
        done, turn = 0, min(len(payloads), self._limits.frames_per_turn)
        made, output = 0, []
        while done < turn and made <= self._limits.high_water:
            replies: list[bytes] = []
            try:
                # In C; what was answered before a failure stays in the list.
                replies.extend(map(handler, payloads[done : min(done + _PORTION, turn)]))
                encoded = encode_frames(replies)
            except _HANDLER_FAILURES as error:
                self.requests += done
                output.append(self._fail(replies, error))
                return b"".join(output)
            done += len(replies)
            made += len(encoded)
            output.append(encoded)
        self.requests += done
        self.waiting = payloads[done:] if done < len(payloads) else ()
        if self.waiting:
            if self.state is not State.BUSY:
                self._move(Event.MORE)
        else:
            self._caught_up(now)
        return b"".join(output)

    def _answer_all(self, payloads: Sequence[bytes], now: float) -> bytes:
        """Answer so few requests that nothing has to be looked at between them."""
        replies: list[bytes] = []
        try:
            replies.extend(map(self.handler, payloads))
            output = encode_frames(replies)
        except _HANDLER_FAILURES as error:
            return self._fail(replies, error)
        self.requests += len(replies)
        self.waiting = ()
        self._caught_up(now)
        return output

    def _give_out(self, now: float) -> None:
        """Let threads answer the next of the requests that wait, as many as may be there."""
        pool, jobs = self._pool, self._jobs
        assert pool is not None
        if self.state is State.DELIVERING:
            if not jobs and self.waiting:
                self._move(Event.MORE)
            elif not jobs:
                self._caught_up(now)
            return
        if self.state is State.WRITING and self.waiting:
            self._move(Event.MORE)
            return
        count = min(len(self.waiting), pool.window - len(jobs))
        for payload in self.waiting[:count]:
            job = Job(self.handler, payload)
            jobs.append(job)
            pool.submit(self, job)
        self._counters.in_flight += count
        self.waiting = self.waiting[count:]
        if jobs and self.state is not State.WORKING:
            self._move(Event.HANDED_OUT)
        elif not jobs:
            self._caught_up(now)

    def _caught_up(self, now: float) -> None:
        """Every request read is answered: now act on what came behind them."""
        if self._decoder.error is not None:
            self._counters.protocol_errors += 1
            self._report(self._decoder.error)
            self._move(Event.FAULT)
            return
        if self.state in (State.BUSY, State.WORKING, State.DELIVERING):
            self._move(Event.CAUGHT_UP)
            self._read_again(now)
        if self._stopping and not self._decoder.unfinished:
            self._move(Event.STOP)

    def _fail(self, replies: list[bytes], error: BaseException) -> bytes:
        """End on a request that got no fit reply; give the replies before it."""
        log.error("%s: closing, the handler failed: %s", self.peer, error, exc_info=error)
        self._counters.handler_errors += 1
        self.waiting = ()
        self._abandon_jobs()
        self._move(Event.FAULT)
        earned: list[bytes] = []
        for reply in replies:
            try:
                earned.append(encode_frame(reply))
            except (TypeError, ValueError):
                break
        self.requests += len(earned)
        return b"".join(earned)

    def _flushed(self, now: float) -> None:
        if self.state is State.FLUSHING:
            self._move(Event.EOF if self._eof else Event.FLUSHED)
        elif self.state is State.PAUSED and self.waiting:
            self._move(Event.MORE)
        elif self.state is State.PAUSED:
            self._move(Event.FLUSHED)
            self._read_again(now)
        elif self.state is State.DELIVERING:
            self._move(Event.FLUSHED)
            self._give_out(now)
        elif self.state is State.WRITING:
            self._move(Event.FLUSHED)

    def _read_again(self, now: float) -> None:
        """Reading had stopped: the peer cannot be blamed for the time that took."""
        self._active = now
        if self.frame_since is not None:
            self.frame_since = now

    def _let_go(self, event: Event) -> None:
        self._counters.unsent -= len(self.unsent)
        self.unsent = _EMPTY
        self.waiting = ()
        self._abandon_jobs()
        self._move(event)

    def _abandon_jobs(self) -> None:
        for job in self._jobs:
            job.abandoned = True
        self._jobs = _NO_JOBS

    def _check_high(self) -> None:
        if self.state is State.WRITING and len(self.unsent) > self._limits.high_water:
            self._move(Event.HIGH)

    def _distrust(self, reason: str) -> None:
        """End on what is no PROXY header."""
        self._counters.proxy_errors += 1
        log.warning("%s: closing, PROXY protocol: %s", self.peer, reason)
        self._move(Event.FAULT)

    def _report(self, error: FrameError) -> None:
        log.warning(
            "%s: closing after %d requests, protocol error: %s",
            self.peer,
            self.requests,
            error.reason,
        )

    def _move(self, event: Event) -> None:
        before, self.state = self.state, TRANSITIONS[self.state, event]
        if self.state is State.PAUSED:
            self._counters.paused += 1
            self._counters.paused_now += 1
        elif before is State.PAUSED:
            self._counters.paused_now -= 1

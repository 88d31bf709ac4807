"""The target for ``nbnet.connection``: what a server sends, whatever it reads how.

The connection is driven as ``nbnet.channels`` does it, by a kernel that takes what it
likes: replies are sent as soon as they are made, what is refused is sent later, and
nothing is read while the state says so. What goes out has to be the replies to the
requests before the first fault, in their order, and the connection has to end.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Final

from support.pool import FakePool
from support.reference import Reading, read

from fuzz.plan import Differs, Input, cuts, must_equal, parse
from nbnet.connection import Connection
from nbnet.counters import Counters
from nbnet.framing import encode_frame
from nbnet.limits import Limits
from nbnet.states import MOVABLE, READS, State

LIMITS: Final = (
    Limits(),
    Limits(max_frame=99, high_water=60, low_water=20, frames_per_turn=2),
    Limits(max_frame=4096, high_water=0, low_water=0, frames_per_turn=1),
    Limits(max_frame=5000, high_water=10, low_water=10, frames_per_turn=3),
)
EVERYTHING: Final = 1 << 30


def picky(payload: bytes) -> bytes:
    """Backwards; fails on some payloads, and gives what is no reply for others."""
    if payload[:1] == b"!":
        raise ValueError("a payload that I do not like")
    return None if payload[:1] == b"?" else payload[::-1]  # type: ignore[return-value]


def wordy(payload: bytes) -> bytes:
    """Nothing for some payloads, much for the others."""
    return b"" if payload[0] % 2 else payload * 3 if len(payload) < 33_000 else payload


HANDLERS: Final[tuple[Callable[[bytes], bytes], ...]] = (lambda p: p[::-1], picky, wordy)


def server(data: bytes) -> None:
    """Whatever the cuts, the kernel and the threads do, the replies are the right ones."""
    given = parse(data)
    limits = LIMITS[given.limits % len(LIMITS)]
    handler = HANDLERS[given.choice % len(HANDLERS)]
    reading = read(given.stream, 1, limits.max_frame)
    replies, failed = _replies(reading, handler)
    for number, pieces in enumerate(cuts(given)):
        driven = Driven(handler, limits, given, number)
        driven.serve(pieces)
        must_equal("what was sent", bytes(driven.sent), b"".join(replies))
        counters = driven.counters
        must_equal("handler errors", counters.handler_errors, int(failed))
        broken = reading.fault is not None and not failed
        must_equal("protocol errors", counters.protocol_errors, int(broken))
        must_equal("bytes that count as unsent", counters.unsent, 0)
        must_equal("paused connections", counters.paused_now, 0)
        if not driven.moved:
            must_equal("requests", driven.connection.requests, len(replies))


def _replies(reading: Reading, handler: Callable[[bytes], bytes]) -> tuple[list[bytes], bool]:
    """The replies that are due, and whether the handler fails behind them."""
    replies: list[bytes] = []
    for payload in reading.payloads:
        try:
            replies.append(encode_frame(handler(payload)))
        except (ValueError, TypeError):
            return replies, True
    return replies, False


class Driven:
    """A connection, the kernel below it and the threads beside it."""

    def __init__(
        self, handler: Callable[[bytes], bytes], limits: Limits, given: Input, number: int
    ) -> None:
        self._handler, self._limits = handler, limits
        choice = given.choice // len(HANDLERS) + number
        self._pool = FakePool(window=2 + given.place % 3) if choice % 4 == 3 else None
        self._moves_at = given.place % 16 if choice % 2 else -1
        self._rooms: Iterator[int] = itertools.repeat(EVERYTHING)
        if choice // 2 % 2:
            self._rooms = itertools.cycle((0, given.steps[0], given.steps[2] - 1, 1))
        self._moves_from = (State.BUSY, State.PAUSED) if choice // 4 % 2 else ()
        self._turn = given.place
        self.counters = Counters()
        self.moved = False
        self.sent = bytearray()
        self.connection = self._connection()

    def _connection(self) -> Connection:
        return Connection(self._handler, self._limits, self.counters, "peer", 0.0, pool=self._pool)

    def serve(self, pieces: list[bytes]) -> None:
        """Let the pieces come, and then the end."""
        for number, piece in enumerate(pieces):
            if self.connection.state is not State.READING:
                self._go_on()
            if number == self._moves_at:
                self._move()
                self._go_on()
            if self._state() not in READS or self._state() is State.LINGERING:
                break
            self._receive(piece)
        self._go_on()
        if self._state() in READS:
            self.connection.receive_eof()
            self._flush()
        self._go_on(to_the_end=True)

    def _state(self) -> State:
        return self.connection.state

    def _receive(self, piece: bytes) -> None:
        replies = self.connection.receive_one(piece, 1.0)
        if replies is None:
            replies = self.connection.receive_any(piece, 1.0)
        self._hand(replies)

    def _hand(self, replies: bytes) -> None:
        """What the loop does with replies just made."""
        if self._state() is State.READING and replies:
            taken = next(self._rooms)
            self.sent += replies[:taken]
            self.connection.block(memoryview(replies)[taken:], 1.0)
        elif replies or self.connection.unsent or self._state() is not State.READING:
            self.connection.block(replies, 1.0)
            self._flush()

    def _flush(self) -> None:
        sent = bytes(self.connection.unsent[: next(self._rooms)])
        self.sent += sent
        self.connection.take(len(sent), 1.0)

    def _go_on(self, *, to_the_end: bool = False) -> None:
        """Do what there is to do until the connection reads again, or has ended."""
        # One byte a turn at least, and as many turns as there are requests.
        for _ in range(1_000_000):
            state = self._state()
            if state in (State.READING, State.CLOSED):
                break
            if state is State.LINGERING:
                if to_the_end:
                    self.connection.receive_eof()
                break
            if state in self._moves_from:  # with requests that wait, or replies
                self._moves_from = ()
                self._move()
            elif state is State.BUSY:
                self._hand(self.connection.resume(1.0))
            elif state in (State.WORKING, State.DELIVERING):
                self._work()
            else:
                self._flush()
                if state is State.WRITING and not to_the_end and self._turn % 2:
                    break  # may read before all is sent
        else:
            raise Differs(f"the connection hangs while {self._state().value}")
        if to_the_end:
            must_equal("the state in the end", self._state(), State.CLOSED)

    def _work(self) -> None:
        """A thread is done with one of the jobs; or the kernel takes something."""
        pool = self._pool
        assert pool is not None
        self._turn += 1
        if pool.todo:
            pool.run(self._turn % len(pool.todo))
        for _, job in pool.take_done():
            job.done = True
        if self._state() is State.DELIVERING and self._turn % 2:
            self._flush()
        else:
            self._hand(self.connection.collect(1.0))

    def _move(self) -> None:
        """Another process takes over."""
        if self._state() not in MOVABLE:
            return
        before = self.connection
        unread, unsent = before.pack()
        self.connection = self._connection()
        before.move_out()
        must_equal("the state after moving", before.state, State.CLOSED)
        self.moved = True
        self.connection.unpack(unread, unsent, 1.0)
        self._flush()

"""Which reply is taken for that to which request: a model of one connection of a load.

Requests go alone or joined, the kernel takes them whole, in part or not at all, replies
come cut anyhow, also before all of a request was sent, and at some point one is wrong.
Nothing but the right bytes in the right order may count as verified.
"""

from __future__ import annotations

import errno
import itertools
from typing import Any, cast

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.lives import live, lives

from loadgen.connection import EOF, UNEXPECTED_BYTES, Connection
from loadgen.load import Load
from loadgen.plan import Plan
from loadgen.recording import Recorder
from loadgen.traffic import Pool, messages
from nbnet.pollers import READ, WRITE

MESSAGES = messages([b"a%d" % number * (number % 4 + 1) for number in range(10, 47)], "reverse")

ROOMS = st.sampled_from([1000, 1000, 0, 4, 15])
"""Bytes that the kernel takes. (Of numbers, Hypothesis tries the small ones too often.)"""


class Wire:
    """A socket, and the poller that watches it."""

    def __init__(self) -> None:
        self.room = 0
        self.taken = b""
        self.mask = READ

    def fileno(self) -> int:
        return 5

    def recv(self, size: int, /) -> bytes:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def send(self, data: bytes | memoryview, /) -> int:
        if not self.room:
            raise BlockingIOError(errno.EAGAIN, "")
        sent = bytes(data[: self.room])
        self.room -= len(sent)
        self.taken += sent
        return len(sent)

    def modify(self, fd: int, eventmask: int, /) -> None:
        assert fd == 5
        self.mask = eventmask


class Line(RuleBasedStateMachine):
    """One connection: what is asked, sent, answered, and what is made of that."""

    def __init__(self) -> None:
        super().__init__()
        self.begin()

    def begin(self) -> None:
        """A new connection."""
        self.wire = Wire()
        self.recorder = Recorder(open_loop=False)
        outside: dict[str, Any] = {"dialer": self.wire, "poller": self.wire, "clock": lambda: 0}
        plan = Plan(connections=1, duration=1.0, pipeline=100, reconnect=False)
        self.load = Load(plan, Pool(MESSAGES), None, self.recorder, **outside)
        self.load.measuring = True
        self.connection = Connection(cast(Any, self.wire), 1, sends=True, begun=0)
        self.load.connections[5] = self.connection
        self.asked = 0
        self.answered = b""  # by the server, and received
        self.expected = self.frames = b""  # of all that was asked
        self.ended = False

    @property
    def whole(self) -> int:
        """Requests that were sent whole."""
        size = count = 0
        while count < self.asked:
            size += len(MESSAGES[count % len(MESSAGES)].frame)
            if size > len(self.wire.taken):
                break
            count += 1
        return count

    def replies(self, count: int) -> bytes:
        return b"".join(MESSAGES[n % len(MESSAGES)].expected for n in range(count))

    def receive(self, data: bytes) -> None:
        """As the pumps do."""
        if data and data == self.connection.ready:
            self.load.release(self.connection, self.load.record(self.connection, 0), 0)
        else:
            self.load.receive(self.connection, data, 0)

    @precondition(lambda self: not self.ended)
    @rule(count=st.sampled_from([1, 1, 2, 4]), room=ROOMS)
    def ask(self, count: int, room: int) -> None:
        self.wire.room = room
        for number in range(self.asked, self.asked + count):
            self.frames += MESSAGES[number % len(MESSAGES)].frame
        self.asked += count
        self.load.request(self.connection, count, 0, 0)

    @precondition(lambda self: not self.ended and self.wire.mask & WRITE)
    @rule(room=ROOMS)
    def make_room(self, room: int) -> None:
        self.wire.room = room
        self.load.send_rest(self.connection)

    @precondition(lambda self: not self.ended)
    @rule(size=st.sampled_from([1000, 3, 9, 30, 1]))
    def answer(self, size: int) -> None:
        due = self.replies(self.whole)
        data = due[len(self.answered) : len(self.answered) + size]
        if data:
            self.answered += data
            self.receive(data)

    @precondition(lambda self: not self.ended and self.asked)
    @rule(
        behind=st.sampled_from([0, 0, 1, 6, 10]),
        wrong=st.sampled_from(["again", "early", "again", "early", b"0", b"x", b"\r"]),
    )
    def err(self, behind: int, wrong: bytes | str) -> None:
        """Some right bytes, then what is wrong, or what nobody has asked for yet."""
        due = self.replies(self.whole)[len(self.answered) :]
        if isinstance(wrong, str):  # a whole reply: the one that has begun, or one that is not due
            number = self.whole if wrong == "early" else self.verified_by_the_server()
            behind = len(due) if wrong == "early" else behind
            wrong = MESSAGES[number % len(MESSAGES)].expected
        pairs = zip(due[behind:], wrong, strict=False)
        right = bytes(one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        if right == wrong:
            return
        if due[:behind]:
            self.receive(due[:behind])
        self.answered += due[:behind] + right
        left = self.asked - self.verified_by_the_server()
        self.receive(wrong)
        self.ended = True
        counts = self.recorder.counts
        assert counts.wrong == min(left, 1)
        assert counts.failed == left - counts.wrong
        [kind] = counts.errors
        assert (kind == UNEXPECTED_BYTES) == (self.whole == self.verified_by_the_server())

    @precondition(lambda self: not self.ended and self.asked > 4)
    @rule()
    def end(self) -> None:
        self.receive(b"")
        self.ended = True
        assert self.recorder.counts.errors == ({EOF: 1} if self.in_flight() else {})
        assert self.recorder.counts.failed == self.in_flight()

    @precondition(lambda self: self.ended)
    @rule(data=st.sampled_from([b"", b"x", b"00001a"]))
    def come_too_late_and_begin_anew(self, data: bytes) -> None:
        before = (self.recorder.counts.failed, self.recorder.counts.wrong)
        self.receive(data)
        assert (self.recorder.counts.failed, self.recorder.counts.wrong) == before
        self.begin()

    def verified_by_the_server(self) -> int:
        count = 0
        while count < self.whole and len(self.replies(count + 1)) <= len(self.answered):
            count += 1
        return count

    def in_flight(self) -> int:
        return self.asked - self.verified_by_the_server()

    @invariant()
    def what_is_right_and_nothing_else_is_verified(self) -> None:
        assert len(self.recorder.latencies) == self.verified_by_the_server()
        if not self.ended:
            assert not self.recorder.counts.wrong
            assert self.connection.in_flight == self.load.in_flight == self.in_flight()
        else:
            assert self.connection.ended
            assert self.load.in_flight == 0
            assert self.connection.ready is None

    @invariant()
    def all_is_sent_in_order_or_waits(self) -> None:
        assert self.wire.taken + b"".join(self.connection.unsent) == self.frames
        assert len(self.connection.unsent) == self.asked - self.whole
        if not self.ended:
            assert (self.wire.mask == READ | WRITE) == bool(self.connection.unsent)


@lives
def test_whatever_comes_back(count: int) -> None:
    live(Line, count)

"""One connection without sockets: bytes in, replies out."""

from __future__ import annotations

import array
import logging
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.lives import live, lives

from nbnet.connection import Connection
from nbnet.counters import Counters
from nbnet.framing import MAX_PAYLOAD, encode_frame
from nbnet.handlers import Bound, reverse
from nbnet.limits import Limits
from nbnet.states import MOVABLE, TRANSITIONS, State


def connection(handler: Bound = reverse, limits: Limits | None = None) -> Connection:
    return Connection(handler, limits or Limits(), Counters(), "peer", 0.0)


@given(st.lists(st.binary(min_size=1, max_size=30), min_size=1), st.integers(1, 40))
def test_replies_come_in_order_however_requests_are_cut(payloads: list[bytes], step: int) -> None:
    served = connection()
    stream = b"".join(map(encode_frame, payloads))
    replies = b"".join(
        served.receive(stream[start : start + step], 1.0) for start in range(0, len(stream), step)
    )
    assert replies == b"".join(encode_frame(payload[::-1]) for payload in payloads)
    assert served.requests == len(payloads)


def test_an_empty_reply_is_sent_as_zero_length() -> None:
    assert connection(lambda _: b"").receive(b"00003abc", 1.0) == b"00000"


def fail_on_bad(payload: bytes) -> bytes:
    if payload == b"bad":
        raise RuntimeError("handler")
    return payload


@pytest.mark.parametrize(
    ("handler", "why"),
    [
        (fail_on_bad, "RuntimeError: handler"),
        (lambda p: "text" if p == b"bad" else p, "a payload is bytes, not str"),
        (lambda p: None if p == b"bad" else p, "a payload is bytes, not NoneType"),
        (lambda p: [1, 2] if p == b"bad" else p, "a payload is bytes, not list"),
        (lambda p: array.array("i", [1]) if p == b"bad" else p, "a payload is bytes, not array"),
        (lambda p: bytes(MAX_PAYLOAD + 1) if p == b"bad" else p, "100000 bytes is over the 99999"),
    ],
)
@pytest.mark.parametrize("before", [b"", b"00002ok", b"00002ok00001k"])
def test_a_request_without_a_fit_reply_ends_the_connection_after_the_replies_before_it(
    handler: Bound, why: str, before: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    served = connection(handler)
    assert served.receive(before + b"00003bad" + before, 1.0) == before
    assert served.state is State.FLUSHING
    assert served.requests == before.count(b"k0") + before.endswith(b"k")
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert why in caplog.text
    assert "bad" not in record.getMessage()


def test_a_single_unfit_reply_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    served = connection(lambda _: "text")  # type: ignore[arg-type,return-value]
    assert served.receive(b"00003abc", 1.0) == b""
    assert served.state is State.FLUSHING
    assert "a payload is bytes, not str" in caplog.text


def test_a_handler_is_not_called_twice_for_a_request() -> None:
    seen: list[bytes] = []

    def handler(payload: bytes) -> bytes:
        seen.append(payload)
        return fail_on_bad(payload)

    connection(handler).receive(b"00001a00001b00003bad00001c", 1.0)
    assert seen == [b"a", b"b", b"bad"]


def test_a_handler_cannot_end_the_server(caplog: pytest.LogCaptureFixture) -> None:
    def handler(_: bytes) -> bytes:
        raise SystemExit(3)

    served = connection(handler)
    assert served.receive(b"00001a", 1.0) == b""
    assert served.state is State.FLUSHING
    assert "SystemExit: 3" in caplog.text


def test_ctrl_c_in_a_handler_is_not_swallowed() -> None:
    def handler(_: bytes) -> bytes:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        connection(handler).receive(b"00001a", 1.0)


def test_a_request_over_the_limit_is_a_fault(caplog: pytest.LogCaptureFixture) -> None:
    served = connection(limits=Limits(max_frame=10))
    with caplog.at_level(logging.DEBUG, logger="nbnet"):
        assert served.receive(b"00010" + b"x" * 10 + b"00011", 1.0) == b"00010" + b"x" * 10
    assert served.state is State.FLUSHING
    assert "after 1 requests, protocol error: a length of 11 is outside of 1 to 10" in caplog.text


def test_an_end_inside_a_request_is_said(caplog: pytest.LogCaptureFixture) -> None:
    served = connection()
    served.receive(b"00003ab", 1.0)
    with caplog.at_level(logging.DEBUG, logger="nbnet"):
        served.receive_eof()
    served.take(0, 1.0)
    assert served.state is State.CLOSED
    assert "the stream ended 7 bytes into a frame" in caplog.text


class Peer(RuleBasedStateMachine):
    """Anything may happen at any time: the table is kept and no reply is lost."""

    def __init__(self) -> None:
        super().__init__()
        limits = Limits(high_water=60, low_water=20, frames_per_turn=2)
        self.served = connection(limits=limits)
        self.asked: list[bytes] = []  # the replies that the peer is owed, in order
        self.handed = b""  # replies that the connection made
        self.taken = b""  # what the kernel took of them

    def hand(self, replies: bytes, room: int) -> None:
        """What the loop does with replies."""
        self.handed += replies
        self.served.block(replies, 1.0)
        self.take(room)

    @precondition(lambda self: self.served.state in (State.READING, State.WRITING))
    @rule(
        requests=st.lists(st.binary(min_size=1, max_size=30), max_size=6),
        fault=st.booleans(),
        room=st.integers(0, 80),
    )
    def receive(self, requests: list[bytes], fault: bool, room: int) -> None:
        was_reading = self.served.state is State.READING
        data = b"".join(map(encode_frame, requests)) + (b"x" if fault else b"")
        replies = self.served.receive(data, 1.0)
        self.asked += [encode_frame(request[::-1]) for request in requests]
        if was_reading and self.served.state is State.READING:
            self.handed += replies
            self.taken += replies[:room]
            if replies[room:]:
                self.served.block(replies[room:], 1.0)
        else:
            self.hand(replies, room)

    @precondition(lambda self: self.served.state is State.BUSY)
    @rule(room=st.integers(0, 80))
    def resume(self, room: int) -> None:
        self.hand(self.served.resume(1.0), room)

    @precondition(lambda self: self.served.state not in (State.LINGERING, State.CLOSED))
    @rule(room=st.integers(0, 80))
    def take(self, room: int) -> None:
        sent = bytes(self.served.unsent[:room])
        self.taken += sent
        self.served.take(len(sent), 1.0)

    @precondition(lambda self: self.served.state in (State.READING, State.WRITING, State.LINGERING))
    @rule(room=st.integers(0, 80))
    def eof(self, room: int) -> None:
        self.served.receive_eof()
        self.take(room)

    @precondition(lambda self: self.served.state in MOVABLE)
    @rule(room=st.integers(0, 80))
    def move_to_another_process(self, room: int) -> None:
        unread, unsent = self.served.pack()
        before, self.served = self.served, connection(limits=self.served._limits)
        before.move_out()
        assert before.state is State.CLOSED
        assert before._counters.unsent == 0
        self.served.unpack(unread, unsent, 1.0)
        self.take(room)

    @rule()
    def stop(self) -> None:
        self.served.stop(1.0)

    @precondition(lambda self: self.served.state is not State.CLOSED)
    @rule()
    def lose(self) -> None:
        self.taken = self.handed = b"".join(self.asked)  # nothing is owed any more
        self.served.lose("reset")

    @invariant()
    def no_reply_is_lost_or_out_of_order(self) -> None:
        owed = b"".join(self.asked)
        assert owed.startswith(self.handed)
        assert self.taken + self.served.unsent == self.handed
        if not self.served.waiting:
            assert self.handed == owed

    @invariant()
    def states_say_what_waits(self) -> None:
        state, unsent, waiting = self.served.state, self.served.unsent, self.served.waiting
        assert self.served._counters.unsent == len(unsent)
        if state in (State.READING, State.BUSY, State.LINGERING, State.CLOSED):
            assert not unsent
        if state in (State.READING, State.WRITING, State.FLUSHING, State.LINGERING, State.CLOSED):
            assert not waiting
        if state is State.BUSY:
            assert waiting
        if state is State.WRITING:
            assert 0 < len(unsent) <= 60
        if state is State.PAUSED:
            assert waiting or len(unsent) >= 20
            assert unsent
        assert state in {State.READING, *TRANSITIONS.values()}

    @invariant()
    def a_deadline_is_set_unless_it_is_the_servers_turn(self) -> None:
        when, kind = self.served.deadline()
        if self.served.state is not State.CLOSED:
            assert (when == math.inf) == (self.served.state is State.BUSY), kind


@lives
def test_whatever_a_peer_does(count: int) -> None:
    live(Peer, count)


def test_a_header_that_the_next_process_does_not_take_ends_it_there() -> None:
    """Its limits are stricter, and the header alone had come."""
    old, new = connection(), connection(limits=Limits(max_frame=3))
    assert old.receive(b"00009abc", 1.0) == b""
    new.unpack(*old.pack(), 1.0)
    assert new.state is not State.READING
    assert new._counters.protocol_errors == 1

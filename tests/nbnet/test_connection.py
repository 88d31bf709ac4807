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
from nbnet.framing import MAX_PAYLOAD, TABLE_SIZE, encode_frame
from nbnet.handlers import Bound, reverse
from nbnet.limits import Limits
from nbnet.proxy import Header
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


# When it has to end ------------------------------------------------------------------

TIMES = Limits(
    handshake_timeout=1.0,
    first_byte_timeout=2.0,
    frame_timeout=3.0,
    idle_timeout=4.0,
    write_timeout=5.0,
    linger=6.0,
    frames_per_turn=1,
)
UNLIMITED = Limits(
    handshake_timeout=0, first_byte_timeout=0, frame_timeout=0, idle_timeout=0, write_timeout=0
)
AT = 10.0
"""When it came."""


def timed(*, proxied: bool = False, secure: bool = False) -> Connection:
    return Connection(reverse, TIMES, Counters(), "peer", AT, proxied=proxied, secure=secure)


def state_of(served: Connection) -> State:
    """As a call: a call changes it, which type checkers do not see."""
    return served.state


def test_a_newcomer_has_to_say_something_soon() -> None:
    assert timed().deadline() == (AT + 2.0, "first_byte")
    assert timed(proxied=True).deadline() == (AT + 3.0, "proxy")
    assert timed(secure=True).deadline() == (AT + 1.0, "handshake")


def test_each_step_of_coming_in_has_its_time() -> None:
    served = timed(proxied=True, secure=True)
    served.introduced(20.0, secure=True)
    assert served.deadline() == (21.0, "handshake")
    served.agree(30.0)
    assert served.deadline() == (32.0, "first_byte")
    plain = timed(proxied=True)
    plain.introduced(20.0, secure=False)
    assert plain.deadline() == (22.0, "first_byte")


def test_silence_counts_from_the_last_whole_request() -> None:
    served = timed()
    served.receive(b"\r\n", 20.0)  # something was said, but no request
    assert served.deadline() == (AT + 4.0, "idle")
    served.receive(b"00001a", 20.0)
    assert served.deadline() == (24.0, "idle")
    served.receive(b"\r\n00001b", 30.0)
    assert served.deadline() == (34.0, "idle")


def test_a_request_has_its_time_from_its_first_byte() -> None:
    served = timed()
    for data, now, deadline in (
        (b"000", 20.0, (23.0, "frame")),
        (b"01", 21.0, (23.0, "frame")),
        (b"a0", 22.0, (25.0, "frame")),  # the next one has begun
        (b"0001b", 23.0, (27.0, "idle")),
        (b"\r", 24.0, (27.0, "frame")),
    ):
        served.receive(data, now)
        assert served.deadline() == deadline


def test_replies_have_to_make_progress() -> None:
    served = timed()
    served.block(served.receive(b"00003abc", 20.0), 21.0)
    assert served.deadline() == (26.0, "write")
    served.take(0, 22.0)
    assert served.deadline() == (26.0, "write")
    served.take(3, 23.0)
    assert served.deadline() == (28.0, "write")
    served.block(b"more", 24.0)
    assert served.deadline() == (28.0, "write"), "what waits has not moved"
    served.take(len(served.unsent), 25.0)
    assert served.deadline() == (24.0, "idle")


def test_a_peer_is_not_blamed_for_the_time_that_the_server_takes() -> None:
    served = timed()
    served.receive(b"00001a00001b000", 20.0)
    assert state_of(served) is State.BUSY
    assert served.deadline() == (math.inf, "turn")
    served.resume(29.0)
    assert state_of(served) is State.READING
    assert served.deadline() == (32.0, "frame")


def test_what_was_begun_has_its_time_again_when_reading_goes_on() -> None:
    limits = Limits(high_water=10, low_water=8, frame_timeout=3.0, idle_timeout=4.0)
    for rest, kind, after in ((b"000", "frame", 3.0), (b"", "idle", 4.0)):
        for left in (8, 0):  # at the low-water mark, and when all is sent
            served = connection(limits=limits)
            served.block(served.receive(b"00010" + b"x" * 10 + rest, 20.0), 20.0)
            assert state_of(served) is State.PAUSED
            served.take(15 - left, 30.0)
            assert state_of(served) is (State.WRITING if left else State.READING)
            served.take(left, 30.0)
            assert served.deadline() == (30.0 + after, kind)


def test_lingering_cannot_be_switched_off_and_is_short_when_the_server_stops() -> None:
    for stops, linger, seconds in ((False, 6.0, 6.0), (True, 6.0, 1.0), (True, 0.5, 0.5)):
        served = connection(limits=Limits(linger=linger))
        served.receive(b"X", 20.0)
        served.take(0, 20.0)
        assert state_of(served) is State.LINGERING
        served.linger(30.0)
        if stops:
            served.stop(30.0)
        assert state_of(served) is State.LINGERING
        assert served.deadline() == (30.0 + seconds, "linger")


def test_a_time_of_nought_is_no_limit() -> None:
    for secure in (False, True):
        served = Connection(reverse, UNLIMITED, Counters(), "peer", AT, secure=secure)
        assert served.deadline()[0] == math.inf
    served = connection(limits=UNLIMITED)
    for data in (b"000", b"01a"):
        served.receive(data, 1.0)
        assert served.deadline()[0] == math.inf
    served.block(b"00001a", 1.0)
    assert served.deadline() == (math.inf, "write")


# The server stops ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "after", "state"),
    [
        (b"", 0.0, State.CLOSED),
        (b"00001a", 0.99, State.FLUSHING),
        (b"00001a", 1.0, State.CLOSED),
        (b"\r\n", 0.99, State.FLUSHING),
        (b"000", 0.99, State.READING),
        (b"000", 9.0, State.READING),
        (b"00001a0", 0.99, State.READING),
        (b"00001a00001b", 0.0, State.BUSY),
        (b"X", 0.0, State.FLUSHING),
    ],
)
def test_a_stop_ends_at_once_what_is_idle_and_waits_for_what_was_begun(
    said: bytes, after: float, state: State, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="nbnet")
    served = timed()
    if said:
        served.receive(said, AT)
    caplog.clear()
    served.stop(AT + after)
    assert state_of(served) is state
    assert caplog.messages == ["peer: the server stops"] * (state is State.CLOSED)


@pytest.mark.parametrize("how", ["proxied", "secure"])
def test_a_stop_ends_those_who_are_not_in_yet(how: str, caplog: pytest.LogCaptureFixture) -> None:
    served = timed(**{how: True})
    with caplog.at_level(logging.DEBUG, logger="nbnet"):
        served.stop(AT)
    assert state_of(served) is State.CLOSED
    assert caplog.messages == ["peer: the server stops"]


def test_what_was_begun_is_answered_then_it_ends() -> None:
    served = timed()
    served.receive(b"000", AT)
    served.stop(AT)
    assert served.receive(b"01a", AT) == b"00001a"
    assert state_of(served) is State.FLUSHING
    busy = timed()
    busy.receive(b"00001a00001b", AT)
    busy.stop(AT)
    assert busy.resume(AT) == b"00001b"
    assert state_of(busy) is State.FLUSHING


def test_a_stop_sends_what_waits_first() -> None:
    served = timed()
    served.block(served.receive(b"00001a", AT), AT)
    served.stop(AT + 100.0)
    assert state_of(served) is State.FLUSHING
    served.take(6, AT)
    assert state_of(served) is State.LINGERING


# Coming in, and being let go of ------------------------------------------------------


def introduced(served: Connection, header: bytes) -> Header:
    """What a header says that is read as a connection wants it, to its end and not a byte more."""
    said = None
    while said is None:
        size = served.introduction_needs
        said = served.introduce(header[:size])
        header = header[size:]
    assert not header
    return said


def test_a_proxy_says_who_it_is_and_requests_follow() -> None:
    served = timed(proxied=True)
    assert served.introduction_needs > 0
    header = b"PROXY TCP4 192.0.2.1 192.0.2.2 4000 6789\r\n"
    assert introduced(served, header).peer == ("192.0.2.1", 4000)
    assert state_of(served) is State.INTRODUCING
    served.introduced(20.0, secure=False)
    assert state_of(served) is State.READING
    assert served.receive(b"00003abc", 20.0) == b"00003cba"
    assert served.pack() == (b"", b"")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"00001a", "PROXY protocol: no PROXY header where one is required"),
        (b"PROXY ", "PROXY protocol: the connection ended within the PROXY header"),
    ],
)
def test_what_is_no_header_of_a_proxy_is_counted_told_and_ended(
    said: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    served = timed(proxied=True)
    served._counters.proxy_errors = 4  # those of others
    assert served.introduce(said) is None
    if state_of(served) is State.INTRODUCING:
        served.receive_eof()
    assert state_of(served) is State.CLOSED
    assert served._counters.proxy_errors == 5
    [record] = caplog.records
    assert record.getMessage() == f"peer: closing, {why}"
    assert record.levelno == logging.WARNING


def test_who_only_looked_whether_the_server_is_there_is_no_error() -> None:
    served = timed(proxied=True)
    served.receive_eof()
    assert (state_of(served), served._counters.proxy_errors) == (State.CLOSED, 0)


def test_part_of_a_proxys_header_moves_along() -> None:
    old, new = timed(proxied=True), timed(proxied=True)
    assert old.introduce(b"PROXY TCP4") is None
    assert old.pack() == (b"PROXY TCP4", b"")
    new.unpack(*old.pack(), AT)
    assert state_of(new) is State.INTRODUCING
    header = introduced(new, b" 192.0.2.1 192.0.2.2 4000 6789\r\n")
    assert header.peer == ("192.0.2.1", 4000)


def test_without_tls_agreed_on_it_is_told_why_and_lingers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    served = timed(secure=True)
    with caplog.at_level(logging.DEBUG, logger="nbnet"):
        served.disagree("no shared cipher")
    assert state_of(served) is State.LINGERING
    assert caplog.messages == ["peer: closing, TLS: no shared cipher"]


def test_what_is_lost_owes_nothing_more(caplog: pytest.LogCaptureFixture) -> None:
    served = timed()
    served.block(served.receive(b"00001a00001b", AT), AT)
    assert served._counters.unsent == 6
    with caplog.at_level(logging.DEBUG, logger="nbnet"):
        served.lose("reset by the peer")
    assert caplog.messages == ["peer: reset by the peer"]
    assert state_of(served) is State.CLOSED
    assert (bytes(served.unsent), list(served.waiting), served._counters.unsent) == (b"", [], 0)


def test_what_waits_and_what_was_not_sent_moves_along() -> None:
    old, new = timed(), timed()
    old.block(old.receive(b"00001a00001b00001c000", AT), AT)
    assert old.pack() == (b"00001b00001c000", b"00001a")
    new.unpack(*old.pack(), 20.0)
    old.move_out()
    assert (state_of(old), old._counters.unsent) == (State.CLOSED, 0)
    assert (state_of(new), bytes(new.unsent), new._counters.unsent) == (State.BUSY, b"00001a", 6)
    assert list(new.waiting) == [b"b", b"c"]
    assert new.deadline() == (25.0, "write")
    new.take(6, 21.0)
    assert new.resume(21.0) + new.resume(21.0) == b"00001b00001c"
    assert new.receive(b"01d", 21.0) == b"00001d"


# Replies that wait, and requests that do ------------------------------------------------


def test_above_the_high_water_mark_it_pauses_and_at_the_low_one_it_goes_on() -> None:
    served = connection(limits=Limits(high_water=12, low_water=6))
    served._counters.paused = served._counters.paused_now = 4  # those of others
    served.block(b"00001a00001b", 1.0)
    assert state_of(served) is State.WRITING, "at the mark is not above it"
    served.block(b"c", 1.0)
    assert state_of(served) is State.PAUSED
    counters = served._counters
    assert (counters.paused, counters.paused_now, counters.unsent) == (5, 5, 13)
    served.take(6, 1.0)
    assert state_of(served) is State.PAUSED
    served.take(1, 1.0)
    assert state_of(served) is State.WRITING
    assert (counters.paused, counters.paused_now, counters.unsent) == (5, 4, 6)
    served.take(6, 1.0)
    assert (state_of(served), counters.unsent) == (State.READING, 0)


def test_what_is_flushed_before_a_peer_has_ended_is_not_lingered_for() -> None:
    for ended, state in ((True, State.CLOSED), (False, State.LINGERING)):
        served = connection()
        served.block(served.receive(b"00001a" if ended else b"00001aX", 1.0), 1.0)
        if ended:
            served.receive_eof()
        assert state_of(served) is State.FLUSHING
        served.take(6, 1.0)
        assert state_of(served) is state
    served.receive_eof()
    assert state_of(served) is State.CLOSED


@pytest.mark.parametrize("count", [127, 128, 129, 1023, 1024, 1025])
def test_as_many_are_answered_at_once_as_a_turn_allows(count: int) -> None:
    served = connection()
    served.receive(b"00001x", 1.0)
    replies = served.receive(b"00001a" * (count - 1) + b"00002bc", 1.0)
    turn = min(count, 1024)
    assert replies == (b"00001a" * (count - 1) + b"00002cb")[: 6 * turn + (turn == count)]
    assert served.requests == 1 + turn
    assert len(served.waiting) == count - turn
    assert state_of(served) is (State.BUSY if count > turn else State.READING)
    if served.waiting:
        assert served.resume(1.0) == b"00002cb"
    assert (served.requests, state_of(served)) == (1 + count, State.READING)


def test_much_output_ends_a_turn() -> None:
    served = connection(lambda _: b"x" * 95, Limits(high_water=12_800, low_water=0))
    replies = served.receive(b"00001a00001b" * 200, 1.0)
    assert len(replies) == 2 * 12_800, "at the mark is not above it"
    assert len(served.waiting) == 400 - 256
    assert state_of(served) is State.BUSY


def test_of_many_requests_those_before_a_failure_are_answered_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    served = connection(fail_on_bad)
    served.receive(b"00001x", 1.0)
    before = b"00001a00001b" * 100
    assert served.receive(before + b"00003bad" + before, 1.0) == before
    assert (served.requests, served._counters.handler_errors) == (201, 1)
    assert caplog.messages == ["peer: closing, the handler failed: handler"]
    assert state_of(served) is State.FLUSHING
    assert served.waiting == ()


def test_a_failure_is_told_in_a_line_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    served = connection(fail_on_bad)
    served._counters.handler_errors = 4  # those of others
    served.receive(b"00001a00003bad", 1.0)
    [record] = caplog.records
    assert record.getMessage() == "peer: closing, the handler failed: handler"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], RuntimeError)
    assert served._counters.handler_errors == 5


def test_a_fault_is_counted_once_and_told_with_what_was_answered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    served = connection()
    served._counters.protocol_errors = 4  # those of others
    assert served.receive(b"00001a00001b+", 1.0) == b"00001a00001b"
    assert caplog.messages == [
        "peer: closing after 2 requests, protocol error: expected a digit of a length, got b'+'"
    ]
    assert served._counters.protocol_errors == 5


def test_many_requests_that_waited_give_the_next_one_its_time() -> None:
    served = connection(limits=Limits(frames_per_turn=200, frame_timeout=3.0))
    served.receive(b"00001a00001b" * 200 + b"000", 20.0)
    assert state_of(served) is State.BUSY
    served.resume(29.0)
    assert state_of(served) is State.READING
    assert served.deadline() == (32.0, "frame")


def test_a_request_begun_elsewhere_has_its_time_here() -> None:
    served = timed()
    served.unpack(b"000", b"", 20.0)
    assert served.deadline() == (23.0, "frame")
    whole = timed()
    whole.unpack(b"00001a", b"", 20.0)
    assert whole.resume(21.0) == b"00001a"
    assert whole.deadline() == (25.0, "idle")


@pytest.mark.parametrize("size", [TABLE_SIZE - 1, TABLE_SIZE, TABLE_SIZE + 1])
def test_a_reply_may_be_longer_than_any_whose_header_is_at_hand(size: int) -> None:
    served = connection(lambda _: b"x" * size)
    assert served.receive(b"00001a", 1.0) == encode_frame(b"x" * size)


def test_the_end_of_input_ends_it_once_all_is_sent() -> None:
    served = connection()
    served.receive(b"00001a", 1.0)
    served.receive_eof()
    assert state_of(served) is State.FLUSHING
    served.take(0, 1.0)
    assert state_of(served) is State.CLOSED


def test_a_fault_while_replies_wait_ends_it_once_they_are_sent() -> None:
    served = connection()
    served.block(b"00001a", 1.0)
    assert served.receive(b"00001bX", 1.0) == b"00001b"
    assert state_of(served) is State.FLUSHING
    served.block(b"00001b", 1.0)
    served.take(12, 1.0)
    assert state_of(served) is State.LINGERING


def test_a_stop_while_too_many_replies_wait_ends_it_once_they_are_sent() -> None:
    served = connection(limits=Limits(high_water=4, low_water=0))
    served.block(b"00001a", 1.0)
    assert state_of(served) is State.PAUSED
    served.stop(1.0)
    assert state_of(served) is State.FLUSHING
    assert served._counters.paused_now == 0
    served.take(6, 1.0)
    assert state_of(served) is State.LINGERING


def test_whoever_moves_out_is_closed_here() -> None:
    introducing, busy = timed(proxied=True), timed()
    busy.receive(b"00001a00001b", AT)
    writing, paused = connection(), connection(limits=Limits(high_water=4, low_water=0))
    for served in (writing, paused):
        served.block(b"00001a", 1.0)
    moving = (introducing, timed(), busy, writing, paused)
    assert {state_of(served) for served in moving} == MOVABLE
    for served in moving:
        served.move_out()
        assert state_of(served) is State.CLOSED
        assert (served._counters.unsent, served._counters.paused_now) == (0, 0)

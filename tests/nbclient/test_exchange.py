"""The rules of the exchange, one by one, then against whatever order of events.

Here a server echoes, so that a request and the reply to it are told by the same number.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.lives import live, lives

from nbclient.errors import (
    ClosedError,
    ConnectionLost,
    LocalProtocolError,
    NbclientError,
    ProtocolError,
    RemoteProtocolError,
)
from nbclient.exchange import (
    Exchange,
    Ledger,
    Request,
    encode_request,
    encode_requests,
    sole_reply,
)
from nbnet.framing import HEADER_SIZE, TABLE_SIZE, encode_frame

PEER = "127.0.0.1:6789"
LARGEST = b"x" * 99_999


def waiting_for(count: int) -> Ledger:
    """A ledger with so many requests of one byte outstanding, sent one by one."""
    ledger = Ledger(PEER)
    for _ in range(count):
        ledger.sent(1, 6)
    return ledger


def request(payload: bytes, deadline: float = math.inf) -> Request:
    return Request(encode_request(payload), deadline)


def shared(*payloads: bytes) -> tuple[Exchange, list[Request]]:
    """An exchange whose requests were sent, and these."""
    exchange = Exchange(PEER)
    requests = [request(payload) for payload in payloads]
    for each in requests:
        exchange.add(each)
    exchange.take()
    assert exchange.outstanding == len(payloads)
    return exchange, requests


# Frames ------------------------------------------------------------------------


class Text(bytes):
    """Bytes of a class of their own."""


@pytest.mark.parametrize("payload", [b"a", b"x" * (TABLE_SIZE - 1), b"x" * TABLE_SIZE, LARGEST])
def test_a_payload_becomes_a_frame(payload: bytes) -> None:
    frame = b"%05d" % len(payload) + payload
    assert encode_request(payload) == encode_requests([payload]) == frame
    assert encode_request(Text(payload)) == encode_requests([Text(payload)]) == frame


def test_payloads_become_frames_in_their_order() -> None:
    assert encode_requests([b"abc", b"d", LARGEST]) == b"00003abc00001d99999" + LARGEST


ENCODERS: list[Callable[[Any], bytes]] = [
    encode_request,
    lambda payload: encode_requests([payload]),
    lambda payload: encode_requests([b"a", payload, b"b"]),
]


@pytest.mark.parametrize("encode", ENCODERS)
@pytest.mark.parametrize(
    ("payload", "message"),
    [(b"", "is empty: it may have 1 to 99999"), (LARGEST + b"x", "has 100000 bytes: it may have")],
)
def test_an_unfit_payload_is_refused(
    encode: Callable[[Any], bytes], payload: bytes, message: str
) -> None:
    with pytest.raises(LocalProtocolError, match=message) as caught:
        encode(payload)
    assert not caught.value.maybe_executed


@pytest.mark.parametrize("encode", ENCODERS)
@pytest.mark.parametrize("payload", ["abc", "", bytearray(b"abc"), memoryview(b"abc"), 3, 0, None])
def test_a_payload_that_is_no_bytes_is_a_mistake(
    encode: Callable[[Any], bytes], payload: object
) -> None:
    with pytest.raises(TypeError, match=f"^a payload is bytes, not {type(payload).__name__}$"):
        encode(payload)


# The ledger --------------------------------------------------------------------


def test_a_request_and_its_reply() -> None:
    ledger = Ledger(PEER)
    assert ledger.idle
    ledger.sent(1, 8)
    assert (ledger.outstanding, ledger.in_flight, ledger.idle) == (1, 8, False)
    assert ledger.receive(b"00003cb") == []
    assert ledger.receive(b"a") == [b"cba"]
    assert (ledger.outstanding, ledger.in_flight, ledger.idle) == (0, 0, True)


def test_replies_may_be_empty_and_largest() -> None:
    assert waiting_for(2).receive(b"00000" + encode_frame(LARGEST)) == [b"", LARGEST]


def test_the_bytes_of_a_batch_count_until_all_of_it_is_answered() -> None:
    ledger = Ledger(PEER)
    ledger.sent(2, 12)
    ledger.sent(3, 30)
    in_flight = []
    for _ in range(5):
        ledger.receive(b"00000")
        in_flight.append(ledger.in_flight)
    assert in_flight == [42, 30, 30, 30, 0]


def test_replies_may_end_several_batches_at_once() -> None:
    ledger = Ledger(PEER)
    for count in (2, 1, 3):
        ledger.sent(count, 10 * count)
    ledger.receive(b"00000" * 4)
    assert (ledger.outstanding, ledger.in_flight) == (2, 30)
    ledger.receive(b"00000" * 2)
    assert ledger.idle


@pytest.mark.parametrize("rest", [b"\r\n", b"\r\n\r\n", b"\r"])
@pytest.mark.parametrize("cut", [False, True], ids=["with the reply", "later"])
def test_line_ends_behind_a_reply_are_skipped(rest: bytes, *, cut: bool) -> None:
    ledger = waiting_for(1)
    replies = ledger.receive(b"00001a") + ledger.receive(rest) if cut else None
    assert (replies or ledger.receive(b"00001a" + rest)) == [b"a"]
    assert ledger.fault is None
    # With half a line end there, the other half is due.
    assert ledger.idle == rest.endswith(b"\n")
    ledger.sent(1, 6)
    assert ledger.receive(b"\n00001b" if rest == b"\r" else b"00001b") == [b"b"]
    assert ledger.idle


FAULTS = [
    pytest.param([b"00001a00001b00001c"], "nobody asked for$", True, id="a reply too many"),
    pytest.param([b"00001a00001b", b"0"], "nobody asked for$", True, id="a byte too many"),
    pytest.param([b"00001a00001b00001"], "nobody asked for$", True, id="a header too many"),
    pytest.param([b"00001a00001bx"], "nobody asked for$", True, id="junk behind"),
    pytest.param([b"00001a00001b\rx"], "nobody asked for$", True, id="CR and junk behind"),
    pytest.param([b"00001a00001b\r\n", b"\r", b"x"], "nobody asked for$", True, id="CR LF and x"),
    pytest.param([b"00001a00001b", b""], "6789 closed the connection$", False, id="the end"),
    pytest.param([b"00001a00001b\r", b""], "closed the connection$", False, id="CR, the end"),
    pytest.param(
        [b"00001a0001x"],
        "broke the protocol: expected a digit of a length, got b'x' at byte 10$",
        False,
        id="a bad header",
    ),
    pytest.param(
        [b"00001a", b""], "with a reply outstanding$", False, id="the end with one outstanding"
    ),
    pytest.param([b""], "with 2 replies outstanding$", False, id="the end with two outstanding"),
    pytest.param(
        [b"00001a00003xy", b""],
        "with a reply outstanding, 7 bytes into the next$",
        False,
        id="the end in a reply",
    ),
]


@pytest.mark.parametrize(("reads", "message", "out_of_step"), FAULTS)
@pytest.mark.parametrize("cut", [False, True], ids=["as it is", "byte by byte"])
def test_a_fault_follows_the_replies_and_stays(
    reads: list[bytes], message: str, *, out_of_step: bool, cut: bool
) -> None:
    ledger = waiting_for(2)
    stream = b"".join(reads)
    if cut:
        reads = [stream[i : i + 1] for i in range(len(stream))] + [b""] * (b"" in reads)
    replies = list(itertools.chain.from_iterable(map(ledger.receive, reads)))
    assert replies == [b"a", b"b"][: stream.count(b"00001", 0, 12)]
    fault = ledger.fault
    assert isinstance(fault, ConnectionLost if b"" in reads else RemoteProtocolError)
    assert fault.peer == PEER
    assert ledger.out_of_step == out_of_step
    assert not ledger.idle
    for data in (b"00001c", b"x", b""):
        assert ledger.receive(data) == []
    assert ledger.fault is fault
    with pytest.raises(type(fault), match=message):
        raise ledger.failure(maybe_executed=False)


def test_a_reply_before_any_request_was_sent_is_a_fault() -> None:
    ledger = Ledger(PEER)
    assert ledger.receive(b"00003cba") == []
    assert ledger.out_of_step


def test_poison_keeps_the_first_fault_and_lets_nothing_through() -> None:
    ledger = waiting_for(2)
    first = ClosedError("first")
    ledger.receive(b"00001a")
    ledger.poison(first)
    ledger.poison(ClosedError("second"))
    assert ledger.receive(b"00001b") == []
    assert ledger.fault is first


def test_a_failure_is_an_error_of_ones_own() -> None:
    ledger = waiting_for(1)
    ledger.receive(b"x")
    sure, unsure = ledger.failure(maybe_executed=False), ledger.failure(maybe_executed=True)
    for error, maybe_executed, stage in ((sure, False, "sending"), (unsure, True, "receiving")):
        assert isinstance(error, ProtocolError)
        assert error.maybe_executed == maybe_executed
        assert error.stage == stage
        assert error.peer == PEER
        assert isinstance(error.__cause__, ValueError)  # what the decoder said
    assert sure is not unsure
    assert ledger.fault is not sure
    assert ledger.fault is not None
    assert not ledger.fault.maybe_executed


def test_a_failure_keeps_what_the_fault_says_of_itself() -> None:
    ledger = waiting_for(1)
    fault = ConnectionLost("gone", stage="sending")
    fault.__cause__ = OSError("broken pipe")
    ledger.poison(fault)
    error = ledger.failure(maybe_executed=True)
    assert (error.stage, error.peer, error.maybe_executed) == ("sending", PEER, True)
    assert error.__cause__ is fault.__cause__


# One short reply ---------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"", b"a", b"x" * (TABLE_SIZE - 1)])
def test_one_short_reply_is_taken_without_decoding(payload: bytes) -> None:
    assert sole_reply(encode_frame(payload)) == payload


@pytest.mark.parametrize("size", range(5))
def test_less_than_a_header_is_no_reply(size: int) -> None:
    for data in (b"00000"[:size], b"04095"[:size]):  # the last are those of the table's end
        assert sole_reply(data) is None


@given(
    st.sampled_from([b"00000", b"00001a", b"00001ab", b"00002a", b"00001a00001b", b"+0001a", b"1"])
    | st.binary(max_size=8)
    | st.just(encode_frame(b"x" * TABLE_SIZE))
)
def test_a_sole_reply_is_what_decoding_gives(data: bytes) -> None:
    reply = sole_reply(data)
    ledger = waiting_for(1)
    replies = ledger.receive(data)
    whole_and_alone = ledger.fault is None and ledger.idle and len(data) < HEADER_SIZE + TABLE_SIZE
    assert reply == (replies[0] if whole_and_alone else None)


# Requests of many callers ------------------------------------------------------


def test_requests_go_out_together_and_replies_find_them() -> None:
    exchange = Exchange(PEER)
    first, second = request(b"a"), request(b"bc")
    exchange.add(first)
    exchange.add(second)
    assert exchange.sendable
    assert not exchange.idle
    assert (exchange.load, exchange.wanted, exchange.outstanding) == (2, 2, 0)
    assert exchange.take() == b"00001a00002bc"
    assert exchange.take() == b""
    assert not exchange.sendable
    assert exchange.outstanding == 2
    assert exchange.complete(b"00001A0") == [first]
    assert (exchange.load, exchange.wanted) == (1, 1)
    assert exchange.complete(b"0002BC") == [second]
    assert (first.reply, second.reply) == (b"A", b"BC")
    assert exchange.idle


def test_an_abandoned_request_that_was_not_sent_leaves_no_trace() -> None:
    exchange = Exchange(PEER)
    first, second = request(b"a"), request(b"b")
    exchange.add(first)
    exchange.add(second)
    exchange.abandon(first)
    assert (exchange.load, exchange.wanted) == (1, 1)
    assert exchange.take() == b"00001b"
    exchange.complete(b"00001B")
    assert (first.reply, second.reply) == (None, b"B")
    assert exchange.idle


def test_the_reply_to_an_abandoned_request_is_dropped() -> None:
    exchange, (first, second, third) = shared(b"a", b"b", b"c")
    exchange.abandon(second)
    assert (exchange.load, exchange.wanted, exchange.outstanding) == (3, 2, 3)
    assert exchange.complete(b"00001A00001B00001C") == [first, third]
    assert (first.reply, second.reply, third.reply) == (b"A", None, b"C")
    assert (exchange.load, exchange.wanted) == (0, 0)
    assert exchange.idle


def test_with_all_abandoned_their_replies_are_still_due() -> None:
    exchange, requests = shared(b"a", b"b")
    for each in requests:
        exchange.abandon(each)
    assert exchange.wanted == 0
    assert not exchange.idle
    assert exchange.complete(b"00001A") == []
    assert not exchange.idle
    assert exchange.complete(b"00001B") == []
    assert exchange.idle


def test_to_abandon_what_has_ended_does_nothing() -> None:
    exchange, (answered, given_up, failed) = shared(b"a", b"b", b"c")
    exchange.complete(b"00001A")
    for _ in range(2):
        exchange.abandon(answered)
        exchange.abandon(given_up)
    assert (exchange.load, exchange.wanted) == (2, 1)
    exchange.poison(ClosedError("closed"))
    assert exchange.fail() == [failed]
    for each in (answered, given_up, failed):
        exchange.abandon(each)
    assert (exchange.load, exchange.wanted) == (0, 0)
    assert not answered.abandoned
    assert not failed.abandoned


def test_the_window_holds_back_what_is_too_much() -> None:
    exchange = Exchange(PEER, window=20)
    for number in range(6):  # 6 bytes a frame
        exchange.add(request(b"%d" % number))
    assert exchange.take() == b"000010000011000012"
    assert not exchange.sendable
    assert exchange.take() == b""
    exchange.complete(b"0000100000110")
    # What went together counts together.
    assert not exchange.sendable
    exchange.complete(b"00012")
    assert exchange.sendable
    assert exchange.take() == b"000013000014000015"


def test_what_was_abandoned_before_it_was_sent_makes_room_in_the_window() -> None:
    exchange = Exchange(PEER, window=12)
    requests = [request(b"%d" % number) for number in range(3)]
    for each in requests:
        exchange.add(each)
    exchange.abandon(requests[0])
    assert exchange.take() == b"000011000012"


def test_a_frame_over_the_window_goes_alone() -> None:
    exchange = Exchange(PEER)
    for payload in (b"a", LARGEST, b"b"):
        exchange.add(request(payload))
    assert exchange.take() == b"00001a"
    assert not exchange.sendable
    exchange.complete(b"00001A")
    assert exchange.sendable
    assert exchange.take() == encode_frame(LARGEST)
    assert not exchange.sendable
    assert exchange.take() == b""
    exchange.complete(b"00000")
    assert exchange.take() == b"00001b"


def test_a_fault_ends_all_requests_each_with_an_error_of_its_own() -> None:
    exchange, (answered, given_up, sent) = shared(b"a", b"b", b"c")
    unsent, dropped = request(b"d"), request(b"e")
    exchange.add(unsent)
    exchange.add(dropped)
    exchange.abandon(given_up)
    exchange.abandon(dropped)
    assert exchange.complete(b"00001A") == [answered]
    assert exchange.complete(b"") == []
    assert exchange.fail() == [sent, unsent]
    assert sent.error is not unsent.error
    assert isinstance(sent.error, ConnectionLost)
    assert isinstance(unsent.error, ConnectionLost)
    assert (sent.error.maybe_executed, sent.error.stage) == (True, "receiving")
    assert (unsent.error.maybe_executed, unsent.error.stage) == (False, "sending")
    assert (answered.error, given_up.error, dropped.error) == (None, None, None)
    assert (exchange.load, exchange.wanted) == (0, 0)
    assert exchange.take() == b""
    assert exchange.fail() == []
    assert not exchange.idle


def test_replies_before_a_broken_header_count() -> None:
    exchange, (first, second) = shared(b"a", b"b")
    assert exchange.complete(b"00001Ax") == [first]
    assert exchange.fail() == [second]
    assert isinstance(second.error, RemoteProtocolError)


@pytest.mark.parametrize("behind", [b"00001C", b"0", b"x", b"\rx"])
def test_replies_that_come_with_one_too_many_are_not_believed(behind: bytes) -> None:
    exchange, requests = shared(b"a", b"b")
    assert exchange.complete(b"00001A00001B" + behind) == []
    assert exchange.complete(b"00001D") == []
    assert exchange.fail() == requests
    for each in requests:
        assert each.reply is None
        assert isinstance(each.error, RemoteProtocolError)
        assert each.error.maybe_executed


def test_what_has_expired_is_abandoned_and_others_go_on() -> None:
    exchange = Exchange(PEER, window=12)  # two of them
    sent, patient, unsent, later = (request(b"%d" % n, d) for n, d in enumerate([2, 9, 1, 3]))
    for each in (sent, patient, unsent, later):
        exchange.add(each)
    exchange.take()
    assert exchange.expire(0.5) == []
    assert exchange.expire(2.0) == [sent, unsent]  # a deadline is when it has to be there
    assert exchange.expire(2.0) == []
    assert (exchange.load, exchange.wanted) == (3, 2)
    assert exchange.complete(b"00001000001B") == [patient]
    assert exchange.take() == b"000013"
    assert exchange.complete(b"00001C") == [later]


def test_the_next_deadline_is_the_earliest_of_those_waited_for() -> None:
    exchange = Exchange(PEER)
    assert exchange.next_deadline() == math.inf
    requests = [request(b"%d" % deadline, deadline) for deadline in (5, 7, 3, 4)]
    seen = []
    for each in requests:
        exchange.add(each)
        seen.append(exchange.next_deadline())
    assert seen == [5, 5, 3, 3]
    exchange.take()
    exchange.abandon(requests[2])
    assert exchange.next_deadline() == 4
    exchange.complete(b"00000" * 4)
    assert exchange.next_deadline() == math.inf
    for deadline in (6, 8):  # in order again
        exchange.add(request(b"x", deadline))
        assert exchange.next_deadline() == 6


def test_the_first_who_waits_is_found_whether_it_was_sent_or_not() -> None:
    exchange, (first, second) = shared(b"a", b"b")
    third = request(b"c")
    exchange.add(third)
    assert exchange.waiting() is None
    third.waiter = "somebody"
    assert exchange.waiting() is third
    second.waiter = "somebody else"
    assert exchange.waiting() is second
    exchange.complete(b"00001A00001B")
    assert first.reply == b"A"
    assert exchange.waiting() is third


# Properties --------------------------------------------------------------------

payload_lists = st.lists(st.binary(min_size=1, max_size=12), min_size=1, max_size=8)


def cut_up(stream: bytes, data: st.DataObject) -> list[bytes]:
    """The same bytes in pieces of any size."""
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(stream) - 1)), max_size=12)))
    return [piece for a, b in itertools.pairwise([0, *cuts, len(stream)]) if (piece := stream[a:b])]


@given(payload_lists, st.data())
def test_replies_match_requests_however_the_stream_is_cut(
    payloads: list[bytes], data: st.DataObject
) -> None:
    exchange, requests = shared(*payloads)
    done: list[Request] = []
    for piece in cut_up(b"".join(map(encode_frame, payloads)), data):
        done += exchange.complete(piece)
    assert done == requests
    assert [each.reply for each in requests] == payloads
    assert exchange.idle


junk = st.binary(min_size=1, max_size=20) | st.lists(
    st.sampled_from([b"\r", b"\n", b"\r\n", b"00000", b"00001", b"0", b"x"]), min_size=1
).map(b"".join)


@given(payload_lists, junk, st.data())
def test_a_fault_is_the_same_however_the_stream_is_cut(
    payloads: list[bytes], junk: bytes, data: st.DataObject
) -> None:
    def outcome(pieces: list[bytes]) -> tuple[list[bytes], str, bool]:
        ledger = waiting_for(len(payloads))
        got = list(itertools.chain.from_iterable(map(ledger.receive, [*pieces, b""])))
        return got, repr(ledger.fault), ledger.out_of_step

    good = b"".join(map(encode_frame, payloads[: data.draw(st.integers(0, len(payloads)))]))
    stream = good + junk
    assert outcome(cut_up(stream, data)) == outcome([stream])


@given(payload_lists, junk, st.data())
def test_behind_a_fault_each_request_has_its_reply_or_an_error(
    payloads: list[bytes], junk: bytes, data: st.DataObject
) -> None:
    exchange, requests = shared(*payloads)
    good = data.draw(st.integers(0, len(payloads)))
    done: list[Request] = []
    for piece in [*cut_up(b"".join(map(encode_frame, payloads[:good])) + junk, data), b""]:
        done += exchange.complete(piece)
    failed = exchange.fail()
    assert done + failed == requests
    # Junk may look like replies to those behind.
    assert [each.reply for each in done[:good]] == payloads[: len(done[:good])]
    assert all(each.error is not None and each.reply is None for each in failed)


class Life:
    """A request, and what is to come of it."""

    def __init__(self, number: int, padding: int, deadline: float) -> None:
        self.payload = b"%d." % number + bytes(padding)
        self.request = request(self.payload, deadline)
        self.given_up = False
        self.ended = 0  # how many times it was told the end

    @property
    def waited_for(self) -> bool:
        return not self.given_up and not self.ended


class AgainstAServer(RuleBasedStateMachine):
    """Callers that come and give up, replies, reads, faults in any order.

    Each who still waits gets the reply to its own request, or an error, once.
    """

    WINDOW = 40

    def __init__(self) -> None:
        super().__init__()
        self.exchange = Exchange(PEER, window=self.WINDOW)
        self.numbers = itertools.count()
        self.unsent: list[Life] = []
        self.due: list[Life] = []  # sent and not received
        self.all: list[Life] = []
        self.taken = b""  # for the server to read
        self.wire = b""  # answered by the server, not received yet
        self.begun = 0  # bytes received of a reply that is not whole
        self.faulty = False

    @precondition(lambda self: not self.faulty)
    @rule(padding=st.integers(0, 60), deadline=st.integers(0, 9) | st.just(math.inf))
    def add(self, padding: int, deadline: float) -> None:
        life = Life(next(self.numbers), padding, deadline)
        self.exchange.add(life.request)
        self.unsent.append(life)
        self.all.append(life)

    @precondition(lambda self: not self.faulty)
    @rule()
    def send(self) -> None:
        sendable = self.exchange.sendable
        before = self.exchange.outstanding
        data = self.exchange.take()
        assert sendable == bool(data)
        count = self.exchange.outstanding - before
        sent, self.unsent = self.unsent[:count], self.unsent[count:]
        assert data == b"".join(life.request.frame for life in sent)
        self.due += sent
        self.taken += data

    @precondition(lambda self: self.taken)
    @rule(count=st.integers(1, 3))
    def answer(self, count: int) -> None:
        for _ in range(count):
            size = 5 + int(self.taken[:5] or b"0")
            self.wire += self.taken[:size]
            self.taken = self.taken[size:]

    @precondition(lambda self: self.wire)
    @rule(data=st.data())
    def receive(self, data: st.DataObject) -> None:
        size = data.draw(st.integers(1, len(self.wire)))
        done = self.exchange.complete(self.wire[:size])
        self.wire = self.wire[size:]
        if self.faulty:
            assert done == []
            return
        came, self.due = self.due, self.due[len(self.due) - self.exchange.outstanding :]
        came = came[: len(came) - len(self.due)]
        self.begun += size - sum(len(life.request.frame) for life in came)
        assert done == [life.request for life in came if not life.given_up]
        for life in came:
            self.end(life)

    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        if self.all:
            life = data.draw(st.sampled_from(self.all))
            self.exchange.abandon(life.request)
            self.forget(life)

    @rule(now=st.integers(0, 9))
    def expire(self, now: int) -> None:
        late = [r for r in self.due + self.unsent if r.waited_for and r.request.deadline <= now]
        assert self.exchange.expire(now) == [life.request for life in late]
        for life in late:
            self.forget(life)

    @precondition(lambda self: not self.faulty)
    @rule(how=st.sampled_from(["end", "junk", "poison"]))
    def break_off(self, how: str) -> None:
        if how == "junk" and self.begun >= 5 and len(self.due) > 1:
            return  # behind a header it would be a payload, as far as anybody can tell
        if how == "poison":
            self.exchange.poison(ClosedError("closed"))
        else:
            assert self.exchange.complete(b"" if how == "end" else b"x" * 100_000) == []
            if self.exchange.fault is None:  # taken for the payload of a reply
                assert self.exchange.complete(b"") == []
        self.faulty = True
        lives = [life for life in self.due + self.unsent if life.waited_for]
        assert self.exchange.fail() == [life.request for life in lives]
        for life in lives:
            self.end(life)
            error = life.request.error
            assert isinstance(error, NbclientError)
            assert error.maybe_executed == (life in self.due)
        self.due, self.unsent = [], []

    def end(self, life: Life) -> None:
        life.ended += 1

    def forget(self, life: Life) -> None:
        if life.waited_for:
            life.given_up = True
            if life in self.unsent:
                self.unsent.remove(life)

    @invariant()
    def who_still_waited_has_one_end_and_the_reply_is_its_own(self) -> None:
        for life in self.all:
            assert life.ended <= 1
            reply, error = life.request.reply, life.request.error
            if life.given_up:
                assert reply is None
                assert error is None
            elif life.ended:
                assert (reply == life.payload) != (error is not None)
            else:
                assert (reply, error) == (None, None)

    @invariant()
    def what_is_counted_is_true(self) -> None:
        pending = self.due + self.unsent
        assert self.exchange.load == len(pending)
        assert self.exchange._queued == sum(len(life.request.frame) for life in self.unsent)
        assert self.exchange.wanted == sum(life.waited_for for life in pending)
        assert self.exchange.next_deadline() == min(
            (life.request.deadline for life in pending if life.waited_for), default=math.inf
        )

    @invariant()
    def idle_means_that_all_is_done(self) -> None:
        assert self.exchange.idle == (not self.due and not self.unsent and not self.faulty)

    @invariant()
    def the_window_is_kept(self) -> None:
        sizes = [len(life.request.frame) for life in self.due]
        assert sum(sizes) <= self.WINDOW or len(sizes) == 1


@lives
def test_whatever_a_server_does(count: int) -> None:
    live(AgainstAServer, count)


def test_the_most_patient_is_the_one_who_waits_for_longest() -> None:
    exchange = Exchange(PEER, window=12)  # two of them
    requests = [request(b"%d" % number, deadline) for number, deadline in enumerate([3, 5, 9, 4])]
    assert exchange.most_patient() is None
    for each in requests:
        exchange.add(each)
    exchange.take()
    assert exchange.most_patient() is None, "nobody waits"
    requests[3].waiter = "unsent"
    assert exchange.most_patient() is requests[3]
    requests[1].waiter = "sent"
    assert exchange.most_patient() is requests[1]
    requests[0].waiter = "sent and less patient"
    assert exchange.most_patient() is requests[1]
    requests[2].waiter = "unsent and more patient"
    assert exchange.most_patient() is requests[2]


def test_a_reply_is_awaited_as_long_as_somebody_waits_for_one_that_was_sent() -> None:
    exchange, (first, second) = shared(b"a", b"b")
    awaited = []
    for step in (
        lambda: exchange.abandon(first),
        lambda: exchange.abandon(second),
        lambda: exchange.add(request(b"c")),
        exchange.take,
    ):
        step()
        awaited.append(exchange.awaited)
    assert awaited == [True, False, False, True]


def test_the_window_may_be_filled_to_the_last_byte() -> None:
    exchange = Exchange(PEER, window=12)
    exchange.add(request(b"a"))
    exchange.take()
    exchange.add(request(b"b"))
    assert exchange.sendable
    assert exchange.take() == b"00001b"


def test_an_error_names_the_server_and_a_request_has_its_limit() -> None:
    exchange, [only] = shared(b"a")
    exchange.poison(ClosedError("closed"))
    assert exchange.fail() == [only]
    assert only.error is not None
    assert only.error.peer == PEER
    assert Request(b"00001a", 7.0, 2.5).limit == 2.5

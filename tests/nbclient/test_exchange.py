from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nbclient.errors import ClosedError, ConnectionLost, NbclientError, ProtocolError
from nbclient.exchange import WINDOW, Exchange, encode_request
from nbnet.framing import encode_frame


def replies(exchange: Exchange) -> list[bytes]:
    """What can be had now."""
    return list(iter(exchange.next_reply, None))


def asked(*payloads: bytes) -> Exchange:
    """An exchange whose requests were sent."""
    exchange = Exchange()
    exchange.fill(iter(payloads))
    assert exchange.outstanding == len(payloads)
    return exchange


def test_a_request_and_its_reply() -> None:
    exchange = Exchange()
    exchange.add(b"abc")
    assert exchange.take() == b"00003abc"
    assert exchange.outstanding == 1
    assert not exchange.idle
    exchange.receive(b"00003cba")
    assert exchange.outstanding == 0
    assert exchange.next_reply() == b"cba"
    assert exchange.next_reply() is None
    assert exchange.idle


def test_replies_may_be_empty_and_largest() -> None:
    exchange = asked(b"a", b"b")
    exchange.receive(b"00000" + encode_frame(b"x" * 99_999))
    assert replies(exchange) == [b"", b"x" * 99_999]


@pytest.mark.parametrize("payload", [b"", b"x" * 100_000])
def test_an_unfit_payload_is_refused_and_leaves_no_trace(payload: bytes) -> None:
    exchange = Exchange()
    with pytest.raises(ValueError, match="99999"):
        exchange.add(payload)
    assert exchange.idle
    assert exchange.take() == b""


def test_a_payload_that_is_no_bytes_is_refused() -> None:
    with pytest.raises(TypeError, match="a payload is bytes, not str"):
        Exchange().add("abc")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a payload is bytes, not int"):
        Exchange().fill(iter(b"abc"))  # type: ignore[arg-type]


# Faults ------------------------------------------------------------------------

FAULTS = [
    pytest.param([b"00001a00001b00001c"], ProtocolError, "nobody asked for", id="a reply too many"),
    pytest.param([b"00001a00001b", b"0"], ProtocolError, "nobody asked for", id="a byte too many"),
    pytest.param([b"00001a00001bx"], ProtocolError, "nobody asked for", id="junk behind"),
    pytest.param([b"00001a00001b\rx"], ProtocolError, "nobody asked for", id="CR and junk behind"),
    pytest.param(
        [b"00001a00001b\r\n", b"\r", b"x"], ProtocolError, "nobody asked for", id="CR LF and junk"
    ),
    pytest.param(
        [b"00001a00001b", b""], ConnectionLost, "closed the connection$", id="the end, in step"
    ),
    pytest.param(
        [b"00001a0001x"],
        ProtocolError,
        "a digit of a length, got b'x' at byte 10",
        id="a bad header",
    ),
    pytest.param([b"00001a", b""], ConnectionLost, "with a reply outstanding$", id="the end"),
    pytest.param(
        [b"00001a00003xy", b""],
        ConnectionLost,
        "with a reply outstanding, 7 bytes into the next$",
        id="the end in a reply",
    ),
]


@pytest.mark.parametrize(("reads", "kind", "message"), FAULTS)
@pytest.mark.parametrize("cut", [False, True], ids=["as it is", "byte by byte"])
def test_a_fault_follows_the_replies_and_stays(
    reads: list[bytes], kind: type[NbclientError], message: str, *, cut: bool
) -> None:
    exchange = asked(b"a", b"b")
    stream = b"".join(reads)
    if cut:
        reads = [stream[i : i + 1] for i in range(len(stream))] + [b""] * (b"" in reads)
    with contextlib.suppress(kind):  # cut up, the fault may come before the last byte
        for data in reads:
            exchange.receive(data)
    whole = [b"a", b"b"] if stream.startswith(b"00001a00001b") else [b"a"]
    assert [exchange.next_reply() for _ in whole] == whole
    assert not exchange.idle
    for use in (
        exchange.next_reply,
        exchange.check,
        exchange.take,
        lambda: exchange.add(b"c"),
        lambda: exchange.fill(iter([b"c"])),
        lambda: exchange.receive(b"00001c"),
        lambda: exchange.receive(b""),
    ):
        with pytest.raises(kind, match=message):
            use()


def test_the_end_with_several_outstanding_counts_them() -> None:
    exchange = asked(b"a", b"b", b"c")
    exchange.receive(b"")
    with pytest.raises(ConnectionLost, match="with 3 replies outstanding"):
        exchange.check()


def test_a_broken_header_is_the_cause() -> None:
    exchange = asked(b"a")
    exchange.receive(b"x")
    with pytest.raises(ProtocolError) as caught:
        exchange.check()
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_reply_before_any_request_was_sent_is_a_fault() -> None:
    exchange = Exchange()
    exchange.add(b"abc")
    exchange.receive(b"00003cba")
    with pytest.raises(ProtocolError):
        exchange.next_reply()


@pytest.mark.parametrize("rest", [b"\r\n", b"\r", b"\r\n\r\n"])
def test_line_ends_behind_a_reply_are_skipped(rest: bytes) -> None:
    exchange = asked(b"a")
    exchange.receive(b"00001a" + rest)
    assert exchange.next_reply() == b"a"
    assert exchange.idle


def test_poison_keeps_the_first_fault_and_gives_nothing_more() -> None:
    exchange = asked(b"a", b"b")
    exchange.receive(b"00001a")
    exchange.poison(ClosedError("first"))
    exchange.poison(ClosedError("second"))
    with pytest.raises(ClosedError, match="first"):
        exchange.next_reply()


# The window ----------------------------------------------------------------------


def test_filling_stops_at_the_window_and_goes_on_behind_the_replies() -> None:
    exchange = Exchange(window=20)
    payloads = (b"%d" % n for n in itertools.count())  # 6 bytes a frame, without end
    assert exchange.fill(payloads) == b"000010000011000012"
    assert exchange.outstanding == 3
    assert exchange.fill(payloads) == b""
    exchange.receive(b"000010")
    # The payload that did not fit was kept.
    assert exchange.fill(payloads) == b"000013"
    exchange.receive(b"000011000012000013")
    assert exchange.fill(payloads) == b"000014000015000016"


def test_a_frame_over_the_window_goes_alone() -> None:
    large = b"x" * 99_999
    payloads = iter([b"a", large, b"b"])
    exchange = Exchange()
    assert exchange.fill(payloads) == b"00001a"
    exchange.receive(b"00001a")
    assert exchange.fill(payloads) == encode_frame(large)
    assert not exchange.room
    exchange.receive(encode_frame(large))
    assert exchange.fill(payloads) == b"00001b"


@given(
    st.lists(st.integers(1, 99_999) | st.integers(1, 40), max_size=30),
    st.integers(1, 2 * WINDOW) | st.integers(1, 100),
    st.data(),
)
def test_the_window_is_kept_whatever_the_sizes(
    sizes: list[int], window: int, data: st.DataObject
) -> None:
    exchange = Exchange(window)
    payloads = iter([bytes(size) for size in sizes])
    flying: list[int] = []  # bytes of the frames not answered
    sent = 0
    while True:
        taken = len(exchange.fill(payloads))
        new = sizes[sent : exchange.outstanding - len(flying) + sent]
        assert taken == sum(new) + 5 * len(new)
        sent += len(new)
        flying += [size + 5 for size in new]
        assert sum(flying) <= window or len(flying) == 1
        if not flying:
            break
        answered = data.draw(st.integers(1, len(flying)))
        exchange.receive(b"00000" * answered)
        del flying[:answered]
        assert len(replies(exchange)) == answered
    assert sent == len(sizes)
    assert exchange.idle


# Properties ------------------------------------------------------------------------

payload_lists = st.lists(st.binary(min_size=1, max_size=12), min_size=1, max_size=8)


def cut_up(stream: bytes, data: st.DataObject) -> list[bytes]:
    """The same bytes in pieces of any size."""
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(stream) - 1)), max_size=12)))
    return [piece for a, b in itertools.pairwise([0, *cuts, len(stream)]) if (piece := stream[a:b])]


@given(payload_lists, st.data())
def test_replies_match_requests_however_the_stream_is_cut(
    payloads: list[bytes], data: st.DataObject
) -> None:
    exchange = asked(*payloads)
    expected = [payload[::-1] for payload in payloads]
    got: list[bytes] = []
    for piece in cut_up(b"".join(map(encode_frame, expected)), data):
        exchange.receive(piece)
        got += replies(exchange)
    assert got == expected
    assert exchange.idle


@given(payload_lists, st.binary(min_size=1, max_size=20), st.data())
def test_a_fault_is_the_same_however_the_stream_is_cut(
    payloads: list[bytes], junk: bytes, data: st.DataObject
) -> None:
    def outcome(pieces: list[bytes]) -> tuple[list[bytes], str]:
        exchange = asked(*payloads)
        got: list[bytes] = []
        try:
            for piece in [*pieces, b""]:
                exchange.receive(piece)
                while (reply := exchange.next_reply()) is not None:
                    got.append(reply)
        except NbclientError as error:
            return got, repr(error)
        raise AssertionError("the end of the stream is a fault")

    good = b"".join(map(encode_frame, payloads[: data.draw(st.integers(0, len(payloads)))]))
    stream = good + junk
    assert outcome(cut_up(stream, data)) == outcome([stream])


class AgainstAServer(RuleBasedStateMachine):
    """Requests, replies and reads in any order: who asked first is answered first."""

    def __init__(self) -> None:
        super().__init__()
        self.exchange = Exchange(window=40)
        self.numbers = itertools.count()
        self.added: list[bytes] = []
        self.sent = b""
        self.wire = b""  # answered by the server, not received yet
        self.answered = 0
        self.got: list[bytes] = []

    @rule(padding=st.integers(0, 60))
    def add(self, padding: int) -> None:
        payload = b"%d" % next(self.numbers) + bytes(padding)
        self.exchange.add(payload)
        self.added.append(payload)

    @rule()
    def send(self) -> None:
        self.sent += self.exchange.take()

    @precondition(lambda self: self.sent_count() > self.answered)
    @rule()
    def answer(self) -> None:
        self.wire += encode_frame(self.added[self.answered])
        self.answered += 1

    @precondition(lambda self: self.wire)
    @rule(data=st.data())
    def receive(self, data: st.DataObject) -> None:
        size = data.draw(st.integers(1, len(self.wire)))
        self.exchange.receive(self.wire[:size])
        self.wire = self.wire[size:]

    @rule()
    def get(self) -> None:
        reply = self.exchange.next_reply()
        if reply is not None:
            self.got.append(reply)

    def sent_count(self) -> int:
        count, size = 0, 0
        while size < len(self.sent):
            size += 5 + len(self.added[count])
            count += 1
        return count

    @invariant()
    def requests_left_whole_and_in_order(self) -> None:
        assert b"".join(map(encode_request, self.added)).startswith(self.sent)

    @invariant()
    def replies_are_those_of_the_first_requests(self) -> None:
        assert self.got == self.added[: len(self.got)]

    @invariant()
    def idle_means_that_all_is_done(self) -> None:
        assert self.exchange.idle == (self.got == self.added)


TestAgainstAServer = AgainstAServer.TestCase

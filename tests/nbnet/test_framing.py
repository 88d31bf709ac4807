"""The wire protocol: what is taken, what is refused, and at which byte."""

from __future__ import annotations

import contextlib
import itertools
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.lives import live, lives
from support.reference import read

from nbnet.framing import MAX_PAYLOAD, FrameDecoder, FrameError, encode_frame, encode_frames

PAYLOADS = st.lists(st.binary(min_size=1, max_size=60), max_size=12)
# Streams that look like frames often enough to get past the first header.
STREAMS = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=20).map(encode_frame),
        st.sampled_from([b"\r\n", b"\r", b"\n", b"0", b"00000", b"00001", b"+", b"_", b"99999"]),
        st.binary(max_size=4),
    ),
    max_size=12,
).map(b"".join)


def decode(decoder: FrameDecoder, pieces: list[bytes]) -> tuple[list[bytes], int | None]:
    """Feed pieces until the stream is found to be broken."""
    payloads: list[bytes] = []
    for piece in pieces:
        payloads += decoder.feed(piece)
        if decoder.error is not None:
            return payloads, decoder.error.offset
    return payloads, None


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in itertools.pairwise(edges)]


@given(STREAMS, st.lists(st.integers(0, 1000), max_size=8), st.sampled_from([(1, 99), (0, 12)]))
def test_the_answer_does_not_depend_on_the_cuts(
    stream: bytes, places: list[int], limits: tuple[int, int]
) -> None:
    smallest, largest = limits
    reading = read(stream, smallest, largest)
    expected = reading.payloads, reading.fault.offset if reading.fault else None
    for pieces in ([stream], [stream[i : i + 1] for i in range(len(stream))], cut(stream, places)):
        decoder = FrameDecoder(min_payload=smallest, max_payload=largest)
        assert decode(decoder, pieces) == expected


@given(PAYLOADS)
def test_what_was_encoded_is_decoded(payloads: list[bytes]) -> None:
    stream = encode_frames(payloads)
    assert stream == b"".join(b"%05d" % len(payload) + payload for payload in payloads)
    decoder = FrameDecoder()
    assert decoder.feed(stream) == payloads
    assert decoder.unfinished == 0
    decoder.finish()


@pytest.mark.parametrize("size", [1, 4095, 4096, 65_536, MAX_PAYLOAD])
@pytest.mark.parametrize("step", [1000, 70_000, 200_000])
def test_payloads_of_every_size(size: int, step: int) -> None:
    payload = bytes(index % 251 for index in range(size))
    stream = encode_frame(payload) * 2 + b"00001z"
    decoder = FrameDecoder()
    pieces = [stream[start : start + step] for start in range(0, len(stream), step)]
    assert decode(decoder, pieces) == ([payload, payload, b"z"], None)
    assert encode_frames([payload, b""]) == encode_frame(payload) + b"00000"


@pytest.mark.parametrize(
    ("stream", "offset", "reason"),
    [
        (b"0003a", 4, "expected a digit of a length, got b'a'"),
        (b"+0003abc", 0, "expected a digit of a length, got b'+'"),
        (b" 0003abc", 0, "expected a digit of a length, got b' '"),
        (b"0_003abc", 1, "expected a digit of a length, got b'_'"),
        (b"0003\nabc", 4, r"expected a digit of a length, got b'\n'"),
        ("\u0660\u0660abc".encode(), 0, r"expected a digit of a length, got b'\xd9'"),
        (b"00000", 0, "a length of 0 is outside of 1 to 1000"),
        (b"01001", 0, "a length of 1001 is outside of 1 to 1000"),
        (b"00001a\r\n\r\n00002bcX", 17, "expected a digit of a length, got b'X'"),
        (b"\n", 0, r"expected a digit of a length, got b'\n'"),
        (b"00001a\rX", 7, "expected LF after CR, got b'X'"),
        (b"00001a\rXYZ", 7, "expected LF after CR, got b'X'"),
        (b"x", 0, "expected a digit of a length, got b'x'"),
    ],
)
def test_an_error_says_what_is_wrong_at_which_byte(stream: bytes, offset: int, reason: str) -> None:
    decoder = FrameDecoder(max_payload=1000)
    decoder.feed(stream)
    error = decoder.error
    assert error is not None
    assert (error.reason, error.offset) == (reason, offset)
    assert str(error) == f"{reason} at byte {offset}"
    with pytest.raises(FrameError) as raised:
        decoder.feed(b"00001a")
    assert raised.value is error
    with pytest.raises(FrameError):
        decoder.finish()


def test_the_first_bad_byte_is_reported_without_waiting_for_the_rest() -> None:
    decoder = FrameDecoder()
    assert decoder.feed(b"00") == []
    assert decoder.error is None
    assert decoder.feed(b"-") == []
    assert decoder.error is not None
    assert decoder.error.offset == 2


def test_frames_before_a_fault_are_not_lost() -> None:
    decoder = FrameDecoder()
    assert decoder.feed(b"00001a00002bcoops") == [b"a", b"bc"]
    assert decoder.error is not None


def test_the_offset_counts_every_byte_that_was_decoded() -> None:
    """Of equal frames, of others, of line ends alone; an error counts from the beginning too."""
    decoder = FrameDecoder()
    for data, offset in (
        (b"00001a00001a", 12),
        (b"00001a00001a", 24),
        (b"00001a00002bc", 37),
        (b"00001a00002bc", 50),
        (b"\r\n", 52),
        (b"\r\n\r\n", 56),
        (b"0000", 56),
        (b"1a", 62),
    ):
        decoder.feed(data)
        assert decoder.offset == offset
    decoder.feed(b"00001ax")
    assert str(decoder.error).endswith(" at byte 68")


@pytest.mark.parametrize("limit", [1, 3, 4095, 4096, 5000])
def test_payloads_as_long_as_the_limits_are_taken_and_no_others(limit: int) -> None:
    frame = encode_frame(bytes(limit))
    for before in (b"", b"\r\n"):
        decoder = FrameDecoder(min_payload=limit, max_payload=limit)
        assert decoder.feed(before + frame) == [bytes(limit)]
        assert decoder.error is None
        for size in (limit - 1, limit + 1):
            decoder = FrameDecoder(min_payload=limit, max_payload=limit)
            assert decoder.feed(before + encode_frame(bytes(size))) == []
            assert decoder.error is not None
            assert decoder.error.reason == f"a length of {size} is outside of {limit} to {limit}"
        decoder = FrameDecoder(min_payload=limit, max_payload=limit)
        assert decoder.feed(before + frame + b"00001") == [bytes(limit)]


def test_long_payloads_and_short_ones_are_encoded_in_their_order() -> None:
    payloads = [b"a", bytes(5000), b"bc", bytes(4096), b"d"]
    assert encode_frames(payloads) == b"".join(map(encode_frame, payloads))


def test_an_empty_payload_is_a_reply_and_no_request() -> None:
    replies = FrameDecoder(min_payload=0)
    assert replies.feed(b"00000") == [b""]
    assert replies.feed(b"0000000001a00000") == [b"", b"a", b""]
    requests = FrameDecoder()
    assert requests.feed(b"00000") == []
    assert requests.error is not None


@pytest.mark.parametrize(
    ("stream", "size"), [(b"0", 1), (b"00003", 5), (b"00001a00003ab", 7), (b"\r", 1)]
)
def test_an_end_inside_a_frame_is_an_error(stream: bytes, size: int) -> None:
    decoder = FrameDecoder()
    decoder.feed(stream)
    assert decoder.unfinished == size
    with pytest.raises(FrameError, match=f"ended {size} bytes into a frame at byte {len(stream)}"):
        decoder.finish()


def test_a_frame_alone_in_a_read_can_be_looked_up() -> None:
    def is_alone(data: bytes) -> bool:
        return decoder.alone[len(data) - 5] == data[:5]

    decoder = FrameDecoder()
    assert is_alone(b"00003abc")
    assert not is_alone(b"00003abcd")
    assert not is_alone(b"00003ab")
    assert not is_alone(b"00000")
    assert decoder.feed(b"00003ab") == []
    assert not is_alone(b"00001c")  # belongs to the frame begun
    assert decoder.feed(b"c") == [b"abc"]
    assert is_alone(b"00001c")
    decoder.feed(b"x")
    assert not is_alone(b"00001c")  # the stream is broken


@pytest.mark.parametrize("cut", [4101, 4100, 3])
def test_a_shortest_payload_beyond_the_table_is_kept_to(cut: int) -> None:
    decoder = FrameDecoder(min_payload=5000)
    stream = encode_frame(bytes(5000)) + encode_frame(bytes(4999))
    assert decode(decoder, [stream[:-cut], stream[-cut:]]) == ([bytes(5000)], 5005)


@pytest.mark.parametrize("limits", [(-1, 5), (6, 5), (0, 100_000)])
def test_limits_that_make_no_sense(limits: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="not within 0 to 99999"):
        FrameDecoder(min_payload=limits[0], max_payload=limits[1])


def test_a_payload_over_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="100000 bytes is over the 99999"):
        encode_frame(bytes(MAX_PAYLOAD + 1))
    with pytest.raises(ValueError, match="over the 99999"):
        encode_frames([b"a", bytes(MAX_PAYLOAD + 1)])


@pytest.mark.parametrize("payload", ["abc", 3, None, ["a"], bytearray(b"a"), memoryview(b"a")])
def test_a_payload_that_is_no_bytes_is_refused(payload: object) -> None:
    message = f"^a payload is bytes, not {type(payload).__name__}$"
    with pytest.raises(TypeError, match=message):
        encode_frame(payload)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=message):
        encode_frames([b"a", payload])  # type: ignore[list-item]


def test_bytes_of_a_class_of_their_own_are_bytes() -> None:
    class Text(bytes):
        pass

    assert encode_frame(Text(b"ab")) == b"00002ab"
    assert encode_frames([b"", Text(b"ab")]) == b"0000000002ab"


def test_errors_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(FrameError("reason", 7)))
    assert (error.reason, error.offset) == ("reason", 7)
    assert repr(error) == "FrameError('reason', 7)"


class Stream(RuleBasedStateMachine):
    """What comes is cut anyhow, fed or looked up: after each piece all is as it should be."""

    SMALLEST, LARGEST = 1, 30

    def __init__(self) -> None:
        super().__init__()
        self.decoder = FrameDecoder(min_payload=self.SMALLEST, max_payload=self.LARGEST)
        self.coming = b""
        self.came = b""
        self.looked_up = 0  # bytes that were never fed
        self.payloads: list[bytes] = []
        self.ended = False

    @rule(payloads=st.lists(st.binary(min_size=1, max_size=LARGEST), max_size=3))
    def send_frames(self, payloads: list[bytes]) -> None:
        self.coming += encode_frames(payloads)

    @rule(payload=st.binary(min_size=1, max_size=4), count=st.integers(2, 5))
    def send_equal_frames(self, payload: bytes, count: int) -> None:
        self.coming += encode_frame(payload) * count

    @rule(data=st.sampled_from([b"\r\n", b"\r\n\r\n", b"\r"]))
    def send_line_ends(self, data: bytes) -> None:
        self.coming += data

    @rule(
        data=st.sampled_from([b"00000", b"00031", b"0", b"00001", b"+", b"\n"])
        | st.binary(max_size=3)
    )
    def send_junk(self, data: bytes) -> None:
        self.coming += data

    @precondition(lambda self: self.coming and not self.ended)
    @rule(size=st.integers(1, 40) | st.just(1) | st.just(1000))
    def receive(self, size: int) -> None:
        piece, self.coming = self.coming[:size], self.coming[size:]
        if self.decoder.error is not None:
            with pytest.raises(FrameError):
                self.decoder.feed(piece)
            return
        self.came += piece
        with contextlib.suppress(IndexError):
            if self.decoder.alone[len(piece) - 5] == piece[:5]:
                self.payloads.append(piece[5:])
                self.looked_up += len(piece)
                return
        self.payloads += self.decoder.feed(piece)

    @precondition(lambda self: not self.ended)
    @rule()
    def end(self) -> None:
        whole = not self.decoder.unfinished
        with contextlib.nullcontext() if whole else pytest.raises(FrameError):
            self.decoder.finish()
        self.ended = True

    @invariant()
    def all_that_came_is_known(self) -> None:
        reading = read(self.came, self.SMALLEST, self.LARGEST)
        assert self.payloads == reading.payloads
        error = self.decoder.error
        if reading.fault is not None:
            assert error is not None
            assert error.offset + self.looked_up == reading.fault.offset
        elif not self.ended:
            assert error is None
        assert self.decoder.offset + self.looked_up == reading.rest
        assert self.decoder.held == self.came[reading.rest :]

    @invariant()
    def a_frame_at_most_is_held(self) -> None:
        if self.decoder.error is None:
            assert self.decoder.unfinished < 5 + self.LARGEST
        if self.decoder.unfinished:
            assert not any(self.decoder.alone)


@lives
def test_whatever_comes(count: int) -> None:
    live(Stream, count)

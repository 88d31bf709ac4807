"""Replies compared as they come, however the stream is cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.chaos_peer import Fault, Replies
from loadgen.traffic import messages

payloads = st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=8)


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    """The stream cut at these places."""
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    return [stream[start:end] for start, end in itertools.pairwise(places)]


@given(payloads, st.lists(st.integers(0, 1000)), st.sampled_from(["reverse", "none"]))
def test_right_replies_are_complete_however_they_are_cut(
    sent: list[bytes], cuts: list[int], expect: str
) -> None:
    replies = Replies()
    replies.ask(messages(sent, expect))
    for piece in pieces(b"".join(m.expected for m in messages(sent, "reverse")), cuts):
        assert not replies.complete
        replies.take(piece)
    assert replies.complete


@given(payloads, st.lists(st.integers(0, 1000)), st.integers(0, 1000))
def test_a_wrong_byte_is_found_where_it_stands(sent: list[bytes], cuts: list[int], at: int) -> None:
    replies = Replies()
    replies.ask(messages(sent, "reverse"))

    def take_all() -> None:
        for piece in pieces(bytes(stream), cuts):
            replies.take(piece)

    stream = bytearray(b"".join(message.expected for message in messages(sent, "reverse")))
    at %= len(stream)
    right = stream[at]
    stream[at] ^= 0x80
    with pytest.raises(Fault, match="wrong bytes") as caught:
        take_all()
    assert caught.value.got[0] == stream[at]
    assert caught.value.expected[0] == right


@pytest.mark.parametrize("expect", ["reverse", "none"])
@pytest.mark.parametrize("surplus", [b"0", b"00001a"])
def test_what_nothing_asked_for_is_a_fault(expect: str, surplus: bytes) -> None:
    replies = Replies()
    replies.ask(messages([b"abc"], expect))
    with pytest.raises(Fault, match="bytes that nothing asked for"):
        replies.take(b"00003cba" + surplus)


def test_what_is_no_frame_is_a_fault_where_any_reply_will_do() -> None:
    replies = Replies()
    replies.ask(messages([b"abc"], "none"))
    with pytest.raises(Fault, match="no frame") as caught:
        replies.take(b"HTTP/1.1 400")
    assert caught.value.got == b"HTTP/1.1 400"


def test_bytes_before_any_request_are_a_fault() -> None:
    with pytest.raises(Fault, match="bytes that nothing asked for"):
        Replies().take(b"220 hello")

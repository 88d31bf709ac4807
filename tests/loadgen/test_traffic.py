"""What is sent, and what is expected back."""

from __future__ import annotations

import pytest

from loadgen.traffic import reversed_text


@pytest.mark.parametrize(
    ("payload", "frame", "expected"),
    [
        (b"abc", b"00003abc", b"00003cba"),
        (b"x", b"00001x", b"00001x"),
        ("é".encode(), b"00002\xc3\xa9", b"00002\xa9\xc3"),  # bytes, not characters
        (b"\r\n", b"00002\r\n", b"00002\n\r"),
    ],
)
def test_a_request_carries_the_payload_and_its_reply_the_reverse(
    payload: bytes, frame: bytes, expected: bytes
) -> None:
    message = reversed_text(payload)
    assert (message.frame, message.expected) == (frame, expected)


def test_the_longest_payload_fits() -> None:
    message = reversed_text(b"a" + b"b" * 99_998)
    assert message.frame.startswith(b"99999ab")
    assert message.expected.endswith(b"ba")

"""The frames that a run sends and the replies that it expects, built ahead."""

from __future__ import annotations

from typing import NamedTuple

from nbnet.framing import encode_frame


class Message(NamedTuple):
    """A request as it goes over the wire, and the reply as it has to come back."""

    frame: bytes
    expected: bytes


def reversed_text(payload: bytes) -> Message:
    """A request to the server that reverses text.

    >>> reversed_text(b"abc")
    Message(frame=b'00003abc', expected=b'00003cba')
    """
    return Message(encode_frame(payload), encode_frame(payload[::-1]))

"""The protocol once more, as simply as it can be said: what other decoders are measured by.

One pass over the whole stream, byte by byte, with nothing of ``nbnet.framing``. It
tells besides after how many bytes everything has to be known: a payload with its last
byte, a fault with the first byte that shows it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

DIGITS = b"0123456789"


@dataclass(slots=True)
class Fault:
    """What is wrong with a stream.

    Attributes:
        offset: the offending byte, from 0.
        known: bytes of the stream that show it.
        reason: in the decoder's words.
    """

    offset: int
    known: int
    reason: str


@dataclass(slots=True)
class Reading:
    """What a stream says.

    Attributes:
        payloads: of the whole frames before a fault.
        ends: for each payload, how many bytes of the stream it takes to have it.
        rest: where the frame that is not whole, or the fault, begins.
        fault: None as far as all is well.
    """

    payloads: list[bytes] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    rest: int = 0
    fault: Fault | None = None


def read(stream: bytes, smallest: int, largest: int) -> Reading:
    """What a stream says whose payloads may have so many bytes."""
    reading = Reading()
    while True:
        at = reading.rest = behind_line_ends(stream, reading.rest)
        if stream[at : at + 1] == b"\r":
            if len(stream) > at + 1:
                reason = f"expected LF after CR, got {stream[at + 1 : at + 2]!r}"
                reading.fault = Fault(at + 1, at + 2, reason)
            return reading
        for place in range(at, at + 5):
            if place == len(stream):
                return reading
            if stream[place] not in DIGITS:
                reason = f"expected a digit of a length, got {stream[place : place + 1]!r}"
                reading.fault = Fault(place, place + 1, reason)
                return reading
        length = int(stream[at : at + 5])
        if not smallest <= length <= largest:
            reason = f"a length of {length} is outside of {smallest} to {largest}"
            reading.fault = Fault(at, at + 5, reason)
            return reading
        end = at + 5 + length
        if end > len(stream):
            return reading
        reading.payloads.append(stream[at + 5 : end])
        reading.ends.append(end)
        reading.rest = end


def behind_line_ends(stream: bytes, at: int) -> int:
    """Where the next header may begin."""
    while stream[at : at + 2] == b"\r\n":
        at += 2
    return at

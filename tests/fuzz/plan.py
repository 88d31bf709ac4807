"""How an input is read: six bytes say what is to be done, the rest is the stream.

The six bytes are small choices (which limits, which cuts, which complication), so
that whoever mutates bytes varies these as well. Any bytes are an input; what is
missing is zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

SIZE: Final = 6
"""Bytes before the stream."""
SINGLE: Final = 120
"""Bytes that come one by one at most; behind them ..."""
COARSE: Final = 61
"""... so many at a time: long payloads would take all the time there is."""


class Differs(AssertionError):  # noqa: N818
    """Something did not do as the reference says."""


@dataclass(slots=True)
class Input:
    """An input, taken apart.

    Attributes:
        limits, choice, place: numbers from 0 to 255, for the target to choose by.
        steps: sizes of the pieces of one of the cuts, in turn.
        stream: the bytes that are to be decoded.
    """

    limits: int
    choice: int
    place: int
    steps: tuple[int, int, int]
    stream: bytes


def parse(data: bytes) -> Input:
    """Take an input apart.

    >>> parse(bytes([1, 2, 3, 0, 4, 200]) + b"00001a")
    Input(limits=1, choice=2, place=3, steps=(1, 5, 657), stream=b'00001a')
    """
    limits, choice, place, *sizes = data[:SIZE].ljust(SIZE, b"\0")
    first, second, third = (size + 1 if size < 160 else 1 + 16 * (size - 159) for size in sizes)
    return Input(limits, choice, place, (first, second, third), data[SIZE:])


def cuts(given: Input) -> Iterator[list[bytes]]:
    """The stream whole, byte by byte, and by the input's own steps."""
    stream = given.stream
    if stream:
        yield [stream]
        pieces = [stream[at : at + 1] for at in range(min(SINGLE, len(stream)))]
        pieces += [stream[at : at + COARSE] for at in range(SINGLE, len(stream), COARSE)]
        yield pieces
    yield cut(stream, given.steps)


def cut(stream: bytes, steps: tuple[int, int, int]) -> list[bytes]:
    """The stream in pieces of these sizes, in turn."""
    pieces, at, turn = [], 0, 0
    while at < len(stream):
        size = steps[turn]
        pieces.append(stream[at : at + size])
        at += size
        turn = turn + 1 if turn < 2 else 0
    return pieces


def must_equal(what: str, got: object, wanted: object) -> None:
    """Raise if two things differ; ``what`` they are is said then."""
    if got != wanted:
        raise Differs(f"{what}: got {_short(got)}, the reference says {_short(wanted)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 400 else f"{text[:200]} ... {text[-200:]}"

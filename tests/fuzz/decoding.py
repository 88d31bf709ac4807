"""The target for ``nbnet.framing``: the decoder, fed whole, byte by byte, or cut anyhow."""

from __future__ import annotations

from typing import Final

from support.reference import Reading, read

from fuzz.plan import Differs, cuts, must_equal, parse
from nbnet.framing import HEADER_SIZE, MAX_PAYLOAD, FrameDecoder, FrameError

LIMITS: Final = (
    (1, MAX_PAYLOAD),
    (0, MAX_PAYLOAD),
    (1, 99),
    (0, 12),
    (5, 5),
    (0, 0),
    (1, 4095),
    (1, 4096),
    (4090, 5000),
    (MAX_PAYLOAD, MAX_PAYLOAD),
)
"""Payloads taken: those of requests, of replies, few, and around the table's end."""


NEVER: Final = 1 << 62
"""A byte that does not come."""


def decoder(data: bytes) -> None:
    """Whatever the cuts, the payloads and the fault are the reference's, each in time."""
    given = parse(data)
    smallest, largest = LIMITS[given.limits % len(LIMITS)]
    reading = read(given.stream, smallest, largest)
    for number, pieces in enumerate(cuts(given)):
        tested = FrameDecoder(min_payload=smallest, max_payload=largest)
        # Once by the fast path of those who serve one frame a read.
        _compare(tested, pieces, reading, given.stream, alone=(given.choice + number) % 2 > 0)


def _compare(
    tested: FrameDecoder, pieces: list[bytes], reading: Reading, stream: bytes, *, alone: bool
) -> None:
    fault, ends, wanted = reading.fault, reading.ends, reading.payloads
    known = fault.known if fault else NEVER
    position = unfed = count = 0
    # Where the next payload, or the fault, has to be there.
    due = min(ends[0] if ends else NEVER, known)
    for piece in pieces:
        position += len(piece)
        if alone and _is_alone(tested, piece):
            payloads = [piece[HEADER_SIZE:]]
            unfed += len(piece)
        else:
            payloads = tested.feed(piece)
        if position < due:
            if payloads or tested.error:
                raise Differs(f"by byte {position} came {payloads}, {tested.error}")
            continue
        before = count
        while count < len(ends) and ends[count] <= position:
            count += 1
        due = min(ends[count] if count < len(ends) else NEVER, known)
        if payloads != wanted[before:count]:
            must_equal(f"payloads by byte {position}", payloads, wanted[before:count])
        error = tested.error
        if fault is None or position < known:
            must_equal(f"a fault by byte {position}", error, None)
        elif error is None:
            raise Differs(f"no fault by byte {position}, the reference says {fault}")
        else:
            said = (error.offset + unfed, error.reason)
            must_equal("the fault", said, (fault.offset, fault.reason))
            _check_stays_broken(tested, error)
            break
    must_equal("what is held", tested.held, stream[reading.rest : position])
    must_equal("its size", tested.unfinished, position - reading.rest)
    must_equal("the offset", tested.offset + unfed, reading.rest)
    if fault is None:
        _check_end(tested, len(stream) - unfed)


def _is_alone(tested: FrameDecoder, piece: bytes) -> bool:
    try:
        return tested.alone[len(piece) - HEADER_SIZE] == piece[:HEADER_SIZE]
    except IndexError:
        return False


def _check_stays_broken(tested: FrameDecoder, error: FrameError) -> None:
    must_equal("a frame taken behind a fault", _is_alone(tested, b"00001a"), False)
    raised = None
    try:
        tested.feed(b"00001a")
    except FrameError as again:
        raised = again
    must_equal("the fault of a further feed", raised, error)


def _check_end(tested: FrameDecoder, size: int) -> None:
    unfinished, said = tested.unfinished, None
    try:
        tested.finish()
    except FrameError as error:
        said = (error.offset, error.reason)
    wanted = (size, f"the stream ended {unfinished} bytes into a frame")
    must_equal("the end", said, wanted if unfinished else None)

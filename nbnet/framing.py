"""The wire protocol: how messages are cut out of a stream of bytes. No I/O.

A message, request or reply, is a header of five ASCII digits that give the
length of the payload, then exactly that many bytes of payload::

    message = *(CR LF) header payload
    header  = 5("0" to "9")            ; decimal, zero-padded

    00003abc   a payload of three bytes

Rules kept here, by both ends:

* a payload has at most 99,999 bytes; a reply may be empty (``00000``), a
  request may not;
* the header is checked byte by byte: ``+0003``, ``" 0003"`` and ``0_003`` are
  errors although ``int()`` would take them, and the first byte that cannot be
  part of a header is reported without waiting for the rest;
* CR LF before a header is skipped, since a telnet user presses Enter;
* after an error nothing more can be read: there is no way back into step;
* what a decoder answers does not depend on how the stream was cut into reads.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from io import BytesIO
from itertools import repeat
from typing import Final

HEADER_SIZE: Final = 5
"""Bytes in a header."""

MAX_PAYLOAD: Final = 99_999
"""Bytes in the longest payload that five digits can announce."""

# Formatting and parsing a header cost more than looking it up, and nearly all
# frames are short: the table covers these, and everything else is computed.
TABLE_SIZE: Final = 4096
HEADERS: Final = tuple(b"%05d" % size for size in range(TABLE_SIZE))
"""The headers of payloads shorter than ``TABLE_SIZE``, by their length."""


class FrameError(ValueError):
    """The bytes of a stream are no frames.

    Attributes:
        reason: what was wrong, in words, without the position.
        offset: the position of the offending byte, counted from 0 at the
            start of the stream.

    >>> str(FrameError("expected a digit, got b'+'", 8))
    "expected a digit, got b'+' at byte 8"
    """

    def __init__(self, reason: str, offset: int) -> None:
        super().__init__(reason, offset)
        self.reason = reason
        self.offset = offset

    def __str__(self) -> str:
        return f"{self.reason} at byte {self.offset}"


def encode_frame(payload: bytes) -> bytes:
    """Put a header before a payload of 0 to 99,999 bytes.

    An empty payload is a legal reply; a client must not send one. Other types
    of buffers are refused: what stands in them may change before it is sent,
    and their length need not be their size in bytes.

    Raises:
        ValueError: the payload is longer than 99,999 bytes.
        TypeError: the payload is no bytes.

    >>> encode_frame(b"abc")
    b'00003abc'
    """
    if type(payload) is not bytes and not isinstance(payload, bytes):
        raise TypeError(f"a payload is bytes, not {type(payload).__name__}")
    size = len(payload)
    return (HEADERS[size] if size < TABLE_SIZE else _header(size)) + payload


def encode_frames(payloads: Sequence[bytes]) -> bytes:
    """Encode payloads one after the other, as ``encode_frame`` does each.

    Raises:
        ValueError: a payload is longer than 99,999 bytes.
        TypeError: a payload is no bytes.

    >>> encode_frames([b"abc", b""])
    b'00003abc00000'
    """
    count = len(payloads)
    if count and list(map(type, payloads)).count(bytes) == count:
        # As for the decoder: a run of equal ones.
        if payloads[0] == payloads[-1] and payloads.count(payloads[0]) == count:
            return encode_frame(payloads[0]) * count
        parts = [b""] * (2 * count)
        parts[1::2] = payloads
        try:
            # Every step of this runs inside the interpreter's C loops.
            parts[::2] = map(HEADERS.__getitem__, map(len, payloads))
        except IndexError:  # longer than the table
            parts[::2] = map(_header, map(len, payloads))
        return b"".join(parts)
    return b"".join(map(encode_frame, payloads))


def _header(size: int) -> bytes:
    if size < TABLE_SIZE:
        return HEADERS[size]
    if size > MAX_PAYLOAD:
        raise ValueError(f"a payload of {size} bytes is over the {MAX_PAYLOAD} that a frame holds")
    return b"%05d" % size


_NOTHING: Final = (None,) * TABLE_SIZE


@functools.cache
def _header_table(min_payload: int, max_payload: int) -> tuple[bytes | None, ...]:
    """The headers of short payloads by length; None where these limits allow none."""
    return tuple(
        HEADERS[size] if min_payload <= size <= max_payload else None for size in range(TABLE_SIZE)
    )


class _Lengths(dict[bytes, int]):
    """The lengths in the headers that a decoder with these limits takes.

    Those of short payloads are looked up, the others are computed; what is no
    such header, or not a whole one, is a ``KeyError``.
    """

    def __init__(self, min_payload: int, max_payload: int) -> None:
        stop = min(max_payload + 1, TABLE_SIZE)
        super().__init__({HEADERS[size]: size for size in range(min_payload, stop)})
        self._min = max(min_payload, TABLE_SIZE)
        self._max = max_payload

    def __missing__(self, header: bytes) -> int:
        if len(header) == HEADER_SIZE and header.isdigit():
            length = int(header)
            if self._min <= length <= self._max:
                return length
        raise KeyError(header)


_length_table = functools.cache(_Lengths)


class FrameDecoder:
    """Cuts a stream into payloads, whatever pieces the stream arrives in.

    ``feed`` it every read; it gives the payloads that this read completes.
    When the stream turns out to be no frames, ``feed`` still gives the payloads
    before the fault and sets ``error``; a further ``feed`` raises it.

    A peer that waits for each reply sends one frame a read. Whoever serves such
    peers may look such a read up in ``alone``, which costs less than a call: if
    ``alone[len(data) - 5] == data[:5]`` then ``data`` is one whole frame, its
    payload is ``data[5:]``, and it is not to be fed. An ``IndexError`` says the
    contrary.

    Attributes:
        alone: headers by length of the payload, of the short frames that would
            be taken whole now; None for the others, and for all while part of a
            frame is held. To be read again after each ``feed``.
        error: what was wrong with the stream; None as long as nothing is.
        offset: where in what was fed the next byte to decode stands, from 0.

    Args:
        min_payload: bytes in the shortest payload: 1 for requests (the
            default), 0 for replies.
        max_payload: bytes in the longest payload taken, up to 99,999.

    Raises:
        ValueError: a limit is outside of 0 to 99,999.

    >>> decoder = FrameDecoder()
    >>> decoder.feed(b"00003abc00005he")
    [b'abc']
    >>> decoder.feed(b"llo+0003xyz")
    [b'hello']
    >>> decoder.error
    FrameError("expected a digit of a length, got b'+'", 18)
    """

    __slots__ = (
        "_headers",
        "_held",
        "_lengths",
        "_max",
        "_min",
        "_need",
        "alone",
        "error",
        "offset",
    )

    def __init__(self, *, min_payload: int = 1, max_payload: int = MAX_PAYLOAD) -> None:
        if not 0 <= min_payload <= max_payload <= MAX_PAYLOAD:
            raise ValueError(
                f"limits of {min_payload} to {max_payload} bytes are not within 0 to {MAX_PAYLOAD}"
            )
        self._lengths = _length_table(min_payload, max_payload)
        self._headers = _header_table(min_payload, max_payload)
        self.alone: tuple[bytes | None, ...] = self._headers
        self._min = min_payload
        self._max = max_payload
        self.offset = 0
        self._held: bytearray | None = None  # a frame begun; None between frames
        self._need = 0  # how many bytes must be held before decoding can go on
        self.error: FrameError | None = None

    @property
    def unfinished(self) -> int:
        """Bytes held of a frame that is not whole yet."""
        return 0 if self._held is None else len(self._held)

    @property
    def held(self) -> bytes:
        """The bytes of a frame that is not whole yet, or of what is no frame."""
        return b"" if self._held is None else bytes(self._held)

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes of the stream; give the payloads now complete.

        Raises:
            FrameError: the stream was already found to be broken.
        """
        if self._held is None:
            return self._decode(data)
        if self.error is not None:
            raise self.error
        if len(self._held) + len(data) < self._need:
            self._held += data
            return []
        data = b"".join((self._held, data))
        self._held = None
        self.alone = self._headers
        return self._decode(data)

    def finish(self) -> None:
        """Say that the stream has ended.

        Raises:
            FrameError: it was broken, or ended inside a frame.
        """
        if self.error is None and self._held is not None:
            size = len(self._held)
            self.error = FrameError(
                f"the stream ended {size} bytes into a frame", self.offset + size
            )
        if self.error is not None:
            raise self.error

    def _decode(self, data: bytes) -> list[bytes]:
        # A pipeline of equal requests is common enough (a load test, a probe) to
        # be worth a comparison, which costs next to nothing where it fails.
        length = self._lengths.get(data[:HEADER_SIZE])
        if length is not None:
            frame = data[: HEADER_SIZE + length]
            times, rest = divmod(len(data), HEADER_SIZE + length)
            if not rest and data == frame * times:
                self.offset += len(data)
                return [frame[HEADER_SIZE:]] * times
        stream = BytesIO(data)  # shares the bytes; its read() is the cheapest cut there is
        read = stream.read
        payloads: list[bytes] = []
        # Each step of this asks the one before for its next result: a header is
        # read, then a payload of its length, all inside the interpreter's C loops.
        headers = map(read, repeat(HEADER_SIZE))
        cuts = map(read, map(self._lengths.__getitem__, headers))
        while True:
            try:
                payloads.extend(cuts)
            except KeyError as error:  # the end, or a header that the table does not have
                header: bytes = error.args[0]
            if not header:
                self._end_data(data, payloads)
                return payloads
            start = stream.tell() - len(header)
            while data.startswith(b"\r\n", start):
                start += 2
            header = data[start : start + HEADER_SIZE]
            try:
                length = self._parse(header, start)
            except FrameError as error:
                self.error = error
                self._hold(data, start, 0)
                return payloads
            if length is None:
                if header:
                    self._hold(data, start, len(header) + 1)
                else:
                    self.offset += len(data)
                return payloads
            stream.seek(start + HEADER_SIZE)
            payloads.append(read(length))

    def _end_data(self, data: bytes, payloads: list[bytes]) -> None:
        """The data is cut up; its last payload may not be whole, and is then taken back."""
        if payloads:
            start = len(data) - HEADER_SIZE - len(payloads[-1])
            header = data[start : start + HEADER_SIZE]
            length = self._lengths.get(header) or int(header)
            if len(payloads[-1]) < length:
                payloads.pop()
                self._hold(data, start, HEADER_SIZE + length)
                return
        self.offset += len(data)

    def _hold(self, data: bytes, start: int, need: int) -> None:
        """Keep what stands from ``start`` on until ``need`` bytes of it are there."""
        self._held = bytearray(memoryview(data)[start:])
        self.alone = _NOTHING
        self._need = need
        self.offset += start

    def _parse(self, header: bytes, start: int) -> int | None:
        """The length in a header that may be cut short; None when it is so far."""
        if not header.isdigit():
            if not header or header == b"\r":
                return None
            offset = self.offset + start
            if header[:1] == b"\r":
                raise FrameError(f"expected LF after CR, got {header[1:2]!r}", offset + 1)
            digits = next(i for i in range(len(header)) if not header[i : i + 1].isdigit())
            bad = header[digits : digits + 1]
            raise FrameError(f"expected a digit of a length, got {bad!r}", offset + digits)
        if len(header) < HEADER_SIZE:
            return None
        length = int(header)
        if not self._min <= length <= self._max:
            raise FrameError(
                f"a length of {length} is outside of {self._min} to {self._max}",
                self.offset + start,
            )
        return length

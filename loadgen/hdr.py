"""Histograms as text that HdrHistogram's tools read, in any language: the V2 format.

It is what the last field of an interval in an ``.hlog`` file holds. From the
outside in, all integers big-endian:

- base64;
- a cookie that says "compressed, V2", the length of what follows, 4 bytes each;
- a zlib stream of a header of 40 bytes: a cookie that says "V2", the length of
  the counts in bytes, the normalizing index offset, the significant digits (4
  bytes each), the lowest and the highest trackable value (8 bytes each) and the
  ratio of stored to real values (a double);
- in the same stream the counts of the buckets from the first on, without those
  above the last that has one. A negative number stands for as many empty
  buckets. Numbers are ZigZag encoded (0, -1, 1, -2 become 0, 1, 2, 3), then
  LEB128 of at most nine bytes, the ninth with eight bits.

Source: https://github.com/HdrHistogram/HdrHistogram, ``encodeIntoByteBuffer``
of ``AbstractHistogram`` and ``ZigZagEncoding``.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator
from typing import Final

from loadgen.histogram import Histogram, bucket_indices

_COMPRESSED: Final = 0x1C849314
_COUNTS: Final = 0x1C849313
_ENVELOPE: Final = struct.Struct(">II")
_HEADER: Final = struct.Struct(">IIiIqqd")

_OFFSET: Final = 0
_DIGITS: Final = 3
_LOWEST: Final = 1
_RATIO: Final = 1.0

_LARGEST: Final = 2**63 - 1
"""The format's integers are those of Java, with a sign."""
_BUCKETS: Final = bucket_indices([_LARGEST])[0] + 1
_LARGEST_PAYLOAD: Final = _HEADER.size + 9 * _BUCKETS


def encode(histogram: Histogram) -> str:
    """The histogram as base64 text without line breaks, as in an ``.hlog`` line.

    The highest trackable value written is the least 2**n - 1 that covers all
    values, at least 2,047: where an array of counts that other tools make for it
    ends.

    Raises:
        ValueError: a value, a count or the sum of all counts is over 2**63 - 1,
            or below 0.

    >>> histogram = Histogram()
    >>> histogram.record([1000, 1000, 5000])
    >>> text = encode(histogram)
    >>> text[:8], decode(text).counts == histogram.counts
    ('HISTFAAA', True)
    """
    counts = histogram.counts
    if not all(0 <= index < _BUCKETS for index in counts):
        raise ValueError("values from 0 to 2**63 - 1 can be encoded, and no others")
    if counts.total() > _LARGEST or not all(count >= 0 for count in counts.values()):
        raise ValueError("0 to 2**63 - 1 counts can be encoded, and no others")
    numbers = bytearray()
    following = 0
    for index in sorted(counts):
        if index > following:
            _put(following - index, numbers)
        _put(counts[index], numbers)
        following = index + 1
    if not numbers:
        # HdrHistogram's reader in C takes a stream that ends with the header for a broken one.
        _put(-1, numbers)
    header = _HEADER.pack(
        _COUNTS, len(numbers), _OFFSET, _DIGITS, _LOWEST, _last(histogram.max), _RATIO
    )
    stream = zlib.compress(header + numbers)
    return base64.b64encode(_ENVELOPE.pack(_COMPRESSED, len(stream)) + stream).decode("ascii")


def decode(text: str) -> Histogram:
    """The histogram in a text that ``encode`` or a tool of HdrHistogram made.

    Only the layout of ``Histogram`` is taken: 3 significant digits from 1 on.
    Whatever the text claims, it takes no more memory than a few times its size
    and 55,296 buckets.

    Raises:
        ValueError: the text is damaged, is no histogram, or is one in another
            version or layout.

    >>> text = "HISTFAAAACR4nJNpmSzMwMDAxgABzFCaEULJ/7f/AGGd52f5qMwEAGMQBZY="
    >>> len(decode(text)), decode(text).percentiles([50, 100])
    (3, [1000, 5003])
    >>> decode(text[:40])
    Traceback (most recent call last):
    ValueError: damaged histogram: 22 bytes, 36 announced
    """
    payload = _unpacked(text)
    if len(payload) < _HEADER.size:
        raise ValueError("damaged histogram: the header is incomplete")
    cookie, length, offset, digits, lowest, highest, ratio = _HEADER.unpack_from(payload)
    if cookie != _COUNTS:
        raise ValueError(f"no histogram in the V2 format: counts marked {cookie:08x}")
    if (offset, digits, lowest, ratio) != (_OFFSET, _DIGITS, _LOWEST, _RATIO):
        raise ValueError(
            f"histogram of another layout: {digits} significant digits from {lowest} on, "
            f"offset {offset}, ratio {ratio}; expected {_DIGITS} from {_LOWEST} on, "
            f"offset {_OFFSET}, ratio {_RATIO}"
        )
    if highest < 2 * _LOWEST:
        raise ValueError(f"damaged histogram: values up to {highest}")
    if length != len(payload) - _HEADER.size:
        raise ValueError(
            f"damaged histogram: {len(payload) - _HEADER.size} bytes of counts, {length} announced"
        )
    counts: dict[int, int] = {}
    buckets = bucket_indices([_last(highest)])[0] + 1
    index = 0
    for number in _numbers(payload[_HEADER.size :]):
        if number > 0:
            counts[index] = number
        index += max(1, -number)
        if index > buckets:
            raise ValueError(f"damaged histogram: counts beyond the values up to {highest}")
    histogram = Histogram(counts)
    if histogram.counts.total() > _LARGEST:
        raise ValueError("damaged histogram: over 2**63 - 1 counts")
    return histogram


def _last(value: int) -> int:
    """Up to where a range that holds this value has buckets: they come by powers of two."""
    return (1 << max(11, value.bit_length())) - 1


def _unpacked(text: str) -> bytes:
    """The header and the counts."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ValueError("no encoded histogram: it is not base64") from error
    if len(data) < _ENVELOPE.size:
        raise ValueError("no encoded histogram: it is too short")
    cookie, length = _ENVELOPE.unpack_from(data)
    stream = data[_ENVELOPE.size :]
    if cookie != _COMPRESSED:
        raise ValueError(f"no histogram in the V2 format: marked {cookie:08x}")
    if length != len(stream):
        raise ValueError(f"damaged histogram: {len(stream)} bytes, {length} announced")
    unzip = zlib.decompressobj()
    try:
        payload = unzip.decompress(stream, _LARGEST_PAYLOAD + 1)
    except zlib.error as error:
        raise ValueError("damaged histogram: the compressed part is broken") from error
    if len(payload) > _LARGEST_PAYLOAD:
        raise ValueError(f"damaged histogram: over {_LARGEST_PAYLOAD} bytes of counts")
    if not unzip.eof or unzip.unused_data:
        raise ValueError("damaged histogram: the compressed part has no end or does not end there")
    return payload


def _put(number: int, into: bytearray) -> None:
    rest = (number << 1) ^ (number >> 63)
    for _ in range(8):
        if rest < 0x80:
            break
        into.append(rest & 0x7F | 0x80)
        rest >>= 7
    into.append(rest)


def _numbers(data: bytes) -> Iterator[int]:
    zigzag = shift = 0
    for byte in data:
        if byte & 0x80 and shift < 56:
            zigzag |= (byte & 0x7F) << shift
            shift += 7
        else:
            zigzag |= byte << shift
            yield (zigzag >> 1) ^ -(zigzag & 1)
            zigzag = shift = 0
    if shift:
        raise ValueError("damaged histogram: the last count is incomplete")

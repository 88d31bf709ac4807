"""Encoded histograms against HdrHistogram's Python implementation and against damage."""

from __future__ import annotations

import base64
import struct
import tracemalloc
import zlib
from typing import Any

import pytest
from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]  # ships no types
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from loadgen.hdr import decode, encode
from loadgen.histogram import Histogram, bucket_indices

from .reference import (
    PERCENTS,
    Recordings,
    counted,
    counts_of,
    heavy_tailed,
    recordings,
    reference,
)

# How fast examples are made says nothing about the code.
quiet = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

LARGEST = 2**63 - 1


def unpacked(text: str) -> bytes:
    """Header and counts of an encoded histogram."""
    return zlib.decompress(base64.b64decode(text)[8:])


def packed(payload: bytes, *, cookie: int = 0x1C849314, more: int = 0, tail: bytes = b"") -> str:
    """Header and counts as text; ``more`` is added to the length that it announces."""
    stream = zlib.compress(payload) + tail
    return base64.b64encode(struct.pack(">II", cookie, len(stream) + more) + stream).decode()


def payload(numbers: bytes, **fields: Any) -> bytes:
    header = {
        "cookie": 0x1C849313,
        "length": len(numbers),
        "offset": 0,
        "digits": 3,
        "lowest": 1,
        "highest": 2047,
        "ratio": 1.0,
    }
    return struct.pack(">IIiIqqd", *{**header, **fields}.values()) + numbers


# The format ------------------------------------------------------------------


def test_the_encoded_form_is_what_the_format_says() -> None:
    # One empty bucket, a count of 2, three empty ones, a count of 1: ZigZag of -1, 2, -3 and 1.
    assert unpacked(encode(Histogram({1: 2, 5: 1}))) == bytes.fromhex(
        "1c849313"  # V2
        "00000004"  # bytes of counts
        "00000000"  # offset
        "00000003"  # significant digits
        "0000000000000001"  # from
        "00000000000007ff"  # to
        "3ff0000000000000"  # 1.0
        "01040502"
    )


@pytest.mark.parametrize(
    ("count", "numbers"),
    [
        (1, "02"),
        (63, "7e"),
        (64, "8001"),
        (2**55 - 1, "feffffffffffff7f"),
        # The ninth byte has eight bits.
        (2**55, "808080808080808001"),
        (2**62, "808080808080808080"),
        (LARGEST, "feffffffffffffffff"),
    ],
)
def test_counts_take_one_to_nine_bytes(count: int, numbers: str) -> None:
    text = encode(Histogram({0: count}))
    assert unpacked(text)[40:] == bytes.fromhex(numbers)
    assert decode(text).counts == {0: count}


@pytest.mark.parametrize(
    ("value", "highest"),
    [
        (0, 2047),
        (2047, 2047),
        (2048, 4095),
        (4095, 4095),
        (10**9, 2**30 - 1),
        (LARGEST, LARGEST),
    ],
)
def test_the_range_is_the_least_of_a_power_of_two(value: int, highest: int) -> None:
    histogram = counted([(value, 1)])
    assert struct.unpack_from(">q", unpacked(encode(histogram)), 24) == (highest,)
    assert decode(encode(histogram)).counts == histogram.counts


def test_an_empty_histogram_encodes_as_one_empty_bucket() -> None:
    text = encode(Histogram())
    assert unpacked(text)[40:] == b"\x01"
    assert not decode(text)
    assert HdrHistogram.decode(text).get_total_count() == 0


def test_the_text_is_one_field_of_a_line() -> None:
    text = encode(counted(heavy_tailed(10_000)))
    assert text.startswith("HISTFAAA")
    assert not set(text) & set(' \n,"')


@pytest.mark.parametrize(
    "counts",
    [
        {-1: 1},
        {bucket_indices([LARGEST])[0] + 1: 1},
        {10**30: 1},
        {5: -1},
        {5: LARGEST + 1},
        {5: LARGEST, 6: 1},
    ],
)
def test_what_the_format_cannot_hold_is_not_encoded(counts: dict[int, int]) -> None:
    with pytest.raises(ValueError, match="can be encoded, and no others"):
        encode(Histogram(counts))


# The reference ---------------------------------------------------------------


@settings(quiet, max_examples=50)
@given(recordings, st.lists(st.floats(0, 100), max_size=3))
@example([(0, 1)], [])
@example([(10**13, 1)], [])
def test_the_reference_reads_what_encode_writes(
    recordings: Recordings, percents: list[float]
) -> None:
    histogram = counted(recordings)
    other = HdrHistogram.decode(encode(histogram))
    assert counts_of(other) == histogram.counts
    assert other.get_total_count() == len(histogram)
    assert (other.get_min_value(), other.get_max_value()) == (histogram.min, histogram.max)
    for percent in [0, 50, 99, 99.9, 100, *percents]:
        assert other.get_value_at_percentile(percent) == histogram.percentile(percent)


@settings(quiet, max_examples=50)
@given(recordings)
@example([])
@example([(0, 1)])
@example([(10**13, 1)])
def test_decode_reads_what_the_reference_writes(recordings: Recordings) -> None:
    text = reference(recordings).encode().decode()
    assert decode(text).counts == counted(recordings).counts


@settings(quiet, max_examples=50)
@given(recordings)
def test_encode_writes_what_the_reference_writes(recordings: Recordings) -> None:
    theirs = reference(recordings).encode().decode()
    assert unpacked(encode(counted(recordings))) == unpacked(theirs)


@pytest.mark.parametrize("size", [1, 10, 1000, 50_000])
def test_a_heavy_tail_goes_both_ways(size: int) -> None:
    histogram, other = counted(heavy_tailed(size)), reference(heavy_tailed(size))
    assert decode(other.encode().decode()).counts == histogram.counts
    read = HdrHistogram.decode(encode(histogram))
    assert read.equals(other)
    assert [read.get_value_at_percentile(each) for each in PERCENTS] == histogram.percentiles(
        PERCENTS
    )


@pytest.mark.parametrize("highest", [2, 5000, 3_600_000_000_000, LARGEST])
def test_decode_takes_any_range_of_the_reference(highest: int) -> None:
    other = HdrHistogram(1, highest, 3)
    last = other.get_value_from_index(other.counts_len - 1)
    assert other.record_value(last)
    assert decode(other.encode().decode()).counts == counted([(last, 1)]).counts


# Merging ---------------------------------------------------------------------


@quiet
@given(st.lists(recordings, min_size=1, max_size=5))
def test_merging_parts_gives_the_histogram_of_all(parts: list[Recordings]) -> None:
    directly, through_text = Histogram(), Histogram()
    for part in parts:
        directly.merge(counted(part).counts)
        through_text.merge(decode(encode(counted(part))).counts)
    everything = counted([recording for part in parts for recording in part])
    assert directly.counts == everything.counts
    assert through_text.counts == everything.counts
    assert encode(through_text) == encode(everything)


@settings(quiet, max_examples=20)
@given(st.lists(recordings, min_size=1, max_size=4))
def test_the_reference_merges_parts_to_the_same(parts: list[Recordings]) -> None:
    merged = HdrHistogram(1, LARGEST, 3)
    for part in parts:
        merged.decode_and_add(encode(counted(part)))
    everything = counted([recording for part in parts for recording in part])
    assert counts_of(merged) == everything.counts


# Damage ----------------------------------------------------------------------

SOUND = encode(counted(heavy_tailed(50)))
NUMBERS = b"\x01\x04\x05\x02"


def test_the_parts_that_the_tests_below_break_are_sound() -> None:
    assert decode(packed(payload(NUMBERS))).counts == {1: 2, 5: 1}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "too short"),
        ("HISTFA==", "too short"),
        ("HISTFAAA", "too short"),
        ("%", "not base64"),
        ("äöü", "not base64"),
        (SOUND[:-1], "not base64"),
        (SOUND + "\n", "not base64"),
        (SOUND[:40], "22 bytes, .* announced"),
        (packed(payload(NUMBERS), cookie=0x1C849302), "V2 format: marked 1c849302"),
        (packed(payload(NUMBERS), more=1), "bytes, .* announced"),
        (packed(payload(NUMBERS), more=-1), "bytes, .* announced"),
        (packed(payload(NUMBERS), tail=b"!"), "does not end there"),
        (packed(payload(NUMBERS)[:39]), "header is incomplete"),
        (packed(b""), "header is incomplete"),
        (packed(payload(NUMBERS, cookie=0x1C849301)), "V2 format: counts marked 1c849301"),
        (packed(payload(NUMBERS, length=3)), "4 bytes of counts, 3 announced"),
        (packed(payload(NUMBERS, length=2**32 - 1)), "4 bytes of counts, 4294967295 announced"),
        (packed(payload(NUMBERS, offset=-1)), "offset -1"),
        (packed(payload(NUMBERS, digits=2)), "2 significant digits from 1 on"),
        (packed(payload(NUMBERS, lowest=1000)), "3 significant digits from 1000 on"),
        (packed(payload(NUMBERS, ratio=0.5)), "ratio 0.5"),
        (packed(payload(NUMBERS, ratio=float("nan"))), "ratio nan"),
        (packed(payload(NUMBERS, highest=1)), "values up to 1"),
        (packed(payload(NUMBERS, highest=-(2**63))), "values up to -9223372036854775808"),
        (packed(payload(b"\x02\x80")), "last count is incomplete"),
        (packed(payload(b"\xff" * 8)), "last count is incomplete"),
        (packed(payload(b"\x02" * 2049)), "beyond the values up to 2047"),
        # 2,048 empty buckets and one count; then 2**63 empty buckets.
        (packed(payload(b"\xff\x1f\x02")), "beyond the values up to 2047"),
        (packed(payload(b"\xff" * 9)), "beyond the values up to 2047"),
        (packed(payload(b"\xfe" + b"\xff" * 8 + b"\x02")), r"over 2\*\*63 - 1 counts"),
        (packed(payload(b"\x02" * 600_000, highest=LARGEST)), "bytes of counts"),
        (base64.b64encode(struct.pack(">II", 0x1C849314, 0)).decode(), "has no end"),
        (base64.b64encode(struct.pack(">II", 0x1C849314, 4) + b"none").decode(), "is broken"),
    ],
)
def test_damage_is_named(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as refusal:
        decode(text)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 150


def test_an_array_filled_to_its_end_is_no_damage() -> None:
    assert decode(packed(payload(b"\x02" * 2048))).counts == dict.fromkeys(range(2048), 1)


def reading(text: str) -> Histogram | None:
    """The histogram, or None where it is refused as it should be."""
    try:
        return decode(text)
    except ValueError:
        return None


@pytest.mark.parametrize("end", range(0, len(SOUND), 4))
def test_what_is_cut_short_is_refused(end: int) -> None:
    assert reading(SOUND[:end]) is None


@settings(quiet, max_examples=500)
@given(st.integers(0, len(SOUND) - 1), st.characters(codec="ascii"))
def test_another_character_is_noticed_or_harmless(where: int, other: str) -> None:
    histogram = reading(SOUND[:where] + other + SOUND[where + 1 :])
    assert histogram is None or histogram.counts == decode(SOUND).counts


@quiet
@given(st.text())
def test_any_text_is_refused(text: str) -> None:
    assert reading(text) is None


@settings(quiet, max_examples=500)
@given(st.binary(max_size=100), st.integers(-(2**63), LARGEST))
def test_any_counts_are_read_exactly_or_refused(numbers: bytes, highest: int) -> None:
    histogram = reading(packed(payload(numbers, highest=highest)))
    if histogram is not None:
        assert decode(encode(histogram)).counts == histogram.counts
        assert len(histogram) <= LARGEST


@settings(quiet, max_examples=500)
@given(st.binary(max_size=200))
def test_any_payload_is_read_or_refused(data: bytes) -> None:
    reading(packed(data))


@pytest.mark.parametrize(
    "text",
    [
        packed(bytes(100_000_000)),
        packed(payload(bytes(100_000_000), highest=LARGEST)),
        packed(payload(b"\xff" * 9, length=2**32 - 1, highest=LARGEST)),
    ],
)
def test_the_claims_of_a_text_cost_no_memory(text: str) -> None:
    tracemalloc.start()
    try:
        assert reading(text) is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(text) + 2_000_000

"""What people type: durations, counts, targets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbnet.notation import (
    Target,
    format_duration,
    parse_count,
    parse_duration,
    parse_place,
    parse_size,
    parse_target,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250us", 0.00025),
        ("500ms", 0.5),
        ("30s", 30.0),
        ("1m30s", 90.0),
        ("1h", 3600.0),
        ("1h1m1s1ms1us", 3661.001001),
        ("2.5", 2.5),
        ("0.1s", 0.1),
        ("0", 0.0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "5x", "s", "-1s", "+1", "1 s", "1m30", "1,5s", ".5s", "1e3", "\u0663s", "5s\n", "nan"],
)
def test_texts_that_are_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration: expected one like 250us"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.0000000004, "0 s"),
        (0.00000005, "50.0 ns"),
        (0.0001234, "123 us"),
        (0.00098765, "988 us"),
        (0.0009996, "1.00 ms"),
        (0.05, "50.0 ms"),
        (0.09996, "100 ms"),
        (0.9996, "1.00 s"),
        (9.996, "10.0 s"),
        (30, "30.0 s"),
        (3600, "3600 s"),
    ],
)
def test_durations_are_shown_with_three_digits(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.floats(1e-8, 1e3))
def test_a_shown_duration_is_near_and_can_be_read_again(seconds: float) -> None:
    number, unit = format_duration(seconds).split()
    assert len(number.replace(".", "").lstrip("0")) in (3, 4)
    assert float(number) * {"s": 1, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}[unit] == pytest.approx(
        seconds, rel=6e-3
    )


@pytest.mark.parametrize(
    ("text", "count"), [("5000", 5000), ("5k", 5000), ("1.5M", 1_500_000), ("0", 0), ("2.0", 2)]
)
def test_counts(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize(
    "text", ["", "k", "1.5", "-1", "5K", "1_000", "5 k", "0.0001k", "9" * 5000, "\u0663"]
)
def test_texts_that_are_no_counts(text: str) -> None:
    with pytest.raises(ValueError, match="is no count: expected one like 5000"):
        parse_count(text)


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("64", 64), ("4KiB", 4096), ("2MiB", 2 << 20), ("1GiB", 1 << 30)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "KiB", "4kb", "4KB", "1.5MiB", "-1", "4 KiB", "\u0663"])
def test_texts_that_are_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="is no size: expected one like 64, 4KiB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("127.0.0.1:6789", Target("127.0.0.1", 6789)),
        ("localhost:1", Target("localhost", 1)),
        ("[::1]:65535", Target("::1", 65535)),
    ],
)
def test_targets(text: str, target: Target) -> None:
    assert parse_target(text) == target
    assert str(target) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost",
        ":6789",
        "localhost:",
        "::1:80",
        "h:0",
        "h:65536",
        "h:+80",
        "h:x",
        "[]:1",
        "a b:1",
        "a\nb:1",
    ],
)
def test_texts_that_are_no_targets(text: str) -> None:
    with pytest.raises(ValueError, match="is no target: expected HOST:PORT"):
        parse_target(text)


# Places to serve at.


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("127.0.0.1:9100", Target("127.0.0.1", 9100)),
        ("localhost:0", Target("localhost", 0)),
        ("[::1]:0", Target("::1", 0)),
        ("*:9100", Target("*", 9100)),
    ],
)
def test_a_place_is_a_host_and_a_port_of_which_0_is_any(text: str, place: Target) -> None:
    assert parse_place(text) == place


@pytest.mark.parametrize("text", ["", "0", ":0", "9100", "host:", "::1:0", "a b:0", "host:65536"])
def test_anything_else_is_no_place(text: str) -> None:
    with pytest.raises(ValueError, match="is no place to serve: expected HOST:PORT or"):
        parse_place(text)

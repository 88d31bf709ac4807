"""What is sent, and what is expected back."""

from __future__ import annotations

import itertools
import math
import random
import statistics
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen import traffic
from loadgen.traffic import (
    POOL,
    POOL_BYTES,
    SIZED_POOL,
    Message,
    Pool,
    Sizes,
    Traffic,
    TrafficError,
    make_payloads,
    make_unique,
    messages,
    parse_sizes,
    read_payloads,
    reversed_text,
)

quiet = settings(deadline=None, derandomize=True)


@pytest.fixture
def small_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool of 100 different payloads does, since thousands take their time."""
    monkeypatch.setattr(traffic, "POOL", 100)


@pytest.mark.parametrize(
    ("payload", "frame", "expected"),
    [
        (b"abc", b"00003abc", b"00003cba"),
        (b"x", b"00001x", b"00001x"),
        ("é".encode(), b"00002\xc3\xa9", b"00002\xa9\xc3"),  # bytes, not characters
        (b"\r\n", b"00002\r\n", b"00002\n\r"),
        (b"a" + b"b" * 99_998, b"99999a" + b"b" * 99_998, b"99999" + b"b" * 99_998 + b"a"),
    ],
    ids=["letters", "one", "UTF-8", "CR LF", "the longest"],
)
def test_a_request_carries_the_payload_and_its_reply_the_reverse(
    payload: bytes, frame: bytes, expected: bytes
) -> None:
    assert reversed_text(payload) == Message(frame, expected)


# Sizes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sizes", "words"),
    [
        ("512", Sizes(512, 512), "512 bytes"),
        ("4KiB", Sizes(4096, 4096), "4,096 bytes"),
        ("16-1KiB", Sizes(16, 1024), "16 to 1,024 bytes"),
        ("7-7", Sizes(7, 7), "7 bytes"),
        ("1-99999", Sizes(1, 99_999), "1 to 99,999 bytes"),
        (
            "lognormal:1KiB,1.5",
            Sizes(1, 99_999, 1024, 1.5),
            "1,024 bytes (median, lognormal, sigma 1.5)",
        ),
        (
            "lognormal:200,0",
            Sizes(1, 99_999, 200, 0.0),
            "200 bytes (median, lognormal, sigma 0)",
        ),
    ],
)
def test_sizes_as_people_write_them(text: str, sizes: Sizes, words: str) -> None:
    assert parse_sizes(text) == sizes
    assert str(sizes) == words


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "-1",
        "0-5",
        "5-",
        "5-4",
        "1-2-3",
        "1.5",
        "nan",
        "inf",
        "1e9",
        "5kB",
        " 5",
        "9" * 5000,
        "lognormal:",
        "lognormal:200",
        "lognormal:0,1",
        "lognormal:200,",
        "lognormal:200,-1",
        "lognormal:200,nan",
        "lognormal:200,inf",
        "lognormal:200,1e9",
        "lognormal:1-2,1",
        "normal:200,1",
    ],
    ids=lambda text: text[:20],
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no payload size") as caught:
        parse_sizes(text)
    assert str(caught.value) == (
        f"{text!r} is no payload size: expected one like 512, 4KiB, 16-1KiB or lognormal:200,1.5"
    )


@pytest.mark.parametrize("text", ["100000", "1-100000", "lognormal:100000,1"])
def test_more_than_a_frame_holds_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a payload of 100000 bytes: a request holds 1 to 99,999"):
        parse_sizes(text)


def drawn(sizes: Sizes, count: int = 20_000) -> list[int]:
    rng = random.Random(1)
    return [sizes.draw(rng) for _ in range(count)]


def test_a_range_is_evenly_drawn_from_with_both_ends() -> None:
    sizes = drawn(Sizes(10, 19))
    assert set(sizes) == set(range(10, 20))
    # 2,000 of each, with a standard deviation of 42.
    assert all(abs(sizes.count(size) - 2000) < 4 * 42 for size in range(10, 20))


def test_a_lognormal_distribution_has_its_median_and_its_sigma() -> None:
    logarithms = [math.log(size) for size in drawn(parse_sizes("lognormal:2000,0.5"))]
    assert math.exp(statistics.median(logarithms)) == pytest.approx(2000, rel=0.03)
    assert statistics.stdev(logarithms) == pytest.approx(0.5, rel=0.03)


@pytest.mark.parametrize("sigma", ["10", "1000", "1" + "0" * 400])
def test_a_lognormal_distribution_is_cut_to_what_a_frame_holds(sigma: str) -> None:
    sizes = drawn(parse_sizes(f"lognormal:200,{sigma}"), 1000)
    assert (min(sizes), max(sizes)) == (1, 99_999)


# Payloads ----------------------------------------------------------------------------


def test_payloads_of_one_size_are_one() -> None:
    (payload,) = make_payloads(Sizes(50, 50), seed=1)
    assert len(payload) == 50
    assert payload.isalnum()


def test_payloads_of_a_range_are_random_text_of_such_sizes() -> None:
    payloads = make_payloads(Sizes(10, 20), seed=1)
    assert len(payloads) == SIZED_POOL
    assert {len(payload) for payload in payloads} == set(range(10, 21))
    assert all(payload.isalnum() for payload in payloads)
    assert len(set(payloads)) == SIZED_POOL


def test_the_same_seed_gives_the_same_payloads() -> None:
    sizes = Sizes(10, 20)
    assert make_payloads(sizes, seed=5) == make_payloads(sizes, seed=5)
    assert make_payloads(sizes, seed=5) != make_payloads(sizes, seed=6)


def test_long_payloads_are_fewer_so_that_frames_and_replies_fit_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(traffic, "POOL_BYTES", 1_000_000)
    payloads = make_payloads(Sizes(1000, 3000), seed=1)
    assert 1_000_000 - 2 * 3000 < 2 * sum(map(len, payloads)) <= 1_000_000


def test_the_longest_payloads_fit_the_memory() -> None:
    longest = make_payloads(Sizes(99_998, 99_999), seed=1)
    assert POOL_BYTES - 200_000 < 2 * sum(map(len, longest)) <= POOL_BYTES


# Unique payloads ---------------------------------------------------------------------


def unique(payloads: list[bytes], in_flight: int = 1, seed: int = 1) -> list[bytes]:
    return list(make_unique(payloads, seed, in_flight))


@pytest.mark.parametrize(
    ("in_flight", "count"), [(1, POOL), (POOL // 2, POOL), (POOL // 2 + 1, POOL + 2)]
)
def test_unique_payloads_are_twice_as_many_as_can_be_in_flight(in_flight: int, count: int) -> None:
    payloads = unique([b"abcdef"], in_flight)
    assert len(payloads) == len(set(payloads)) == count
    assert all(len(payload) == 6 and payload.endswith(b"def") for payload in payloads)
    assert all(payload.isalnum() for payload in payloads)


def test_numbers_begin_anew_where_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "POOL", 62)  # all the numbers of one digit there are
    payloads = unique([b"x"])
    assert len(payloads) == len(set(payloads)) == 62


@pytest.mark.usefixtures("small_pool")
def test_unique_payloads_keep_their_sizes_and_their_order() -> None:
    payloads = unique([b"abc", b"defgh", b"ij"])
    rests = [payload[2:] for payload in payloads]
    assert rests == list(itertools.islice(itertools.cycle([b"c", b"fgh", b""]), 100))


@pytest.mark.usefixtures("small_pool")
def test_the_same_seed_gives_the_same_numbers() -> None:
    assert unique([b"abcdef"], seed=5) == unique([b"abcdef"], seed=5)
    assert unique([b"abcdef"], seed=5) != unique([b"abcdef"], seed=6)


@pytest.mark.usefixtures("small_pool")
def test_all_payloads_of_a_long_file_are_sent() -> None:
    given = [b"000%d" % number for number in range(250)]
    assert [payload[2:] for payload in unique(given)] == [payload[2:] for payload in given]


@pytest.mark.usefixtures("small_pool")
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_no_two_in_flight_are_the_same_whoever_sends_them(workers: int) -> None:
    in_flight = 60 // workers * workers
    built = Traffic(payload=b"abcdef", unique=True).build(1, in_flight)
    # Workers that send equally fast: each has its part in flight.
    pools = [Pool(built, worker * len(built) // workers) for worker in range(workers)]
    taken = [[pool.take() for _ in range(3 * len(built))] for pool in pools]
    window = in_flight // workers
    for start in range(2 * len(built)):
        in_window = [message for row in taken for message in row[start : start + window]]
        assert len(set(in_window)) == in_flight


@pytest.mark.parametrize(("in_flight", "shortest", "width"), [(1, b"ab", 3), (200_000, b"abc", 4)])
def test_a_payload_without_room_for_a_number_is_refused(
    in_flight: int, shortest: bytes, width: int
) -> None:
    with pytest.raises(TrafficError) as caught:
        make_unique([b"long enough", shortest], 1, in_flight)
    assert str(caught.value) == (
        f"--payload-unique puts a number of {width} bytes into each payload, and the shortest "
        f"has {len(shortest)}"
    )


def test_fewer_will_do_where_the_usual_number_takes_too_much_memory() -> None:
    count = sum(1 for _ in make_unique([b"x" * 10_000], 1, in_flight=5000))
    assert 10_000 <= count < POOL
    assert count * 2 * 10_000 <= POOL_BYTES


@quiet
@given(st.integers(3, 99_999), st.integers(1, 10_000))
def test_the_number_in_flight_that_is_named_works_and_one_more_does_not(
    size: int, in_flight: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traffic, "POOL_BYTES", 1 << 20)
        try:
            make_unique([b"x" * size], 1, in_flight)
        except TrafficError as error:
            message = str(error)
        else:
            return
        most = int(message.rpartition("at most ")[2].removesuffix(" in flight").replace(",", ""))
        assert message == (
            f"--payload-unique with {in_flight:,} requests in flight of up to {size:,} bytes "
            f"takes more than 1 MiB: use shorter payloads or at most {most:,} in flight"
        )
        assert most < in_flight
        assert len(set(make_unique([b"x" * size], 1, most))) >= 2 * most
        with pytest.raises(TrafficError):
            make_unique([b"x" * size], 1, most + 1)


def test_a_pool_takes_no_more_memory_than_is_counted_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "POOL_BYTES", 1 << 20)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        built = Traffic(payload=b"x" * 50, unique=True).build(1, 100)
        pool = Pool(built)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert pool.messages
    assert (1 << 20) * 0.8 < taken < (1 << 20) * 1.1


# Payloads of a file ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "payloads"),
    [
        (b"abc", (b"abc",)),
        (b"abc\nde\n", (b"abc", b"de")),
        (b"abc\r\nde\r\n", (b"abc", b"de")),
        (b"abc\n\nde\n\r\n\n", (b"abc", b"de")),
        (b"a\rb\n c \n", (b"a\rb", b" c ")),
        (b"a\r\r\n", (b"a\r",)),
        (b"\xff\x00\n", (b"\xff\x00",)),
        (b"x" * 99_999 + b"\r\n", (b"x" * 99_999,)),
    ],
    ids=range(8),
)
def test_each_line_that_is_not_empty_is_a_payload(text: bytes, payloads: tuple[bytes, ...]) -> None:
    assert read_payloads(text) == payloads


@pytest.mark.parametrize("text", [b"", b"\n", b"\r\n\r\n"])
def test_a_file_without_a_payload_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"^there is no payload in it$"):
        read_payloads(text)


def test_a_line_that_is_too_long_is_told_by_its_number() -> None:
    with pytest.raises(ValueError, match="line 3 has") as caught:
        read_payloads(b"abc\n\n" + b"x" * 100_000)
    assert str(caught.value) == "line 3 has 100,000 bytes: a request holds 1 to 99,999"


def test_frames_hold_payloads_with_any_bytes() -> None:
    assert read_payloads(b"00003a\nb00002\r\n", frames=True) == (b"a\nb", b"\r\n")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "there is no payload in it"),
        (b"\r\n", "there is no payload in it"),
        (b"abc\n", "no frames: expected a digit of a length, got b'a' at byte 0"),
        (b"00003abcx", "no frames: expected a digit of a length, got b'x' at byte 8"),
        (b"00003ab", "no frames: the stream ended 7 bytes into a frame at byte 7"),
        (b"00003abc000", "no frames: the stream ended 3 bytes into a frame at byte 11"),
        (b"00000", "no frames: a length of 0 is outside of 1 to 99999 at byte 0"),
    ],
)
def test_what_is_no_row_of_frames_is_refused(text: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=r"no (frames|payload)") as caught:
        read_payloads(text, frames=True)
    assert str(caught.value) == says


# What has to come back ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("expect", "reply"),
    [("reverse", b"00003cba"), ("echo", b"00003abc"), ("none", b"")],
)
def test_a_reply_that_is_known_by_name(expect: str, reply: bytes) -> None:
    assert messages([b"abc"], expect) == (Message(b"00003abc", reply),)


@pytest.fixture
def replies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of a user, in the current directory."""
    (tmp_path / "replies_of_a_user.py").write_text(
        "upper = bytes.upper\n"
        "def empty(payload): return b''\n"
        "def nothing(payload): pass\n"
        "def text(payload): return payload.decode()\n"
        "def array(payload): return bytearray(payload)\n"
        "def endless(payload): return payload * 100_000\n"
        "def fails(payload): raise RuntimeError('two\\nlines')\n"
        "number = 5\n"
    )
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("replies")
def test_a_reply_that_a_function_tells() -> None:
    built = messages([b"abc", b"d"], "replies_of_a_user:upper")
    assert built == (Message(b"00003abc", b"00003ABC"), Message(b"00001d", b"00001D"))
    assert messages([b"abc"], "replies_of_a_user:empty") == (Message(b"00003abc", b"00000"),)


@pytest.mark.usefixtures("replies")
@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("fails", "RuntimeError: two"),
        ("nothing", "TypeError: a payload is bytes, not NoneType"),
        ("text", "TypeError: a payload is bytes, not str"),
        ("array", "TypeError: a payload is bytes, not bytearray"),
        ("endless", "ValueError: a payload of 2600000 bytes is over the 99999 that a frame holds"),
    ],
)
def test_a_function_that_tells_no_reply_is_refused(function: str, reason: str) -> None:
    payload = b"abcdefghijklmnopqrstuvwxyz"
    with pytest.raises(TrafficError) as caught:
        messages([payload], f"replies_of_a_user:{function}")
    assert str(caught.value) == (
        f"--expect: no reply to b'abcdefghijklmnopqrst' can be told: {reason}"
    )


@pytest.mark.usefixtures("replies")
@pytest.mark.parametrize(
    ("expect", "says"),
    [
        ("revers", "'revers': expected module:function, as in mymodule:handle"),
        ("", "'': expected module:function, as in mymodule:handle"),
        ("replies_of_a_user:number", "'replies_of_a_user:number': number is not callable"),
        ("replies_of_a_user:no", "'replies_of_a_user:no': replies_of_a_user has no no"),
    ],
)
def test_an_expectation_that_is_none_is_refused(expect: str, says: str) -> None:
    with pytest.raises(TrafficError) as caught:
        messages([b"abc"], expect)
    assert str(caught.value) == f"--expect: expectation {says}"


# All together ------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"x", b"x" * 99_999])
def test_the_shortest_and_the_longest_payload_are_taken(payload: bytes) -> None:
    assert Traffic(payload=payload).build(1, 1) == (reversed_text(payload),)


@pytest.mark.parametrize("size", [0, 100_000])
def test_a_payload_that_no_request_holds_is_refused(size: int) -> None:
    with pytest.raises(TrafficError) as caught:
        Traffic(payload=b"x" * size)
    assert str(caught.value) == f"a payload of {size} bytes: a request holds 1 to 99,999"


@pytest.mark.usefixtures("small_pool")
@pytest.mark.parametrize(
    ("given", "count", "words"),
    [
        (Traffic(), 1, "3 bytes"),
        (Traffic(payload=b"x" * 2000), 1, "2,000 bytes"),
        (Traffic(sizes=Sizes(8, 9)), SIZED_POOL, "random text of 8 to 9 bytes"),
        (Traffic(payloads=(b"abc", b"de")), 2, "2 payloads of a file"),
        (Traffic(payloads=(b"abc",)), 1, "1 payload of a file"),
        (Traffic(unique=True), 100, "3 bytes"),
        (Traffic(sizes=Sizes(8, 9), unique=True), SIZED_POOL, "random text of 8 to 9 bytes"),
        (Traffic(payloads=(b"abc", b"def"), unique=True), 100, "2 payloads of a file"),
    ],
)
def test_traffic_of_all_kinds(given: Traffic, count: int, words: str) -> None:
    built = given.build(seed=1, in_flight=10)
    assert len(built) == count
    assert given.describe() == words


PAYLOADS = st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=10)


@quiet
@given(PAYLOADS, st.data())
def test_a_pool_gives_all_messages_in_turn_and_knows_what_they_weigh(
    payloads: list[bytes], data: st.DataObject
) -> None:
    built = messages(payloads, data.draw(st.sampled_from(["reverse", "none"])))
    start = data.draw(st.integers(0, len(built) - 1))
    count = data.draw(st.integers(0, 35))
    pool = Pool(built, start)
    taken = [pool.take() for _ in range(count)]
    assert taken == list(itertools.islice(itertools.cycle(built), start, start + count))
    assert pool.sent_bytes(count) == sum(len(message.frame) for message in taken)
    assert pool.received_bytes(count) == sum(len(message.expected or b"") for message in taken)


def test_a_pool_knows_its_longest_reply() -> None:
    pool = Pool(messages([b"abc", b"abcdef", b"a"], "echo"))
    assert (pool.longest_reply, pool.any_reply) == (11, False)
    pool = Pool(messages([b"abc"], "none"))
    assert (pool.longest_reply, pool.any_reply) == (0, True)


def test_the_lower_end_of_a_lognormal_distribution_leaves_room_for_a_number() -> None:
    sizes = parse_sizes("lognormal:20,3")
    plain = Traffic(sizes=sizes).build(seed=1, in_flight=10)
    assert min(len(message.frame) for message in plain) == 5 + 1
    numbered = Traffic(sizes=sizes, unique=True).build(seed=1, in_flight=10)
    assert min(len(message.frame) for message in numbered) == 5 + 3
    assert len(set(numbered)) == len(numbered)

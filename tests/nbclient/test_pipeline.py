from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbclient.errors import LocalProtocolError
from nbclient.exchange import WINDOW
from nbclient.pipeline import AT_ONCE, Pipeline, take_at_once
from nbnet.framing import encode_frame

PEER = "127.0.0.1:6789"
LARGEST = b"x" * 99_999


def answered(pipeline: Pipeline, count: int) -> None:
    assert pipeline.receive(b"00000" * count) == [b""] * count


def test_more_is_wanted_as_long_as_payloads_come_at_once() -> None:
    pipeline = Pipeline(PEER, window=100)
    wanted = []
    for _ in range(9):
        wanted.append(pipeline.wanted)
        pipeline.add([b"a"] * pipeline.wanted, 0.0)
        assert pipeline.wanted == 0  # before those are sent
        pipeline.take()
        answered(pipeline, wanted[-1])
    assert wanted == [1, 2, 4, 8, 16, 32, 64, 100, 100]


def test_payloads_that_come_slowly_are_wanted_one_by_one() -> None:
    pipeline = Pipeline(PEER, window=100)
    for seconds, wanted in ((0.0, 2), (0.0, 4), (0.002, 2), (0.01, 1), (0.5, 1), (0.0, 2)):
        pipeline.add([b"a"] * pipeline.wanted, seconds)
        pipeline.take()
        answered(pipeline, pipeline.outstanding)
        assert pipeline.wanted == wanted
        assert pipeline.patience == seconds


def test_at_once_is_within_a_millisecond() -> None:
    for seconds, wanted in ((AT_ONCE, 2), (1.01 * AT_ONCE, 1)):
        pipeline = Pipeline(PEER, window=100)
        pipeline.add([b"a"], seconds)
        pipeline.take()
        assert pipeline.wanted == wanted


def test_those_that_fit_go_and_count_together_and_others_one_by_one() -> None:
    half = bytes(WINDOW // 2 - 5)
    for payloads, left in (([b"a", b"b"], 12), ([half, half], WINDOW), ([half, half + b"x"], 0)):
        pipeline = Pipeline(PEER, window=100)
        pipeline.add(payloads, 0.0)
        pipeline.take()
        answered(pipeline, 1)
        assert pipeline.in_flight == left


def test_an_error_names_the_server() -> None:
    pipeline = Pipeline(PEER, window=100)
    pipeline.receive(b"")
    assert pipeline.failure(maybe_executed=False).peer == PEER


def test_no_more_are_wanted_than_the_window_has_requests() -> None:
    pipeline = Pipeline(PEER, window=3)
    pipeline.add([b"a"], 0.0)
    pipeline.take()
    assert pipeline.wanted == 2
    pipeline.add([b"a"] * 2, 0.0)
    pipeline.take()
    assert pipeline.wanted == 0
    answered(pipeline, 1)
    assert pipeline.wanted == 1


def test_no_more_are_wanted_than_the_window_has_bytes() -> None:
    payload = bytes(WINDOW // 4 - 5)
    pipeline = Pipeline(PEER, window=100)
    for wanted in (1, 2, 1):
        assert pipeline.wanted == wanted
        pipeline.add([payload] * wanted, 0.0)
        assert len(pipeline.take()) == wanted * WINDOW // 4
    assert (pipeline.wanted, pipeline.in_flight) == (0, WINDOW)
    answered(pipeline, 1)
    assert pipeline.wanted == 1


def test_payloads_longer_than_those_before_are_held_back() -> None:
    pipeline = Pipeline(PEER, window=100)
    pipeline.add([b"a"], 0.0)
    pipeline.take()
    assert pipeline.wanted == 2
    pipeline.add([b"b", LARGEST], 0.0)
    assert pipeline.take() == b"00001b"
    assert (pipeline.wanted, pipeline.idle) == (0, False)
    answered(pipeline, 2)
    assert not pipeline.idle  # the longer one is still to be sent
    assert pipeline.take() == encode_frame(LARGEST)
    assert pipeline.wanted == 0
    answered(pipeline, 1)
    assert pipeline.wanted == 1
    assert pipeline.idle


@pytest.mark.parametrize("payloads", [[b""], [b"a", b""], [LARGEST + b"x"]])
def test_an_unfit_payload_among_others_lets_none_through(payloads: list[bytes]) -> None:
    pipeline = Pipeline(PEER, window=100)
    with pytest.raises(LocalProtocolError):
        pipeline.add(payloads, 1.0)
    assert pipeline.idle
    assert pipeline.take() == b""
    assert (pipeline.wanted, pipeline.patience) == (1, 0.0)


@given(
    st.lists(st.integers(1, 99_999) | st.integers(1, 40), max_size=40),
    st.integers(1, 50),
    st.data(),
)
def test_the_windows_are_kept_whatever_the_sizes(
    sizes: list[int], window: int, data: st.DataObject
) -> None:
    pipeline = Pipeline(PEER, window)
    left = [bytes(size) for size in sizes]
    flying: list[int] = []  # bytes of the frames not answered
    sent = 0
    while True:
        wanted = pipeline.wanted
        if left and wanted:
            seconds = data.draw(st.sampled_from([0.0, 0.0, 0.002, 1.0]))
            pipeline.add(left[:wanted], seconds)
            del left[:wanted]
        taken = len(pipeline.take())
        new = sizes[sent : sent + pipeline.outstanding - len(flying)]
        assert taken == sum(new) + 5 * len(new)
        sent += len(new)
        flying += [size + 5 for size in new]
        assert len(flying) <= window
        assert sum(flying) <= WINDOW or len(flying) == 1
        if not flying:
            break
        count = data.draw(st.integers(1, len(flying)))
        answered(pipeline, count)
        del flying[:count]
    assert sent == len(sizes)
    assert pipeline.idle


# Taking payloads ---------------------------------------------------------------


def ticking(seconds: float) -> Iterator[float]:
    return itertools.count(0.0, seconds)


@pytest.mark.parametrize(
    ("seconds", "count", "ended"),
    [
        pytest.param(0.0, 5, False, id="at once"),
        pytest.param(AT_ONCE / 2, 3, False, id="slowly"),
        pytest.param(AT_ONCE * 2, 1, False, id="one by one"),
    ],
)
def test_payloads_are_taken_as_long_as_they_come_at_once(
    seconds: float, count: int, ended: bool
) -> None:
    payloads = iter([b"%d" % n for n in range(100)])
    batch, over = take_at_once(payloads, 5, ticking(seconds).__next__)
    assert (batch, over) == ([b"%d" % n for n in range(count)], ended)
    assert next(payloads) == b"%d" % count  # none is lost


def test_the_last_payloads_are_fewer() -> None:
    assert take_at_once(iter([b"a", b"b"]), 5, lambda: 0.0) == ([b"a", b"b"], True)
    assert take_at_once(iter([]), 5, lambda: 0.0) == ([], True)

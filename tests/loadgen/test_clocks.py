"""Offsets of clocks from round trips."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.clocks import Offset, Sample, estimate

WAY = st.integers(min_value=0, max_value=10**9)
"""Nanoseconds that a message takes in one direction."""


@given(
    ahead=st.integers(min_value=-(10**15), max_value=10**15),
    trips=st.lists(st.tuples(WAY, WAY), min_size=1, max_size=8),
)
def test_the_true_offset_is_within_the_bounds_whichever_way_is_the_slower(
    ahead: int, trips: list[tuple[int, int]]
) -> None:
    samples, now = [], 1_000
    for there, back in trips:
        samples.append(Sample(now, now + there + ahead, now + there + back))
        now += there + back + 7
    offset = estimate(samples)
    assert abs(offset.ahead - ahead) <= offset.within
    assert offset.within <= min(there + back for there, back in trips) / 2 + 1


def test_the_shortest_round_trip_counts() -> None:
    slow, fast = Sample(0, 900_000, 1_000_000), Sample(2_000_000, 2_000_060, 2_000_100)
    assert estimate([slow, fast]) == Offset(ahead=10, within=50)


def test_a_moment_of_ours_is_told_on_their_clock() -> None:
    assert Offset(ahead=-500, within=3).there(1_000) == 500


def test_clocks_have_drifted_only_if_both_estimates_cannot_be_true() -> None:
    assert not Offset(100, 30).differs(Offset(150, 20))
    assert Offset(100, 30).differs(Offset(151, 20))


@pytest.mark.parametrize(
    ("samples", "words"), [([], "no sample"), ([Sample(10, 5, 3)], "7 ns before it was asked")]
)
def test_what_gives_no_offset_is_an_error(samples: list[Sample], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        estimate(samples)

"""The timer wheel against a plain dictionary."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from nbnet.deadlines import TICK, Deadlines


class Thing:
    def __init__(self) -> None:
        self.tick: int | None = None


def test_nothing_is_due_early_and_nothing_later_than_a_tick() -> None:
    thing, deadlines = Thing(), Deadlines[Thing]()
    deadlines.park(thing, 3.05)
    assert list(deadlines.due(3.05)) == []
    assert 3.05 < deadlines.next_due <= 3.05 + TICK
    assert list(deadlines.due(deadlines.next_due)) == [thing]
    assert deadlines.next_due == math.inf
    assert thing.tick is None


def test_what_is_forgotten_leaves_nothing_behind() -> None:
    things, deadlines = [Thing() for _ in range(100)], Deadlines[Thing]()
    for number, thing in enumerate(things):
        deadlines.park(thing, float(number % 7))
    for thing in things:
        deadlines.forget(thing)
        deadlines.forget(thing)
    assert len(deadlines) == 0
    assert deadlines.next_due == math.inf
    assert not deadlines._ticks
    assert not deadlines._order


def test_parking_and_forgetting_behind_a_timer_that_stays_does_not_pile_up() -> None:
    stays, comes_and_goes, deadlines = Thing(), Thing(), Deadlines[Thing]()
    deadlines.park(stays, 1.0)
    for _ in range(1000):
        deadlines.park(comes_and_goes, 5.0)
        deadlines.forget(comes_and_goes)
    assert len(deadlines._order) <= 2


def test_many_things_due_at_once_come_one_by_one() -> None:
    things, deadlines = [Thing() for _ in range(20_000)], Deadlines[Thing]()
    for thing in things:
        deadlines.park(thing, 1.0)
    assert set(deadlines.due(2.0)) == set(things)  # in linear time, or the suite would notice


def test_what_is_due_in_one_tick_comes_in_the_same_order_each_time() -> None:
    things, deadlines = [Thing() for _ in range(100)], Deadlines[Thing]()
    for thing in things:
        deadlines.park(thing, 1.0)
    assert list(deadlines.due(2.0)) == things[::-1]


def test_parking_by_a_time_moves_only_towards_the_present() -> None:
    thing, deadlines = Thing(), Deadlines[Thing]()
    deadlines.park_by(thing, 5.0)
    deadlines.park_by(thing, 9.0)
    assert 5.0 < deadlines.next_due <= 5.0 + TICK
    deadlines.park_by(thing, 2.0)
    assert 2.0 < deadlines.next_due <= 2.0 + TICK
    assert len(deadlines) == 1


def test_things_may_be_parked_and_forgotten_while_others_come_due() -> None:
    first, second, third = Thing(), Thing(), Thing()
    deadlines = Deadlines[Thing]()
    for thing in (first, second):
        deadlines.park(thing, 1.0)
    seen = []
    for thing in deadlines.due(2.0):
        seen.append(thing)
        if thing is not third:
            deadlines.forget(second if thing is first else first)
            deadlines.park(third, 1.5)
    assert seen[0] in (first, second)
    assert seen[1:] == [third]
    assert len(deadlines) == 0


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("park"), st.integers(0, 5), st.floats(0, 10)),
            st.tuples(st.just("forget"), st.integers(0, 5), st.just(0.0)),
            st.tuples(st.just("due"), st.just(0), st.floats(0, 10)),
        ),
        max_size=60,
    )
)
def test_it_agrees_with_a_dictionary(actions: list[tuple[str, int, float]]) -> None:
    things, deadlines = [Thing() for _ in range(6)], Deadlines[Thing]()
    model: dict[int, float] = {}
    for action, number, when in actions:
        if action == "park":
            deadlines.park(things[number], when)
            model[number] = when
        elif action == "forget":
            deadlines.forget(things[number])
            model.pop(number, None)
        else:
            due = {things.index(thing) for thing in deadlines.due(when)}
            assert due <= {number for number, at in model.items() if at <= when}
            assert due >= {number for number, at in model.items() if at + TICK + 1e-9 <= when}
            for done in due:
                del model[done]
        assert len(deadlines) == len(model)
        assert deadlines.next_due >= min(model.values(), default=math.inf)

"""The table of states is complete and has no dead ends."""

from __future__ import annotations

from nbnet.pollers import READ, WRITE
from nbnet.states import INTEREST, MOVABLE, READS, TRANSITIONS, Event, State


def reachable(start: State) -> set[State]:
    seen, todo = {start}, [start]
    while todo:
        state = todo.pop()
        new = {after for (before, _), after in TRANSITIONS.items() if before is state} - seen
        seen |= new
        todo += new
    return seen


def test_every_state_is_reached_and_leads_to_the_end() -> None:
    assert reachable(State.INTRODUCING) == set(State)
    assert reachable(State.HANDSHAKING) == set(State) - {State.INTRODUCING}
    assert reachable(State.READING) == set(State) - {State.INTRODUCING, State.HANDSHAKING}
    assert all(State.CLOSED in reachable(state) for state in State)


def test_nothing_leaves_the_end() -> None:
    assert not [before for before, _ in TRANSITIONS if before is State.CLOSED]


def test_every_open_state_can_lose_its_connection() -> None:
    for state in set(State) - {State.CLOSED}:
        assert TRANSITIONS[state, Event.LOST] is State.CLOSED


def test_every_event_is_used_and_every_state_has_an_interest() -> None:
    assert {event for _, event in TRANSITIONS} == set(Event)
    assert set(INTEREST) == set(State)
    # Where nothing is waited for, somebody else has the next word.
    assert {state for state in State if not INTEREST[state]} == {State.WORKING, State.CLOSED}


def test_output_is_waited_for_where_some_waits_and_nowhere_else() -> None:
    """A poller tells at once, again and again, that an idle connection can be written."""
    waits = {State.DELIVERING, State.WRITING, State.PAUSED, State.FLUSHING}
    assert {state for state in State if INTEREST[state] & WRITE} == waits


def test_what_is_read_is_asked_for() -> None:
    asked = {state for state in State if INTEREST[state] & READ}
    # The first two read what is no request; the third will read again in a moment.
    assert asked - {State.INTRODUCING, State.HANDSHAKING, State.BUSY} == READS
    assert asked > READS


def test_every_connection_that_can_move_leaves_its_process_at_once() -> None:
    assert {before for before, event in TRANSITIONS if event is Event.MOVED} == MOVABLE

"""The board that processes share."""

from __future__ import annotations

import os
import time
from dataclasses import fields
from typing import Any

import pytest
from support.counted import distinct
from support.forked import exit_code, in_child

from nbnet.board import Board
from nbnet.counters import GAUGES, Counters

TIMEOUT = 20.0
"""Seconds that anything here may take."""


def test_what_is_published_is_read() -> None:
    board = Board(3)
    counters = distinct()
    board.publish(2, counters)
    assert board.totals() == counters
    assert board.rows() == {2: counters}


def test_an_empty_board_has_nothing_to_tell() -> None:
    board = Board(2)
    assert board.totals() == Counters()
    assert board.rows() == {}


def test_workers_are_added_up() -> None:
    board = Board(3)
    times = [2 * number for number in distinct().handler_times]
    board.publish(1, distinct())
    board.publish(2, distinct())
    totals = board.totals()
    assert totals.requests == 2 * distinct().requests
    assert totals.handler_times == times
    assert totals.connections == 2 * distinct().connections


def test_totals_stay_when_a_worker_ends_and_sizes_go() -> None:
    board = Board(3)
    board.publish(1, distinct())
    board.publish(2, distinct())
    before = board.totals()
    board.retire(1)
    after = board.totals()
    for each in fields(Counters):
        value = getattr(before, each.name)
        expected = value // 2 if each.name in GAUGES else value
        assert getattr(after, each.name) == expected, each.name
    assert list(board.rows()) == [2]


def test_a_row_serves_one_worker_after_the_other() -> None:
    board = Board(2)
    for _ in range(3):
        board.publish(1, Counters(requests=10))
        board.publish(1, Counters(requests=11, connections=5))
        assert board.rows()[1].requests == 11
        board.retire(1)
    assert board.totals() == Counters(requests=33)


def test_a_worker_that_published_nothing_can_end() -> None:
    board = Board(2)
    board.retire(1)
    assert board.totals() == Counters()


@pytest.mark.parametrize("row", [-1, 0, 2])
def test_only_rows_of_workers_are_written(row: int) -> None:
    board = Board(2)
    with pytest.raises(ValueError, match=f"row {row} is not one of 1 to 1"):
        board.publish(row, Counters())
    with pytest.raises(ValueError, match=f"row {row} is not one of 1 to 1"):
        board.retire(row)


def test_a_board_has_room_for_a_worker() -> None:
    with pytest.raises(ValueError, match="rows is 1, expected at least 2"):
        Board(1)


def test_a_forked_process_publishes_and_this_one_reads() -> None:
    board = Board(2)

    def work() -> None:
        board.publish(1, distinct())

    assert exit_code(in_child(work)) == 0
    assert board.totals() == distinct()
    board.retire(1)
    assert board.totals().requests == distinct().requests


def test_a_forked_process_sees_the_fleet() -> None:
    board = Board(2)
    assert board.fleet.workers == 1
    go, gone = os.pipe()

    def work() -> None:
        os.read(go, 1)
        fleet = board.fleet
        seen = (fleet.workers, fleet.restarts, fleet.reloads, fleet.failed_reloads)
        assert seen == (4, 3, 2, 1)

    pid = in_child(work)
    fleet = board.fleet
    fleet.workers, fleet.restarts, fleet.reloads, fleet.failed_reloads = 4, 3, 2, 1
    os.write(gone, b".")
    assert exit_code(pid) == 0
    os.close(go)
    os.close(gone)


def test_a_reader_in_another_process_never_sees_totals_fall() -> None:
    """While workers come and go as fast as they can."""
    board, rounds = Board(2), 3000

    def read() -> None:
        last = 0
        deadline = time.monotonic() + TIMEOUT
        while last < rounds and time.monotonic() < deadline:
            totals = board.totals()
            # The first and the last number of what a worker publishes.
            assert last <= totals.accepted <= rounds
            last = totals.accepted
        assert last == rounds

    pid = in_child(read)
    for _ in range(rounds):
        board.publish(1, Counters(accepted=1))
        board.retire(1)
    assert exit_code(pid) == 0


def test_a_reader_waits_until_a_row_has_been_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(2)
    board.publish(1, Counters(requests=7))
    page = board.fleet.page
    page[0] += 1  # the supervisor is about to move it
    waits = []

    def go_on(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            page[0] -= 1
            board.retire(1)

    monkeypatch.setattr(time, "sleep", go_on)
    assert board.rows() == {}
    assert len(waits) == 3
    assert board.totals().requests == 7


def test_what_was_moved_during_a_reading_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(2)
    board.publish(1, Counters(requests=7))
    page = board._page
    readings = []

    class Torn:
        """A page whose first reading sees row 0 before a move and row 1 after it."""

        def tolist(self) -> list[int]:
            readings.append(self)
            middle = board._start(1)
            before = page[:middle].tolist()
            if len(readings) == 1:
                board.retire(1)
            return before + page[middle:].tolist()

        def __getitem__(self, key: Any) -> Any:
            return page[key]

        def __setitem__(self, key: Any, value: int) -> None:
            page[key] = value

    monkeypatch.setattr(board, "_page", Torn())
    assert board.totals().requests == 7
    assert len(readings) == 2


def test_a_reader_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(2)
    board.publish(1, Counters(requests=7))
    board.fleet.page[0] += 1  # the supervisor was stopped here
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    assert board.totals().requests == 7
    assert sum(waits) == pytest.approx(0.1)

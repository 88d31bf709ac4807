"""Counters of several processes on one page of memory.

A worker counts in plain integers (``nbnet.counters``) and copies them now and
then into its row of a ``Board``, a page of memory that is shared by fork.
Whoever wants to know adds the rows up. So the hot path pays nothing, and a
worker never waits for a reader.

The rules:

* a row has one writer: the worker that it is for, and once that has ended the
  supervisor, which folds it into row 0. Totals never go down, though workers come
  and go;
* figures are as old as the worker's last word, and a worker that was killed
  takes with it what it counted since.

Nothing is locked, because a reader that is stopped must not stop the writers.
The board relies on this instead:

* a number is 64 bits wide and aligned, and CPython copies it in one piece, so that
  it is read as it was or as it is. Numbers of one row may still be from two words
  of its worker;
* folding a row moves many numbers at once. The version is odd meanwhile, and a
  reader that finds it odd, or another one afterwards, reads again;
* that needs stores to be seen in the order in which they were made. x86-64
  promises it and ARM does not; Python has no barrier to ask for it. The worst that
  can come of it there is one reading that has a worker's numbers twice or not at
  all; the next one is right again.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Mapping
from dataclasses import fields
from typing import Final, NamedTuple

from nbnet.counters import GAUGES, Counters


class MetricsUnavailable(ImportError):  # noqa: N818  # it says what is the matter
    """Metrics are asked for, and prometheus-client is not installed."""


_FIELDS: Final = tuple(each.name for each in fields(Counters))


def _pack(counters: Counters) -> list[int]:
    """All numbers in a row."""
    words: list[int] = []
    for name in _FIELDS:
        value = getattr(counters, name)
        words.extend(value if isinstance(value, list) else (value,))
    return words


def _unpack(words: list[int]) -> Counters:
    """The counters that ``_pack`` made these words of."""
    counters = Counters()
    numbers = iter(words)
    for name in _FIELDS:
        value = getattr(counters, name)
        several = isinstance(value, list)
        setattr(counters, name, [next(numbers) for _ in value] if several else next(numbers))
    return counters


_WORDS: Final = len(_pack(Counters()))
"""Numbers in a row."""
_FLEET: Final = ("workers", "restarts", "reloads", "failed_reloads")
_HEAD: Final = 1 + len(_FLEET)
"""Numbers before the rows: the version, then the fleet's."""
_READINGS: Final = 100
"""Readings that may fail before one is taken as it is, ..."""
_REREAD_AFTER: Final = 0.001
"""... so many seconds apart."""


class _Word:
    """An attribute that is a number on the page."""

    def __init__(self, index: int) -> None:
        self._index = index

    def __get__(self, fleet: Fleet, owner: type[Fleet]) -> int:
        return fleet.page[self._index]

    def __set__(self, fleet: Fleet, value: int) -> None:
        fleet.page[self._index] = value


class Fleet:
    """What the supervisor alone knows and writes.

    Attributes:
        workers: processes that serve now; 1 until a supervisor says otherwise,
            as a server without one is its own worker.
        restarts: times that a process was started again because it had died.
        reloads: reloads that went well.
        failed_reloads: reloads after which everything went on as before.
    """

    workers = _Word(1)
    restarts = _Word(2)
    reloads = _Word(3)
    failed_reloads = _Word(4)

    def __init__(self, page: memoryview[int]) -> None:
        self.page = page


class Reading(NamedTuple):
    """What a board said at one time.

    Attributes:
        totals: of all workers, also those that have ended.
        rows: of each worker that has counted something and not ended, by its row.
    """

    totals: Counters
    rows: Mapping[int, Counters]


class Board:
    """A page of memory that processes share, with a row of counters for each worker.

    To be made before the processes are forked. It goes with the last of them.

    Args:
        rows: how many there are; row 0 is for workers that have ended, the
            others are to be given to workers.

    Raises:
        ValueError: there is no row for a worker.

    >>> board = Board(2)
    >>> board.publish(1, Counters(requests=3, connections=1))
    >>> board.totals().requests, board.totals().connections
    (3, 1)
    >>> board.retire(1)
    >>> board.totals().requests, board.totals().connections
    (3, 0)
    """

    def __init__(self, rows: int) -> None:
        if rows < 2:
            raise ValueError(f"rows is {rows}, expected at least 2")
        self._count = rows
        # A row is preceded by a number that says whether it is in use.
        size = _HEAD + rows * (1 + _WORDS)
        self._page = memoryview(mmap.mmap(-1, 8 * size)).cast("q")
        self.fleet = Fleet(self._page)
        self.fleet.workers = 1

    def publish(self, row: int, counters: Counters) -> None:
        """Show what a worker has counted; for that worker only.

        Raises:
            ValueError: there is no such row for a worker.
        """
        start = self._start(row)
        self._write(start + 1, _pack(counters))
        self._page[start] = 1

    def retire(self, row: int) -> None:
        """Keep what a worker has counted that has ended, and free its row.

        For the supervisor. Sizes as they were at the end are forgotten.

        Raises:
            ValueError: there is no such row for a worker.
        """
        start = self._start(row)
        ended = _unpack(self._page[start + 1 : start + 1 + _WORDS].tolist())
        for name in GAUGES:
            setattr(ended, name, 0)
        kept = self._page[_HEAD + 1 : _HEAD + 1 + _WORDS].tolist()
        page = self._page
        page[0] += 1
        self._write(_HEAD + 1, [sum(pair) for pair in zip(kept, _pack(ended), strict=True)])
        self._write(start, [0] * (1 + _WORDS))
        page[0] += 1

    def read(self) -> Reading:
        """What all have counted, and each.

        A supervisor that is stopped in the middle of ``retire`` is waited for a
        tenth of a second; then a worker may be missing or counted twice.
        """
        rows = self._rows()
        return Reading(
            _unpack([sum(column) for column in zip(*(words for _, words in rows), strict=True)]),
            {row: _unpack(words) for row, (used, words) in enumerate(rows) if used},
        )

    def totals(self) -> Counters:
        """What all workers have counted; see ``read``."""
        return self.read().totals

    def rows(self) -> Mapping[int, Counters]:
        """What each worker has counted, by its row; see ``read``."""
        return self.read().rows

    def _start(self, row: int) -> int:
        if not 1 <= row < self._count:
            raise ValueError(f"row {row} is not one of 1 to {self._count - 1}")
        return _HEAD + row * (1 + _WORDS)

    def _write(self, start: int, words: list[int]) -> None:
        # One by one: struct.pack_into() would clear the place first, for all to see.
        for index, word in enumerate(words, start):
            self._page[index] = word

    def _rows(self) -> list[tuple[int, list[int]]]:
        """Whether each row is in use, and its numbers; none of them half moved."""
        page = self._page
        for _ in range(_READINGS):
            version = page[0]
            words = page.tolist()
            if version % 2 == 0 and page[0] == version:
                break
            time.sleep(_REREAD_AFTER)
        starts = range(_HEAD, len(words), 1 + _WORDS)
        return [(words[start], words[start + 1 : start + 1 + _WORDS]) for start in starts]

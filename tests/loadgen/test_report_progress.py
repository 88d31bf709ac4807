"""The live line: drawn on a terminal only, and gone at the end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TextIO

import pytest

from loadgen.plan import Plan
from loadgen.report.progress import live_progress
from loadgen.tally import Counts, Phase, Snapshot, Tally

from .screen import read_available, screen

PLAN = Plan(connections=5000, duration=30.0)


def tally_at(phase: Phase, elapsed: float, counts: Counts) -> Tally:
    tally = Tally()
    tally.add(Snapshot(phase=phase, elapsed=elapsed, counts=counts))
    return tally


CONNECTING = tally_at(Phase.CONNECTING, 0.0, Counts(held=1234))
MEASURING = tally_at(
    Phase.MEASURING, 12.0, Counts(held=5000, verified=1_200_000, on_time=1_200_000, wrong=2)
)
WARMING = tally_at(Phase.WARMING, 0.0, Counts(held=5000))
DONE = tally_at(Phase.DONE, 30.001, Counts(held=5000, verified=9, on_time=9, failed=2, timed_out=1))


class Terminal:
    """A terminal, to be drawn on by standard error."""

    def __init__(self, person: int, program: TextIO) -> None:
        self._person = person
        self._program = program

    @contextlib.contextmanager
    def drawing(self, plan: Plan = PLAN) -> Iterator[Callable[[Tally], None]]:
        with contextlib.redirect_stderr(self._program), live_progress(plan) as draw:
            yield draw

    def text(self) -> str:
        """What has been written since the last time."""
        return read_available(self._person)


@pytest.fixture
def term(terminal: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    person, program = terminal
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    with os.fdopen(os.dup(program), "w") as stream:
        yield Terminal(person, stream)


def test_nothing_is_drawn_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with live_progress(PLAN) as draw:
        for tally in (CONNECTING, MEASURING, DONE):
            draw(tally)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("tally", "shown"),
    [
        (CONNECTING, ["connecting", "1,234 connections"]),
        (WARMING, ["warming up", "30 s left, 0 requests/s, 0 bad"]),
        (MEASURING, ["measuring", "18 s left, 100,000 requests/s, 2 bad"]),
        (DONE, ["done", "0 s left, 0 requests/s, 3 bad"]),
    ],
)
def test_each_tally_is_drawn_in_one_line(term: Terminal, tally: Tally, shown: list[str]) -> None:
    with term.drawing() as draw:
        draw(tally)
        [line] = screen(term.text())
    assert all(part in line for part in shown)
    assert len(line) <= 80


def test_a_run_of_so_many_requests_tells_how_many_are_left(term: Terminal) -> None:
    # Its duration is a bound that nobody asked for.
    plan = Plan(connections=5000, duration=24 * 3600.0, requests=2_000_000)
    with term.drawing(plan) as draw:
        draw(MEASURING)
        [line] = screen(term.text())
    assert "799,998 requests left, 100,000 requests/s, 2 bad" in line
    assert len(line) <= 80


def test_a_later_tally_takes_the_place_of_the_one_before(term: Terminal) -> None:
    with term.drawing() as draw:
        draw(CONNECTING)
        draw(MEASURING)
        [line] = screen(term.text())
    assert "measuring" in line
    assert "connecting" not in line


def test_nothing_is_left_at_the_end(term: Terminal) -> None:
    with term.drawing() as draw:
        draw(CONNECTING)
        draw(MEASURING)
    text = term.text()
    assert "measuring" in text
    assert screen(text) == []
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is shown again"


def _fail_while_drawing(term: Terminal) -> None:
    with term.drawing() as draw:
        draw(MEASURING)
        raise ZeroDivisionError


def test_nothing_is_left_after_an_error_either(term: Terminal) -> None:
    with pytest.raises(ZeroDivisionError):
        _fail_while_drawing(term)
    assert screen(term.text()) == []

"""The display on a terminal: what it shows at which width, and that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
import struct
import termios
from collections.abc import Callable, Iterator
from typing import TextIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.plan import Plan
from loadgen.report.live import Display, sparkline
from loadgen.report.progress import live_progress
from loadgen.tally import Counts, Phase, Snapshot, Tally

from .runs import MS, recorded
from .screen import read_available, screen

PLAN = Plan(connections=5000, duration=60.0)


def connecting(**counts: int) -> Tally:
    tally = Tally()
    tally.add(Snapshot(phase=Phase.CONNECTING, elapsed=0.0, counts=Counts(**counts)))  # type: ignore[arg-type]  # all of them ints
    return tally


def measuring(seconds: int = 40, **counts: int) -> Tally:
    """So many seconds of rising rates and one that has just begun; what is told more, in it."""
    tally = Tally()
    tally.add(Snapshot(phase=Phase.READY, elapsed=0.0, counts=Counts(held=5000)))
    for number in range(seconds):
        requests = 10_000 * (1 + number % 8)
        each = Counts(verified=requests, on_time=requests, latency=recorded(MS, MS, 5 * MS))
        tally.add(Snapshot(phase=Phase.MEASURING, elapsed=number + 1.0, second=number, counts=each))
    last = Counts(**counts)  # type: ignore[arg-type]  # all of them ints
    tally.add(Snapshot(phase=Phase.MEASURING, elapsed=seconds + 0.25, second=seconds, counts=last))
    return tally


def failing() -> Tally:
    tally = measuring(wrong=2, failed=3, lost=5)
    tally.counts.errors.update({"EOF": 3, "wrong payload": 2})
    return tally


def lines(tally: Tally, width: int, plan: Plan = PLAN, *, ascii_only: bool = False) -> list[str]:
    display = Display(plan, lambda: 0.0)
    display.show(tally)
    shown = display.lines(width, ascii_only=ascii_only)
    return ["".join(text for text, _ in line) for line in shown]


# What it shows ---------------------------------------------------------------


def test_connecting_is_one_line_with_a_bar() -> None:
    [line] = lines(connecting(held=1250), 60)
    assert line == f"connecting  {8 * '━'}{24 * '─'}  1,250 of 5,000"


def test_connections_that_cannot_be_made_are_told_at_once() -> None:
    _, line = lines(connecting(held=1, failed_to_connect=1234), 80)
    assert line == "1,234 not connected"


def test_measuring_tells_the_time_left_and_the_figures_of_the_last_full_second() -> None:
    head, figures = lines(measuring(seconds=9), 79)
    assert re.fullmatch(r"measuring  ━+─+  51 s left", head)
    assert figures == ("5,000 connections  10,000/s  ▂▃▄▅▅▆▇█▂  p50 1.00 ms  p99 5.00 ms  0 bad"), (
        figures
    )


def test_figures_of_a_run_that_has_measured_no_full_second_are_those_so_far() -> None:
    _, figures = lines(measuring(seconds=0, verified=10, on_time=10), 79)
    assert figures == "5,000 connections  40/s  0 bad"


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (34, ["bad"]),
        (59, ["p50", "p99", "80,000/s"]),
        (79, ["p50", "p99", "80,000/s", "4,995 connections"]),
        (
            119,
            ["p50", "p99", "80,000/s", "4,995 connections", "▂▃▄▅▅▆▇█", "3 EOF, 2 wrong payload"],
        ),
        (199, ["4,995 connections", 3 * "▂▃▄▅▅▆▇█", "3 EOF, 2 wrong payload"]),
    ],
)
def test_what_matters_less_gives_way_where_it_is_narrow(width: int, shown: list[str]) -> None:
    head, figures = lines(failing(), width)
    assert "20 s left" in head
    assert "5 bad, 5 lost" in figures
    for part in shown:
        assert part in figures


@given(
    width=st.integers(1, 220),
    rate=st.integers(0, 10**7),
    bad=st.integers(0, 10**9),
    elapsed=st.integers(0, 90),
    phase=st.sampled_from(list(Phase)),
    ascii_only=st.booleans(),
    requests=st.none() | st.integers(1, 10**9),
)
def test_nothing_is_ever_wider_than_the_terminal(
    width: int,
    rate: int,
    bad: int,
    elapsed: int,
    phase: Phase,
    ascii_only: bool,
    requests: int | None,
) -> None:
    tally = Tally()
    for number in range(0, elapsed + 1, 7):
        counts = Counts(verified=rate, on_time=rate, wrong=bad, latency=recorded(number * MS))
        counts.errors["connect: connection refused"] = bad
        tally.add(Snapshot(phase=phase, elapsed=float(elapsed), second=number, counts=counts))
    plan = Plan(connections=5000, duration=60.0, requests=requests)
    for line in lines(tally, width, plan, ascii_only=ascii_only):
        assert len(line) <= width
        assert "\n" not in line
        assert line.isascii() or not ascii_only


def test_all_is_ascii_where_the_terminal_knows_no_more() -> None:
    head, figures = lines(measuring(seconds=9), 79, ascii_only=True)
    assert re.fullmatch(r"measuring  #+\.+  51 s left", head)
    assert re.search(r"  [_.:=+*#-]{9}  p50", figures)


def test_parts_keep_their_places_when_figures_get_shorter() -> None:
    display = Display(PLAN, lambda: 0.0)
    display.show(measuring(seconds=8))  # 80,000 in the last one
    before = display.lines(79)[1]
    display.show(measuring(seconds=8 * 2 + 1))  # 10,000
    after = display.lines(79)[1]
    assert [len(text) for text, _ in before[:4]] == [len(text) for text, _ in after[:4]]


def test_only_what_went_wrong_is_red() -> None:
    display = Display(PLAN, lambda: 0.0)
    display.show(measuring())
    assert not [text for line in display.lines(120) for text, style in line if style == "red"]
    display.show(failing())
    red = [text for line in display.lines(120) for text, style in line if style == "red"]
    assert red == ["5 bad, 5 lost", "(3 EOF, 2 wrong payload)"]


def test_a_sparkline_begins_at_nought() -> None:
    assert sparkline([]) == ""
    assert sparkline([0, 0]) == "▁▁"
    assert sparkline([99, 100, 0]) == "██▁"


# On a terminal ---------------------------------------------------------------


class Terminal:
    """A terminal, to be drawn on by standard error."""

    def __init__(self, person: int, program: TextIO) -> None:
        self._person = person
        self._program = program
        self.now = 0.0

    def resize(self, columns: int) -> None:
        size = struct.pack("HHHH", 24, columns, 0, 0)
        fcntl.ioctl(self._program.fileno(), termios.TIOCSWINSZ, size)

    def encode(self, encoding: str) -> None:
        assert isinstance(self._program, io.TextIOWrapper)
        self._program.reconfigure(encoding=encoding)

    @contextlib.contextmanager
    def drawing(self, plan: Plan = PLAN) -> Iterator[Callable[[Tally], None]]:
        """Draw, a second after the other."""
        with (
            contextlib.redirect_stderr(self._program),
            live_progress(plan, clock=lambda: self.now) as draw,
        ):

            def later(tally: Tally) -> None:
                self.now += 1
                draw(tally)

            yield later

    def text(self) -> str:
        """What has been written since the last time."""
        return read_available(self._person)


@pytest.fixture
def term(terminal: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    person, program = terminal
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    # Rich finds out how wide the terminal is by the first of the standard streams that is one.
    monkeypatch.setattr("rich.console._STD_STREAMS", (program,))
    with os.fdopen(os.dup(program), "w", encoding="utf-8") as stream:
        yield Terminal(person, stream)


def test_a_line_tells_that_it_connects_before_anything_is_heard(term: Terminal) -> None:
    with term.drawing():
        [line] = screen(term.text())
    assert line.startswith("connecting")
    assert line.endswith("0 of 5,000")


def test_a_later_tally_takes_the_place_of_the_one_before(term: Terminal) -> None:
    with term.drawing() as draw:
        draw(connecting(held=12))
        draw(failing())
        draw(measuring())
        draw(connecting(held=12))
        draw(measuring(seconds=9))
        head, figures = screen(term.text())
    assert head.startswith("measuring")
    assert figures.endswith("0 bad")


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_the_last_column_stays_free(term: Terminal, columns: int) -> None:
    term.resize(columns)
    with term.drawing() as draw:
        draw(failing())
        head, figures = screen(term.text())
    assert len(head) == columns - 1
    assert len(figures) < columns


def test_it_is_redrawn_four_times_a_second_at_most(term: Terminal) -> None:
    with term.drawing() as draw:
        draw(measuring())
        term.text()
        for _ in range(100):
            term.now -= 0.99  # a hundredth of a second passes
            draw(measuring())
        assert term.text().count("measuring") == 4


def test_that_late_replies_are_awaited_is_drawn_at_once(term: Terminal) -> None:
    late = Tally()
    late.add(Snapshot(phase=Phase.DRAINING, elapsed=60.0, counts=Counts(sent=3)))
    with term.drawing() as draw:
        draw(measuring())
        for _ in range(3):
            term.now -= 0.99
            draw(late)
        text = term.text()
    assert screen(text)[0].startswith("waiting for late replies")
    assert text.count("waiting") == 1


def test_nothing_is_left_at_the_end(term: Terminal) -> None:
    with term.drawing() as draw:
        draw(connecting())
        draw(measuring())
    text = term.text()
    assert "measuring" in text
    assert screen(text) == []
    assert "\x1b[?25l" not in text, "whoever stops the command would miss the cursor"


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_nothing_is_left_after_an_error_either(term: Terminal, error: type[BaseException]) -> None:
    def fail() -> None:
        with term.drawing() as draw:
            draw(measuring())
            raise error

    with pytest.raises(error):
        fail()
    text = term.text()
    assert screen(text) == []


def test_an_echoed_interrupt_is_drawn_over(term: Terminal) -> None:
    with term.drawing() as draw:
        draw(measuring())
        before = term.text()
        draw(measuring())
        assert len(screen(before + "^C" + term.text())) == 2


def test_errors_are_red_and_no_color_is_honoured(
    term: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    with term.drawing() as draw:
        draw(failing())
    assert "\x1b[31m5 bad, 5 lost" in term.text()
    monkeypatch.setenv("NO_COLOR", "1")
    with term.drawing() as draw:
        draw(failing())
        text = term.text()
    assert "5 bad, 5 lost" in text
    assert not re.search(r"\x1b\[(?:[0-9;]*;)?[349][0-9]", text)


def test_a_terminal_that_is_not_in_utf_8_gets_ascii(term: Terminal) -> None:
    term.encode("latin-1")
    with term.drawing() as draw:
        draw(measuring())
    text = term.text()
    assert text.isascii()
    assert "measuring  ###" in re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_a_dumb_terminal_gets_lines(term: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with term.drawing() as draw:
        draw(connecting())
        draw(measuring())
    text = term.text()
    assert "\x1b" not in text
    assert text.startswith("40 s of 1m00s: ")

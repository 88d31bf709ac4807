"""The display on a terminal: two lines, redrawn four times a second at most.

The first says what the run does and how far it is, the second gives figures of
the last full second. What does not fit the width is left out, the least
important first, and nothing wraps.

rich is loaded here and nowhere else. It tells what the terminal can do and how a
style is written there; its own way to lay text out would take ten times as long
as all the rest of a redraw.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Final

from rich.console import Console

from loadgen.plan import Plan
from loadgen.report.progress import Clock, Draw, Pace, Progress, Watcher, brief, connected, faults
from loadgen.tally import Phase, Tally

REDRAW_EVERY: Final = 0.25
"""Seconds."""
SPARK_SECONDS: Final = 30
"""Seconds that the sparkline shows, where there is room; a character each."""
_LEAST_SPARK: Final = 8
"""A shorter one shows nothing, and is left out."""
_KINDS: Final = 2
"""Kinds of errors that are named, the most frequent."""
_LEAST_BAR: Final = 10
_GAP: Final = "  "
_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_ASCII_BLOCKS: Final = "_.:-=+*#"


_ERASE_LINE: Final = "\r\x1b[2K"
_ERASE_LINE_ABOVE: Final = "\x1b[1A\x1b[2K"

Line = list[tuple[str, str]]
"""Pieces of text, each with its style."""


@contextlib.contextmanager
def live_display(plan: Plan, clock: Clock) -> Iterator[Draw | None]:
    """Give what draws a tally on standard error; None where nothing can be redrawn.

    At the end nothing is left on the screen. The cursor stays, at the start of a line: hidden,
    it would be missed by whoever stops or kills the command.
    """
    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield None
        return
    display = Display(plan, clock)
    pace = Pace(REDRAW_EVERY)
    screen = _Screen(console)

    def draw(tally: Tally) -> None:
        # While replies are awaited nothing more is heard, perhaps for as long as the grace.
        begins_to_wait = tally.phase is Phase.DRAINING and not display.is_waiting
        if pace.allows(clock()) or begins_to_wait:
            display.show(tally)
            screen.draw(display.lines)

    try:
        screen.draw(display.lines)
        yield draw
    finally:
        screen.erase()


class _Screen:
    """The lines where the cursor is, the last of them without a newline."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._file = console.file
        self._ascii_only = console.options.ascii_only
        self._styles: dict[str, tuple[str, str]] = {"": ("", "")}
        self._height = 1

    def draw(self, lines: Callable[..., list[Line]]) -> None:
        """Draw lines in place of those before, in one piece."""
        # The last column stays free: some terminals wrap as soon as it is written.
        drawn = lines(self._console.width - 1, ascii_only=self._ascii_only)
        text = "\n".join("".join(chain.from_iterable(map(self._styled, line))) for line in drawn)
        # Back at the start of the line, where an echoed ^C cannot wrap.
        self._write(f"{self._erasure()}{text}\r")
        self._height = max(1, len(drawn))

    def erase(self) -> None:
        """Leave an empty line."""
        self._write(self._erasure())
        self._height = 1

    def _erasure(self) -> str:
        return _ERASE_LINE + _ERASE_LINE_ABOVE * (self._height - 1)

    def _write(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()

    def _styled(self, piece: tuple[str, str]) -> tuple[str, str, str]:
        text, style = piece
        if style not in self._styles:
            with self._console.capture() as captured:
                self._console.print("-", style=style, end="", highlight=False)
            before, _, after = captured.get().rpartition("-")
            self._styles[style] = before, after
        before, after = self._styles[style]
        return before, text, after


class Display:
    """What stands on the screen, for whatever width that has when it is drawn.

    Attributes:
        is_waiting: whether that is that late replies are awaited.

    >>> from loadgen.tally import Counts, Snapshot
    >>> display, tally = Display(Plan(connections=5, duration=2.0), lambda: 0.0), Tally()
    >>> counts = Counts(held=5, verified=90, on_time=90, wrong=1)
    >>> tally.add(Snapshot(phase=Phase.MEASURING, elapsed=1.0, counts=counts))
    >>> display.show(tally)
    >>> for line in display.lines(60): print("".join(text for text, _ in line))
    measuring  ━━━━━━━━━━━━━━━━━━━────────────────────  1 s left
    5 connections  90/s  1 bad
    """

    def __init__(self, plan: Plan, clock: Clock) -> None:
        self._plan = plan
        self._watcher = Watcher(plan, clock)
        self._widest: dict[str, int] = {}
        self.show(Tally())

    def show(self, tally: Tally) -> None:
        """Draw this tally from now on."""
        self._tally = tally
        self.is_waiting = tally.phase is Phase.DRAINING
        self._progress = self._watcher.look(tally)

    def lines(self, width: int, *, ascii_only: bool = False) -> list[Line]:
        """The lines, none of them longer than so many columns."""
        head = _head(self._progress, width, "#." if ascii_only else "━─")
        figures = self._figures(width, _ASCII_BLOCKS if ascii_only else _BLOCKS)
        return [_cut(line, width) for line in (head, figures) if line]

    def _figures(self, width: int, blocks: str) -> Line:
        plan, tally, counts = self._plan, self._tally, self._tally.counts
        parts: dict[str, str] = {}
        spark: list[int] = []
        if tally.phase not in (Phase.CONNECTING, Phase.READY):
            held = connected(plan, counts)
            parts["held"] = f"{held:,} connection{'s' * (held != 1)}"
        if tally.elapsed:
            last = tally.last()
            rate = tally.rate if last is None else last.requests
            parts["rate"] = self._steady("rate", f"{rate:,.0f}/s")
            spark = tally.requests_by_second(SPARK_SECONDS)
            if len(spark) > 1:
                parts["spark"] = ""
            if last is not None and last.p50 is not None and last.p99 is not None:
                parts["p50"] = self._steady("p50", f"p50 {brief(last.p50)}")
                parts["p99"] = self._steady("p99", f"p99 {brief(last.p99)}")
        went_wrong = faults(counts)
        if went_wrong or tally.elapsed:
            parts["faults"] = ", ".join(went_wrong) or "0 bad"
        if counts.errors:
            most = counts.errors.most_common(_KINDS)
            parts["kinds"] = "(" + ", ".join(f"{number:,} {kind}" for kind, number in most) + ")"
        _fit(parts, width, spark, blocks)
        line: Line = []
        for name, text in parts.items():
            is_bad = name == "kinds" or (name == "faults" and went_wrong)
            style = "red" if is_bad else "cyan" if name == "spark" else ""
            line += [(_GAP if line else "", ""), (text, style)]
        return line

    def _steady(self, name: str, text: str) -> str:
        """Text that never gets shorter again, so that what stands beside it keeps its place."""
        self._widest[name] = max(self._widest.get(name, 0), len(text))
        return text.ljust(self._widest[name])


def _head(progress: Progress, width: int, bar: str) -> Line:
    """The phase, a bar, and how far it is; without the bar where there is no room."""
    line = [(progress.phase, "bold")]
    room = width - len(progress.phase) - len(progress.state) - 2 * len(_GAP)
    if room >= _LEAST_BAR:
        full = int(progress.share * room)
        line += [(_GAP, ""), (bar[0] * full, "bar.complete"), (bar[1] * (room - full), "bar.back")]
    return [*line, (_GAP, ""), (progress.state, "")]


def _cut(line: Line, width: int) -> Line:
    """As much of a line as there is room for."""
    kept = []
    for text, style in line:
        kept.append((text[:width], style))
        width -= len(kept[-1][0])
    return kept


def _fit(parts: dict[str, str], width: int, spark: Sequence[int], blocks: str) -> None:
    """Leave out what has no room, and give the sparkline what is left."""
    least = min(_LEAST_SPARK, len(spark))
    droppable = ["kinds", "spark", "held", "p50", "p99", "rate"]
    while True:
        fixed = sum(map(len, parts.values())) + len(_GAP) * (len(parts) - 1)
        room = width - fixed
        if room >= (least if "spark" in parts else 0) or not droppable:
            break
        parts.pop(droppable.pop(0), None)
    if "spark" in parts:
        parts["spark"] = sparkline(spark[-min(room, SPARK_SECONDS) :], blocks)


def sparkline(values: Sequence[int], blocks: str = _BLOCKS) -> str:
    """A character a value, from nought to the greatest of them.

    >>> sparkline([0, 50, 100, 100, 25])
    '▁▅██▃'
    """
    top = max(values, default=0) or 1
    return "".join(blocks[round(value / top * (len(blocks) - 1))] for value in values)

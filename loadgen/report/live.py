"""The display on a terminal: two lines, redrawn four times a second at most.

The first says what the run does and how far it is, the second gives figures of
the last full second. What does not fit the width is left out, the least
important first, and nothing wraps. rich is loaded here and nowhere else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

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


@contextlib.contextmanager
def live_display(plan: Plan, clock: Clock) -> Iterator[Draw | None]:
    """Give what draws a tally on standard error; None where nothing can be redrawn.

    At the end nothing is left on the screen, and the cursor is there again.
    """
    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield None
        return
    display = Display(plan, clock)
    pace = Pace(REDRAW_EVERY)
    live = Live(display, console=console, auto_refresh=False, transient=True)

    def draw(tally: Tally) -> None:
        if pace.allows(clock()):
            display.show(tally)
            live.refresh()

    # Ctrl-C may come anywhere, also while rich begins or ends.
    try:
        try:
            live.start(refresh=True)
            yield draw
        finally:
            live.stop()
    finally:
        console.show_cursor(True)


class Display:
    """What stands on the screen, for whatever width that has when it is drawn.

    >>> from loadgen.tally import Counts, Snapshot
    >>> display, tally = Display(Plan(connections=5, duration=2.0), lambda: 0.0), Tally()
    >>> counts = Counts(held=5, verified=90, on_time=90, wrong=1)
    >>> tally.add(Snapshot(phase=Phase.MEASURING, elapsed=1.0, counts=counts))
    >>> display.show(tally)
    >>> for line in display.lines(60): print(line)
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
        self._progress = self._watcher.look(tally)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # The last column stays free: some terminals wrap as soon as it is written.
        yield from self.lines(options.max_width - 1, ascii_only=options.ascii_only)

    def lines(self, width: int, *, ascii_only: bool = False) -> list[Text]:
        """The lines, none of them longer than so many columns."""
        head = _head(self._progress, width, "#." if ascii_only else "━─")
        lines = [head, self._figures(width, _ASCII_BLOCKS if ascii_only else _BLOCKS)]
        for line in lines:
            line.no_wrap = True
            line.truncate(width, overflow="crop" if ascii_only else "ellipsis")
        return [line for line in lines if line]

    def _figures(self, width: int, blocks: str) -> Text:
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
        line = Text()
        for name, text in parts.items():
            is_bad = name == "kinds" or (name == "faults" and went_wrong)
            style = "red" if is_bad else "cyan" if name == "spark" else ""
            line.append(_GAP if line else "").append(text, style)
        line.rstrip()
        return line

    def _steady(self, name: str, text: str) -> str:
        """Text that never gets shorter again, so that what stands beside it keeps its place."""
        self._widest[name] = max(self._widest.get(name, 0), len(text))
        return text.ljust(self._widest[name])


def _head(progress: Progress, width: int, bar: str) -> Text:
    """The phase, a bar, and how far it is; without the bar where there is no room."""
    done, rest = bar[0], bar[1]
    line = Text(progress.phase, "bold")
    room = width - len(progress.phase) - len(progress.state) - 2 * len(_GAP)
    if room >= _LEAST_BAR:
        full = int(progress.share * room)
        line.append(_GAP).append(done * full, "bar.complete").append(
            rest * (room - full), "bar.back"
        )
    return line.append(_GAP).append(progress.state)


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

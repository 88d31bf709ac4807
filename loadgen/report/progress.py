"""The line that lives on the terminal while a run goes on."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from loadgen.plan import Plan
from loadgen.tally import Phase, Tally


@contextlib.contextmanager
def live_progress(plan: Plan) -> Iterator[Callable[[Tally], None]]:
    """Give what draws a tally, on standard error, if that is a terminal.

    It is to be called for each snapshot; nothing is drawn in between, and
    nothing is left on the screen at the end.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[figures]}"),
        console=Console(stderr=True),
        auto_refresh=False,
        transient=True,
    )
    task = progress.add_task("connecting", total=plan.connections, figures="")

    def draw(tally: Tally) -> None:
        if tally.phase is Phase.CONNECTING:
            progress.update(
                task, completed=tally.counts.held, figures=f"{tally.counts.held:,} connections"
            )
        else:
            counts = tally.counts
            bad = counts.wrong + counts.failed + counts.timed_out
            if plan.requests is None:
                total, completed = plan.duration, tally.elapsed
                left = f"{max(0.0, total - completed):.0f} s left"
            else:
                total, completed = plan.requests, counts.verified + bad
                left = f"{max(0, plan.requests - counts.verified - bad):,} requests left"
            progress.update(
                task,
                description=tally.phase.value,
                total=total,
                completed=completed,
                figures=f"{left}, {tally.rate:,.0f} requests/s, {bad:,} bad",
            )
        progress.refresh()

    with progress:
        yield draw

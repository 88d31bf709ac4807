"""``loadgen --repeat N``: the same plan time after time, and how much its figures differ."""

from __future__ import annotations

import sys

from loadgen.commands import as_json, check_connected, publish
from loadgen.plan import Plan
from loadgen.report import Run, repeated
from loadgen.running import Site, run
from nbnet.command import EXIT_INTERRUPTED


def repeat(plan: Plan, site: Site, times: int, json: str | None) -> int:
    """Run a plan so many times, a line each, then print and save what they come to.

    Ctrl-C ends it, with the runs so far. Gives the gravest exit code of all.

    Args:
        json: the file that the documents go to; ``-`` is standard output.

    Raises:
        CommandError: there was no connection at all, or the file could not be written.
    """
    out = sys.stderr if json == "-" else sys.stdout
    runs: list[Run] = []
    code = 0
    for number in range(1, times + 1):
        try:
            finished = run(plan, site, lambda finished: finished, quiet=number > 1)
        except KeyboardInterrupt:  # between two runs; during one, it ends with a report
            if not runs:
                raise
            code = EXIT_INTERRUPTED
            break
        check_connected(finished)
        if not runs:
            print(f"{plan.connections:,} connections, {times} times", file=out)
            print(f"\n{repeated.head()}", file=out)
        runs.append(finished)
        print(repeated.line(number, finished), file=out, flush=True)
        if finished.interrupted:
            break
    publish(f"\n{repeated.spread(runs)}", (json, lambda: as_json(repeated.document(runs))))
    return max(code, *(finished.verdict.exit_code for finished in runs))

"""The command ``loadgen``."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import FrameType
from typing import Annotated

import typer

from loadgen.embedded import EmbeddedServerError, embedded_server
from loadgen.plan import Job, Plan, PlanError, check_machine, resolve
from loadgen.report import Run
from loadgen.report import json as json_report
from loadgen.report.progress import live_progress
from loadgen.report.terminal import summary
from loadgen.tally import Tally
from loadgen.verdict import EXIT_NO_CONNECTION, judge
from loadgen.workers import WorkerError, Workers
from nbnet.command import EXIT_FAILED, EXIT_USAGE, CommandError, make_app, parsed, version_option
from nbnet.command import run as run_command
from nbnet.notation import Target, parse_count, parse_duration, parse_target

app = make_app(subcommand_metavar="")


def main() -> None:
    """Run the command; the console script."""
    run_command(app, "loadgen")


@app.callback(invoke_without_command=True)
def loadgen(
    conns: Annotated[
        str,
        typer.Option(
            "--conns", "--connections", "-c", metavar="N", help="Connections to hold: 5000, 5k."
        ),
    ] = "50",
    duration: Annotated[
        str,
        typer.Option(
            "--duration", "-d", metavar="TIME", help="How long to measure: 500ms, 30s, 1m30s."
        ),
    ] = "10s",
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "-t",
            metavar="HOST:PORT",
            help="The server. Without it, the bundled one is started.",
        ),
    ] = None,
    payload: Annotated[
        str, typer.Option("--payload", metavar="TEXT", help="What each request carries.")
    ] = "abc",
    json: Annotated[
        str | None,
        typer.Option(
            "--json", metavar="FILE", help="Write the figures as JSON; - is standard output."
        ),
    ] = None,
    _version: Annotated[bool, version_option("loadgen")] = False,
) -> None:
    """Load a server of framed messages, verify every reply, report latency and throughput.

    Every connection sends a request, waits for its reply, compares it byte for
    byte with the reversed payload, and sends the next one.

    Exit codes: 0 all replies right; 1 wrong replies, failed requests or lost
    connections; 2 usage, or more than this machine can do; 4 no connection;
    130 interrupted (the report is printed).

    Example: loadgen --conns 5000 --duration 30s
    """
    try:
        plan = Plan(
            connections=parsed("--conns", parse_count, conns),
            duration=parsed("--duration", parse_duration, duration),
            payload=os.fsencode(payload),
        )
        server = parsed("--target", parse_target, target) if target is not None else None
        if json is not None:
            _check_writable(json)
        code = _load(plan, server, json)
    except PlanError as error:
        raise CommandError(str(error), EXIT_USAGE) from error
    except (EmbeddedServerError, WorkerError) as error:
        raise CommandError(str(error), EXIT_FAILED) from error
    raise typer.Exit(code)


def _check_writable(path: str) -> None:
    try:
        json_report.check_writable(path)
    except OSError as error:
        raise CommandError(f"--json: cannot write {path}: {error.strerror}", EXIT_USAGE) from error


def _load(plan: Plan, target: Target | None, json: str | None) -> int:
    """Run the plan, print and save what it came to; give the exit code."""
    check_machine(plan)
    with contextlib.ExitStack() as stack:
        embedded = target is None
        if target is None:
            # Its limit of open files is the one that the check above has raised.
            target = stack.enter_context(embedded_server())
            print(f"no --target: started the bundled server on {target}", file=sys.stderr)
        try:
            address = resolve(target)
        except OSError as error:
            raise CommandError(
                f"cannot connect to {target}: {error.strerror}", EXIT_NO_CONNECTION
            ) from error
        tally = Tally()
        started_at = datetime.now(UTC)
        with Workers([Job(plan, address)]) as workers, _interrupts_stop(workers) as interrupted:
            with live_progress(plan) as draw:
                for snapshot in workers:
                    tally.add(snapshot)
                    draw(tally)
            # Reported before anything is waited for, so that a further Ctrl-C
            # cannot lose what was measured.
            return _report(
                Run(
                    plan=plan,
                    target=target,
                    embedded=embedded,
                    started_at=started_at,
                    interrupted=interrupted(),
                    tally=tally,
                    verdict=judge(tally.counts, interrupted=interrupted()),
                ),
                json,
            )


def _report(run: Run, json: str | None) -> int:
    if run.verdict.exit_code == EXIT_NO_CONNECTION:
        reasons = ", ".join(kind.removeprefix("connect: ") for kind in run.tally.counts.errors)
        raise CommandError(
            f"cannot connect to {run.target}: {reasons} "
            "(start a server with: nbnet serve; or leave --target away to use the bundled one)",
            EXIT_NO_CONNECTION,
        )
    # The file comes first: a reader of the summary who leaves early must not cost
    # it. Nor must a full disk cost the summary.
    unsaved: OSError | None = None
    if json is not None:
        try:
            json_report.write(run, json)
        except OSError as error:
            unsaved = error
    # Standard output belongs to the JSON where it is asked for there.
    print(summary(run), file=sys.stderr if json == "-" else sys.stdout, flush=True)
    if unsaved is not None:
        raise CommandError(f"cannot write {json}: {unsaved.strerror}", EXIT_FAILED) from unsaved
    return run.verdict.exit_code


@contextlib.contextmanager
def _interrupts_stop(workers: Workers) -> Iterator[Callable[[], bool]]:
    """The first SIGINT or SIGTERM has the workers report, the second ends at once.

    Gives what tells whether there was one.
    """
    seen = False

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal seen
        if seen:
            raise KeyboardInterrupt
        seen = True
        workers.stop()

    before = {each: signal.signal(each, interrupt) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""The command ``loadgen``."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Annotated, TypeVar

import typer

from loadgen import __version__
from loadgen.embedded import EmbeddedServerError, embedded_server
from loadgen.plan import Job, Plan, PlanError, check_machine, resolve
from loadgen.report import Run
from loadgen.report import json as json_report
from loadgen.report.progress import live_progress
from loadgen.report.terminal import summary
from loadgen.tally import Tally
from loadgen.verdict import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_NO_CONNECTION,
    EXIT_USAGE,
    judge,
)
from loadgen.workers import WorkerError, Workers
from nbnet.notation import Target, parse_count, parse_duration, parse_target

app = typer.Typer(
    pretty_exceptions_enable=False,
    subcommand_metavar="",
    context_settings={"help_option_names": ["-h", "--help"]},
)

T = TypeVar("T")


class _FailureError(Exception):
    """Ends the command with one line on standard error and an exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message, code)
        self.message = message
        self.code = code


def main() -> None:
    """Run the command; the console script."""
    try:
        app(prog_name="loadgen")
    except _FailureError as failure:
        print(f"loadgen: {failure.message}", file=sys.stderr)
        sys.exit(failure.code)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"loadgen {__version__}")
        raise typer.Exit


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
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
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
            connections=_parsed("--conns", parse_count, conns),
            duration=_parsed("--duration", parse_duration, duration),
            payload=os.fsencode(payload),
        )
        server = _parsed("--target", parse_target, target) if target is not None else None
        if json is not None:
            _check_writable(json)
        run = _run(plan, server)
    except PlanError as error:
        raise _FailureError(str(error), EXIT_USAGE) from error
    except (EmbeddedServerError, WorkerError) as error:
        raise _FailureError(str(error), EXIT_FAILED) from error
    if run.verdict.exit_code == EXIT_NO_CONNECTION:
        reasons = ", ".join(kind.removeprefix("connect: ") for kind in run.tally.counts.errors)
        raise _FailureError(
            f"cannot connect to {run.target}: {reasons} "
            "(start a server with: nbnet serve; or leave --target away to use the bundled one)",
            EXIT_NO_CONNECTION,
        )
    # Standard output belongs to the JSON where it is asked for there.
    print(summary(run), file=sys.stderr if json == "-" else sys.stdout, flush=True)
    if json is not None:
        try:
            json_report.write(run, json)
        except OSError as error:
            raise _FailureError(f"cannot write {json}: {error.strerror}", EXIT_FAILED) from error
    raise typer.Exit(run.verdict.exit_code)


def _parsed(option: str, parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise _FailureError(f"{option}: {error}", EXIT_USAGE) from error


def _check_writable(path: str) -> None:
    """Notice before the run, not after it, that its figures could not be saved."""
    folder = Path(path).parent
    if path != "-" and (Path(path).is_dir() or not os.access(folder, os.W_OK)):
        raise _FailureError(f"--json: cannot write {path}", EXIT_USAGE)


def _run(plan: Plan, target: Target | None) -> Run:
    """Run the plan against a server, the bundled one if no other is named."""
    with contextlib.ExitStack() as stack:
        embedded = target is None
        if target is None:
            check_machine(plan)
            target = stack.enter_context(embedded_server())
            print(f"no --target: started the bundled server on {target}", file=sys.stderr)
        try:
            address = resolve(target)
        except OSError as error:
            raise _FailureError(
                f"cannot connect to {target}: {error.strerror}", EXIT_NO_CONNECTION
            ) from error
        check_machine(plan)
        tally = Tally()
        started_at = datetime.now(UTC)
        workers = stack.enter_context(Workers([Job(plan, address)]))
        interrupted = stack.enter_context(_interrupts_stop(workers))
        draw = stack.enter_context(live_progress(plan))
        for snapshot in workers:
            tally.add(snapshot)
            draw(tally)
        return Run(
            plan=plan,
            target=target,
            embedded=embedded,
            started_at=started_at,
            interrupted=interrupted(),
            tally=tally,
            verdict=judge(tally.counts, interrupted=interrupted()),
        )


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

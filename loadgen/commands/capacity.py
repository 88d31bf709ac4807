"""``loadgen capacity``: the highest rate that holds an objective."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer

from loadgen.commands import check_outputs, load_of
from nbnet.command import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, CommandError, parsed
from nbnet.notation import parse_duration

if TYPE_CHECKING:
    from loadgen.capacity import Figures, Result, Step, Terms
    from loadgen.plan import Plan
    from loadgen.report import Run
    from loadgen.report.capacity import Findings
    from loadgen.running import Site

SETTLE: Final = 0.5
"""Seconds of silence before a step: what an earlier one left in queues is worked off."""
WARMUP: Final = 0.5
"""Seconds that a step sends before it measures, if --warmup does not say more."""
START_UP: Final = 1.0
"""Seconds that starting the engines may take."""
OURS: Final = {
    "rate": "--rate",
    "stages": "--stages",
    "duration": "--duration",
    "requests": "--requests",
}
"""Options of a load that are the search's own to choose."""

T = TypeVar("T")


def capacity(
    ctx: typer.Context,
    slo: Annotated[
        str,
        typer.Option(
            "--slo",
            metavar="METRIC<VALUE,...",
            help="What has to hold: p99<10ms, or p99<10ms,errors<0.1%. Metrics are p50 to p99.99, "
            "mean, max and errors; < or <=.",
        ),
    ],
    step_duration: Annotated[
        str,
        typer.Option("--step-duration", metavar="TIME", help="How long to measure at each rate."),
    ] = "3s",
    confirm_duration: Annotated[
        str,
        typer.Option("--confirm-duration", metavar="TIME", help="How long to confirm the answer."),
    ] = "10s",
    start: Annotated[
        str, typer.Option("--start", metavar="RATE", help="The rate to begin with.")
    ] = "1k",
    max_rate: Annotated[
        str, typer.Option("--max-rate", metavar="RATE", help="The highest rate to try.")
    ] = "1M",
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            metavar="PERCENT",
            help="How far a rate that does not hold may be above the answer.",
        ),
    ] = "5%",
    min_sent: Annotated[
        str,
        typer.Option(
            "--min-sent",
            metavar="PERCENT",
            help="The share of the planned requests that has to be sent.",
        ),
    ] = "99%",
    max_time: Annotated[
        str | None,
        typer.Option(
            "--max-time",
            metavar="TIME",
            show_default="what all steps may take, which is said first",
            help="End in this time, less precise if need be.",
        ),
    ] = None,
    json: Annotated[
        str | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Write steps and curve as JSON; - is standard output.",
        ),
    ] = None,
    html: Annotated[
        str | None,
        typer.Option("--html", metavar="FILE", help="Write a page with the curve as a chart."),
    ] = None,
) -> None:
    """Find the highest rate that holds an objective, and what is the limit there.

    Takes the options of a load as well (see loadgen --help), but for its rate,
    stages, duration and requests. A rate holds if the objective is met, every
    reply is right and nearly all requests were sent when they were due.

    The rate doubles until it does not hold, is halved in between down to the
    precision, and the best is confirmed for longer. One bad step is repeated.

    Exit codes: 0 a rate was confirmed; 1 wrong replies, or none could be
    confirmed; 2 usage; 4 no connection; 130 interrupted (what was found is printed).

    Example: loadgen capacity --slo 'p99<10ms' --target 10.0.0.7:6789 --conns 200
    """
    from loadgen.capacity import Terms
    from loadgen.embedded import EmbeddedServerError
    from loadgen.plan import PlanError, parse_rate
    from loadgen.slo import parse_slo
    from loadgen.traffic import TrafficError
    from loadgen.workers import WorkerError

    plan, site = _load(ctx.args)
    overhead = SETTLE + plan.warmup + START_UP + plan.grace
    overhead += plan.connect_seconds - plan.connect_timeout
    try:
        terms = Terms(
            slo=parsed("--slo", parse_slo, slo),
            start=parsed("--start", parse_rate, start),
            max_rate=parsed("--max-rate", parse_rate, max_rate),
            precision=parsed("--precision", _parse_percent, precision),
            step=parsed("--step-duration", parse_duration, step_duration),
            confirm=parsed("--confirm-duration", parse_duration, confirm_duration),
            sent_share=parsed("--min-sent", _parse_percent, min_sent),
            overhead=overhead,
            max_time=None if max_time is None else parsed("--max-time", parse_duration, max_time),
        )
    except ValueError as error:
        raise CommandError(f"capacity: {error}", EXIT_USAGE) from error
    check_outputs({"--json": json, "--html": html})
    try:
        with _terminable():
            findings = _find(plan, site, terms)
    except (PlanError, TrafficError) as error:
        raise CommandError(str(error), EXIT_USAGE) from error
    except (EmbeddedServerError, WorkerError) as error:
        raise CommandError(str(error), EXIT_FAILED) from error
    _report(findings, json, html)
    raise typer.Exit(_exit_code(findings.result))


def _load(arguments: list[str]) -> tuple[Plan, Site]:
    """The load that is asked for, at a rate that stands for those to come."""
    from dataclasses import replace

    from loadgen.cli import app

    command = typer.main.get_command(app)
    context = command.context_class(command, info_name="loadgen")
    given, _, _ = command.make_parser(context).parse_args(list(arguments))
    for name, option in OURS.items():
        if name in given:
            raise CommandError(
                f"{option}: the search chooses it; see --start, --max-rate and --step-duration",
                EXIT_USAGE,
            )
    # An open loop, so that what belongs to one is taken, and what does not is refused.
    plan, site = load_of(["--rate", "1", *arguments])
    return replace(plan, warmup=max(plan.warmup, WARMUP)), site


def _parse_percent(text: str) -> float:
    """The share in ``5%``."""
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not (text.endswith("%") and 0 <= share <= 1):
        raise ValueError(f"{text!r} is no share: expected one like 5%")
    return share


@contextmanager
def _terminable() -> Iterator[None]:
    """Have SIGTERM end the search as Ctrl-C does, also between two runs."""
    import signal

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _find(plan: Plan, site: Site, terms: Terms) -> Findings:
    """Search, and tell of each step on standard error."""
    import time
    from dataclasses import replace
    from datetime import UTC, datetime

    from loadgen import preflight
    from loadgen.capacity import Figures, search
    from loadgen.report.capacity import Findings, line
    from loadgen.running import run, spare_workers, standing
    from loadgen.verdict import EXIT_NO_CONNECTION
    from nbnet.notation import format_duration

    embedded = site.target is None
    workers = site.workers or spare_workers(plan, embedded=embedded)
    preflight.check_machine(plan, workers, embedded=embedded)
    site = replace(site, workers=workers)
    plan.share(0, workers)  # refused here if there are too many
    told = 0  # steps, but for repetitions

    def tell(step: Step) -> None:
        nonlocal told
        told += not (step.confirms or step.repeats)
        print(line(step, told), file=sys.stderr)

    def figures(finished: Run) -> Figures:
        if finished.verdict.exit_code == EXIT_NO_CONNECTION and not told:
            kinds = finished.tally.counts.errors
            raise CommandError(
                f"cannot connect to {target}: "
                + ", ".join(kind.removeprefix("connect: ") for kind in kinds)
                + " (start a server with: nbnet serve; or leave --target away to use the bundled "
                "one)",
                EXIT_NO_CONNECTION,
            )
        return Figures.of(finished)

    def measure(rate: float, seconds: float) -> Figures:
        time.sleep(SETTLE)
        return run(replace(plan, rate=rate, duration=seconds), site, figures)

    with standing(site) as (target, site):
        print(
            f"searching for the highest rate that holds {terms.slo}, in at most "
            f"{_minutes(terms.seconds)}",
            file=sys.stderr,
        )
        started_at, started = datetime.now(UTC), time.monotonic()
        result = search(terms, measure, clock=time.monotonic, tell=tell)
        seconds = time.monotonic() - started
    print(f"took {format_duration(seconds)}", file=sys.stderr)
    return Findings(
        result=result,
        plan=plan,
        target=target,
        embedded=embedded,
        workers=workers,
        started_at=started_at,
        seconds=seconds,
    )


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _report(findings: Findings, json: str | None, html: str | None) -> None:
    """Save and print what was found; a full disk must not cost the summary."""
    from loadgen.report import files
    from loadgen.report.capacity import document, summary

    unsaved: list[str] = []

    def save(path: str | None, text: Callable[[], str]) -> None:
        if path is not None:
            try:
                files.write(path, [text()])
            except OSError as error:
                unsaved.append(f"cannot write {path}: {error.strerror}")

    def as_json() -> str:
        import json

        return json.dumps(document(findings), indent=2, allow_nan=False) + "\n"

    def as_page() -> str:
        from loadgen.report.capacity_html import page

        return page(findings)

    save(json, as_json)
    save(html, as_page)
    # Standard output belongs to what is asked for there.
    print(summary(findings), file=sys.stderr if "-" in (json, html) else sys.stdout, flush=True)
    if unsaved:
        raise CommandError("; ".join(unsaved), EXIT_FAILED)


def _exit_code(result: Result) -> int:
    from loadgen.capacity import Ending
    from loadgen.verdict import EXIT_FINE, EXIT_NO_CONNECTION

    if result.ending is Ending.INTERRUPTED:
        return EXIT_INTERRUPTED
    if result.ending is Ending.UNCONNECTED:
        return EXIT_NO_CONNECTION
    return EXIT_FAILED if result.confirmed is None else EXIT_FINE

"""``loadgen chaos``: its options, its report on a terminal, its JSON (``loadgen-chaos/1``)."""

from __future__ import annotations

import math
import sys
import textwrap
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from loadgen.commands import check_outputs, load_of, save_json
from nbnet.command import EXIT_FAILED, EXIT_USAGE, CommandError, parsed
from nbnet.notation import format_duration, parse_count, parse_duration, parse_size

if TYPE_CHECKING:
    from loadgen.chaos import ChaosRun, PhaseCounts

SCHEMA: Final = "loadgen-chaos/1"
_WIDTH: Final = 80
_BYTES: Final = 8
"""Bytes shown of what came and of what should have; the JSON has more."""


def chaos(
    ctx: typer.Context,
    abuses: Annotated[
        str,
        typer.Option(
            "--abuses",
            metavar="LIST",
            help="split, coalesce, slow-read, slow-write, half-close, reset, bad-header, oversize, "
            "idle, connect-flood; with commas between, or all.",
        ),
    ] = "all",
    abusers: Annotated[
        str,
        typer.Option("--abusers", metavar="N", help="Connections of each kind, up to 1000."),
    ] = "5",
    calm: Annotated[
        str,
        typer.Option("--calm", metavar="TIME", help="How long the load is alone at first."),
    ] = "3s",
    storm: Annotated[
        str, typer.Option("--storm", metavar="TIME", help="How long it has company.")
    ] = "10s",
    recovery: Annotated[
        str,
        typer.Option("--recovery", metavar="TIME", help="How long it is alone again."),
    ] = "3s",
    abuse_timeout: Annotated[
        str,
        typer.Option(
            "--abuse-timeout", metavar="TIME", help="How long an abuser waits for an answer."
        ),
    ] = "5s",
    max_frame: Annotated[
        str | None,
        typer.Option(
            "--max-frame",
            metavar="SIZE",
            help="The server's limit, if it has one: a request over it has to end the connection.",
        ),
    ] = None,
    max_slowdown: Annotated[
        str | None,
        typer.Option(
            "--max-slowdown",
            metavar="FACTOR",
            help="Exit with 3 if p99 or goodput become so many times worse than in the calm phase.",
        ),
    ] = None,
    own: Annotated[
        bool,
        typer.Option(
            "--i-own-this-target",
            help="Abuse a server that is not on this machine: you may, and you answer for it.",
        ),
    ] = False,
    json: Annotated[
        str | None,
        typer.Option(
            "--json", metavar="FILE", help="Write the figures as JSON; - is standard output."
        ),
    ] = None,
) -> None:
    """Abuse a server while a verified load goes on, and see whether the load is disturbed.

    Calm, storm, calm again. In the storm hostile clients split and glue frames,
    drip, stall, half-close, reset, send bad headers and too much; for each it is
    checked whether the server answers as the protocol says. Phases last whole
    quarters of a second.

    Takes the options of a load as well (see loadgen --help), but for its length;
    without any, the load is an open loop of 2,000 requests/s on 50 connections.
    Only targets on this machine are taken. From 5 times on, a slowdown is said.

    Exit codes: 0 undisturbed and every abuse answered rightly; 1 wrong, failed or
    lost, or an abuse answered wrongly; 2 usage, or no target of this machine;
    3 slower than --max-slowdown; 4 no connection; 130 interrupted (the report is
    printed).

    Examples:

    loadgen chaos

    loadgen chaos --target 127.0.0.1:6789 --rate 5k --abuses reset,bad-header --abusers 50
    """
    plan, site = load_of(ctx.args)

    from dataclasses import replace

    from loadgen.chaos import Chaos, TargetError, local_target, plan_of, unleash
    from loadgen.chaos_abuses import parse_abuses
    from loadgen.chaos_process import StormError
    from loadgen.embedded import EmbeddedServerError
    from loadgen.plan import PlanError
    from loadgen.traffic import TrafficError
    from loadgen.verdict import EXIT_NO_CONNECTION
    from loadgen.workers import WorkerError

    try:
        asked = Chaos(
            abuses=parsed("--abuses", parse_abuses, abuses),
            abusers=parsed("--abusers", parse_count, abusers),
            calm=parsed("--calm", parse_duration, calm),
            storm=parsed("--storm", parse_duration, storm),
            recovery=parsed("--recovery", parse_duration, recovery),
            patience=parsed("--abuse-timeout", parse_duration, abuse_timeout),
            max_frame=None if max_frame is None else parsed("--max-frame", parse_size, max_frame),
            max_slowdown=None
            if max_slowdown is None
            else parsed("--max-slowdown", _factor, max_slowdown),
        )
        plan = plan_of(plan, asked)
        check_outputs({"--json": json})
        if site.target is not None:
            try:
                site = replace(site, target=local_target(site.target, owned=own))
            except OSError as error:
                raise CommandError(
                    f"cannot connect to {site.target}: {error.strerror}", EXIT_NO_CONNECTION
                ) from error
        finished = unleash(plan, site, asked)
    except (PlanError, TrafficError, TargetError) as error:
        raise CommandError(str(error), EXIT_USAGE) from error
    except (EmbeddedServerError, WorkerError, StormError) as error:
        raise CommandError(str(error), EXIT_FAILED) from error
    raise typer.Exit(_report(finished, json))


def _factor(text: str) -> float:
    try:
        return float(text.removesuffix("x"))
    except ValueError:
        raise ValueError(f"{text!r} is no factor: expected one like 5 or 2.5") from None


def _report(finished: ChaosRun, path: str | None) -> int:
    """Print and save what it came to; give the exit code."""
    from loadgen.verdict import EXIT_NO_CONNECTION

    unsaved: OSError | None = None
    if path is not None:
        try:
            save_json(document(finished), path)
        except OSError as error:
            unsaved = error
    if finished.verdict.exit_code == EXIT_NO_CONNECTION:
        errors = finished.run.tally.counts.errors
        reasons = ", ".join(kind.removeprefix("connect: ") for kind in errors)
        raise CommandError(
            f"cannot connect to {finished.run.target}: {reasons} (start a server with: nbnet "
            "serve; or leave --target away to use the bundled one)",
            EXIT_NO_CONNECTION,
        )
    print(summary(finished), file=sys.stderr if path == "-" else sys.stdout, flush=True)
    if unsaved is not None:
        raise CommandError(f"cannot write {path}: {unsaved.strerror}", EXIT_FAILED) from unsaved
    return finished.verdict.exit_code


# For people ---------------------------------------------------------------------------


def summary(finished: ChaosRun) -> str:
    """What it came to as text, without a newline at the end; the verdict stands last."""
    run = finished.run
    plan = run.plan
    rate = f"open loop, {plan.rate:,.10g} requests/s" if plan.rate is not None else "closed loop"
    server = f"{run.target}{' (bundled server)' if finished.embedded else ''}"
    lines = [
        *textwrap.wrap(f"{plan.connections:,} connections to {server}, {rate}", _WIDTH),
        "",
        *_phases(finished),
        "",
        *_abuses(finished),
        *_examples(finished),
    ]
    for note in run.notes:
        lines += ["", *textwrap.wrap(note, _WIDTH)]
    return "\n".join([*lines, "", *textwrap.wrap(finished.verdict.text, _WIDTH)])


def _phases(finished: ChaosRun) -> list[str]:
    head = ("load", "time", "goodput/s", "p50", "p99", "max", "wrong", "failed", "lost")
    lines = [_phase(*head, "slower")]
    calm = finished.phases[0]
    for phase in finished.phases:
        counts = phase.counts
        p50, p99, most = _latencies(phase)
        lines.append(
            _phase(
                phase.name,
                format_duration(phase.seconds),
                f"{phase.goodput:,.0f}",
                *(_time(value) for value in (p50, p99, most)),
                f"{counts.wrong:,}",
                f"{counts.failed + counts.timed_out:,}",
                f"{counts.lost:,}",
                "" if phase is calm else _times(phase.slowdown(calm)),
            )
        )
    return lines


def _phase(name: str, *cells: str) -> str:
    widths = (7, 10, 8, 8, 8, 6, 7, 6, 8)
    pairs = zip(cells, widths, strict=True)
    return f"{name:<8}" + "".join(f"{cell:>{width}}" for cell, width in pairs).rstrip()


def _abuses(finished: ChaosRun) -> list[str]:
    from loadgen.chaos_abuses import ABUSES

    lines = [_abuse("abuse", "clients", "right", "wrong", "the protocol demands")]
    for each in finished.outcomes:
        begun, right, wrong = (f"{number:,}" for number in (each.begun, each.right, each.wrong))
        lines.append(_abuse(each.name, begun, right, wrong, ABUSES[each.name].demand))
    return lines


def _abuse(name: str, begun: str, right: str, wrong: str, demand: str) -> str:
    return f"{name:<14}{begun:>8}{right:>8}{wrong:>8}   {demand}"


def _examples(finished: ChaosRun) -> list[str]:
    lines = []
    for outcome in finished.outcomes:
        for example in outcome.examples:
            what = f"{outcome.name} {example.number}"
            if example.variant:
                what += f" ({example.variant})"
            text = f"{what}: {example.said}"
            if example.expected:
                text += f", expected {example.expected[:_BYTES].hex()}"
            if example.got:
                text += f", got {example.got[:_BYTES].hex()}"
            lines += textwrap.wrap(text, _WIDTH, initial_indent="  ", subsequent_indent="    ")
    return ["", "answered otherwise; bytes in hex, from where they differ", *lines] if lines else []


def _latencies(phase: PhaseCounts) -> tuple[int | None, int | None, int | None]:
    from loadgen.histogram import Histogram

    if not phase.counts.latency:
        return None, None, None
    histogram = Histogram(phase.counts.latency)
    p50, p99 = histogram.percentiles([50, 99])
    return p50, p99, histogram.max


def _time(nanoseconds: int | None) -> str:
    return "-" if nanoseconds is None else format_duration(nanoseconds / 1e9)


def _times(factor: float | None) -> str:
    if factor is None:
        return "-"
    return "dead" if math.isinf(factor) else f"{factor:.1f}x"


# For programs -------------------------------------------------------------------------


def document(finished: ChaosRun) -> dict[str, Any]:
    """The same as JSON values: seconds as floats, counts as integers, bytes in hex."""
    from loadgen.chaos_abuses import ABUSES
    from loadgen.report.json import document as load_document

    asked, calm = finished.chaos, finished.phases[0]
    return {
        "schema": SCHEMA,
        "target": str(finished.run.target),
        "embedded": finished.embedded,
        "interrupted": finished.run.interrupted,
        "abusers": asked.abusers,
        "abuse_timeout_seconds": asked.patience,
        "max_frame": asked.max_frame,
        "max_slowdown": asked.max_slowdown,
        "phases": [_phase_values(phase, calm) for phase in finished.phases],
        "abuses": [
            {
                "name": outcome.name,
                "demand": ABUSES[outcome.name].demand,
                "begun": outcome.begun,
                "right": outcome.right,
                "wrong": outcome.wrong,
                "examples": [
                    {
                        "number": example.number,
                        "variant": example.variant,
                        "said": example.said,
                        "expected": example.expected.hex(),
                        "got": example.got.hex(),
                    }
                    for example in outcome.examples
                ],
            }
            for outcome in finished.outcomes
        ],
        "disturbed": finished.disturbed,
        "slowdown": _number(finished.slowdown),
        "slowed": finished.slowed,
        "load": load_document(finished.run) | {"embedded": finished.embedded},
        "verdict": finished.verdict.text,
        "exit_code": finished.verdict.exit_code,
    }


def _phase_values(phase: PhaseCounts, calm: PhaseCounts) -> dict[str, Any]:
    counts = phase.counts
    p50, p99, most = (value and value / 1e9 for value in _latencies(phase))
    return {
        "name": phase.name,
        "duration_seconds": phase.seconds,
        "goodput_per_second": phase.goodput,
        "sent": counts.sent,
        "verified": counts.verified,
        "wrong": counts.wrong,
        "failed": counts.failed,
        "timed_out": counts.timed_out,
        "lost": counts.lost,
        "unsent": counts.unsent,
        "latency_seconds": {"p50": p50, "p99": p99, "max": most},
        "slowdown": None if phase is calm else _number(phase.slowdown(calm)),
    }


def _number(factor: float | None) -> float | None:
    """JSON has no infinity: a phase in which nothing was served has no figure."""
    return None if factor is None or math.isinf(factor) else factor

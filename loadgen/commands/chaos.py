"""``loadgen chaos``: a verified load in the company of hostile clients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from loadgen import options
from loadgen.commands import (
    as_json,
    check_connected,
    check_here,
    check_outputs,
    load_of,
    publish,
    refusals,
)
from nbnet.command import EXIT_FAILED, EXIT_USAGE, FLAG, CommandError, optional, parsed
from nbnet.notation import parse_count, parse_duration, parse_size

if TYPE_CHECKING:
    from loadgen.chaos import ChaosRun
    from loadgen.running import Site


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
            metavar=FLAG,
            help="Abuse a server that is not on this machine: you may, and you answer for it.",
        ),
    ] = False,
    json: options.Json = None,
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
    check_here(site, "chaos")

    from loadgen.chaos import Chaos, TargetError, plan_of, unleash
    from loadgen.chaos_abuses import parse_abuses
    from loadgen.chaos_process import StormError

    with refusals():
        asked = Chaos(
            abuses=parsed("--abuses", parse_abuses, abuses),
            abusers=parsed("--abusers", parse_count, abusers),
            calm=parsed("--calm", parse_duration, calm),
            storm=parsed("--storm", parse_duration, storm),
            recovery=parsed("--recovery", parse_duration, recovery),
            patience=parsed("--abuse-timeout", parse_duration, abuse_timeout),
            max_frame=optional("--max-frame", parse_size, max_frame),
            max_slowdown=optional("--max-slowdown", _factor, max_slowdown),
        )
        plan = plan_of(plan, asked)
        check_outputs({"--json": json})
        try:
            finished = unleash(plan, _at_home(site, owned=own), asked)
        except TargetError as error:
            raise CommandError(str(error), EXIT_USAGE) from error
        except StormError as error:
            raise CommandError(str(error), EXIT_FAILED) from error
    raise typer.Exit(_report(finished, json))


def _at_home(site: Site, *, owned: bool) -> Site:
    """The same, its server being on this machine or the user's own."""
    from dataclasses import replace

    from loadgen.chaos import local_target
    from loadgen.verdict import EXIT_NO_CONNECTION

    if site.target is None:
        return site
    try:
        return replace(site, target=local_target(site.target, owned=owned))
    except OSError as error:
        raise CommandError(
            f"cannot connect to {site.target}: {error.strerror}", EXIT_NO_CONNECTION
        ) from error


def _factor(text: str) -> float:
    try:
        return float(text.removesuffix("x"))
    except ValueError:
        raise ValueError(f"{text!r} is no factor: expected one like 5 or 2.5") from None


def _report(finished: ChaosRun, path: str | None) -> int:
    from loadgen.report.chaos import document, summary

    check_connected(finished.run)
    publish(summary(finished), (path, lambda: as_json(document(finished))))
    return finished.verdict.exit_code

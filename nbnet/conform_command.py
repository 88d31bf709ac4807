"""``nbnet conform``: its options, and what they come to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from nbnet.command import EXIT_FAILED, EXIT_USAGE, FLAG, CommandError, parsed
from nbnet.notation import Address, parse_address, parse_count, parse_duration

if TYPE_CHECKING:
    from nbnet.conform_wire import Tls

EXIT_CANNOT_CONNECT: Final = 3
MOST_JOBS: Final = 1000
_EXPECT: Final = ("reverse", "echo")
_TLS: Final = "TLS (PEM files; for tls://...)"


def _tls_option(option: str, unit: str, text: str) -> Any:
    return typer.Option(option, metavar=unit, help=text, rich_help_panel=_TLS, show_default=False)


def conform(
    target: Annotated[
        str,
        typer.Option(
            "--target",
            "-t",
            metavar="TARGET",
            help="HOST:PORT, [IPv6]:PORT, tls://HOST:PORT or unix:PATH.",
        ),
    ] = "127.0.0.1:6789",
    only: Annotated[
        str,
        typer.Option(
            metavar="GLOB", help="Cases whose group, or group/name, this fits: cr-lf, */*lf*."
        ),
    ] = "*",
    expect: Annotated[
        str, typer.Option(metavar="WHAT", help="What the server does: reverse or echo.")
    ] = "reverse",
    timeout: Annotated[
        str,
        typer.Option(metavar="TIME", help="How long an answer, a connection or an end may take."),
    ] = "2s",
    silence: Annotated[
        str,
        typer.Option(metavar="TIME", help="How long nothing may come where nothing is due."),
    ] = "200ms",
    jobs: Annotated[
        str, typer.Option(metavar="N", help="Cases at the same time; 1: one by one.")
    ] = "64",
    listed: Annotated[
        bool, typer.Option("--list", metavar=FLAG, help="Show the cases, play none.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", metavar=FLAG, help="Print the results as JSON.")
    ] = False,
    tls_ca: Annotated[
        Path | None,
        _tls_option("--tls-ca", "FILE", "Who may sign the server's certificate."),
    ] = None,
    tls_cert: Annotated[
        Path | None, _tls_option("--tls-cert", "FILE", "The certificate to show to the server.")
    ] = None,
    tls_key: Annotated[
        Path | None,
        _tls_option("--tls-key", "FILE", "Its private key, if it stands in a file of its own."),
    ] = None,
    tls_server_name: Annotated[
        str | None,
        _tls_option("--tls-server-name", "NAME", "The name in it, if not the target's."),
    ] = None,
) -> None:
    """Check that a server speaks the protocol, case by case.

    Any server will do that reverses payloads, or echoes them. Exit codes: 0 it
    passes all cases, 1 it fails some, 2 usage, 3 it takes no connection.
    """
    from nbnet.conformance import cases, groups

    address = parsed("--target", parse_address, target)
    if expect not in _EXPECT:
        raise CommandError(f"--expect: {expect!r} is none of {', '.join(_EXPECT)}", EXIT_USAGE)
    patience, quiet = (
        _positive(option, text) for option, text in (("--timeout", timeout), ("--silence", silence))
    )
    count = parsed("--jobs", parse_count, jobs)
    if not 1 <= count <= MOST_JOBS:
        raise CommandError(f"--jobs: {count}, expected 1 to {MOST_JOBS}", EXIT_USAGE)
    if listed and as_json:
        raise CommandError("--list: it is for people, expected without --json", EXIT_USAGE)
    tls = _tls(address, tls_ca, tls_cert, tls_key, tls_server_name)
    chosen = cases(only)
    if not chosen:
        raise CommandError(f"--only: no case is called {only!r} (see --list)", EXIT_USAGE)

    from nbnet import conform_report as reports
    from nbnet.conform import conform as play
    from nbnet.conform_wire import CannotConnect
    from nbnet.machine import raise_fd_limit

    if listed:
        _print(reports.listing(chosen, groups()))
        return
    raise_fd_limit()
    try:
        outcomes = play(
            address,
            chosen,
            tls=tls,
            timeout=patience,
            silence=quiet,
            jobs=count,
            echo=expect == "echo",
        )
    except CannotConnect as error:
        raise CommandError(
            f"cannot connect to {address}: {error}{_advice(str(error), tls)}",
            EXIT_CANNOT_CONNECT,
        ) from error
    if as_json:
        import json

        _print(json.dumps(reports.document(outcomes, groups(), str(address), expect), indent=2))
    else:
        _print(reports.report(outcomes, str(address)))
    if any(outcome.fault for outcome in outcomes):
        raise typer.Exit(EXIT_FAILED)


def _positive(option: str, text: str) -> float:
    seconds = parsed(option, parse_duration, text)
    if not seconds:
        raise CommandError(f"{option}: {text}, expected more than 0", EXIT_USAGE)
    return seconds


def _tls(
    address: Address,
    authority: Path | None,
    cert: Path | None,
    key: Path | None,
    server_name: str | None,
) -> Tls | None:
    given = {
        "--tls-ca": authority,
        "--tls-cert": cert,
        "--tls-key": key,
        "--tls-server-name": server_name,
    }
    options = [option for option, value in given.items() if value is not None]
    if not address.tls:
        if options:
            raise CommandError(
                f"{options[0]}: the target {address} is none of TLS, expected tls://HOST:PORT",
                EXIT_USAGE,
            )
        return None
    if key is not None and cert is None:
        raise CommandError("--tls-key: expected --tls-cert with it", EXIT_USAGE)
    from nbnet.conform_wire import Tls
    from nbnet.tls import client_context

    try:
        context = client_context(authority, cert, key)
    except ValueError as error:
        raise CommandError(str(error), EXIT_USAGE) from error
    return Tls(context, server_name or address.host)


def _advice(reason: str, tls: Tls | None) -> str:
    """What to do about it, if that is plain."""
    if "certificate" in reason:
        return " (--tls-ca: whom to trust; --tls-server-name: the name in the certificate)"
    if "refused" in reason or "No such file" in reason:
        return " (to start a server: nbnet serve)"
    return " (does the server speak TLS?)" if tls is not None else ""


def _print(text: str) -> None:
    print(text, flush=True)

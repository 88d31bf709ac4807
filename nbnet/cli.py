"""The command ``nbnet``."""

from __future__ import annotations

import logging
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from nbnet.board import MetricsUnavailable
from nbnet.command import EXIT_USAGE, FLAG, CommandError, make_app, version_option
from nbnet.command import run as run_command
from nbnet.config import DEFAULT_HANDLER, read_options
from nbnet.conform_command import conform
from nbnet.limits import Limits
from nbnet.listeners import ListenError
from nbnet.logs import FORMATTERS, logging_to
from nbnet.machine import raise_fd_limit, usable_cores
from nbnet.notation import Target, parse_count
from nbnet.server import DEFAULT_HOST, DEFAULT_PORT, serve_settings

app = make_app(no_args_is_help=True)

EXIT_CANNOT_LISTEN: Final = 1
MOST_WORKERS: Final = 1024
MOST_PORT: Final = 65535

_LOG_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "error": logging.ERROR}
_DEFAULTS = Limits()
_LIMITS = "Limits (a time of 0 is none)"
_TLS = "TLS (PEM files)"
_OPERATION = "Operation"


def main() -> None:
    """Run the command; the console script."""
    run_command(app, "nbnet")


@app.callback()
def nbnet(_version: Annotated[bool, version_option("nbnet")] = False) -> None:
    """A TCP server for messages with a length before them: 00003abc -> 00003cba."""


def _option(panel: str, option: str, unit: str, text: str, default: object = None) -> Any:
    # What was not told is None: it may stand in the file.
    shown: Any = False if default is None else str(default)
    return typer.Option(option, metavar=unit, help=text, rich_help_panel=panel, show_default=shown)


_limit = partial(_option, _LIMITS)


@app.command("serve")
def serve_command(
    host: Annotated[
        str,
        typer.Option(
            "--host", metavar="HOST", help='Address or name to listen on; "*" is every address.'
        ),
    ] = DEFAULT_HOST,
    port: Annotated[
        str, typer.Option(metavar="N", help="TCP port; 0 lets the kernel choose.")
    ] = str(DEFAULT_PORT),
    unix: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="Listen on a unix socket instead of a port.", show_default=False
        ),
    ] = None,
    handler: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="What answers: a function from the payload (bytes) to the reply (bytes); "
            "one with a second parameter gets the peer there.",
            show_default=DEFAULT_HANDLER,
        ),
    ] = None,
    threads: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Threads for a handler that blocks; 0: it runs in the event loop. One "
            "connection has half of them at most.",
            show_default="0",
        ),
    ] = None,
    workers: Annotated[
        str, typer.Option(metavar="N", help="Processes that serve; auto: one a core.")
    ] = "1",
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="TOML file with handler, threads, limits, TLS and proxies; SIGHUP reads it again.",
            show_default=False,
        ),
    ] = None,
    poller: Annotated[
        str, typer.Option(metavar="NAME", help="What waits for events: epoll, poll or select.")
    ] = "epoll",
    trigger: Annotated[
        str, typer.Option(metavar="WHEN", help="When events come: level or (epoll only) edge.")
    ] = "level",
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Serve Prometheus metrics there.",
            rich_help_panel=_OPERATION,
            show_default=False,
        ),
    ] = None,
    log_level: Annotated[
        str,
        typer.Option(
            metavar="LEVEL",
            help="debug (every closed connection), info or error.",
            rich_help_panel=_OPERATION,
        ),
    ] = "info",
    log_format: Annotated[
        str,
        typer.Option(
            metavar="FORMAT", help="text, or json: an object a line.", rich_help_panel=_OPERATION
        ),
    ] = "text",
    tls_cert: Annotated[
        str | None, _option(_TLS, "--tls-cert", "FILE", "The certificate chain; turns TLS on.")
    ] = None,
    tls_key: Annotated[
        str | None,
        _option(_TLS, "--tls-key", "FILE", "Its private key, if it stands in a file of its own."),
    ] = None,
    tls_client_ca: Annotated[
        str | None,
        _option(_TLS, "--tls-client-ca", "FILE", "Clients must show a certificate of these."),
    ] = None,
    proxy_protocol: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CIDR",
            help="Addresses of proxies (10.0.0.0/8, ::1, unix; repeated, or with commas), "
            "which must say with a PROXY header for whom they speak.",
            rich_help_panel=_OPERATION,
            show_default=False,
        ),
    ] = None,
    max_connections: Annotated[
        str | None,
        _limit(
            "--max-connections",
            "N",
            "Connections of a worker; 0: what the limit of open files leaves.",
            0,
        ),
    ] = None,
    refuse: Annotated[
        bool,
        typer.Option(
            "--refuse",
            metavar=FLAG,
            help="At that number close newcomers instead of letting them wait.",
            rich_help_panel=_LIMITS,
        ),
    ] = False,
    max_per_ip: Annotated[
        str | None,
        _limit("--max-per-ip", "N", "Connections of a worker from one address; 0: any number.", 0),
    ] = None,
    max_frame: Annotated[
        str | None, _limit("--max-frame", "SIZE", "Bytes in a request.", _DEFAULTS.max_frame)
    ] = None,
    frames_per_turn: Annotated[
        str | None,
        _limit(
            "--frames-per-turn",
            "N",
            "Requests answered before others have their turn.",
            _DEFAULTS.frames_per_turn,
        ),
    ] = None,
    high_water: Annotated[
        str | None,
        _limit(
            "--high-water",
            "SIZE",
            "Unsent replies of a connection above which it is not read.",
            "256KiB",
        ),
    ] = None,
    low_water: Annotated[
        str | None,
        _limit("--low-water", "SIZE", "Unsent replies below which it is read again.", "64KiB"),
    ] = None,
    max_output: Annotated[
        str | None,
        _limit("--max-output", "SIZE", "Unsent replies of a worker's connections.", "256MiB"),
    ] = None,
    handshake_timeout: Annotated[
        str | None,
        _limit("--handshake-timeout", "TIME", "A TLS handshake may take so long.", "10s"),
    ] = None,
    first_byte_timeout: Annotated[
        str | None,
        _limit("--first-byte-timeout", "TIME", "A new connection may be silent so long.", "60s"),
    ] = None,
    frame_timeout: Annotated[
        str | None,
        _limit("--frame-timeout", "TIME", "A request may take so long to come in.", "10s"),
    ] = None,
    idle_timeout: Annotated[
        str | None,
        _limit("--idle-timeout", "TIME", "A connection may go so long without a request.", "300s"),
    ] = None,
    write_timeout: Annotated[
        str | None, _limit("--write-timeout", "TIME", "Replies may go unread so long.", "30s")
    ] = None,
    linger: Annotated[
        str | None,
        _limit("--linger", "TIME", "A connection that is ended may take so long to close.", "5s"),
    ] = None,
    drain: Annotated[
        str | None,
        _limit(
            "--drain",
            "TIME",
            "Connections may take so long to end when the server stops.",
            "10s",
        ),
    ] = None,
) -> None:
    """Serve until Ctrl-C or SIGTERM; SIGHUP reloads.

    The first line on stderr names the address really bound:
    "listening on HOST:PORT". Connections that are stopped get the replies that
    they have earned; a second Ctrl-C ends at once. A reload reads the handler,
    the file and the certificates again, in new processes that take over the
    connections.
    """
    told = {
        "handler": handler,
        "threads": threads,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "tls_client_ca": tls_client_ca,
        "proxy_protocol": ",".join(proxy_protocol) if proxy_protocol else None,
        "max_connections": max_connections,
        "refuse": "True" if refuse else None,
        "max_per_ip": max_per_ip,
        "max_frame": max_frame,
        "frames_per_turn": frames_per_turn,
        "high_water": high_water,
        "low_water": low_water,
        "max_output": max_output,
        "handshake_timeout": handshake_timeout,
        "first_byte_timeout": first_byte_timeout,
        "frame_timeout": frame_timeout,
        "idle_timeout": idle_timeout,
        "write_timeout": write_timeout,
        "linger": linger,
        "drain": drain,
    }
    for option, value, known in (
        ("--log-level", log_level, _LOG_LEVELS),
        ("--log-format", log_format, FORMATTERS),
    ):
        if value not in known:
            raise CommandError(f"{option}: {value!r} is none of {', '.join(known)}", EXIT_USAGE)
    # Of all loggers: what a handler's module has to say is to be seen, too.
    log_here = partial(
        logging_to, sys.stderr, level=_LOG_LEVELS[log_level], style=log_format, logger=""
    )
    try:
        options = read_options(told, config)
        raise_fd_limit()
        with log_here(threaded=False):
            serve_settings(
                lambda: read_options(told, config).load(poller, trigger),
                host,
                _port(port),
                unix=unix,
                metrics=metrics,
                workers=_workers(workers),
                on_listening=_announce,
                secure=options.tls is not None,
                last=True,
                in_child=log_here,
            )
    except (ListenError, MetricsUnavailable) as error:
        raise CommandError(str(error), EXIT_CANNOT_LISTEN) from error
    except ValueError as error:
        raise CommandError(str(error), EXIT_USAGE) from error


app.command("conform")(conform)


def _workers(text: str) -> int:
    if text == "auto":
        return usable_cores()
    return _number("--workers", text, 1, MOST_WORKERS, " or auto")


def _port(text: str) -> int:
    return _number("--port", text, 0, MOST_PORT)


def _number(option: str, text: str, least: int, most: int, other: str = "") -> int:
    try:
        number = parse_count(text)
    except ValueError:
        number = -1
    if not least <= number <= most:
        expected = f"expected {least} to {most}{other}"
        raise CommandError(f"{option}: {text!r}: {expected}", EXIT_USAGE)
    return number


def _announce(address: Target | str) -> None:
    print(f"listening on {address}", file=sys.stderr, flush=True)

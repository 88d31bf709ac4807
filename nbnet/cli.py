"""The command ``nbnet``."""

from __future__ import annotations

import logging
import sys
from typing import Annotated, Any, Final

import typer

from nbnet.command import EXIT_USAGE, CommandError, make_app, parsed, version_option
from nbnet.command import run as run_command
from nbnet.handlers import load_handler
from nbnet.limits import Limits
from nbnet.machine import raise_fd_limit
from nbnet.notation import Target, parse_count, parse_duration, parse_size
from nbnet.server import DEFAULT_HOST, DEFAULT_PORT, ListenError, serve

app = make_app(no_args_is_help=True)

EXIT_CANNOT_LISTEN: Final = 1

_LOG_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "error": logging.ERROR}
_DEFAULTS = Limits()
_LIMITS = "Limits (a time of 0 is none)"


def main() -> None:
    """Run the command; the console script."""
    run_command(app, "nbnet")


@app.callback()
def nbnet(_version: Annotated[bool, version_option("nbnet")] = False) -> None:
    """A TCP server for messages with a length before them: 00003abc -> 00003cba."""


def _limit(option: str, unit: str, text: str) -> Any:
    return typer.Option(option, metavar=unit, help=text, rich_help_panel=_LIMITS)


@app.command("serve")
def serve_command(
    host: Annotated[str, typer.Option(help="Address or name to listen on.")] = DEFAULT_HOST,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="TCP port; 0 lets the kernel choose.")
    ] = DEFAULT_PORT,
    handler: Annotated[
        str,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="What answers: a function from the payload (bytes) to the reply (bytes).",
        ),
    ] = "nbnet.handlers:reverse",
    poller: Annotated[
        str, typer.Option(metavar="NAME", help="What waits for events: epoll, poll or select.")
    ] = "epoll",
    trigger: Annotated[
        str, typer.Option(metavar="WHEN", help="When events come: level or (epoll only) edge.")
    ] = "level",
    log_level: Annotated[
        str, typer.Option(metavar="LEVEL", help="debug (every closed connection), info or error.")
    ] = "info",
    max_connections: Annotated[
        str,
        _limit("--max-connections", "N", "Connections; 0: what the limit of open files leaves."),
    ] = "0",
    refuse: Annotated[
        bool,
        typer.Option(
            "--refuse",
            help="At that number close newcomers instead of letting them wait.",
            rich_help_panel=_LIMITS,
        ),
    ] = False,
    max_per_ip: Annotated[str, _limit("--max-per-ip", "N", "Connections from one address.")] = "0",
    max_frame: Annotated[str, _limit("--max-frame", "SIZE", "Bytes in a request.")] = str(
        _DEFAULTS.max_frame
    ),
    frames_per_turn: Annotated[
        str, _limit("--frames-per-turn", "N", "Requests answered before others have their turn.")
    ] = str(_DEFAULTS.frames_per_turn),
    high_water: Annotated[
        str,
        _limit(
            "--high-water", "SIZE", "Unsent replies of a connection above which it is not read."
        ),
    ] = "256KiB",
    low_water: Annotated[
        str, _limit("--low-water", "SIZE", "Unsent replies below which it is read again.")
    ] = "64KiB",
    max_output: Annotated[
        str, _limit("--max-output", "SIZE", "Unsent replies of all connections together.")
    ] = "256MiB",
    first_byte_timeout: Annotated[
        str, _limit("--first-byte-timeout", "TIME", "A new connection may be silent so long.")
    ] = "60s",
    frame_timeout: Annotated[
        str, _limit("--frame-timeout", "TIME", "A request may take so long to come in.")
    ] = "10s",
    idle_timeout: Annotated[
        str, _limit("--idle-timeout", "TIME", "A connection may go so long without a request.")
    ] = "300s",
    write_timeout: Annotated[
        str, _limit("--write-timeout", "TIME", "Replies may go unread so long.")
    ] = "30s",
    drain: Annotated[
        str, _limit("--drain", "TIME", "Connections may take so long to end when the server stops.")
    ] = "10s",
) -> None:
    """Serve until Ctrl-C or SIGTERM.

    The first line on stderr names the address really bound:
    "listening on HOST:PORT". Connections that are stopped get the replies that
    they have earned; a second Ctrl-C ends at once.

    Exit codes: 0 stopped, 1 cannot listen there, 2 usage.
    """
    if log_level not in _LOG_LEVELS:
        raise CommandError(
            f"--log-level: {log_level!r} is none of {', '.join(_LOG_LEVELS)}", EXIT_USAGE
        )
    logging.basicConfig(
        stream=sys.stderr,
        level=_LOG_LEVELS[log_level],
        format="%(asctime)s %(levelname)s %(message)s",
    )
    try:
        answer = load_handler(handler)
        limits = Limits(
            max_connections=parsed("--max-connections", parse_count, max_connections),
            refuse=refuse,
            max_per_ip=parsed("--max-per-ip", parse_count, max_per_ip),
            max_frame=parsed("--max-frame", parse_size, max_frame),
            frames_per_turn=parsed("--frames-per-turn", parse_count, frames_per_turn),
            high_water=parsed("--high-water", parse_size, high_water),
            low_water=parsed("--low-water", parse_size, low_water),
            max_output=parsed("--max-output", parse_size, max_output),
            first_byte_timeout=parsed("--first-byte-timeout", parse_duration, first_byte_timeout),
            frame_timeout=parsed("--frame-timeout", parse_duration, frame_timeout),
            idle_timeout=parsed("--idle-timeout", parse_duration, idle_timeout),
            write_timeout=parsed("--write-timeout", parse_duration, write_timeout),
            drain=parsed("--drain", parse_duration, drain),
        )
        raise_fd_limit()
        serve(
            answer,
            host,
            port,
            limits=limits,
            poller=poller,
            trigger=trigger,
            on_listening=_announce,
        )
    except ListenError as error:
        raise CommandError(str(error), EXIT_CANNOT_LISTEN) from error
    except ValueError as error:
        raise CommandError(str(error), EXIT_USAGE) from error


def _announce(address: Target) -> None:
    print(f"listening on {address}", file=sys.stderr, flush=True)

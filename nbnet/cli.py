"""The command ``nbnet``."""

from __future__ import annotations

import logging
import sys
from typing import Annotated, NoReturn

import typer

from nbnet import __version__
from nbnet.handlers import load_handler
from nbnet.notation import Target
from nbnet.server import DEFAULT_HOST, DEFAULT_PORT, serve

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

EXIT_USAGE = 2
EXIT_CANNOT_LISTEN = 1


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"nbnet {__version__}")
        raise typer.Exit


@app.callback()
def nbnet(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """A TCP server for messages with a length before them: 00003abc -> 00003cba."""


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
) -> None:
    """Serve until Ctrl-C or SIGTERM.

    The first line on stderr names the address really bound:
    "listening on HOST:PORT".
    """
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    try:
        answer = load_handler(handler)
    except ValueError as error:
        _fail(str(error), EXIT_USAGE)
    try:
        serve(answer, host, port, on_listening=_announce)
    except OSError as error:
        _fail(
            f"cannot listen on {Target(host, port)}: {error.strerror or error}", EXIT_CANNOT_LISTEN
        )


def _announce(address: Target) -> None:
    print(f"listening on {address}", file=sys.stderr, flush=True)


def _fail(message: str, code: int) -> NoReturn:
    print(f"nbnet: {message}", file=sys.stderr)
    raise typer.Exit(code)

"""The command ``nbclient``.

Rules kept here: stdout carries the bytes of replies and nothing else, an error
is one line on stderr, and the exit code says what kind of error it was.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Annotated, NoReturn

import typer

from nbclient.errors import ConnectError, NbclientError, RequestTimeout
from nbclient.exchange import encode_request
from nbclient.settings import DEFAULT_TARGET
from nbclient.sync import Client
from nbnet import __version__
from nbnet.framing import MAX_PAYLOAD
from nbnet.notation import parse_duration

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

EXIT_BROKEN = 1
EXIT_USAGE = 2
EXIT_CANNOT_CONNECT = 3
EXIT_TIMED_OUT = 124
EXIT_INTERRUPTED = 130


def main() -> None:
    """Run the command; the entry point of the installed script."""
    app(prog_name="nbclient")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"nbclient {__version__}")
        raise typer.Exit


@app.callback()
def nbclient(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Talk to a server of length-prefixed messages: abc goes as 00003abc."""


@app.command()
def send(
    payloads: Annotated[
        list[str],
        typer.Argument(
            metavar="PAYLOAD",
            help="What to send, 1 to 99,999 bytes each; - reads one from stdin, as it is.",
        ),
    ],
    target: Annotated[
        str,
        typer.Option(
            "--target", "-t", metavar="HOST:PORT", envvar="NBNET_TARGET", help="The server."
        ),
    ] = DEFAULT_TARGET,
    timeout: Annotated[
        str, typer.Option(metavar="DURATION", help="How long a reply may take: 500ms, 5s, 1m30s.")
    ] = "5s",
) -> None:
    """Send payloads and print the replies, in order.

    A reply is printed as the bytes it is. A newline follows if there are
    several, or if stdout is a terminal.

    Exit codes: 0 fine, 1 the server broke the protocol or the connection,
    2 usage, 3 cannot connect, 124 timed out, 130 interrupted.
    """
    with _exit_codes():
        try:
            requests = [_read(payload) for payload in payloads]
            client = Client(target, timeout=parse_duration(timeout))
        except ValueError as error:
            _fail(str(error), EXIT_USAGE)
        end = b"\n" if len(requests) > 1 or sys.stdout.isatty() else b""
        with client:
            for reply in client.request_many(requests):
                _write(reply + end)


def _read(text: str) -> bytes:
    """The payload that an argument stands for, checked."""
    # An argument need not be UTF-8: fsencode gives back the bytes that were typed.
    # One byte too many of stdin is enough to know that it is too long.
    payload = sys.stdin.buffer.read(MAX_PAYLOAD + 1) if text == "-" else os.fsencode(text)
    encode_request(payload)
    return payload


def _write(data: bytes) -> None:
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        # What is still buffered would fail again when the interpreter exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader has enough, as head has
            raise typer.Exit(EXIT_BROKEN) from None
        _fail(f"cannot write a reply: {error.strerror}", EXIT_BROKEN)


@contextlib.contextmanager
def _exit_codes() -> Iterator[None]:
    """Turn what a request can raise into a line and an exit code."""
    try:
        yield
    except ConnectError as error:
        _fail(f"{error} (to start a server: nbnet serve)", EXIT_CANNOT_CONNECT)
    except RequestTimeout as error:
        _fail(str(error), EXIT_TIMED_OUT)
    except NbclientError as error:
        _fail(str(error), EXIT_BROKEN)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _fail(message: str, code: int) -> NoReturn:
    print(f"nbclient: {message}", file=sys.stderr)
    raise typer.Exit(code)

"""The command ``nbclient``.

Rules kept here: stdout carries the bytes of replies and nothing else, an error
is one line on stderr, and the exit code says what kind of error it was.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, BinaryIO, Final, TextIO

import typer

from nbclient.errors import ConnectError, NbclientError, RequestTimeout
from nbclient.exchange import encode_request
from nbclient.settings import DEFAULT_TARGET
from nbclient.sync import Client
from nbnet.command import EXIT_FAILED, EXIT_USAGE, CommandError, make_app, parsed, version_option
from nbnet.command import run as run_command
from nbnet.framing import MAX_PAYLOAD
from nbnet.notation import parse_duration

app = make_app(no_args_is_help=True)

EXIT_CANNOT_CONNECT: Final = 3
EXIT_TIMED_OUT: Final = 124


def main() -> None:
    """Run the command; the console script."""
    run_command(app, "nbclient")


@app.callback()
def nbclient(_version: Annotated[bool, version_option("nbclient")] = False) -> None:
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
    try:
        requests = [_read(payload) for payload in payloads]
        client = Client(target, timeout=parsed("--timeout", parse_duration, timeout))
    except ValueError as error:
        raise CommandError(str(error), EXIT_USAGE) from error
    output = _standard(sys.stdout, "output")
    end = b"\n" if len(requests) > 1 or sys.stdout.isatty() else b""
    try:
        with client:
            for reply in client.request_many(requests):
                _write(output, reply + end)
    except ConnectError as error:
        raise CommandError(
            f"{error} (to start a server: nbnet serve)", EXIT_CANNOT_CONNECT
        ) from error
    except RequestTimeout as error:
        raise CommandError(str(error), EXIT_TIMED_OUT) from error
    except NbclientError as error:
        raise CommandError(str(error), EXIT_FAILED) from error


def _read(text: str) -> bytes:
    """The payload that an argument stands for, checked."""
    # An argument need not be UTF-8: fsencode gives back the bytes that were typed.
    # One byte too many of stdin is enough to know that it is too long.
    payload = (
        _standard(sys.stdin, "input").read(MAX_PAYLOAD + 1) if text == "-" else os.fsencode(text)
    )
    encode_request(payload)
    return payload


def _standard(stream: TextIO | None, name: str) -> BinaryIO:
    """The bytes of a standard stream, which whoever started the command may have closed."""
    if stream is None:
        raise CommandError(f"standard {name} is closed", EXIT_FAILED)
    return stream.buffer


def _write(output: BinaryIO, data: bytes) -> None:
    try:
        output.write(data)
        output.flush()
    except OSError as error:
        # What is still buffered would fail again when the interpreter exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
        if isinstance(error, BrokenPipeError):  # the reader has enough, as head has
            raise typer.Exit(EXIT_FAILED) from None
        raise CommandError(f"cannot write a reply: {error.strerror}", EXIT_FAILED) from error

"""The command ``nbclient``.

Rules kept here:

* stdout carries replies and nothing else, an error is one line on stderr, and
  the exit code says what kind of error it was;
* only the blocking front is used, and what few need is imported late: scripts
  start this command for each request.
"""

from __future__ import annotations

import errno
import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import typer
from typer.core import TyperCommand, TyperOption

from nbclient.errors import ConnectError, NbclientError, RequestTimeout
from nbclient.exchange import encode_request
from nbclient.ping import RoundTrips, next_turn, payload_of
from nbclient.settings import DEFAULT_TARGET
from nbclient.stdio import Lines, Output, flushing_client, standard
from nbclient.sync import Client
from nbnet.command import (
    EXIT_FAILED,
    EXIT_USAGE,
    FLAG,
    CommandError,
    make_app,
    parsed,
    version_option,
)
from nbnet.command import run as run_command
from nbnet.framing import MAX_PAYLOAD
from nbnet.notation import parse_count, parse_duration, parse_size

if TYPE_CHECKING:
    from nbclient.events import Event

app = make_app(no_args_is_help=True)

EXIT_CANNOT_CONNECT: Final = 3
EXIT_TIMED_OUT: Final = 124
EXIT_INTERRUPTED: Final = 130

_SERVER: Final = "Server"
_TLS: Final = "TLS (PEM files; any of these turns it on)"


def main() -> None:
    """Run the command."""
    run_command(app, "nbclient")


@app.callback()
def nbclient(_version: Annotated[bool, version_option("nbclient")] = False) -> None:
    """Talk to a server of length-prefixed messages: abc goes as 00003abc."""


# Options of all commands -----------------------------------------------------------

_Targets: TypeAlias = Annotated[
    list[str],
    typer.Option(
        "--target",
        "-t",
        metavar="TARGET",
        envvar="NBNET_TARGET",
        rich_help_panel=_SERVER,
        help="HOST:PORT, [IPv6]:PORT, tls://HOST:PORT or unix:PATH. Given several times (in the "
        "variable: with spaces between), any server may get a request.",
    ),
]
_Timeout: TypeAlias = Annotated[
    str,
    typer.Option(
        metavar="DURATION",
        rich_help_panel=_SERVER,
        help="How long a request may take, connecting included: 500ms, 5s, 1m30s.",
    ),
]
_Retries: TypeAlias = Annotated[
    str,
    typer.Option(
        metavar="N",
        rich_help_panel=_SERVER,
        help="Try so many times more where nothing was sent yet, within the timeout.",
    ),
]
_Tls: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--tls", metavar=FLAG, rich_help_panel=_TLS, help="Encrypt, as the targets tls://... do."
    ),
]


def _file(option: str, text: str) -> Any:
    return typer.Option(option, metavar="FILE", help=text, rich_help_panel=_TLS, show_default=False)


_TlsCa: TypeAlias = Annotated[
    Path | None,
    _file("--tls-ca", "Who may sign the server's certificate, instead of the system's."),
]
_TlsCert: TypeAlias = Annotated[
    Path | None, _file("--tls-cert", "The certificate to show to the server.")
]
_TlsKey: TypeAlias = Annotated[
    Path | None, _file("--tls-key", "Its private key, if it stands in a file of its own.")
]
_TlsServerName: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--tls-server-name",
        metavar="NAME",
        rich_help_panel=_TLS,
        show_default=False,
        help="The name that the certificate must have, if not the target's.",
    ),
]


def _connection_options(
    target: list[str],
    timeout: str,
    retries: str,
    tls: bool,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_server_name: str | None,
) -> dict[str, Any]:
    """These options as a client takes them."""
    wanted = tls or any((tls_ca, tls_cert, tls_key, tls_server_name))
    return {
        "target": target,
        "timeout": parsed("--timeout", parse_duration, timeout),
        "retries": parsed("--retries", parse_count, retries),
        "tls": True if wanted else None,
        "tls_ca": tls_ca,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "tls_server_name": tls_server_name,
    }


def _exit_code(error: NbclientError) -> int:
    if isinstance(error, RequestTimeout):
        return EXIT_TIMED_OUT
    return EXIT_CANNOT_CONNECT if isinstance(error, ConnectError) else EXIT_FAILED


def _advice(error: ConnectError) -> str:
    """What to do about it, if that is plain."""
    reasons = set(error.reasons.values())
    if reasons <= {os.strerror(errno.ECONNREFUSED), os.strerror(errno.ENOENT)}:
        return " (to start a server: nbnet serve)"
    if any("certificate does not verify" in reason for reason in reasons):
        return " (--tls-ca: whom to trust; --tls-server-name: the name in the certificate)"
    if any(reason.startswith("TLS: ") and "certificate" in reason for reason in reasons):
        return " (--tls-cert: the certificate to show)"
    if any(reason.startswith("TLS: ") for reason in reasons):
        return " (does the server speak TLS?)"
    return ""


# send ------------------------------------------------------------------------------


class _SendCommand(TyperCommand):
    """Takes ``-5`` for a payload, as no option is a digit; a mistyped option stays an error."""

    # An argument cannot hold a NUL, so this marks what has to pass the parser.
    _MARK: Final = "\0"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line."""
        options = [option for option in self.get_params(ctx) if isinstance(option, TyperOption)]
        known = {name for option in options for name in option.opts}
        takes_value = {name for option in options if not option.is_flag for name in option.opts}
        marked = list(args)
        before = ""
        for index, argument in enumerate(args):
            if argument == "--":
                break
            if argument[:1] == "-" and argument[1:2] not in ("", "-") and before not in takes_value:
                if argument[1].isdecimal():
                    marked[index] = self._MARK + argument
                elif argument[:2] not in known and not ctx.resilient_parsing:
                    raise CommandError(
                        f"no option {argument} (as a payload: -- {argument})", EXIT_USAGE
                    )
            before = argument
        rest = super().parse_args(ctx, marked)
        payloads = ctx.params.get("payloads") or []
        ctx.params["payloads"] = [payload.removeprefix(self._MARK) for payload in payloads]
        return rest


@app.command(cls=_SendCommand)
def send(
    payloads: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PAYLOAD",
            show_default=False,
            help="What to send, 1 to 99,999 bytes each; - reads one from stdin, as it is. "
            "Put -- before those that start with a dash (-5 does without).",
        ),
    ] = None,
    lines: Annotated[
        bool,
        typer.Option(
            "--lines",
            metavar=FLAG,
            help="Send each line of stdin, without its end (LF or CR LF), and print a line for "
            "each. An empty line is an error: nothing can be sent for it.",
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            metavar=FLAG,
            help='Print an object and a newline for each reply: "text" (or "base64", if it is no '
            'UTF-8), "size" in bytes, "seconds" from when the request was handed over, waiting '
            "behind others included.",
        ),
    ] = False,
    target: _Targets = [DEFAULT_TARGET],  # noqa: B006  (never changed)
    timeout: _Timeout = "5s",
    retries: _Retries = "0",
    tls: _Tls = False,
    tls_ca: _TlsCa = None,
    tls_cert: _TlsCert = None,
    tls_key: _TlsKey = None,
    tls_server_name: _TlsServerName = None,
) -> None:
    """Send payloads and print the replies, in order.

    Requests are pipelined: they do not wait for the replies of those before.
    A reply is printed as the bytes it is. A newline follows if there are
    several, or if stdout is a terminal.

    Exit codes: 0 fine, 1 the server broke the protocol or the connection,
    2 usage, 3 cannot connect, 124 timed out, 130 interrupted.
    """
    if lines and payloads:
        raise CommandError("--lines takes its payloads from stdin: no PAYLOAD besides", EXIT_USAGE)
    if not lines and not payloads:
        raise CommandError("nothing to send: give a PAYLOAD, - or --lines", EXIT_USAGE)
    options = _connection_options(
        target, timeout, retries, tls, tls_ca, tls_cert, tls_key, tls_server_name
    )
    try:
        requests = [_read(payload) for payload in payloads or []]
        output = Output(sys.stdout)
        client = flushing_client(options, output.flush)
    except ValueError as error:
        raise CommandError(str(error), EXIT_USAGE) from error
    several = lines or as_json or len(requests) > 1 or output.is_terminal
    write = _json_writer if as_json else _plain_writer
    with client, output:
        try:
            if not lines:
                write(client, requests, output, b"\n" if several else b"")
                return
            source = Lines(standard(sys.stdin, "input"))
            while source.wait():
                write(client, source.at_hand(), output, b"\n")
                output.flush()
        except ConnectError as error:
            raise CommandError(f"{error}{_advice(error)}", EXIT_CANNOT_CONNECT) from error
        except NbclientError as error:
            raise CommandError(str(error), _exit_code(error)) from error
    if source.fault:
        raise CommandError(source.fault, EXIT_USAGE)


def _plain_writer(client: Client, requests: Iterable[bytes], output: Output, end: bytes) -> None:
    for reply in client.request_many(requests):
        output.write(reply + end)


def _json_writer(client: Client, requests: Iterable[bytes], output: Output, end: bytes) -> None:
    import base64
    import json

    started: deque[float] = deque()  # of the requests without a reply: few, as they are pipelined

    def timed() -> Iterator[bytes]:
        for request in requests:
            started.append(time.perf_counter())
            yield request

    for reply in client.request_many(timed()):
        seconds = time.perf_counter() - started.popleft()
        try:
            shown = f'"text": {json.dumps(reply.decode())}'
        except UnicodeDecodeError:
            shown = f'"base64": "{base64.b64encode(reply).decode()}"'
        line = f'{{{shown}, "size": {len(reply)}, "seconds": {seconds:.9f}}}'
        output.write(line.encode() + end)


def _read(text: str) -> bytes:
    """The payload that an argument stands for, checked."""
    # An argument need not be UTF-8: fsencode gives back the bytes that were typed.
    # One byte too many of stdin is enough to know that it is too long.
    payload = (
        standard(sys.stdin, "input").read(MAX_PAYLOAD + 1) if text == "-" else os.fsencode(text)
    )
    encode_request(payload)
    return payload


# ping ------------------------------------------------------------------------------


@app.command()
def ping(
    count: Annotated[
        str | None,
        typer.Option(
            "--count", "-c", metavar="N", show_default="until Ctrl-C", help="Requests to send."
        ),
    ] = None,
    interval: Annotated[
        str,
        typer.Option(
            "--interval",
            "-i",
            metavar="DURATION",
            help="From the start of one request to that of the next; 0: at once. What a late "
            "reply makes overdue is left out.",
        ),
    ] = "1s",
    size: Annotated[
        str, typer.Option("--size", "-s", metavar="SIZE", help="Bytes of each payload: 64, 4KiB.")
    ] = "56",
    expect: Annotated[
        str,
        typer.Option(
            metavar="reverse|any",
            help="The right reply: the payload reversed, as the bundled server sends it, or any.",
        ),
    ] = "reverse",
    target: _Targets = [DEFAULT_TARGET],  # noqa: B006  (never changed)
    timeout: _Timeout = "5s",
    retries: _Retries = "0",
    tls: _Tls = False,
    tls_ca: _TlsCa = None,
    tls_cert: _TlsCert = None,
    tls_key: _TlsKey = None,
    tls_server_name: _TlsServerName = None,
) -> None:
    """Send a request at a time and print its round-trip time.

    A time does not include connecting. What goes wrong has a line too, and
    the next request connects again. Statistics follow at the end or at Ctrl-C.

    Exit codes: 0 each request had the right reply, 1 a reply was wrong or
    the connection was lost, 2 usage, 3 cannot connect, 124 timed out (of
    several, the lowest of 1, 3 and 124), 130 interrupted.
    """
    options = _connection_options(
        target, timeout, retries, tls, tls_ca, tls_cert, tls_key, tls_server_name
    )
    wanted = math.inf if count is None else parsed("--count", parse_count, count)
    seconds = parsed("--interval", parse_duration, interval)
    length = parsed("--size", parse_size, size)
    if wanted < 1:
        raise CommandError("--count: 0 requests are too few", EXIT_USAGE)
    if not 1 <= length <= MAX_PAYLOAD:
        raise CommandError(f"--size: a payload has 1 to {MAX_PAYLOAD} bytes", EXIT_USAGE)
    if expect not in ("reverse", "any"):
        raise CommandError(f"--expect: {expect!r} is neither reverse nor any", EXIT_USAGE)
    output = Output(sys.stdout)
    try:
        pinging = _Pinging(options, length, output, reversing=expect == "reverse")
    except ValueError as error:
        raise CommandError(str(error), EXIT_USAGE) from error
    raise typer.Exit(pinging.run(wanted, seconds))


class _Pinging:
    """A run of ``nbclient ping``."""

    def __init__(
        self, options: dict[str, Any], size: int, output: Output, *, reversing: bool
    ) -> None:
        self._client = Client(**options, on_event=self._note)
        self._targets = " ".join(options["target"])
        self._size = size
        self._output = output
        self._reversing = reversing
        self._trips = RoundTrips()
        self._codes: set[int] = set()
        self._peer = ""
        self._connecting = 0.0  # seconds, in this request
        self._seconds = 0.0  # of the last reply

    def run(self, count: float, interval: float) -> int:
        """Send requests until there were so many; the exit code."""
        self._say(f"PING {self._targets}: {self._size} bytes")
        first = time.monotonic()
        turn = sequence = 0
        try:
            with self._client:
                while True:
                    sequence += 1
                    self._request(sequence)
                    if sequence >= count:
                        break
                    turn = next_turn(turn, time.monotonic() - first, interval)
                    time.sleep(max(0.0, first + turn * interval - time.monotonic()))
        except KeyboardInterrupt:
            self._codes = {EXIT_INTERRUPTED}
        self._say(f"\n{self._trips.report(self._targets, time.monotonic() - first)}")
        return min(self._codes, default=0)

    def _request(self, sequence: int) -> None:
        payload = payload_of(sequence, self._size)
        try:
            reply = self._client.request(payload)
        except NbclientError as error:
            self._trips.fail()
            self._codes.add(_exit_code(error))
            self._say(f"seq={sequence} {error}")
            return
        milliseconds = 1000 * self._seconds
        text = f"{len(reply)} bytes from {self._peer}: seq={sequence} time={milliseconds:.3f} ms"
        if self._reversing and reply != payload[::-1]:
            self._trips.fail(wrong=True)
            self._codes.add(EXIT_FAILED)
            self._say(f"{text} WRONG: not the payload reversed (--expect any: take any reply)")
        else:
            self._trips.add(self._seconds)
            self._say(text)

    def _note(self, event: Event) -> None:
        if event.kind == "connect":
            self._connecting += event.seconds
        elif event.kind == "request":
            self._connecting = 0.0
        elif event.kind == "reply":
            self._peer = event.peer
            self._seconds = event.seconds - self._connecting

    def _say(self, line: str) -> None:
        self._output.write(os.fsencode(line) + b"\n")
        self._output.flush()

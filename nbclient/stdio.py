"""The standard streams of the command ``nbclient``: bytes in, bytes out.

Rules kept here:

* what was written is flushed before anything is waited for, be it the server or
  more of stdin: nobody waits for a reply that is here, and many replies that
  come at once cost one write;
* memory does not grow with what is read from stdin;
* whoever started the command may have closed any of the streams, or may end to
  read while there is more to write.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final, TextIO

import typer

from nbclient.dialing import Stream, open_stream
from nbclient.settings import Settings
from nbclient.sync import Client
from nbnet.command import EXIT_FAILED, CommandError
from nbnet.framing import MAX_PAYLOAD
from nbnet.notation import Address

READ_SIZE: Final = 64 * 1024
HELD_AT_MOST: Final = 64 * 1024


def standard(stream: TextIO | None, name: str) -> BinaryIO:
    """The bytes of a standard stream, which whoever started the command may have closed."""
    if stream is None:
        raise CommandError(f"standard {name} is closed", EXIT_FAILED)
    return stream.buffer


class Lines:
    """The lines of stdin, as they become available."""

    def __init__(self, stdin: BinaryIO) -> None:
        self._descriptor = stdin.fileno()
        self._lines: deque[bytes] = deque()
        self._rest = b""  # a line whose end has not come
        self._count = 0
        self._ended = False
        self.fault = ""

    def wait(self) -> bool:
        """Wait until there is a line; whether there is one."""
        while not self._lines and not self._ended:
            self._read()
        return bool(self._lines)

    def at_hand(self) -> Iterator[bytes]:
        """The lines that can be had without waiting. A fault ends them."""
        while self._lines or self._ready():
            if not self._lines:
                self._read()  # which may bring but a part of a line
                continue
            line = self._lines.popleft()
            self._count += 1
            if not 0 < len(line) <= MAX_PAYLOAD:
                what = f"is longer than {MAX_PAYLOAD} bytes" if line else "is empty"
                self.fault = f"line {self._count} of stdin {what}"
                self._lines.clear()
                self._ended = True
                return
            yield line

    def _ready(self) -> bool:
        """Whether reading would not wait."""
        if self._ended:
            return False
        import select

        try:
            return bool(select.select([self._descriptor], [], [], 0)[0])
        except OSError:  # a system that can wait for sockets only
            return False

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, READ_SIZE)
        except BlockingIOError:  # whoever shares it has made it so
            import select

            select.select([self._descriptor], [], [])
            return
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        # A line that is too long already need not end; the last one need not either.
        self._ended = not data or len(self._rest) > MAX_PAYLOAD + len(b"\r")
        if self._ended and self._rest:
            lines.append(self._rest)
        self._lines.extend(line.removesuffix(b"\r") for line in lines)


class Output:
    """Standard output: bytes, held back until ``flush`` or until there are many."""

    # The interpreter's own buffer is small, and none at all with PYTHONUNBUFFERED.

    def __init__(self, stdout: TextIO | None) -> None:
        self._stdout = standard(stdout, "output")
        self.is_terminal = self._stdout.isatty()
        self._held: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        """Write, at the latest when ``flush`` is called."""
        self._held.append(data)
        self._size += len(data)
        if self._size >= HELD_AT_MOST:
            self.flush()

    def flush(self) -> None:
        """Write what was held back."""
        if not self._held:
            return
        rest = memoryview(b"".join(self._held))
        self._held.clear()
        self._size = 0
        try:
            while rest:
                rest = rest[self._stdout.write(rest) :]
            self._stdout.flush()
        except OSError as error:
            # What the interpreter holds would fail again when it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stdout.fileno())
            if isinstance(error, BrokenPipeError):  # the reader has enough, as head has
                raise typer.Exit(EXIT_FAILED) from None
            raise CommandError(f"cannot write a reply: {error.strerror}", EXIT_FAILED) from error

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.flush()


def flushing_client(options: dict[str, Any], flush: Callable[[], None]) -> Client:
    """A client that flushes before it waits for a server."""
    settings = Settings.read(**options)

    def connect(address: Address, timeout: float | None) -> Stream:
        flush()
        return FlushingStream(open_stream(address, timeout, settings), flush)

    return Client(**options, connect=connect)


class FlushingStream:
    """A stream that flushes before it waits for a server."""

    def __init__(self, stream: Stream, flush: Callable[[], None]) -> None:
        self._stream = stream
        self._flush = flush
        self.readable = stream.readable
        self.abort = stream.abort
        self.close = stream.close

    def send(self, data: bytes | memoryview, timeout: float | None, /) -> int:
        """As of ``Stream``."""
        self._flush()
        return self._stream.send(data, timeout)

    def receive(self, timeout: float | None, /) -> bytes:
        """As of ``Stream``."""
        self._flush()
        return self._stream.receive(timeout)

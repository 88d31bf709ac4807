"""A server on uvloop, or on asyncio's own loop, that answers as nbnet does: reversed.

    pip install uvloop
    python benchmarks/peers/uvloop_protocol.py PORT [--loop uvloop|asyncio]

Only to be measured. It is what one writes for speed with these libraries: an
``asyncio.Protocol``, no streams; all frames of a read are answered by one write;
headers are looked up in tables; a peer that does not read is not read from.

It has no deadlines and no limits besides: a lead over it is one over less work.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import resource
from collections.abc import Callable
from typing import cast

HEADER_SIZE = 5
# Frames are short mostly; what these do not have is formatted and parsed.
HEADERS = tuple(b"%05d" % size for size in range(4096))
LENGTHS = {header: size for size, header in enumerate(HEADERS) if size}


def reverse(payload: bytes) -> bytes:
    """The payload from its end to its beginning."""
    return payload[::-1]


class Framed(asyncio.Protocol):
    """One connection: frames in, replies out in their order.

    Args:
        handler: takes the payload of a request, returns that of its reply.
    """

    __slots__ = ("_handler", "_held", "_need", "_transport")

    def __init__(self, handler: Callable[[bytes], bytes]) -> None:
        self._handler = handler
        self._held = bytearray()  # a frame that is not whole yet
        self._need = 0  # how many bytes must be held before it can be

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write to."""
        # uvloop's transports have these methods and are none of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answer the frames that these bytes complete."""
        if self._held:
            self._held += data
            if len(self._held) < self._need:
                return
            data = bytes(self._held)
            self._held.clear()
        length = LENGTHS.get(data[:HEADER_SIZE])
        if length is not None and length + HEADER_SIZE == len(data):
            # One frame and no more: what a peer sends that waits for each reply.
            self._transport.write(self._frame(self._handler(data[HEADER_SIZE:])))
        else:
            self._answer_all(data)

    def _answer_all(self, data: bytes) -> None:
        handler, lengths, headers = self._handler, LENGTHS, HEADERS
        replies: list[bytes] = []
        append = replies.append
        at, size = 0, len(data)
        while at < size:
            start = at + HEADER_SIZE
            length = lengths.get(data[at:start])
            if length is None:
                if data[at : at + 1] == b"\r" and data[at + 1 : at + 2] in (b"", b"\n"):
                    if at + 1 == size:
                        self._hold(data[at:], 2)
                        break
                    at += 2
                    continue
                header = data[at:start]
                if not header.isdigit() or header == b"00000":
                    self._write(replies)
                    self._transport.close()  # when what was written is sent
                    return
                if start > size:
                    self._hold(header, HEADER_SIZE)
                    break
                length = int(header)
            end = start + length
            if end > size:
                self._hold(data[at:], end - at)
                break
            reply = handler(data[start:end])
            try:
                append(headers[len(reply)])
            except IndexError:
                append(b"%05d" % len(reply))
            append(reply)
            at = end
        self._write(replies)

    def _hold(self, rest: bytes, need: int) -> None:
        self._held += rest
        self._need = need

    def _write(self, replies: list[bytes]) -> None:
        if replies:
            self._transport.write(b"".join(replies))

    @staticmethod
    def _frame(reply: bytes) -> bytes:
        size = len(reply)
        return (HEADERS[size] if size < len(HEADERS) else b"%05d" % size) + reply

    def pause_writing(self) -> None:
        """Read no more: the peer does not read what it asked for."""
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Read on: the peer does too."""
        if not self._transport.is_closing():
            self._transport.resume_reading()


async def serve(port: int) -> None:
    """Serve on the loopback for ever."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Framed(reverse), "127.0.0.1", port, backlog=4096)
    gc.freeze()  # as nbnet does
    async with server:
        await server.serve_forever()


def main() -> None:
    """Serve on the port and loop that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("port", type=int)
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # By name: no part of the project needs uvloop, its static checks included.
    factory = None
    if options.loop == "uvloop":
        factory = importlib.import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(options.port))


if __name__ == "__main__":
    main()

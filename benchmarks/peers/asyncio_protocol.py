"""The framed reverse server on asyncio's protocols, with its own loop or with uvloop's.

    python benchmarks/peers/asyncio_protocol.py [PORT] [--loop asyncio|uvloop]

Only to be measured.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
from typing import cast

from framed import BACKLOG, Answers, announce, get_ready


class Framed(asyncio.Protocol):
    """One connection. A peer that does not read is not read from."""

    __slots__ = ("_answers", "_transport")

    def __init__(self) -> None:
        self._answers = Answers()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write to."""
        # uvloop's transports have these methods and are none of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answer the frames that these bytes complete."""
        answers = self._answers
        if replies := answers.feed(data):
            self._transport.write(replies)
        if answers.broken:
            self._transport.close()  # when what was written is sent

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
    server = await loop.create_server(Framed, "127.0.0.1", port, backlog=BACKLOG)
    get_ready()
    announce(server.sockets[0].getsockname()[1])
    async with server:
        await server.serve_forever()


def main(port: int = 0, *, loop: str = "asyncio") -> None:
    """Serve on that port of the loopback for ever."""
    # By name: without uvloop there is the other loop still.
    factory = importlib.import_module("uvloop").new_event_loop if loop == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(port))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("port", type=int, nargs="?", default=0)
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    options = parser.parse_args()
    main(options.port, loop=options.loop)

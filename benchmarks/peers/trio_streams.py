"""The framed reverse server on ``trio.serve_tcp``: a task for each connection.

    python benchmarks/peers/trio_streams.py [PORT]

Only to be measured.
"""

from __future__ import annotations

from functools import partial

import trio
from framed import BACKLOG, Answers, announce, get_ready, port_asked_for


async def answer(stream: trio.SocketStream) -> None:
    """Answer the frames of one connection."""
    answers = Answers()
    try:
        while not answers.broken and (data := await stream.receive_some()):
            if replies := answers.feed(data):
                await stream.send_all(replies)
    except trio.BrokenResourceError:
        pass  # the peer has gone
    await stream.aclose()


async def serve(port: int) -> None:
    """Serve on the loopback for ever."""
    async with trio.open_nursery() as nursery:
        listen = partial(trio.serve_tcp, answer, port, host="127.0.0.1", backlog=BACKLOG)
        [listener] = await nursery.start(listen)
        get_ready()
        announce(listener.socket.getsockname()[1])


def main(port: int = 0) -> None:
    """Serve on that port of the loopback for ever."""
    trio.run(serve, port)


if __name__ == "__main__":
    main(port_asked_for())

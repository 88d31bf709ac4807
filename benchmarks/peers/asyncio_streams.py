"""The framed reverse server on asyncio's streams: a header, a payload, a reply, in turn.

    python benchmarks/peers/asyncio_streams.py [PORT]

Only to be measured. It is what the documentation of streams leads to: ``readexactly``
twice a request, then ``write`` and ``drain``.
"""

from __future__ import annotations

import asyncio

from framed import BACKLOG, HEADER_SIZE, announce, frame, get_ready, port_asked_for, reverse


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the frames of one connection."""
    try:
        while True:
            header = await reader.readexactly(HEADER_SIZE)
            if not header.isdigit() or header == b"00000":
                break
            writer.write(frame(reverse(await reader.readexactly(int(header)))))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the peer has gone
    finally:
        writer.close()


async def serve(port: int) -> None:
    """Serve on the loopback for ever."""
    server = await asyncio.start_server(answer, "127.0.0.1", port, backlog=BACKLOG)
    get_ready()
    announce(server.sockets[0].getsockname()[1])
    async with server:
        await server.serve_forever()


def main(port: int = 0) -> None:
    """Serve on that port of the loopback for ever."""
    asyncio.run(serve(port))


if __name__ == "__main__":
    main(port_asked_for())

"""A server that asks for edge-triggered events and reads once for each: it loses messages.

    python benchmarks/peers/careless_edge.py PORT [--trigger edge|level]

Only to be measured: the mistake that the article warns of. One read of 16 bytes
an event is enough with level-triggered events, which come again while anything
is left. Edge-triggered ones do not: what was not read waits for the next byte to
come, and whoever waits for its reply sends none.
"""

from __future__ import annotations

import argparse
import select
import socket

SIZE = 16
"""Bytes of a read: two frames of ``abc``."""


def serve(port: int, edge: bool) -> None:
    """Answer frames with their payloads reversed until the end of the process."""
    mask = select.EPOLLIN | (select.EPOLLET if edge else 0)
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    poller = select.epoll()
    poller.register(listener, select.EPOLLIN)
    peers: dict[int, socket.socket] = {}
    unread: dict[int, bytes] = {}
    while True:
        for fd, _ in poller.poll():
            if fd == listener.fileno():
                peer, _ = listener.accept()
                peer.setblocking(False)
                peers[peer.fileno()] = peer
                unread[peer.fileno()] = b""
                poller.register(peer, mask)
                continue
            peer = peers[fd]
            try:
                data = peer.recv(SIZE)
            except OSError:
                data = b""
            if not data:
                poller.unregister(fd)
                peers.pop(fd).close()
                continue
            data = unread[fd] + data
            while len(data) >= 5 and len(data) >= (end := 5 + int(data[:5])):
                peer.send(data[:5] + data[5:end][::-1])
                data = data[end:]
            unread[fd] = data


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("port", type=int)
    parser.add_argument("--trigger", choices=["edge", "level"], default="edge")
    options = parser.parse_args()
    serve(options.port, options.trigger == "edge")

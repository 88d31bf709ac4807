"""The framed reverse server on gevent's ``StreamServer``: a greenlet for each connection.

    pip install gevent
    python benchmarks/peers/gevent_server.py [PORT]

Only to be measured.
"""

from __future__ import annotations

from typing import Any

from framed import BACKLOG, Answers, announce, get_ready, port_asked_for
from gevent.server import StreamServer


def answer(peer: Any, address: object) -> None:  # noqa: ARG001  (as StreamServer calls it)
    """Answer the frames of one connection."""
    answers = Answers()
    try:
        while not answers.broken and (data := peer.recv(65_536)):
            if replies := answers.feed(data):
                peer.sendall(replies)
    except OSError:
        pass  # the peer has gone
    peer.close()


def main(port: int = 0) -> None:
    """Serve on that port of the loopback for ever."""
    server = StreamServer(("127.0.0.1", port), answer, backlog=BACKLOG)
    server.start()
    get_ready()
    announce(server.server_port)
    server.serve_forever()


if __name__ == "__main__":
    main(port_asked_for())

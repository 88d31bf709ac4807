"""Real servers that misbehave: blocking sockets, a thread for each connection."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator

from nbnet.notation import Target


class Peer:
    """A connection as the server sees it."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.buffer = b""

    def requests(self) -> Iterator[bytes]:
        """The payload of each request, until the client ends the connection."""
        while True:
            header = self._exactly(5)
            if len(header) < 5:
                return
            yield self._exactly(int(header))

    def reply(self, payload: bytes) -> None:
        """Send the reply that is right."""
        self.socket.sendall(b"%05d%b" % (len(payload), payload[::-1]))

    def reset(self) -> None:
        """Close so that the client gets a reset: with a linger time of 0."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def _exactly(self, size: int) -> bytes:
        while len(self.buffer) < size and (more := self.socket.recv(65536)):
            self.buffer += more
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data


Behaviour = Callable[[Peer], None]


@contextlib.contextmanager
def serving(behave: Behaviour) -> Iterator[Target]:
    """Serve each connection by ``behave`` until the end; then no thread and no socket is left.

    What goes wrong in ``behave`` is raised at the end, but for the client's
    going away in the middle of it.
    """
    failures: list[BaseException] = []
    threads: list[threading.Thread] = []
    connections: list[socket.socket] = []

    def run(connection: socket.socket) -> None:
        try:
            with contextlib.suppress(ConnectionError):
                behave(Peer(connection))
        except BaseException as failure:
            failures.append(failure)
        finally:
            connection.close()

    def accept(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it was shut down
            while True:
                connection, _ = listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connections.append(connection)
                threads.append(threading.Thread(target=run, args=(connection,)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        accepting = threading.Thread(target=accept, args=(listener,))
        accepting.start()
        try:
            yield Target(*listener.getsockname())
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for connection in connections:
                with contextlib.suppress(OSError):  # it is closed
                    connection.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
    if failures:
        raise failures[0]


# How servers behave. --------------------------------------------------------


def wrong_at(number: int, reply: bytes) -> Behaviour:
    """Honest, but for one reply of each connection."""

    def behave(peer: Peer) -> None:
        for n, payload in enumerate(peer.requests(), start=1):
            if n == number:
                peer.socket.sendall(reply)
            else:
                peer.reply(payload)

    return behave


def ends_after(replies: int, end: Callable[[Peer], None]) -> Behaviour:
    """Honest, then ends the connection instead of answering."""

    def behave(peer: Peer) -> None:
        for n, payload in enumerate(peer.requests(), start=1):
            if n > replies:
                end(peer)
                return
            peer.reply(payload)

    return behave


def closes(peer: Peer) -> None:
    """End the connection in order."""
    peer.socket.close()


def silent(peer: Peer) -> None:
    """Read every request, answer none."""
    for _ in peer.requests():
        pass


def trickles(peer: Peer) -> None:
    """Answer byte by byte, each in a packet of its own."""
    for payload in peer.requests():
        for byte in b"%05d%b" % (len(payload), payload[::-1]):
            peer.socket.sendall(bytes([byte]))

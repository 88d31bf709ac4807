"""Real servers that misbehave and count what they do: a thread for each connection."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator

from nbnet.notation import Address


class Peer:
    """A connection as the server sees it.

    Attributes:
        payloads: of the requests that came.
        did: what the server did, by name; "reply" is a right one.
        ended: whether the server is done with it.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.buffer = b""
        self.payloads: list[bytes] = []
        self.did: Counter[str] = Counter()
        self.ended = False

    def requests(self) -> Iterator[bytes]:
        """The payload of each request, until the client ends the connection."""
        while True:
            header = self._exactly(5)
            if len(header) < 5:
                return
            payload = self._exactly(int(header))
            if len(payload) < int(header):
                return
            self.payloads.append(payload)
            yield payload

    def reply(self, payload: bytes) -> None:
        """Send the reply that is right."""
        self.say(right(payload), "reply")

    def say(self, data: bytes, what: str) -> None:
        """Send anything, counted by a name of its own before the client can know of it."""
        self.did[what] += 1
        self.socket.sendall(data)

    def reset(self) -> None:
        """Close so that the client gets a reset: with a linger time of 0."""
        self.did["reset"] += 1
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        """Close in order."""
        self.did["close"] += 1
        self.socket.close()

    def _exactly(self, size: int) -> bytes:
        while len(self.buffer) < size and (more := self.socket.recv(65536)):
            self.buffer += more
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data


Behaviour = Callable[[Peer], None]


class Service:
    """A server that runs, and what it did.

    Attributes:
        listener: takes the connections.
        address: where.
        peers: every connection that it took.
    """

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        name = listener.getsockname()
        self.address = Address("", 0, name) if isinstance(name, str) else Address(*name)
        self.peers: list[Peer] = []

    @property
    def did(self) -> Counter[str]:
        """What it did on all connections."""
        return sum((peer.did for peer in self.peers), Counter())

    @property
    def requests(self) -> int:
        """Requests that came on all connections, whole."""
        return sum(len(peer.payloads) for peer in self.peers)

    @property
    def is_idle(self) -> bool:
        """Whether it is done with all the connections that it took."""
        return all(peer.ended for peer in self.peers)

    def stop_listening(self) -> None:
        """Refuse further connections."""
        with contextlib.suppress(OSError):  # it was done before
            self.listener.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def serving(behave: Behaviour, path: str | None = None) -> Iterator[Service]:
    """Serve each connection by ``behave`` until the end; then no thread and no socket is left.

    What goes wrong in ``behave`` is raised at the end, but for the client's
    going away in the middle of it.

    Args:
        path: of a unix socket to listen on; None is TCP.
    """
    failures: list[BaseException] = []
    threads: list[threading.Thread] = []

    def run(peer: Peer) -> None:
        try:
            with contextlib.suppress(ConnectionError):
                behave(peer)
        except BaseException as failure:
            failures.append(failure)
        finally:
            peer.socket.close()
            peer.ended = True

    def accept(service: Service) -> None:
        with contextlib.suppress(OSError):  # it was shut down
            while True:
                connection, _ = service.listener.accept()
                if path is None:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                service.peers.append(Peer(connection))
                threads.append(threading.Thread(target=run, args=(service.peers[-1],)))
                threads[-1].start()

    with socket.socket(socket.AF_INET if path is None else socket.AF_UNIX) as listener:
        listener.bind(path or ("127.0.0.1", 0))
        listener.listen(128)
        service = Service(listener)
        accepting = threading.Thread(target=accept, args=(service,))
        accepting.start()
        try:
            yield service
        finally:
            service.stop_listening()
            accepting.join()
            for peer in service.peers:
                with contextlib.suppress(OSError):  # it is closed
                    peer.socket.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
    if failures:
        raise failures[0]


def right(payload: bytes) -> bytes:
    """The reply as it has to be."""
    return b"%05d%b" % (len(payload), payload[::-1])


# How servers behave. --------------------------------------------------------


def wrong_at(number: int, reply: bytes) -> Behaviour:
    """Honest, but for one reply of each connection."""

    def behave(peer: Peer) -> None:
        for n, payload in enumerate(peer.requests(), start=1):
            if n == number:
                peer.say(reply, "wrong")
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


def every(number: int, act: Callable[[Peer, bytes], None]) -> Behaviour:
    """Honest, but for one in so many requests of all connections together.

    A connection that is closed by ``act`` is done with.
    """
    count = itertools.count(1)  # one step is one bytecode: no two threads get the same

    def behave(peer: Peer) -> None:
        for payload in peer.requests():
            if next(count) % number:
                peer.reply(payload)
                continue
            act(peer, payload)
            if peer.socket.fileno() < 0:
                return

    return behave


def honest(peer: Peer) -> None:
    """Answer every request rightly."""
    for payload in peer.requests():
        peer.reply(payload)


def closes(peer: Peer) -> None:
    """End the connection in order."""
    peer.close()


def silent(peer: Peer) -> None:
    """Read every request, answer none."""
    for _ in peer.requests():
        pass


def trickles(peer: Peer) -> None:
    """Answer byte by byte, each in a packet of its own."""
    for payload in peer.requests():
        for byte in right(payload):
            peer.say(bytes([byte]), "byte")

"""Small servers of the wire protocol, one right and others wrong in one respect each.

They share nothing with ``nbnet``: a thread for each connection, blocking calls, and
a loop over the bytes. What is wrong is a method that a class replaces; ``fails`` names
the groups of the conformance suite that have to find it.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from typing import ClassVar

from nbnet.notation import Target


class Refused(Exception):  # noqa: N818
    """What came is no frame."""


class Right:
    """Reverses payloads, as the protocol says.

    Attributes:
        fails: groups of the suite that find something wrong.
        sometimes: groups that do if the server is quick.
    """

    fails: ClassVar[frozenset[str]] = frozenset()
    sometimes: ClassVar[frozenset[str]] = frozenset()

    def __init__(self) -> None:
        self.alive = True  # a server that is not takes connections, and closes them

    # What the protocol says -----------------------------------------------------------

    def take(self, data: bytes) -> bytes:
        """What a read has brought."""
        return data

    def header(self, data: bytes) -> tuple[int, int] | None:
        """Where the header at the beginning ends, and the length in it; None: it is not whole."""
        start = 0
        while data.startswith(b"\r\n", start):
            start += 2
        header = data[start : start + 5]
        if header == b"\r":
            return None
        if any(byte not in b"0123456789" for byte in header):
            raise Refused
        if len(header) < 5:
            return None
        return start + 5, self.length(header)

    def length(self, header: bytes) -> int:
        """The length in a whole header."""
        if header == b"00000":
            raise Refused
        return int(header)

    def reply(self, payload: bytes) -> bytes:
        """The frame that answers a payload."""
        return b"%05d" % len(payload) + payload[::-1]

    def arrange(self, replies: list[bytes]) -> list[bytes]:
        """The replies to what one read has completed, as they are sent."""
        return replies

    def refuse(self, peer: socket.socket, replies: bytes) -> None:
        """End a connection on which something came that is no frame."""
        peer.sendall(replies)
        self.end(peer)

    def end(self, peer: socket.socket) -> None:
        """End a connection so that what was sent arrives."""
        peer.shutdown(socket.SHUT_WR)
        while peer.recv(65536):
            pass

    def lost(self) -> None:
        """A peer is gone without a word."""

    # How it is served ---------------------------------------------------------------

    def serve(self, peer: socket.socket) -> None:
        """Serve one connection to its end."""
        held = b""
        while data := self.take(peer.recv(65536)):
            held += data
            replies: list[bytes] = []
            try:
                while (found := self.header(held)) and len(held) >= sum(found):
                    start, length = found
                    replies.append(self.reply(held[start : start + length]))
                    held = held[start + length :]
            except Refused:
                self.refuse(peer, b"".join(self.arrange(replies)))
                return
            peer.sendall(b"".join(self.arrange(replies)))
        self.end(peer)

    def run(self, peer: socket.socket) -> None:
        with peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                if self.alive:
                    self.serve(peer)
            except OSError:
                self.lost()


class IntHeader(Right):
    """Takes for a length whatever ``int()`` takes, once there are five bytes."""

    fails = frozenset(
        {"bad-first-byte", "bad-byte", "early", "foreign", "cr-lf", "after-good-frames"}
        | {"half-close"}
    )

    def header(self, data: bytes) -> tuple[int, int] | None:
        start = 0
        while data.startswith(b"\r\n", start):
            start += 2
        if len(data) < start + 5:
            return None
        try:
            length = int(data[start : start + 5])
        except ValueError:
            raise Refused from None
        if length <= 0:
            raise Refused
        return start + 5, length


class LateCheck(Right):
    """Looks at a header once there are five bytes."""

    fails = frozenset({"early", "after-good-frames", "cr-lf"})

    def header(self, data: bytes) -> tuple[int, int] | None:
        if len(data.lstrip(b"\r\n")) < 5:
            return None
        return super().header(data)


class ErrorMessage(Right):
    """Says what is wrong."""

    fails = frozenset(
        {"bad-first-byte", "bad-byte", "early", "foreign", "zero-length", "cr-lf"}
        | {"half-close", "after-good-frames"}
    )

    def refuse(self, peer: socket.socket, replies: bytes) -> None:
        super().refuse(peer, replies + b"00010bad header")


class EarlyClose(Right):
    """Cuts a connection off at an error, with the replies that were still to be sent."""

    fails = frozenset({"zero-length", "cr-lf", "half-close", "after-good-frames"})

    def refuse(self, peer: socket.socket, replies: bytes) -> None:  # noqa: ARG002
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class WrongOrder(Right):
    """Sends the replies to what came together shortest first."""

    fails = frozenset({"order", "binary", "cr-lf", "cuts", "five-digits"})

    def arrange(self, replies: list[bytes]) -> list[bytes]:
        return sorted(replies, key=len)


class LastFirst(Right):
    """Sends the replies to what came together the other way round."""

    fails = frozenset(
        {"five-digits", "cr-lf", "pipelining", "cuts", "half-close", "after-good-frames"}
        | {"order", "late-reader", "binary", "leaving", "not-early"}
    )

    def arrange(self, replies: list[bytes]) -> list[bytes]:
        return replies[::-1]


class SixDigits(Right):
    """Writes lengths of more than 65,535 with six digits."""

    fails = frozenset(
        {"sizes", "five-digits", "cuts", "not-early", "half-close", "after-good-frames"}
        | {"binary", "order"}
    )

    def reply(self, payload: bytes) -> bytes:
        if len(payload) > 65_535:
            return b"%06d" % len(payload) + payload[::-1]
        return super().reply(payload)


class ShortLengths(Right):
    """Counts with sixteen bits."""

    fails = SixDigits.fails

    def length(self, header: bytes) -> int:
        return super().length(header) % 65_536


class EmptyRequests(Right):
    """Answers ``00000`` with the same."""

    fails = frozenset({"zero-length", "after-good-frames"})

    def length(self, header: bytes) -> int:
        return int(header)


class SkipsInPayloads(Right):
    """Skips CR LF at the start of any read."""

    fails = frozenset({"cr-lf"})

    def take(self, data: bytes) -> bytes:
        rest = data.removeprefix(b"\r\n")
        return rest or data  # nothing would be the end


class NoTelnet(Right):
    """Takes CR LF before a header for an error."""

    fails = frozenset({"cr-lf"})

    def header(self, data: bytes) -> tuple[int, int] | None:
        if data.startswith(b"\r"):
            raise Refused
        return super().header(data)


class Text(Right):
    """Turns characters of UTF-8 round, not bytes."""

    fails = frozenset({"binary"})

    def reply(self, payload: bytes) -> bytes:
        return super().reply(payload.decode("utf-8", "replace")[::-1].encode()[::-1])


class CStrings(Right):
    """Ends a payload at NUL."""

    fails = frozenset({"binary"})

    def reply(self, payload: bytes) -> bytes:
        return super().reply(payload.partition(b"\0")[0])


class Acknowledges(Right):
    """Sends the header of a reply as soon as it has that of the request."""

    fails = frozenset({"not-early", "half-close", "cr-lf", "five-digits"})
    sometimes = frozenset({"leaving"})

    def serve(self, peer: socket.socket) -> None:
        held = b""
        told = False
        while data := peer.recv(65536):
            held += data
            try:
                while found := self.header(held):
                    start, length = found
                    if not told:
                        peer.sendall(held[start - 5 : start])
                    told = len(held) < start + length
                    if told:
                        break
                    peer.sendall(held[start : start + length][::-1])
                    held = held[start + length :]
            except Refused:
                break
        self.end(peer)


class Deaf(Right):
    """Does not notice that a client has ended its sending side."""

    fails = frozenset({"half-close", "cr-lf"})

    def end(self, peer: socket.socket) -> None:  # noqa: ARG002
        threading.Event().wait(1.0)

    def refuse(self, peer: socket.socket, replies: bytes) -> None:
        peer.sendall(replies)
        super().end(peer)


class OneARead(Right):
    """Answers the first request of a read, and forgets the others."""

    fails = LastFirst.fails

    def serve(self, peer: socket.socket) -> None:
        held = b""
        while data := peer.recv(65536):
            held += data
            try:
                found = self.header(held)
            except Refused:
                break
            if found and len(held) >= sum(found):
                start, length = found
                peer.sendall(self.reply(held[start : start + length]))
                held = b""
        self.end(peer)


class Dies(Right):
    """Serves nobody any more once a client has gone with a reset."""

    fails = frozenset({"leaving"})

    def lost(self) -> None:
        self.alive = False


WRONG: list[type[Right]] = sorted(Right.__subclasses__(), key=lambda kind: kind.__name__)
"""All that are wrong."""


@contextlib.contextmanager
def framed(server: Right) -> Iterator[Target]:
    """Where such a server listens, on a port of the kernel's choosing."""
    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:

        def accept() -> None:
            while True:
                peer, _ = listener.accept()
                if not serving:
                    peer.close()
                    return
                threads.append(threading.Thread(target=server.run, args=[peer]))
                threads[-1].start()

        serving = True
        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield Target(*listener.getsockname())
        finally:
            serving = False
            socket.create_connection(listener.getsockname()).close()
            acceptor.join()
            for thread in threads:
                thread.join()

"""What servers of framed messages on other libraries share: cutting frames, and getting started.

They answer as nbnet does, reversed, and are what one writes for speed: all frames of
a read are answered by one write, headers are looked up in tables. They have no
deadlines and no limits: a lead of theirs is one over less work.

Nothing of the project is imported: a peer runs in an environment that has none of it.
"""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Callable

HEADER_SIZE = 5
BACKLOG = 4096
# Frames are short mostly; what these do not have is formatted and parsed.
HEADERS = tuple(b"%05d" % size for size in range(4096))
LENGTHS = {header: size for size, header in enumerate(HEADERS) if size}


def reverse(payload: bytes) -> bytes:
    """The payload from its end to its beginning."""
    return payload[::-1]


class Answers:
    """One connection: bytes in, replies to the frames that they complete out.

    Args:
        handler: takes the payload of a request, returns that of its reply.

    Attributes:
        broken: whether a header was bad; nothing more is to be read then.
    """

    __slots__ = ("_handler", "_held", "_need", "broken")

    def __init__(self, handler: Callable[[bytes], bytes] = reverse) -> None:
        self._handler = handler
        self._held = bytearray()  # a frame that is not whole yet
        self._need = 0  # how many bytes must be held before it can be
        self.broken = False

    def feed(self, data: bytes) -> bytes:
        """The replies to all frames that these bytes complete, in their order."""
        if self._held:
            self._held += data
            if len(self._held) < self._need:
                return b""
            data = bytes(self._held)
            self._held.clear()
        length = LENGTHS.get(data[:HEADER_SIZE])
        if length is not None and length + HEADER_SIZE == len(data):
            # One frame and no more: what a peer sends that waits for each reply.
            return frame(self._handler(data[HEADER_SIZE:]))
        return self._feed_all(data)

    def _feed_all(self, data: bytes) -> bytes:
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
                    self.broken = True
                    break
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
        return b"".join(replies)

    def _hold(self, rest: bytes, need: int) -> None:
        self._held += rest
        self._need = need


def frame(reply: bytes) -> bytes:
    """A reply with its header."""
    size = len(reply)
    return (HEADERS[size] if size < len(HEADERS) else b"%05d" % size) + reply


def get_ready() -> None:
    """What nbnet does at its start, too: as many files as allowed, and no garbage to look at."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    gc.freeze()


def announce(port: int) -> None:
    """Say where the server listens, as its first line on standard error."""
    print(f"listening on 127.0.0.1:{port}", file=sys.stderr, flush=True)


def port_asked_for() -> int:
    """The port of the command line; any that is free without one."""
    return int(sys.argv[1]) if len(sys.argv) > 1 else 0

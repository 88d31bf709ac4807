"""What can be wrong with a reply, a connection or a send, and when it is due.

A ``Fault`` is for one reply. ``Script`` holds everything that a test has ordered
of a server and nobody has met yet: each fault is met once, by whoever comes next.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is wrong with one reply. Faults may be combined.

    Attributes:
        delay: seconds until it is sent; later replies of the connection wait as
            well. ``math.inf``: it never comes (``SILENT``).
        raw: bytes sent in place of the frame.
        corrupt: a position in the frame and the bytes to write over it there;
            they may reach beyond its end.
        copies: how often it is sent; 0 leaves it out, and the next reply comes
            in its place.
        cut: the connection ends after so many bytes of it. Later requests are
            not executed.
        reset: the cut is a reset; otherwise a close.
        pieces: bytes given by each receive in turn; what is left is the last.

    Raises:
        ValueError: a value makes no sense.

    >>> from nbclient.testing import FakeServer
    >>> server = FakeServer()
    >>> server.inject(Fault(cut=7, pieces=(3,)))
    >>> stream = server.connect()
    >>> stream.send(b"00003abc", timeout=1)
    8
    >>> [stream.receive(timeout=1) for _ in range(3)]
    [b'000', b'03cb', b'']
    """

    delay: float = 0.0
    raw: bytes | None = None
    corrupt: tuple[int, bytes] | None = None
    copies: int = 1
    cut: int | None = None
    reset: bool = False
    pieces: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.delay >= 0:  # nor is it NaN
            raise ValueError(f"a delay of {self.delay} s: expected at least 0")
        if self.copies < 0:
            raise ValueError(f"{self.copies} copies: expected at least 0")
        if self.corrupt is not None and self.corrupt[0] < 0:
            raise ValueError(f"bytes to corrupt at {self.corrupt[0]}: expected at least 0")
        if self.cut is not None and self.cut < 0:
            raise ValueError(f"a cut after {self.cut} bytes: expected at least 0")
        if self.reset and self.cut is None:
            raise ValueError("a reset needs a cut, which says after how many bytes")
        if any(size < 1 for size in self.pieces):
            raise ValueError(f"pieces of {self.pieces} bytes: expected at least 1 each")

    def spoil(self, frame: bytes) -> bytes:
        """The bytes that are sent for a reply.

        >>> Fault(corrupt=(2, b"x"), copies=2).spoil(b"00001a")
        b'00x01a00x01a'
        """
        if self.raw is not None:
            frame = self.raw
        if self.corrupt is not None:
            at, data = self.corrupt
            frame = frame[:at].ljust(at, b"\0") + data + frame[at + len(data) :]
        return (frame * self.copies)[: self.cut]

    def split(self, data: bytes) -> Iterator[bytes]:
        """The pieces of what is sent.

        >>> list(Fault(pieces=(1, 3)).split(b"00001a"))
        [b'0', b'000', b'1a']
        """
        start = 0
        for size in self.pieces:
            yield data[start : start + size]
            start += size
        yield data[start:]


SILENT: Final = Fault(delay=math.inf)
"""The reply never comes, nor does any behind it."""
FLAWLESS: Final = Fault()
"""A good reply."""

Faults: TypeAlias = Iterable[Fault | None] | Callable[[bytes], Fault | None]
"""The faults of replies in the order of their requests, or what finds the fault by
the request's payload, which is the surer way where many run at a time."""


class Cut(NamedTuple):
    """Where a connection ends: after so many more bytes of replies."""

    after: int
    reset: bool


class Clog(NamedTuple):
    """A send of which so many bytes are taken at once, the others after so many seconds."""

    taken: int
    delay: float


class Script:
    """What is still to go wrong, for all connections of a server; safe under threads."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults if callable(faults) else iter(faults)
        self.injected: deque[Fault | None] = deque()
        self.cuts: deque[Cut] = deque()
        self.clogs: deque[Clog] = deque()
        self.refusals: float = 0
        self.lock = threading.Lock()

    def next_fault(self, payload: bytes, *records: list[bytes]) -> Fault:
        """Put a request on record, and give the fault of its reply."""
        with self.lock:  # or requests and faults might not be in the same order
            for record in records:
                record.append(payload)
            if self.injected:
                return self.injected.popleft() or FLAWLESS
            if not callable(self.faults):
                return next(self.faults, None) or FLAWLESS
        return self.faults(payload) or FLAWLESS

    def next_clog(self) -> Clog | None:
        """What is wrong with the next send, if anything."""
        with self.lock:
            return self.clogs.popleft() if self.clogs else None


def os_error(number: int) -> OSError:
    """The error of the operating system with this number, of its proper class.

    >>> import errno
    >>> os_error(errno.EPIPE)
    BrokenPipeError(32, 'Broken pipe')
    """
    return OSError(number, os.strerror(number))

"""One hostile connection of ``loadgen chaos``: its steps, and the replies that it gets.

What an abuse does is written as a generator that yields a ``Wait`` wherever it
has to wait; whoever runs it may resume it too early, and every step looks again.
Replies are compared byte for byte as they come, in order; the first byte that
is not what the protocol demands raises ``Fault``.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Final, NamedTuple, Protocol

from loadgen.connection import EOF, TIMEOUT, kind_of_error
from loadgen.traffic import Message
from nbnet.framing import FrameDecoder
from nbnet.notation import format_duration
from nbnet.pollers import READ, WRITE, Poller

SHOWN: Final = 16
"""Bytes kept of what came, and of what should have, from where they differ."""
_READ_SIZE: Final = 65536
_TRY_AGAIN: Final = 0.01
"""Seconds until a connection is begun again for which a unix socket had no room."""
_RESETS: Final = struct.pack("ii", 1, 0)
"""A linger time of 0: closing sends a reset."""


class Wait(NamedTuple):
    """What is waited for: events of a poller, none for the time alone, and until when."""

    events: int
    until: float


Steps = Generator[Wait, None, None]
"""What a step of an abuse, and an abuse as a whole, is."""


class Fault(Exception):  # noqa: N818 (of the server, not of this program)
    """The server did not do as the protocol says: what it did, what was due and what came."""

    def __init__(self, said: str, expected: bytes = b"", got: bytes = b"") -> None:
        super().__init__(said)
        self.said = said
        self.expected = expected[:SHOWN]
        self.got = got[:SHOWN]


class Dialer(Protocol):
    """The way to the server."""

    def dial(self) -> socket.socket:
        """Begin a connection and give its non-blocking socket."""


class Replies:
    """What has to come back on a connection, compared as it comes.

    >>> replies = Replies()
    >>> replies.ask([Message(b"00003abc", b"00003cba")] * 2)
    >>> replies.take(b"00003cba0000")
    >>> str(replies), replies.complete
    ('1 of 2 replies', False)
    >>> replies.take(b"3cbc")
    Traceback (most recent call last):
    loadgen.chaos_peer.Fault: wrong bytes
    """

    def __init__(self) -> None:
        self._due: deque[bytes] = deque()
        self._at = 0  # bytes of the first of them that have come
        self._asked = 0
        self._came = 0
        self._any: FrameDecoder | None = None  # where any well-formed reply will do

    def __str__(self) -> str:
        replies = "reply" if self._asked == 1 else "replies"
        return f"{self._came} of {self._asked} {replies}"

    @property
    def complete(self) -> bool:
        """Whether every request is answered."""
        return self._came == self._asked

    def ask(self, messages: Sequence[Message]) -> None:
        """Expect the replies to these next."""
        self._asked += len(messages)
        if messages and not messages[0].expected and self._any is None:
            self._any = FrameDecoder(min_payload=0)
        self._due.extend(message.expected for message in messages)

    def take(self, data: bytes) -> None:
        """Take the next bytes that came.

        Raises:
            Fault: they are not what is due.
        """
        if self._any is not None:
            self._came += len(self._any.feed(data))
            if self._any.error is not None:
                raise Fault("no frame", got=self._any.held)
            if self._came > self._asked or (self.complete and self._any.unfinished):
                raise Fault("bytes that nothing asked for", got=self._any.held or data)
            return
        start = 0
        while start < len(data):
            if not self._due:
                raise Fault("bytes that nothing asked for", got=data[start:])
            due = self._due[0][self._at : self._at + len(data) - start]
            if not data.startswith(due, start):
                same = next(n for n, byte in enumerate(due) if data[start + n] != byte)
                raise Fault("wrong bytes", self._due[0][self._at + same :], data[start + same :])
            start += len(due)
            self._at += len(due)
            if self._at == len(self._due[0]):
                self._due.popleft()
                self._at = 0
                self._came += 1


class Peer:
    """One end of a connection to the server, and the steps that an abuse is made of.

    Args:
        number: of the abuser, among those of its kind, from 0.
        patience: seconds that an answer may take; progress begins them anew.
        dialer, poller, clock: the outside; the clock gives seconds.

    Attributes:
        ended: how the server has ended the connection; empty while it has not.
        replies: those that are due on this connection, and came.
        variant: what of the abuse this one tries, in words.
    """

    def __init__(
        self,
        number: int,
        patience: float,
        *,
        dialer: Dialer,
        poller: Poller,
        clock: Callable[[], float],
    ) -> None:
        self.number = number
        self.ended = ""
        self.replies = Replies()
        self.variant = ""
        self.clock = clock
        self._patience = patience
        self._dialer = dialer
        self._poller = poller
        self._socket: socket.socket | None = None
        self._watched = 0

    @property
    def fd(self) -> int:
        """The descriptor of the connection; -1 without one."""
        return -1 if self._socket is None else self._socket.fileno()

    def watch(self, events: int) -> None:
        """Have the poller tell of these events; of none, not even of failures."""
        if self._socket is None or events == self._watched:
            return
        if not events:
            self._poller.unregister(self.fd)
        elif self._watched:
            self._poller.modify(self.fd, events)
        else:
            self._poller.register(self.fd, events)
        self._watched = events

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._socket is not None:
            self.watch(0)
            self._socket.close()
            self._socket = None

    # Steps without waiting ----------------------------------------------------------

    def push(self, data: bytes | memoryview) -> int:
        """Send what the kernel takes now; how many bytes that were."""
        assert self._socket is not None
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            # What came before the reset is still there to be read.
            while self.pull():
                pass
            self.ended = kind_of_error(error)
            return 0

    def pull(self, size: int = _READ_SIZE) -> bool:
        """Read and compare up to so many bytes; whether there were some, or the end."""
        assert self._socket is not None
        if self.ended:
            return False
        try:
            data = self._socket.recv(size)
        except BlockingIOError:
            return False
        except OSError as error:
            self.ended = kind_of_error(error)
            return True
        if data:
            self.replies.take(data)
        else:
            self.ended = EOF
        return True

    def half_close(self) -> None:
        """Send no more."""
        assert self._socket is not None
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:  # reset meanwhile, which reading shows
            return

    def reset(self) -> None:
        """Cut the connection off."""
        assert self._socket is not None
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESETS)
        self.close()

    # Steps that wait ----------------------------------------------------------------

    def connect(self) -> Steps:
        """Make a connection, in place of the one before.

        Raises:
            Fault: the server takes none.
        """
        self.close()
        self.ended = ""
        self.replies = Replies()
        until = self.clock() + self._patience
        while self._socket is None:
            try:
                self._socket = self._dialer.dial()
                self._watched = 0
            except BlockingIOError:
                self._check_time(until, f"connect: {TIMEOUT}")
                yield Wait(0, min(until, self.clock() + _TRY_AGAIN))
            except OSError as error:
                raise Fault(f"connect: {kind_of_error(error)}") from None
        while not self._is_connected():
            self._check_time(until, f"connect: {TIMEOUT}")
            yield Wait(WRITE, until)

    def pause(self, seconds: float) -> Steps:
        """Do nothing for so long."""
        until = self.clock() + seconds
        while self.clock() < until:
            yield Wait(0, until)

    def quiet(self, seconds: float) -> Steps:
        """Read for so long; nothing may come, but the end may."""
        until = self.clock() + seconds
        while self.clock() < until and not self.ended:
            if not self.pull():
                yield Wait(READ, until)

    def send(self, data: bytes | memoryview) -> Steps:
        """Send all of this, and read meanwhile; less, if the server ends the connection."""
        rest = memoryview(data)
        until = self.clock() + self._patience
        while True:
            sent = self.push(rest)
            rest = rest[sent:]
            if sent or self.pull():
                until = self.clock() + self._patience
            if not rest or self.ended:
                return
            self._check_time(until, f"no more was read for {self._seconds}, {self.replies} came")
            yield Wait(READ | WRITE, until)

    def answered(self) -> Steps:
        """All replies have to come."""
        yield from self._read(lambda: self.replies.complete)
        if not self.replies.complete:
            raise Fault(f"{self.ended} after {self.replies}")

    def answered_or_ended(self) -> Steps:
        """All replies have to come, or fewer and the end."""
        yield from self._read(lambda: self.replies.complete)

    def answered_and_ended(self) -> Steps:
        """All replies have to come, and then the end, in order."""
        yield from self._read(lambda: False)
        if not self.replies.complete or self.ended != EOF:
            raise Fault(f"{self.ended} after {self.replies}")

    def _read(self, enough: Callable[[], bool]) -> Steps:
        until = self.clock() + self._patience
        while not enough() and not self.ended:
            if self.pull():
                until = self.clock() + self._patience
            else:
                # Neither an answer nor an end.
                self._check_time(until, f"nothing for {self._seconds} after {self.replies}")
                yield Wait(READ, until)

    def _check_time(self, until: float, otherwise: str) -> None:
        if self.clock() >= until:
            raise Fault(otherwise)

    @property
    def _seconds(self) -> str:
        return format_duration(self._patience)

    def _is_connected(self) -> bool:
        assert self._socket is not None
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise Fault(f"connect: {kind_of_error(OSError(code, ''))}")
        try:
            return self._socket.getpeername() != self._socket.getsockname() or (
                # Unix sockets of clients have no names. TCP can connect to itself, where
                # nobody listens.
                self._socket.family == socket.AF_UNIX
            )
        except OSError:  # not yet, or not any more
            return False

"""Live connections on their way from one server process to another.

They travel over a unix stream, a record each: a header of three lengths, who
the peer is as JSON, the bytes that were read and not answered (or those of a
PROXY header that is not whole), and the replies not sent. The socket itself goes
along with the first byte (``SCM_RIGHTS``), so records and sockets come out in
the same order.

The rules:

* a connection is with one process at a time: the old one has stopped reading
  and writing before the record is made, and closes its descriptor once the
  kernel has it;
* both processes go on serving: a few connections move each turn;
* if the new process is gone before all have moved, the old one goes on with
  what it still has, newcomers included; the one on its way is lost.
"""

from __future__ import annotations

import errno
import json
import logging
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from nbnet.loop import Loop
from nbnet.notation import Target
from nbnet.pollers import READ, WRITE, DescriptorError
from nbnet.states import State

log = logging.getLogger("nbnet")

MOVES_PER_TURN: Final = 64
"""Connections that leave in one turn: some milliseconds for everybody else. With
very many it is a part of them, since their turns are long as well."""
PART: Final = 16
"""That part: one in so many."""
ARRIVALS_PER_TURN: Final = 256
"""Connections that arrive in one turn."""
_HEADER: Final = struct.Struct("=III")  # lengths of the JSON, unread, unsent
_READ_SIZE: Final = 256 * 1024


class Record(NamedTuple):
    """One connection, but for its socket.

    Attributes:
        peer: who it is.
        requests: how many were answered.
        unread, unsent: what ``Connection.pack`` gives.
        introducing: whether a proxy has yet to say who it is.
    """

    peer: Target | str
    requests: int
    unread: bytes
    unsent: bytes
    introducing: bool = False


def pack_record(record: Record) -> bytes:
    """A record as bytes.

    >>> pack_record(Record("somebody", 2, b"00003a", b""))[-6:]
    b'00003a'
    """
    peer, requests, unread, unsent, introducing = record
    about = json.dumps({"peer": peer, "requests": requests, "introducing": introducing}).encode()
    return _HEADER.pack(len(about), len(unread), len(unsent)) + about + unread + unsent


class Records:
    """Cuts a stream into the records that ``pack_record`` made.

    >>> records = Records()
    >>> [record] = records.feed(pack_record(Record(Target("::1", 80), 2, b"00003a", b"00001b")))
    >>> record.peer, record.unread, record.unsent
    (Target(host='::1', port=80), b'00003a', b'00001b')
    """

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[Record]:
        """Take the next bytes; give the records now complete."""
        held = self._held
        held += data
        records = []
        while len(held) >= _HEADER.size:
            start = _HEADER.size
            ends = []
            for length in _HEADER.unpack_from(held):
                start += length
                ends.append(start)
            if len(held) < start:
                break
            about = json.loads(held[_HEADER.size : ends[0]])
            peer = about["peer"]
            records.append(
                Record(
                    peer if isinstance(peer, str) else Target(*peer),
                    int(about["requests"]),
                    bytes(held[ends[0] : ends[1]]),
                    bytes(held[ends[1] : ends[2]]),
                    about["introducing"],
                )
            )
            del held[:start]
        return records


class Departure:
    """Moves a loop's connections out, from when it is made until none is left that can move.

    Those that threads work on move when they are caught up; those that speak TLS
    or are ending stay.

    Args:
        loop: the loop that has them; from its thread.
        link: a connected unix stream; closed at the end.
        on_end: called at the end; with False if the other process went away.
    """

    def __init__(self, loop: Loop, link: socket.socket, on_end: Callable[[bool], None]) -> None:
        link.setblocking(False)
        self._loop = loop
        self._link = link
        self._on_end = on_end
        self._rest = b""  # of a record that the kernel took in part
        self._blocked = False
        loop.hold_accepting(True)
        loop.each_turn(self._move_some)

    def _move_some(self) -> bool:
        loop, moved = self._loop, 0
        # Who has just come is served before it goes on, however fast reloads follow.
        if self._blocked or loop.arrivals:
            return False
        try:
            if self._rest:
                self._rest = self._rest[self._link.send(self._rest) :]
            most = max(MOVES_PER_TURN, loop.connections // PART)
            while not self._rest and moved < most:
                channel = next(loop.movable(), None)
                if channel is None:
                    break
                introducing = channel.state is State.INTRODUCING
                record = pack_record(
                    Record(channel.peer, channel.requests, *channel.pack(), introducing)
                )
                sent = socket.send_fds(self._link, [record], [channel.fd])
                loop.move_out(channel)
                moved += 1
                self._rest = record[sent:]
        except BlockingIOError:
            return self._block()
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS:  # too many on their way: some will arrive
                return True
            self._fail(error)
            return False
        if self._rest or next(loop.movable(), None) is not None:
            return True
        if not loop.will_be_movable():
            self._end(True)
        return False

    def _block(self) -> bool:
        """Wait until the link takes more."""
        try:
            self._loop.watch(self._link.fileno(), WRITE, self._unblock)
            self._blocked = True
        except (DescriptorError, OSError) as error:
            self._fail(error)
        return False

    def _fail(self, error: Exception) -> None:
        log.warning("the connections stay, they cannot be handed over: %s", error)
        self._end(False)

    def _unblock(self) -> None:
        self._blocked = False
        self._loop.unwatch(self._link.fileno())

    def _end(self, well: bool) -> None:
        self._loop.each_turn(None)
        self._link.close()
        if not well:
            self._loop.hold_accepting(False)
        self._on_end(well)


class Arrival:
    """Takes connections in, from when it is made until the other process has no more.

    Args:
        loop: the loop that is to have them; from its thread.
        link: a connected unix stream; closed at the end.
        expected: how many will come, more or less; room is kept for them.
    """

    def __init__(self, loop: Loop, link: socket.socket, expected: int = 0) -> None:
        link.setblocking(False)
        self._loop = loop
        self._link = link
        self._records = Records()
        self._descriptors: deque[int | None] = deque()
        loop.watch(link.fileno(), READ, self._receive)
        loop.arrivals += 1
        loop.expect(expected)

    def _receive(self) -> None:
        # The kernel ends a read where a socket came with it, so each gives one.
        for _ in range(ARRIVALS_PER_TURN):
            if not self._receive_some():
                return

    def _receive_some(self) -> bool:
        """Read once; whether there may be more."""
        try:
            data, descriptors, flags, _ = socket.recv_fds(self._link, _READ_SIZE, 1)
        except BlockingIOError:
            return False
        except OSError:  # the other process died; what it had is gone with it
            data, descriptors, flags = b"", [], 0
        self._descriptors.extend(descriptors)
        if flags & socket.MSG_CTRUNC:
            # One came, and this process may not have so many: the place is kept.
            self._descriptors.append(None)
        for record in self._records.feed(data):
            descriptor = self._descriptors.popleft()
            if descriptor is None:
                log.error("%s: lost on its way here, too many open files", record.peer)
                continue
            connection = socket.socket(fileno=descriptor)
            connection.setblocking(False)
            # recv_fds() leaves its flags out: what a handler starts would hold it open.
            connection.set_inheritable(False)
            self._loop.adopt(connection, **record._asdict())
        if not data:
            self._loop.arrivals -= 1
            self._loop.expect(0)
            self._loop.unwatch(self._link.fileno())
            self._link.close()
        return bool(data)

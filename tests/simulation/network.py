"""Connections of the simulated kernel: both ends, and what is between them.

What an end sends goes into its send buffer, from there in pieces of any size to
the receive buffer of the other as long as that has room, and the end of the
stream after it. As TCP on Linux does it:

* ``close`` with unread input, or of a connection to which more comes, resets it;
  otherwise what was sent still arrives, and then the end;
* after a reset what has arrived can still be read; then comes the error, once,
  then the end; sending fails with the error if that was not told, then ``EPIPE``;
* a socket is writable when a third of its send buffer is free, and ``READ`` when
  there is input, its end, or an error.

Scripted peers use an ``End`` as it is; processes have descriptors (``sockets``).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from nbnet.pollers import READ, WRITE
from simulation.kernel import MS, SECOND, US, Kernel, os_error
from simulation.poller import FAILED, HALF_CLOSED, HANGUP, Poller

if TYPE_CHECKING:
    from simulation.sockets import Listener


class Account(Protocol):
    """Is told what a server reads and sends on a connection, and how it ends it."""

    def took(self, data: bytes) -> None: ...
    def gave(self, data: bytes) -> None: ...
    def shut(self) -> None: ...
    def closed(self) -> None: ...


class End:
    """One end of a connection.

    Attributes:
        peer: the other one.
        room, window: sizes of the send and the receive buffer; those of the other
            end, which is made by the network, are at least ``least``.
        inbox: what has arrived and was not read; ``outbox`` what was not sent yet.
        connected: whether it is made.
        eof: whether the other has ended its stream, and that has arrived.
        shut: whether this one has; ``closed`` whether nobody has it any more.
        dead: reset, or given up by the kernel.
        error: what is to be told to the next call.
        disturbed: what has happened to it that excuses much; empty for nothing.
        on_change: called when anything changes; for scripted peers.
        account: is told what is read and sent here.
        stamped_at: when the last bytes arrived.
        poisoned: whether bytes were read that the network had changed.
    """

    def __init__(self, kernel: Kernel, *, room: int, window: int, least: int = 0) -> None:
        self.kernel = kernel
        self.least = least
        self.watchers: list[tuple[Poller, int]] = []
        self.peer = self
        self.room, self.window = room, window
        self.inbox = bytearray()
        self.outbox = bytearray()
        self.connected = False
        self.eof = self.shut = self.closed = self.dead = False
        self.error = 0
        self.disturbed = ""
        self.on_change: Callable[[], None] | None = None
        self.account: Account | None = None
        self.network: Network | None = None
        self.stamped_at = 0
        self.poisoned = False
        self._clean = -1  # bytes to read until the first that was changed; -1 without one
        self._moving = self._fin_sent = False
        self._wants_room = False
        self._leaving = 0  # bytes of the outbox that are on their way

    # What calls do ------------------------------------------------------------------

    def read(self, size: int) -> bytes:
        """As ``recv``.

        Raises:
            OSError: nothing is there (``EAGAIN``), or it was reset.
        """
        if self.inbox:
            data = bytes(self.inbox[:size])
            del self.inbox[:size]
            if self._clean >= 0:
                self.poisoned = self.poisoned or len(data) > self._clean
                self._clean = max(0, self._clean - len(data))
            self.peer._go_on()
            return data
        if self.eof:
            return b""  # even if it was reset since: that is told to whoever sends
        if self.error:
            code, self.error = self.error, 0
            raise os_error(code)
        if self.dead:
            return b""
        raise os_error(errno.EAGAIN if self.connected else errno.ENOTCONN)

    def write(self, data: bytes) -> int:
        """As ``send``.

        Raises:
            OSError: there is no room (``EAGAIN``), or it was reset or shut.
        """
        if self.error:
            code, self.error = self.error, 0
            raise os_error(code)
        if self.shut or self.dead:
            raise os_error(errno.EPIPE)
        if not self.connected:
            raise os_error(errno.EAGAIN)
        free = self.room - len(self.outbox)
        if len(data) > free:
            self._wants_room = True
        if free <= 0:
            raise os_error(errno.EAGAIN)
        taken = data[:free]
        self.outbox += taken
        self._go_on()
        return len(taken)

    def shutdown(self) -> None:
        """End the stream after what was sent.

        Raises:
            OSError: there is no connection any more (``ENOTCONN``).
        """
        self.wake(0)  # in any case
        if self.dead or not self.connected or self._is_over:
            raise os_error(errno.ENOTCONN)
        self.shut = True
        self._go_on()

    def release(self) -> None:
        """``close``: nobody has it any more."""
        self.closed = True
        if self.dead:
            return
        if self.inbox or not self.connected:
            self.abort()
        else:
            self.shut = True
            self._go_on()

    def abort(self) -> None:
        """Reset the connection; what was not sent is lost."""
        if not self.dead:
            self._die()
            self.peer._be_reset_soon()

    def break_off(self) -> None:
        """The kernel gives it up; the other end learns of it as of a reset."""
        self.abort()

    def disturb(self, how: str) -> None:
        """Note at both ends what excuses much."""
        self.disturbed = self.disturbed or how
        self.peer.disturbed = self.peer.disturbed or how

    def mask(self) -> int:
        """The events that are there now, as ``tcp_poll`` has them."""
        if self.dead:
            found = HANGUP | READ | HALF_CLOSED | WRITE
        elif not self.connected:
            return 0
        else:
            found = READ if self.inbox or self.eof else 0
            if self.eof:
                found |= HALF_CLOSED
            if self.eof and self.shut:
                found |= HANGUP
            used = len(self.outbox)
            if self.shut or (self.room - used) * 2 >= used:
                found |= WRITE
            else:
                self._wants_room = True
        return found | (FAILED if self.error else 0)

    def wake(self, bits: int) -> None:
        """Tell those who watch that something has changed; 0 for anything."""
        for poller, fd in self.watchers:
            poller.wake(fd, bits)
        if self.on_change is not None:
            self.on_change()

    # What the network does ------------------------------------------------------------

    def _go_on(self) -> None:
        """Have the next piece on its way, if there is any and room for it."""
        if self._moving or self.dead or self._fin_sent or not self.connected:
            return
        if self.outbox:
            if len(self.peer.inbox) >= self.peer.window:
                return  # goes on when that is read
        elif not self.shut:
            return
        self._moving = True
        self._leaving = len(self.outbox)
        assert self.network is not None
        self.kernel.after(self.network.delay(), self._arrive)

    def _arrive(self) -> None:
        self._moving = False
        network = self.network
        assert network is not None
        if self.dead:
            return
        peer = self.peer
        if network.interferes(self):
            return
        if peer.dead or (peer.closed and self.outbox):
            peer.dead = True
            self._be_reset()  # what came to nobody is answered with a reset
            return
        if self._leaving:
            size = network.piece(min(self._leaving, max(1, peer.window - len(peer.inbox))))
            network.corrupt(self, size)
            peer.inbox += self.outbox[:size]
            del self.outbox[:size]
            peer.stamped_at = self.kernel.now
            peer.wake(READ)
            if self._wants_room and (self.room - len(self.outbox)) * 2 >= len(self.outbox):
                self._wants_room = False
                self.wake(WRITE)
        elif self.shut and not self.outbox:
            self._fin_sent = True
            peer.eof = True
            peer.wake(0)
        self._go_on()

    def _die(self) -> None:
        self.dead = True
        self.outbox.clear()
        self.wake(0)

    def _be_reset_soon(self) -> None:
        assert self.network is not None
        self.kernel.after(self.network.delay(), self._be_reset)

    @property
    def _is_over(self) -> bool:
        """Whether both streams have come to their ends: nothing resets it any more."""
        return self.eof and self._fin_sent

    def _be_reset(self) -> None:
        if self.dead or self._is_over:
            return
        self.error = errno.EPIPE if self.eof and not self.shut else errno.ECONNRESET
        self._die()

    def connect_failed(self, code: int) -> None:
        """The attempt has come to nothing."""
        if not self.closed:
            self.error = code
            self._die()

    def made(self) -> None:
        """The connection is there."""
        if self.dead or self.closed:
            return
        self.connected = True
        self.wake(0)
        self._go_on()


class Network:
    """How long things take, in what pieces they come, and what gets lost.

    Args:
        listener: where all connections lead.
        pace: nanoseconds that a piece takes at most.
        pieces: how data is cut: 0 not at all, 1 often, 2 to bits.
        faults: resets and losses, by their rates.
    """

    def __init__(
        self, kernel: Kernel, listener: Listener, *, pace: int = MS, pieces: int = 1
    ) -> None:
        self.kernel = kernel
        self.listener = listener
        self.pace = pace
        self.pieces = pieces
        self.reset_rate = self.vanish_rate = self.corrupt_rate = 0.0
        self._ports = 0

    def delay(self) -> int:
        """How long the next thing is on its way."""
        return 10 * US + self.kernel.rng.randrange(self.pace)

    def piece(self, most: int) -> int:
        """How many bytes of so many arrive together."""
        if not self.pieces or most == 1:
            return most
        choice = self.kernel.rng.randrange(8)
        if choice == 0 and (self.pieces > 1 or most < 4096):
            return min(most, 1 + self.kernel.rng.randrange(8))
        if choice < 2 * self.pieces:
            return 1 + self.kernel.rng.randrange(most)
        return most

    def interferes(self, end: End) -> bool:
        """Whether the network does something to a connection instead of its work."""
        rng = self.kernel.rng
        if self.reset_rate and rng.random() < self.reset_rate:
            end.disturb("reset by the network")
            self.kernel.say("the network resets a connection")
            which = rng.randrange(3)
            for each, at in ((end, 0), (end.peer, 1)):
                if which in (at, 2):
                    each._be_reset()
            return True
        if self.vanish_rate and rng.random() < self.vanish_rate:
            end.disturb("its data vanishes")
            self.kernel.say("the network loses a connection")
            end._moving = True  # for ever: nothing more arrives
            return True
        return False

    def corrupt(self, end: End, size: int) -> None:
        """Change a byte of a piece that a server sends, now and then."""
        rng = self.kernel.rng
        if end.account is not None and self.corrupt_rate and rng.random() < self.corrupt_rate:
            at = rng.randrange(size)
            end.outbox[at] ^= 1 << rng.randrange(8)
            self.kernel.say("the network changes a byte")
            if end.peer._clean < 0:
                end.peer._clean = len(end.peer.inbox) + at

    def connect(self, end: End, host: str = "192.0.2.1") -> None:
        """Begin a connection to the listener."""
        end.network = self
        self._ports += 1
        address = (host, 20_000 + self._ports)
        self.kernel.after(self.delay(), lambda: self._arrives(end, address))

    def _arrives(self, end: End, address: object) -> None:
        if end.closed or end.dead:
            return
        if self.listener.is_closed:
            end.disturb("refused")
            end.connect_failed(errno.ECONNREFUSED)
            return
        rng, least = self.kernel.rng, end.least
        other = End(
            self.kernel,
            room=max(least, rng.choice((100, 1000, 20_000, 200_000))),
            window=max(least, rng.choice((100, 5000, 200_000, 200_000))),
        )
        other.network, other.peer = self, end
        other.connected = True
        if not self.listener.arrive(other, address):
            self.kernel.after(SECOND, lambda: self._arrives(end, address))  # tried again
            return
        end.peer = other
        self.kernel.after(self.delay(), end.made)

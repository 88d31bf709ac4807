"""The event loop: one thread, any number of connections.

It touches the outside only through what it is given: a listener and the
sockets that it accepts, a poller, a clock and a wake-up. A simulation can
replace all four and run this code as it stands.

The rules:

* optimistic write: replies are sent at once, and the poller is asked about
  writing only after the kernel refused some;
* a file descriptor is closed after the batch of events in which its connection
  ended, and connections are accepted last: otherwise a later event of the same
  batch could reach a new connection that got the old number;
* an event is a hint: every call may say "not yet", and an event for a
  descriptor that is gone is dropped.

How it reads: ``run`` turns the wheel, ``_turn`` is one batch of events and
holds the fast path, ``_settle`` acts on a connection's new state.
"""

from __future__ import annotations

import errno
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from nbnet.connection import Connection
from nbnet.handlers import Handler
from nbnet.limits import Limits
from nbnet.pollers import ERROR, READ, WRITE, Poller
from nbnet.states import INTEREST, State

log = logging.getLogger("nbnet")

READ_SIZE: Final = 64 * 1024
"""Bytes asked of the kernel in one read."""
MAX_EVENTS: Final = 4096
"""Events taken in one batch; epoll's own default would stop at 1,023."""
ACCEPTS_PER_TURN: Final = 256
"""Connections accepted in one turn, so that a flood cannot hold up the others."""
ACCEPT_PAUSE: Final = 0.1
"""Seconds without accepting after the kernel ran out of descriptors or memory."""

SHUT_WR: Final = 1
"""``socket.SHUT_WR``, which is 1 on every POSIX system."""

# What accept(2) may answer, by what follows: with the first kind the listener
# stays readable, so going on at once would spin; the second kind speaks of one
# connection that failed while it was queued, and the next may be fine.
_OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_ONE_FAILED: Final = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPERM,
        errno.EPROTO,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENONET,
    }
)


class Socket(Protocol):
    """What the loop needs of a connected, non-blocking socket."""

    def recv(self, size: int, /) -> bytes: ...
    def send(self, data: bytes | bytearray | memoryview, /) -> int: ...
    def setblocking(self, flag: bool, /) -> None: ...
    def shutdown(self, how: int, /) -> None: ...
    def close(self) -> None: ...
    def fileno(self) -> int: ...


class Listener(Protocol):
    """What the loop needs of a listening, non-blocking socket."""

    def accept(self) -> tuple[Socket, Any]: ...
    def close(self) -> None: ...
    def fileno(self) -> int: ...


class WakeUp(Protocol):
    """Makes a waiting poller return; safe to set from other threads and signals."""

    def set(self) -> None: ...
    def clear(self) -> None: ...
    def fileno(self) -> int: ...


class Channel(Connection):
    """A connection with its socket, as the loop keeps it.

    ``settled`` is the state that the loop has acted on last.
    """

    __slots__ = ("fd", "recv", "send", "settled", "socket")

    def __init__(self, socket: Socket, handler: Handler, limits: Limits, peer: str) -> None:
        super().__init__(handler, limits, peer)
        self.socket = socket
        self.fd = socket.fileno()
        self.settled = self.state
        self.recv = socket.recv
        self.send = socket.send


class Loop:
    """Serves the connections of one listener.

    Args:
        listener: a listening socket, non-blocking; the loop closes it.
        handler: what answers a request.
        poller: what waits for events; the loop does not close it.
        clock: monotonic seconds.
        wake_up: what makes the poller return; the loop does not close it.
        limits: the bounds to keep.

    Attributes:
        accepted: connections accepted so far.
        requests: requests answered on connections that have ended.
    """

    def __init__(
        self,
        listener: Listener,
        handler: Handler,
        *,
        poller: Poller,
        clock: Callable[[], float],
        wake_up: WakeUp,
        limits: Limits,
    ) -> None:
        self.accepted = 0
        self.requests = 0
        self._listener = listener
        self._handler = handler
        self._poller = poller
        self._clock = clock
        self._wake_up = wake_up
        self._limits = limits
        self._channels: dict[int, Channel] = {}
        self._ended: list[Channel] = []  # to be closed after the batch
        # Lingering connections by deadline: all linger equally long, so the
        # queue is in order by itself.
        self._lingering: deque[tuple[float, Channel]] = deque()
        self._timed = False  # whether any deadline is set: without one no clock is read
        self._accepting = False
        self._accept_again: float | None = None  # when a pause in accepting ends
        self._accept_failing = False  # said in the log once, until it works again
        self._stops_asked = 0
        self._give_up: float | None = None  # when a stopping loop closes what is left

    @property
    def connections(self) -> int:
        """Connections open now."""
        return len(self._channels)

    def stop(self) -> None:
        """Ask the loop to end: from any thread, or from a signal handler.

        Asked a second time, it does not wait for connections to end well.
        """
        self._stops_asked += 1
        self._wake_up.set()

    def run(self) -> None:
        """Serve until ``stop``, then until every connection has ended well.

        That takes at most ``limits.drain`` seconds; what is still open then is
        closed as it is.
        """
        poll = self._poller.poll
        self._poller.register(self._wake_up.fileno(), READ)
        try:
            self._set_accepting(True)
            while self._give_up is None or self._channels:
                self._turn(poll(self._timeout() if self._timed else -1, MAX_EVENTS))
                if self._timed:
                    self._check_deadlines()
                if self._stops_asked:
                    self._drain()
        finally:
            self._close_all()

    # The fast path ---------------------------------------------------------

    def _turn(self, events: list[tuple[int, int]]) -> None:
        """Deal with one batch of events."""
        channels = self._channels
        reading = State.READING
        accept = False
        for fd, mask in events:
            channel = channels.get(fd)
            if channel is None:
                if fd == self._wake_up.fileno():
                    self._wake_up.clear()
                else:
                    accept = self._accepting  # last: see the rules
                continue
            if mask != READ or channel.state is not reading:
                self._handle(channel, mask)
                continue
            # Nearly every event ends up here: a request came, its reply goes.
            try:
                data = channel.recv(READ_SIZE)
            except BlockingIOError:
                continue
            except OSError as error:
                self._lose(channel, error)
                continue
            if not data:
                channel.receive_eof()
                self._settle(channel)
                continue
            replies = channel.receive(data)
            if channel.state is not reading:
                channel.block(replies)
                self._flush(channel)
                continue
            try:
                sent = channel.send(replies) if replies else 0
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._lose(channel, error)
                continue
            if sent != len(replies):
                channel.block(memoryview(replies)[sent:])
                self._settle(channel)
        if self._ended:
            self._close_ended()
        if accept:
            self._accept()

    # Everything that is not common -------------------------------------------

    def _handle(self, channel: Channel, mask: int) -> None:
        """Deal with an event that the fast path does not cover."""
        state = channel.state
        if state is State.CLOSED:
            return
        interest = INTEREST[state]
        if mask & ERROR:
            # A failed or reset socket says why in the call that the state waits
            # for, after what can still be read.
            mask |= interest
        if mask & interest & WRITE:
            self._flush(channel)
        if mask & interest & READ and channel.state is state:
            self._read(channel)

    def _read(self, channel: Channel) -> None:
        try:
            data = channel.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(channel, error)
            return
        if not data:
            channel.receive_eof()
            self._settle(channel)
        elif channel.state is not State.LINGERING:
            channel.block(channel.receive(data))
            self._flush(channel)

    def _flush(self, channel: Channel) -> None:
        """Send what waits; the kernel may take all, part or nothing."""
        try:
            sent = channel.send(channel.unsent) if channel.unsent else 0
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._lose(channel, error)
            return
        channel.take(sent)
        self._settle(channel)

    def _lose(self, channel: Channel, error: OSError) -> None:
        channel.lose(error.strerror or str(error))
        self._settle(channel)

    def _settle(self, channel: Channel) -> None:
        """Act on the state that a connection has come to."""
        state, before = channel.state, channel.settled
        if state is before:
            return
        channel.settled = state
        if state is State.CLOSED:
            self._ended.append(channel)
            return
        if INTEREST[state] != INTEREST[before]:
            self._poller.modify(channel.fd, INTEREST[state])
        if state is State.LINGERING:
            self._timed = True
            self._lingering.append((self._clock() + self._limits.linger, channel))
            try:
                channel.socket.shutdown(SHUT_WR)
            except OSError as error:  # reset by the peer meanwhile
                self._lose(channel, error)

    def _close_ended(self) -> None:
        for channel in self._ended:
            del self._channels[channel.fd]
            self.requests += channel.requests
            self._poller.unregister(channel.fd)
            channel.socket.close()
        self._ended.clear()

    # Accepting -----------------------------------------------------------------

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                socket, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    self._pause_accepting(error)
                    return
                if error.errno in _ONE_FAILED:
                    log.debug("a connection failed before it was accepted: %s", error.strerror)
                    continue
                raise
            self._accept_failing = False
            socket.setblocking(False)
            channel = Channel(socket, self._handler, self._limits, _peer_name(address))
            self._channels[channel.fd] = channel
            self._poller.register(channel.fd, READ)
            self.accepted += 1

    def _pause_accepting(self, error: OSError) -> None:
        """Stop asking for connections that cannot be had, for a moment."""
        if not self._accept_failing:
            self._accept_failing = True
            log.error(
                "cannot accept with %d connections open: %s; trying again every %g s",
                len(self._channels),
                error.strerror,
                ACCEPT_PAUSE,
            )
        self._set_accepting(False)
        self._timed = True
        self._accept_again = self._clock() + ACCEPT_PAUSE

    def _set_accepting(self, accepting: bool) -> None:
        if accepting != self._accepting:
            self._accepting = accepting
            if accepting:
                self._poller.register(self._listener.fileno(), READ)
            else:
                self._poller.unregister(self._listener.fileno())

    # Time and the end ------------------------------------------------------------

    def _timeout(self) -> float:
        """Seconds until the next deadline."""
        deadlines = [
            deadline
            for deadline in (
                self._lingering[0][0] if self._lingering else None,
                self._accept_again,
                self._give_up,
            )
            if deadline is not None
        ]
        return max(0.0, min(deadlines) - self._clock())

    def _check_deadlines(self) -> None:
        now = self._clock()
        while self._lingering and (
            self._lingering[0][0] <= now or self._lingering[0][1].state is State.CLOSED
        ):
            channel = self._lingering.popleft()[1]
            if channel.state is State.LINGERING:
                channel.lose("did not close in time")
                self._settle(channel)
        if self._accept_again is not None and self._accept_again <= now:
            self._accept_again = None
            self._set_accepting(True)
        if self._give_up is not None and self._give_up <= now:
            for channel in self._channels.values():
                if channel.state is not State.CLOSED:
                    channel.lose("still open when the server had to stop")
                    self._settle(channel)
        self._close_ended()
        self._timed = (
            bool(self._lingering) or self._accept_again is not None or self._give_up is not None
        )

    def _drain(self) -> None:
        """Stop accepting and end every connection, once; at the second call, at once."""
        if self._give_up is None:
            self._accept_again = None
            self._set_accepting(False)
            self._listener.close()
            self._timed = True
            self._give_up = self._clock() + self._limits.drain
            for channel in self._channels.values():
                channel.stop()
                self._settle(channel)
            self._close_ended()
        if self._stops_asked > 1:
            self._give_up = self._clock()

    def _close_all(self) -> None:
        """Let go of everything, also after an error."""
        self._set_accepting(False)
        self._listener.close()
        for channel in self._channels.values():
            if channel.state is not State.CLOSED:
                channel.lose("the server ended")
                self._settle(channel)
        self._close_ended()
        self._poller.unregister(self._wake_up.fileno())


def _peer_name(address: Any) -> str:
    """An address as accept() gives it, the way people write it."""
    if isinstance(address, tuple):
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return str(address) or "unix socket"

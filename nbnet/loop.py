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
  descriptor that is gone is dropped;
* one read a connection a turn; who may have more to do without a further event
  (edge-triggered input, requests that wait) is in the ready queue and has its
  next turn after everybody else.

How it reads: ``run`` turns the wheel, ``_turn`` is one batch of events and
holds the fast path, ``_settle`` acts on a connection's new state.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Protocol

from nbnet.acceptor import Acceptor, Listener, Socket
from nbnet.connection import Connection
from nbnet.counters import Counters
from nbnet.deadlines import Deadlines
from nbnet.handlers import Handler
from nbnet.limits import Limits
from nbnet.notation import Target
from nbnet.pollers import EDGE, ERROR, READ, WRITE, DescriptorError, Poller
from nbnet.states import INTEREST, State

log = logging.getLogger("nbnet")

READ_SIZE: Final = 64 * 1024
"""Bytes asked of the kernel in one read."""
FIRST_READ_SIZE: Final = 479
"""The same until a read is filled. The interpreter keeps blocks of up to 512
bytes, 33 of them its own, at hand; a larger buffer costs calls to malloc."""
LAST_READS: Final = 16
"""Reads at most of a connection when the server stops."""
MAX_EVENTS: Final = 4096
"""Events taken in one batch; epoll's own default would stop at 1,023."""

LONGEST_WAIT: Final = 60.0
"""Seconds after which the poller returns even if nothing is due."""

SHUT_WR: Final = 1
"""``socket.SHUT_WR``, which is 1 on every POSIX system."""


class WakeUp(Protocol):
    """Makes a waiting poller return; safe to set from other threads and signals."""

    def set(self) -> None: ...
    def clear(self) -> None: ...
    def fileno(self) -> int: ...


class Channel(Connection):
    """A connection with its socket, as the loop keeps it.

    ``settled`` is the state that the loop has acted on last, ``read_size`` what
    it asks for in a read, ``tick`` where its deadline is parked.
    """

    __slots__ = ("fd", "read_size", "settled", "socket", "tick")

    def __init__(
        self,
        socket: Socket,
        peer: Target | str,
        *,
        handler: Handler,
        limits: Limits,
        counters: Counters,
        now: float,
    ) -> None:
        super().__init__(handler, limits, counters, peer, now)
        self.socket = socket
        self.fd = socket.fileno()
        self.read_size = FIRST_READ_SIZE
        self.settled = self.state
        self.tick: int | None = None


class Loop:
    """Serves the connections of one listener.

    Args:
        listener: a listening socket, non-blocking; the loop closes it.
        handler: what answers a request.
        poller: what waits for events; the loop does not close it.
        clock: monotonic seconds.
        wake_up: what makes the poller return; the loop does not close it.
        limits: the bounds to keep.
        edge: whether to ask the poller for edge-triggered events.

    Attributes:
        counters: what has been counted so far, but for the requests answered on
            connections still open: see ``count``.
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
        edge: bool = False,
    ) -> None:
        self.counters = Counters()
        self._handler = handler
        self._poller = poller
        self._clock = clock
        self._wake_up = wake_up
        self._limits = limits
        self._trigger = EDGE if edge else 0
        self._acceptor = Acceptor(
            listener, poller=poller, clock=clock, limits=limits, counters=self.counters
        )
        self._channels: dict[int, Channel] = {}
        self._ended: list[Channel] = []  # to be closed after the batch
        self._ready: dict[Channel, None] = {}  # in order; has work without an event
        self._deadlines: Deadlines[Channel] = Deadlines()
        self._now = 0.0  # read once a batch
        self._look_at = 0.0  # when deadlines are looked at; nothing is due before
        self._stops_asked = 0
        self._give_up = math.inf  # when a stopping loop closes what is left

    @property
    def connections(self) -> int:
        """Connections open now."""
        return len(self._channels)

    def count(self) -> Counters:
        """What has been counted so far, as a copy; from the loop's thread."""
        live = sum(channel.requests for channel in self._channels.values())
        return replace(self.counters, requests=self.counters.requests + live)

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
        poll, clock = self._poller.poll, self._clock
        self._poller.register(self._wake_up.fileno(), READ)
        try:
            self._acceptor.resume()
            self._now = clock()
            while self._give_up == math.inf or self._channels:
                timeout = 0 if self._ready else self._look_at - self._now
                events = poll(max(0, timeout), MAX_EVENTS)
                self._now = clock()
                self._turn(events)
                if self._now >= self._look_at:
                    self._keep_deadlines()
                if self._stops_asked:
                    self._drain()
        finally:
            self._close_all()

    # The fast path ---------------------------------------------------------

    def _turn(self, events: list[tuple[int, int]]) -> None:
        """Deal with one batch of events."""
        channels, now = self._channels, self._now
        reading = State.READING
        edge = self._trigger
        accept = False
        if self._ready:
            self._resume_ready()
        for fd, mask in events:
            channel = channels.get(fd)
            if channel is None:
                if fd == self._wake_up.fileno():
                    self._wake_up.clear()
                else:
                    accept = True  # last: see the rules
                continue
            if mask != READ or channel.state is not reading:
                self._handle(channel, mask)
                continue
            # Nearly every event ends up here: a request came, its reply goes.
            socket = channel.socket
            try:
                data = socket.recv(channel.read_size)
            except BlockingIOError:
                continue
            except OSError as error:
                self._lose(channel, error)
                continue
            if not data:
                self._receive_eof(channel)
                continue
            replies = channel.receive(data, now)
            if channel.state is not reading:
                channel.block(replies, now)
                self._flush(channel)
                continue
            try:
                sent = socket.send(replies) if replies else 0
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._lose(channel, error)
                continue
            if sent != len(replies):
                channel.block(memoryview(replies)[sent:], now)
                self._settle(channel)
            elif channel.frame_since is not None:
                self._watch(channel)
            if len(data) == channel.read_size:  # a shorter read has taken all there was
                channel.read_size = READ_SIZE
                if edge:
                    self._ready[channel] = None
        if self._ended:
            self._close_ended()
        if accept:
            self._accept()

    # Everything that is not common -------------------------------------------

    def _handle(self, channel: Channel, mask: int) -> None:
        """Deal with an event that the fast path does not cover."""
        state = channel.state
        interest = INTEREST[state]
        if mask & ERROR:
            # A failed or reset socket says why in the call that the state waits
            # for, after what can still be read.
            mask |= interest
        if mask & interest & WRITE:
            self._flush(channel)
        if mask & interest & READ and channel.state is state is not State.BUSY:
            self._read(channel)

    def _read(self, channel: Channel) -> bool:
        """Read once; say whether anything came."""
        try:
            data = channel.socket.recv(channel.read_size)
        except BlockingIOError:
            return False
        except OSError as error:
            self._lose(channel, error)
            return False
        if not data:
            self._receive_eof(channel)
            return False
        channel.read_size = READ_SIZE
        if channel.state is not State.LINGERING:
            channel.block(channel.receive(data, self._now), self._now)
            self._flush(channel)
        if self._trigger:
            self._ready[channel] = None  # until a read says that nothing is left
        return True

    def _receive_eof(self, channel: Channel) -> None:
        channel.receive_eof()
        self._flush(channel)

    def _resume_ready(self) -> None:
        """Give everybody in the ready queue one turn."""
        ready, self._ready = self._ready, {}
        for channel in ready:
            if channel.state is State.BUSY:
                channel.block(channel.resume(self._now), self._now)
                self._flush(channel)
                if self._trigger or channel.state is State.BUSY:
                    self._ready[channel] = None
            elif INTEREST[channel.state] & READ:
                self._read(channel)

    def _flush(self, channel: Channel) -> None:
        """Send what waits; the kernel may take all, part or nothing."""
        try:
            sent = channel.socket.send(channel.unsent) if channel.unsent else 0
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._lose(channel, error)
            return
        channel.take(sent, self._now)
        self._settle(channel)

    def _lose(self, channel: Channel, error: OSError) -> None:
        if channel.state is not State.CLOSED:
            self.counters.lost += 1
            channel.lose(error.strerror or str(error))
            self._settle(channel)

    def _settle(self, channel: Channel) -> None:
        """Act on the state that a connection has come to."""
        if channel.unsent and 0 < self._limits.max_output < self.counters.unsent:
            self.counters.shed += 1
            log.debug("%s: closing, too many unsent replies of all together", channel.peer)
            channel.lose("too many unsent replies of all together")
        state, before = channel.state, channel.settled
        if state is not before:
            channel.settled = state
            if state is State.CLOSED:
                self._ended.append(channel)
                return
            if INTEREST[state] != INTEREST[before]:
                self._poller.modify(channel.fd, INTEREST[state] | self._trigger)
            if state is State.BUSY:
                self._ready[channel] = None
            elif state is State.LINGERING:
                channel.linger(self._now)
                try:
                    channel.socket.shutdown(SHUT_WR)
                except OSError as error:  # reset by the peer meanwhile
                    self._lose(channel, error)
                    return
        self._watch(channel)

    def _close_ended(self) -> None:
        # One by one off the list: should a signal interrupt this, it can go on.
        while self._ended:
            channel = self._ended.pop()
            if self._channels.pop(channel.fd, None) is None:
                continue
            self._ready.pop(channel, None)
            self._deadlines.forget(channel)
            self._poller.unregister(channel.fd)
            channel.socket.close()
            self.counters.connections -= 1
            self.counters.requests += channel.requests
            self._acceptor.released(channel.peer)

    def _accept(self) -> None:
        for socket, peer in self._acceptor.accept():
            channel = Channel(
                socket,
                peer,
                handler=self._handler,
                limits=self._limits,
                counters=self.counters,
                now=self._now,
            )
            try:
                self._poller.register(channel.fd, READ | self._trigger)
            except (DescriptorError, OSError) as error:  # the kernel may be out of memory
                self._acceptor.reject(socket, peer, error)
                continue
            self._channels[channel.fd] = channel
            self.counters.connections += 1
            self._watch(channel)
        self._look_by(self._acceptor.again)

    # Time and the end ------------------------------------------------------------

    def _watch(self, channel: Channel) -> None:
        """Look at a connection again when its deadline has passed, if that is soon enough."""
        when, _ = channel.deadline()
        if self._limits.idle_timeout:
            # A request that is answered makes a connection idle without a call of this.
            when = min(when, self._now + self._limits.idle_timeout)
        if when != math.inf:
            self._deadlines.park_by(channel, when)
            self._look_by(when)

    def _look_by(self, when: float) -> None:
        if when < self._look_at:
            self._look_at = when

    def _keep_deadlines(self) -> None:
        now = self._now
        for channel in self._deadlines.due(now):
            when, kind = channel.deadline()
            if when > now:  # something happened meanwhile, so it is later
                self._watch(channel)
                continue
            self.counters.count_timeout(kind)
            log.debug("%s: closing, %s timeout", channel.peer, kind.replace("_", " "))
            channel.lose(f"{kind} timeout")
            self._settle(channel)
        if now >= self._acceptor.again:
            self._acceptor.resume()
        if now >= self._give_up:
            self._lose_all("still open when the server had to stop")
        self._close_ended()
        self._look_at = min(
            self._deadlines.next_due, self._acceptor.again, self._give_up, now + LONGEST_WAIT
        )

    def _drain(self) -> None:
        """Stop accepting and let every connection end, once; at the second call, at once."""
        if self._give_up == math.inf:
            self._acceptor.close()
            self._give_up = self._now + self._limits.drain
            self._look_by(self._give_up)
            for channel in list(self._channels.values()):
                # What has come is in flight; what goes on coming is not.
                for _ in range(LAST_READS):
                    if channel.state is not State.READING or not self._read(channel):
                        break
                channel.stop(self._now)
                self._flush(channel)
            self._close_ended()
        if self._stops_asked > 1:
            self._give_up = self._look_at = self._now

    def _lose_all(self, reason: str) -> None:
        for channel in self._channels.values():
            if channel.state is not State.CLOSED:
                channel.lose(reason)
                self._settle(channel)

    def _close_all(self) -> None:
        """Let go of everything, also after an error."""
        self._acceptor.close()
        self._lose_all("the server ended")
        self._close_ended()
        self._poller.unregister(self._wake_up.fileno())

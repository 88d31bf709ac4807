"""The event loop: one thread, any number of connections.

It touches the outside only through what it is given: listeners and the sockets
that they accept, a poller, a clock and a wake-up; where asked for, something
that wraps sockets in TLS and a pool of threads. A simulation can replace them
all and run this code as it stands.

The rules:

* optimistic write: replies are sent at once, and the poller is asked about
  writing only after the kernel refused some;
* a file descriptor is closed after the batch of events in which its connection
  ended, and connections are accepted last: otherwise a later event of the same
  batch could reach a new connection that got the old number;
* an event is a hint: every call may say "not yet", and an event for a
  descriptor that is gone is dropped;
* one read a connection a turn; who may have more to do without a further event
  (edge-triggered or decrypted input, requests that wait) is in the ready queue
  and has its next turn after everybody else. So has who sends much, once a turn
  has taken enough of such connections: those that send little do not wait for it;
* what a connection needs of the poller follows from its state, and is asked for
  when it is more; it is taken back only when an event shows that it costs.

How it reads: ``run`` turns the wheel, ``_turn`` is one batch of events and
holds the fast path. What is done with one connection stands in ``channels``,
where ``_settle`` acts on its new state.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol, cast

from nbnet.acceptor import Acceptor, Listener, Socket
from nbnet.channels import READ_SIZE, Channel, Channels, SecureSocket
from nbnet.counters import Counters
from nbnet.handlers import Bound, Handler
from nbnet.limits import Limits
from nbnet.notation import Target
from nbnet.pollers import READ, DescriptorError, Poller
from nbnet.states import MOVABLE, READS, State
from nbnet.threads import Pool

log = logging.getLogger("nbnet")

LAST_READS: Final = 16
"""Reads at most of a connection when the server stops."""
LARGE_BUDGET: Final = 256 * 1024
"""Bytes taken in one turn of connections that send much, more or less; then it is
the turn of those that send little, however many the others are."""
MAX_EVENTS: Final = 2048
"""Events taken in one batch: epoll's own default would stop at 1,023, and the list of
a much larger one does not stay in the processor's cache until it is worked off."""
SAMPLED: Final = 64
"""One turn in so many measures how long the handler takes, on its first request."""
PUBLISH_EVERY: Final = 0.5
"""Seconds between what is counted and when it is published, at most."""

LONGEST_WAIT: Final = 60.0
"""Seconds after which the poller returns even if nothing is due."""


class WakeUp(Protocol):
    """Makes a waiting poller return; safe to set from other threads and signals."""

    def set(self) -> None: ...
    def clear(self) -> None: ...
    def fileno(self) -> int: ...


class Loop(Channels):
    """Serves the connections of listeners.

    Args:
        listeners: listening sockets, non-blocking; the loop closes them.
        handler: what answers a request, with the context if it takes one.
        poller: what waits for events; the loop does not close it.
        clock: monotonic seconds.
        wake_up: what makes the poller return; the loop does not close it.
        limits: the bounds to keep.
        edge: whether to ask the poller for edge-triggered events.
        secure: wraps an accepted socket in TLS; without, connections are plain.
        read, write: what reads from and writes to a descriptor of a plain
            connection, as ``os.read`` and ``os.write`` do, which cost less than
            a socket's methods; without, those are called.
        pool: threads for a handler that blocks; its ``on_done`` sets the wake-up.
        trusts: whether a peer is a proxy, which has to say for whom it speaks;
            without, none is.
        publish: called now and then with what has been counted.

    Attributes:
        counters: what has been counted so far, but for the requests answered on
            connections still open: see ``count``.
        arrivals: processes that are handing their connections over to this one.
    """

    def __init__(
        self,
        listeners: Sequence[Listener],
        handler: Handler,
        *,
        poller: Poller,
        clock: Callable[[], float],
        wake_up: WakeUp,
        limits: Limits,
        edge: bool = False,
        secure: Callable[[Any], SecureSocket] | None = None,
        read: Callable[[int, int], bytes] | None = None,
        write: Callable[[int, bytes], int] | None = None,
        pool: Pool | None = None,
        trusts: Callable[[Target | str], bool] | None = None,
        publish: Callable[[Counters], None] | None = None,
    ) -> None:
        counters = Counters()
        acceptor = Acceptor(
            listeners, poller=poller, clock=clock, limits=limits, counters=counters, trusts=trusts
        )
        super().__init__(
            acceptor,
            handler,
            poller=poller,
            counters=counters,
            limits=limits,
            edge=edge,
            secure=secure,
            pool=pool,
        )
        self.arrivals = 0
        self._clock = clock
        self._wake_up = wake_up
        self._publish = publish
        channels = self._channels
        if read is None or write is None or secure is not None:
            read = lambda fd, size: channels[fd].socket.recv(size)  # noqa: E731
            write = lambda fd, data: channels[fd].socket.send(data)  # noqa: E731
        self._recv, self._send = read, write
        self._callbacks: dict[int, Callable[[], object]] = {}
        self._each_turn: Callable[[], bool] | None = None
        self._hurry = False  # whether that has more to do without an event
        self._turns = 0
        self._unheard = 0  # turns for which the deadlines have waited
        self._mixed = False  # whether others had events too, in the last turn
        self._publish_at = math.inf
        self._stops_asked = 0
        self._leaving = False
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

    def leave(self) -> None:
        """End well, as at the first ``stop``, which may still come; from the loop's thread."""
        self._leaving = True

    def watch(self, fd: int, mask: int, callback: Callable[[], object]) -> None:
        """Call back after a batch with an event of the mask; from the loop's thread."""
        self._poller.register(fd, mask)
        self._callbacks[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Undo ``watch``."""
        del self._callbacks[fd]
        self._poller.unregister(fd)

    def run(self) -> None:
        """Serve until ``stop``, then until every connection has ended well.

        That takes at most ``limits.drain`` seconds; what is still open then is
        closed as it is.
        """
        poll, clock = self._poller.poll, self._clock
        try:
            self.watch(self._wake_up.fileno(), READ, self._wake_up.clear)
            self._acceptor.resume()
            self._now = clock()
            while (
                self._give_up == math.inf
                or self._channels
                or (self.arrivals and self._now < self._give_up)
            ):
                hurry = self._ready or self._hurry
                timeout = 0 if hurry else self._look_at - self._now
                events = poll(max(0, timeout), MAX_EVENTS)
                self._now = clock()
                self._turn(events)
                if self._each_turn is not None:
                    self._hurry = self._each_turn()
                    self._close_ended()
                if self._now >= self._look_at and self._has_heard_all(len(events)):
                    self._keep_deadlines()
                if self._stops_asked or self._leaving:
                    self._drain()
        finally:
            self._close_all()

    # The fast path ---------------------------------------------------------

    def _turn(self, events: list[tuple[int, int]]) -> None:
        """Deal with one batch of events."""
        channels, now = self._channels, self._now
        reading, readable = State.READING, READ  # locals are found sooner
        read, write = self._recv, self._send
        read_on = self._read_on
        received = sent_bytes = 0
        over, mixed, large = False, self._mixed, 0
        accept = False
        calls: list[Callable[[], object]] = []
        self._turns += 1
        self._shaken = self._taken = 0
        if self._ready:
            self._resume_ready()
            over = mixed and self._taken >= LARGE_BUDGET
        if self._pool is None and not self._turns % SAMPLED:
            self._sample(events)
        for fd, mask in events:
            try:
                channel = channels[fd]
            except KeyError:
                callback = self._callbacks.get(fd)
                if callback is None:
                    accept = True  # last: see the rules
                else:
                    calls.append(callback)
                continue
            if mask != readable or channel.state is not reading:
                self._handle(channel, mask)
                continue
            # Nearly every event ends up here: a request came, its reply goes.
            if over and channel.read_size == READ_SIZE:
                large += 1
                self._put_off(channel)
                continue
            try:
                data = read(fd, channel.read_size)
            except BlockingIOError:
                self._ask_for_tls(channel)
                continue
            except OSError as error:
                self._lose(channel, error)
                continue
            size = len(data)
            if not size:
                self._receive_eof(channel)
                continue
            received += size
            replies = channel.receive_one(data, now)
            if not replies:
                if replies is None:
                    replies = channel.receive_any(data, now)
                large += 1
                self._taken += size
                over = mixed and self._taken >= LARGE_BUDGET
                if channel.state is not reading:
                    channel.block(replies, now)
                    self._flush(channel)
                    continue
                if channel.frame_since is not None:
                    self._watch(channel)
            if size == channel.read_size:  # a shorter read has taken all there was
                channel.read_size = READ_SIZE
                if read_on:
                    self._ready[channel] = None
            if not replies:
                continue
            try:
                sent = write(fd, replies)
            except BlockingIOError:
                self._ask_for_tls(channel)
                sent = 0
            except OSError as error:
                self._lose(channel, error)
                continue
            sent_bytes += sent
            if sent != len(replies):
                channel.block(memoryview(replies)[sent:], now)
                self._settle(channel)
        self._mixed = large < len(events)
        counters = self.counters
        counters.received_bytes += received
        counters.sent_bytes += sent_bytes
        for callback in calls:
            callback()
        if self._pool is not None:
            self._collect(self._pool)
        if self._ended:
            self._close_ended()
        if accept:
            self._accept()
        if self._publish is not None and self._publish_at == math.inf:
            self._publish_at = now + PUBLISH_EVERY
            self._look_by(self._publish_at)

    # Whose turn it is besides ------------------------------------------------

    def _sample(self, events: list[tuple[int, int]]) -> None:
        """Have the first that can be read, and measure how long the handler takes."""
        clock, observe = self._clock, self.counters.observe_handler
        for fd, mask in events:
            channel = self._channels.get(fd)
            if channel is None or mask != READ or channel.state is not State.READING:
                continue
            handler = channel.handler

            def timed(payload: bytes, handler: Bound = handler) -> bytes:
                started = clock()
                try:
                    return handler(payload)
                finally:
                    observe(int((clock() - started) * 1e9))

            channel.handler = timed
            self._read(channel)
            channel.handler = handler
            return

    def _collect(self, pool: Pool) -> None:
        """Send what threads have done since the last turn."""
        counters = self.counters
        owners: dict[Channel, None] = {}
        for owner, job in pool.take_done():
            job.done = True
            counters.in_flight -= 1
            if not job.abandoned:
                counters.observe_handler(job.nanoseconds)
                owners[cast(Channel, owner)] = None
        for channel in owners:
            channel.block(channel.collect(self._now), self._now)
            self._flush(channel)

    def _resume_ready(self) -> None:
        """Give those in the ready queue one turn each, as far as the budget goes."""
        ready = self._ready
        for _ in range(len(ready)):  # who comes in again has the next turn
            if self._taken >= LARGE_BUDGET or not ready:
                return
            channel, _ = ready.popitem(last=False)
            if channel.state is State.BUSY:
                replies = channel.resume(self._now)
                self._taken += len(replies)
                channel.block(replies, self._now)
                self._flush(channel)
                if channel.state is State.BUSY:
                    self._ready[channel] = None
            elif channel.state is State.HANDSHAKING:
                self._shake(channel)
            elif channel.state in READS:
                if self._read(channel) and self._mixed and not channel.watched:
                    ready[channel] = None  # it is still others that the poller is for
                else:
                    self._ask(channel)

    def _put_off(self, channel: Channel) -> None:
        """Have a connection that sends much wait for its turn in the ready queue.

        The poller is not to tell of it again and again meanwhile: thousands that
        are told of and not served would take the time of those that are.
        """
        self._ready[channel] = None
        self._poller.unregister(channel.fd)
        channel.watched = 0

    def _accept(self) -> None:
        for plain, peer, proxied in self._acceptor.accept():
            socket = plain
            try:
                if self._secure is not None and not proxied:
                    socket = self._secure(plain)
                self._open(socket, peer, proxied=proxied)
            except (DescriptorError, OSError) as error:  # the kernel may be out of memory
                self._acceptor.reject(socket, peer, error)
        self._look_by(self._acceptor.again)

    # Moving to another process and in from one -----------------------------------

    def hold_accepting(self, held: bool) -> None:
        """Leave newcomers to the other process that has the listeners, or take them again."""
        self._acceptor.hold(held)
        self._look_by(self._acceptor.again)

    def expect(self, count: int) -> None:
        """Keep room for so many connections that are yet to be adopted."""
        self._acceptor.expect(count)
        self._look_by(self._acceptor.again)

    def each_turn(self, action: Callable[[], bool] | None) -> None:
        """Have something done after every turn; it says whether to go on without waiting."""
        self._each_turn = action
        self._hurry = action is not None

    def movable(self) -> Iterator[Channel]:
        """The connections that another process can take over now."""
        if self._secure is None:  # else what was agreed on is inside of OpenSSL
            for channel in self._channels.values():
                if channel.state in MOVABLE:
                    yield channel

    def will_be_movable(self) -> bool:
        """Whether more can be taken over later: threads still work for it, or it is yet to come."""
        return self._secure is None and (
            self.arrivals > 0
            or any(
                channel.state in (State.WORKING, State.DELIVERING)
                for channel in self._channels.values()
            )
        )

    def move_out(self, channel: Channel) -> None:
        """Let go of a connection that another process has taken over."""
        self.counters.handed_over += 1
        channel.move_out()
        self._settle(channel)

    def adopt(
        self,
        socket: Socket,
        peer: Target | str,
        *,
        requests: int,
        unread: bytes,
        unsent: bytes,
        introducing: bool = False,
    ) -> None:
        """Go on with a connection that another process has served.

        Args:
            socket: its socket, non-blocking.
            peer: who it is.
            requests: how many were answered there.
            unread, unsent: what ``Connection.pack`` gave there.
            introducing: whether a proxy has yet to say who it is.
        """
        self._acceptor.adopted(peer)
        try:
            channel = self._open(socket, peer, proxied=introducing)
        except (DescriptorError, OSError) as error:
            self._acceptor.reject(socket, peer, error)
            self._look_by(self._acceptor.again)
            return
        self.counters.adopted += 1
        self.counters.requests -= requests  # counted there, and again when it ends
        channel.requests = requests
        channel.unpack(unread, unsent, self._now)
        if self._give_up != math.inf:  # it has come too late
            channel.stop(self._now)
        self._flush(channel)

    # Time and the end ------------------------------------------------------------

    def _has_heard_all(self, events: int) -> bool:
        """Whether nobody seems late only because nothing of his has been read yet.

        After a stall (a process that was stopped, a handler that took its time) a wait
        ends with its time and gives nothing, whatever has come meanwhile, and more may
        wait than fits a batch: the poller is asked again before deadlines are kept.
        """
        most = len(self._channels) // MAX_EVENTS + 2
        waits = events >= MAX_EVENTS or self._ready
        if not self._unheard or (waits and self._unheard < most):
            self._unheard += 1
            return False
        self._unheard = 0
        return True

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
        if self._publish is not None and now >= self._publish_at:
            self._publish_at = math.inf
            self._publish(self.count())
        if now >= self._give_up:
            self._lose_all("still open when the server had to stop")
        self._close_ended()
        self._look_at = min(
            self._deadlines.next_due,
            self._acceptor.again,
            self._publish_at,
            self._give_up,
            now + LONGEST_WAIT,
        )

    def _drain(self) -> None:
        """Stop accepting and let every connection end, once; at the second call, at once."""
        if self._give_up == math.inf:
            self._acceptor.close()
            self._give_up = self._now + self._limits.drain
            self._look_by(self._give_up)
            every = self._channels
            for channel in [one for one in every.values() if one.state is State.INTRODUCING]:
                self._introduce(channel)
            for channel in list(every.values()):
                # What has come is in flight; what goes on coming is not.
                for _ in range(LAST_READS):
                    if channel.state is not State.READING or not self._read(channel):
                        break
                channel.stop(self._now)
                self._flush(channel)
            self._close_ended()
        if self._stops_asked > 1:
            self._give_up = self._look_at = self._now

    def _close_all(self) -> None:
        """Let go of everything, also after an error."""
        self._acceptor.close()
        self._lose_all("the server ended")
        self._close_ended()
        for fd in self._callbacks:
            self._poller.unregister(fd)
        self._callbacks.clear()
        if self._publish is not None:
            self._publish(self.count())

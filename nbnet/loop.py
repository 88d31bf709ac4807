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
holds the fast path, ``_settle`` acts on a connection's new state.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol, cast

from nbnet.acceptor import Acceptor, Listener, Socket
from nbnet.connection import Connection
from nbnet.counters import Counters
from nbnet.deadlines import Deadlines
from nbnet.handlers import Bound, Context, Handler, bind, takes_context
from nbnet.limits import Limits
from nbnet.notation import Target
from nbnet.pollers import EDGE, ERROR, READ, WRITE, DescriptorError, Poller
from nbnet.states import INTEREST, MOVABLE, READS, State
from nbnet.threads import Pool

log = logging.getLogger("nbnet")

READ_SIZE: Final = 64 * 1024
"""Bytes asked of the kernel in one read."""
FIRST_READ_SIZE: Final = 479
"""The same until a read is filled. The interpreter keeps blocks of up to 512
bytes, 33 of them its own, at hand; a larger buffer costs calls to malloc."""
LAST_READS: Final = 16
"""Reads at most of a connection when the server stops."""
LARGE_BUDGET: Final = 256 * 1024
"""Bytes taken in one turn of connections that send much, more or less; then it is
the turn of those that send little, however many the others are."""
MAX_EVENTS: Final = 4096
"""Events taken in one batch; epoll's own default would stop at 1,023."""

HANDSHAKES_PER_TURN: Final = 8
"""Steps of TLS handshakes in one turn: each may cost a millisecond, and there
are others to serve."""
SAMPLED: Final = 64
"""One turn in so many measures how long the handler takes, on its first request."""
PUBLISH_EVERY: Final = 0.5
"""Seconds between what is counted and when it is published, at most."""

LONGEST_WAIT: Final = 60.0
"""Seconds after which the poller returns even if nothing is due."""

SHUT_WR: Final = 1
"""``socket.SHUT_WR``, which is 1 on every POSIX system."""


class WakeUp(Protocol):
    """Makes a waiting poller return; safe to set from other threads and signals."""

    def set(self) -> None: ...
    def clear(self) -> None: ...
    def fileno(self) -> int: ...


class SecureSocket(Socket, Protocol):
    """What the loop needs of a socket that speaks TLS besides.

    ``recv`` and ``send`` raise ``BlockingIOError`` as a plain one's do. ``wants``
    is then the event that TLS waits for where that is not the natural one, and 0
    otherwise; so it is while the handshake waits.
    """

    wants: int

    def handshake(self) -> bool:
        """Go on with the handshake; whether it is done."""

    def peer_name(self) -> str | None:
        """The name in the peer's certificate."""


class Channel(Connection):
    """A connection with its socket, as the loop keeps it.

    ``settled`` is the state that the loop has acted on last, ``read_size`` what
    it asks for in a read, ``tick`` where its deadline is parked, ``watched`` the
    events that the poller reports (0: it is not registered), ``wants`` what TLS
    waits for in place of what the state does (0: nothing).
    """

    __slots__ = ("fd", "read_size", "settled", "socket", "tick", "wants", "watched")

    def __init__(
        self,
        socket: Socket,
        peer: Target | str,
        *,
        handler: Bound,
        limits: Limits,
        counters: Counters,
        now: float,
        secure: bool,
        pool: Pool | None,
    ) -> None:
        super().__init__(handler, limits, counters, peer, now, secure=secure, pool=pool)
        self.socket = socket
        self.fd = socket.fileno()
        self.read_size = FIRST_READ_SIZE
        self.settled = self.state
        self.tick: int | None = None
        self.watched = 0
        self.wants = 0


class Loop:
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
        publish: Callable[[Counters], None] | None = None,
    ) -> None:
        self.counters = Counters()
        self.arrivals = 0
        self._handler = handler
        self._takes_context = takes_context(handler)
        self._poller = poller
        self._clock = clock
        self._wake_up = wake_up
        self._limits = limits
        self._trigger = EDGE if edge else 0
        self._secure = secure
        self._pool = pool
        self._publish = publish
        # Whether there may be more to read than a further event would tell of.
        self._read_on = edge or secure is not None
        self._acceptor = Acceptor(
            listeners, poller=poller, clock=clock, limits=limits, counters=self.counters
        )
        self._channels: dict[int, Channel] = {}
        channels = self._channels
        if read is None or write is None or secure is not None:
            read = lambda fd, size: channels[fd].socket.recv(size)  # noqa: E731
            write = lambda fd, data: channels[fd].socket.send(data)  # noqa: E731
        self._recv, self._send = read, write
        self._ended: list[Channel] = []  # to be closed after the batch
        self._ready: OrderedDict[Channel, None] = OrderedDict()  # has work without an event
        self._callbacks: dict[int, Callable[[], object]] = {wake_up.fileno(): wake_up.clear}
        self._each_turn: Callable[[], bool] | None = None
        self._hurry = False  # whether that has more to do without an event
        self._deadlines: Deadlines[Channel] = Deadlines()
        self._now = 0.0  # read once a batch
        self._look_at = 0.0  # when deadlines are looked at; nothing is due before
        self._turns = 0
        self._shaken = 0  # steps of handshakes in this turn
        self._taken = 0  # bytes, in this turn, of those that send much
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
        self._poller.register(self._wake_up.fileno(), READ)
        try:
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
                if self._now >= self._look_at:
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
        if events:
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

    # Everything that is not common -------------------------------------------

    def _handle(self, channel: Channel, mask: int) -> None:
        """Deal with an event that the fast path does not cover."""
        state = channel.state
        if state is State.HANDSHAKING:
            self._shake(channel)
            return
        interest = INTEREST[state]
        if not interest:
            if channel.watched and state is not State.CLOSED:
                # Nothing can be done before the threads have, and this event
                # would come again and again; an error cannot even be masked.
                self._poller.unregister(channel.fd)
                channel.watched = 0
            return
        if mask & ERROR:
            # A failed or reset socket says why in the call that the state waits
            # for, after what can still be read.
            mask |= interest
        if channel.wants:
            channel.wants = 0
            mask = READ | WRITE  # whatever it was that TLS could not go on with
        if mask & interest & WRITE:
            self._flush(channel)
        if mask & interest & READ and channel.state is state and state in READS:
            self._read(channel)
        self._ask(channel)

    def _shake(self, channel: Channel) -> None:
        """Go on with a TLS handshake, or have it wait for its turn."""
        if self._shaken >= HANDSHAKES_PER_TURN:
            self._ready[channel] = None
            return
        self._shaken += 1
        socket = cast(SecureSocket, channel.socket)
        try:
            if not socket.handshake():
                channel.wants = socket.wants
                self._ask(channel)
                return
        except OSError as error:
            self.counters.handshake_failures += 1
            channel.wants = 0
            channel.disagree(error.strerror or str(error))
            self._settle(channel)
            return
        self.counters.tls_handshakes += 1
        channel.wants = 0
        channel.handler = self._bound(Context(channel.peer, socket.peer_name()))
        channel.agree(self._now)
        self._settle(channel)

    def _bound(self, context: Context) -> Bound:
        if self._takes_context:
            return bind(self._handler, context)
        return cast(Bound, self._handler)

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
            if channel.state in (State.WORKING, State.DELIVERING):
                channel.block(channel.collect(self._now), self._now)
                self._flush(channel)

    def _read(self, channel: Channel) -> bool:
        """Read once; say whether anything came."""
        try:
            data = channel.socket.recv(channel.read_size)
        except BlockingIOError:
            self._ask_for_tls(channel)
            return False
        except OSError as error:
            self._lose(channel, error)
            return False
        if not data:
            self._receive_eof(channel)
            return False
        size = len(data)
        self.counters.received_bytes += size
        self._taken += size
        if size == channel.read_size:
            channel.read_size = READ_SIZE
        elif size < FIRST_READ_SIZE:
            channel.read_size = FIRST_READ_SIZE  # it sends little again
        if channel.state is not State.LINGERING:
            channel.block(channel.receive(data, self._now), self._now)
            self._flush(channel)
        if self._read_on:
            self._ready[channel] = None  # until a read says that nothing is left
        return True

    def _receive_eof(self, channel: Channel) -> None:
        channel.receive_eof()
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
                more = self._read(channel)
                if more and not channel.watched:
                    ready[channel] = None
                else:
                    self._ask(channel)

    def _put_off(self, channel: Channel) -> None:
        """Have a connection that sends much wait for its turn in the ready queue.

        The poller is not to tell of it again and again meanwhile: thousands that
        are told of and not served would take the time of those that are.
        """
        self._ready[channel] = None
        if channel.watched:
            self._poller.unregister(channel.fd)
            channel.watched = 0

    def _flush(self, channel: Channel) -> None:
        """Send what waits; the kernel may take all, part or nothing."""
        try:
            sent = channel.socket.send(channel.unsent) if channel.unsent else 0
        except BlockingIOError:
            self._ask_for_tls(channel)
            sent = 0
        except OSError as error:
            self._lose(channel, error)
            return
        self.counters.sent_bytes += sent
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
            self._ask(channel)
            if self._read_on and state in READS and before not in READS:
                self._ready[channel] = None
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

    def _ask(self, channel: Channel) -> None:
        """Have the poller report what the connection waits for."""
        mask = channel.wants or INTEREST[channel.state]
        if mask in (0, channel.watched):
            return
        try:
            if channel.watched:
                self._poller.modify(channel.fd, mask | self._trigger)
            else:
                self._poller.register(channel.fd, mask | self._trigger)
        except OSError as error:  # the kernel may be out of memory
            self._lose(channel, error)
        else:
            channel.watched = mask

    def _ask_for_tls(self, channel: Channel) -> None:
        """The socket said "not yet"; under TLS that may be for want of another event."""
        if self._secure is not None:
            channel.wants = cast(SecureSocket, channel.socket).wants
            self._ask(channel)

    def _close_ended(self) -> None:
        # One by one off the list: should a signal interrupt this, it can go on.
        while self._ended:
            channel = self._ended.pop()
            if self._channels.pop(channel.fd, None) is None:
                continue
            self._ready.pop(channel, None)
            self._deadlines.forget(channel)
            if channel.watched:
                self._poller.unregister(channel.fd)
            channel.socket.close()
            self.counters.connections -= 1
            self.counters.requests += channel.requests
            self._acceptor.released(channel.peer)

    def _accept(self) -> None:
        for plain, peer in self._acceptor.accept():
            socket = plain
            try:
                if self._secure is not None:
                    socket = self._secure(plain)
                self._open(socket, peer)
            except (DescriptorError, OSError) as error:  # the kernel may be out of memory
                self._acceptor.reject(socket, peer, error)
        self._look_by(self._acceptor.again)

    def _open(self, socket: Socket, peer: Target | str) -> Channel:
        """Serve a socket from here on.

        Raises:
            DescriptorError: the poller cannot watch it.
            OSError: the kernel cannot.
        """
        channel = Channel(
            socket,
            peer,
            handler=self._bound(Context(peer)),
            limits=self._limits,
            counters=self.counters,
            now=self._now,
            secure=self._secure is not None,
            pool=self._pool,
        )
        channel.watched = INTEREST[channel.state]
        self._poller.register(channel.fd, channel.watched | self._trigger)
        self._channels[channel.fd] = channel
        self.counters.connections += 1
        self._watch(channel)
        return channel

    # Moving to another process and in from one -----------------------------------

    def hold_accepting(self, held: bool) -> None:
        """Leave newcomers to the other process that has the listeners, or take them again."""
        self._acceptor.hold(held)

    def expect(self, count: int) -> None:
        """Keep room for so many connections that are yet to be adopted."""
        self._acceptor.expect(count)

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
        self, socket: Socket, peer: Target | str, *, requests: int, unread: bytes, unsent: bytes
    ) -> None:
        """Go on with a connection that another process has served.

        Args:
            socket: its socket, non-blocking.
            peer: who it is.
            requests: how many were answered there.
            unread, unsent: what ``Connection.pack`` gave there.
        """
        self._acceptor.adopted(peer)
        try:
            channel = self._open(socket, peer)
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
        for fd in self._callbacks:
            self._poller.unregister(fd)
        self._callbacks.clear()
        if self._publish is not None:
            self._publish(self.count())

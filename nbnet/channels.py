"""What the event loop does with one connection, whenever it is that one's turn.

``Channels`` keeps the open connections with their sockets: it reads, sends,
acts on the state that a connection has come to, tells the poller what to report
of it, parks its deadline, and closes it. Whose turn it is, the loop decides, for
which this is the lower half; the rules stand there.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

from nbnet.acceptor import Acceptor, Socket
from nbnet.connection import Connection
from nbnet.counters import Counters
from nbnet.deadlines import Deadlines
from nbnet.framing import HEADER_SIZE, MAX_PAYLOAD
from nbnet.handlers import Bound, Context, Handler, bind, takes_context
from nbnet.limits import Limits
from nbnet.notation import Target
from nbnet.pollers import EDGE, ERROR, READ, WRITE, Poller
from nbnet.proxy import Header
from nbnet.states import INTEREST, READS, State
from nbnet.threads import Pool

log = logging.getLogger("nbnet")

READ_SIZE: Final = HEADER_SIZE + MAX_PAYLOAD
"""Bytes asked of the kernel in one read: the longest frame there is takes one, not two
whose parts have to be put together."""
FIRST_READ_SIZE: Final = 479
"""The same until a read is filled. The interpreter keeps blocks of up to 512
bytes, 33 of them its own, at hand; a larger buffer costs calls to malloc."""
HANDSHAKES_PER_TURN: Final = 8
"""Steps of TLS handshakes in one turn: each may cost a millisecond, and there
are others to serve."""

SHUT_WR: Final = 1
"""``socket.SHUT_WR``, which is 1 on every POSIX system."""


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
    waits for in place of what the state does (0: nothing), ``probe`` whether a
    proxy speaks on it for itself, or has not spoken yet: that it ends tells nothing.
    """

    __slots__ = ("fd", "probe", "read_size", "settled", "socket", "tick", "wants", "watched")

    def __init__(
        self,
        socket: Socket,
        peer: Target | str,
        *,
        handler: Bound,
        limits: Limits,
        counters: Counters,
        now: float,
        proxied: bool,
        secure: bool,
        pool: Pool | None,
    ) -> None:
        super().__init__(
            handler, limits, counters, peer, now, proxied=proxied, secure=secure, pool=pool
        )
        self.probe = proxied
        self.socket = socket
        self.fd = socket.fileno()
        self.read_size = FIRST_READ_SIZE
        self.settled = self.state
        self.tick: int | None = None
        self.watched = 0
        self.wants = 0


class Channels:
    """The open connections, and what can be done with each.

    Args:
        acceptor: where they come from; it is told of those who go.
        handler: what answers a request, with the context if it takes one.
        poller: what waits for events.
        counters: what is counted for all of them together.
        limits: the bounds to keep.
        edge: whether to ask the poller for edge-triggered events.
        secure: wraps an accepted socket in TLS; without, connections are plain.
        pool: threads for a handler that blocks.
    """

    def __init__(
        self,
        acceptor: Acceptor,
        handler: Handler,
        *,
        poller: Poller,
        counters: Counters,
        limits: Limits,
        edge: bool,
        secure: Callable[[Any], SecureSocket] | None,
        pool: Pool | None,
    ) -> None:
        self.counters = counters
        self._handler = handler
        self._takes_context = takes_context(handler)
        self._poller = poller
        self._limits = limits
        self._trigger = EDGE if edge else 0
        self._secure = secure
        self._pool = pool
        # Whether there may be more to read than a further event would tell of.
        self._read_on = edge or secure is not None
        self._acceptor = acceptor
        self._channels: dict[int, Channel] = {}
        self._ended: list[Channel] = []  # to be closed after the batch
        self._ready: OrderedDict[Channel, None] = OrderedDict()  # has work without an event
        self._deadlines: Deadlines[Channel] = Deadlines()
        self._now = 0.0  # read once a batch
        self._look_at = 0.0  # when deadlines are looked at; nothing is due before
        self._shaken = 0  # steps of handshakes in this turn
        self._taken = 0  # bytes, in this turn, of those that send much

    def _open(self, socket: Socket, peer: Target | str, *, proxied: bool) -> Channel:
        """Serve a socket from here on; ``proxied``, once a proxy has said for whom.

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
            proxied=proxied,
            secure=self._secure is not None,
            pool=self._pool,
        )
        channel.watched = INTEREST[channel.state]
        self._poller.register(channel.fd, channel.watched | self._trigger)
        self._channels[channel.fd] = channel
        self.counters.connections += 1
        self._watch(channel)
        return channel

    def _bound(self, context: Context) -> Bound:
        if self._takes_context:
            return bind(self._handler, context)
        return cast(Bound, self._handler)

    # What an event or a turn makes of one ----------------------------------------

    def _handle(self, channel: Channel, mask: int) -> None:
        """Deal with an event that the fast path does not cover."""
        state = channel.state
        if state is State.HANDSHAKING:
            self._shake(channel)
            return
        if state is State.INTRODUCING:
            self._introduce(channel)
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

    def _introduce(self, channel: Channel) -> None:
        """Read who the client is, and not a byte more: what follows may be TLS."""
        header: Header | None = None
        while header is None and channel.state is State.INTRODUCING:
            try:
                data = channel.socket.recv(channel.introduction_needs)
            except BlockingIOError:
                return
            except OSError as error:
                self._lose(channel, error)
                return
            if data:
                header = channel.introduce(data)
            else:
                channel.receive_eof()
        if header is not None:
            channel.probe = header.local
            if header.peer is not None:
                if not self._acceptor.introduced(channel.peer, header.peer):
                    channel.lose(f"for {header.peer}, whose address has too many connections")
                    self._settle(channel)
                    return
                channel.peer = header.peer
                channel.handler = self._bound(Context(header.peer))
            if self._secure is not None and not self._put_tls_on(channel):
                return
            channel.introduced(self._now, secure=self._secure is not None)
        self._settle(channel)

    def _put_tls_on(self, channel: Channel) -> bool:
        """Have a socket speak TLS from here on; whether that went well."""
        assert self._secure is not None
        # Not while the poller has it: what fails here may close it at once.
        self._poller.unregister(channel.fd)
        channel.watched = 0
        try:
            channel.socket = self._secure(channel.socket)
        except OSError as error:
            self._lose(channel, error)
            self._close_ended()
            return False
        return True

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
            self.counters.handshake_failures += not channel.probe
            channel.wants = 0
            channel.disagree(error.strerror or str(error))
            self._settle(channel)
            return
        self.counters.tls_handshakes += 1
        channel.wants = 0
        channel.handler = self._bound(Context(channel.peer, socket.peer_name()))
        channel.agree(self._now)
        self._settle(channel)

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
            self._reply(channel, channel.receive(data, self._now))
        if self._read_on:
            self._ready[channel] = None  # until a read says that nothing is left
        return True

    def _receive_eof(self, channel: Channel) -> None:
        channel.receive_eof()
        self._flush(channel)

    def _reply(self, channel: Channel, replies: bytes) -> None:
        """Send replies just made, behind those that wait."""
        if channel.state is State.READING and replies:  # so none waits
            try:
                sent = channel.socket.send(replies)
            except BlockingIOError:
                self._ask_for_tls(channel)
                sent = 0
            except OSError as error:
                self._lose(channel, error)
                return
            self.counters.sent_bytes += sent
            channel.block(memoryview(replies)[sent:], self._now)
            self._settle(channel)
            return
        channel.block(replies, self._now)
        self._flush(channel)

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

    # What follows --------------------------------------------------------------

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

    # The end -------------------------------------------------------------------

    def _lose(self, channel: Channel, error: OSError) -> None:
        if channel.state is not State.CLOSED:
            self.counters.lost += not channel.probe
            channel.lose(error.strerror or str(error))
            self._settle(channel)

    def _lose_all(self, reason: str) -> None:
        for channel in self._channels.values():
            if channel.state is not State.CLOSED:
                channel.lose(reason)
                self._settle(channel)

    def _close_ended(self) -> None:
        # One by one off the list: should a signal interrupt this, it can go on.
        while self._ended:
            channel = self._ended.pop()
            del self._channels[channel.fd]
            self._ready.pop(channel, None)
            self._deadlines.forget(channel)
            if channel.watched:
                self._poller.unregister(channel.fd)
            channel.socket.close()
            self.counters.connections -= 1
            self.counters.requests += channel.requests
            self._acceptor.released(channel.peer)
        self._look_by(self._acceptor.again)

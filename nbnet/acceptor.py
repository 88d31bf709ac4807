"""Taking connections from listeners, also when there are too many of them.

The rules:

* listeners that cannot be served are not watched: they stay readable, and the
  loop would spin;
* what failed while it was queued is passed over;
* a connection that may not stay is closed at once, or not accepted at all.
"""

from __future__ import annotations

import errno
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol

from nbnet.counters import Counters
from nbnet.limits import Limits
from nbnet.notation import Target
from nbnet.pollers import READ, Poller

log = logging.getLogger("nbnet")

ACCEPTS_PER_TURN: Final = 256
"""Connections accepted in one turn, so that a flood cannot hold up the others."""
PAUSE: Final = 0.1
"""Seconds without accepting after the kernel ran out of descriptors or memory."""

# What accept(2) may answer, by what follows: with the first kind the listener
# stays readable, so going on at once would spin; the second kind speaks of one
# connection that failed while it was queued, and the next may be fine.
# epoll_ctl(2) adds ENOSPC, when the user watches as many as the system allows.
_OUT_OF_RESOURCES: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC}
)
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


UNIX_PEER: Final = "unix socket"
"""Who comes through a unix socket: such peers have no address."""


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


class Acceptor:
    """Accepts the connections of listeners within limits.

    Args:
        listeners: listening sockets, non-blocking; closed by ``close``.
        poller: what watches them.
        clock: monotonic seconds.
        limits: the bounds to keep.
        counters: what is counted; ``connections`` is read, not written.
        trusts: whether a peer is a proxy that speaks for others; without, none is.

    Attributes:
        again: when to call ``resume`` at the latest; infinite for never.
    """

    def __init__(
        self,
        listeners: Sequence[Listener],
        *,
        poller: Poller,
        clock: Callable[[], float],
        limits: Limits,
        counters: Counters,
        trusts: Callable[[Target | str], bool] | None = None,
    ) -> None:
        self.again = math.inf
        self._listeners = listeners
        self._poller = poller
        self._clock = clock
        self._counters = counters
        self._limits = limits
        self._trusts = trusts
        self._from: Counter[str] = Counter()  # connections open by address
        self._watched: list[Listener] = []  # all of them, or none
        self._failing = False  # said in the log once, until it works again
        self._held = False
        self._expected = 0  # connections that are to be adopted
        self._closed = False

    def resume(self) -> None:
        """Watch the listeners, again or for the first time; if the kernel cannot, a moment later.

        Raises:
            OSError: a listener is of no use.
        """
        self.again = math.inf
        if self._watched or self._held or self._closed:
            return
        for listener in self._listeners:
            try:
                self._poller.register(listener.fileno(), READ)
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    raise
                self._run_out(error.strerror)
                return
            self._watched.append(listener)

    def hold(self, held: bool) -> None:
        """Leave newcomers to another process that has the listeners, or take them again."""
        self._held = held
        if held:
            self._pause(math.inf)
        else:
            self.resume()

    def accept(self) -> Iterator[tuple[Socket, Target | str, bool]]:
        """The connections that wait and may stay, non-blocking, who they are, and whether a proxy.

        Raises:
            OSError: the listener is of no more use.
        """
        for listener in self._listeners:
            yield from self._accept_from(listener)

    def _accept_from(self, listener: Listener) -> Iterator[tuple[Socket, Target | str, bool]]:
        for _ in range(ACCEPTS_PER_TURN):
            if not self._watched:
                return  # an event from before they were left alone
            taken = self._counters.connections + self._expected
            full = 0 < self._limits.max_connections <= taken
            if full and not self._limits.refuse:
                self._pause(math.inf)  # until one ends
                return
            try:
                socket, address = listener.accept()
            except BlockingIOError:
                self._failing = False  # got to the end of the queue
                return
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    self._run_out(error.strerror)
                    return
                if error.errno in _ONE_FAILED:
                    log.debug("a connection failed before it was accepted: %s", error.strerror)
                    continue
                raise
            self._counters.accepted += 1
            peer = _peer(address)
            proxied = self._trusts is not None and self._trusts(peer)
            if full:
                self._counters.refused_full += 1
                socket.close()
            elif not self._admit(peer, whatever=proxied):
                self._counters.refused_per_ip += 1
                socket.close()
            else:
                socket.setblocking(False)
                yield socket, peer, proxied

    def introduced(self, proxy: Target | str, client: Target | str) -> bool:
        """A connection that counted for a proxy is a client's; whether it may stay.

        If not, it goes on counting for the proxy until it is released.
        """
        if not self._admit(client):
            self._counters.refused_per_ip += 1
            return False
        self._forget(proxy)
        return True

    def released(self, peer: Target | str) -> None:
        """A connection that was accepted from this peer has ended."""
        self._forget(peer)
        if not self._watched and self.again == math.inf:
            self.resume()

    def expect(self, count: int) -> None:
        """Leave room for so many connections that another process has accepted."""
        self._expected = count
        if not self._watched and self.again == math.inf:
            self.resume()

    def adopted(self, peer: Target | str) -> None:
        """A connection that another process has accepted is here now, whatever the caps."""
        self._expected = max(0, self._expected - 1)
        self._admit(peer, whatever=True)

    def reject(self, socket: Socket, peer: Target | str, error: Exception) -> None:
        """Close a connection that was accepted but cannot be watched."""
        self._counters.refused_full += 1
        socket.close()
        self.released(peer)
        self._run_out(str(error))

    def close(self) -> None:
        """Accept no more; may be called again."""
        if not self._closed:
            self._pause(math.inf)
            self._closed = True
            for listener in self._listeners:
                listener.close()

    def _admit(self, peer: Target | str, *, whatever: bool = False) -> bool:
        """Count a newcomer for its address, unless that has too many and that matters."""
        if not self._limits.max_per_ip:
            return True
        host = _host(peer)
        if self._from[host] >= self._limits.max_per_ip and not whatever:
            return False
        self._from[host] += 1
        return True

    def _forget(self, peer: Target | str) -> None:
        """Count one less for an address."""
        if self._limits.max_per_ip:
            host = _host(peer)
            self._from[host] -= 1
            if not self._from[host]:
                del self._from[host]

    def _run_out(self, reason: str | None) -> None:
        """Stop asking for connections that cannot be had, for a moment."""
        self._counters.accept_failures += 1
        if not self._failing:
            self._failing = True
            log.error(
                "cannot accept with %d connections open: %s; trying again every %g s",
                self._counters.connections,
                reason,
                PAUSE,
            )
        self._pause(self._clock() + PAUSE)

    def _pause(self, again: float) -> None:
        self.again = again
        while self._watched:
            self._poller.unregister(self._watched.pop().fileno())


def _peer(address: Any) -> Target | str:
    """Who an address is, as ``accept`` gives it."""
    if not isinstance(address, tuple):
        return UNIX_PEER
    # An IPv4 peer of a socket for both is to be the same one that it is elsewhere.
    return Target(address[0].removeprefix("::ffff:"), address[1])


def _host(peer: Target | str) -> str:
    return peer.host if isinstance(peer, Target) else peer

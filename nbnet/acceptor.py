"""Taking connections from a listener, also when there are too many of them.

The rules:

* a listener that cannot be served is not watched: it stays readable, and the
  loop would spin;
* what failed while it was queued is passed over;
* a connection that may not stay is closed at once, or not accepted at all.
"""

from __future__ import annotations

import errno
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator
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


class Acceptor:
    """Accepts the connections of one listener within limits.

    Args:
        listener: a listening socket, non-blocking; closed by ``close``.
        poller: what watches it.
        clock: monotonic seconds.
        limits: the bounds to keep.
        counters: what is counted; ``connections`` is read, not written.

    Attributes:
        again: when to call ``resume`` at the latest; infinite for never.
    """

    def __init__(
        self,
        listener: Listener,
        *,
        poller: Poller,
        clock: Callable[[], float],
        limits: Limits,
        counters: Counters,
    ) -> None:
        self.again = math.inf
        self._listener = listener
        self._poller = poller
        self._clock = clock
        self._counters = counters
        self._limits = limits
        self._from: Counter[str] = Counter()  # connections open by address
        self._watched = False
        self._failing = False  # said in the log once, until it works again
        self._closed = False

    def resume(self) -> None:
        """Watch the listener, again or for the first time."""
        self.again = math.inf
        if not self._watched and not self._closed:
            self._watched = True
            self._poller.register(self._listener.fileno(), READ)

    def accept(self) -> Iterator[tuple[Socket, Target | str]]:
        """The connections that wait and may stay, non-blocking, and who they are.

        Raises:
            OSError: the listener is of no more use.
        """
        if not self._watched:
            return  # an event from before it was left alone
        for _ in range(ACCEPTS_PER_TURN):
            full = 0 < self._limits.max_connections <= self._counters.connections
            if full and not self._limits.refuse:
                self._pause(math.inf)  # until one ends
                return
            try:
                socket, address = self._listener.accept()
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
            peer = Target(*address[:2]) if isinstance(address, tuple) else "unix socket"
            if full:
                self._counters.refused_full += 1
                socket.close()
            elif not self._admit(peer):
                self._counters.refused_per_ip += 1
                socket.close()
            else:
                socket.setblocking(False)
                yield socket, peer

    def released(self, peer: Target | str) -> None:
        """A connection that was accepted from this peer has ended."""
        if self._limits.max_per_ip:
            host = _host(peer)
            self._from[host] -= 1
            if not self._from[host]:
                del self._from[host]
        if not self._watched and self.again == math.inf:
            self.resume()

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
            self._listener.close()

    def _admit(self, peer: Target | str) -> bool:
        """Count a newcomer for its address, unless that has too many."""
        if not self._limits.max_per_ip:
            return True
        host = _host(peer)
        if self._from[host] >= self._limits.max_per_ip:
            return False
        self._from[host] += 1
        return True

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
        if self._watched:
            self._watched = False
            self._poller.unregister(self._listener.fileno())


def _host(peer: Target | str) -> str:
    return peer.host if isinstance(peer, Target) else peer

"""Connections of the blocking front: how they are made, and how they are used.

A connection is a ``Stream``: five calls, so that a test or an application can
put something else in their place (``Client(connect=...)``).

A host name may stand for several addresses. They are tried as RFC 8305 ("happy
eyeballs") wants it: the families in turn, the next address a quarter of a second
after the one before or at once when that has failed; the first that answers wins.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import selectors
import socket
import struct
import sys
import time
from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Final, Protocol

from nbclient.settings import Settings
from nbnet.machine import SocketAddress, look_up
from nbnet.notation import Address

if TYPE_CHECKING:
    import ssl

READ_SIZE: Final = 64 * 1024
"""Bytes asked of the kernel in one read."""
NEXT_AFTER: Final = 0.25
"""Seconds before the next address is tried, as RFC 8305 recommends."""


class Stream(Protocol):
    """What the blocking front needs of a connection. Timeouts in seconds, None for no limit.

    Raises:
        TimeoutError: of ``send`` and ``receive``, when the time is over; without
            an ``errno``, unlike the kernel's own.
        OSError: the connection is broken.
    """

    def send(self, data: bytes | memoryview, timeout: float | None, /) -> int:
        """Send some of it, at least a byte; say how many."""

    def receive(self, timeout: float | None, /) -> bytes:
        """What comes next; ``b""`` is the end."""

    def readable(self) -> bool:
        """Whether there is something to receive, be it the end. Does not wait."""

    def abort(self) -> None:
        """End it: a call that blocks in another thread returns. For any thread."""

    def close(self) -> None:
        """Let go of it. May be called again."""


def open_stream(address: Address, timeout: float | None, settings: Settings) -> Stream:
    """Connect to a server.

    Raises:
        TimeoutError: the time was over; without an ``errno``, unlike the kernel's.
        OSError: no connection could be made, or TLS not agreed on. An
            ``ExceptionGroup`` of these is its cause where several addresses failed.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    if address.tls:
        settings.check_tls_name(address)
    connected = _connect(address, deadline)
    if not address.tls:
        return PlainStream(connected) if _KERNEL_TIMEOUTS else TimedStream(connected)
    assert settings.context is not None
    try:
        connected.settimeout(_left(deadline))
        secure = settings.context.wrap_socket(connected, server_hostname=settings.tls_name(address))
    except BaseException:
        connected.close()
        raise
    return SecureStream(secure)


class TimedStream:
    """A socket with the timeouts of the interpreter: a ``poll`` before each call."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    def send(self, data: bytes | memoryview, timeout: float | None, /) -> int:
        """As of ``Stream``."""
        self._socket.settimeout(timeout)
        return self._socket.send(data)

    def receive(self, timeout: float | None, /) -> bytes:
        """As of ``Stream``."""
        self._socket.settimeout(timeout)
        return self._socket.recv(READ_SIZE)

    def readable(self) -> bool:
        """As of ``Stream``."""
        if not hasattr(select, "poll"):
            return bool(select.select([self._socket], [], [], 0)[0])
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        return bool(poller.poll(0))

    def abort(self) -> None:
        """As of ``Stream``."""
        with contextlib.suppress(OSError):  # not connected any more
            # Of the base class: ssl's own lets go of what another thread uses.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """As of ``Stream``."""
        self._socket.close()


class PlainStream(TimedStream):
    """A socket with timeouts that the kernel keeps: one system call where others make two.

    The kernel is told of a timeout only if it is not nearly the one that it has:
    so one may come up to 2 % late. Its timers get coarser the longer they run, by
    up to an eighth more. And a signal that Python handles meanwhile, which only
    the main thread does, begins the wait anew.
    """

    def __init__(self, connected: socket.socket) -> None:
        super().__init__(connected)
        connected.settimeout(None)
        self._recv, self._send = connected.recv, connected.send
        # The timeouts that the kernel may go on with: from here to there.
        self._to_send = self._to_receive = (math.inf, math.inf)
        poller = select.poll()
        poller.register(connected, select.POLLIN)
        self._poll = poller.poll

    def send(self, data: bytes | memoryview, timeout: float | None, /) -> int:
        """As of ``Stream``."""
        low, high = self._to_send
        if not low <= (math.inf if timeout is None else timeout) <= high:
            self._to_send = self._arm(socket.SO_SNDTIMEO, timeout)
        try:
            return self._send(data)
        except BlockingIOError:
            raise TimeoutError from None

    def receive(self, timeout: float | None, /) -> bytes:
        """As of ``Stream``."""
        low, high = self._to_receive
        if not low <= (math.inf if timeout is None else timeout) <= high:
            self._to_receive = self._arm(socket.SO_RCVTIMEO, timeout)
        try:
            return self._recv(READ_SIZE)
        except BlockingIOError:
            raise TimeoutError from None

    def readable(self) -> bool:
        """As of ``Stream``."""
        return bool(self._poll(0))

    def _arm(self, option: int, timeout: float | None) -> tuple[float, float]:
        seconds = 1.01 * max(timeout or 0.0, 1e-6)
        whole = int(seconds) if timeout is not None else 0  # 0 and 0 are no limit
        part = int((seconds - whole) * 1e6) + 1 if timeout is not None else 0
        self._socket.setsockopt(
            socket.SOL_SOCKET, option, struct.pack("@ll", whole, min(part, 999_999))
        )
        return (math.inf, math.inf) if timeout is None else (seconds / 1.02, seconds)


class SecureStream(TimedStream):
    """A socket that speaks TLS."""

    _socket: ssl.SSLSocket
    _held = b""  # what was read in order to see whether there is anything

    def receive(self, timeout: float | None, /) -> bytes:
        """As of ``Stream``."""
        held, self._held = self._held, b""
        return held or super().receive(timeout)

    def readable(self) -> bool:
        """As of ``Stream``. What TLS sends of its own accord does not count."""
        if self._held or self._socket.pending():
            return True
        if not super().readable():
            return False
        import ssl

        self._socket.settimeout(0)
        try:
            self._held = self._socket.recv(READ_SIZE)
        except ssl.SSLWantReadError:
            return False
        except OSError:
            pass
        return True


# Only there is the layout of the option's value known, and does poll tell of the end.
_KERNEL_TIMEOUTS: Final = sys.platform == "linux"


def _left(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _connect(address: Address, deadline: float | None) -> socket.socket:
    if address.path:
        return _connect_one(socket.AF_UNIX, address.path, deadline)
    found = look_up(address.target)
    if len(found) == 1:
        return _connect_one(*found[0], deadline)
    return _race(_interleave(found), deadline)


def _connect_one(
    family: int, address: str | tuple[object, ...], deadline: float | None
) -> socket.socket:
    connecting = _make_socket(family)
    try:
        connecting.settimeout(_left(deadline))
        connecting.connect(address)
        _check_peer(connecting)
    except BaseException:
        connecting.close()
        raise
    return connecting


def _race(addresses: Sequence[SocketAddress], deadline: float | None) -> socket.socket:
    """Try several addresses, as the module says; close all but the winner."""
    errors: list[OSError] = []
    left = list(reversed(addresses))
    winner: socket.socket | None = None
    with selectors.DefaultSelector() as selector:
        try:
            next_at = time.monotonic()
            while left or selector.get_map():
                if left and (time.monotonic() >= next_at or not selector.get_map()):
                    started = _start(left.pop(), selector, errors)
                    next_at = time.monotonic() + NEXT_AFTER if started else 0.0
                    if not started:
                        continue
                waits = [_left(deadline), max(0.0, next_at - time.monotonic()) if left else None]
                ready = selector.select(min((w for w in waits if w is not None), default=None))
                for key, _ in ready:
                    connecting = key.fileobj
                    assert isinstance(connecting, socket.socket)
                    try:
                        _finish(connecting)
                    except OSError as error:
                        errors.append(error)
                        selector.unregister(connecting)
                        connecting.close()
                        next_at = 0.0  # the next one at once
                    else:
                        winner = connecting
                        return winner
        finally:
            for key in list(selector.get_map().values()):
                if key.fileobj is not winner:
                    assert isinstance(key.fileobj, socket.socket)
                    key.fileobj.close()
    raise errors[0] from ExceptionGroup("no address could be reached", errors)


def _start(address: SocketAddress, selector: selectors.BaseSelector, errors: list[OSError]) -> bool:
    try:
        connecting = _make_socket(address.family)
    except OSError as error:  # a family that this machine does not have
        errors.append(error)
        return False
    connecting.setblocking(False)
    try:
        connecting.connect(address.sockaddr)
    except BlockingIOError:
        pass
    except OSError as error:
        errors.append(error)
        connecting.close()
        return False
    selector.register(connecting, selectors.EVENT_WRITE)
    return True


def _finish(connecting: socket.socket) -> None:
    if number := connecting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(number, os.strerror(number))
    _check_peer(connecting)


def _make_socket(family: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    if family != socket.AF_UNIX:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def _check_peer(connected: socket.socket) -> None:
    # TCP lets a socket connect to itself when the port that it was given is the
    # one it asks for: nobody listens there.
    if connected.family != socket.AF_UNIX and connected.getsockname() == connected.getpeername():
        raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))


def _interleave(addresses: Sequence[SocketAddress]) -> list[SocketAddress]:
    """The same with families in turn, that of the first one first."""
    first = [address for address in addresses if address.family == addresses[0].family]
    others = [address for address in addresses if address.family != addresses[0].family]
    pairs = chain.from_iterable(zip_longest(first, others))
    return [address for address in pairs if address is not None]

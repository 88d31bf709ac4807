"""Connections to the server, on the real kernel: TCP, unix sockets, TLS.

``KernelDialer`` is what the engine makes its connections with. Sockets never
block. With TLS the handshake is a part of making the connection.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from loadgen.plan import TlsPlan
from nbnet.machine import SocketAddress
from nbnet.pollers import WRITE

if TYPE_CHECKING:
    import ssl

# From the kernel's headers (asm-generic/socket.h, linux/in.h); Python has no names for them.
_SO_TIMESTAMPNS: Final = 35
_IP_BIND_ADDRESS_NO_PORT: Final = 24
_TIMESPEC: Final = struct.Struct("@qq")
_ANCILLARY: Final = socket.CMSG_SPACE(_TIMESPEC.size)
_TLS_READ: Final = 64 * 1024
"""More than a TLS record holds: a read that came back short has left nothing
behind in OpenSSL, of which no poller would tell."""


class KernelDialer:
    """Makes connections to one address.

    Args:
        address: of the server.
        sources: addresses to connect from, in turn; none leaves it to the kernel.
        tls: how to encrypt; None does not.

    Raises:
        ValueError: a file of ``tls`` cannot be used; the message says why.
    """

    def __init__(
        self,
        address: SocketAddress,
        sources: Sequence[str] = (),
        tls: TlsPlan | None = None,
    ) -> None:
        self._address = address
        self._sources = itertools.cycle(sources) if sources else None
        self._tls = tls
        self._context: ssl.SSLContext | None = None
        if tls is not None:
            from nbnet.tls import client_context  # takes its time, and most do without

            self._context = client_context(tls.authority, tls.certificate, tls.key)
        self.read_size = _TLS_READ if tls is not None else 0

    def dial(self) -> socket.socket:
        """Begin a connection without waiting for it.

        Raises:
            BlockingIOError: the backlog of a unix socket is full.
            OSError: the kernel refused at once.
        """
        family = self._address.family
        connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            if family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._sources is not None:
                # The port is chosen when it is known whereto: each pair of
                # addresses has all of them, not all pairs together.
                connection.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
                connection.bind((next(self._sources), 0))
            connection.connect(self._address.sockaddr)
        except BlockingIOError as error:
            if error.errno != errno.EINPROGRESS:
                connection.close()
                raise
        except BaseException:
            connection.close()
            raise
        return connection

    def advance(self, connection: socket.socket) -> tuple[socket.socket, int]:
        """Go on with one that was begun.

        Returns:
            The socket to use from now on, of the same descriptor, and the event to
            wait for; 0 if the connection is made.

        Raises:
            OSError: it failed.
        """
        if self._context is None:
            _check_connected(connection)
            return connection, 0
        from nbnet.tls import TlsSocket, wrap_client

        assert self._tls is not None
        if not isinstance(connection, TlsSocket):
            _check_connected(connection)
            # Given back before the handshake can fail: who is to close it must have it.
            return wrap_client(self._context, connection, self._tls.server_name), WRITE
        return connection, 0 if connection.handshake() else connection.wants

    def stamped(self, connection: socket.socket) -> Callable[[int], tuple[bytes, int]] | None:
        """A way to read that also tells how long the last bytes have waited in the kernel.

        Nanoseconds; -1 if the kernel does not say. None with TLS and unix sockets.
        """
        if self._context is not None or connection.family == socket.AF_UNIX:
            return None
        connection.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        receive, now = connection.recvmsg, time.time_ns

        def stamped_recv(size: int) -> tuple[bytes, int]:
            data, ancillary, _, _ = receive(size, _ANCILLARY)
            read_at = now()
            if not ancillary:
                return data, -1
            # Nothing else was asked for.
            seconds, nanoseconds = _TIMESPEC.unpack_from(ancillary[0][2])
            return data, read_at - (seconds * 1_000_000_000 + nanoseconds)

        return stamped_recv


def _check_connected(connection: socket.socket) -> None:
    """Raise ``OSError`` if a connection that was begun came to nothing."""
    error = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, os.strerror(error))
    if connection.family != socket.AF_UNIX and (
        connection.getsockname() == connection.getpeername()
    ):
        # TCP lets a socket connect to itself when the port that it was given is
        # the one it asks for: nobody listens there.
        raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))

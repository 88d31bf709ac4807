"""How the conformance suite reaches a server: TCP, unix sockets, TLS that can be half-closed."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

import trio

from nbnet.machine import SocketAddress, look_up
from nbnet.notation import Address, format_duration

_READ_SIZE: Final = 65536
_TRY_AGAIN: Final = 0.01
"""Seconds until a unix socket is tried again that had no room."""
_RESETS: Final = struct.pack("ii", 1, 0)
"""A linger time of 0: closing sends a reset."""
_NARROW: Final = 32 * 1024
"""Bytes that the kernel is to hold for a client that reads late: so the server has to."""


class CannotConnect(Exception):  # noqa: N818 (as Fault)
    """The server takes no connection, not even a first one; one line that says why."""


class Fault(Exception):  # noqa: N818 (of the server, not of this program)
    """The server did otherwise than the protocol says: what, in a few words."""


class Tls(NamedTuple):
    """How to speak TLS: as whom, and with the name that the server's certificate has."""

    context: ssl.SSLContext
    server_name: str


class Wire:
    """One connection of a client, plain. All errors are ``OSError``.

    The kernel tells of a reset once, to whoever asks first. So there is no checkpoint
    between its saying so and the error that is raised, where others could see the end.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    async def send(self, data: bytes | memoryview, moved: Callable[[int], None]) -> None:
        """Send all of it, and say how many bytes went whenever some did."""
        rest = memoryview(data)
        while rest:
            await trio.lowlevel.checkpoint()
            try:
                sent = self._socket.send(rest[:_READ_SIZE])
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._socket)
            else:
                rest = rest[sent:]
                moved(sent)

    async def receive(self) -> bytes:
        """What has come, once something has; nothing is the end."""
        while True:
            await trio.lowlevel.checkpoint()
            try:
                return self._socket.recv(_READ_SIZE)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._socket)

    async def half_close(self) -> None:
        """Send no more."""
        self._socket.shutdown(socket.SHUT_WR)

    def close(self, *, reset: bool = False) -> None:
        """Close, or cut off."""
        if reset:
            # Of a unix socket it means nothing.
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESETS)
        self._socket.close()


class TlsWire(Wire):
    """The same with TLS inside, whose sending side can be ended alone."""

    def __init__(self, connection: socket.socket, tls: Tls) -> None:
        super().__init__(connection)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = tls.context.wrap_bio(self._in, self._out, server_hostname=tls.server_name)
        self._flushing = trio.Lock()  # records go in the order in which they were made

    async def handshake(self) -> None:
        """Agree on TLS."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._fill():
                    raise OSError(errno.ECONNRESET, "the TLS handshake was cut off") from None
            except ssl.SSLError:
                # The server is to be told; what went wrong here matters more.
                with contextlib.suppress(OSError):
                    await self._flush()
                raise
            else:
                return await self._flush()

    async def send(self, data: bytes | memoryview, moved: Callable[[int], None]) -> None:
        """See ``Wire``."""
        rest = memoryview(data)
        while rest:
            sent = self._tls.write(rest[:_READ_SIZE])
            rest = rest[sent:]
            await self._flush()
            moved(sent)

    async def receive(self) -> bytes:
        """See ``Wire``; the end of TLS, and that of TCP, are both the end."""
        while True:
            try:
                return self._tls.read(_READ_SIZE)
            except ssl.SSLWantReadError:
                if not await self._fill():
                    return b""
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""

    async def half_close(self) -> None:
        """See ``Wire``: the end is said in TLS and in TCP."""
        # All that has come is decrypted, so this finds nothing and only sends.
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        await self._flush()
        await super().half_close()

    async def _fill(self) -> bool:
        data = await super().receive()
        self._in.write(data)
        return bool(data)

    async def _flush(self) -> None:
        async with self._flushing:
            await super().send(self._out.read(), lambda _: None)


class Server:
    """The server under test, as it is reached.

    Args:
        address: where it is.
        tls: how to speak TLS; for an address that says so.
        patience: seconds that an answer may take.

    Raises:
        CannotConnect: the host is not known.
    """

    def __init__(self, address: Address, tls: Tls | None, patience: float) -> None:
        self.patience = patience
        self.met = False  # whether there ever was a connection
        self._tls = tls
        if address.path:
            self._places = [SocketAddress(socket.AF_UNIX, address.path)]
        else:
            try:
                self._places = look_up(address.target)
            except OSError as error:
                raise CannotConnect(_words(error)) from None

    async def connect(self, *, narrow: bool = False) -> Wire:
        """Make a connection; a narrow one has little room for what is not read.

        Raises:
            CannotConnect: there never was any.
            Fault: there is none any more.
        """
        said = f"not within {format_duration(self.patience)}"
        with trio.move_on_after(self.patience):
            try:
                wire = await self._connect(narrow)
            except OSError as error:
                said = _words(error)
            else:
                self.met = True
                return wire
        if not self.met:
            raise CannotConnect(said)
        raise Fault(f"cannot connect: {said}")

    async def _connect(self, narrow: bool) -> Wire:
        connection = await self._dial(narrow)
        try:
            if self._tls is None:
                return Wire(connection)
            secure = TlsWire(connection, self._tls)
            await secure.handshake()
        except BaseException:
            connection.close()
            raise
        return secure

    async def _dial(self, narrow: bool) -> socket.socket:
        while True:
            *others, last = self._places
            for place in others:
                with contextlib.suppress(OSError):
                    return await _dial(place, narrow)
            try:
                return await _dial(last, narrow)
            except BlockingIOError:  # a unix socket whose backlog is full
                await trio.sleep(_TRY_AGAIN)


async def _dial(place: SocketAddress, narrow: bool) -> socket.socket:
    plain = socket.socket(place.family, socket.SOCK_STREAM)
    try:
        plain.setblocking(False)
        if narrow:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _NARROW)
        if place.family != socket.AF_UNIX:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = plain.connect_ex(place.sockaddr)
        if code == errno.EINPROGRESS:
            await trio.lowlevel.wait_writable(plain)
            code = plain.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not code and plain.family != socket.AF_UNIX:
            # TCP connects to itself where nobody listens and the port fits.
            code = errno.ECONNREFUSED * (plain.getsockname() == plain.getpeername())
        _check(code)
    except BaseException:
        plain.close()
        raise
    return plain


def _check(code: int) -> None:
    if code:
        raise OSError(code, os.strerror(code))


def _words(error: OSError) -> str:
    """What went wrong with a connection, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate does not verify: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(error.reason or str(error)).replace('_', ' ').lower()}"
    return error.strerror or str(error)

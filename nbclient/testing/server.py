"""``FakeServer``: what tests make, tell what is to go wrong, and look at afterwards."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from nbclient.testing.connection import FakeConnection
from nbclient.testing.faults import Clog, Cut, Fault, Faults, Script, os_error
from nbclient.testing.streams import Clock, FakeStream
from nbnet.notation import Address, parse_address

if TYPE_CHECKING:  # who tests the blocking client may not have trio loaded
    from trio.abc import HalfCloseableStream

HIGH_WATER: Final = 256 * 1024
"""Bytes of unread replies above which no more requests are taken, as in the real server."""

ANYWHERE: Final = parse_address("127.0.0.1:6789")
"""The address of a connection that was made without one."""


class FakeServer:
    """A server in memory. It answers all addresses.

    For several servers, choose by the address::

        servers = {6789: FakeServer(), 6790: FakeServer()}
        Client(
            ["a:6789", "b:6790"],
            connect=lambda address, timeout: servers[address.port].connect(address, timeout),
        )

    Args:
        handler: what answers a request; the payload backwards by default. It
            runs in the call that sends the request and may be called by several
            threads at a time.
        faults: what is wrong with the replies: faults in the order in which the
            requests arrive on all connections together (None: a good reply), or
            a function from a request's payload to its fault.
        connect_delay: seconds that connecting takes; ``math.inf``: for ever. May
            be changed at any time.
        high_water: bytes of unread replies on a connection above which nothing
            more is taken from it.

    Attributes:
        requests: the payloads executed, in the order of their arrival.
        connections: each ``FakeConnection`` ever made, in order.
        refused: how many attempts to connect were refused.
        errors: why the server ended connections: a ``FrameError``, what the
            handler raised, or what was wrong with what it returned.

    >>> server = FakeServer(bytes.upper)
    >>> stream = server.connect()
    >>> stream.send(b"00003abc", timeout=5)
    8
    >>> stream.receive(timeout=5)
    b'00003ABC'
    >>> server.requests, server.open
    ([b'abc'], 1)
    """

    def __init__(
        self,
        handler: Callable[[bytes], bytes] = lambda payload: payload[::-1],
        *,
        faults: Faults = (),
        connect_delay: float = 0.0,
        high_water: int = HIGH_WATER,
    ) -> None:
        self.handler = handler
        self.connect_delay = connect_delay
        self.high_water = high_water
        self.requests: list[bytes] = []
        self.connections: list[FakeConnection] = []
        self.refused = 0
        self.errors: list[BaseException] = []
        self._script = Script(faults)

    @property
    def open(self) -> int:
        """Connections that the client has not closed, also those that the server has ended.

        >>> server = FakeServer()
        >>> with server.connect(), server.connect():
        ...     server.open
        2
        >>> server.open
        0
        """
        return sum(connection.open for connection in self.connections)

    # What goes wrong -------------------------------------------------------------

    def inject(self, *faults: Fault | None) -> None:
        """Faults for the next replies, one each (None: a good reply), before all others.

        >>> from nbclient.testing import Fault
        >>> server = FakeServer()
        >>> server.inject(Fault(raw=b"HTTP/1.1 400"))
        """
        with self._script.lock:
            self._script.injected += faults

    def cut(self, after: int = 0, *, reset: bool = False, times: int = 1) -> None:
        """End each of the next connections once it has sent so many bytes of replies.

        Args:
            after: bytes that still reach the client.
            reset: by a reset; otherwise by a close.
            times: how many connections.

        >>> server = FakeServer()
        >>> server.cut(after=3)
        >>> stream = server.connect()
        >>> stream.send(b"00003abc", timeout=5)
        8
        >>> stream.receive(timeout=5), stream.receive(timeout=5)
        (b'000', b'')
        """
        if after < 0:
            raise ValueError(f"a cut after {after} bytes: expected at least 0")
        with self._script.lock:
            self._script.cuts += [Cut(after, reset)] * times

    def clog(self, taken: int = 0, delay: float = math.inf) -> None:
        """Let the next send pass on ``taken`` bytes at once, and block after them.

        Whoever cancels it meanwhile has sent ``taken`` bytes: none, some or all of
        them. A blocking send returns their number, and it is the next one that blocks.

        Args:
            taken: bytes that reach the server at once.
            delay: seconds until the others do; ``math.inf``: never.

        >>> server = FakeServer()
        >>> server.clog(taken=6)
        >>> stream = server.connect()
        >>> stream.send(b"00003abc", timeout=5)
        6
        >>> stream.send(b"bc", timeout=5)
        Traceback (most recent call last):
        TimeoutError: timed out
        """
        with self._script.lock:
            self._script.clogs.append(Clog(taken, delay))

    def refuse(self, times: float = math.inf) -> None:
        """Refuse the next attempts to connect; without a number, until ``accept``.

        >>> server = FakeServer()
        >>> server.refuse()
        >>> server.connect()  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ConnectionRefusedError: [Errno ...] Connection refused
        """
        with self._script.lock:
            self._script.refusals = times

    def accept(self) -> None:
        """Refuse no more.

        >>> server = FakeServer()
        >>> server.refuse()
        >>> server.accept()
        >>> server.connect().close()
        """
        self.refuse(0)

    def drop(self, *, reset: bool = False) -> None:
        """End all connections now, as a restart does: replies under way are lost.

        >>> server = FakeServer()
        >>> stream = server.connect()
        >>> server.drop()
        >>> stream.receive(timeout=5)
        b''
        """
        for connection in list(self.connections):
            connection.drop(reset=reset)

    # What clients connect with -----------------------------------------------------

    def connect(self, address: Address = ANYWHERE, timeout: float | None = None) -> FakeStream:
        """For ``Client(connect=...)``: a connection without waiting; the time is simulated.

        Raises:
            ConnectionRefusedError: as ``refuse`` wants it.
            TimeoutError: ``connect_delay`` is longer than the timeout, in seconds.
            WouldHangError: it takes for ever, and there is no timeout.
        """
        clock = Clock()
        clock.wait(self.connect_delay, timeout, "connect()")
        return FakeStream(self._admit(address, clock), clock)

    async def open_stream(self, address: Address = ANYWHERE) -> HalfCloseableStream:
        """For ``AsyncClient(connect=...)``: a connection for trio, by trio's clock.

        Raises:
            ConnectionRefusedError: as ``refuse`` wants it.

        >>> import trio
        >>> async def main():
        ...     async with await FakeServer().open_stream() as stream:
        ...         await stream.send_all(b"00003abc")
        ...         return await stream.receive_some()
        >>> trio.run(main)
        b'00003cba'
        """
        import trio

        from nbclient.testing.trio_streams import FakeTrioStream

        await trio.sleep(self.connect_delay)
        return FakeTrioStream(self._admit(address, trio.current_time))

    def _admit(self, address: Address, clock: Callable[[], float]) -> FakeConnection:
        script = self._script
        with script.lock:
            if script.refusals > 0:
                script.refusals -= 1
                self.refused += 1
                raise os_error(errno.ECONNREFUSED)
            cut = script.cuts.popleft() if script.cuts else None
            connection = FakeConnection(self, script, address, clock)
            self.connections.append(connection)
        if cut is not None:
            connection.cut(cut.after, reset=cut.reset)
        return connection

"""``FakeTrioStream``: the trio client's end of a connection, by trio's clock."""

from __future__ import annotations

import operator
from collections.abc import Callable

import trio

from nbclient.testing.connection import FakeConnection
from nbclient.testing.streams import READ_SIZE, Turn


class FakeTrioStream(trio.abc.HalfCloseableStream):
    """The client's end of a connection, by the rules and the clock of trio.

    Raises:
        trio.BrokenResourceError: the connection was reset.
        trio.ClosedResourceError: the stream, or its side to send, is closed.
        trio.BusyResourceError: two tasks send, or receive, at a time.
    """

    def __init__(self, connection: FakeConnection) -> None:
        self._connection = connection
        self._changed = trio.lowlevel.ParkingLot()
        self._sending = Turn(lambda: trio.BusyResourceError("two tasks send on one stream"))
        self._receiving = Turn(lambda: trio.BusyResourceError("two tasks receive on one stream"))
        self._sent_eof = False
        connection.wake = self._changed.unpark_all

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Pass all bytes on; if cancelled, none, some or all of them."""
        with self._sending:
            self._check_sending()
            await trio.lowlevel.checkpoint()  # cancelled here, nothing was sent
            await self._wait_until(self._connection.writable_at)
            data = bytes(data)
            self._check_sending()
            try:
                taken = self._connection.receive_some(data)
                rest = data[taken:]
                await self._wait_until(lambda: self._connection.writable_at(len(rest)))
                self._check_sending()
                if rest:
                    self._connection.receive(rest)
            except OSError as error:
                raise trio.BrokenResourceError("the connection was reset") from error

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the server takes more."""
        with self._sending:
            self._check_open()
            await trio.lowlevel.checkpoint()
            await self._wait_until(self._connection.writable_at)
            self._check_open()

    async def send_eof(self) -> None:
        """Say that nothing more will be sent."""
        with self._sending:
            self._check_open()
            await trio.lowlevel.checkpoint()
            self._check_open()
            self._sent_eof = True
            self._connection.receive_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Up to 64 KiB, or as many as are asked for; none (``b""``) are the end."""
        size = READ_SIZE if max_bytes is None else operator.index(max_bytes)
        if size < 1:
            raise ValueError(f"max_bytes is {max_bytes}, expected at least 1")
        with self._receiving:
            self._check_open()
            # Once bytes are taken there is no checkpoint that could lose them.
            await trio.lowlevel.checkpoint()
            await self._wait_until(self._connection.readable_at)
            self._check_open()
            try:
                data = self._connection.take(size)
            except OSError as error:
                raise trio.BrokenResourceError("the connection was reset") from error
            assert data is not None  # nobody else takes
            return data

    async def aclose(self) -> None:
        """Close it. May be called again."""
        self._connection.close()
        await trio.lowlevel.checkpoint()

    async def _wait_until(self, due: Callable[[], float]) -> None:
        """Until a time that may change whenever anything happens."""
        while (deadline := due()) > trio.current_time():
            with trio.move_on_at(deadline):
                await self._changed.park()

    def _check_open(self) -> None:
        if not self._connection.open:
            raise trio.ClosedResourceError("the stream is closed")

    def _check_sending(self) -> None:
        self._check_open()
        if self._sent_eof:
            raise trio.ClosedResourceError("the end was sent already")

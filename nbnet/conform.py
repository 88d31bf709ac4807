"""Plays the cases of the conformance suite against a server, many at a time.

Rules kept here:

* every wait has an end: a server that neither sends nor closes costs a case its
  patience, one that drips the same time some ten times over, and no more;
* what comes is compared byte by byte as it comes, and the first difference
  decides;
* where nothing may come, that is awaited, for a while and for many cases at once;
* after a case that did not end with a reply, a new connection has to be served.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import trio

from nbnet.conformance import Case, End, Step
from nbnet.machine import SocketAddress, look_up
from nbnet.notation import Address, format_duration

PAUSE: Final = 0.001
"""Seconds between the writes of what is cut, so that the server can read each alone."""
DRIPPING: Final = 10
"""Times the patience that a case may take, however often something moves."""
PROBE: Final = Step(b"00005probe", expected=b"00005eborp")
"""What a connection has to answer that is to be served."""
ECHO_PROBE: Final = Step(b"00005probe", expected=b"00005probe")
_READ_SIZE: Final = 65536
_TRY_AGAIN: Final = 0.01
"""Seconds until a unix socket is tried again that had no room."""
_RESETS: Final = struct.pack("ii", 1, 0)
"""A linger time of 0: closing sends a reset."""
_NARROW: Final = 32 * 1024
"""Bytes that the kernel is to hold for a client that reads late: so the server has to."""
_LOOK_ON: Final = 4096
"""Bytes read behind a fault, to be shown."""

OPEN: Final = "open"
CLOSED: Final = "closed"
RESET: Final = "reset"


class CannotConnect(Exception):  # noqa: N818 (as Fault)
    """The server takes no connection, not even a first one; one line that says why."""


class Fault(Exception):  # noqa: N818 (of the server, not of this program)
    """The server did otherwise than the protocol says: what, in a few words."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a case has come to.

    Attributes:
        case: which one.
        fault: what the server did otherwise, in a few words; empty: it passed.
        got: what came back.
        ended: how the server left the connection: ``open``, ``closed``, ``reset``;
            empty if there was none.
    """

    case: Case
    fault: str
    got: bytes
    ended: str


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


class Exchange:
    """What a client sends on one connection, and what comes back.

    Attributes:
        got: what has come.
        ended: how the server has ended the connection; ``open`` while it has not.
        fault: what it did otherwise than it has to; empty as long as it did nothing.
    """

    def __init__(self, wire: Wire, patience: float, silence: float) -> None:
        self.got = bytearray()
        self.ended = OPEN
        self.fault = ""
        self._wire = wire
        self._patience = patience
        self._silence = silence
        self._due = b""
        self._sent = 0
        self._cut_off = False  # found out by sending, and told only once
        self._scope = trio.CancelScope()
        self._reads = trio.Event()  # set as soon as the client reads
        self._news = trio.Event()  # set, and replaced, whenever something came

    async def play(self, case: Case, probe: Step) -> None:
        """Go through a case until it is over or there is a fault."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read)
            try:
                with trio.move_on_after(self._patience * DRIPPING), self._scope:
                    await self._go_through(case, probe)
                    nursery.cancel_scope.cancel()
                    return
                self.fault = self._not_in_time()
            except Fault as fault:
                self.fault = str(fault)
                with trio.move_on_after(self._silence):
                    # For the report: what else comes, and whether the end does.
                    await self._wait(lambda: self.ended != OPEN)
            nursery.cancel_scope.cancel()

    async def _go_through(self, case: Case, probe: Step) -> None:
        *first, last = case.steps
        if not last.late and not (case.end.of_client and not first):
            self._reads.set()
        for step in first:
            await self._say(step)
            await (self._answered() if step.expected else self._silent())
        if case.end.of_client:
            with trio.move_on_after(self._silence):  # then without having sent all
                await self._say(last)
            return
        await self._say(last)
        await self._answered()
        if case.end is End.SERVED:
            await self._say(probe)
            await self._answered()
        elif case.end is End.SILENT:
            await self._silent()
        else:
            await self._until(lambda: self.ended != OPEN)
            if case.end is End.FIN and self.ended == RESET:
                raise Fault("reset, which costs replies on their way")

    # What is sent ----------------------------------------------------------------

    async def _say(self, step: Step) -> None:
        self._due += step.expected
        self._extend()
        if not step.late:
            await self._send(step)
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_when_stuck)
            await self._send(step)
            nursery.cancel_scope.cancel()
        self._reads.set()

    async def _send(self, step: Step) -> None:
        try:
            for number, piece in enumerate(step.pieces):
                if number:
                    await trio.sleep(PAUSE)
                await self._wire.send(piece, self._count)
            if step.half_close:
                await self._wire.half_close()
        except OSError as error:
            # The server has ended the connection: whether it was to, reading shows.
            self._cut_off = error.errno == errno.ECONNRESET

    async def _read_when_stuck(self) -> None:
        """Begin to read when the kernel takes no more."""
        before = -1
        while before < self._sent:
            before = self._sent
            await trio.sleep(self._silence)
        self._reads.set()

    # What comes ------------------------------------------------------------------

    async def _read(self) -> None:
        await self._reads.wait()
        while self.ended == OPEN and len(self.got) < len(self._due) + _LOOK_ON:
            try:
                data = await self._wire.receive()
            except OSError:
                self.ended = RESET
            else:
                if data:
                    self._compare(data)
                else:
                    self.ended = RESET if self._cut_off else CLOSED
            self._extend()
            self._news.set()
            self._news = trio.Event()

    def _compare(self, data: bytes) -> None:
        at = len(self.got)
        self.got += data
        if self.fault or self._due.startswith(data, at):
            return
        due = self._due[at : at + len(data)]
        if data.startswith(due):
            self.fault = f"{len(self.got) - len(self._due):,} bytes more than are due"
        else:
            at += next(n for n, byte in enumerate(due) if data[n] != byte)
            self.fault = f"wrong from byte {at:,} on"

    async def _wait(self, enough: Callable[[], bool]) -> None:
        while not enough():
            await self._news.wait()

    async def _until(self, enough: Callable[[], bool]) -> None:
        await self._wait(lambda: bool(self.fault) or enough())
        if self.fault:
            raise Fault(self.fault)

    async def _answered(self) -> None:
        """All that is due has to come."""
        await self._until(lambda: len(self.got) >= len(self._due) or self.ended != OPEN)
        if len(self.got) < len(self._due):
            raise Fault(f"{self.ended} with {self._missing}")

    async def _silent(self) -> None:
        """Nothing may come, not even the end."""
        self._extend(self._silence)
        with trio.move_on_after(self._silence):
            await self._until(lambda: self.ended != OPEN)
            raise Fault(f"{self.ended} while the client had still to send")

    # How long it may take ------------------------------------------------------------

    def _count(self, sent: int) -> None:
        self._sent += sent
        self._extend()

    def _extend(self, more: float = 0.0) -> None:
        """Something moved: patience begins anew."""
        self._scope.deadline = trio.current_time() + self._patience + more

    def _not_in_time(self) -> str:
        if len(self.got) < len(self._due):
            return f"no answer: {self._missing}"
        return "not ended"

    @property
    def _missing(self) -> str:
        return f"{len(self._due) - len(self.got):,} bytes of replies missing"


def conform(
    address: Address,
    cases: Sequence[Case],
    *,
    tls: Tls | None = None,
    timeout: float = 2.0,
    silence: float = 0.2,
    jobs: int = 64,
    echo: bool = False,
) -> list[Outcome]:
    """Play cases against a server.

    Args:
        address: of the server.
        cases: from ``nbnet.conformance.cases``.
        tls: how to speak TLS, where the address says so.
        timeout: seconds that an answer, a connection or an end may take.
        silence: seconds for which nothing may come where nothing is due.
        jobs: cases that are played at the same time.
        echo: whether the server echoes payloads; otherwise it reverses them.

    Returns:
        What each has come to, in the order of the cases.

    Raises:
        CannotConnect: no connection can be made.

    >>> from nbnet import Server
    >>> from nbnet.conformance import cases
    >>> with Server(port=0) as server:
    ...     [outcome] = conform(Address(*server.address), cases("sizes/1"))
    >>> outcome.fault, outcome.got, outcome.ended
    ('', b'00001z00005eborp', 'open')
    """
    server = Server(address, tls, timeout)
    probe = ECHO_PROBE if echo else PROBE
    if echo:
        cases = [case.echoed() for case in cases]
    try:
        return trio.run(_play_all, server, cases, silence, jobs, probe)
    except BaseExceptionGroup as group:
        # Ctrl-C, as it comes out of trio.
        if group.split(KeyboardInterrupt)[1] is None:
            raise KeyboardInterrupt from None
        raise


async def _play_all(
    server: Server, cases: Sequence[Case], silence: float, jobs: int, probe: Step
) -> list[Outcome]:
    outcomes: dict[int, Outcome] = {}
    failures: list[CannotConnect] = []
    left = iter(enumerate(cases))

    async def play_some() -> None:
        for number, case in left:
            try:
                outcomes[number] = await _play(server, case, silence, probe)
            except CannotConnect as error:
                failures.append(error)
                nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(min(jobs, len(cases))):
            nursery.start_soon(play_some)
    if failures:
        raise failures[0]
    return [outcomes[number] for number in range(len(cases))]


async def _play(server: Server, case: Case, silence: float, probe: Step) -> Outcome:
    try:
        wire = await server.connect(narrow=case.steps[0].late)
    except Fault as error:
        return Outcome(case, str(error), b"", "")
    exchange = Exchange(wire, server.patience, silence)
    try:
        await exchange.play(case, probe)
    finally:
        wire.close(reset=case.end is End.RESET_BY_CLIENT)
    fault = exchange.fault
    if not fault and case.end is not End.SERVED:
        after = Case("", "the next connection", "", (probe,), End.SERVED)
        fault = (await _play(server, after, silence, probe)).fault
        fault = fault and f"the next connection: {fault}"
    return Outcome(case, fault, bytes(exchange.got), exchange.ended)


def _words(error: OSError) -> str:
    """What went wrong with a connection, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate does not verify: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(error.reason or str(error)).replace('_', ' ').lower()}"
    return error.strerror or str(error)

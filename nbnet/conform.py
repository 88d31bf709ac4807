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

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from nbnet.conform_wire import CannotConnect, Fault, Server, Tls, Wire
from nbnet.conformance import Case, End, Step
from nbnet.notation import Address

PAUSE: Final = 0.001
"""Seconds between the writes of what is cut, so that the server can read each alone."""
DRIPPING: Final = 10
"""Times the patience that a case may take, however often something moves."""
PROBE: Final = Step(b"00005probe", expected=b"00005eborp")
"""What a connection has to answer that is to be served."""
ECHO_PROBE: Final = Step(b"00005probe", expected=b"00005probe")
_LOOK_ON: Final = 4096
"""Bytes read behind a fault, to be shown."""

OPEN: Final = "open"
CLOSED: Final = "closed"
RESET: Final = "reset"


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

"""Random fault plans: whatever goes wrong, no wrong reply, no leaked slot, no hang.

A plan says which requests are made when, by concurrent callers, with which
timeouts and cancellations; and what goes wrong with connecting, with sending,
with each reply, with connections, and when the client is closed. It is made from
its number by ``random.Random``: a plan is the same at each run, and a failure
names its number. (Not by Hypothesis, so that ten thousand are quick to make:
nothing is shrunk, but plans are small.) All of it happens in simulated time,
on a grid that makes things coincide.

A plan is played on five grounds:

* ``kit``: ``AsyncClient`` on the streams of ``nbclient.testing``;
* ``memory``, ``lockstep``: on trio's streams in memory, without and with back
  pressure, and a server of this module, since the kit must not be the only judge;
* ``sockets``: the same on real sockets, of two kinds and with small buffers;
  there the client knows how much of a cancelled send has gone;
* ``threads``: ``Client``, by threads of which one runs at a time; which one is
  random wherever one could wait. Their cancellation is Ctrl-C.

What is guaranteed, and checked after each plan:

* a request ends with its own reply, an ``NbclientError``, or cancelled; by its
  deadline, and at once when it is cancelled. Each next reply of ``request_many``
  comes within its timeout, the first one within another for connecting;
* **frames carry no number, so a reply is known by its position.** The caller of
  the request that was the nth on its connection gets the nth frame that the
  server sent there, or an error. While the server is honest that is the right
  one. A server may be slow, break off or send what is no frame, and still count
  as honest: all that is detected;
* a server that *lies* sends frames that are well-formed and wrong: a reply twice
  or left out, another length or other bytes in it. No client can tell. But what it
  sends on one connection is never a reply on another; and what comes on a
  connection at rest (all its requests are answered) reaches no later request;
* ``maybe_executed=False`` is said only of a request that the server did not see;
  one that may not be repeated is seen once at most, any other once an attempt;
* the server never sees anything but whole, proper requests;
* afterwards nothing is left: no role or slot taken, nobody who waits, no
  connection that is open and not in the pool. All connections that there may be
  can be used again, at the first attempt, although the server has dropped them;
  and none is open once the client is closed.

A hundred and twenty plans are played on each ground by default. The 10,000 of an honest
server, and 2,000 each of the others, on each ground, in some minutes::

    pytest -m slow tests/nbclient/test_faults.py
"""

from __future__ import annotations

import contextlib
import math
import random
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from types import SimpleNamespace
from typing import Any, Final, Literal, Protocol, TypeAlias

import pytest
import trio
from support.breaks import forgotten_when_abandoned, kept_after_a_timeout
from trio.testing import MockClock, lockstep_stream_pair, memory_stream_pair

import nbclient.sync
import nbclient.sync_connection
from nbclient import AsyncClient, Client, NbclientError, PoolTimeout
from nbclient.exchange import Ledger
from nbclient.servers import Attempts
from nbclient.testing import SILENT, FakeConnection, FakeServer, Fault
from nbclient.trio_connection import Connection
from nbnet.framing import FrameDecoder, encode_frame
from nbnet.notation import Address

TICK: Final = 0.25  # seconds; sums of it are exact, so that things happen at the same time
EPSILON: Final = 1e-6
LONG: Final = 10_000.0  # seconds of simulated time within which all has to be over

Ground: TypeAlias = Literal["kit", "memory", "lockstep", "sockets", "threads"]
Kind: TypeAlias = Literal["honest", "lying", "at rest"]
GROUNDS: Final[tuple[Ground, ...]] = ("kit", "memory", "lockstep", "sockets", "threads")


class WrongReply(AssertionError):  # noqa: N818
    """A caller got what was not for it."""


class Hang(AssertionError):  # noqa: N818
    """Somebody waits too long."""


class Leak(AssertionError):  # noqa: N818
    """Something is left when all is over."""


class Untruth(AssertionError):  # noqa: N818
    """The server saw a request that it should not have seen."""


# Plans -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    """What one caller does: a request, or ``request_many``. Times in seconds."""

    start: float
    payloads: tuple[bytes, ...]
    many: bool
    timeout: float | None  # of a request
    idempotent: bool
    cancel: float  # after the start; infinite: never
    leave: int  # replies after which a generator is left
    pause: float  # between replies
    window: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked, and what goes wrong."""

    number: int
    kind: Kind
    calls: tuple[Call, ...]
    timeout: float
    options: dict[str, Any]
    faults: dict[bytes, tuple[Fault | None, ...]]  # by payload, for each time that it comes
    liars: frozenset[bytes]  # payloads whose replies are well-formed and wrong
    connects: tuple[float | None, ...]  # for each attempt: how long it takes; None: refused
    cuts: tuple[tuple[int, bool], ...]  # for each connection: after how many bytes; a reset?
    clogs: tuple[tuple[int, float], ...]  # for each send: bytes taken at once, and seconds then
    events: tuple[tuple[float, str, bytes], ...]


def make_plan(number: int, kind: Kind, ground: Ground) -> Plan:
    """The plan of a number."""
    rng = random.Random(f"{kind} {number}")
    largest = 9000 if ground == "sockets" else 40
    # Nobody reads the reply of what was cancelled. Where little is buffered, what
    # the server sends behind it comes when the next request has been sent: not at rest.
    cancelling = kind != "at rest" or ground != "sockets"
    numbers = iter(range(10, 1000))

    def ticks(most: int) -> float:
        return TICK * rng.randrange(most + 1)

    def payload() -> bytes:
        # Backwards the number reads as a length: whoever is out of step goes on.
        size = rng.choice((0, 1, 5, 17, rng.randrange(40), rng.randrange(largest)))
        return b"%05d" % next(numbers) + bytes(rng.choices(b"01ab", k=1)) * size

    timeout = TICK + ticks(15)
    calls = []
    for index in range(rng.choice((1, 2, 4, 6, 8))):
        many = rng.random() < 0.25
        cancel = math.inf
        if cancelling and rng.random() < 0.35:
            cancel = rng.choice((0.0, TICK, ticks(4), ticks(20)))
        limit = rng.choice((timeout, timeout, TICK + ticks(8), TICK + ticks(30)))
        calls.append(
            Call(
                start=100.0 * index
                if kind == "at rest"
                else rng.choice((0.0, 0.0, ticks(4), ticks(16))),
                payloads=tuple(payload() for _ in range(rng.randint(1, 6) if many else 1)),
                many=many,
                timeout=None if cancel < math.inf and rng.random() < 0.3 else limit,
                idempotent=rng.random() < 0.3,
                cancel=cancel,
                leave=rng.choice((1, 2, 10, 10)),
                pause=rng.choice((0.0, 0.0, ticks(4))),
                window=rng.choice((1, 2, 4096)),
            )
        )
    payloads = [payload for call in calls for payload in call.payloads]
    often = rng.choice((0.0, 0.15, 0.5))
    latency = rng.choice((0.0, TICK, ticks(6)))
    faults: dict[bytes, tuple[Fault | None, ...]] = {}
    liars = set()
    for payload_ in payloads:
        if kind != "honest" and rng.random() < 0.3:
            liars.add(payload_)
            faults[payload_] = (_lie(rng, len(payload_), ticks(6)),)
        elif rng.random() < often:
            each = [_fault(rng, payload_, ticks(10)) for _ in range(rng.randint(1, 2))]
            faults[payload_] = tuple(each)
        else:
            faults[payload_] = (Fault(delay=latency),) * 2
    times = [(ticks(20), "drop", b""), (ticks(20), "reset", b""), (ticks(20), "say", b"oops")]
    if kind == "lying":
        times.append((ticks(20), "say", b"00003lie"))
    if kind == "at rest":
        times = [(100.0 * n + 90 + ticks(4), "say", b"00003lie") for n in range(len(calls))]
    events = [event for event in times if rng.random() < 0.2]
    if kind != "at rest" and rng.random() < 0.2:
        events.append((ticks(20), "close", b""))
    return Plan(
        number=number,
        kind=kind,
        calls=tuple(calls),
        timeout=timeout,
        options={
            "target": ["a:1", "b:1"][: rng.choice((1, 1, 1, 2))],
            "timeout": timeout,
            "connect_timeout": rng.choice((None, None, TICK + ticks(8))),
            "max_connections": rng.choice((1, 1, 2, 3)),
            "retries": rng.choice((0, 2, 5)),
            "backoff": rng.choice((0.0, 0.25, 1.0)),
        },
        faults=faults,
        liars=frozenset(liars),
        connects=tuple(
            rng.choice((None, ticks(4), ticks(20), math.inf)) if rng.random() < often else 0.0
            for _ in range(6)
        ),
        cuts=tuple(
            (rng.randrange(60) if rng.random() < often / 2 else 10**9, rng.random() < 0.5)
            for _ in range(4)
        ),
        clogs=tuple(
            (rng.choice((0, 1, 5, 8, 20, 1000)), rng.choice((ticks(8), ticks(20), math.inf)))
            if rng.random() < often
            else (1_000_000, 0.0)
            for _ in range(8)
        ),
        events=tuple(events),
    )


def _fault(rng: random.Random, payload: bytes, delay: float) -> Fault:
    """What is noticed, whatever it comes with."""
    size = 5 + len(payload)
    pieces = tuple(rng.choices((1, 2, 5, 7), k=rng.randrange(4)))
    match rng.randrange(8):
        case 0:
            return SILENT
        case 1 | 2:
            reset = rng.random() < 0.5
            return Fault(cut=rng.randrange(size + 1), reset=reset, delay=delay, pieces=pieces)
        case 3:
            return Fault(corrupt=(rng.randrange(5), rng.choice((b"x", b"-", b"\xff"))), delay=delay)
        case 4:
            return Fault(raw=rng.choice((b"HTTP/1.1 400\r\n\r\n", b"\xff" * 9, b"12x")))
        case 5:
            return Fault(raw=b"\r\n" + encode_frame(payload[::-1]), pieces=pieces)
        case _:
            return Fault(delay=delay, pieces=pieces)


def _lie(rng: random.Random, size: int, delay: float) -> Fault:
    """What is a frame, or nothing, and wrong."""
    match rng.randrange(5):
        case 0:
            return Fault(copies=rng.randint(2, 3), delay=delay, pieces=(5 + size,))
        case 1:
            return Fault(copies=0)
        case 2:
            return Fault(corrupt=(rng.randrange(5), rng.choice((b"0", b"1"))), delay=delay)
        case 3:
            return Fault(raw=b"00003lie", delay=delay)
        case _:
            return Fault(copies=2, delay=delay)


# What came of it -------------------------------------------------------------------


@dataclass(slots=True)
class Outcome:
    """What came of a call."""

    call: Call
    started: float
    ended: float = math.inf
    replies: list[bytes] = field(default_factory=list)
    asked: float = 0.0  # when a reply of many was asked for, the iterable's time left out
    longest: float = 0.0  # seconds that one took; of the first, half of them
    error: NbclientError | None = None
    cancelled: bool = False

    def waited(self, now: float) -> None:
        """A reply of many came, or an error; the first one may take twice the time."""
        seconds = now - self.asked
        self.longest = max(self.longest, seconds if self.replies else seconds / 2)

    @property
    def name(self) -> str:
        """How it ended."""
        if self.cancelled:
            return "cancelled"
        return "reply" if self.error is None else type(self.error).__name__


@dataclass(slots=True)
class Line:
    """A connection as the server knows it."""

    requests: list[bytes] = field(default_factory=list)
    sent: bytearray = field(default_factory=bytearray)  # to the client, or more than it got


def frames(data: bytes) -> list[bytes]:
    """The whole frames at the beginning; slow and simple, not the code under test."""
    found: list[bytes] = []
    while True:
        while data[:2] == b"\r\n":
            data = data[2:]
        if not (len(data) >= 5 and data[:5].isdigit() and len(data) >= 5 + int(data[:5])):
            return found
        found.append(data[5 : 5 + int(data[:5])])
        data = data[5 + int(data[:5]) :]


def check(plan: Plan, outcomes: Sequence[Outcome], lines: Sequence[Line]) -> None:
    """The guarantees that concern callers."""
    for outcome in outcomes:
        for payload, reply in zip(outcome.call.payloads, outcome.replies, strict=False):
            _check_reply(plan, outcome.call, payload, reply, lines)
        if len(outcome.replies) > len(outcome.call.payloads):
            raise WrongReply(f"more replies than requests: {outcome}")
    for outcome in outcomes:
        _check_time(plan, outcome)
    seen = Counter(payload for line in lines for payload in line.requests)
    for outcome in outcomes:
        call = outcome.call
        most = 1 + plan.options["retries"] if call.idempotent and not call.many else 1
        unseen = outcome.error is not None and not outcome.error.maybe_executed
        for payload in call.payloads:
            if seen[payload] > most:
                raise Untruth(f"seen {seen[payload]} times: {outcome}")
            if unseen and seen[payload]:
                raise Untruth(f"seen although it cannot have been executed: {outcome}")


def _check_reply(
    plan: Plan, call: Call, payload: bytes, reply: bytes, lines: Sequence[Line]
) -> None:
    if reply == payload[::-1]:
        return
    touched = [line for line in lines if payload in line.requests]
    if plan.kind == "at rest":
        exact = plan.liars.isdisjoint(call.payloads)
    else:
        said = any(data.isalnum() and data[:1].isdigit() for _, _, data in plan.events)
        exact = not said and all(plan.liars.isdisjoint(line.requests) for line in touched or lines)
    # What was sent and not seen comes behind what was seen.
    in_position = any(
        got == reply
        for line in lines
        for asked, got in zip_longest(line.requests, frames(bytes(line.sent)))
        if asked in (payload, None)
    )
    if exact or not in_position:
        raise WrongReply(f"{reply!r} for {payload!r}")


def _check_time(plan: Plan, outcome: Outcome) -> None:
    call = outcome.call
    if outcome.ended == math.inf:
        raise Hang(f"never ended: {outcome}")
    took = outcome.ended - outcome.started
    limit = call.cancel
    if not call.many and call.timeout is not None:
        limit = min(limit, call.timeout)
    if took > limit + EPSILON:
        raise Hang(f"took {took} of {limit} s: {outcome}")
    if outcome.longest > plan.timeout + 0.01:  # waiting for less than 1 ms is rounded up
        raise Hang(f"a reply of many took {outcome.longest} s: {outcome}")


class Script:
    """What is still to go wrong with connecting and with replies."""

    def __init__(self, plan: Plan) -> None:
        self._connects = deque(plan.connects)
        self._faults = {payload: deque(each) for payload, each in plan.faults.items()}

    def connect(self) -> float:
        """How long connecting takes."""
        wait = self._connects.popleft() if self._connects else 0.0
        if wait is None:
            raise ConnectionRefusedError(111, "Connection refused")
        return wait

    def fault(self, payload: bytes) -> Fault | None:
        faults = self._faults.get(payload)
        return faults.popleft() if faults else None

    def heal(self) -> None:
        self._connects.clear()
        self._faults.clear()


# Servers for trio ------------------------------------------------------------------


class Service(Protocol):
    """A server, however it is reached."""

    lines: list[Line]

    async def connect(self, address: Address, /) -> trio.abc.Stream: ...
    def act(self, what: str, data: bytes, /) -> None: ...
    def heal(self) -> None: ...
    def open(self) -> int: ...


class Tap(trio.abc.Stream):
    """Keeps what is received through it."""

    def __init__(self, stream: trio.abc.Stream, line: Line) -> None:
        self._stream = stream
        self._line = line
        self.closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._stream.receive_some(max_bytes)
        self._line.sent += data
        return data

    async def aclose(self) -> None:
        self.closed = True
        await self._stream.aclose()


class FakeService:
    """``FakeServer``, for either front."""

    def __init__(self, plan: Plan) -> None:
        self.lines: list[Line] = []
        self._script = Script(plan)
        self._server = FakeServer(faults=self._script.fault)
        for after, by_reset in plan.cuts:
            self._server.cut(after, reset=by_reset)
        for taken, delay in plan.clogs:
            self._server.clog(taken, delay)
        self._servers = [self._server]

    def act(self, what: str, data: bytes, /) -> None:
        """What a server does of its own accord."""
        if what != "say":
            self._server.drop(reset=what == "reset")
        elif self._server.connections:
            self._server.connections[-1].say(data)

    def heal(self) -> None:
        """Have a new server in its place, and nothing go wrong any more."""
        self._script.heal()
        self._server.drop()
        self._server = FakeServer()
        self._servers.append(self._server)

    def open(self) -> int:
        """Connections that the client has not closed."""
        if errors := [error for server in self._servers for error in server.errors]:
            raise Untruth(f"the client sent no requests: {errors}")
        return sum(server.open for server in self._servers)


class Kit(FakeService):
    """Its streams for trio."""

    def __init__(self, plan: Plan, _: trio.Nursery) -> None:
        super().__init__(plan)

    async def connect(self, address: Address, /) -> trio.abc.Stream:
        await trio.sleep(self._script.connect())
        server = self._server
        stream = await server.open_stream(address)
        self.lines.append(line := Line(server.connections[-1].requests))
        return Tap(stream, line)


class Peer:
    """A server of our own: on each connection, a task reads and a task writes."""

    reads_slowly = False

    def __init__(self, plan: Plan, nursery: trio.Nursery) -> None:
        self.lines: list[Line] = []
        self._plan = plan
        self._script = Script(plan)
        self._cuts = deque(plan.cuts)
        self._clogs = deque(plan.clogs)
        self._nursery = nursery
        self._ours: list[trio.abc.Stream] = []
        self._scopes: list[trio.CancelScope] = []
        self._outputs: list[trio.MemorySendChannel[tuple[float, bytes, Fault]]] = []
        self._errors: list[Exception] = []

    def pair(self, line: Line) -> tuple[trio.abc.Stream, trio.abc.Stream]:  # noqa: ARG002
        """The two ends of a new connection: the client's first."""
        ours, theirs = memory_stream_pair()
        pass_on = ours.send_stream.send_all_hook
        assert pass_on is not None

        async def hook() -> None:  # all is taken, but who sends does not know yet
            await pass_on()
            await trio.sleep(min(self._clogs.popleft()[1], LONG) if self._clogs else 0)

        ours.send_stream.send_all_hook = hook
        return ours, theirs

    async def connect(self, address: Address, /) -> trio.abc.Stream:  # noqa: ARG002
        await trio.sleep(self._script.connect())
        self.lines.append(line := Line())
        ours, theirs = self.pair(line)
        self._scopes.append(scope := trio.CancelScope())
        self._nursery.start_soon(self._serve, theirs, line, scope)
        if not isinstance(ours, trio.SocketStream):
            ours = Tap(ours, Line())
        self._ours.append(ours)
        return ours

    async def _serve(self, stream: trio.abc.Stream, line: Line, scope: trio.CancelScope) -> None:
        output, queue = trio.open_memory_channel[tuple[float, bytes, Fault]](math.inf)
        self._outputs.append(output)
        try:
            with scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write, stream, line, queue, scope)
                    await self._read(stream, line, output)
        finally:
            await trio.aclose_forcefully(stream)

    async def _read(
        self,
        stream: trio.abc.Stream,
        line: Line,
        output: trio.MemorySendChannel[tuple[float, bytes, Fault]],
    ) -> None:
        decoder = FrameDecoder()
        with contextlib.suppress(trio.BrokenResourceError):
            while True:
                size, pause = 1_000_000, 0.0
                if self._clogs and self.reads_slowly:
                    size, pause = self._clogs.popleft()
                if not (data := await stream.receive_some(max(size, 1))):
                    break
                for payload in decoder.feed(bytes(data)):
                    line.requests.append(payload)
                    fault = self._script.fault(payload) or Fault()
                    frame = fault.spoil(encode_frame(payload[::-1]))
                    output.send_nowait((trio.current_time() + fault.delay, frame, fault))
                if decoder.error is not None:
                    self._errors.append(decoder.error)
                    break
                await trio.sleep(min(pause, LONG))
        output.close()

    async def _write(
        self,
        stream: trio.abc.Stream,
        line: Line,
        queue: trio.MemoryReceiveChannel[tuple[float, bytes, Fault]],
        scope: trio.CancelScope,
    ) -> None:
        left, by_reset = self._cuts.popleft() if self._cuts else (10**9, False)
        with contextlib.suppress(trio.BrokenResourceError):
            async for due, frame, fault in queue:
                await trio.sleep(max(0.0, min(due - trio.current_time(), LONG)))
                for piece in fault.split(frame):
                    line.sent += piece[:left]
                    if piece[:left]:
                        await stream.send_all(piece[:left])
                    if len(piece) > left:
                        reset(stream, wanted=by_reset)
                        scope.cancel()
                    left -= len(piece)
                    await trio.lowlevel.checkpoint()
                if fault.cut is not None:
                    reset(stream, wanted=fault.reset)
                    scope.cancel()
        scope.cancel()

    def act(self, what: str, data: bytes, /) -> None:
        if what != "say":
            for scope in self._scopes:
                scope.cancel()
        elif self._outputs:
            with contextlib.suppress(trio.ClosedResourceError, trio.BrokenResourceError):
                self._outputs[-1].send_nowait((0.0, data, Fault()))

    def heal(self) -> None:
        self._script.heal()
        self._cuts.clear()
        self._clogs.clear()
        self.act("drop", b"")

    def open(self) -> int:
        if self._errors:
            raise Untruth(f"the client sent no requests: {self._errors}")
        return sum(
            stream.socket.fileno() >= 0 if isinstance(stream, trio.SocketStream) else True
            for stream in self._ours
            if not (isinstance(stream, Tap) and stream.closed)
        )


def reset(stream: trio.abc.Stream, *, wanted: bool) -> None:
    """Let closing it be a reset, if it can be."""
    if wanted and isinstance(stream, trio.SocketStream):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class LockstepPeer(Peer):
    """Nothing is buffered: who sends waits until all was received."""

    reads_slowly = True

    def pair(self, line: Line) -> tuple[trio.abc.Stream, trio.abc.Stream]:  # noqa: ARG002
        return lockstep_stream_pair()


class SocketPeer(Peer):
    """On sockets with small buffers: TCP in every other plan.

    Not where it counts what has arrived when: TCP takes time of its own.
    """

    reads_slowly = True

    def pair(self, line: Line) -> tuple[trio.abc.Stream, trio.abc.Stream]:  # noqa: ARG002
        if self._plan.number % 2 or self._plan.kind == "at rest":
            ours, theirs = socket.socketpair()
        else:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                ours = socket.create_connection(listener.getsockname())
                theirs, _ = listener.accept()
        for end in ours, theirs:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            end.setblocking(False)
        wrap = trio.socket.from_stdlib_socket
        return trio.SocketStream(wrap(ours)), trio.SocketStream(wrap(theirs))


SERVICES: Final[dict[Ground, Callable[[Plan, trio.Nursery], Service]]] = {
    "kit": Kit,
    "memory": Peer,
    "lockstep": LockstepPeer,
    "sockets": SocketPeer,
}


# Tasks -----------------------------------------------------------------------------


async def play_tasks(plan: Plan, make: Callable[[Plan, trio.Nursery], Service]) -> list[Outcome]:
    """Play a plan with ``AsyncClient`` and check all guarantees."""
    async with trio.open_nursery() as nursery:
        service = make(plan, nursery)
        client = AsyncClient(connect=service.connect, **plan.options)
        outcomes: list[Outcome] = []
        try:
            with trio.fail_after(LONG):
                async with trio.open_nursery() as callers:
                    for call in plan.calls:
                        callers.start_soon(_call_task, client, call, outcomes)
                    for event in plan.events:
                        callers.start_soon(_event_task, client, service, event)
            check(plan, outcomes, service.lines)
            check_tasks_left(client)
            service.heal()
            if ("close", b"") not in [event[1:] for event in plan.events]:
                await _use_again(client, plan)
        except trio.TooSlowError:
            raise Hang(f"still waiting: {outcomes}") from None
        finally:
            await client.aclose()
        if left := service.open():
            raise Leak(f"{left} streams are open although the client is closed")
        nursery.cancel_scope.cancel()
    return outcomes


async def _call_task(client: AsyncClient, call: Call, outcomes: list[Outcome]) -> None:
    await trio.sleep(call.start)
    started = trio.current_time()
    outcomes.append(outcome := Outcome(call, started))
    with trio.CancelScope(deadline=started + call.cancel) as scope:
        if not call.cancel:
            scope.cancel()
        try:
            if call.many:
                await _many_task(client, call, outcome)
            else:
                reply = await client.request(
                    call.payloads[0], idempotent=call.idempotent, timeout=call.timeout
                )
                outcome.replies.append(reply)
        except NbclientError as error:
            outcome.error = error
        finally:
            outcome.ended = trio.current_time()
    outcome.cancelled = scope.cancelled_caught


class Slowly(AsyncIterator[bytes]):
    """Payloads that take their time, which is not the server's."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._left = iter(outcome.call.payloads)

    async def __anext__(self) -> bytes:
        await trio.sleep(TICK)
        self._outcome.asked += TICK
        for payload in self._left:
            return payload
        raise StopAsyncIteration


async def _many_task(client: AsyncClient, call: Call, outcome: Outcome) -> None:
    payloads = Slowly(outcome) if call.idempotent else call.payloads
    async with contextlib.aclosing(client.request_many(payloads, window=call.window)) as replies:
        outcome.asked = trio.current_time()
        try:
            async for reply in replies:
                outcome.waited(trio.current_time())
                outcome.replies.append(reply)
                if len(outcome.replies) == call.leave:
                    return
                await trio.sleep(call.pause)
                outcome.asked = trio.current_time()
        except NbclientError:
            outcome.waited(trio.current_time())
            raise


async def _event_task(
    client: AsyncClient, service: Service, event: tuple[float, str, bytes]
) -> None:
    when, what, data = event
    await trio.sleep(when)
    if what == "close":
        await client.aclose()
    else:
        service.act(what, data)


async def _use_again(client: AsyncClient, plan: Plan) -> None:
    """All servers are well, and have dropped all connections."""
    await trio.sleep(LONG / 10)  # whoever was ejected is probed again
    replies = {}

    async def ask(payload: bytes) -> None:
        replies[payload] = await client.request(payload)

    async with trio.open_nursery() as nursery:
        for n in range(2 * plan.options["max_connections"]):
            nursery.start_soon(ask, b"again %d" % n)
    if any(reply != payload[::-1] for payload, reply in replies.items()):
        raise WrongReply(f"afterwards: {replies}")


def check_tasks_left(client: AsyncClient) -> None:
    """No task waits for the client any more: what is left of them?"""
    if client._open != set(client._shared):
        left = [vars(each) for each in client._open.symmetric_difference(client._shared)]
        raise Leak(f"open or shared, and not both: {left}")
    for server in client._servers.all:
        shared = [connection for connection in client._shared if connection.server is server]
        if len(shared) > client._settings.max_connections:
            raise Leak(f"{len(shared)} connections to {server.name}")
    for connection in client._shared:
        exchange = connection.exchange
        roles = connection._opening or connection.sending or connection.reading
        waiting = [r for r in (*exchange._due, *exchange._queue) if not r.abandoned or r.waiter]
        if roles or connection.heir or connection._scopes or connection._reader or waiting:
            raise Leak(f"somebody has a role or waits: {vars(connection)}")
        if exchange.wanted or exchange._queue or exchange.load != len(exchange._due):
            raise Leak(f"counted wrong: {exchange.load}, {exchange.wanted}, {exchange._due}")
        if connection.closed or exchange.fault is not None or connection._rest:
            raise Leak(f"shared, and of no use: {vars(connection)}")


# Threads ---------------------------------------------------------------------------


class Interrupt(KeyboardInterrupt):
    """Ctrl-C, in whatever thread."""


class _Thread:
    def __init__(self, function: Callable[[], None], interrupt_at: float) -> None:
        self.function = function
        self.interrupt_at = interrupt_at
        self.gate = threading.Lock()
        self.gate.acquire()
        self.due: Callable[[], float] = lambda: -math.inf
        self.deadline = math.inf

    def wakes_at(self) -> float:
        return min(self.due(), self.deadline, self.interrupt_at)


class World:
    """Threads that run one at a time, in simulated time.

    One runs until it waits. Then one of those whose time has come goes on, at
    random; if there are none, time jumps to when there is one.

    Attributes:
        now: seconds.
    """

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self._random = random.Random(seed)
        self._parked: list[_Thread] = []
        self._current: _Thread | None = None
        self._failures: list[BaseException] = []
        self._stuck = False
        self._all_done = threading.Lock()
        self._all_done.acquire()

    def start(self, function: Callable[[], None], interrupt_at: float = math.inf) -> None:
        """Have a function run by a thread of its own; it may be interrupted as it waits."""
        self._parked.append(_Thread(function, interrupt_at))

    def run(self) -> None:
        """Until all threads are done; raise what one raised."""
        threads = [
            threading.Thread(target=self._run, args=(thread,), daemon=True)
            for thread in self._parked
        ]
        for thread in threads:
            thread.start()
        self._go_on()
        # Only a thread that waits for something real, which is a bug, lets this fail.
        if not self._all_done.acquire(timeout=30):
            raise Hang("a thread blocks")
        for thread in threads:
            thread.join()
        if self._failures:
            raise self._failures[0]

    def wait(self, due: Callable[[], float], deadline: float = math.inf) -> None:
        """Until one of the two times has come; the first may change meanwhile."""
        thread = self._current
        assert thread is not None
        thread.due, thread.deadline = due, deadline
        self._parked.append(thread)
        self._go_on()
        thread.gate.acquire()
        if self._stuck:
            raise Hang("all threads wait for ever")
        if thread.interrupt_at <= self.now:
            thread.interrupt_at = math.inf
            raise Interrupt

    def sleep(self, seconds: float) -> None:
        self.wait(lambda: math.inf, self.now + seconds)

    def _go_on(self) -> None:
        times = [thread.wakes_at() for thread in self._parked]
        first = min(times)
        if first == math.inf:
            self._stuck = True
        else:
            self.now = max(self.now, first)
        ready = [
            thread
            for thread, time in zip(self._parked, times, strict=True)
            if time <= self.now or self._stuck
        ]
        chosen = self._random.choice(ready)
        self._parked.remove(chosen)
        self._current = chosen
        chosen.gate.release()

    def _run(self, thread: _Thread) -> None:
        thread.gate.acquire()
        try:
            thread.function()
        except BaseException as error:  # for who called run()
            self._failures.append(error)
        if self._parked:
            self._go_on()
        else:
            self._all_done.release()


class _Ticket:
    at = math.inf  # when the wait is over


class SimulatedCondition:
    """In place of a ``threading.Condition``."""

    def __init__(self, lock: threading.RLock, world: World) -> None:
        self._lock = lock
        self._world = world
        self._waiters: deque[_Ticket] = deque()

    def wait(self, timeout: float) -> None:
        ticket = _Ticket()
        self._waiters.append(ticket)
        self._lock.release()
        try:
            self._world.wait(lambda: ticket.at, self._world.now + timeout)
        finally:
            self._lock.acquire()
            if ticket in self._waiters:
                self._waiters.remove(ticket)

    def notify(self, n: int = 1) -> None:
        for _ in range(min(n, len(self._waiters))):
            self._waiters.popleft().at = -math.inf

    def notify_all(self) -> None:
        self.notify(len(self._waiters))


class SimulatedEvent:
    """In place of a ``threading.Event``."""

    def __init__(self, world: World) -> None:
        self._at = math.inf
        self._world = world

    def set(self) -> None:
        self._at = -math.inf

    def wait(self, timeout: float) -> None:
        self._world.wait(lambda: self._at, self._world.now + timeout)


class SimulatedStream:
    """What ``Client`` wants of a transport, in a world's time."""

    def __init__(self, connection: FakeConnection, line: Line, world: World) -> None:
        self._connection = connection
        self._line = line
        self._world = world
        self._aborted = False

    def send(self, data: bytes | memoryview, timeout: float | None) -> int:
        data = bytes(data)
        deadline = self._deadline(timeout)
        self._wait(self._connection.writable_at, deadline)
        if self._aborted:
            raise BrokenPipeError(32, "Broken pipe")
        if taken := self._connection.receive_some(data):
            return taken
        self._wait(self._connection.writable_at, deadline)
        self._connection.receive(data)
        return len(data)

    def receive(self, timeout: float | None) -> bytes:
        self._wait(self._connection.readable_at, self._deadline(timeout))
        data = self._connection.take(64 * 1024)
        assert data is not None
        self._line.sent += data
        return data

    def readable(self) -> bool:
        self._world.wait(lambda: -math.inf)  # a system call: others may run meanwhile
        return self._connection.readable_at() <= self._world.now

    def abort(self) -> None:
        self._aborted = True
        self._connection.close()

    def close(self) -> None:
        self._connection.close()

    def _deadline(self, timeout: float | None) -> float:
        return math.inf if timeout is None else self._world.now + timeout

    def _wait(self, due: Callable[[], float], deadline: float) -> None:
        self._world.wait(lambda: -math.inf if self._aborted else due(), deadline)
        if not self._aborted and due() > self._world.now:
            raise TimeoutError


class ThreadService(FakeService):
    """``FakeServer`` by simulated streams."""

    def __init__(self, plan: Plan, world: World) -> None:
        super().__init__(plan)
        self._world = world

    def connect(self, address: Address, timeout: float | None) -> SimulatedStream:
        world = self._world
        at = world.now + self._script.connect()
        world.wait(lambda: at, math.inf if timeout is None else world.now + timeout)
        if at > world.now:
            raise TimeoutError
        connection = self._server._admit(address, lambda: world.now)
        self.lines.append(line := Line(connection.requests))
        return SimulatedStream(connection, line, world)


def play_threads(plan: Plan) -> list[Outcome]:
    """Play a plan with ``Client`` and check all guarantees."""
    world = World(plan.number)
    outcomes: list[Outcome] = []
    with pytest.MonkeyPatch.context() as patch:
        for module in (nbclient.sync, nbclient.sync_connection):
            patch.setattr(module, "time", SimpleNamespace(monotonic=lambda: world.now))
        service = ThreadService(plan, world)
        client = Client(connect=service.connect, **plan.options)
        patch.setattr(client, "_freed", SimulatedCondition(client._lock, world))
        patch.setattr(client, "_closing", SimulatedEvent(world))
        try:
            for call in plan.calls:
                interrupt_at = call.start + call.cancel
                world.start(partial(_call_thread, client, call, world, outcomes), interrupt_at)
            for event in plan.events:
                world.start(partial(_event_thread, client, service, world, event))
            world.run()
            if world.now > LONG:
                raise Hang(f"it took {world.now} s")
            check(plan, outcomes, service.lines)
            check_threads_left(client, service)
            service.heal()
            if not client._closed:
                for n in range(2 * client._settings.max_connections):
                    world.start(partial(_again_thread, client, world, b"again %d" % n))
                world.run()
        finally:
            client.close()
        if left := service.open():
            raise Leak(f"{left} streams are open although the client is closed")
    return outcomes


def _call_thread(client: Client, call: Call, world: World, outcomes: list[Outcome]) -> None:
    outcome = Outcome(call, call.start)
    try:
        world.sleep(call.start)
        outcomes.append(outcome)
        if call.many:
            _many_thread(client, call, world, outcome)
        else:
            reply = client.request(
                call.payloads[0], idempotent=call.idempotent, timeout=call.timeout
            )
            outcome.replies.append(reply)
    except Interrupt:
        outcome.cancelled = True
    except NbclientError as error:
        outcome.error = error
        idle = any(client._idle.values())
        if isinstance(error, PoolTimeout) and (
            idle or len(client._open) < client._settings.max_connections
        ):
            raise Leak("a timeout of the pool, in which there is room") from error
    finally:
        outcome.ended = world.now


def _many_thread(client: Client, call: Call, world: World, outcome: Outcome) -> None:
    def slowly() -> Iterator[bytes]:
        for payload in call.payloads:
            world.sleep(TICK)
            outcome.asked += TICK
            yield payload

    payloads = slowly() if call.idempotent else call.payloads
    with contextlib.closing(client.request_many(payloads, window=call.window)) as replies:
        outcome.asked = world.now
        try:
            for reply in replies:
                outcome.waited(world.now)
                outcome.replies.append(reply)
                if len(outcome.replies) == call.leave:
                    return
                world.sleep(call.pause)
                outcome.asked = world.now
        except NbclientError:
            outcome.waited(world.now)
            raise


def _event_thread(
    client: Client, service: ThreadService, world: World, event: tuple[float, str, bytes]
) -> None:
    when, what, data = event
    world.sleep(when)
    if what == "close":
        client.close()
    else:
        service.act(what, data)


def _again_thread(client: Client, world: World, payload: bytes) -> None:
    world.sleep(LONG)  # whoever was ejected is probed again
    reply = client.request(payload)
    if reply != payload[::-1]:
        raise WrongReply(f"afterwards: {reply!r} for {payload!r}")


def check_threads_left(client: Client, service: ThreadService) -> None:
    """No thread uses the client any more: what is left of them?"""
    idle = [connection for stack in client._idle.values() for connection in stack]
    if set(client._open) != set(idle) or len(idle) > client._settings.max_connections:
        raise Leak(f"open and not idle, or too many: {client._open}, {idle}")
    if client._waiting:
        raise Leak("a thread counts as waiting")
    if not all(connection.in_step for connection in idle):
        raise Leak("a connection was kept that is not as it should be")
    if service.open() != len(idle):
        raise Leak(f"{service.open()} streams are open, and {len(idle)} connections are kept")


# Playing ---------------------------------------------------------------------------


def play(ground: Ground, plan: Plan) -> list[Outcome]:
    """Play a plan; whatever comes of it depends on its number alone."""
    random.seed(plan.number)  # of the back-off
    if ground == "threads":
        return play_threads(plan)
    with pytest.MonkeyPatch.context() as patch:
        # Who comes first among tasks that can go on is as random as the plan, too.
        patch.setattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
        trio._core._run._r.seed(plan.number)
        clock = MockClock(autojump_threshold=0)
        return trio.run(play_tasks, plan, SERVICES[ground], clock=clock)


def play_all(ground: Ground, kind: Kind, numbers: range) -> Counter[str]:
    """How often each end of a call came of these plans."""
    ends: Counter[str] = Counter()
    for number in numbers:
        plan = make_plan(number, kind, ground)
        try:
            ends.update(outcome.name for outcome in play(ground, plan))
        except BaseException as error:
            error.add_note(f"in the plan {number}, {kind}, on {ground}: {plan}")
            raise
    return ends


ENDS: Final = {
    "reply",
    "cancelled",
    "RequestTimeout",
    "ConnectTimeout",
    "ConnectError",
    "ConnectionLost",
    "RemoteProtocolError",
    "ClosedError",
}


@pytest.mark.parametrize("ground", GROUNDS)
def test_an_honest_server_whatever_breaks(ground: Ground) -> None:
    ends = play_all(ground, "honest", range(60))
    # The plans are worth something: calls end in every way there is.
    assert set(ends) >= ENDS | ({"PoolTimeout"} if ground == "threads" else set())
    assert ends["reply"] > ends.total() / 4


@pytest.mark.parametrize("ground", GROUNDS)
def test_a_lie_stays_on_its_connection(ground: Ground) -> None:
    assert play_all(ground, "lying", range(30))["reply"]


# Not on lockstep streams: nothing is there before somebody reads it.
BUFFERED: Final = [ground for ground in GROUNDS if ground != "lockstep"]


@pytest.mark.parametrize("ground", BUFFERED)
def test_what_comes_at_rest_is_no_reply(ground: Ground) -> None:
    assert play_all(ground, "at rest", range(30))["reply"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ground", GROUNDS)
def test_ten_thousand_plans(ground: Ground) -> None:
    print(ground, dict(play_all(ground, "honest", range(10_000))))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("ground", "kind"),
    [(ground, "lying") for ground in GROUNDS] + [(ground, "at rest") for ground in BUFFERED],
)
def test_two_thousand_lying_plans(ground: Ground, kind: Kind) -> None:
    print(ground, kind, dict(play_all(ground, kind, range(2000))))


# Whether the plans have teeth: what is broken on purpose is found ------------------


def _kept_after_a_cancelled_send(patch: pytest.MonkeyPatch) -> None:
    def cut_off(self: Connection, scope: trio.CancelScope) -> None:
        if scope.cancel_called:
            self._expire()

    patch.setattr(Connection, "_cut_off", cut_off)


def _not_looked_at(patch: pytest.MonkeyPatch) -> None:
    async def look(_: Connection) -> None:
        await trio.lowlevel.checkpoint()

    patch.setattr(Connection, "_look", look)


def _never_readable(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SimulatedStream, "readable", lambda _: False)


def _nothing_handed_on(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Connection, "_hand_on", lambda _: None)


def _slot_kept(patch: pytest.MonkeyPatch) -> None:
    def discard(self: Client, connection: Any) -> None:
        self._close(connection)

    patch.setattr(Client, "_discard", discard)


def _always_repeated(patch: pytest.MonkeyPatch) -> None:
    pause = Attempts.pause

    def repeat(self: Attempts, error: NbclientError, now: float) -> float | None:
        self._idempotent = True
        return pause(self, error, now)

    patch.setattr(Attempts, "pause", repeat)


def _said_to_be_unsent(patch: pytest.MonkeyPatch) -> None:
    failure = Ledger.failure
    patch.setattr(Ledger, "failure", lambda self, **_: failure(self, maybe_executed=False))


# Most are found among the first fifty plans; what takes more, from here on.
LATE: Final[dict[Callable[[pytest.MonkeyPatch], None], int]] = {_kept_after_a_cancelled_send: 350}


@pytest.mark.parametrize(
    ("ground", "kind", "breaks", "found"),
    [
        ("threads", "honest", kept_after_a_timeout, WrongReply),
        ("threads", "at rest", _never_readable, WrongReply),
        ("threads", "honest", _slot_kept, Leak),
        ("threads", "honest", _always_repeated, Untruth),
        ("threads", "honest", _said_to_be_unsent, Untruth),
        ("kit", "honest", forgotten_when_abandoned, WrongReply),
        ("sockets", "honest", forgotten_when_abandoned, WrongReply),
        ("memory", "honest", _kept_after_a_cancelled_send, WrongReply),
        ("kit", "at rest", _not_looked_at, WrongReply),
        ("sockets", "at rest", _not_looked_at, WrongReply),
        ("kit", "honest", _nothing_handed_on, Hang),
        ("lockstep", "honest", _always_repeated, Untruth),
        ("memory", "honest", _said_to_be_unsent, Untruth),
    ],
)
def test_the_plans_have_teeth(
    ground: Ground,
    kind: Kind,
    breaks: Callable[[pytest.MonkeyPatch], None],
    found: type[AssertionError],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        breaks(patch)
        first = LATE.get(breaks, 0)
        for number in range(first, first + 1000):
            # What else goes wrong besides is no matter here.
            with contextlib.suppress(Exception):
                if not _survives(ground, make_plan(number, kind, ground), found):
                    return
    pytest.fail("nothing was found")


def _survives(ground: Ground, plan: Plan, found: type[AssertionError]) -> bool:
    try:
        play(ground, plan)
    except found:
        return False
    except BaseExceptionGroup as group:
        return group.subgroup(found) is None
    return True

"""A world in memory for the real engine: sockets, poller, clock and control.

Time is whole nanoseconds and passes only while the poller waits, so a run takes
no real time and every latency in it is exact. The poller is level-triggered,
descriptors are reused lowest first as by the kernel, and every misuse (closing
twice, closing what is still registered, using what is closed) fails the test.

A server is a function that is called for each whole request with its number on
that connection, from 1 on; what it says arrives a round trip of ``LATENCY``
after it is said.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from loadgen.engine import Engine
from loadgen.plan import Plan
from loadgen.schedule import Schedule
from loadgen.tally import Counts, Mismatch, Phase, Snapshot
from loadgen.traffic import Message, Pool, reversed_text
from nbnet.pollers import ERROR, READ, WRITE

MS = 1_000_000
LATENCY = 1 * MS
ROOM_AFTER = 3 * LATENCY // 2

Server = Callable[["FakeSocket", int], None]


def os_error(code: int) -> OSError:
    """What a system call raises for an errno."""
    return OSError(code, os.strerror(code))


class FakeSocket:
    """The engine's end of a connection.

    Attributes:
        room: bytes that the kernel takes before it refuses; it takes as many
            again ``ROOM_AFTER`` it was used up. None is no bound.
        send_error: what every send raises.
        received: what the server got, in ``requests_received`` whole requests, the
            last of which is ``last_request``.
        held: what the server keeps back.
    """

    def __init__(self, world: World, server: Server) -> None:
        self.world = world
        self.fd = world.allocate(self)
        self.room: int | None = None
        self.send_error: OSError | None = None
        self.received = bytearray()
        self.connected = False
        self.steps = 0  # of the handshake
        self.checked = False  # whether the engine has looked what became of it
        self.connect_error = 0
        self.hung_up = False
        self.closed = False
        self.inbox: deque[bytes | OSError] = deque()  # b"" is the end of input
        self._parsed = 0  # bytes of requests dealt with
        self._server = server
        self.requests_received = 0
        self.last_request = b""
        self.held = b""
        self._left = 0  # of the room

    # What the server does.

    def say(self, *pieces: bytes, after: int = LATENCY) -> None:
        """Have each piece arrive, to be read by itself."""
        self.world.at(self.world.now + after, lambda: self._arrive(*pieces))

    def close_by_server(self, *, after: int = LATENCY) -> None:
        """End the stream after what was said."""
        self.world.at(self.world.now + after, lambda: self._arrive(b""))

    def reset_by_server(self, *, after: int = LATENCY) -> None:
        """Reset the connection: reading and sending fail from then on."""

        def reset() -> None:
            self.hung_up = True
            self.send_error = os_error(errno.ECONNRESET)
            self._arrive(os_error(errno.ECONNRESET))

        self.world.at(self.world.now + after, reset)

    def limit_room(self, room: int, *, full: bool = False) -> None:
        """Have the kernel take only so many bytes at a time; at first none if it is full."""
        self.room = room
        self._left = 0 if full else room
        if full:
            self.world.at(self.world.now + ROOM_AFTER, self._make_room)

    def _arrive(self, *pieces: bytes | OSError) -> None:
        if not self.closed:
            self.inbox.extend(pieces)

    # What the engine calls.

    def fileno(self) -> int:
        return self.fd

    def check_connected(self) -> None:
        assert not self.closed
        self.checked = True
        if self.connect_error:
            raise os_error(self.connect_error)

    def recv(self, size: int, /) -> bytes:
        assert not self.closed
        self.world.calls.append(("recv", self.fd))
        if not self.inbox:
            raise BlockingIOError(errno.EAGAIN, "")
        piece = self.inbox[0]
        if isinstance(piece, OSError):
            raise piece
        if piece:  # the end stays the end
            self.inbox.popleft()
            if piece[size:]:
                self.inbox.appendleft(piece[size:])
        return piece[:size]

    def send(self, data: bytes | memoryview, /) -> int:
        assert not self.closed
        self.world.calls.append(("send", self.fd))
        if self.send_error is not None:
            raise self.send_error
        self.world.sent_at.append(self.world.now)
        if self.room is None:
            taken = bytes(data)
        elif not self._left:
            raise BlockingIOError(errno.EAGAIN, "")
        else:
            taken = bytes(data[: self._left])
            self._left -= len(taken)
            if not self._left:
                self.world.at(self.world.now + ROOM_AFTER, self._make_room)
        self.received += taken
        while (size := self._whole_request()) is not None:
            self.last_request = bytes(self.received[self._parsed : self._parsed + size])
            self._parsed += size
            self.requests_received += 1
            self._server(self, self.requests_received)
        return len(taken)

    def _whole_request(self) -> int | None:
        """The size of the next frame in what was received, if it is all there."""
        header = self.received[self._parsed : self._parsed + 5]
        if len(header) < 5:
            return None
        size = 5 + int(header)
        return size if len(self.received) >= self._parsed + size else None

    def _make_room(self) -> None:
        self._left = self.room or 0

    def close(self) -> None:
        assert not self.closed, "closed twice"
        assert self.fd not in self.world.interest, "closed while registered"
        self.world.calls.append(("close", self.fd))
        self.closed = True
        self.world.free(self.fd)

    def ready(self) -> int:
        """The events that a poller would report."""
        if self.connect_error:
            return WRITE | ERROR
        if not self.connected:
            return 0
        if self.hung_up and self.inbox and isinstance(self.inbox[0], OSError):
            return ERROR  # there is nothing to read
        mask = READ if self.inbox else 0
        if self.room is None or self._left or not self.checked:
            mask |= WRITE
        return mask | (ERROR if self.hung_up else 0)


class Control:
    """The word to start, which is there at once unless it is taken away, and to stop."""

    def __init__(self, world: World) -> None:
        self.is_set = False
        self.start: int | None = 0
        self._fd = world.allocate(self)

    def ready(self) -> int:
        return READ if self.is_set or self.start is not None else 0

    def fileno(self) -> int:
        return self._fd

    def read(self) -> int | None:
        start, self.start = self.start, None
        return None if self.is_set else start


class World:
    """The network, the poller and the clock.

    Args:
        message: what is sent and expected.
        server: what all connections reach, if they are not dialled otherwise.

    Attributes:
        dials: what the next dials do, one each: raise an error, or prepare the
            socket that is given.
        dial_takes: how long the call itself takes.
        connect_takes: how long until a connection is made.
        handshake: events that a connection waits for, one after the other, before
            it is made.
        stamps_waits: if not None, how long the kernel says replies have waited.
        oversleeps: how much longer than asked a wait takes.
        sent_at: when something was sent.
        injected: events that the next poll reports before the real ones.
        sockets: every socket dialled.
        calls: every read, send, close and poll, in order, by descriptor.
    """

    def __init__(self, message: Message | None = None, server: Server | None = None) -> None:
        self.message = message or reversed_text(b"abc")
        self.server = server or honest
        self.now = 0
        self.dials: deque[OSError | Callable[[FakeSocket], None]] = deque()
        self.dial_takes = 0
        self.connect_takes = LATENCY
        self.handshake: list[int] = []
        self.stamps_waits: int | None = None
        self.oversleeps = 0
        self.sent_at: list[int] = []
        self.injected: list[tuple[int, int]] = []
        self.interest: dict[int, int] = {}
        self.open: dict[int, FakeSocket | Control] = {}
        self.sockets: list[FakeSocket] = []
        self.calls: list[tuple[str, int]] = []
        self.timeline: list[tuple[int, int, Callable[[], None]]] = []
        self._serial = itertools.count()
        self._polled_at = (0, 0)  # how often without time passing
        self.read_size = 0
        self.control = Control(self)
        self.control_fd = self.control.fileno()

    def allocate(self, thing: FakeSocket | Control) -> int:
        fd = next(fd for fd in itertools.count(3) if fd not in self.open)
        self.open[fd] = thing
        return fd

    def free(self, fd: int) -> None:
        del self.open[fd]

    def at(self, time: int, action: Callable[[], None]) -> None:
        """Have something happen, at the earliest when the poller next waits."""
        heapq.heappush(self.timeline, (time, next(self._serial), action))

    def stop(self) -> None:
        """Tell the engine to stop."""
        self.control.is_set = True

    # What the engine is given.

    def clock(self) -> int:
        return self.now

    def dial(self) -> FakeSocket:
        self.now += self.dial_takes
        prepare = self.dials.popleft() if self.dials else connects
        if isinstance(prepare, OSError):
            raise prepare
        socket = FakeSocket(self, self.server)
        self.sockets.append(socket)
        prepare(socket)
        return socket

    def advance(self, socket: FakeSocket) -> tuple[FakeSocket, int]:
        socket.check_connected()
        step, socket.steps = socket.steps, socket.steps + 1
        if step:
            assert socket.inbox.popleft() == b"a part of a handshake"
        if step == len(self.handshake):
            return socket, 0
        socket.inbox.append(b"a part of a handshake")
        return socket, self.handshake[step]

    def stamped(self, socket: FakeSocket) -> Callable[[int], tuple[bytes, int]] | None:
        waited = self.stamps_waits
        return None if waited is None else lambda size: (socket.recv(size), waited)

    def register(self, fd: int, eventmask: int, /) -> None:
        assert fd in self.open
        assert fd not in self.interest, "registered twice"
        self.interest[fd] = eventmask

    def modify(self, fd: int, eventmask: int, /) -> None:
        assert fd in self.interest, "modified without being registered"
        self.interest[fd] = eventmask

    def unregister(self, fd: int, /) -> None:
        del self.interest[fd]

    def close(self) -> None:
        raise AssertionError("the engine does not own the poller")

    def poll(self, timeout: float, maxevents: int, /) -> list[tuple[int, int]]:
        assert timeout >= 0, "waits for ever"
        self.calls.append(("poll", -1))
        events = self._poll(timeout)[:maxevents]
        if not timeout and not events:
            self.now += 1000  # what the call itself takes
        return events

    def wait(self, seconds: float) -> bool:
        """Wait as ``poll`` does, and leave the events to it."""
        assert seconds > 0, "nothing to wait for"
        self.calls.append(("wait", -1))
        events = self._poll(seconds)
        self.now += 0 if events else self.oversleeps
        # The real ones are there at the next look too.
        self.injected = [event for event in events if event not in self._ready()]
        return bool(events)

    def _poll(self, timeout: float) -> list[tuple[int, int]]:
        time, polls = self._polled_at
        self._polled_at = (self.now, polls + 1 if time == self.now else 0)
        assert polls < 10_000, "the engine spins"
        end = self.now + round(timeout * 1e9)
        while True:
            self._run_due()
            events, self.injected = self.injected + self._ready(), []
            if events or self.now >= end:
                return events
            self.now = min(end, self.timeline[0][0]) if self.timeline else end

    def _ready(self) -> list[tuple[int, int]]:
        events = (
            (fd, self.open[fd].ready() & (mask | ERROR)) for fd, mask in self.interest.items()
        )
        return [event for event in events if event[1]]

    def _run_due(self) -> None:
        while self.timeline and self.timeline[0][0] <= self.now:
            heapq.heappop(self.timeline)[2]()


# How connections are made. --------------------------------------------------


def connects(socket: FakeSocket) -> None:
    """The connection is made in time."""

    def connected() -> None:
        socket.connected = True

    socket.world.at(socket.world.now + socket.world.connect_takes, connected)


def never_connects(socket: FakeSocket) -> None:
    """The server does not answer at all."""


def fails_to_connect(code: int) -> Callable[[FakeSocket], None]:
    """The attempt fails some time later."""

    def prepare(socket: FakeSocket) -> None:
        def fail() -> None:
            socket.connect_error = code

        socket.world.at(socket.world.now + LATENCY, fail)

    return prepare


# How servers behave. --------------------------------------------------------


def honest(socket: FakeSocket, _number: int) -> None:
    """Every reply is right and comes in one piece."""
    socket.say(socket.world.message.expected)


def silent(_socket: FakeSocket, _number: int) -> None:
    """Nothing is ever answered."""


def only_at(number: int, act: Callable[[FakeSocket], None]) -> Server:
    """Honest, but for one request of each connection."""

    def serve(socket: FakeSocket, request: int) -> None:
        if request == number:
            act(socket)
        else:
            honest(socket, request)

    return serve


# Running the engine. --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run reported: the snapshots, and their sum."""

    snapshots: list[Snapshot]
    counts: Counts
    mismatches: list[Mismatch]

    @property
    def elapsed(self) -> float:
        return self.snapshots[-1].elapsed


def run(
    world: World,
    *,
    schedule: Schedule | None = None,
    connections: int = 1,
    duration: float = 0.01,
    grace: float = 0.1,
    connect_timeout: float = 1.0,
    reconnect: bool = False,
    messages: Sequence[Message] = (),
    **options: Any,
) -> Outcome:
    """Run the real engine, and check what has to hold after any run.

    Args:
        schedule: when to send; made from the plan if that has a rate.
        messages: what to send in turn, if it is not always the same.
        options: of the plan, see there.
    """
    plan = Plan(
        connections=connections,
        duration=duration,
        grace=grace,
        connect_timeout=connect_timeout,
        reconnect=reconnect,
        **options,
    )
    snapshots: list[Snapshot] = []
    pool = Pool(messages or [world.message])
    if schedule is None and plan.is_open_loop:
        schedule = Schedule(plan.schedule_stages, poisson=plan.poisson, seed=plan.seed)
    engine = Engine(
        plan,
        pool,
        schedule,
        dialer=world,
        poller=world,
        wait=world.wait,
        clock=world.clock,
        cpu_clock=lambda: world.now // 4,
        control=world.control,
        emit=snapshots.append,
    )
    engine.run()

    counts = Counts()
    for snapshot in snapshots:
        counts.add(snapshot.counts)
    assert counts.sent == counts.verified + counts.wrong + counts.failed + counts.timed_out
    assert counts.verified == counts.latency.total()
    assert not counts.service or counts.service.total() == counts.verified
    assert counts.held + counts.reconnected == counts.connect.total()
    assert min(1, counts.verified) <= counts.served <= counts.held + counts.reconnected
    if not plan.warmup:
        assert counts.sent_bytes == pool.sent_bytes(counts.sent)
        whole = sum(socket.requests_received for socket in world.sockets)
        assert whole <= counts.sent <= whole + len(world.sockets) * plan.pipeline
        if not pool.any_reply and len({len(message.expected) for message in pool.messages}) == 1:
            assert counts.received_bytes == counts.verified * pool.received_bytes(1)
    if not world.control.is_set:
        assert counts.held + counts.failed_to_connect == connections
    assert all(socket.closed for socket in world.sockets)
    assert not world.interest, "something is still registered"
    assert [snapshot.phase for snapshot in snapshots].index(Phase.DONE) == len(snapshots) - 1
    times = [snapshot.elapsed for snapshot in snapshots]
    assert times == sorted(times)
    return Outcome(
        snapshots, counts, [each for snapshot in snapshots for each in snapshot.mismatches]
    )

"""The load loop of one process: connect, send, verify, record.

Closed loop: every connection has one request in flight and sends the next one
as soon as the reply is verified. The engine touches the outside only through
what it is given: a way to dial, a poller, a clock, a control descriptor and a
place for its snapshots; so a simulation can run this code as it stands.

The rules:

* every reply is compared byte for byte with the expected one, however the
  stream was cut; a connection that answers wrongly is out of step and closed;
* the fast path of ``_measure`` costs a read, a look at the clock and a send,
  and counts nothing else: the rest follows from the latencies it collects;
* nothing a server does keeps the engine longer than its deadlines.

Three phases follow each other: ``_connect``, ``_measure``, ``_drain``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any, Final, Protocol

from loadgen.histogram import bucket_indices
from loadgen.plan import Plan
from loadgen.tally import MISMATCHES_KEPT, Counts, Mismatch, Phase, Snapshot
from loadgen.traffic import Message
from nbnet.pollers import ERROR, READ, WRITE, Poller

MAX_EVENTS: Final = 8192
"""Events taken in one batch."""
READ_SIZE: Final = 64 * 1024
"""Bytes asked of the kernel at most in one read."""
CONNECTING_AT_ONCE: Final = 512
"""Connections begun and not made yet: well under a usual backlog, which would
drop what is over it and make the kernel wait a second before it tries again."""
FOLD_AT: Final = 500
"""Latencies collected before they are counted, after the batch in which it comes
to so many; counting them takes about as long as ten requests."""
SNAPSHOT_EVERY: Final = 250_000_000
"""Nanoseconds between snapshots."""

SURPLUS_WAIT: Final = 20_000_000
"""Nanoseconds, beside the longest latency, in which replies that nobody asked
for may come after the last one that was."""


class Socket(Protocol):
    """What the engine needs of a connecting or connected, non-blocking socket."""

    def recv(self, size: int, /) -> bytes: ...
    def send(self, data: bytes | memoryview, /) -> int: ...
    def close(self) -> None: ...
    def fileno(self) -> int: ...


class _Connection:
    """A connection of the load.

    ``since`` is when its request was sent or, before any, its making begun;
    ``matched`` bytes of the reply are verified so far; ``rest`` is what the
    kernel has not taken of the request; ``partial`` says that one of the two is
    not nought, so that the next read is not simply a whole reply.
    """

    __slots__ = (
        "ended",
        "fd",
        "in_flight",
        "matched",
        "number",
        "partial",
        "recv",
        "rest",
        "send",
        "since",
        "socket",
    )

    def __init__(self, socket: Socket, number: int, now: int) -> None:
        self.socket = socket
        self.number = number
        self.fd = socket.fileno()
        self.recv = socket.recv
        self.send = socket.send
        self.since = now
        self.matched = 0
        self.rest = b""
        self.partial = False
        self.in_flight = False
        self.ended = False


class Engine:
    """Runs one plan against one server.

    Args:
        plan: what to do.
        message: the request to send and the reply to expect.
        dial: begins a connection and gives its non-blocking socket; raises
            ``OSError`` when the kernel refuses at once.
        connect_error: the errno of a connection that was begun and has become
            writable; 0 if it is made.
        poller: what waits for events; the engine does not close it.
        clock: monotonic nanoseconds.
        cpu_clock: nanoseconds of processor time used by this process.
        control: a descriptor that becomes readable when the run is to stop.
        emit: takes the snapshots, several a second; the last is ``DONE``.
    """

    def __init__(
        self,
        plan: Plan,
        message: Message,
        *,
        dial: Callable[[], Socket],
        connect_error: Callable[[Any], int],
        poller: Poller,
        clock: Callable[[], int],
        cpu_clock: Callable[[], int],
        control: int,
        emit: Callable[[Snapshot], None],
    ) -> None:
        self._plan = plan
        self._message = message
        self._dial = dial
        self._connect_error = connect_error
        self._poller = poller
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._control = control
        self._emit = emit
        self._connections: dict[int, _Connection] = {}
        self._ended: list[_Connection] = []  # to be closed after the batch
        self._phase = Phase.CONNECTING
        self._stopped = False  # by the control descriptor
        self._sending = False  # whether a verified reply is followed by a request
        self._counts = Counts()
        self._mismatches: list[Mismatch] = []
        self._mismatches_kept = 0
        self._latencies: list[int] = []
        self._started = 0  # when measuring began
        self._until = 0  # up to when the next snapshot counts, as planned
        self._elapsed = 0.0  # seconds measured, once that is over
        self._slowest = 0  # the longest latency
        self._awaited = 0  # replies still to come while draining

    def run(self) -> None:
        """Connect, measure for the plan's duration, wait for late replies; report all along."""
        self._poller.register(self._control, READ)
        try:
            self._connect()
            if self._connections and not self._stopped:
                self._measure()
                self._drain()
        finally:
            self._phase = Phase.DONE
            for connection in self._connections.values():
                self._close(connection)
            self._connections.clear()
            if not self._stopped:
                self._poller.unregister(self._control)
        self._report(self._elapsed)

    # Connecting --------------------------------------------------------------

    def _connect(self) -> None:
        """Open the plan's connections, a few hundred at a time."""
        plan, clock, poller = self._plan, self._clock, self._poller
        deadline = clock() + int(plan.connect_timeout * 1e9)
        next_report = clock() + SNAPSHOT_EVERY
        begun: dict[int, _Connection] = {}
        asked = 0
        while (asked < plan.connections or begun) and not self._stopped:
            while asked < plan.connections and len(begun) < CONNECTING_AT_ONCE:
                asked += 1
                begun_at = clock()
                try:
                    connection = _Connection(self._dial(), asked, begun_at)
                except OSError as error:
                    self._fail_to_connect(error.errno)
                    continue
                begun[connection.fd] = connection
                poller.register(connection.fd, WRITE)
            now = clock()
            if now >= deadline:
                break
            if now >= next_report:
                next_report = now + SNAPSHOT_EVERY
                self._report(0.0)
            wait = min(deadline, next_report) - now
            for fd, _ in poller.poll(wait / 1e9, MAX_EVENTS):
                if fd in begun:
                    self._finish_connecting(begun.pop(fd))
                else:
                    self._handle(fd, READ)
            self._close_ended()
        for connection in begun.values():
            self._close(connection)
        if not self._stopped:
            # Not made, or not even begun, within the time that all of them had.
            for _ in range(len(begun) + plan.connections - asked):
                self._fail_to_connect(errno.ETIMEDOUT)

    def _finish_connecting(self, connection: _Connection) -> None:
        error = self._connect_error(connection.socket)
        if error:
            self._fail_to_connect(error)
            self._close(connection)
            return
        self._counts.held += 1
        self._counts.connect.update(bucket_indices([self._clock() - connection.since]))
        self._connections[connection.fd] = connection
        self._poller.modify(connection.fd, READ)

    def _fail_to_connect(self, code: int | None) -> None:
        self._counts.failed_to_connect += 1
        self._counts.errors[f"connect: {os.strerror(code or 0)}"] += 1

    # Measuring ---------------------------------------------------------------

    def _measure(self) -> None:
        """Send and verify until the time is over, the control says so, or no connection is left."""
        clock, poll, get = self._clock, self._poller.poll, self._connections.get
        frame, expected = self._message
        frame_size = len(frame)
        # One byte more than expected, to see what a server sends too much.
        read_size = min(len(expected) + 1, READ_SIZE)
        latencies = self._latencies
        record = latencies.append
        self._report(0.0)
        self._phase = Phase.MEASURING
        self._sending = True
        cpu_before = self._cpu_clock()
        self._started = self._until = now = clock()
        end = now + int(self._plan.duration * 1e9)
        next_report = now + SNAPSHOT_EVERY
        for each in self._connections.values():
            self._count_sent(1)
            each.in_flight = True
            each.since = clock()
            self._send(each, frame)
        self._close_ended()
        while self._connections and not self._stopped:
            now = clock()
            if now >= end:
                break
            if now >= next_report:
                self._until = next_report
                self._report((now - self._started) / 1e9)
                # After a stall (a suspended machine, say) the missed ones are left out.
                next_report += SNAPSHOT_EVERY * ((now - next_report) // SNAPSHOT_EVERY + 1)
            for fd, mask in poll((min(next_report, end) - now) / 1e9, MAX_EVENTS):
                connection = get(fd)
                if mask != READ or connection is None or connection.partial:
                    self._handle(fd, mask)
                    continue
                # Nearly every event ends up here: a reply came, the next request goes.
                try:
                    data = connection.recv(read_size)
                except BlockingIOError:
                    continue
                except OSError as error:
                    self._lose(connection, _reason(error))
                    continue
                now = clock()
                if data != expected:
                    self._compare(connection, data, now)
                    continue
                record(now - connection.since)
                connection.since = now
                try:
                    sent = connection.send(frame)
                except BlockingIOError:
                    sent = 0
                except OSError as error:
                    self._lose(connection, _reason(error))
                    continue
                if sent != frame_size:
                    self._wait_to_send(connection, frame[sent:])
            if len(latencies) >= FOLD_AT:
                self._fold()
            if self._ended:
                self._close_ended()
        now = clock()
        self._elapsed = (now - self._started) / 1e9
        self._until = min(now, end)
        self._fold()
        self._counts.cpu_seconds += (self._cpu_clock() - cpu_before) / 1e9

    def _drain(self) -> None:
        """Wait for the replies still on their way, as long as the plan allows."""
        self._phase = Phase.DRAINING
        self._sending = False
        self._awaited = sum(connection.in_flight for connection in self._connections.values())
        self._report(self._elapsed)
        deadline = self._clock() + int(self._plan.grace * 1e9)
        asked_before = self._stopped  # asked again, it does not wait
        while self._awaited and (left := deadline - self._clock()) > 0:
            if self._stopped and not asked_before:
                break
            self._handle_events(left)
        self._fold()
        self._counts.timed_out += self._awaited
        # A server that sent one reply too many shifted all that followed. As long
        # as equal requests follow each other no reply looks wrong: the surplus
        # shows only now, when one more comes as late as replies came so far.
        deadline = min(deadline, self._clock() + self._slowest + SURPLUS_WAIT)
        while self._connections and (left := deadline - self._clock()) > 0:
            if self._stopped:
                break
            self._handle_events(left)

    def _handle_events(self, wait: int) -> None:
        for fd, mask in self._poller.poll(wait / 1e9, MAX_EVENTS):
            self._handle(fd, mask)
        self._close_ended()

    # What is not common ------------------------------------------------------

    def _handle(self, fd: int, mask: int) -> None:
        """Deal with an event that the fast path does not cover."""
        connection = self._connections.get(fd)
        if connection is None:
            if fd == self._control and not self._stopped:
                self._stopped = True
                self._poller.unregister(fd)  # it stays readable
            return
        if mask & ERROR:
            # Why, the next call says, after what can still be read.
            mask |= READ
        if mask & WRITE and connection.rest:
            self._send(connection, connection.rest)
        if mask & READ and not connection.ended:
            try:
                data = connection.recv(READ_SIZE)
            except BlockingIOError:
                return
            except OSError as error:
                self._lose(connection, _reason(error))
                return
            self._compare(connection, data, self._clock())

    def _compare(self, connection: _Connection, data: bytes, now: int) -> None:
        """Check the next bytes of a reply, be they part of it, all of it or too many."""
        expected = self._message.expected if connection.in_flight else b""
        start = connection.matched
        end = start + len(data)
        if not data:
            self._lose(connection, "closed by the server")
        elif data != expected[start:end] or connection.rest:
            # Also a reply that is right, but came before its request was sent.
            self._reject(connection, expected, expected[:start] + data)
        elif end < len(expected):
            connection.matched = end
            connection.partial = True
        else:
            self._latencies.append(now - connection.since)
            connection.matched = 0
            connection.partial = False
            if self._sending:
                connection.since = now
                self._send(connection, self._message.frame)
            else:
                connection.in_flight = False
                self._awaited -= 1

    def _send(self, connection: _Connection, data: bytes) -> None:
        """Send a request or the rest of one; the kernel may take all, part or nothing."""
        try:
            sent = connection.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._lose(connection, _reason(error))
            return
        if sent != len(data):
            self._wait_to_send(connection, data[sent:])
        elif connection.rest:
            connection.rest = b""
            connection.partial = False
            self._poller.modify(connection.fd, READ)

    def _wait_to_send(self, connection: _Connection, rest: bytes) -> None:
        if not connection.rest:
            self._poller.modify(connection.fd, READ | WRITE)
        connection.rest = rest
        connection.partial = True

    def _reject(self, connection: _Connection, expected: bytes, got: bytes) -> None:
        """Count a wrong reply and give up its connection, which is out of step."""
        if connection.in_flight:
            self._counts.wrong += 1
            self._counts.errors["wrong reply"] += 1
        else:
            self._counts.errors["reply without a request"] += 1
        if self._mismatches_kept < MISMATCHES_KEPT:
            self._mismatches_kept += 1
            self._mismatches.append(Mismatch(connection.number, self._message.frame, expected, got))
        self._end(connection)

    def _lose(self, connection: _Connection, reason: str) -> None:
        """Count a connection that ended by itself, and its request."""
        if connection.ended:
            return
        if self._phase is Phase.DRAINING and not connection.in_flight:
            # It has done its work: the server may close it.
            connection.ended = True
            self._ended.append(connection)
            return
        if connection.in_flight:
            self._counts.failed += 1
        self._counts.errors[reason] += 1
        self._end(connection)

    def _end(self, connection: _Connection) -> None:
        connection.ended = True
        if connection.in_flight and not self._sending:
            self._awaited -= 1
        self._counts.lost += 1
        self._ended.append(connection)

    def _close_ended(self) -> None:
        for connection in self._ended:
            del self._connections[connection.fd]
            self._close(connection)
        self._ended.clear()

    def _close(self, connection: _Connection) -> None:
        self._poller.unregister(connection.fd)
        connection.socket.close()

    # Reporting ---------------------------------------------------------------

    def _fold(self) -> None:
        """Count the latencies collected, and what follows from their number."""
        latencies, counts = self._latencies, self._counts
        number = len(latencies)
        self._slowest = max([self._slowest, *latencies])
        counts.latency.update(bucket_indices(latencies))
        latencies.clear()
        counts.verified += number
        counts.received_bytes += number * len(self._message.expected)
        if self._sending:  # each of them was on time, and followed by the next request
            counts.on_time += number
            self._count_sent(number)

    def _count_sent(self, number: int) -> None:
        self._counts.sent += number
        self._counts.sent_bytes += number * len(self._message.frame)

    def _report(self, elapsed: float) -> None:
        """Hand out what was counted since the last time."""
        self._fold()
        counts, mismatches = self._counts, self._mismatches
        self._counts, self._mismatches = Counts(), []
        self._emit(
            Snapshot(
                phase=self._phase,
                elapsed=elapsed,
                second=max(0, self._until - self._started - 1) // 1_000_000_000,
                counts=counts,
                mismatches=mismatches,
            )
        )


def _reason(error: OSError) -> str:
    return error.strerror or str(error)

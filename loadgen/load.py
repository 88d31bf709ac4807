"""The connections of a load, and what is done with one of them.

A connection is asked (``request``), what it says is compared byte for byte with
what is expected (``receive``), and then it is free for the next request
(``release``): in a closed loop at once or after a time to think, in an open
one as soon as a request is due (``dispatch``). One that fails is counted, given
up, since it is out of step, and replaced.

Nothing is closed before the end of a batch of events (``close_ended``): a new
connection could get the same descriptor, and an event meant for the old one.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from loadgen.connection import (
    BAD_HEADER,
    EOF,
    NEVER,
    TIMEOUT,
    UNEXPECTED_BYTES,
    Connection,
    kind_of_error,
    kind_of_fault,
)
from loadgen.opening import Dialer, Opener
from loadgen.plan import Plan
from loadgen.recording import Recorder
from loadgen.schedule import Schedule
from loadgen.tally import Mismatch
from loadgen.traffic import Pool
from nbnet.framing import FrameDecoder
from nbnet.pollers import READ, WRITE, Poller

SAMPLE: Final = 50
"""One in so many connections tells when its replies reached the kernel."""
LATE: Final = 1_000_000
"""Nanoseconds after its time from which on a request counts as sent late."""
RETRY_AFTER: Final = 100_000_000
"""Nanoseconds until a connection is made again that failed without a reply: a
server that is down is not to be flooded."""
GOT_SHOWN: Final = 1024
"""Bytes of a wrong reply that are kept at most, from where it differs."""
UNSENT_TOLD: Final = 10_000
"""Of so many requests the lateness counts, evenly chosen, where the end found more
that nobody had sent."""


class Load:
    """The connections, the requests in flight on them, and when the next are due.

    Args:
        plan: what to do.
        pool: what to send and to expect.
        schedule: when to send; None in a closed loop.
        recorder: takes what is measured.
        dialer, poller, clock: the outside.

    Attributes:
        connections: those made, by descriptor.
        opener: those being made.
        in_flight: requests sent and not answered.
        due: when ``dispatch`` has something to do, in nanoseconds.
        sending: whether there are to be further requests.
        measuring: whether replacements may be made, and count.
        ended: the connections to be closed after the batch.
        is_plain: whether each reply is followed by the next request, and that is all.
        is_open_plain: whether it is an open loop, with one request in flight on a
            connection, and that is all.
        free: the connections that may take a request, once for each that they may.
        arrival: when the next request of an open loop is due; ``times`` has those
            after it, counted from ``origin``.
    """

    def __init__(
        self,
        plan: Plan,
        pool: Pool,
        schedule: Schedule | None,
        recorder: Recorder,
        *,
        dialer: Dialer,
        poller: Poller,
        clock: Callable[[], int],
    ) -> None:
        self._plan = plan
        self._pool = pool
        self._take = pool.take
        self._schedule = schedule
        self._recorder = recorder
        self._dialer = dialer
        self._poller = poller
        self._clock = clock
        self.connections: dict[int, Connection] = {}
        self.opener = Opener(dialer, poller, clock, made=self._made, failed=self._failed)
        self.ended: list[Connection] = []
        self.in_flight = 0
        self.due = NEVER
        self.sending = False
        self.measuring = False
        self._over = False  # nothing is sent any more, nor replaced
        self._taken = 0  # messages of requests that were answered or failed before ``forget``
        self._carried = (0, 0)  # bytes of those in flight then, and of their replies
        self._missing_bytes = 0  # of replies that did not come, or not as expected
        self._any_bytes = 0  # of replies of which any is right
        self.is_plain = plan.is_plain and not pool.any_reply
        self._open = schedule is not None
        self.is_open_plain = plan.is_open_plain and not pool.any_reply
        self.times: Iterator[int] = schedule.times if schedule else itertools.repeat(NEVER)
        self.arrival = NEVER  # the next one, once started
        self.origin = 0  # from where arrivals count
        self._looked = 0  # when there was last a look at what is due
        self._think = int(plan.think * 1e9)
        self._thinking: deque[tuple[int, Connection]] = deque()
        self.dispatch = self._dispatch_open if self._open else self._dispatch_closed
        """Send what is due by a moment."""
        # A connection stands here for each further request that it may take now.
        self.free: deque[Connection] = deque()
        self._bound = NEVER if plan.requests is None else plan.requests
        self._left = NEVER if plan.warmup else self._bound
        self._limit = plan.requests_per_connection or NEVER
        self._timeout = int(plan.timeout * 1e9)
        self._scanned: list[Connection] = []
        self._redials: list[tuple[int, int, bool]] = []  # a heap: when, number, whether it sends

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to be done, nor will be."""
        if not self._left and not self.in_flight:
            return True
        return not (self.connections or self.opener or self._redials)

    def start(self, now: int) -> None:
        """Begin to send."""
        self.sending = self.measuring = True
        self.origin = now
        if self._open:
            self.arrival = now + next(self.times, NEVER)
        for connection in list(self.connections.values()):
            self._grant(connection)
        self._looked = now - 1

    def stop_sending(self, end: int) -> None:
        """Send nothing more; what was due before ``end`` counts as unsent."""
        self.sending = False
        self._over = True
        counts = self._recorder.counts
        if self._schedule is not None:
            if self.arrival < end:
                unsent = min(1 + self._schedule.count(end - self.origin), self._left)
                counts.unsent += unsent
                if any(not connection.ended for connection in self.free):
                    # They have not waited for a connection, but for this loop: it stood still.
                    longest, told = end - self.arrival, min(unsent, UNSENT_TOLD)
                    self._recorder.lags.extend(
                        longest * number // told for number in range(told, 0, -1)
                    )
        elif self._plan.requests is not None:
            counts.unsent += self._left
        self.due = NEVER
        self.free.clear()
        self._thinking.clear()

    def forget(self, end: int) -> None:
        """The warm-up is over: bytes count from here on, requests in flight as if sent now.

        What was due before ``end`` and not sent is due no longer.
        """
        if self._open:
            while self.arrival < end:
                self.arrival = self.origin + next(self.times, NEVER)
            self.due = self.arrival if self.free else NEVER
        outstanding = [each for one in self.connections.values() for each in one.outstanding]
        self._taken = self._recorder.sent_in_all(self.in_flight)
        self._carried = (
            sum(len(message.frame) for message in outstanding),
            sum(len(message.expected) for message in outstanding),
        )
        self._missing_bytes = self._any_bytes = 0
        self._left = max(0, self._bound - self.in_flight)

    def time_out(self) -> None:
        """Give up waiting for the replies that have not come by the end."""
        self._recorder.counts.timed_out += self.in_flight
        if self.in_flight:
            self._recorder.counts.errors[TIMEOUT] += self.in_flight
        for connection in self.connections.values():
            if connection.in_flight and not connection.ended:
                self._drop(connection)
        self.close_ended()

    def weigh(self) -> None:
        """Count the bytes of what was sent and received: they follow from the number of requests.

        Messages are taken in turn, so that the sum of any number of them is known.
        """
        pool, counts = self._pool, self._recorder.counts
        sent, received = self._carried
        taken = self._recorder.sent_in_all(self.in_flight)
        counts.sent_bytes += pool.sent_bytes(taken) - pool.sent_bytes(self._taken) + sent
        received += pool.received_bytes(taken) - pool.received_bytes(self._taken)
        counts.received_bytes += received - self._missing_bytes + self._any_bytes

    # Connections ----------------------------------------------------------------

    def count_timed_out_connects(self, count: int) -> None:
        """Count connections that were not made in time."""
        self._recorder.counts.errors[f"connect: {TIMEOUT}"] += count
        self._recorder.counts.failed_to_connect += count

    def _made(self, connection: Connection) -> None:
        recorder = self._recorder
        recorder.connects.append(self._clock() - connection.begun)
        if self.measuring:
            recorder.counts.reconnected += 1
        else:
            recorder.counts.held += 1
        self.connections[connection.fd] = connection
        if self._pool.any_reply:
            connection.decoder = FrameDecoder(min_payload=0)
        if connection.number % SAMPLE == 1:
            self._sample(connection)
        if self.sending:
            self._grant(connection)

    def _failed(self, number: int, sends: bool, kind: str) -> None:
        self._recorder.counts.errors[f"connect: {kind}"] += 1
        if not self.measuring:
            self._recorder.counts.failed_to_connect += 1
        elif self.sending:
            self._redial_later(number, sends, self._clock() + RETRY_AFTER)

    def _sample(self, connection: Connection) -> None:
        """Have the reads of a connection tell how long replies waited for them."""
        receive = self._dialer.stamped(connection.socket)
        if receive is None:
            return
        recorder, clock = self._recorder, self._clock

        def recv(size: int, /) -> bytes:
            data, waited = receive(size)
            if waited >= 0 and connection.ready is not None and len(data) == len(connection.ready):
                recorder.waits.append(waited)
                recorder.servers.append(max(0, clock() - waited - connection.sent))
            return data

        connection.recv = recv

    def _grant(self, connection: Connection) -> None:
        """Let a new connection have its first requests."""
        if not connection.sends:
            return
        connection.granted = min(self._plan.pipeline, self._limit)
        self._hand_back(connection, connection.granted, self._clock())

    def replace(self, now: int) -> None:
        """Begin the connections that are to replace others by now."""
        while self._redials and self._redials[0][0] <= now:
            due, number, sends = heapq.heappop(self._redials)
            if not self.opener.begin(number, sends=sends):
                heapq.heappush(self._redials, (due + RETRY_AFTER, number, sends))
                return

    def _redial_later(self, number: int, sends: bool, due: int) -> None:
        heapq.heappush(self._redials, (due, number, sends))

    def expire(self, now: int, share: int) -> None:
        """Give up connections whose reply takes too long, looking at one in ``share`` of them."""
        self.opener.expire(now - self._timeout)
        if not self._scanned:
            self._scanned = list(self.connections.values())
        oldest = now - self._timeout
        for connection in self._scanned[: len(self.connections) // share + 1]:
            if connection.message is not None and connection.sent < oldest and not connection.ended:
                counts = self._recorder.counts
                counts.timed_out += 1
                counts.failed += connection.in_flight - 1
                self._give_up(connection, TIMEOUT)
        del self._scanned[: len(self.connections) // share + 1]

    def close_ended(self) -> None:
        """Close what was given up during the batch, and begin its replacements."""
        for connection in self.ended:
            self._recorder.counts.served += self._has_served(connection)
            del self.connections[connection.fd]
            self._poller.unregister(connection.fd)
            connection.socket.close()
        self.ended.clear()
        if self._redials and self.sending:
            self.replace(self._clock())

    def close_all(self) -> None:
        """Close everything, at the end of a run."""
        self.opener.abandon()
        self.ended = list(self.connections.values())
        self._redials.clear()
        self.close_ended()

    # Requests -------------------------------------------------------------------

    def request(self, connection: Connection, count: int, due: int, now: int) -> None:
        """Send so many requests that were due then."""
        self.in_flight += count
        message, parts = (self._take(), ()) if count == 1 else self._pool.take_several(count)
        connection.add(message, due, now, parts)
        data = message.frame
        if connection.unsent:
            self._hold_back(connection, data)
            return
        try:
            sent = connection.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.lose(connection, kind_of_error(error))
            return
        if sent != len(data):
            self.wait_to_send(connection, data[sent:])

    def wait_to_send(self, connection: Connection, rest: bytes) -> None:
        """Keep what the kernel did not take of the last requests until it takes more."""
        self._hold_back(connection, rest)
        self._watch(connection, READ | WRITE)

    def _hold_back(self, connection: Connection, rest: bytes) -> None:
        # A piece for each request, to know which of them were sent whole.
        pieces = []
        last = reversed(connection.outstanding)
        end = len(rest)
        while end:
            start = max(0, end - len(next(last).frame))
            pieces.append(rest[start:end])
            end = start
        connection.unsent.extend(reversed(pieces))
        connection.look()

    def send_rest(self, connection: Connection) -> None:
        """Send what was held back, as far as the kernel takes it."""
        unsent = connection.unsent
        while unsent:
            data = unsent[0]
            try:
                sent = connection.send(data)
            except BlockingIOError:
                return
            except OSError as error:
                self.lose(connection, kind_of_error(error))
                return
            if sent != len(data):
                unsent[0] = data[sent:]
                return
            unsent.popleft()
        connection.look()
        self._watch(connection, READ)

    def _watch(self, connection: Connection, mask: int) -> None:
        try:
            self._poller.modify(connection.fd, mask)
        except OSError as error:  # the kernel may be out of memory
            self.lose(connection, kind_of_error(error))

    def _dispatch_closed(self, now: int) -> None:
        thinking, free = self._thinking, self.free
        while thinking and thinking[0][0] <= now:
            free.append(thinking.popleft()[1])
        while free and self._left:
            connection = free.popleft()
            count = 1
            while free and free[0] is connection and count < self._left:
                free.popleft()
                count += 1
            if not connection.ended:
                self._left -= count
                self.request(connection, count, now, now)
        self.due = thinking[0][0] if thinking and self._left else NEVER

    def _dispatch_open(self, now: int) -> None:
        free, clock, times = self.free, self._clock, self.times
        due = self.arrival
        if self._looked < due <= now:
            # Nobody knew of it before; else it has waited for a connection, not for us.
            self._recorder.lags.append(now - due)
        while due <= now and free and self._left:
            connection = free.popleft()
            if connection.ended:
                continue
            if now - due > LATE:
                self._recorder.counts.late += 1
            self._left -= 1
            self.request(connection, 1, due, now)
            due = self.origin + next(times, NEVER)
            if due <= now:
                now = clock()
        self.arrival = due
        self._looked = now
        self.due = due if free and self._left else NEVER

    def release(self, connection: Connection, count: int, now: int) -> None:
        """Let a connection whose replies came have as many further requests."""
        if not self.sending:
            return
        if connection.granted + count > self._limit:
            count = self._limit - connection.granted
            if connection.replies == self._limit:
                self._give_back(connection)
        if count:
            connection.granted += count
            self._hand_back(connection, count, now)

    def _hand_back(self, connection: Connection, count: int, now: int) -> None:
        if self.is_plain:
            self.request(connection, 1, now, now)
        elif self._think and connection.replies:
            self._thinking.extend([(now + self._think, connection)] * count)
            self.due = self._thinking[0][0]
        elif not self._open and self._left >= count:
            self._left -= count
            self.request(connection, count, now, now)
        else:
            if not self.free:
                self._looked = now  # what is due by now has waited for this connection
            self.free.extend([connection] * count)
            self.due = self.arrival if self._open else 0

    # Replies --------------------------------------------------------------------

    def handle(self, fd: int, mask: int, read_size: int) -> None:
        """Deal with an event that is not simply a reply."""
        connection = self.connections.get(fd)
        if connection is None:
            if fd in self.opener:
                self.opener.handle(fd)
            return
        if mask & WRITE and connection.unsent and not connection.ended:
            self.send_rest(connection)
        # Of an error the read tells why, after what can still be read.
        if mask & ~WRITE and not connection.ended:
            try:
                data = connection.recv(read_size)
            except BlockingIOError:
                return
            except OSError as error:
                self.lose(connection, kind_of_error(error))
                return
            self.receive(connection, data, self._clock())

    def record(self, connection: Connection, now: int) -> int:
        """Count the reply to the head of the line as verified; how many replies it was."""
        recorder = self._recorder
        due, sent = connection.due, connection.sent
        count = connection.answered()
        self.in_flight -= count
        if self._open:
            recorder.latencies.extend([now - due] * count)
            recorder.services.extend([now - sent] * count)
        else:
            recorder.latencies.extend([now - sent] * count)
        return count

    def receive(self, connection: Connection, data: bytes, now: int) -> None:
        """Check what came: a part of a reply, several of them, or too much."""
        if not data:
            self.lose(connection, EOF)
            return
        if connection.ended:
            return
        if connection.decoder is not None:
            self._receive_any(connection, connection.decoder, data, now)
            return
        start = answered = 0
        asked = connection.in_flight - len(connection.unsent)
        while start < len(data):
            connection.take_apart()
            message = connection.message
            if message is None or answered >= asked:
                self._reject(connection, UNEXPECTED_BYTES, b"", data[start:])
                return
            expected, matched = message.expected, connection.matched
            end = start + len(expected) - matched
            piece = data[start:end]
            if piece != expected[matched : matched + len(piece)]:
                got = expected[:matched] + data[start:]
                self._reject(connection, kind_of_fault(expected, got), expected, got)
                return
            if end > len(data):
                connection.matched += len(piece)
                break
            answered += self.record(connection, now)
            start = end
        connection.look()
        if answered:
            self.release(connection, answered, now)

    def _receive_any(
        self, connection: Connection, decoder: FrameDecoder, data: bytes, now: int
    ) -> None:
        payloads = decoder.feed(data)
        replies = len(payloads)
        asked = connection.in_flight - len(connection.unsent)
        self._any_bytes += len(b"00000") * min(replies, asked) + sum(map(len, payloads[:asked]))
        left = min(replies, asked)
        while left:
            if len(connection.parts) > left:
                connection.take_apart()
            left -= self.record(connection, now)
        # With every reply here, what follows would be taken for the next one's beginning.
        if replies >= asked and (replies > asked or decoder.held not in (b"", b"\r")):
            self._reject(connection, UNEXPECTED_BYTES, b"", data)
        elif decoder.error is not None:
            self._reject(connection, BAD_HEADER, b"", data)
        elif payloads:
            self.release(connection, len(payloads), now)

    # What goes wrong ------------------------------------------------------------

    def _reject(self, connection: Connection, kind: str, expected: bytes, got: bytes) -> None:
        """Count a wrong reply and give up its connection, which is out of step."""
        counts = self._recorder.counts
        sent = b""
        if connection.message is not None:
            sent = connection.message.frame
            counts.wrong += 1
            counts.failed += connection.in_flight - 1
        self._recorder.keep(
            Mismatch(connection.number, kind, sent, expected, got[: len(expected) + GOT_SHOWN])
        )
        self._give_up(connection, kind)

    def lose(self, connection: Connection, kind: str) -> None:
        """Count a connection that ended by itself, and its requests."""
        if connection.ended:
            return
        if not self.sending and self.measuring and not connection.in_flight:
            # It has done its work: the server may close it.
            self._end(connection)
            return
        self._recorder.counts.failed += connection.in_flight
        self._give_up(connection, kind)

    def _give_up(self, connection: Connection, kind: str) -> None:
        counts = self._recorder.counts
        counts.errors[kind] += 1
        counts.lost += 1
        self._drop(connection)
        if self._plan.reconnect and not self._over:
            # One that has served is replaced at once.
            due = self._clock() + (0 if self._has_served(connection) else RETRY_AFTER)
            self._redial_later(connection.number, connection.sends, due)

    def _has_served(self, connection: Connection) -> bool:
        # The plain loop counts no replies, but only a reply is followed by a request
        # that was due before.
        return connection.replies > 0 or (self.is_plain and connection.sent != connection.due)

    def _give_back(self, connection: Connection) -> None:
        """End a connection that has had all its requests, and make a new one."""
        self._end(connection)
        if self._left:
            self._redial_later(connection.number, connection.sends, self._clock())

    def _drop(self, connection: Connection) -> None:
        """End a connection with the requests in flight on it, which are counted already."""
        self.in_flight -= connection.in_flight
        self._missing_bytes += sum(len(message.expected) for message in connection.outstanding)
        self._end(connection)

    def _end(self, connection: Connection) -> None:
        connection.ended = True
        connection.ready = None
        self.ended.append(connection)

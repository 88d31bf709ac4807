"""The load loop of one process: connect, send, verify, record.

The engine touches the outside only through what it is given: a way to dial, a
poller, clocks, a control and a place for its snapshots; so a simulation can run
this code as it stands. Its phases follow each other: connect, wait for the word
to start, warm up, measure, drain.

The rules:

* every reply is compared byte for byte with the expected one, however the
  stream was cut; a connection that answers wrongly is out of step and closed;
* in the plain closed loop (``pump_plain``) a request costs a read, a look at
  the clock and a send; all else follows from the latencies it collects. The
  plain open loop (``pump_open``) adds what is due by the clock. Any other load
  goes through ``pump``, in which everything is a call;
* whatever is due is sent between any two events, not only between batches;
* nothing a server does keeps the engine longer than its deadlines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from loadgen.connection import NEVER
from loadgen.load import Load
from loadgen.opening import Dialer
from loadgen.plan import Plan
from loadgen.pumps import MAX_EVENTS, pump, pump_open, pump_plain
from loadgen.recording import Recorder
from loadgen.schedule import Schedule
from loadgen.tally import Counts, Phase, Snapshot
from loadgen.traffic import Pool
from nbnet.framing import HEADER_SIZE, MAX_PAYLOAD
from nbnet.pollers import READ, Poller

READ_SIZE: Final = HEADER_SIZE + MAX_PAYLOAD + 1
"""Bytes asked of the kernel at most in one read: the longest reply takes one, and a byte
that is too much shows."""
CONNECTING_AT_ONCE: Final = 512
"""Connections begun and not made yet: well under a usual backlog, which would
drop what is over it and make the kernel wait a second before it tries again."""
TRY_AGAIN: Final = 1_000_000
"""Nanoseconds until a connection is tried again that could not be begun."""
SNAPSHOT_EVERY: Final = 250_000_000
"""Nanoseconds between snapshots."""
LOOK_EVERY: Final = 20_000_000
"""Nanoseconds between looks at timeouts and at what is to be replaced."""
STANDSTILL: Final = 200_000_000
"""Nanoseconds by which a look is late from which on the process has stood still: then
nobody's reply counts as late until those that came meanwhile are read, ..."""
LONGEST_EXCUSE: Final = 1_000_000_000
"""... for which there is as long as it stood still, but no longer than this."""
LOOKS_A_TIMEOUT: Final = 4
"""How often each connection is looked at within the time that a reply may take ..."""
MOST_SHARES: Final = 12
"""... but at least once in so many looks."""
SURPLUS_WAIT: Final = 20_000_000
"""Nanoseconds, beside the longest latency, in which replies that nobody asked
for may come after the last one that was."""


class Control(Protocol):
    """How the engine is told to start and to stop."""

    def fileno(self) -> int:
        """A descriptor that is readable when there is something to read."""

    def read(self) -> int | None:
        """The moment to start, on the engine's clock; None is the word to stop."""


class Engine:
    """Runs one plan against one server.

    Args:
        plan: what to do.
        pool: the requests to send and the replies to expect.
        schedule: when to send; None in a closed loop.
        dialer: makes connections.
        poller: what waits for events; the engine does not close it.
        wait: waits up to so many seconds until the poller has an event, more
            exactly than the poller, which epoll has round up to a millisecond;
            whether there is one.
        clock: monotonic nanoseconds.
        cpu_clock: nanoseconds of processor time used by this process.
        control: tells to start and to stop.
        emit: takes the snapshots, several a second; the last is ``DONE``.

    Attributes without an underscore are what the loops in ``pumps`` work with.
    """

    def __init__(
        self,
        plan: Plan,
        pool: Pool,
        schedule: Schedule | None = None,
        *,
        dialer: Dialer,
        poller: Poller,
        wait: Callable[[float], object],
        clock: Callable[[], int],
        cpu_clock: Callable[[], int],
        control: Control,
        emit: Callable[[Snapshot], None],
    ) -> None:
        self._plan = plan
        self.pool = pool
        self.poller = poller
        self.wait = wait
        self.clock = clock
        self._cpu_clock = cpu_clock
        self._control = control
        self._control_fd = control.fileno()
        self._emit = emit
        self.recorder = Recorder(open_loop=plan.is_open_loop)
        self.load = Load(
            plan, pool, schedule, self.recorder, dialer=dialer, poller=poller, clock=clock
        )
        # One byte more than expected, to see what a server sends too much.
        wanted = READ_SIZE if pool.any_reply else plan.pipeline * pool.longest_reply + 1
        self.read_size = max(dialer.read_size, min(wanted, READ_SIZE))
        self._phase = Phase.CONNECTING
        self._start: int | None = None  # as the control says
        self.stopped = False  # by the control
        self._started = 0  # when measuring began
        self.end = NEVER  # when it is to end
        self._until = 0  # up to when the next snapshot counts, as planned
        self._elapsed = 0.0  # seconds measured, once that is over
        self._next_report = 0
        self.next_look = 0
        self._excused_until = 0  # late replies, since the process stood still; 0 for not
        self._watched = 0  # up to when requests in flight are integrated
        looks = int(plan.timeout * 1e9) // (LOOKS_A_TIMEOUT * LOOK_EVERY)
        self._shares = max(1, min(looks, MOST_SHARES))

    def run(self) -> None:
        """Connect, measure for the plan's duration, wait for late replies; report all along."""
        self.poller.register(self._control_fd, READ)
        try:
            self._connect()
            if not (self.load.is_over or self.stopped):
                self._await_start()
            if not (self.load.is_over or self.stopped):
                self._measure()
                self._drain()
        finally:
            self._phase = Phase.DONE
            self.load.close_all()
            if not self.stopped:
                self.poller.unregister(self._control_fd)
        self._report(self._elapsed)

    # Connecting -----------------------------------------------------------------

    def _connect(self) -> None:
        """Open the plan's connections, a few hundred at a time."""
        plan, clock, opener = self._plan, self.clock, self.load.opener
        senders = plan.senders
        begun_at = now = clock()
        deadline = now + int(plan.connect_seconds * 1e9)
        interval = 1e9 / plan.connect_rate if plan.connect_rate else 0.0
        next_report = now + SNAPSHOT_EVERY
        asked = 0
        due = now  # when the next one may be begun
        while (asked < plan.connections or opener) and not self.stopped:
            while asked < plan.connections and len(opener) < CONNECTING_AT_ONCE and due <= now:
                if not opener.begin(asked + 1, sends=asked < senders):
                    due = now + TRY_AGAIN
                    break
                asked += 1
                due = begun_at + round(asked * interval)
                now = clock()
            if now >= deadline:
                break
            if now >= next_report:
                next_report = now + SNAPSHOT_EVERY
                self._report(0.0)
            begins = asked < plan.connections and len(opener) < CONNECTING_AT_ONCE
            self._handle_events(min(deadline, next_report, due if begins else NEVER) - now)
            now = clock()
        left = opener.abandon() + plan.connections - asked
        if left and not self.stopped:
            # Not made, or not even begun, within the time that all of them had.
            self.load.count_timed_out_connects(left)

    def _await_start(self) -> None:
        """Wait for the moment at which all workers start."""
        self._phase = Phase.READY
        self._report(0.0)
        while not self.stopped:
            now = self.clock()
            if self._start is not None and now >= self._start:
                return
            self._handle_events(
                (now + SNAPSHOT_EVERY if self._start is None else self._start) - now
            )

    # Measuring ------------------------------------------------------------------

    def _measure(self) -> None:
        """Send and verify until the time is over, the control says so, or nothing is left."""
        load, recorder, clock = self.load, self.recorder, self.clock
        run = pump
        if load.is_plain:
            run = pump_plain
        elif load.is_open_plain:
            run = pump_open
        now = clock()
        self.next_look = now + LOOK_EVERY
        if self._plan.warmup:
            self._phase = Phase.WARMING
            self._next_report = now + SNAPSHOT_EVERY
            load.start(now)
            load.close_ended()
            # Measuring begins when it was to begin, however late that is noticed.
            now += int(self._plan.warmup * 1e9)
            run(self, now)
            recorder.forget()
            now = min(now, clock())
            load.forget(now)
        self._phase = Phase.MEASURING
        self._next_report = now + SNAPSHOT_EVERY
        self._started = self._until = self._watched = now
        self.end = now + int(self._plan.duration * 1e9)
        cpu_before = self._cpu_clock()
        if not self._plan.warmup:
            load.start(now)
            load.close_ended()
        run(self, self.end)
        now = min(clock(), self.end)
        self.stop_sending(now)
        self._elapsed = (now - self._started) / 1e9
        self._until = now
        recorder.counts.cpu_seconds += (self._cpu_clock() - cpu_before) / 1e9

    def stop_sending(self, end: int) -> None:
        if self.load.sending:
            self.watch(end)
            self.recorder.end()
            self.load.stop_sending(end)

    def look(self, now: int) -> None:
        """What is not looked at all the time: timeouts, replacements, the next snapshot."""
        if now >= self._next_report:
            self._until = self._next_report
            if self._phase is Phase.WARMING:
                self._emit(Snapshot(phase=self._phase, elapsed=0.0, counts=Counts()))
            else:
                self.watch(now)
                self._report((now - self._started) / 1e9)
            # After a stall (a suspended machine, say) the missed ones are left out.
            self._next_report += SNAPSHOT_EVERY * ((now - self._next_report) // SNAPSHOT_EVERY + 1)
        late = now - self.next_look
        if late > STANDSTILL and not self._excused_until:
            self._excused_until = now + min(late, LONGEST_EXCUSE)
        elif now >= self._excused_until:
            self._excused_until = 0
            self.load.expire(now, self._shares)
        self.load.replace(now)
        self.load.close_ended()
        self.next_look = min(now + LOOK_EVERY, self._next_report)

    def watch(self, now: int, before: int | None = None) -> None:
        """Integrate the requests in flight: ``before`` of them until just now."""
        now = min(now, self.end)
        in_flight = self.load.in_flight
        mean = in_flight if before is None else (in_flight + before) / 2
        self.recorder.counts.in_flight_seconds += mean * (now - self._watched) / 1e9
        self._watched = now

    # Draining -------------------------------------------------------------------

    def _drain(self) -> None:
        """Wait for the replies still on their way, as long as the plan allows."""
        load, recorder, clock = self.load, self.recorder, self.clock
        self._phase = Phase.DRAINING
        self._report(self._elapsed)
        deadline = clock() + int(self._plan.grace * 1e9)
        asked_before = self.stopped  # asked again, it does not wait
        while load.in_flight and (left := deadline - clock()) > 0:
            if self.stopped and not asked_before:
                break
            self._handle_events(left)
        if load.in_flight and clock() - deadline > STANDSTILL:
            # What came in time is not late because nobody has read it.
            for _ in range(len(load.connections) // MAX_EVENTS + 1):
                self._handle_events(0)
        recorder.fold_all()
        load.time_out()
        # A server that sent one reply too many shifted all that followed. As long
        # as equal requests follow each other no reply looks wrong: the surplus
        # shows only now, when one more comes as late as replies came so far.
        deadline = min(deadline, clock() + recorder.slowest + SURPLUS_WAIT)
        while load.connections and (left := deadline - clock()) > 0:
            if self.stopped:
                break
            self._handle_events(left)
        load.weigh()

    def _handle_events(self, delay: int) -> None:
        """Wait so many nanoseconds for events, and deal with them; for times without hurry."""
        for fd, mask in self.poller.poll(max(0, delay) / 1e9, MAX_EVENTS):
            self.handle(fd, mask)
        self.load.close_ended()

    def handle(self, fd: int, mask: int) -> None:
        if fd != self._control_fd:
            self.load.handle(fd, mask, self.read_size)
            return
        self._start = self._control.read()
        if self._start is None:
            self.stopped = True
            self.poller.unregister(fd)  # it stays readable

    # Reporting ------------------------------------------------------------------

    def _report(self, elapsed: float) -> None:
        """Hand out what was counted since the last time."""
        second = max(0, self._until - self._started - 1) // 1_000_000_000
        self._emit(self.recorder.snapshot(self._phase, elapsed, second, self.load.in_flight))

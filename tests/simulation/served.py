"""The server's process: the real event loop in it, and what is known of it from outside.

Every world with a server has this one. Checked whenever the loop polls:

* what it counts is what the kernel has moved, and what its connections are;
* the state of each connection fits what it holds, what the poller watches, and
  what is left to be done: no connection waits for an event that nobody asked for;
* buffers are within their bounds; nobody is there past the deadlines;

and that every byte it sends was owed, at the call itself (``account``). In the end
all is closed, and whoever was cut off was cut off for a reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from nbnet.channels import READ_SIZE, Channel
from nbnet.counters import Counters
from nbnet.deadlines import TICK
from nbnet.limits import Limits
from nbnet.loop import Loop
from nbnet.pollers import READ, WRITE
from nbnet.states import State
from nbnet.threads import Job
from simulation.account import HEADER, MOST, Account, Handler
from simulation.faults import Faults
from simulation.kernel import FOREVER, SECOND, US, Kernel, Process
from simulation.network import End
from simulation.poller import Poller
from simulation.sockets import Listener, read, write

_PLENTY: Final = 1 << 20
"""Bytes of output that no run has unsent."""
_TIMEOUTS: Final = (
    "first_byte_timeouts",
    "frame_timeouts",
    "idle_timeouts",
    "write_timeouts",
    "linger_timeouts",
)


class WakeUp:
    """A flag of a process with a descriptor."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.watchers: list[tuple[Poller, int]] = []
        self._set = False
        self._fd = process.install(self)

    def fileno(self) -> int:
        return self._fd

    def set(self) -> None:
        self._set = True
        for poller, fd in self.watchers:
            poller.wake(fd, READ)

    def clear(self) -> None:
        self._set = False
        self.process.kernel.happened()

    def mask(self) -> int:
        return READ if self._set else 0

    def release(self) -> None:
        """Nothing is left of it."""


class Threads:
    """A pool of threads that run jobs some time later, in any order."""

    def __init__(self, kernel: Kernel, window: int, slowest: int) -> None:
        self.kernel = kernel
        self.window = window
        self.under_way = 0
        self._slowest = slowest
        self._done: list[tuple[object, Job]] = []
        self.on_done: Callable[[], None] = lambda: None

    def submit(self, owner: object, job: Job, /) -> None:
        def run() -> None:
            job.run()
            self._done.append((owner, job))
            self.on_done()

        self.under_way += 1
        self.kernel.after(10 * US + self.kernel.rng.randrange(self._slowest), run)

    def take_done(self) -> list[tuple[object, Job]]:
        done, self._done = self._done, []
        self.under_way -= len(done)
        return done


class ServedProcess:
    """A process with the real loop, and what is known of it from outside.

    Args:
        faults: of its calls.
        limits, edge, pool: of the loop.
        fast: whether it reads and writes by descriptor, as on the real kernel.
    """

    def __init__(
        self,
        kernel: Kernel,
        *,
        limits: Limits,
        edge: bool = False,
        faults: Faults | None = None,
        pool: Threads | None = None,
        fast: bool = True,
        listeners: int = 1,
        publish: Callable[[Counters], None] | None = None,
    ) -> None:
        self.kernel = kernel
        self.limits = limits
        self.process = Process(kernel, "server", faults)
        self.poller = Poller(self.process)
        self.listeners = [Listener(self.process) for _ in range(listeners)]
        self.wake_up = WakeUp(self.process)
        self.handler = Handler(kernel)
        self.pool = pool
        self.accounts: list[Account] = []
        self.open: dict[int, Account] = {}
        self.cut: list[Account] = []
        self.unserved = 0  # closed before anything was read or owed
        self.stops = 0
        self._hasty = ""
        self._polls_left = 3  # after the second stop
        self._draining = False  # when it last polled
        self._drained = FOREVER  # when a stopping server need not wait any more
        self.failed = False  # whether an error has ended the loop
        self.excuse = ""  # why any connection may be cut off
        for listener in self.listeners:
            listener.on_accept = self._accepted
        if pool is not None:
            pool.on_done = self.wake_up.set
        self.loop = Loop(
            self.listeners,
            self.handler,
            poller=self.poller,
            clock=kernel.seconds,
            wake_up=self.wake_up,
            limits=limits,
            edge=edge,
            read=(lambda fd, size: read(self.process, fd, size)) if fast else None,
            write=(lambda fd, data: write(self.process, fd, data)) if fast else None,
            pool=pool,
            publish=publish,
        )
        self.poller.before_poll = self.check

    def stop(self) -> None:
        """A signal: the second one does not wait."""
        self.stops += 1
        if self.stops == 1:
            self._drained = self.kernel.now + int(self.limits.drain * SECOND)
        self.kernel.say("the server is told to stop")
        self.loop.stop()

    def _accepted(self, end: End) -> None:
        account = Account(self.kernel, end, self.limits.max_frame, self._closed)
        end.account = account
        self.accounts.append(account)

    def _closed(self, account: Account) -> None:
        """Called when the server closes a connection."""
        if not account.unpaid:
            return
        end = account.end
        # One that was reset, or that a fault befell, is owed nothing any more.
        if not end.disturbed and not end.dead and self.kernel.now < self._drained:
            self.cut.append(account)
            self.kernel.say("cut off with %d bytes owed", account.unpaid)
            self._check_cut(account)

    def _check_cut(self, account: Account) -> None:
        """It was cut off because it took nothing for too long, or all took too little."""
        kernel, limits = self.kernel, self.limits
        if self.stops > 1 or limits.max_output < _PLENTY:
            return
        waited = (kernel.now - account.moved + 10 * kernel.longest_gap) / SECOND + 0.05
        if not limits.write_timeout or waited < limits.write_timeout:
            # Unless an error has just ended the loop, which is known only later.
            self._hasty = f"a connection was cut off that was owed {account.unpaid} bytes"

    # While it runs --------------------------------------------------------------------

    def check(self) -> None:
        """What has to hold whenever the loop polls."""
        loop, kernel, counters = self.loop, self.kernel, self.loop.counters
        channels = loop._channels
        if counters.received_bytes != self.process.moved_in:
            kernel.fail(f"{counters.received_bytes} bytes counted of {self.process.moved_in} read")
        if counters.sent_bytes != self.process.moved_out:
            kernel.fail(f"{counters.sent_bytes} bytes counted of {self.process.moved_out} sent")
        if counters.connections != len(channels):
            kernel.fail(f"{counters.connections} connections counted, {len(channels)} are there")
        if counters.accepted != self.process.accepted:
            kernel.fail(f"{counters.accepted} accepted counted, it were {self.process.accepted}")
        unsent = sum(len(channel.unsent) for channel in channels.values())
        if counters.unsent != unsent:
            kernel.fail(f"{counters.unsent} unsent bytes counted, {unsent} are there")
        paused = sum(channel.state is State.PAUSED for channel in channels.values())
        if counters.paused_now != paused:
            kernel.fail(f"{counters.paused_now} paused counted, {paused} are")
        if self.pool is not None and counters.in_flight != self.pool.under_way:
            kernel.fail(f"{counters.in_flight} in flight counted, it are {self.pool.under_way}")
        if self.limits.max_output and counters.unsent > self.limits.max_output:
            kernel.fail(f"{counters.unsent} bytes unsent, allowed are {self.limits.max_output}")
        if self.limits.max_connections and len(channels) > self.limits.max_connections:
            kernel.fail(f"{len(channels)} connections, allowed are {self.limits.max_connections}")
        by_address = loop._acceptor._from.total()
        if self.limits.max_per_ip and by_address != len(channels):
            kernel.fail(f"{by_address} connections counted by address, {len(channels)} are there")
        for fd, channel in channels.items():
            self._check_channel(fd, channel)
        self._draining = loop._give_up != math.inf
        if self.stops > 1:
            self._polls_left -= 1
            if self._polls_left < 0:
                kernel.fail("the server goes on although it was told to end at once")

    def _check_channel(self, fd: int, channel: Channel) -> None:
        fail, state = self.kernel.fail, channel.state
        loop, limits = self.loop, self.limits
        end = self.process.file(fd)
        assert isinstance(end, End)
        account = end.account
        assert isinstance(account, Account)
        who = f"the connection of descriptor {fd}, {state.name},"
        if state is State.CLOSED:
            fail(f"{who} is still there after the batch")
        # What is kept, and what may be kept in this state.
        kept = len(channel.unsent)
        if kept and state in (State.READING, State.BUSY, State.WORKING, State.LINGERING):
            fail(f"{who} keeps {kept} bytes unsent")
        if not kept and state in (State.WRITING, State.PAUSED, State.FLUSHING, State.DELIVERING):
            fail(f"{who} has nothing to send")
        if channel.waiting and state not in (
            State.BUSY,
            State.PAUSED,
            State.WORKING,
            State.DELIVERING,
        ):
            fail(f"{who} lets {len(channel.waiting)} requests wait")
        if channel.requests > account.asked:
            fail(f"{who} has answered {channel.requests} requests of {account.asked}")
        if state is State.WRITING and kept > limits.high_water:
            fail(f"{who} is read from above the high-water mark, with {kept} bytes unsent")
        if state is State.PAUSED and not channel.waiting and kept <= limits.low_water:
            fail(f"{who} is not read from below the low-water mark, with {kept} bytes unsent")
        largest = HEADER + min(MOST, 5 * limits.max_frame)
        portion = self.pool.window if self.pool is not None else min(128, limits.frames_per_turn)
        if kept > 2 * limits.high_water + largest * (portion + 1):
            fail(f"{who} keeps {kept} bytes unsent")
        held = channel._decoder.unfinished + sum(map(len, channel.waiting))
        if held > READ_SIZE + limits.max_frame + HEADER:
            fail(f"{who} keeps {held} bytes of requests")
        # What it waits for is asked for, or it has its turn by itself.
        watched = self.poller.interest.get(fd, (None, 0))[1]
        if bool(channel.watched) != (fd in self.poller.interest) or channel.watched & ~watched:
            fail(f"{who} is watched for {watched:#x}, and takes it for {channel.watched:#x}")
        if channel not in loop._ready:
            needs = 0
            if state in (State.READING, State.WRITING, State.LINGERING):
                needs |= READ
            if state in (State.WRITING, State.PAUSED, State.FLUSHING, State.DELIVERING):
                needs |= WRITE
            if needs & ~watched:
                fail(f"{who} is watched for {watched:#x} only, and waits for {needs:#x}")
            if state is State.BUSY:
                fail(f"{who} never has its turn")
        self._check_time(channel, account, who)

    def _check_time(self, channel: Channel, account: Account, who: str) -> None:
        """It is not there past its deadlines: as it has them, and as the limits say."""
        loop, limits, kernel = self.loop, self.limits, self.kernel
        if loop._unheard:
            return  # it asks once more whether something has come before it keeps deadlines
        slack = 2 * TICK + 1e-3
        when, kind = channel.deadline()
        if loop._give_up != math.inf and not self._draining:
            pass  # it has just begun to drain, which has shortened some: they are due next
        elif loop._now > when + slack:
            kernel.fail(f"{who} is past its {kind} deadline by {loop._now - when:.3f} s")
        if channel.state in (State.WORKING, State.BUSY):
            return
        if self.pool is not None and channel._jobs:
            return
        silent = loop._now - account.progress / SECOND
        if account.is_shut:
            limit = limits.linger if not self.stops else math.inf
        elif account.unpaid:
            limit = limits.write_timeout or math.inf
        elif not account.taken:
            limit = limits.first_byte_timeout or math.inf
        elif account.partial:
            limit = limits.frame_timeout or math.inf
        else:
            limit = limits.idle_timeout or math.inf
        slack += kernel.longest_gap / SECOND
        if silent > limit + slack:
            kernel.fail(f"{who} is left alone for {silent:.3f} s, allowed are {limit} s")

    # When it has ended ----------------------------------------------------------------

    def check_end(self) -> None:
        """What has to hold when the loop has ended, by itself or with an error."""
        kernel, loop, process = self.kernel, self.loop, self.process
        if kernel.failure is not None:
            kernel.fail(kernel.failure)
        if self.poller.interest:
            kernel.fail(f"descriptors {sorted(self.poller.interest)} are still registered")
        left = [fd for fd, file in process.files.items() if file is not self.wake_up]
        if left:
            kernel.fail(f"descriptors {left} are still open")
        counters = loop.counters
        gauges = (counters.connections, counters.unsent, counters.paused_now)
        if any(gauges) or loop.connections:
            kernel.fail(f"connections, unsent bytes, paused at the end: {gauges}")
        if len(loop._deadlines) or loop._ready:
            kernel.fail("a deadline or a turn is left of a connection that is gone")
        self._check_counters(counters)

    def _check_counters(self, counters: Counters) -> None:
        kernel, process = self.kernel, self.process
        moved = (process.moved_in, process.moved_out)
        if (counters.received_bytes, counters.sent_bytes) != moved and not self.failed:
            # Where an error ended it, the last batch was not counted to its end.
            kernel.fail(
                f"{counters.received_bytes}, {counters.sent_bytes} bytes counted of {moved}"
            )
        requests = self.loop.count().requests
        asked = sum(account.asked for account in self.accounts)
        if requests > asked:
            kernel.fail(f"{requests} requests counted, {asked} were read")
        exact = self.pool is None and not self.handler.failed and not self.failed
        if exact and requests != self.handler.answered:
            kernel.fail(f"{requests} requests counted, {self.handler.answered} were answered")
        if self._hasty and not self.excuse:
            kernel.fail(self._hasty)
        ended = sum(getattr(counters, name) for name in _TIMEOUTS) + counters.shed
        if not self.excuse and not self.stops > 1 and len(self.cut) > ended:
            first = self.cut[ended]
            kernel.fail(
                f"{len(self.cut)} connections were ended that were owed replies, "
                f"{ended} by a timeout; one of them {first.unpaid} bytes"
            )

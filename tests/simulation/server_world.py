"""The real event loop among scripted peers.

A seed draws the limits, the trigger, the peers, the faults, whether threads run
the handler, and when the server is told to stop. Checked whenever the loop polls:

* every byte that it has sent was owed there (``account``, at the call itself);
* what it counts is what the kernel has moved, and what its connections are;
* the state of each connection fits what it holds, what the poller watches, and
  what is left to be done: no connection waits for an event that nobody asked for;
* buffers are within their bounds; nobody is there past the deadlines;

and when it has ended: all is closed, each peer that behaved has got everything,
and whoever was cut off was cut off for a reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
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
from simulation.faults import Faults, Rates, draw_rates
from simulation.kernel import FOREVER, MS, SECOND, US, Kernel, Process
from simulation.network import End, Listener, Network, read, write
from simulation.outcome import Outcome
from simulation.peers import Peer
from simulation.poller import Poller

_PATIENCE: Final = 3000 * SECOND
"""Simulated time within which every peer has to be rid of."""
_REFUSALS: Final = ("refused_full", "refused_per_ip")
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
        self._draining = False  # when it last polled
        self._drained = FOREVER  # when a stopping server need not wait any more
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
        for fd, channel in channels.items():
            self._check_channel(fd, channel)
        self._draining = loop._give_up != math.inf

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
        largest = HEADER + min(MOST, 5 * limits.max_frame)
        portion = min(128, limits.frames_per_turn)
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
        kernel = self.kernel
        if counters.received_bytes != self.process.moved_in:
            kernel.fail(f"{counters.received_bytes} bytes counted of {self.process.moved_in} read")
        if counters.sent_bytes != self.process.moved_out:
            kernel.fail(f"{counters.sent_bytes} bytes counted of {self.process.moved_out} sent")
        requests = loop_requests = self.loop.count().requests
        asked = sum(account.asked for account in self.accounts)
        if requests > asked:
            kernel.fail(f"{requests} requests counted, {asked} were read")
        if self.pool is None and not self.handler.failed and requests != self.handler.answered:
            kernel.fail(f"{loop_requests} requests counted, {self.handler.answered} were answered")
        ended = sum(getattr(counters, name) for name in _TIMEOUTS) + counters.shed
        if not self.excuse and not self.stops > 1 and len(self.cut) > ended:
            first = self.cut[ended]
            kernel.fail(
                f"{len(self.cut)} connections were ended that were owed replies, "
                f"{ended} by a timeout; one of them {first.unpaid} bytes"
            )


class ServerWorld:
    """A run of the loop among peers, by its seed.

    Args:
        script: errors of single calls; for torture.
    """

    def __init__(
        self,
        seed: int,
        trace: Callable[[str], None] | None = None,
        script: Mapping[tuple[str, int], int] | None = None,
    ) -> None:
        self.kernel = Kernel(seed, trace)
        rng = self.rng = self.kernel.rng
        self.harmless = rng.random() < 0.5
        rates = draw_rates(rng, harmless=self.harmless) if rng.random() < 0.85 else Rates()
        faults = Faults(self.kernel, rates, script)
        pool = None
        if rng.random() < 0.25:
            pool = Threads(self.kernel, rng.choice((1, 2, 8)), rng.choice((MS, 50 * MS)))
        self.limits = self._draw_limits()
        self.server = ServedProcess(
            self.kernel,
            limits=self.limits,
            edge=rng.random() < 0.4,
            faults=faults,
            pool=pool,
            fast=rng.random() < 0.8,
            listeners=rng.choice((1, 1, 2)),
            publish=self._published if rng.random() < 0.3 else None,
        )
        self.published: list[Counters] = []
        if rng.random() < 0.2:
            self.server.process.most_files = rng.randrange(4, 8)
        self.networks = [
            Network(
                self.kernel,
                listener,
                pace=rng.choice((20 * US, MS, 20 * MS)),
                pieces=rng.choice((0, 0, 1, 2)),
            )
            for listener in self.server.listeners
        ]
        for network in self.networks:
            network.reset_rate, network.vanish_rate = rates.reset, rates.vanish
        self.peers: list[Peer] = []
        for number in range(rng.choice((1, 2, 3, 5, 8, 12))):
            network = rng.choice(self.networks)
            peer = Peer(self.kernel, network, self.server.handler, self.limits, number)
            self.peers.append(peer)
            when = self.kernel.now + rng.choice((0, 0, 3 * MS, SECOND)) + rng.randrange(MS)
            self.kernel.at(when, peer.start)
        self.stopped_early = False
        self._draw_stop()
        if not self.harmless and rng.random() < 0.1:
            self.kernel.after(rng.randrange(3 * SECOND), self._jump)

    def _draw_limits(self) -> Limits:
        rng = self.rng
        limits = Limits()
        if rng.random() < 0.5:
            high = rng.choice((0, 60, 2000, 30_000))
            limits = replace(
                limits,
                high_water=high,
                low_water=rng.choice((0, high // 4, high)),
                frames_per_turn=rng.choice((1, 2, 5, 1024)),
            )
        if rng.random() < 0.3:
            limits = replace(limits, max_frame=rng.choice((10, 40, 1000)))
        if rng.random() < 0.2:
            limits = replace(limits, max_connections=rng.choice((1, 2, 4)))
        if not self.harmless and rng.random() < 0.3:
            limits = replace(
                limits,
                max_output=rng.choice((500, 20_000)),
                refuse=rng.random() < 0.5,
                max_per_ip=rng.choice((0, 1, 2)),
            )
        if not self.harmless and rng.random() < 0.4:
            limits = replace(
                limits,
                first_byte_timeout=rng.choice((0.5, 3.0)),
                frame_timeout=rng.choice((0.3, 2.0)),
                idle_timeout=rng.choice((0.4, 3.0)),
                write_timeout=rng.choice((0.2, 2.0)),
                linger=rng.choice((0.0, 0.2, 1.0)),
                drain=rng.choice((0.0, 0.5, 10.0)),
            )
        return limits

    def _draw_stop(self) -> None:
        """When the signals come: after all is done, some time before, or at a certain call."""
        rng, kernel = self.rng, self.kernel
        choice = rng.random()
        if choice < 0.2:
            kernel.after(rng.randrange(rng.choice((20 * MS, SECOND, 10 * SECOND))), self._stop)
        elif choice < 0.35:
            self._stop_at = rng.randrange(1, rng.choice((50, 500)))
            self._calls = 0
            self.server.process.on_call = self._count_call
        kernel.after(SECOND, self._look)
        self._again = rng.random() < 0.3

    def _count_call(self, _kind: str) -> None:
        self._calls += 1
        if self._calls == self._stop_at:
            self._stop()

    def _stop(self) -> None:
        if not self.server.stops:
            self.stopped_early = not self._is_done()
            self.server.stop()
            if self._again and self.stopped_early:
                self.kernel.after(self.rng.randrange(2 * SECOND), self.server.stop)

    def _look(self) -> None:
        """Stop the server when nobody is left, and fail when somebody stays for ever."""
        if self.server.stops:
            return
        if self._is_done():
            self._stop()
        elif self.kernel.now > 1000 * SECOND + _PATIENCE:
            left = [peer for peer in self.peers if not self._is_gone(peer)]
            self.kernel.fail(
                f"peer {left[0].number}, a {left[0].kind}, is still there: {left[0].end.disturbed}"
            )
        else:
            self.kernel.after(SECOND, self._look)

    def _is_gone(self, peer: Peer) -> bool:
        return peer.over or (peer.end.peer is not peer.end and peer.end.peer.closed)

    def _is_done(self) -> bool:
        return all(map(self._is_gone, self.peers))

    def _jump(self) -> None:
        self.server.excuse = self.server.excuse or "the clock jumped"
        self.kernel.jump(self.rng.choice((SECOND, 15 * SECOND, 1000 * SECOND)))

    def _published(self, counters: Counters) -> None:
        if self.published and self.published[-1].requests > counters.requests:
            self.kernel.fail("the requests published have become fewer")
        self.published.append(counters)

    def run(self) -> Outcome:
        """Play it.

        Raises:
            SimulationFailure: a promise was broken.
        """
        start = self.kernel.now
        try:
            self.server.loop.run()
        except OSError:
            if self.server.process.calls["register"] > 1:
                raise
            self.server.excuse = "it could not start"
        self.server.check_end()
        self.check_peers()
        return Outcome(
            digest=self.kernel.digest,
            events=self.kernel.events,
            seconds=(self.kernel.now - start) / SECOND,
            connections=self.server.process.accepted,
            requests=self.server.handler.answered,
            cut=len(self.server.cut),
        )

    def check_peers(self) -> None:
        """Who behaved has everything; let what is still on its way arrive first."""
        kernel = self.kernel
        until = kernel.now + 600 * SECOND
        kernel.wait(lambda: all(peer.over for peer in self.peers), until)
        if self.stopped_early or self.server.excuse:
            return
        refused = self.limits.refuse or self.limits.max_per_ip or self.limits.max_output < 1 << 20
        for peer in self.peers:
            if peer.strict and not peer.is_served and not peer.end.disturbed and not refused:
                kernel.fail(
                    f"peer {peer.number}, a {peer.kind}, has {len(peer.received)} bytes of "
                    f"{len(peer.expected)} and ended by {peer.outcome or 'waiting'}"
                )


def run(
    seed: int,
    trace: Callable[[str], None] | None = None,
    script: Mapping[tuple[str, int], int] | None = None,
) -> Outcome:
    """Play a seed of this world."""
    return ServerWorld(seed, trace, script).run()

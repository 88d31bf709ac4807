"""The real load engine against the real event loop, in one kernel.

Both run as processes of their own, one at a time, in an order of the seed's. A
seed draws the plan, the network, the faults of both, and whether the server goes
away or the engine is told to stop. Checked whenever the engine polls:

* the requests in flight are those of its connections, and each connection is
  watched for what it waits for;
* no connection that has answered wrongly is used on, none waits past its timeout;
* no latency is shorter than the network allows;

and in the end: what was sent is verified, wrong, failed or timed out; a reply is
verified only if the server gave it; nothing is wrong that the network did not
change, and all is verified where nothing was disturbed. What ``server_world``
checks of the server is checked here, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from loadgen.connection import Connection
from loadgen.engine import Engine
from loadgen.plan import Plan
from loadgen.schedule import Schedule
from loadgen.tally import Counts, Phase, Snapshot
from loadgen.traffic import Message, Pool
from nbnet.limits import Limits
from nbnet.pollers import READ, WRITE
from simulation.account import EMPTY, GROW, REVERSE, answer, frame
from simulation.faults import Faults, Rates, draw_rates
from simulation.kernel import MS, SECOND, US, Kernel, Process, os_error
from simulation.network import End, Network
from simulation.outcome import Outcome
from simulation.poller import Poller
from simulation.served import ServedProcess
from simulation.sockets import Socket

FASTEST: Final = 20 * US
"""What a round trip takes at least, see ``Network.delay``."""
_SLACK: Final = 0.3
"""Seconds beside its deadlines that an engine may take."""
_WRONG: Final = ("wrong payload", "wrong length", "bad header", "unexpected bytes")


class Control:
    """The word to start, which comes at once, and maybe the one to stop."""

    def __init__(self, process: Process) -> None:
        self.watchers: list[tuple[Poller, int]] = []
        self._kernel = process.kernel
        self._words: list[int | None] = [0]
        self._fd = process.install(self)

    def fileno(self) -> int:
        return self._fd

    def mask(self) -> int:
        return READ if self._words else 0

    def read(self) -> int | None:
        self._kernel.happened()
        return self._words.pop(0)

    def stop(self) -> None:
        self._words.append(None)
        for poller, fd in self.watchers:
            poller.wake(fd, READ)

    def release(self) -> None:
        """Nothing is left of it."""


class Dialer:
    """The way to the server through the simulated network."""

    read_size = 0

    def __init__(self, process: Process, network: Network, *, stamps: bool) -> None:
        self._process = process
        self._network = network
        self._stamps = stamps
        self.ends: list[End] = []

    def dial(self) -> Socket:
        process, rng = self._process, self._process.kernel.rng
        process.enter("dial", -1)
        end = End(
            process.kernel,
            room=rng.choice((30, 1000, 200_000)),
            window=rng.choice((30, 1000, 200_000)),
        )
        fd = process.install(end)
        self.ends.append(end)
        process.opened += 1
        process.kernel.happened()
        self._network.connect(end)
        return Socket(process, end, fd)

    def advance(self, socket: Socket) -> tuple[Socket, int]:
        self._process.enter("advance", socket.fd)
        end = socket.end
        if end.error:
            code, end.error = end.error, 0
            raise os_error(code)
        self._process.kernel.happened()
        return socket, 0

    def stamped(self, socket: Any, /) -> Callable[[int], tuple[bytes, int]] | None:
        kernel = self._process.kernel
        if not self._stamps:
            return None
        return lambda size: (socket.recv(size), kernel.now - socket.end.stamped_at)


class LoadWorld:
    """A run of an engine against a server, by its seed.

    Args:
        script: errors of single calls of the engine; for torture.
        plan, calm: instead of a plan that is drawn, and without any other faults.
    """

    def __init__(
        self,
        seed: int,
        trace: Callable[[str], None] | None = None,
        script: Mapping[tuple[str, int], int] | None = None,
        plan: Plan | None = None,
        *,
        calm: bool = False,
    ) -> None:
        self.kernel = Kernel(seed, trace)
        rng = self.rng = self.kernel.rng
        self.harmless = calm or rng.random() < 0.5
        rates, of_server = Rates(), Rates()
        if not calm:
            rates = draw_rates(rng, harmless=self.harmless)
            of_server = draw_rates(rng, harmless=self.harmless)
        self.server = ServedProcess(
            self.kernel,
            limits=Limits(frames_per_turn=rng.choice((2, 1024))),
            edge=rng.random() < 0.4,
            faults=Faults(self.kernel, of_server),
        )
        self.server.handler.many = True
        pace = MS if calm else rng.choice((20 * US, MS, 20 * MS))
        self.network = Network(
            self.kernel, self.server.listeners[0], pace=pace, pieces=rng.randrange(3)
        )
        self.network.reset_rate, self.network.vanish_rate = rates.reset, rates.vanish
        if not self.harmless and rng.random() < 0.3:
            self.network.corrupt_rate = 0.02
        self.process = Process(self.kernel, "loader", Faults(self.kernel, rates, script))
        self.poller = Poller(self.process)
        self.poller.before_poll = self.check
        self.control = Control(self.process)
        self.plan = plan or self._draw_plan(pace)
        self.pool = Pool(self._draw_messages())
        self.snapshots: list[Snapshot] = []
        self.dialer = Dialer(self.process, self.network, stamps=rng.random() < 0.5)
        self.engine = Engine(
            self.plan,
            self.pool,
            self._schedule(),
            dialer=self.dialer,
            poller=self.poller,
            wait=self.poller.wait,
            clock=self.kernel.nanoseconds,
            cpu_clock=lambda: self.kernel.now // 4,
            control=self.control,
            emit=self.snapshots.append,
        )
        self._ended: list[Connection] = []  # when the engine last polled
        self.interrupted = False
        if not self.harmless and rng.random() < 0.3:
            self.interrupted = True
            when = rng.randrange(int(2 * self.plan.duration * SECOND))
            self.kernel.after(when, rng.choice((self.server.stop, self.control.stop)))

    def _draw_plan(self, pace: int) -> Plan:
        rng = self.rng
        connections = rng.choice((1, 2, 5, 12))
        duration = rng.choice((30, 100)) * pace / SECOND
        rate = None
        if rng.random() < 0.4:
            rate = rng.choice((0.3, 1.0, 4.0)) * connections / (pace / SECOND)
        plain = rng.random() < 0.5
        return Plan(
            connections=connections,
            duration=duration,
            rate=rate,
            poisson=rate is not None and rng.random() < 0.5,
            pipeline=1 if plain else rng.choice((1, 2, 7)),
            requests=None if plain else rng.choice((None, connections * 5)),
            requests_per_connection=None if plain else rng.choice((None, None, 1, 3)),
            think=rng.choice((0.0, 0.0, pace / SECOND)) if rate is None and not plain else 0.0,
            active=rng.choice((None, None, 1)),
            reconnect=rng.random() < 0.7,
            warmup=rng.choice((0.0, 0.0, duration / 3)),
            connect_rate=rng.choice((None, None, 1000.0)),
            connect_timeout=rng.choice((0.5, 10.0)),
            timeout=rng.choice((0.5, 10.0)) if not self.harmless else 30.0,
            grace=rng.choice((0.0, 0.1)) if not self.harmless else 30.0,
            seed=rng.randrange(100),
        )

    def _draw_messages(self) -> list[Message]:
        rng = self.rng
        any_reply = rng.random() < 0.15
        messages = []
        for number in range(rng.choice((1, 30, 200))):
            letter = rng.choice((REVERSE, REVERSE, EMPTY, GROW)) if not any_reply else REVERSE
            payload = letter + b"%d:" % number + b"-" * rng.randrange(rng.choice((2, 80)))
            reply = answer(payload)
            assert reply is not None
            messages.append(Message(frame(payload), b"" if any_reply else frame(reply)))
            self.server.handler.known[payload] = False
        return messages

    def _schedule(self) -> Schedule | None:
        plan = self.plan
        if not plan.is_open_loop:
            return None
        return Schedule(plan.schedule_stages, poisson=plan.poisson, seed=plan.seed)

    # While it runs --------------------------------------------------------------------

    def check(self) -> None:
        """What has to hold whenever the engine polls."""
        load, kernel = self.engine.load, self.kernel
        if any(connection in self._ended for connection in load.ended):
            kernel.fail("a connection is ended and still there after the batch")
        self._ended = list(load.ended)
        in_flight = sum(each.in_flight for each in load.connections.values() if not each.ended)
        if load.in_flight != in_flight:
            kernel.fail(f"{load.in_flight} requests in flight counted, {in_flight} are")
        for values in (self.engine.recorder.latencies, self.engine.recorder.services):
            if values and min(values) < FASTEST:
                kernel.fail(f"a latency of {min(values)} ns is less than a round trip")
        for fd, connection in load.connections.items():
            if not connection.ended:
                self._check_connection(fd, connection)

    def _check_connection(self, fd: int, connection: Connection) -> None:
        kernel = self.kernel
        end = self.process.file(fd)
        assert isinstance(end, End)
        who = f"connection {connection.number}, descriptor {fd},"
        if end.poisoned and not self.pool.any_reply:
            kernel.fail(f"{who} goes on although it has answered wrongly")
        needs = READ | WRITE if connection.unsent else READ
        watched = self.poller.interest.get(fd, (None, 0))[1]
        if watched != needs:
            kernel.fail(f"{who} is watched for {watched:#x}, and waits for {needs:#x}")
        message = connection.message
        ready = message.expected if message and not connection.unsent else None
        if connection.ready is not None and connection.ready != ready:
            kernel.fail(f"{who} takes {connection.ready[:40]!r} for its next reply")
        timeout = self.plan.timeout
        if message is not None and self.engine.load.sending:
            waits = (kernel.now - connection.sent) / SECOND
            if waits > 1.5 * timeout + _SLACK + 10 * kernel.longest_gap / SECOND:
                kernel.fail(f"{who} has waited {waits:.3f} s for a reply, allowed are {timeout} s")

    # When it has ended ----------------------------------------------------------------

    def run(self) -> Outcome:
        """Play it.

        Raises:
            SimulationFailure: a promise was broken.
        """
        start = self.kernel.now
        self.kernel.run(("loader", self._load), ("server", self._serve))
        self.check_end()
        return Outcome(
            digest=self.kernel.digest,
            events=self.kernel.events,
            seconds=(self.kernel.now - start) / SECOND,
            connections=self.server.process.accepted,
            requests=self.server.handler.answered,
            cut=len(self.server.cut),
        )

    def _serve(self) -> None:
        try:
            self.server.loop.run()
        except OSError:
            if self.server.process.calls["register"] > 1:
                raise
            self.server.excuse = "it could not start"
            self.interrupted = True
        self.server.check_end()

    def _load(self) -> None:
        start = self.kernel.now
        try:
            self.engine.run()
        except OSError:
            if self.process.calls["register"] > 1:
                raise
            self.interrupted = True  # it could not even watch its control
            self.snapshots.append(Snapshot(phase=Phase.DONE, elapsed=0.0, counts=Counts()))
        finally:
            self.server.stop()
        plan = self.plan
        allowed = plan.connect_seconds + plan.warmup + plan.duration + plan.grace + _SLACK
        allowed += 20 * self.kernel.longest_gap / SECOND
        took = (self.kernel.now - start) / SECOND
        if took > allowed:
            self.kernel.fail(f"the engine took {took:.3f} s, allowed are {allowed:.3f} s")

    @property
    def counts(self) -> Counts:
        """The sum of what was reported."""
        counts = Counts()
        for snapshot in self.snapshots:
            counts.add(snapshot.counts)
        return counts

    def check_end(self) -> None:
        """What has to hold when the engine has ended, by itself or with an error."""
        kernel, counts = self.kernel, self.counts
        if kernel.failure is not None:
            kernel.fail(kernel.failure)
        if self.poller.interest:
            kernel.fail(f"descriptors {sorted(self.poller.interest)} are still registered")
        left = [fd for fd, file in self.process.files.items() if file is not self.control]
        if left:
            kernel.fail(f"descriptors {left} are still open")
        if [each.phase for each in self.snapshots].index(Phase.DONE) != len(self.snapshots) - 1:
            kernel.fail("the last snapshot is not that of the end")
        if counts.sent != counts.verified + counts.wrong + counts.failed + counts.timed_out:
            kernel.fail(f"what was sent is not what became of it: {counts}")
        if counts.verified != sum(counts.latency.values()):
            kernel.fail(f"{counts.verified} verified, {sum(counts.latency.values())} latencies")
        if not self.plan.warmup:
            self._check_counts(counts)
        calm = self.harmless and not self.interrupted and self.server.excuse == ""
        if calm and not any(end.disturbed for end in self.dialer.ends):
            self._check_calm(counts)

    def _check_counts(self, counts: Counts) -> None:
        """Beside what the server has read and given, and what the kernel has moved."""
        kernel, pool, accounts = self.kernel, self.pool, self.server.accounts
        # A reply is verified only if it was given, and a request given up only if sent.
        given = sum(account.replies for account in accounts)
        if counts.verified > given:
            kernel.fail(f"{counts.verified} replies verified, the server gave {given}")
        if counts.sent < sum(account.asked for account in accounts):
            kernel.fail(f"{counts.sent} requests sent, the server read more")
        if counts.sent_bytes != pool.sent_bytes(counts.sent) and self.snapshots_are_whole:
            kernel.fail(f"{counts.sent_bytes} bytes counted for {counts.sent} requests")
        if counts.wrong and not self.network.corrupt_rate:
            kernel.fail(f"{counts.wrong} replies called wrong: {counts.errors}")
        wrong = sum(counts.errors[kind] for kind in _WRONG)
        if wrong and not self.network.corrupt_rate:
            kernel.fail(f"what was right was called {counts.errors}")

    @property
    def snapshots_are_whole(self) -> bool:
        """Whether the engine came so far that it has weighed what it sent."""
        return any(each.phase is Phase.DRAINING for each in self.snapshots)

    def _check_calm(self, counts: Counts) -> None:
        """Nothing was disturbed: nothing may be missing."""
        kernel, plan = self.kernel, self.plan
        held = counts.held + counts.failed_to_connect
        if held != plan.connections:
            kernel.fail(f"{held} connections were tried of {plan.connections}")
        refused = sum(n for kind, n in counts.errors.items() if kind.startswith("connect: "))
        if counts.failed or counts.timed_out or counts.wrong or counts.lost:
            kernel.fail(f"nothing was disturbed, and some were not verified: {counts}")
        if sum(counts.errors.values()) != refused:
            kernel.fail(f"nothing was disturbed, and there are errors: {counts.errors}")
        if not plan.warmup and self.server.handler.answered != counts.sent:
            kernel.fail(f"{counts.sent} requests sent, {self.server.handler.answered} answered")


def run(seed: int, trace: Callable[[str], None] | None = None) -> Outcome:
    """Play a seed of this world."""
    return LoadWorld(seed, trace).run()

"""Whether honest clients are served rightly while hostile ones are about: ``loadgen chaos``.

One run of verified load goes through three phases: calm, storm, recovery. In the
storm a process of its own abuses the server. The figures of the phases are sums
over the run's snapshots, so phases last whole quarters of a second. Only targets
on this machine are taken, unless somebody answers for another one.
"""

from __future__ import annotations

import bisect
import ipaddress
import math
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Final

from loadgen import preflight
from loadgen.chaos_abuses import ABUSES
from loadgen.chaos_process import AbuserProcess, abuser_process
from loadgen.chaos_storm import MOST_A_SECOND, Outcome, Storm, beginning
from loadgen.embedded import embedded_server
from loadgen.engine import SNAPSHOT_EVERY
from loadgen.histogram import Histogram
from loadgen.plan import LONGEST_DURATION, Plan, PlanError
from loadgen.report import Run
from loadgen.running import Site, run
from loadgen.tally import Counts, Phase, Snapshot
from loadgen.traffic import Message, Sizes, Traffic, TrafficError, make_payloads, messages
from loadgen.verdict import EXIT_FINE, EXIT_NO_CONNECTION, Verdict
from nbnet.command import EXIT_FAILED, EXIT_INTERRUPTED
from nbnet.framing import MAX_PAYLOAD
from nbnet.machine import SPARE_FDS, look_up, raise_fd_limit
from nbnet.notation import Address

EXIT_SLOWED: Final = 3
RATE: Final = 2000.0
"""Requests a second of the load, where none is given."""
SLOWED: Final = 5.0
"""From which slowdown on it is said, where no bound is given."""
MOST_ABUSERS: Final = 1000
QUARTER: Final = SNAPSHOT_EVERY / 1e9
"""Seconds between snapshots."""
PHASES: Final = ("calm", "storm", "recovery")
_SIZES: Final = Sizes(16, 1024)
"""Of the abusers' own payloads ..."""
_MESSAGES: Final = 256
"""... and how many there are of them."""


class TargetError(ValueError):
    """The target is not to be abused; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chaos:
    """What is to happen beside the load. Times in seconds.

    Attributes:
        abuses: names of ``ABUSES``.
        abusers: how many of each kind, 1 to 1,000.
        calm, storm, recovery: how long the phases last, in quarters.
        patience: how long a hostile client waits for an answer.
        max_frame: the longest request that the server takes; None if it is not known.
        max_slowdown: how much slower the load may become; None is no bound.

    Raises:
        PlanError: a value makes no sense.

    >>> Chaos(storm=0.3).storm
    0.5
    """

    abuses: tuple[str, ...] = tuple(ABUSES)
    abusers: int = 5
    calm: float = 3.0
    storm: float = 10.0
    recovery: float = 3.0
    patience: float = 5.0
    max_frame: int | None = None
    max_slowdown: float | None = None

    def __post_init__(self) -> None:
        for name in (*PHASES, "patience"):
            seconds = getattr(self, name)
            if not 0 < seconds <= LONGEST_DURATION:
                raise PlanError(
                    f"a {name} of {seconds:g} s: more than 0 and up to a year is needed"
                )
            if name in PHASES:
                quarters = math.ceil(round(seconds / QUARTER, 6))
                object.__setattr__(self, name, quarters * QUARTER)
        if not 1 <= self.abusers <= MOST_ABUSERS:
            raise PlanError(f"{self.abusers} abusers of a kind: 1 to {MOST_ABUSERS:,} are possible")
        if self.max_frame is not None and not 1 <= self.max_frame <= MAX_PAYLOAD:
            raise PlanError(f"a longest frame of {self.max_frame}: 1 to {MAX_PAYLOAD} are possible")
        if self.max_slowdown is not None and not 1 <= self.max_slowdown < math.inf:
            raise PlanError(f"a slowdown of {self.max_slowdown:g}: at least 1 is needed")
        room = int(MOST_A_SECOND * beginning(self.storm))
        if self.connections > room:
            raise PlanError(
                f"{self.connections:,} abusers begin at {MOST_A_SECOND}/s at most, and this storm "
                f"has room for {room:,}: give it longer, or have fewer"
            )

    @property
    def connections(self) -> int:
        """How many hostile connections there may be at once, without the flood."""
        return self.abusers * len(self.abuses)

    @property
    def duration(self) -> float:
        """How long all phases last together."""
        return self.calm + self.storm + self.recovery


class PhaseCounts:
    """What was counted in one phase.

    Attributes:
        name: of the phase.
        seconds: how long it was.
        counts: the sum.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.seconds = 0.0
        self.counts = Counts()

    @property
    def goodput(self) -> float:
        """Verified replies a second."""
        return self.counts.on_time / self.seconds if self.seconds else 0.0

    @property
    def p99(self) -> int | None:
        """Nanoseconds; None without a reply."""
        return Histogram(self.counts.latency).percentile(99) if self.counts.latency else None

    def slowdown(self, calm: PhaseCounts) -> float | None:
        """How many times worse than the calm phase it was, by p99 or goodput, whichever is more.

        None where there is nothing to compare; infinite if nothing was served.
        """
        if not (self.seconds and calm.goodput and calm.p99):
            return None
        if not self.goodput or self.p99 is None:
            return math.inf
        return max(self.p99 / calm.p99, calm.goodput / self.goodput)


class Phases:
    """Adds snapshots up by phase, and says when the storm is to begin.

    Args:
        chaos: how long the phases are.
        begin: called once, when the calm phase is over.
    """

    def __init__(self, chaos: Chaos, begin: Callable[[], None]) -> None:
        self._starts = (-math.inf, chaos.calm, chaos.calm + chaos.storm)
        self._lengths = (chaos.calm, chaos.storm)
        self._begin: Callable[[], None] | None = begin
        self.phases = [PhaseCounts(name) for name in PHASES]

    def watch(self, snapshot: Snapshot) -> None:
        """Take a snapshot of any engine."""
        if snapshot.phase in (Phase.CONNECTING, Phase.READY, Phase.WARMING):
            return
        # A snapshot is of the quarter of a second before it, and comes a little late.
        number = bisect.bisect(self._starts, snapshot.elapsed - QUARTER / 2) - 1
        before = 0.0
        for phase, seconds in zip(self.phases[:number], self._lengths, strict=False):
            phase.seconds = seconds
            before += seconds
        phase = self.phases[number]
        phase.counts.add(snapshot.counts)
        phase.seconds = max(phase.seconds, snapshot.elapsed - before)
        if self._begin is not None and snapshot.elapsed >= self._lengths[0]:
            self._begin()
            self._begin = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosRun:
    """What it came to.

    Attributes:
        chaos: what was asked.
        run: the verified load, all phases together.
        embedded: whether the server was the bundled one, started for the run.
        phases: calm, storm, recovery.
        outcomes: what became of the abusers, by kind.
    """

    chaos: Chaos
    run: Run
    embedded: bool
    phases: list[PhaseCounts]
    outcomes: list[Outcome]

    @property
    def disturbed(self) -> bool:
        """Whether a verified reply was wrong or missing, or a connection was lost."""
        return self.run.verdict.exit_code == EXIT_FAILED

    @property
    def slowdown(self) -> float | None:
        """The worst of storm and recovery, beside the calm phase; None where it is not known."""
        calm, *others = self.phases
        known = [each for phase in others if (each := phase.slowdown(calm)) is not None]
        return max(known, default=None)

    @property
    def slowed(self) -> bool:
        """Whether that is more than the bound, or worth saying where there is none."""
        bound = SLOWED if self.chaos.max_slowdown is None else self.chaos.max_slowdown
        return self.slowdown is not None and self.slowdown > bound

    @property
    def verdict(self) -> Verdict:
        """The outcome in a line, and the exit code."""
        load = self.run.verdict
        wrong = [f"{each.wrong:,} of {each.name}" for each in self.outcomes if each.wrong]
        abuse = f"abuses answered otherwise than the protocol says: {', '.join(wrong)}"
        if self.run.interrupted:
            return Verdict(load.text + (f"; {abuse}" if wrong else ""), EXIT_INTERRUPTED)
        if load.exit_code == EXIT_NO_CONNECTION:
            return load
        if load.exit_code != EXIT_FINE or wrong:
            parts = ["verified load " + ("disturbed" if self.disturbed else "undisturbed")]
            if self.disturbed:
                parts[0] += f" ({load.text.removeprefix('FAILED: ')})"
            return Verdict("FAILED: " + "; ".join(parts + [abuse] * bool(wrong)), EXIT_FAILED)
        slow = "" if self.slowdown is None else f"{self.slowdown:.1f} times slower at worst"
        if self.slowed and self.chaos.max_slowdown is not None:
            return Verdict(
                f"SLOWED: {slow}, {self.chaos.max_slowdown:g} allowed; verified load undisturbed, "
                "every abuse answered as the protocol says",
                EXIT_SLOWED,
            )
        return Verdict(
            "OK: verified load undisturbed"
            + (f" (but {slow})" if self.slowed else "")
            + ", every abuse answered as the protocol says",
            EXIT_FINE,
        )


def local_target(target: Address, *, owned: bool = False) -> Address:
    """The target by its number, so that no later look-up gives another one.

    Args:
        owned: whether somebody answers for a target that is not this machine.

    Raises:
        TargetError: it is not this machine, or speaks TLS.
        OSError: the host is unknown.

    >>> local_target(Address("127.0.0.1", 6789)).host
    '127.0.0.1'
    >>> local_target(Address("192.0.2.1", 6789))
    Traceback (most recent call last):
    loadgen.chaos.TargetError: 192.0.2.1:6789 is not this machine: give --i-own-this-target if ...
    """
    if target.tls:
        raise TargetError(f"{target}: abuses are made of plain TCP; give a target without TLS")
    if target.path:
        return target
    found = look_up(target.target)
    for address in found:
        if not (owned or _is_loopback(str(address.sockaddr[0]))):
            where = "" if address.sockaddr[0] == target.host else f" ({address.sockaddr[0]})"
            raise TargetError(
                f"{target}{where} is not this machine: give --i-own-this-target if you may abuse it"
            )
    for address in found if len(found) > 1 else ():
        # As for any load: localhost may have an address that nobody listens on.
        with socket.socket(address.family) as probe:
            probe.settimeout(1.0)
            if probe.connect_ex(address.sockaddr) == 0:
                return Address(str(address.sockaddr[0]), target.port)
    return Address(str(found[0].sockaddr[0]), target.port)


def _is_loopback(host: str) -> bool:
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def plan_of(plan: Plan, chaos: Chaos) -> Plan:
    """The plan of the verified load: of the phases' length, with a rate where no load is given.

    Raises:
        PlanError: it has a length or stages of its own.

    >>> plan_of(Plan(), Chaos()).rate, plan_of(Plan(connections=9), Chaos()).rate
    (2000.0, None)
    """
    usual = Plan()
    if plan.requests is not None or plan.stages or plan.duration != usual.duration:
        raise PlanError(
            "the phases are the duration, and their load is the same: give --calm, --storm and "
            "--recovery, and no --duration, --requests or --stages"
        )
    given = any(
        getattr(plan, name) != getattr(usual, name)
        for name in ("connections", "rate", "think", "pipeline", "active")
    ) or (plan.requests_per_connection is not None)
    return replace(plan, duration=chaos.duration, rate=plan.rate if given else RATE)


def abusers_messages(traffic: Traffic, seed: int) -> tuple[Message, ...]:
    """What abusers send: requests that all differ, or those of the load where it names some.

    Raises:
        TrafficError: they cannot be made.
    """
    if traffic.expect not in ("reverse", "echo", "none"):
        # A function of somebody else may know no payloads but those of the load.
        return traffic.build(seed, 1)[:_MESSAGES]
    sizes = traffic.sizes or _SIZES
    if sizes.is_fixed or traffic.payloads or traffic.payload != Traffic().payload:
        return traffic.build(seed, 1)[:_MESSAGES]
    return messages(make_payloads(sizes, seed)[:_MESSAGES], traffic.expect)


def largest_message(traffic: Traffic, seed: int) -> Message | None:
    """A request of 99,999 bytes; None where no reply to it can be told."""
    payloads = make_payloads(Sizes(MAX_PAYLOAD, MAX_PAYLOAD), seed)
    try:
        return messages(payloads, traffic.expect)[0]
    except TrafficError:
        return None


def check_machine(plan: Plan, chaos: Chaos, *, embedded: bool) -> None:
    """Refuse what needs more open files than a process may have here.

    Raises:
        PlanError: with the number that would work.
    """
    room = max(0, raise_fd_limit() - SPARE_FDS)
    taken = plan.connections if embedded else 0
    if taken + chaos.connections > room:
        most = max(0, room - taken) // len(chaos.abuses)
        raise PlanError(
            f"{chaos.connections:,} abusers are more than the limit of open files allows: at most "
            f"{most:,} of each kind (ulimit -Hn)"
        )


def unleash(plan: Plan, site: Site, chaos: Chaos) -> ChaosRun:
    """Carry it out against a target that ``local_target`` gave, or the bundled server.

    The first SIGINT or SIGTERM ends it early, with a report; the second at once.

    Raises:
        PlanError, TrafficError: this machine cannot do it.
        EmbeddedServerError, WorkerError, StormError: a process failed.
        CommandError: the host is unknown.
        KeyboardInterrupt: a second signal came.
    """
    embedded = site.target is None
    check_machine(plan, chaos, embedded=embedded)
    small = abusers_messages(plan.traffic, plan.seed)
    largest = largest_message(plan.traffic, plan.seed) if "oversize" in chaos.abuses else None
    with ExitStack() as stack:
        target = site.target
        if target is None:
            # What it says of abusers would be all that one reads.
            target = stack.enter_context(embedded_server(quiet=True))
            print(f"no --target: started the bundled server on {target}", file=sys.stderr)
        storm = Storm(
            address=preflight.resolve(target),
            messages=small,
            largest=largest,
            abuses=chaos.abuses,
            abusers=chaos.abusers,
            seconds=chaos.storm,
            patience=chaos.patience,
            max_frame=chaos.max_frame,
        )
        abusers: AbuserProcess = stack.enter_context(abuser_process(storm))
        phases = Phases(chaos, abusers.begin)

        def report(finished: Run) -> ChaosRun:
            if finished.interrupted or not abusers.begun:
                abusers.stop()
            return ChaosRun(
                chaos=chaos,
                run=finished,
                embedded=embedded,
                phases=phases.phases,
                outcomes=abusers.outcomes(),
            )

        return run(plan, replace(site, target=target), report, on_snapshot=phases.watch)

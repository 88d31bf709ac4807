"""What a soak is to be like, what it came to, and what of that is wrong."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any, Final

from soak.measures import Slope, slope

JUDGED: Final = 120.0
"""Seconds of samples from which on a slope says something."""
GRANTED: Final = 1.0
"""MB that a process may grow besides, once: caches fill, and the heap finds its shape, for
some minutes after the warm-up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a soak is like. Times in seconds, rates a second.

    Attributes:
        duration: how long it lasts, at least two rounds.
        round: how long it takes from rest to rest.
        workers: of the server.
        threads, tasks: on ``Client``, on ``AsyncClient``.
        rate: of their requests, all together.
        load_rate: of the requests of each load generator; 0 leaves them out.
        abusers: hostile clients of each kind at a time.
        reload_every: rounds from one reload to the next, in the first half of the time; in
            the other one the same processes go on, to be measured. 0 for none.
        sample_every: between two looks at memory.
        max_objects: how many more objects a process may hold at the end.
        max_slope: MB/h by which memory may grow, as far as that is certain.
        settle: in which connections that have ended have to be gone: lingering takes five.
        server: further options of ``nbnet serve``.
        server_faults, client_leak: what is broken on purpose.
    """

    duration: float
    round: float = 20.0
    workers: int = 2
    threads: int = 6
    tasks: int = 20
    rate: float = 400.0
    load_rate: float = 400.0
    abusers: int = 2
    reload_every: int = 2
    sample_every: float = 1.0
    max_objects: int = 600
    max_slope: float = 5.0
    settle: float = 15.0
    server: tuple[str, ...] = ()
    server_faults: str = ""
    client_leak: bool = False


@dataclass(slots=True)
class Holding:
    """What a process held at the moments of rest: objects, blocks, and the kinds of objects."""

    objects: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    kinds: list[dict[str, int]] = field(default_factory=list)

    def add(self, report: dict[str, Any]) -> None:
        """Another moment of rest."""
        self.objects.append(report["objects"])
        self.blocks.append(report["blocks"])
        self.kinds.append(report["kinds"])

    @property
    def grown(self) -> tuple[int, int]:
        """Objects and blocks that came since the first moment of rest."""
        return self.objects[-1] - self.objects[0], self.blocks[-1] - self.blocks[0]

    def growing(self) -> str:
        """The kinds of objects that became most."""
        more = Counter(self.kinds[-1])
        more.subtract(self.kinds[0])
        return ", ".join(f"{count:+,} {kind}" for kind, count in more.most_common(4) if count > 0)


@dataclass(slots=True)
class Result:
    """What a soak came to so far.

    Attributes:
        verified: replies that were right, of all clients and load generators.
        wrong: those that were not.
        failed: requests that failed, by kind. None are to.
        given_up: requests that their callers gave up on purpose.
        abuses: hostile clients that were answered as the protocol says.
        wrong_abuses: those that were not.
        examples: the first wrong replies and errors of the clients, in words.
        problems: what is wrong, in words.
        memory: samples by what the process does and its number.
        holdings: the same of what it held.
        server_descriptors: of all its processes at each rest, sockets and others, less
            the connections of the clients; the first before any came.
        client_descriptors: connections of the clients at each rest, and what is no socket.
    """

    seconds: float = 0.0
    rounds: int = 0
    reloads: int = 0
    verified: int = 0
    wrong: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    given_up: int = 0
    abuses: int = 0
    wrong_abuses: int = 0
    examples: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    memory: dict[str, dict[int, list[tuple[float, float]]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    holdings: dict[str, dict[int, Holding]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(Holding))
    )
    server_descriptors: list[tuple[int, int]] = field(default_factory=list)
    client_descriptors: list[tuple[int, int]] = field(default_factory=list)

    def slopes(self) -> dict[str, list[Slope]]:
        """How memory grows, by what processes do: of all together, then of each.

        The first half of each one's time is left out: it is still growing into its work.
        """
        found = {}
        for kind, by_pid in self.memory.items():
            series = [_grown_up(samples) for samples in by_pid.values()]
            found[kind] = [slope(series), *(slope([one]) for one in series)]
        return found


def _grown_up(samples: list[tuple[float, float]]) -> list[tuple[float, float]]:
    begin, end = samples[0][0], samples[-1][0]
    return [sample for sample in samples if sample[0] >= (begin + end) / 2]


def judge(result: Result, options: Options) -> None:
    """Say in ``problems`` what of all that was measured is wrong."""
    problems = result.problems
    if result.wrong:
        problems.append(f"{result.wrong:,} wrong replies")
    problems.extend(f"{count:,} failed, {kind}" for kind, count in result.failed.items())
    if result.wrong or result.failed:
        problems.extend(result.examples)
    if result.wrong_abuses:
        problems.append(f"{result.wrong_abuses:,} hostile clients were answered wrongly")
    _judge_descriptors(result, options)
    for kind, by_pid in result.holdings.items():
        for pid, holding in by_pid.items():
            objects, blocks = holding.grown
            if objects > options.max_objects or blocks > 10 * options.max_objects:
                problems.append(
                    f"{kind} ({pid}) hold {objects:+,} objects, {blocks:+,} blocks: "
                    f"{holding.growing()}"
                )
    for kind, rates in result.slopes().items():
        count = len(rates) - 1  # of processes: the first rate is that of all together
        grow = [
            rate
            for number, rate in enumerate(rates)
            if _grows(rate, rate.seconds / (1 if number else count), options.max_slope)
        ]
        problems.extend(f"the memory of {kind} grows: {rate}" for rate in grow[:1])


def _grows(rate: Slope, seconds: float, most: float) -> bool:
    """Whether that is more than a process may take, in so many seconds of its life."""
    return seconds >= JUDGED and rate.low > most + 3600 * GRANTED / seconds


def _judge_descriptors(result: Result, options: Options) -> None:
    server, clients = result.server_descriptors, result.client_descriptors
    if server:
        for what, before, after in zip(("sockets", "others"), server[0], server[-1], strict=True):
            if before != after:
                result.problems.append(
                    f"the server's descriptors, {what}: {before} at first, now {after}"
                )
    if clients:
        # Each thread has a connection, or none if it has just given one up; tasks share four.
        most = options.threads + 4
        (_, first), (connections, others) = clients[0], clients[-1]
        if connections > most or others != first:
            result.problems.append(
                f"the clients have {connections} connections, {most} are possible, and "
                f"{others} other descriptors, {first} at first"
            )

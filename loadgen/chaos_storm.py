"""The abusers of ``loadgen chaos``, all in one loop, and what became of them.

Everything ends by itself: they begin by a timetable that is bounded, each of their
steps has its deadline, and the storm as a whole has ``Storm.longest`` seconds.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from loadgen.chaos_abuses import ABUSES, FLOOD, Means
from loadgen.chaos_peer import Dialer, Fault, Peer, Steps
from loadgen.traffic import Message
from nbnet.machine import SocketAddress
from nbnet.pollers import READ, Poller

MOST_A_SECOND: Final = 500
"""Abusers that begin in a second, and as many connections of the flood beside them."""
LONGEST_HOLD: Final = 2.0
"""Seconds that a slow or silent abuser takes, in a storm that is long enough."""
HOLDS: Final = 4
"""So many times that long a storm lasts at least: in the second half of it nobody begins."""
BULK: Final = 4 << 20
"""Bytes that a slow reader asks for, more than kernels hold ..."""
BULK_OF_ALL: Final = 256 << 20
"""... and all slow readers together."""
EXAMPLES: Final = 3
"""Faults of a kind that are kept with their bytes."""
_BATCH: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Storm:
    """What abusers there are.

    Attributes:
        address: where the server is.
        messages, largest, max_frame: see ``Means``.
        abuses: names of the kinds.
        abusers: how many of each.
        seconds: how long it lasts.
        patience: seconds that an answer may take.
    """

    address: SocketAddress
    messages: tuple[Message, ...]
    largest: Message | None
    abuses: tuple[str, ...]
    abusers: int
    seconds: float
    patience: float
    max_frame: int | None = None

    @property
    def means(self) -> Means:
        """What the abuses have at hand."""
        return Means(
            messages=self.messages,
            largest=self.largest,
            bulk=min(BULK, BULK_OF_ALL // self.abusers),
            hold=hold(self.seconds),
            max_frame=self.max_frame,
        )

    @property
    def longest(self) -> float:
        """Seconds after which no abuser is left, whatever the server does."""
        return self.seconds + 2 * self.patience

    def starts(self) -> list[tuple[float, str, int]]:
        """When which abuser begins: seconds, kind and number, in order."""
        window = beginning(self.seconds)
        kinds = [name for name in self.abuses if name != "connect-flood"]
        count = len(kinds) * self.abusers
        turns = itertools.product(range(self.abusers), kinds)
        starts = [(window * n / count, kind, number) for n, (number, kind) in enumerate(turns)]
        if "connect-flood" in self.abuses:
            # As fast as allowed, while the others are there.
            most = max(FLOOD, int(window / 2 * MOST_A_SECOND) // FLOOD * FLOOD)
            starts += [
                (window / 2 + n / MOST_A_SECOND, "connect-flood", n)
                for n in range(min(most, FLOOD * self.abusers))
            ]
        return sorted(starts)


@dataclass(slots=True, kw_only=True)
class Example:
    """A fault: of which abuser, what it tried, what the server did.

    ``expected`` and ``got`` are the first bytes from where they differ.
    """

    number: int
    variant: str
    said: str
    expected: bytes
    got: bytes


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of the abusers of a kind.

    Attributes:
        name: the kind.
        begun: how many abusers began.
        right: of those, how many were answered as the protocol demands.
        wrong: how many were not; the others were stopped before that was clear.
        examples: the first that were not.
    """

    name: str
    begun: int = 0
    right: int = 0
    wrong: int = 0
    examples: list[Example] = field(default_factory=list)


def hold(storm: float) -> float:
    """Seconds that a slow or silent abuser takes in a storm of so many.

    >>> hold(10.0), hold(1.0)
    (2.0, 0.25)
    """
    return min(LONGEST_HOLD, storm / HOLDS)


def beginning(storm: float) -> float:
    """Seconds of a storm in which abusers begin: the last ones are to end within it.

    >>> beginning(10.0)
    6.0
    """
    return storm - 2 * hold(storm)


@dataclass(slots=True, eq=False)
class _Task:
    """An abuser at work."""

    peer: Peer
    steps: Steps
    outcome: Outcome
    until: float = 0.0
    over: bool = False


class Abusers:
    """Runs the abusers of a storm, in one thread.

    Args:
        storm: who they are.
        dialer, poller, clock: the outside; the clock gives seconds.
        stopping: a descriptor that can be read when all is to stop; the poller
            is told.
    """

    def __init__(
        self,
        storm: Storm,
        *,
        dialer: Dialer,
        poller: Poller,
        clock: Callable[[], float],
        stopping: int,
    ) -> None:
        self._storm = storm
        self._means = storm.means
        self._dialer = dialer
        self._poller = poller
        self._clock = clock
        self._stopping = stopping
        self._tasks: dict[int, _Task] = {}  # by descriptor; may be out of date
        self._alive: set[_Task] = set()
        self._timers: list[tuple[float, int, _Task]] = []  # a heap; may be out of date
        self._count = itertools.count()
        self.outcomes = {name: Outcome(name=name) for name in storm.abuses}

    def run(self) -> list[Outcome]:
        """Let them loose until all are done or the time is over; what became of them."""
        clock, starts = self._clock, self._storm.starts()
        starts.reverse()
        begun = clock()
        end = begun + self._storm.longest
        self._poller.register(self._stopping, READ)
        try:
            while starts or self._alive:
                now = clock()
                if now >= end:
                    self._run_out()
                    break
                while starts and begun + starts[-1][0] <= now:
                    self._begin(*starts.pop()[1:])
                for task in self._due(now):
                    self._resume(task)
                if not (starts or self._alive):
                    break
                due = min(
                    begun + starts[-1][0] if starts else end,
                    self._timers[0][0] if self._timers else end,
                    end,
                )
                timeout = max(0.0, due - clock())
                for fd, _ in self._poller.poll(timeout, _BATCH):
                    if fd == self._stopping:
                        return list(self.outcomes.values())
                    if fd in self._tasks:
                        self._resume(self._tasks[fd])
        finally:
            for task in list(self._alive):
                self._end(task)
            self._poller.unregister(self._stopping)
        return list(self.outcomes.values())

    def _begin(self, kind: str, number: int) -> None:
        peer = Peer(
            number,
            self._storm.patience,
            dialer=self._dialer,
            poller=self._poller,
            clock=self._clock,
        )
        outcome = self.outcomes[kind]
        outcome.begun += 1
        task = _Task(peer, ABUSES[kind].steps(peer, self._means), outcome)
        self._alive.add(task)
        self._resume(task)

    def _due(self, now: float) -> Iterator[_Task]:
        while self._timers and self._timers[0][0] <= now:
            until, _, task = heapq.heappop(self._timers)
            if task.until == until and not task.over:
                yield task

    def _resume(self, task: _Task) -> None:
        if task.over:
            return
        try:
            wait = next(task.steps)
        except StopIteration:
            task.outcome.right += 1
            self._end(task)
        except Fault as fault:
            self._blame(task, fault)
        else:
            task.peer.watch(wait.events)
            if wait.events:
                self._tasks[task.peer.fd] = task
            if wait.until != task.until:
                task.until = wait.until
                heapq.heappush(self._timers, (wait.until, next(self._count), task))

    def _run_out(self) -> None:
        for task in list(self._alive):
            self._blame(task, Fault(f"no end; {task.peer.replies} came"))

    def _blame(self, task: _Task, fault: Fault) -> None:
        outcome = task.outcome
        outcome.wrong += 1
        if len(outcome.examples) < EXAMPLES:
            outcome.examples.append(
                Example(
                    number=task.peer.number,
                    variant=task.peer.variant,
                    said=fault.said,
                    expected=fault.expected,
                    got=fault.got,
                )
            )
        self._end(task)

    def _end(self, task: _Task) -> None:
        task.over = True
        task.steps.close()
        task.peer.close()
        self._alive.discard(task)

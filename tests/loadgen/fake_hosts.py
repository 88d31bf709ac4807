"""Hosts of a cluster in memory, with clocks of their own: what ``Cluster`` is tested with."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from loadgen import agent
from loadgen.clocks import Sample
from loadgen.link import Calls, Event, Heard, Host
from loadgen.share import CONNECT, Share, Told
from loadgen.tally import Counts, Phase, Snapshot
from loadgen.worker import START

TRIP = 2_000_000
"""Nanoseconds that a round trip takes."""


@dataclass(eq=False)
class FakeHost:
    """A host that does what it is told at once.

    Attributes:
        ahead: nanoseconds by which its clock is.
        version: what its survey says of versions, where that is not ours.
        parts: what its engines count: a snapshot each.
        deaf: the step that it does not come to: "prepared", "connect", "start", "stop".
        told: the words that it heard.
        started: the moment that it was told to start, on its own clock.
    """

    address: str
    ahead: int = 0
    cores: int = 2
    version: dict[str, str] = field(default_factory=dict)
    parts: list[Counts] = field(default_factory=lambda: [Counts(sent=1, verified=1)])
    deaf: str = ""
    refuses: tuple[str, int] | None = None
    sum_is_wrong: bool = False
    survey_fails: Exception | None = None
    reserve_fails: Exception | None = None
    share: Share | None = None
    told: list[str] = field(default_factory=list)
    started: int | None = None
    messages: int = 0
    tell: Callable[[Event], None] = lambda _: None

    @property
    def worker(self) -> str:
        return f"tcp://{self.address}:1"

    def say(self, kind: Told, value: Any = None, *, skip: int = 0) -> None:
        self.messages += skip
        body = pickle.dumps((kind, value))
        self.tell(Event(self.worker, Heard.BODY, (self.messages, body)))
        self.messages += 1

    def end(self, *, parts: list[Counts]) -> None:
        total = Counts()
        for number, counts in enumerate(parts):
            snapshot = Snapshot(
                phase=Phase.MEASURING, elapsed=number + 1.0, second=number, counts=counts
            )
            self.say(Told.SNAPSHOT, snapshot)
            total.add(counts)
        if self.sum_is_wrong:
            total.verified += 1
        self.say(Told.DONE, (len(parts), total))
        self.tell(Event(self.worker, Heard.ENDED, 0))

    def place(self) -> None:
        if self.refuses is not None:
            self.say(Told.REFUSED, self.refuses)
        elif self.deaf != "prepared":
            self.say(Told.PREPARED)

    def command(self, word: bytes) -> None:
        if word == CONNECT:
            self.told.append("connect")
            if self.deaf != "connect":
                self.say(Told.READY)
        elif word:
            self.told.append("start")
            self.started = START.unpack(word)[0]
            if self.deaf not in ("start", "stop"):
                self.end(parts=self.parts)
        else:
            self.told.append("stop")
            if self.deaf != "stop":
                self.end(parts=[])


class FakeLink:
    """The way to them. Its clock goes on when nothing is left to be heard, and by round trips."""

    def __init__(self, *hosts: FakeHost) -> None:
        self.there = {host.worker: host for host in hosts}
        self.events: deque[Event] = deque()
        self.now = 10**12
        self.asked: list[str] = []
        for host in hosts:
            host.tell = self.events.append

    def clock(self) -> int:
        return self.now

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def hosts(self) -> list[Host]:
        self.now += 10**9
        return [Host(host.address, host.worker) for host in self.there.values()]

    def call(self, function: Any, arguments: Calls, seconds: float) -> dict[str, Any]:
        del seconds
        self.now += TRIP
        return {
            worker: self._answer(function, self.there[worker], *given)
            for worker, given in arguments.items()
        }

    def _answer(self, function: Any, host: FakeHost, *given: Any) -> Any:
        if function is agent.survey:
            ours = agent.survey() | {"cores": host.cores, "name": f"name-of-{host.address}"}
            return host.survey_fails or ours | host.version
        if function is agent.reserve:
            host.share = pickle.loads(given[1])
            return host.reserve_fails
        if function is agent.abort:
            host.told.append("abort")
            self.events.append(Event(host.worker, Heard.ENDED, -9))
            return None
        assert function is agent.command
        if host.deaf == "time":
            return TimeoutError()
        host.command(given[1])
        return self.now + host.ahead

    def time(self, addresses: list[str], seconds: float) -> dict[str, Any]:
        del seconds
        self.asked += addresses
        asked = self.now
        self.now += TRIP
        return {
            address: TimeoutError()
            if self.there[address].deaf == "time"
            else Sample(asked, asked + TRIP // 2 + self.there[address].ahead, self.now)
            for address in addresses
        }

    def place(self, host: Host) -> None:
        self.there[host.worker].place()

    def post(self, function: Any, calls: Calls, seconds: float | None = None) -> None:
        before = len(self.events)
        answers = self.call(function, calls, 0)
        if seconds is not None:
            for worker, answer in answers.items():
                event = Event(worker, Heard.ANSWER, (calls[worker], answer))
                self.events.insert(before, event)

    def next(self, seconds: float) -> Event | None:
        if self.events:
            return self.events.popleft()
        self.now += int(seconds * 1e9)
        return None

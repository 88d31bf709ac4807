"""What a run is to do, validated before anything is connected."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Final, Self

from loadgen.schedule import Schedule, Stage
from loadgen.traffic import Message, Traffic
from nbnet.machine import SocketAddress
from nbnet.notation import format_duration, parse_address, parse_count, parse_duration

LONGEST_DURATION: Final = 366 * 24 * 3600.0
"""Seconds; a year, to tell a slip of the finger from a plan."""
_PER_SECOND: Final = re.compile(r"(.*?)(?:/s)?")


class PlanError(ValueError):
    """The plan makes no sense, or this machine cannot run it; the message says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run. Times in seconds, rates in requests a second of all workers together.

    Without ``rate`` and ``stages`` the loop is closed: each connection sends its
    next request when the reply to an earlier one has come. With one of them it
    is open: requests are sent when they are due.

    Attributes:
        connections: connections to open and hold.
        duration: how long is measured, from the end of the warm-up.
        rate: requests a second of an open loop; with ``stages``, at their start.
        stages: how the rate changes: seconds, and the rate at the end of them.
        poisson: whether arrivals of an open loop are random (exponential gaps).
        requests: how many to send at most; None is no bound.
        think: how long a connection of a closed loop waits before the next request.
        pipeline: requests in flight on a connection at most.
        active: connections that send, the others stay idle; None is all.
        requests_per_connection: after so many replies a connection is closed
            and replaced; None is never.
        reconnect: whether a connection that failed is replaced.
        traffic: what is sent and expected.
        warmup: how long to send before the measured time.
        connect_rate: connections begun a second at most; None is no bound.
        connect_timeout: how long all connecting may take together, beyond what
            ``connect_rate`` asks.
        timeout: how long a reply may take before its connection is given up.
        grace: how long replies may arrive after the last request was sent.
        seed: of everything random.

    Raises:
        PlanError: a value makes no sense.

    >>> Plan(connections=10, duration=1.5).is_open_loop
    False
    """

    connections: int = 50
    duration: float = 10.0
    rate: float | None = None
    stages: tuple[tuple[float, float], ...] = ()
    poisson: bool = False
    requests: int | None = None
    think: float = 0.0
    pipeline: int = 1
    active: int | None = None
    requests_per_connection: int | None = None
    reconnect: bool = True
    traffic: Traffic = field(default_factory=Traffic)
    warmup: float = 0.0
    connect_rate: float | None = None
    connect_timeout: float = 10.0
    timeout: float = 10.0
    grace: float = 2.0
    seed: int = 1

    def __post_init__(self) -> None:
        for name, value in (
            ("connections", self.connections),
            ("requests in flight a connection", self.pipeline),
            ("requests", self.requests),
            ("active connections", self.active),
            ("requests a connection", self.requests_per_connection),
        ):
            if value is not None and value < 1:
                raise PlanError(f"{value} {name}: at least 1 is needed")
        self._check_times()
        for name, rate in (
            ("rate", self.rate),
            ("connect rate", self.connect_rate),
            *(("rate", rate) for _, rate in self.stages),
        ):
            if rate is not None and not 0 <= rate < math.inf:
                raise PlanError(f"a {name} of {rate:g}: a number from 0 on is needed")
        if self.active is not None and self.active > self.connections:
            raise PlanError(
                f"{self.active} active connections are more than the {self.connections} held"
            )
        if self.connect_rate is not None and not self.connect_rate > 0:
            raise PlanError("a connect rate of 0: more than 0 is needed")
        if self.rate is not None and not self.rate > 0 and not self.stages:
            raise PlanError("a rate of 0: more than 0 is needed")
        if self.is_open_loop and self.think:
            raise PlanError("a think time belongs to a closed loop: an open one sends by its rate")
        if self.poisson and not self.is_open_loop:
            raise PlanError("arrivals belong to an open loop: give its rate as well")
        self._check_stages()

    def _check_times(self) -> None:
        for name, seconds in (
            ("duration", self.duration),
            ("timeout", self.timeout),
            *(("stage", seconds) for seconds, _ in self.stages),
        ):
            if not seconds > 0:
                raise PlanError(f"a {name} of {seconds:g} s: more than 0 is needed")
        for name, seconds in (
            ("duration", self.duration),
            ("warm-up", self.warmup),
            ("timeout", self.timeout),
            ("connect timeout", self.connect_timeout),
            ("think time", self.think),
            ("grace", self.grace),
        ):
            if not seconds >= 0:
                raise PlanError(f"a {name} of {seconds:g} s: at least 0 is needed")
            if seconds > LONGEST_DURATION:
                raise PlanError(f"a {name} of {seconds:g} s: at most a year is possible")

    def _check_stages(self) -> None:
        if not self.stages:
            return
        if not (self.rate or any(rate for _, rate in self.stages)):
            raise PlanError("stages to a rate of 0 alone: nothing would be sent")
        total = sum(seconds for seconds, _ in self.stages)
        if abs(total - self.duration) > 1e-6:
            raise PlanError(
                f"the stages take {format_duration(total)} and the duration is "
                f"{format_duration(self.duration)}: they are the duration, give no other"
            )

    @property
    def is_open_loop(self) -> bool:
        """Whether requests are sent by the clock, not by the replies."""
        return self.rate is not None or bool(self.stages)

    @property
    def is_plain(self) -> bool:
        """Whether each verified reply is followed by the next request, and that is all."""
        return not (self.is_open_loop or self.think) and self._is_simple

    @property
    def is_open_plain(self) -> bool:
        """Whether requests are sent by the clock, one at a time a connection, and that is all."""
        return self.is_open_loop and self._is_simple

    @property
    def _is_simple(self) -> bool:
        return self.pipeline == 1 and self.requests is None and self.requests_per_connection is None

    @property
    def senders(self) -> int:
        """How many connections send."""
        return self.connections if self.active is None else self.active

    @property
    def in_flight(self) -> int:
        """How many requests there can be in flight at once."""
        return self.senders * self.pipeline

    @property
    def connect_seconds(self) -> float:
        """How long connecting may take."""
        ramp = self.connections / self.connect_rate if self.connect_rate else 0.0
        return self.connect_timeout + ramp

    @property
    def schedule_stages(self) -> list[Stage]:
        """The rate from the start of the warm-up on, which has the first that is not nought."""
        if not self.stages:
            rate = self.rate or 0.0
            return [Stage(self.warmup + self.duration, rate, rate)]
        # Warming up at nought would warm nothing.
        before = self.rate or 0.0
        warm = before or next(rate for _, rate in self.stages if rate)
        stages = [Stage(self.warmup, warm, warm)] if self.warmup else []
        for seconds, rate in self.stages:
            stages.append(Stage(seconds, before, rate))
            before = rate
        return stages

    def share(self, worker: int, workers: int) -> Self:
        """The part of one worker; only the rate stays that of all, see ``Schedule``.

        Raises:
            PlanError: there are more workers than connections that send, or requests.

        >>> [Plan(connections=10).share(worker, 3).connections for worker in range(3)]
        [4, 3, 3]
        """
        if workers > self.senders:
            raise PlanError(
                f"{workers} workers are more than the {self.senders} connections that send"
            )
        if self.requests is not None and workers > self.requests:
            raise PlanError(f"{workers} workers are more than the {self.requests} requests")

        def part(total: int, worker: int = worker) -> int:
            return total // workers + (worker < total % workers)

        # Counted from the last worker on, so that each holds the same in all.
        idle = part(self.connections - self.senders, workers - 1 - worker)
        return replace(
            self,
            connections=part(self.senders) + idle,
            active=None if self.active is None else part(self.active),
            requests=None if self.requests is None else part(self.requests),
            connect_rate=None if self.connect_rate is None else self.connect_rate / workers,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one engine is to do.

    Attributes:
        plan: its share.
        address: where the server is.
        messages: what all workers send, each from another one on.
        worker, workers: its number, from 0, and how many there are.
        sources: addresses to connect from, in turn; none leaves it to the kernel.
        tls: whether to encrypt, and how.
    """

    plan: Plan
    address: SocketAddress
    messages: tuple[Message, ...]
    worker: int = 0
    workers: int = 1
    sources: tuple[str, ...] = ()
    tls: TlsPlan | None = None

    @property
    def first_message(self) -> int:
        """Where in the cycle of messages this worker begins."""
        return self.worker * len(self.messages) // self.workers

    @property
    def schedule(self) -> Schedule | None:
        """When it is to send; None in a closed loop."""
        if not self.plan.is_open_loop:
            return None
        return Schedule(
            self.plan.schedule_stages,
            poisson=self.plan.poisson,
            seed=self.plan.seed,
            worker=self.worker,
            workers=self.workers,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsPlan:
    """How to encrypt.

    Attributes:
        server_name: the name that the server's certificate has to be of.
        authority: a PEM file of who may sign it; None is the system's.
        certificate, key: PEM files to show to the server; the key may stand in the first.
    """

    server_name: str
    authority: str | None = None
    certificate: str | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPlan:
    """Which Dask cluster carries a plan out, and how.

    Attributes:
        scheduler: its address, as Dask writes it: ``tcp://HOST:PORT`` or ``tls://HOST:PORT``.
        authority: a PEM file of who may sign the certificates of the cluster.
        certificate, key: PEM files to show to the scheduler.
        hosts: how many to use, and to wait for; None takes those that are there.
        patience: seconds that the scheduler, a host or its agent may take for anything
            beyond what the plan asks of it.
        keep_going: whether the others go on when a host is lost.
    """

    scheduler: str
    authority: str | None = None
    certificate: str | None = None
    key: str | None = None
    hosts: int | None = None
    patience: float = 10.0
    keep_going: bool = False

    @property
    def is_encrypted(self) -> bool:
        """Whether the scheduler is spoken to by TLS."""
        return self.scheduler.startswith("tls://")


def parse_scheduler(text: str) -> str:
    """The address of a Dask scheduler in ``tcp://HOST:PORT``, ``tls://HOST:PORT``, ``HOST:PORT``.

    Raises:
        ValueError: the text is none.

    >>> parse_scheduler("10.0.0.7:8786"), parse_scheduler("tls://scheduler:8786")
    ('tcp://10.0.0.7:8786', 'tls://scheduler:8786')
    """
    match = re.fullmatch(r"(?:(tcp|tls)://)?(.+)", text)
    try:
        found = parse_address(match[2]) if match else None
    except ValueError:
        found = None
    if match is None or found is None or found.path or found.tls or not found.port:
        raise ValueError(
            f"{text!r} is no address of a scheduler: expected one like tcp://scheduler:8786"
        )
    return f"{match[1] or 'tcp'}://{match[2]}"


def parse_rate(text: str) -> float:
    """Requests a second in ``50k``, ``500/s``, ``1.5M``, ``0.5``.

    Raises:
        ValueError: the text is no rate.

    >>> parse_rate("50k"), parse_rate("500/s"), parse_rate("0.5")
    (50000.0, 500.0, 0.5)
    """
    match = _PER_SECOND.fullmatch(text)
    number = match[1] if match else text
    try:
        return float(parse_count(number))
    except ValueError:
        if re.fullmatch(r"[0-9]{0,15}\.[0-9]+", number):
            return float(number)
        raise ValueError(f"{text!r} is no rate: expected one like 500, 50k or 1.5M") from None


def parse_share(text: str) -> float:
    """The share in ``5%``, ``0.1%``; of a whole, so from 0 to 1.

    Raises:
        ValueError: the text is no share.

    >>> parse_share("0.1%")
    0.001
    """
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,9})?)\s*%", text)
    if not match or (percent := Decimal(match[1])) > 100:
        raise ValueError(f"{text!r} is no share: expected one like 0.1% (0% to 100%)")
    return float(percent / 100)  # equal to a quotient of counts that is equal


def parse_stages(text: str) -> tuple[tuple[float, float], ...]:
    """Seconds, and the rate at the end of them, in ``10s:10k,30s:50k``.

    Raises:
        ValueError: the text says no such thing.

    >>> parse_stages("10s:10k,1m:50k")
    ((10.0, 10000.0), (60.0, 50000.0))
    """
    stages = []
    for part in text.split(","):
        seconds, colon, rate = part.partition(":")
        if not colon:
            raise ValueError(f"{part!r} is no stage: expected TIME:RATE, as in 10s:10k")
        try:
            stages.append((parse_duration(seconds), parse_rate(rate)))
        except ValueError as error:
            raise ValueError(f"{part!r} is no stage: {error}") from None
    return tuple(stages)

"""What a run is to do, validated before anything is connected."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nbnet.framing import MAX_PAYLOAD
from nbnet.machine import SPARE_FDS, SocketAddress, look_up, raise_fd_limit
from nbnet.notation import Target

LONGEST_DURATION: Final = 366 * 24 * 3600.0
"""Seconds; a year, to tell a slip of the finger from a plan."""


class PlanError(ValueError):
    """The plan makes no sense, or this machine cannot run it; the message says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run. Times in seconds.

    Attributes:
        connections: connections to open and hold.
        duration: how long requests are sent, counted from when all connect
            attempts have ended.
        payload: what each request carries, 1 to 99,999 bytes.
        connect_timeout: how long all connecting may take together.
        grace: how long replies may arrive after the last request was sent.

    Raises:
        PlanError: a value makes no sense.

    >>> Plan(connections=10, duration=1.5).payload
    b'abc'
    """

    connections: int = 50
    duration: float = 10.0
    payload: bytes = b"abc"
    connect_timeout: float = 10.0
    grace: float = 2.0

    def __post_init__(self) -> None:
        if self.connections < 1:
            raise PlanError(f"{self.connections} connections: at least 1 is needed")
        if not self.duration > 0:
            raise PlanError(f"a duration of {self.duration:g} s: more than 0 is needed")
        if self.duration > LONGEST_DURATION:
            raise PlanError(f"a duration of {self.duration:g} s: at most a year is possible")
        if not 1 <= len(self.payload) <= MAX_PAYLOAD:
            raise PlanError(
                f"a payload of {len(self.payload)} bytes: a request holds 1 to {MAX_PAYLOAD:,}"
            )


@dataclass(frozen=True, slots=True)
class Job:
    """What one engine is to do."""

    plan: Plan
    address: SocketAddress


def resolve(target: Target) -> SocketAddress:
    """Look a target up; of several addresses, the first that a connection can be made to.

    ``localhost`` often means ``::1`` first, where a server bound to 127.0.0.1
    does not listen. A single address is not tried.

    Raises:
        OSError: the host is unknown.
    """
    found = look_up(target)
    for address in found if len(found) > 1 else ():
        with socket.socket(address.family) as probe:
            probe.settimeout(1.0)
            if probe.connect_ex(address.sockaddr) == 0:
                return address
    return found[0]


def check_machine(plan: Plan) -> None:
    """Refuse a plan with more connections than this machine can hold.

    Raises:
        PlanError: with the number that would work.
    """
    descriptors = max(0, raise_fd_limit() - SPARE_FDS)
    if plan.connections > descriptors:
        raise PlanError(
            f"{plan.connections} connections are more than the limit of open files allows here: "
            f"at most {descriptors} (ulimit -Hn)"
        )
    ports = local_ports()
    if plan.connections > ports:
        raise PlanError(
            f"{plan.connections} connections are more than there are local ports to one address: "
            f"at most {ports} (net.ipv4.ip_local_port_range)"
        )


def local_ports() -> int:
    """How many local ports the kernel gives out to connections."""
    first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    return int(last) - int(first) + 1

"""Before a run: where the server is, and whether this machine can do what is asked.

What the limits do not allow is said before anything is connected, with the
number that would work.
"""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path
from typing import Final

from loadgen.plan import Plan, PlanError
from nbnet.machine import SPARE_FDS, SocketAddress, look_up, raise_fd_limit
from nbnet.notation import Address

CONNECTION_BYTES: Final = 16 << 10
"""Memory that a connection takes at most while little is under way, on both ends,
which on loopback are on this machine: some 4 KiB a socket in the kernel and 2 KiB
in an engine were measured."""
REQUEST_BYTES: Final = 256
"""Memory that a request in flight takes in an engine at most, besides its own bytes."""
_LOOPBACK: Final = ipaddress.ip_network("127.0.0.0/8")
_SOURCES: Final = 250
"""Addresses of 127.0.0.0/8 that connections may be spread over."""
_QUICK: Final = 4
"""One in so many ports of an address is used where there are more addresses to choose
from. The kernel looks for a free port among those of one parity first, and once
these, half of all, are taken it looks through all of them each time."""


def resolve(target: Address) -> SocketAddress:
    """Look a target up; of several addresses, the first that a connection can be made to.

    ``localhost`` often means ``::1`` first, where a server bound to 127.0.0.1
    does not listen. A single address is not tried.

    Raises:
        OSError: the host is unknown.
    """
    if target.path:
        return SocketAddress(socket.AF_UNIX, target.path)
    found = look_up(target.target)
    for address in found if len(found) > 1 else ():
        with socket.socket(address.family) as probe:
            probe.settimeout(1.0)
            if probe.connect_ex(address.sockaddr) == 0:
                return address
    return found[0]


def check_machine(plan: Plan, workers: int, *, embedded: bool) -> None:
    """Refuse a plan with more connections, or requests in flight, than this machine can hold.

    Args:
        embedded: whether the bundled server is to hold their other ends.

    Raises:
        PlanError: with the number that would work.
    """
    descriptors = max(0, raise_fd_limit() - SPARE_FDS)
    needed = -(-plan.connections // workers)
    if embedded and plan.connections > descriptors:
        raise PlanError(
            f"{plan.connections} connections are more than the limit of open files allows the "
            f"bundled server: at most {descriptors} (ulimit -Hn)"
        )
    if needed > descriptors:
        if not descriptors:
            raise PlanError(
                f"{plan.connections} connections are more than the limit of open files allows "
                f"here: it leaves none, at least {SPARE_FDS + 1} are needed (ulimit -Hn)"
            )
        if workers == 1:
            raise PlanError(
                f"{plan.connections} connections are more than the limit of open files allows "
                f"here: at most {descriptors} (ulimit -Hn), or several --workers"
            )
        raise PlanError(
            f"{plan.connections} connections are {needed} a worker, more than the limit of open "
            f"files allows here: at most {descriptors * workers} with {workers} workers, or "
            f"--workers {-(-plan.connections // descriptors)}"
        )
    memory = available_memory()
    if plan.connections * CONNECTION_BYTES > memory:
        raise PlanError(
            f"{plan.connections} connections take more than the {memory >> 20} MiB of memory "
            f"that are free here: at most {memory // CONNECTION_BYTES}"
        )
    if plan.in_flight * REQUEST_BYTES > memory:
        raise PlanError(
            f"{plan.in_flight} requests in flight take more than the {memory >> 20} MiB of memory "
            f"that are free here: at most {memory // REQUEST_BYTES}, of --pipeline on all "
            "connections together"
        )


def choose_sources(
    plan: Plan, address: SocketAddress, given: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """The addresses to connect from; none leaves it to the kernel.

    A pair of addresses has only as many connections as there are local ports,
    about 28,000, and those over the half are slow to make. To a server on
    loopback, more than that are spread over 127.0.0.0/8, all of which is this
    machine; elsewhere more than all need addresses that are given.

    Args:
        given: addresses that this machine has.

    Raises:
        PlanError: there are too few ports, or an address is not of this machine.
    """
    if address.family == socket.AF_UNIX:
        if given:
            raise PlanError("a unix socket is connected to from no address: leave --source away")
        return ()
    for source in given:
        _check_source(source, address)
    ports = local_ports()
    needed = -(-plan.connections // ports)
    if given:
        if needed > len(given):
            raise PlanError(
                f"{plan.connections} connections are more than there are local ports on the "
                f"{len(given)} addresses given: at most {ports * len(given)}, or "
                f"{needed} addresses (net.ipv4.ip_local_port_range)"
            )
        return given
    host = str(address.sockaddr[0])
    if address.family == socket.AF_INET and ipaddress.ip_address(host) in _LOOPBACK:
        if needed > _SOURCES:
            raise PlanError(
                f"{plan.connections} connections are more than the local ports of "
                f"{_SOURCES} addresses: at most {ports * _SOURCES}"
            )
        if plan.connections <= ports // 2:
            return ()
        quick = -(-plan.connections // max(1, ports // _QUICK))
        return tuple(f"127.0.0.{number}" for number in range(1, min(quick, _SOURCES) + 1))
    if needed == 1:
        return ()
    raise PlanError(
        f"{plan.connections} connections are more than there are local ports to one address: "
        f"at most {ports} (net.ipv4.ip_local_port_range), or give {needed} addresses of this "
        "machine with --source"
    )


def _check_source(source: str, address: SocketAddress) -> None:
    try:
        ipaddress.ip_address(source)
    except ValueError:  # a name would be looked up for each connection
        raise PlanError(f"--source {source}: expected an address, not a name") from None
    with socket.socket(address.family) as probe:
        try:
            probe.bind((source, 0))
        except OSError as error:
            raise PlanError(f"--source {source}: {error.strerror}") from error


def local_ports() -> int:
    """How many local ports the kernel gives out to connections."""
    first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    return int(last) - int(first) + 1


def available_memory() -> int:
    """Bytes that can be taken without swapping, as the kernel estimates them."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, value, *_ = line.split()
        if name == "MemAvailable:":
            return int(value) << 10
    raise OSError("no MemAvailable in /proc/meminfo")

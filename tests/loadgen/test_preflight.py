"""Before a run: targets are looked up, and the machine's bounds kept."""

from __future__ import annotations

import contextlib
import re
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from loadgen import preflight
from loadgen.plan import Plan, PlanError
from loadgen.preflight import (
    CONNECTION_BYTES,
    REQUEST_BYTES,
    available_memory,
    check_machine,
    choose_sources,
    local_ports,
    resolve,
)
from nbnet.machine import SPARE_FDS, SocketAddress, raise_fd_limit
from nbnet.notation import Address, parse_address

quiet = settings(deadline=None, derandomize=True)
LOOPBACK = SocketAddress(socket.AF_INET, ("127.0.0.1", 6789))
ELSEWHERE = SocketAddress(socket.AF_INET, ("192.0.2.1", 6789))
UNIX = SocketAddress(socket.AF_UNIX, "/run/nbnet.sock")
PLENTY = 1 << 40


@contextlib.contextmanager
def machine(*, fds: int = PLENTY, ports: int = PLENTY, memory: int = PLENTY) -> Iterator[None]:
    """Have the machine allow so much."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preflight, "raise_fd_limit", lambda: fds)
        patch.setattr(preflight, "local_ports", lambda: ports)
        patch.setattr(preflight, "available_memory", lambda: memory)
        yield


def refusal(plan: Plan, workers: int = 1, *, embedded: bool = False) -> str:
    with pytest.raises(PlanError) as caught:
        check_machine(plan, workers, embedded=embedded)
    return str(caught.value)


def refused_sources(connections: int, address: SocketAddress, given: tuple[str, ...] = ()) -> str:
    with pytest.raises(PlanError) as caught:
        choose_sources(Plan(connections=connections), address, given)
    return str(caught.value)


def named(message: str) -> int:
    """The number of connections that a message says would work."""
    match = re.search(r"at most ([0-9]+)", message)
    assert match is not None
    return int(match[1])


# Targets -----------------------------------------------------------------------------


def test_an_address_resolves_to_itself() -> None:
    assert resolve(parse_address("127.0.0.1:6789")) == LOOPBACK


def test_an_address_of_ipv6_resolves_to_itself() -> None:
    address = resolve(parse_address("tls://[::1]:6789"))
    assert address.family == socket.AF_INET6
    assert address.sockaddr[:2] == ("::1", 6789)


def test_a_unix_socket_is_its_path() -> None:
    assert resolve(parse_address("unix:/run/nbnet.sock")) == UNIX


@pytest.mark.parametrize("host", ["host.invalid", ".", "a..b", "a" * 64 + ".example"])
def test_an_unknown_host_is_an_error_of_the_system(host: str) -> None:
    with pytest.raises(socket.gaierror) as caught:
        resolve(Address(host, 80))
    assert caught.value.strerror


def _found(*addresses: tuple[str, int]) -> list[object]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]


def test_of_several_addresses_the_first_that_answers_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # refuses, as nothing listens
        found = _found(bound.getsockname(), listener.getsockname())
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_named: found)
        assert resolve(Address("name", 80)).sockaddr == listener.getsockname()


def test_of_several_addresses_that_all_refuse_the_first_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        found = _found(first.getsockname(), second.getsockname())
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_named: found)
        assert resolve(Address("name", 80)).sockaddr == first.getsockname()


# What the machine is asked -----------------------------------------------------------


@pytest.fixture
def fd_limit() -> Iterator[int]:
    """The hard limit; the soft one is put back at the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_soft_limit_of_descriptors_is_raised_to_the_hard_one(fd_limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (fd_limit // 2, fd_limit))
    assert raise_fd_limit() == fd_limit
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (fd_limit, fd_limit)


def test_the_kernel_has_local_ports() -> None:
    assert 1 <= local_ports() < 65536


def test_there_is_memory_for_a_test() -> None:
    assert available_memory() > 1 << 20


def test_a_kernel_that_does_not_tell_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _path: "MemTotal: 16 kB\nMemFree: 8 kB\n")
    with pytest.raises(OSError, match="no MemAvailable"):
        available_memory()


# Open files and memory ---------------------------------------------------------------


def test_what_the_machine_allows_is_not_refused() -> None:
    with machine():
        check_machine(Plan(connections=100_000), 1, embedded=True)
        check_machine(Plan(connections=100_000), 4, embedded=False)


@pytest.mark.parametrize(
    ("workers", "embedded", "says"),
    [
        (
            1,
            False,
            (
                "1001 connections are more than the limit of open files allows here: at most 1000 "
                "(ulimit -Hn), or several --workers"
            ),
        ),
        (
            1,
            True,
            (
                "1001 connections are more than the limit of open files allows the bundled server: "
                "at most 1000 (ulimit -Hn)"
            ),
        ),
        (
            4,
            True,
            (
                "1001 connections are more than the limit of open files allows the bundled server: "
                "at most 1000 (ulimit -Hn)"
            ),
        ),
    ],
)
def test_more_connections_than_open_files_are_refused(
    workers: int, embedded: bool, says: str
) -> None:
    with machine(fds=1000 + SPARE_FDS):
        assert refusal(Plan(connections=1001), workers, embedded=embedded) == says
        check_machine(Plan(connections=1000), workers, embedded=embedded)


def test_more_connections_than_the_open_files_of_all_workers_are_refused() -> None:
    with machine(fds=1000 + SPARE_FDS):
        assert refusal(Plan(connections=4001), 4) == (
            "4001 connections are 1001 a worker, more than the limit of open files allows here: "
            "at most 4000 with 4 workers, or --workers 5"
        )


@pytest.mark.parametrize("workers", [1, 2])
def test_where_no_worker_can_open_a_file_more_of_them_are_no_advice(workers: int) -> None:
    with machine(fds=SPARE_FDS):
        assert refusal(Plan(connections=2), workers) == (
            "2 connections are more than the limit of open files allows here: it leaves none, at "
            f"least {SPARE_FDS + 1} are needed (ulimit -Hn)"
        )


@quiet
@given(st.integers(SPARE_FDS + 1, 500), st.integers(1, 8), st.booleans(), st.integers(1, 10_000))
def test_the_number_of_connections_named_works_and_one_more_does_not(
    fds: int, workers: int, embedded: bool, connections: int
) -> None:
    with machine(fds=fds):
        try:
            check_machine(Plan(connections=connections), workers, embedded=embedded)
        except PlanError as error:
            most = named(str(error))
        else:
            return
        assert most < connections
        if most:
            check_machine(Plan(connections=most), workers, embedded=embedded)
        refusal(Plan(connections=most + 1), workers, embedded=embedded)


@quiet
@given(st.integers(SPARE_FDS + 1, 500), st.integers(2, 8), st.integers(1, 10_000))
def test_the_number_of_workers_named_works_and_one_less_does_not(
    fds: int, workers: int, connections: int
) -> None:
    assume(connections > (fds - SPARE_FDS) * workers)
    plan = Plan(connections=connections)
    with machine(fds=fds):
        match = re.search(r"--workers ([0-9]+)", refusal(plan, workers))
        assert match is not None
        check_machine(plan, int(match[1]), embedded=False)
        refusal(plan, int(match[1]) - 1)


@quiet
@given(st.integers(1, 500), st.integers(1, 8), st.data())
def test_no_share_holds_more_than_what_was_checked(
    connections: int, workers: int, data: st.DataObject
) -> None:
    active = data.draw(st.none() | st.integers(1, connections))
    plan = Plan(connections=connections, active=active)
    assume(workers <= plan.senders)
    most = max(plan.share(worker, workers).connections for worker in range(workers))
    with machine(fds=most + SPARE_FDS):
        check_machine(plan, workers, embedded=False)
    with machine(fds=most + SPARE_FDS - 1):
        refusal(plan, workers)


@quiet
@given(st.integers(CONNECTION_BYTES, 1 << 36))
def test_more_connections_than_memory_are_refused_with_what_would_work(memory: int) -> None:
    with machine(memory=memory):
        message = refusal(Plan(connections=1 << 30))
        most = memory // CONNECTION_BYTES
        assert message == (
            f"{1 << 30} connections take more than the {memory >> 20} MiB of memory that are "
            f"free here: at most {most}"
        )
        check_machine(Plan(connections=most), 1, embedded=True)
        assert named(refusal(Plan(connections=most + 1))) == most


@quiet
@given(st.integers(2 * CONNECTION_BYTES, 1 << 36))
def test_more_requests_in_flight_than_memory_are_refused_with_what_would_work(memory: int) -> None:
    with machine(memory=memory):
        message = refusal(Plan(connections=2, active=1, pipeline=1 << 30))
        most = memory // REQUEST_BYTES
        assert message == (
            f"{1 << 30} requests in flight take more than the {memory >> 20} MiB of memory that "
            f"are free here: at most {most}, of --pipeline on all connections together"
        )
        check_machine(Plan(connections=2, active=1, pipeline=most), 1, embedded=True)
        assert named(refusal(Plan(connections=2, active=1, pipeline=most + 1))) == most


# Addresses to connect from -----------------------------------------------------------


def test_the_kernel_chooses_where_its_ports_suffice() -> None:
    with machine(ports=100):
        assert choose_sources(Plan(connections=50), LOOPBACK) == ()
        assert choose_sources(Plan(connections=100), ELSEWHERE) == ()


def test_to_loopback_more_connections_than_half_the_ports_come_from_more_addresses() -> None:
    with machine(ports=100):
        assert choose_sources(Plan(connections=51), LOOPBACK) == (
            *("127.0.0.1", "127.0.0.2", "127.0.0.3"),
        )
        assert choose_sources(Plan(connections=201), LOOPBACK)[-1] == "127.0.0.9"
        assert choose_sources(Plan(connections=20_000), LOOPBACK)[-1] == "127.0.0.250"


@quiet
@given(st.integers(1, 30_000))
def test_loopback_has_a_number_of_addresses_that_works_and_one_more_does_not(
    ports: int,
) -> None:
    with machine(ports=ports):
        message = refused_sources(1 << 30, LOOPBACK)
        most = named(message)
        assert message == (
            f"{1 << 30} connections are more than the local ports of 250 addresses: at most {most}"
        )
        sources = choose_sources(Plan(connections=most), LOOPBACK)
        assert len(set(sources)) * ports >= most
        assert named(refused_sources(most + 1, LOOPBACK)) == most


@pytest.mark.parametrize(
    "address", [ELSEWHERE, SocketAddress(socket.AF_INET6, ("::1", 6789, 0, 0))]
)
def test_elsewhere_more_connections_than_ports_need_addresses(address: SocketAddress) -> None:
    with machine(ports=100):
        assert choose_sources(Plan(connections=100), address) == ()
        assert refused_sources(101, address) == (
            "101 connections are more than there are local ports to one address: at most 100 "
            "(net.ipv4.ip_local_port_range), or give 2 addresses of this machine with --source"
        )


@quiet
@given(st.integers(1, 5), st.integers(1, 1000))
def test_addresses_given_are_taken_as_far_as_their_ports_go(count: int, ports: int) -> None:
    given = tuple(f"127.0.0.{number}" for number in range(1, count + 1))
    with machine(ports=ports):
        most = ports * count
        assert choose_sources(Plan(connections=1), LOOPBACK, given) == given
        assert choose_sources(Plan(connections=most), LOOPBACK, given) == given
        assert refused_sources(most + 1, LOOPBACK, given) == (
            f"{most + 1} connections are more than there are local ports on the {count} "
            f"addresses given: at most {most}, or {count + 1} addresses "
            "(net.ipv4.ip_local_port_range)"
        )


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("192.0.2.1", "--source 192.0.2.1: Cannot assign requested address"),
        ("::1", "--source ::1: Address family for hostname not supported"),
        ("localhost", "--source localhost: expected an address, not a name"),
        ("", "--source : expected an address, not a name"),
        ("a..b", "--source a..b: expected an address, not a name"),
        ("127.0.0.1:80", "--source 127.0.0.1:80: expected an address, not a name"),
    ],
)
def test_an_address_that_is_not_of_this_machine_is_refused(source: str, says: str) -> None:
    assert refused_sources(1, LOOPBACK, ("127.0.0.1", source)) == says


def test_a_unix_socket_is_connected_to_from_no_address() -> None:
    with machine(ports=1):
        assert choose_sources(Plan(connections=1000), UNIX) == ()
    assert refused_sources(1, UNIX, ("127.0.0.1",)) == (
        "a unix socket is connected to from no address: leave --source away"
    )

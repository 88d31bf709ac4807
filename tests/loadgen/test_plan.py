"""Plans are validated, targets looked up, and the machine's bounds kept."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator

import pytest

from loadgen import plan as plan_module
from loadgen.plan import Plan, PlanError, check_machine, local_ports, resolve
from nbnet.machine import SPARE_FDS, SocketAddress, raise_fd_limit
from nbnet.notation import Target


@pytest.fixture
def fd_limit() -> Iterator[int]:
    """The hard limit; the soft one is put back at the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_plan_is_what_was_asked() -> None:
    plan = Plan(connections=5000, duration=30.0, payload=b"hello")
    assert (plan.connections, plan.duration, plan.payload) == (5000, 30.0, b"hello")


@pytest.mark.parametrize("payload", [b"x", b"x" * 99_999])
def test_the_shortest_and_the_longest_payload_make_a_plan(payload: bytes) -> None:
    assert Plan(payload=payload).payload == payload


@pytest.mark.parametrize(
    ("connections", "duration", "payload", "says"),
    [
        (0, 1.0, b"abc", "0 connections: at least 1 is needed"),
        (-3, 1.0, b"abc", "-3 connections: at least 1 is needed"),
        (1, 0.0, b"abc", "a duration of 0 s: more than 0 is needed"),
        (1, -1.0, b"abc", "a duration of -1 s: more than 0 is needed"),
        (1, 1e9, b"abc", "a duration of 1e+09 s: at most a year is possible"),
        (1, float("inf"), b"abc", "a duration of inf s: at most a year is possible"),
        (1, float("nan"), b"abc", "a duration of nan s: more than 0 is needed"),
        (1, 1.0, b"", "a payload of 0 bytes: a request holds 1 to 99,999"),
        (1, 1.0, b"x" * 100_000, "a payload of 100000 bytes: a request holds 1 to 99,999"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(
    connections: int, duration: float, payload: bytes, says: str
) -> None:
    with pytest.raises(PlanError) as caught:
        Plan(connections=connections, duration=duration, payload=payload)
    assert str(caught.value) == says


def test_an_address_resolves_to_itself() -> None:
    assert resolve(Target("127.0.0.1", 6789)) == SocketAddress(socket.AF_INET, ("127.0.0.1", 6789))


def test_an_address_of_ipv6_resolves_to_itself() -> None:
    address = resolve(Target("::1", 6789))
    assert address.family == socket.AF_INET6
    assert address.sockaddr[:2] == ("::1", 6789)


@pytest.mark.parametrize("host", ["host.invalid", ".", "a..b", "a" * 64 + ".example"])
def test_an_unknown_host_is_an_error_of_the_system(host: str) -> None:
    with pytest.raises(socket.gaierror) as caught:
        resolve(Target(host, 80))
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
        address = resolve(Target("name", 80))
        assert address.sockaddr == listener.getsockname()


def test_of_several_addresses_that_all_refuse_the_first_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        found = _found(first.getsockname(), second.getsockname())
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_named: found)
        assert resolve(Target("name", 80)).sockaddr == first.getsockname()


def test_the_soft_limit_of_descriptors_is_raised_to_the_hard_one(fd_limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (fd_limit // 2, fd_limit))
    assert raise_fd_limit() == fd_limit
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (fd_limit, fd_limit)


def test_the_kernel_has_local_ports() -> None:
    assert 1 <= local_ports() < 65536


@pytest.mark.parametrize(
    ("fds", "ports", "at_most", "named"),
    [
        (1000, 5000, 1000 - SPARE_FDS, "ulimit -Hn"),
        (90_000, 5000, 5000, "net.ipv4.ip_local_port_range"),
    ],
)
def test_more_connections_than_the_machine_allows_are_refused_with_what_would_work(
    fds: int, ports: int, at_most: int, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "raise_fd_limit", lambda: fds)
    monkeypatch.setattr(plan_module, "local_ports", lambda: ports)
    check_machine(Plan(connections=at_most))
    with pytest.raises(PlanError) as caught:
        check_machine(Plan(connections=at_most + 1))
    assert str(caught.value).startswith(f"{at_most + 1} connections are more than")
    assert f"at most {at_most} ({named})" in str(caught.value)

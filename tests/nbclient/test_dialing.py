"""Connections of the blocking front on real sockets: timeouts, races, TLS.

An address that answers nothing (a black hole) is a listener whose queue of
connections is full: the kernel drops what else comes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from nbclient import Client, dialing
from nbclient.dialing import (
    PlainStream,
    SecureStream,
    Stream,
    TimedStream,
    open_stream,
)
from nbclient.settings import Settings, reason_of, reasons_of
from nbnet import Certificate, Server
from nbnet.machine import SocketAddress
from nbnet.notation import Address, Target

LONG = 20.0  # seconds that nothing here should take
HIGH = 1500  # a descriptor that select() could not wait for

FUTEX = ("202", "98")  # on x86-64 and on ARM: it waits for the interpreter's lock

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Both ends of a TCP connection, the client's first."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with client, server:
        yield client, server


@pytest.fixture(params=[PlainStream, TimedStream])
def kind(request: pytest.FixtureRequest) -> type[TimedStream]:
    made: type[TimedStream] = request.param
    return made


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Lets the process have descriptors with numbers up to ``HIGH`` and some more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = HIGH + 100
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"only {hard} descriptors are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def moved_up(sock: socket.socket) -> socket.socket:
    """The same socket with a high number."""
    with sock:
        number = fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, HIGH)
        return socket.socket(fileno=number)


def wait_readable(sock: socket.socket) -> None:
    """Until the kernel has something for it."""
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    assert poller.poll(LONG * 1000)


def connect(target: str, timeout: float | None = LONG, **arguments: Any) -> Stream:
    settings = Settings.read(target, **arguments)
    return open_stream(settings.addresses[0], timeout, settings)


# Using a connection ------------------------------------------------------------


def test_bytes_go_both_ways_until_the_end(kind: type[TimedStream], pair: Pair) -> None:
    client, server = pair
    stream = kind(client)
    assert stream.send(b"abc", 5.0) == 3
    assert stream.send(memoryview(b"abcdef")[3:], None) == 3
    assert server.recv(6, socket.MSG_WAITALL) == b"abcdef"
    server.sendall(b"xyz")
    assert stream.receive(5.0) == b"xyz"
    server.close()
    assert stream.receive(5.0) == b""
    assert stream.receive(None) == b""


def test_what_is_left_to_receive_is_seen_at_once(kind: type[TimedStream], pair: Pair) -> None:
    client, server = pair
    stream = kind(client)
    assert not stream.readable()
    server.sendall(b"x")
    wait_readable(client)
    assert stream.readable()
    assert stream.receive(5.0) == b"x"
    assert not stream.readable()
    server.close()
    wait_readable(client)
    assert stream.readable()  # the end counts


def test_a_reset_is_seen_and_raised(kind: type[TimedStream], pair: Pair) -> None:
    client, server = pair
    stream = kind(client)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.close()
    wait_readable(client)
    assert stream.readable()
    with pytest.raises(ConnectionResetError):
        stream.receive(5.0)


def test_where_there_is_no_poll_select_will_do(monkeypatch: pytest.MonkeyPatch, pair: Pair) -> None:
    client, server = pair
    stream = TimedStream(client)
    server.sendall(b"x")
    wait_readable(client)
    monkeypatch.delattr(select, "poll")
    assert stream.readable()
    assert stream.receive(5.0) == b"x"
    assert not stream.readable()


def test_closing_may_be_repeated(kind: type[TimedStream], pair: Pair) -> None:
    client, server = pair
    stream = kind(client)
    stream.close()
    stream.close()
    stream.abort()
    assert server.recv(1) == b""
    with pytest.raises(OSError, match="Bad file descriptor"):
        stream.receive(5.0)


def in_thread(call: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """A thread that makes a call, and where to find what came of it."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(call())
        except OSError as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


def wait_asleep(thread: threading.Thread) -> None:
    """Until it waits in a system call, as far as the system lets one see that."""
    current = Path(f"/proc/self/task/{thread.native_id}/syscall")
    deadline = time.monotonic() + LONG
    while time.monotonic() < deadline:
        try:
            number = current.read_text().split()[0]
        except OSError:
            return
        if number not in ("running", *FUTEX):
            return
        os.sched_yield()
    raise AssertionError("it does not wait for anything")


@pytest.mark.parametrize("timeout", [None, LONG])
def test_receiving_ends_when_another_thread_aborts(
    kind: type[TimedStream], pair: Pair, timeout: float | None
) -> None:
    stream = kind(pair[0])
    thread, results = in_thread(lambda: stream.receive(timeout))
    wait_asleep(thread)
    stream.abort()
    thread.join(LONG / 2)
    assert results == [b""]


def test_sending_ends_when_another_thread_aborts(kind: type[TimedStream], pair: Pair) -> None:
    stream = kind(pair[0])

    def send_for_ever() -> None:
        while True:
            stream.send(bytes(1 << 20), None)

    thread, results = in_thread(send_for_ever)
    wait_asleep(thread)
    stream.abort()
    thread.join(LONG / 2)
    (error,) = results
    assert isinstance(error, BrokenPipeError)


@pytest.mark.usefixtures("many_descriptors")
def test_descriptors_may_have_high_numbers(kind: type[TimedStream], pair: Pair) -> None:
    client, server = moved_up(pair[0]), pair[1]
    with client:
        assert client.fileno() >= HIGH
        stream = kind(client)
        assert not stream.readable()
        stream.send(b"abc", 5.0)
        assert server.recv(3) == b"abc"
        server.sendall(b"cba")
        wait_readable(client)
        assert stream.readable()
        assert stream.receive(5.0) == b"cba"


# Timeouts ----------------------------------------------------------------------


def assert_times_out(call: Callable[[float], object], timeout: float) -> None:
    """It raises not before the timeout, nor long after: what a busy machine adds."""
    started = time.monotonic()
    with pytest.raises(TimeoutError) as caught:
        call(timeout)
    took = time.monotonic() - started
    assert caught.value.errno is None  # not what the kernel calls so
    assert timeout <= took < timeout + LONG


@pytest.mark.parametrize("timeout", [1e-9, 0.001, 0.05, 0.3])
def test_a_timeout_comes_neither_early_nor_late(
    kind: type[TimedStream], pair: Pair, timeout: float
) -> None:
    assert_times_out(kind(pair[0]).receive, timeout)


def test_timeouts_that_change_little_never_come_early(pair: Pair) -> None:
    stream = PlainStream(pair[0])
    for timeout in (0.1, 0.1009, 0.101, 0.1011, 0.099, 0.0985, 0.05, 0.1):
        assert_times_out(stream.receive, timeout)


def test_sending_times_out_when_nobody_reads(kind: type[TimedStream], pair: Pair) -> None:
    stream = kind(pair[0])
    data = bytes(1 << 20)
    with contextlib.suppress(TimeoutError):
        while stream.send(data, 0.05):
            pass
    assert_times_out(lambda timeout: stream.send(data, timeout), 0.2)


def test_a_timeout_does_not_last(pair: Pair) -> None:
    client, server = pair
    stream = PlainStream(client)
    assert_times_out(stream.receive, 0.01)
    thread, results = in_thread(lambda: stream.receive(None))
    wait_asleep(thread)
    thread.join(0.1)  # ten times what it was before
    assert thread.is_alive()
    server.sendall(b"x")
    thread.join(LONG / 2)
    assert results == [b"x"]


class Armed(socket.socket):
    """Records what the kernel is told of timeouts."""

    def __init__(self, fileno: int) -> None:
        super().__init__(fileno=fileno)
        self.told: list[tuple[int, float]] = []

    def setsockopt(self, level: int, option: int, value: Any, *more: Any) -> None:
        seconds, micros = struct.unpack("@ll", value)
        self.told.append((option, seconds + micros / 1e6))
        super().setsockopt(level, option, value, *more)


@contextlib.contextmanager
def armed() -> Iterator[tuple[Armed, PlainStream, socket.socket]]:
    client, server = socket.socketpair()
    with server, Armed(client.detach()) as recorded:
        yield recorded, PlainStream(recorded), server


timeouts = st.none() | st.floats(1e-9, 1e6) | st.floats(0.97, 1.03)


@given(st.lists(st.tuples(st.booleans(), timeouts), max_size=20))
def test_the_kernel_waits_at_least_as_long_as_asked_and_little_more(
    calls: list[tuple[bool, float | None]],
) -> None:
    with armed() as (client, stream, server):
        for sends, timeout in calls:
            option = socket.SO_SNDTIMEO if sends else socket.SO_RCVTIMEO
            if sends:
                stream.send(b"x", timeout)
            else:
                server.send(b"x")
                stream.receive(timeout)
            limit = next((told for name, told in reversed(client.told) if name == option), 0.0)
            if timeout is None:
                assert limit == 0.0  # none
            else:
                assert timeout <= limit <= 1.0201 * timeout + 3e-6


@pytest.mark.parametrize("timeout", [None, 5.0])
def test_the_kernel_is_not_told_the_same_twice(timeout: float | None) -> None:
    with armed() as (client, stream, server):
        for times in range(3):
            stream.send(b"x", timeout and timeout - times / 1000)
            server.send(b"x")
            stream.receive(timeout and timeout - times / 1000)
        assert [option for option, _ in client.told] == (
            [socket.SO_SNDTIMEO, socket.SO_RCVTIMEO] if timeout else []
        )


# Connecting --------------------------------------------------------------------


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(LONG)
        yield listening


@pytest.fixture
def black_hole() -> Iterator[Target]:
    """An address that never answers."""
    with socket.socket() as listening, contextlib.ExitStack() as stack:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(10):
            connecting = stack.enter_context(socket.socket())
            connecting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                connecting.connect(listening.getsockname())
            # Where there is room, this takes no time on the loopback.
            if not select.select([], [connecting], [], 0.05)[1]:
                break
        else:
            raise AssertionError("the queue of connections has no end")
        yield Target(*listening.getsockname())


NEVER = SocketAddress(socket.AF_INET6, ("fe80::1", 1, 0, 0))
"""An address that cannot even be tried: it lacks the interface."""


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Address]:
    """Makes a host that stands for some addresses."""

    def resolves_to(*addresses: Target | SocketAddress) -> Address:
        found = [
            address if isinstance(address, SocketAddress) else (socket.AF_INET, tuple(address))
            for address in addresses
        ]
        monkeypatch.setattr(
            socket,
            "getaddrinfo",
            lambda *_, **__: [
                (family, socket.SOCK_STREAM, 6, "", where) for family, where in found
            ],
        )
        return Address("several.example", 1)

    return resolves_to


def check(stream: Stream, listener: socket.socket) -> None:
    """The stream leads to the listener."""
    assert isinstance(stream, TimedStream)
    with contextlib.closing(stream):
        while True:
            accepted, _ = listener.accept()
            with accepted:
                if accepted.getpeername() != stream._socket.getsockname():
                    continue  # it has lost its race
                accepted.sendall(b"hello")
                assert stream.receive(LONG) == b"hello"
                return


def where(listener: socket.socket) -> Target:
    return Target(*listener.getsockname())


def open_to(address: Address, timeout: float | None = LONG) -> Stream:
    return open_stream(address, timeout, Settings.read("h:1"))


@pytest.mark.parametrize("timeout", [None, LONG])
def test_a_connection_sends_at_once_and_its_timeout_is_its_own(
    listener: socket.socket, timeout: float | None
) -> None:
    stream = connect(str(where(listener)), timeout)
    assert type(stream) is PlainStream
    assert stream._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert_times_out(stream.receive, 0.05)
    check(stream, listener)


def test_elsewhere_than_on_linux_the_interpreter_keeps_the_time(
    monkeypatch: pytest.MonkeyPatch, listener: socket.socket
) -> None:
    monkeypatch.setattr(dialing, "_KERNEL_TIMEOUTS", False)
    stream = connect(str(where(listener)))
    assert type(stream) is TimedStream
    check(stream, listener)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_a_host_may_be_reached_by_ipv6() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        listener.settimeout(LONG)
        check(connect(f"[::1]:{listener.getsockname()[1]}"), listener)


def test_a_unix_socket_is_reached_by_its_path(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(LONG)
        check(connect(f"unix:{path}"), listener)
    with pytest.raises(ConnectionRefusedError):
        connect(f"unix:{path}")
    with pytest.raises(FileNotFoundError):
        connect(f"unix:{path}2")
    with pytest.raises(OSError, match="too long"):
        connect(f"unix:{path * 10}")


def test_who_refuses_is_told_by_the_operating_system(refusing: Target) -> None:
    with pytest.raises(ConnectionRefusedError) as caught:
        connect(str(refusing))
    assert caught.value.errno == errno.ECONNREFUSED


def test_a_host_that_nobody_knows_is_an_operating_systems_error() -> None:
    with pytest.raises(socket.gaierror):
        connect(f"{'x' * 64}.example:1")  # a label may not be that long


def test_connecting_times_out(black_hole: Target) -> None:
    assert_times_out(lambda timeout: connect(str(black_hole), timeout), 0.1)


@pytest.mark.parametrize("several", [False, True])
def test_when_the_look_up_took_all_the_time_it_is_over(
    resolve: Callable[..., Address],
    monkeypatch: pytest.MonkeyPatch,
    listener: socket.socket,
    *,
    several: bool,
) -> None:
    address = resolve(*[where(listener)] * (1 + several))
    at_once = socket.getaddrinfo

    def slow(*arguments: Any, **more: Any) -> Any:
        time.sleep(0.02)  # longer than there is
        return at_once(*arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with pytest.raises(TimeoutError):
        open_to(address, 0.01)


def test_a_socket_that_is_connected_to_itself_is_none(
    monkeypatch: pytest.MonkeyPatch, resolve: Callable[..., Address], listener: socket.socket
) -> None:
    def bind_one() -> Target:
        bound = socket.socket()
        bound.bind(("127.0.0.1", 0))
        sockets.append(bound)
        return Target(*bound.getsockname())

    sockets: list[socket.socket] = []
    make = dialing._make_socket
    monkeypatch.setattr(
        dialing, "_make_socket", lambda family: sockets.pop() if sockets else make(family)
    )
    with pytest.raises(ConnectionRefusedError):
        open_to(resolve(bind_one()))
    check(open_to(resolve(bind_one(), where(listener))), listener)


# Several addresses -------------------------------------------------------------


def test_the_first_address_that_works_is_taken(
    resolve: Callable[..., Address], listener: socket.socket, refusing: Target
) -> None:
    check(open_to(resolve(where(listener), refusing)), listener)


@pytest.mark.parametrize("times", [1, 3])
def test_behind_an_address_that_refuses_the_next_is_tried_at_once(
    monkeypatch: pytest.MonkeyPatch,
    resolve: Callable[..., Address],
    listener: socket.socket,
    refusing: Target,
    times: int,
) -> None:
    monkeypatch.setattr(dialing, "NEXT_AFTER", 2 * LONG)
    check(open_to(resolve(*[refusing] * times, where(listener))), listener)


def test_behind_one_that_does_not_answer_the_next_is_tried_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
    resolve: Callable[..., Address],
    listener: socket.socket,
    black_hole: Target,
) -> None:
    monkeypatch.setattr(dialing, "NEXT_AFTER", 0.05)
    started = time.monotonic()
    stream = open_to(resolve(black_hole, black_hole, where(listener)), None)
    assert time.monotonic() - started >= 0.1
    check(stream, listener)


def test_those_that_fail_cost_no_time_while_another_one_is_awaited(
    resolve: Callable[..., Address],
    monkeypatch: pytest.MonkeyPatch,
    listener: socket.socket,
    refusing: Target,
    black_hole: Target,
) -> None:
    monkeypatch.setattr(dialing, "NEXT_AFTER", 0.5)
    unknown = SocketAddress(9999, ("nowhere",))  # a family that no machine has
    failing = [refusing] * 20 + [NEVER, unknown] * 20
    addresses = [NEVER, unknown, black_hole, *failing, where(listener)]
    monkeypatch.setattr(dialing, "_interleave", list)  # as they stand
    check(open_to(resolve(*addresses), 10.0), listener)


def test_an_address_that_answers_late_wins_if_the_others_do_not(
    monkeypatch: pytest.MonkeyPatch,
    resolve: Callable[..., Address],
    refusing: Target,
    listener: socket.socket,
) -> None:
    """While the first one is awaited, the second refuses."""
    monkeypatch.setattr(dialing, "NEXT_AFTER", 0.0)
    check(open_to(resolve(where(listener), refusing, where(listener))), listener)


def test_with_no_address_that_works_each_reason_is_given(
    resolve: Callable[..., Address], refusing: Target
) -> None:
    with pytest.raises(ConnectionRefusedError) as caught:
        open_to(resolve(refusing, NEVER, refusing))
    group = caught.value.__cause__
    assert isinstance(group, ExceptionGroup)
    assert len(group.exceptions) == 3
    assert reasons_of(caught.value).startswith("Connection refused, ")


def test_with_no_address_that_can_be_tried_the_reasons_are_given(
    resolve: Callable[..., Address],
) -> None:
    with pytest.raises(OSError, match=r"\[Errno") as caught:
        open_to(resolve(NEVER, NEVER))
    assert isinstance(caught.value.__cause__, ExceptionGroup)


@pytest.mark.parametrize("count", [2, 5])
def test_a_race_that_nobody_wins_times_out(
    resolve: Callable[..., Address],
    black_hole: Target,
    count: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dialing, "NEXT_AFTER", 0.1)
    # With two, the last wait is for the deadline alone; with five, for the next too.
    assert_times_out(lambda timeout: open_to(resolve(*[black_hole] * count), timeout), 0.25)


def test_families_take_turns_and_that_of_the_first_one_begins() -> None:
    def addresses(*families: int) -> list[SocketAddress]:
        return [SocketAddress(family, (number,)) for number, family in enumerate(families)]

    four, six = socket.AF_INET, socket.AF_INET6
    mixed = dialing._interleave(addresses(six, six, six, four, four))
    assert [address.sockaddr[0] for address in mixed] == [0, 3, 1, 4, 2]
    mixed = dialing._interleave(addresses(four, six, six))
    assert [address.sockaddr[0] for address in mixed] == [0, 1, 2]
    assert dialing._interleave(addresses(four)) == addresses(four)


@pytest.mark.usefixtures("many_descriptors")
def test_a_race_may_have_high_numbers(
    monkeypatch: pytest.MonkeyPatch,
    resolve: Callable[..., Address],
    listener: socket.socket,
    refusing: Target,
) -> None:
    make = dialing._make_socket
    monkeypatch.setattr(dialing, "_make_socket", lambda family: moved_up(make(family)))
    check(open_to(resolve(refusing, where(listener))), listener)


# TLS ---------------------------------------------------------------------------


class Authority:
    """Certificates, and the files that a client has of them."""

    def __init__(self, directory: Path) -> None:
        authority, clients, strangers = trustme.CA(), trustme.CA(), trustme.CA()
        self.server = authority.issue_cert("localhost", "127.0.0.1")
        self.server_cert, self.server_key = self.pem(directory, "server", self.server)
        self.cert, self.key = self.pem(directory, "client", clients.issue_cert("somebody"))
        self.ca, self.wrong_ca = directory / "ca.pem", directory / "wrong_ca.pem"
        authority.cert_pem.write_to_path(str(self.ca))
        strangers.cert_pem.write_to_path(str(self.wrong_ca))
        self.clients = clients

    def pem(self, directory: Path, name: str, leaf: trustme.LeafCert) -> tuple[Path, Path]:
        cert, key = directory / f"{name}.pem", directory / f"{name}_key.pem"
        cert.write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(str(key))
        return cert, key

    def context(self, *, mutual: bool = False) -> ssl.SSLContext:
        """What a server has."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.configure_cert(context)
        if mutual:
            self.clients.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


class Peer:
    """A server for one connection, with TLS, in a thread of its own."""

    def __init__(self, listener: socket.socket, context: ssl.SSLContext) -> None:
        self._listener, self._context = listener, context
        self.secure: ssl.SSLSocket | None = None
        self.error: OSError | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        if self.secure is not None:
            self.secure.close()

    def agreed(self) -> ssl.SSLSocket:
        """The connection, once the server has sent its part of the handshake, tickets and all."""
        self._thread.join()
        assert self.secure is not None
        return self.secure

    def _run(self) -> None:
        try:
            accepted, _ = self._listener.accept()
            accepted.settimeout(LONG)
            self.secure = self._context.wrap_socket(accepted, server_side=True)
        except OSError as error:
            self.error = error


def secure_target(listener: socket.socket) -> str:
    return f"tls://{where(listener)}"


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def version(request: pytest.FixtureRequest) -> ssl.TLSVersion:
    made: ssl.TLSVersion = request.param
    return made


def test_bytes_go_both_ways_under_tls(
    authority: Authority, listener: socket.socket, version: ssl.TLSVersion
) -> None:
    context = authority.context()
    context.maximum_version = version
    with Peer(listener, context) as peer:
        stream = connect(secure_target(listener), tls_ca=authority.ca)
        assert type(stream) is SecureStream
        with contextlib.closing(stream):
            server = peer.agreed()
            assert server.version() == version.name.replace("v1_", "v1.")
            assert stream.send(b"abc", 5.0) == 3
            assert stream.send(memoryview(b"abcdef")[3:], None) == 3
            assert server.recv(3) + server.recv(3) == b"abcdef"
            server.sendall(b"xyz")
            assert stream.receive(5.0) == b"xyz"
            assert_times_out(stream.receive, 0.05)
            server.close()
            assert stream.receive(5.0) == b""


def test_what_tls_sends_of_its_own_accord_is_nothing_to_receive(
    authority: Authority, listener: socket.socket
) -> None:
    with (
        Peer(listener, authority.context()) as peer,
        contextlib.closing(connect(secure_target(listener), tls_ca=authority.ca)) as stream,
    ):
        assert isinstance(stream, SecureStream)
        server = peer.agreed()
        wait_readable(stream._socket)  # two session tickets
        assert not stream.readable()
        assert not TimedStream.readable(stream)  # they were taken
        server.sendall(b"hello")
        wait_readable(stream._socket)
        assert stream.readable()
        assert stream.receive(5.0) == b"hello"
        assert not stream.readable()


def test_to_look_takes_nothing_away(authority: Authority, listener: socket.socket) -> None:
    with (
        Peer(listener, authority.context()) as peer,
        contextlib.closing(connect(secure_target(listener), tls_ca=authority.ca)) as stream,
    ):
        assert isinstance(stream, SecureStream)
        server = peer.agreed()
        sent = bytes(range(256)) * 64 * 20  # twenty records
        server.sendall(sent)
        got = b""
        while len(got) < len(sent):
            looked = [stream.readable(), stream.readable()]
            got += stream.receive(5.0)
            assert looked in ([True, True], [False, False], [False, True])
        assert got == sent
        assert not stream.readable()
        server.close()
        wait_readable(stream._socket)
        assert stream.readable()
        assert stream.receive(5.0) == b""


def test_part_of_a_record_that_was_read_already_is_seen(
    authority: Authority, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialing, "READ_SIZE", 3)
    with (
        Peer(listener, authority.context()) as peer,
        contextlib.closing(connect(secure_target(listener), tls_ca=authority.ca)) as stream,
    ):
        assert isinstance(stream, SecureStream)
        peer.agreed().sendall(b"abcdef")
        assert stream.receive(5.0) == b"abc"
        assert not TimedStream.readable(stream)  # the kernel has nothing more
        assert stream.readable()
        assert stream.receive(5.0) == b"def"


def test_a_reset_under_tls_is_seen(authority: Authority, listener: socket.socket) -> None:
    with (
        Peer(listener, authority.context()) as peer,
        contextlib.closing(connect(secure_target(listener), tls_ca=authority.ca)) as stream,
    ):
        assert isinstance(stream, SecureStream)
        server = peer.agreed()
        wait_readable(stream._socket)
        assert not stream.readable()  # the session tickets
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.close()
        wait_readable(stream._socket)
        assert stream.readable()
        with contextlib.suppress(ConnectionResetError):  # some versions tell it from an end
            assert stream.receive(5.0) == b""


def test_an_alert_is_seen(authority: Authority, listener: socket.socket) -> None:
    """With TLS 1.3 the server may refuse a client that believes that all is agreed."""
    context = authority.context(mutual=True)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with (
        Peer(listener, context),
        contextlib.closing(connect(secure_target(listener), tls_ca=authority.ca)) as stream,
    ):
        assert isinstance(stream, SecureStream)
        wait_readable(stream._socket)
        assert stream.readable()
        stream.close()


def test_receiving_under_tls_ends_when_another_thread_aborts(
    authority: Authority, listener: socket.socket
) -> None:
    with (
        Peer(listener, authority.context()) as peer,
        contextlib.closing(connect(secure_target(listener), tls_ca=authority.ca)) as stream,
    ):
        peer.agreed()
        thread, results = in_thread(lambda: stream.receive(None))
        wait_asleep(thread)
        stream.abort()
        thread.join(LONG / 2)
        (result,) = results  # the end, or a reset: interpreters differ
        assert result == b"" or isinstance(result, ConnectionResetError)


def test_behind_an_abort_nothing_is_received_that_was_not_decrypted(
    authority: Authority, listener: socket.socket
) -> None:
    with (
        Peer(listener, authority.context()) as peer,
        contextlib.closing(connect(secure_target(listener), tls_ca=authority.ca)) as stream,
    ):
        assert isinstance(stream, SecureStream)
        peer.agreed().sendall(b"hello")
        wait_readable(stream._socket)
        stream.abort()
        with contextlib.suppress(ConnectionResetError):  # as above
            assert stream.receive(5.0) in (b"hello", b"")


@pytest.mark.usefixtures("many_descriptors")
def test_descriptors_may_have_high_numbers_under_tls(
    authority: Authority, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = dialing._make_socket
    monkeypatch.setattr(dialing, "_make_socket", lambda family: moved_up(make(family)))
    with (
        Peer(listener, authority.context()) as peer,
        contextlib.closing(connect(secure_target(listener), tls_ca=authority.ca)) as stream,
    ):
        assert isinstance(stream, SecureStream)
        assert stream._socket.fileno() >= HIGH
        peer.agreed().sendall(b"hello")
        wait_readable(stream._socket)
        while not stream.readable():
            wait_readable(stream._socket)
        assert stream.receive(5.0) == b"hello"


def test_with_mutual_tls_the_client_shows_its_certificate(
    authority: Authority, listener: socket.socket, version: ssl.TLSVersion
) -> None:
    context = authority.context(mutual=True)
    context.maximum_version = version
    arguments: dict[str, Any] = {
        "tls_ca": authority.ca,
        "tls_cert": authority.cert,
        "tls_key": authority.key,
    }
    with (
        Peer(listener, context) as peer,
        contextlib.closing(connect(secure_target(listener), **arguments)) as stream,
    ):
        assert peer.agreed().getpeercert()
        peer.agreed().sendall(b"hello")
        assert stream.receive(5.0) == b"hello"


def test_without_a_certificate_mutual_tls_fails(
    authority: Authority, listener: socket.socket, version: ssl.TLSVersion
) -> None:
    context = authority.context(mutual=True)
    context.maximum_version = version
    # Since TLS 1.3 the client only learns of it when it reads.
    with (
        Peer(listener, context) as peer,
        pytest.raises((ssl.SSLError, ConnectionError)),
        contextlib.closing(connect(secure_target(listener), tls_ca=authority.ca)) as stream,
    ):
        stream.receive(5.0)
    assert peer.secure is None
    assert isinstance(peer.error, ssl.SSLError)


@pytest.mark.parametrize(
    ("ca", "name", "reason"),
    [
        ("wrong_ca", None, "the certificate does not verify: unable to get local issuer"),
        ("ca", "b.example", "the certificate does not verify: Hostname mismatch"),
    ],
)
def test_a_server_that_is_not_who_it_should_be_is_refused(
    authority: Authority, listener: socket.socket, ca: str, name: str | None, reason: str
) -> None:
    with (
        Peer(listener, authority.context()),
        pytest.raises(ssl.SSLCertVerificationError) as caught,
    ):
        connect(secure_target(listener), tls_ca=getattr(authority, ca), tls_server_name=name)
    assert reason_of(caught.value).startswith(reason)


def test_a_server_may_have_another_name_than_its_address(
    authority: Authority, tmp_path: Path
) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(LONG)
        arguments: dict[str, Any] = {"tls_ca": authority.ca, "tls_server_name": "localhost"}
        with (
            Peer(listener, authority.context()) as peer,
            contextlib.closing(connect(f"unix:{path}", **arguments)) as stream,
        ):
            peer.agreed().sendall(b"hello")
            assert stream.receive(5.0) == b"hello"


def test_a_host_with_several_addresses_may_speak_tls(
    authority: Authority,
    listener: socket.socket,
    refusing: Target,
    resolve: Callable[..., Address],
) -> None:
    several = resolve(refusing, where(listener))
    settings = Settings.read(f"tls://{several}", tls_ca=authority.ca, tls_server_name="localhost")
    with (
        Peer(listener, authority.context()) as peer,
        contextlib.closing(open_stream(settings.addresses[0], LONG, settings)) as stream,
    ):
        peer.agreed().sendall(b"hello")
        assert stream.receive(5.0) == b"hello"


def test_a_server_that_speaks_no_tls_is_an_error(authority: Authority, address: Target) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        connect(f"tls://{address}", tls_ca=authority.ca)


def test_the_handshake_counts_as_connecting(authority: Authority, listener: socket.socket) -> None:
    """The kernel accepts the connection, and nobody answers."""
    target = secure_target(listener)
    assert_times_out(lambda timeout: connect(target, timeout, tls_ca=authority.ca), 0.1)


def test_an_interrupt_before_the_handshake_closes_the_socket(
    authority: Authority, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", interrupt)
    with pytest.raises(KeyboardInterrupt):
        connect(secure_target(listener), tls_ca=authority.ca)
    accepted, _ = listener.accept()
    with accepted:
        accepted.settimeout(LONG)
        assert accepted.recv(1) == b""


def test_a_client_pipelines_under_tls(authority: Authority) -> None:
    """It looks for replies between requests, which must not take them away."""
    certificate = Certificate(authority.server_cert, authority.server_key)
    with (
        Server(port=0, tls=certificate) as server,
        Client(server.address, tls_ca=authority.ca) as client,
    ):
        payloads = [b"%d." % number for number in range(2000)]
        replies = list(client.request_many(payloads))
        assert replies == [payload[::-1] for payload in payloads]
        assert client.request(b"abc") == b"cba"


def test_every_kind_of_stream_is_one() -> None:
    names = [name for name in vars(Stream) if not name.startswith("_")]
    assert sorted(names) == ["abort", "close", "readable", "receive", "send"]
    for stream in (TimedStream, PlainStream, SecureStream):
        assert all(callable(getattr(stream, name)) for name in names)

"""Connections on real sockets, each made by its events as the engine makes them."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import ssl
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import trustme

from loadgen.dialing import KernelDialer
from loadgen.opening import Opener
from loadgen.plan import TlsPlan
from nbnet.machine import SocketAddress
from nbnet.pollers import READ, WRITE
from nbnet.tls import TlsSocket, server_context, wrap

NAME = "server.test"


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="the machine has no ::1")


class Scene:
    """Dialers, listeners and connections, all closed at the end."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack

    def keep(self, made: socket.socket) -> socket.socket:
        return self._stack.enter_context(made)

    def listen(self, family: int = socket.AF_INET, host: str = "127.0.0.1") -> socket.socket:
        return self.keep(socket.create_server((host, 0), family=family))

    def dial(self, dialer: KernelDialer) -> socket.socket:
        return self.keep(dialer.dial())

    def finish(self, dialer: KernelDialer, connection: socket.socket) -> socket.socket:
        """Wait until a connection is made; without TLS that is one step."""
        wait(connection, WRITE)
        assert dialer.advance(connection) == (connection, 0)
        return connection

    def connect(
        self, listener: socket.socket, sources: Sequence[str] = ()
    ) -> tuple[KernelDialer, socket.socket, socket.socket]:
        """A connection, with who made it and its other end."""
        dialer = KernelDialer(at(listener), sources)
        connection = self.finish(dialer, self.dial(dialer))
        return dialer, connection, self.keep(listener.accept()[0])


@pytest.fixture
def scene() -> Iterator[Scene]:
    with contextlib.ExitStack() as stack:
        yield Scene(stack)


def at(listener: socket.socket) -> SocketAddress:
    return SocketAddress(listener.family, listener.getsockname())


def descriptors() -> list[str]:
    """What this process has open."""
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def wait(connection: socket.socket, event: int) -> None:
    with select.epoll() as poller:
        poller.register(connection, event)
        assert poller.poll(10), "nothing came"


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


# Plain connections -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "host"),
    [
        (socket.AF_INET, "127.0.0.1"),
        pytest.param(socket.AF_INET6, "::1", marks=needs_ipv6),
    ],
)
def test_a_connection_over_tcp(scene: Scene, family: int, host: str) -> None:
    _, connection, peer = scene.connect(scene.listen(family, host))
    assert connection.getpeername() == peer.getsockname()
    assert not connection.getblocking()
    assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    connection.send(b"00003abc")
    assert peer.recv(100) == b"00003abc"
    with pytest.raises(BlockingIOError):
        connection.recv(100)


def test_a_connection_over_a_unix_socket(scene: Scene, tmp_path: Path) -> None:
    listener = scene.keep(socket.socket(socket.AF_UNIX))
    listener.bind(str(tmp_path / "socket"))
    listener.listen()
    dialer, connection, peer = scene.connect(listener)
    connection.send(b"00003abc")
    assert peer.recv(100) == b"00003abc"
    assert dialer.stamped(connection) is None


def test_a_unix_socket_with_a_full_backlog_is_for_later(scene: Scene, tmp_path: Path) -> None:
    listener = scene.keep(socket.socket(socket.AF_UNIX))
    listener.bind(str(tmp_path / "socket"))
    listener.listen(0)
    dialer = KernelDialer(at(listener))
    scene.dial(dialer)
    before = descriptors()
    with pytest.raises(BlockingIOError):
        dialer.dial()
    assert descriptors() == before
    scene.keep(listener.accept()[0])
    scene.finish(dialer, scene.dial(dialer))


def test_reads_need_no_size_of_their_own() -> None:
    assert KernelDialer(SocketAddress(socket.AF_INET, ("127.0.0.1", 1))).read_size == 0


def test_a_port_where_nobody_listens_refuses(scene: Scene) -> None:
    bound = scene.keep(socket.socket())
    bound.bind(("127.0.0.1", 0))
    dialer = KernelDialer(at(bound))
    connection = scene.dial(dialer)
    wait(connection, WRITE)
    with pytest.raises(ConnectionRefusedError):
        dialer.advance(connection)


def test_a_unix_socket_of_nobody_refuses_at_once(tmp_path: Path) -> None:
    before = descriptors()
    with pytest.raises(FileNotFoundError):
        KernelDialer(SocketAddress(socket.AF_UNIX, str(tmp_path / "socket"))).dial()
    assert descriptors() == before


def test_an_address_that_the_kernel_refuses_at_once_leaves_no_socket() -> None:
    before = descriptors()
    with pytest.raises(OSError, match=r"unreachable|denied|invalid|Invalid"):
        KernelDialer(SocketAddress(socket.AF_INET, ("255.255.255.255", 1))).dial()
    assert descriptors() == before


def test_a_connection_that_is_reset_before_it_is_looked_at_has_failed(scene: Scene) -> None:
    listener = scene.listen()
    dialer = KernelDialer(at(listener))
    connection = scene.dial(dialer)
    reset(listener.accept()[0])
    wait(connection, READ)
    with pytest.raises(ConnectionResetError):
        dialer.advance(connection)


def test_a_connection_to_itself_is_refused(scene: Scene) -> None:
    # As when the kernel gives out the very port that is dialled.
    connection = scene.keep(socket.socket())
    connection.bind(("127.0.0.1", 0))
    connection.connect(connection.getsockname())
    assert connection.getsockname() == connection.getpeername()
    with pytest.raises(ConnectionRefusedError) as caught:
        KernelDialer(at(connection)).advance(connection)
    assert caught.value.errno == errno.ECONNREFUSED


# Sources -----------------------------------------------------------------------------


def test_connections_come_from_the_addresses_in_turn(scene: Scene) -> None:
    listener = scene.listen()
    dialer = KernelDialer(at(listener), ("127.0.0.2", "127.0.0.3"))
    hosts = []
    for _ in range(3):
        scene.finish(dialer, scene.dial(dialer))
        peer, (host, _) = listener.accept()
        scene.keep(peer)
        hosts.append(host)
    assert hosts == ["127.0.0.2", "127.0.0.3", "127.0.0.2"]


@needs_ipv6
def test_a_connection_comes_from_an_address_of_ipv6(scene: Scene) -> None:
    _, connection, peer = scene.connect(scene.listen(socket.AF_INET6, "::1"), ("::1",))
    assert connection.getsockname()[:2] == peer.getpeername()[:2]


def test_a_port_may_be_given_out_once_for_each_server(scene: Scene) -> None:
    # The port is chosen with the server in mind: until then there is none.
    dialer = KernelDialer(at(scene.listen()), ("127.0.0.2",))
    connection = scene.dial(dialer)
    option = 24  # IP_BIND_ADDRESS_NO_PORT
    assert connection.getsockopt(socket.IPPROTO_IP, option) == 1
    assert connection.getsockname()[1] != 0


def test_an_address_that_is_not_of_this_machine_leaves_no_socket(scene: Scene) -> None:
    dialer = KernelDialer(at(scene.listen()), ("192.0.2.1",))
    before = descriptors()
    with pytest.raises(OSError, match="Cannot assign requested address"):
        dialer.dial()
    assert descriptors() == before


# How long bytes have waited ----------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "host"),
    [
        (socket.AF_INET, "127.0.0.1"),
        pytest.param(socket.AF_INET6, "::1", marks=needs_ipv6),
    ],
)
def test_a_reply_that_has_waited_is_told_so(scene: Scene, family: int, host: str) -> None:
    dialer, connection, peer = scene.connect(scene.listen(family, host))
    read = dialer.stamped(connection)
    assert read is not None
    # The kernel begins to stamp a while after it was first asked to.
    for _ in range(1000):
        begun = time.time_ns()
        peer.send(b"00003cba")
        wait(connection, READ)
        there = time.time_ns()
        while (now := time.time_ns()) < there + 1_000_000:
            pass
        data, waited = read(100)
        assert data == b"00003cba"
        if waited != -1:
            break
    assert now - there <= waited <= time.time_ns() - begun


def test_a_read_with_stamps_is_a_read_in_all_other_respects(scene: Scene) -> None:
    dialer, connection, peer = scene.connect(scene.listen())
    read = dialer.stamped(connection)
    assert read is not None
    with pytest.raises(BlockingIOError):
        read(100)
    peer.send(b"00003cba")
    wait(connection, READ)
    assert [read(5)[0], read(100)[0]] == [b"00003", b"cba"]
    peer.shutdown(socket.SHUT_WR)
    wait(connection, READ)
    assert read(100) == (b"", -1)  # which no packet with bytes has brought


def test_a_read_with_stamps_tells_a_reset(scene: Scene) -> None:
    dialer, connection, peer = scene.connect(scene.listen())
    read = dialer.stamped(connection)
    assert read is not None
    reset(peer)
    wait(connection, READ)
    with pytest.raises(ConnectionResetError):
        read(100)


# TLS ---------------------------------------------------------------------------------


class Files:
    """Certificates on disk, made once: it takes a while."""

    def __init__(self, directory: Path) -> None:
        authority, foreign, clients = trustme.CA(), trustme.CA(), trustme.CA()
        self.authority = self._write(directory / "authority.pem", authority.cert_pem)
        self.foreign = self._write(directory / "foreign.pem", foreign.cert_pem)
        self.clients = self._write(directory / "clients.pem", clients.cert_pem)
        server = authority.issue_cert(NAME, "127.0.0.1")
        self.server = self._write(directory / "server.pem", server.private_key_and_cert_chain_pem)
        client = clients.issue_cert("client.test")
        self.client = self._write(directory / "client.pem", client.private_key_and_cert_chain_pem)

    def _write(self, path: Path, pem: trustme.Blob) -> str:
        pem.write_to_path(path)
        return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("certificates"))


class TlsScene(Scene):
    """A client with TLS and the other end of its connection, on which nothing was said."""

    def connected(self, plan: TlsPlan) -> tuple[KernelDialer, socket.socket, socket.socket]:
        listener = self.listen()
        dialer = KernelDialer(at(listener), tls=plan)
        connection = self.dial(dialer)
        wait(connection, WRITE)
        return dialer, connection, self.keep(listener.accept()[0])

    def agree(
        self, plan: TlsPlan, server: ssl.SSLContext
    ) -> tuple[KernelDialer, socket.socket, TlsSocket]:
        """Go on with the handshake on both ends until it is done on both."""
        dialer, connection, plain = self.connected(plan)
        peer = wrap(server, plain)
        self.keep(peer)
        event, agreed = WRITE, False
        while event or not agreed:
            with select.epoll() as poller:
                if event:
                    poller.register(connection, event)
                if not agreed:
                    poller.register(peer, READ)
                ready = [fd for fd, _ in poller.poll(10)]
            assert ready, "nothing came"
            if connection.fileno() in ready:
                connection, event = self.step(dialer, connection)
            if peer.fileno() in ready:
                agreed = peer.handshake()
        return dialer, connection, peer

    def step(self, dialer: KernelDialer, connection: socket.socket) -> tuple[socket.socket, int]:
        number = connection.fileno()
        connection, event = dialer.advance(connection)
        self.keep(connection)
        assert connection.fileno() == number
        return connection, event

    def hello(self, plan: TlsPlan) -> tuple[KernelDialer, socket.socket, socket.socket]:
        """A client that has sent its first message, which has come."""
        dialer, connection, peer = self.connected(plan)
        event = WRITE
        while event == WRITE:
            connection, event = self.step(dialer, connection)
        assert event == READ
        wait(peer, READ)
        assert peer.recv(10_000).startswith(b"\x16\x03")
        return dialer, connection, peer


@pytest.fixture
def tls_scene() -> Iterator[TlsScene]:
    with contextlib.ExitStack() as stack:
        yield TlsScene(stack)


@pytest.mark.parametrize("name", [NAME, "127.0.0.1"])
def test_a_handshake_is_a_part_of_connecting(tls_scene: TlsScene, files: Files, name: str) -> None:
    plan = TlsPlan(server_name=name, authority=files.authority)
    dialer, connection, peer = tls_scene.agree(plan, server_context(files.server, None))
    assert isinstance(connection, TlsSocket)
    assert connection.server_hostname == name
    connection.send(b"00003abc")
    wait(peer, READ)
    assert peer.recv(100) == b"00003abc"
    peer.send(b"00003cba")
    wait(connection, READ)
    assert connection.recv(dialer.read_size) == b"00003cba"
    with pytest.raises(BlockingIOError):
        connection.recv(dialer.read_size)
    assert dialer.stamped(connection) is None


def test_a_read_with_tls_leaves_nothing_behind(tls_scene: TlsScene, files: Files) -> None:
    plan = TlsPlan(server_name=NAME, authority=files.authority)
    dialer, connection, peer = tls_scene.agree(plan, server_context(files.server, None))
    assert isinstance(connection, TlsSocket)
    peer.send(b"x" * 16_384)
    data = b""
    while len(data) < 16_384:
        wait(connection, READ)
        with contextlib.suppress(BlockingIOError):
            data += connection.recv(dialer.read_size)
        assert connection.pending() == 0


def test_a_certificate_is_shown_to_the_server(tls_scene: TlsScene, files: Files) -> None:
    plan = TlsPlan(server_name=NAME, authority=files.authority, certificate=files.client)
    context = server_context(files.server, None, files.clients)
    _, _, peer = tls_scene.agree(plan, context)
    assert peer.peer_name() == "client.test"


@pytest.mark.parametrize(
    ("name", "authority", "reason"),
    [
        ("other.test", "authority", "Hostname mismatch"),
        ("127.0.0.2", "authority", "IP address mismatch"),
        (NAME, "foreign", "unable to get local issuer certificate"),
        (NAME, None, "unable to get local issuer certificate"),
    ],
)
def test_a_server_that_is_not_the_right_one_is_refused(
    tls_scene: TlsScene, files: Files, name: str, authority: str | None, reason: str
) -> None:
    plan = TlsPlan(
        server_name=name, authority=None if authority is None else getattr(files, authority)
    )
    with pytest.raises(OSError, match=reason) as caught:
        tls_scene.agree(plan, server_context(files.server, None))
    assert (caught.value.errno, type(caught.value)) == (errno.EPROTO, OSError)
    assert str(caught.value.strerror).startswith("certificate verify failed: ")


def test_a_server_without_tls_is_refused_in_plain_words(tls_scene: TlsScene) -> None:
    dialer, connection, peer = tls_scene.hello(TlsPlan(server_name=NAME))
    peer.send(b"00003cba")
    wait(connection, READ)
    with pytest.raises(OSError, match="wrong version number"):
        dialer.advance(connection)


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x03"])
def test_a_server_that_closes_amid_the_handshake(tls_scene: TlsScene, said: bytes) -> None:
    dialer, connection, peer = tls_scene.hello(TlsPlan(server_name=NAME))
    peer.send(said)
    peer.close()
    wait(connection, select.EPOLLRDHUP)
    with pytest.raises(ConnectionResetError, match="the TLS connection was cut off"):
        dialer.advance(connection)


def test_a_server_that_resets_amid_the_handshake(tls_scene: TlsScene) -> None:
    dialer, connection, peer = tls_scene.hello(TlsPlan(server_name=NAME))
    reset(peer)
    wait(connection, READ)
    with pytest.raises(ConnectionResetError):
        dialer.advance(connection)


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-OpenSSH\r\n"])
def test_whoever_closes_a_connection_has_it_when_its_handshake_fails(
    tls_scene: TlsScene, said: bytes
) -> None:
    # The very first step of the handshake fails, since the peer has spoken or gone before.
    dialer, plain, peer = tls_scene.connected(TlsPlan(server_name=NAME))
    peer.send(said)
    peer.shutdown(socket.SHUT_WR)
    wait(plain, select.EPOLLRDHUP)
    connection, event = tls_scene.step(dialer, plain)
    assert event == WRITE
    with pytest.raises(OSError, match=r"cut off|wrong version"):
        dialer.advance(connection)
    assert connection.fileno() != -1


def test_a_refused_connection_is_not_encrypted(tls_scene: TlsScene) -> None:
    bound = tls_scene.keep(socket.socket())
    bound.bind(("127.0.0.1", 0))
    dialer = KernelDialer(at(bound), tls=TlsPlan(server_name=NAME))
    connection = tls_scene.dial(dialer)
    wait(connection, WRITE)
    with pytest.raises(ConnectionRefusedError):
        dialer.advance(connection)
    assert connection.fileno() != -1


def test_a_file_that_cannot_be_used_is_told_before_any_connection() -> None:
    plan = TlsPlan(server_name=NAME, authority="nowhere.pem")
    with pytest.raises(ValueError, match=r"^nowhere\.pem: No such file or directory$"):
        KernelDialer(SocketAddress(socket.AF_INET, ("127.0.0.1", 1)), tls=plan)


class Unlucky(socket.socket):
    """A socket whose peer resets it just when it is taken over for TLS."""

    def __init__(self, descriptor: int, listener: socket.socket) -> None:
        super().__init__(fileno=descriptor)
        self._listener = listener
        self._looks = 0

    def getpeername(self) -> object:
        name = super().getpeername()
        self._looks += 1
        if self._looks == 2:  # after it was seen to be connected
            peer = self._listener.accept()[0]
            peer.send(b"bye")
            reset(peer)
            wait(self, READ)
        return name


def test_a_socket_that_is_lost_on_the_way_to_tls_is_an_attempt_that_failed(
    tls_scene: TlsScene,
) -> None:
    listener = tls_scene.listen()

    class Dialer(KernelDialer):
        def dial(self) -> socket.socket:
            return tls_scene.keep(Unlucky(super().dial().detach(), listener))

    failed: list[str] = []
    with select.epoll() as poller:
        opener = Opener(
            Dialer(at(listener), tls=TlsPlan(server_name=NAME)),
            poller,
            time.monotonic_ns,
            made=lambda _: pytest.fail("it was lost"),
            failed=lambda _number, _sends, reason: failed.append(reason),
        )
        assert opener.begin(1, sends=True)
        while len(opener):
            for fd, _ in poller.poll(10):
                opener.handle(fd)
    assert failed == ["reset"]

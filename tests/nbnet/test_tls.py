"""TLS sockets on real ones, both ends non-blocking in one thread; certificates by trustme.

The client is OpenSSL in memory, so that a test decides which bytes go when.
Socket pairs hand bytes over at once; where a test needs TCP, it waits for events.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import gc
import select
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from nbnet.pollers import READ, WRITE
from nbnet.tls import (
    RECORD_SIZE,
    TlsSocket,
    _words,
    client_context,
    peer_name,
    prepare,
    server_context,
    wrap,
    wrap_client,
)

NAME = "server.test"
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


class Files:
    """What an operator has on disk, made once: it takes a while."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = trustme.CA()
        self.clients = trustme.CA()
        leaf = self.authority.issue_cert(NAME)
        self.private_key = leaf.private_key_pem.bytes()
        self.cert = self.write("cert.pem", b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
        self.key = self.write("key.pem", self.private_key)
        self.both = self.write("both.pem", leaf.private_key_and_cert_chain_pem.bytes())
        self.client_ca = self.write("clients.pem", self.clients.cert_pem.bytes())

    def write(self, name: str, content: bytes) -> Path:
        path = self.directory / name
        path.write_bytes(content)
        return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("tls"))


class Client:
    """The peer: OpenSSL in memory over a non-blocking socket."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=NAME)
        self.agreed = False

    def handshake(self) -> bytes:
        """Go on with the handshake; the bytes that the server should get."""
        if not self.agreed:
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()
                self.agreed = True
        return self.outgoing.read()

    def take(self) -> int:
        """Fetch what the kernel has; how many bytes that was, -1 at the end."""
        try:
            data = self.socket.recv(1 << 20)
        except BlockingIOError:
            return 0
        self.incoming.write(data)
        return len(data) or -1

    def send(self, data: bytes) -> None:
        self.tls.write(data)
        self.socket.sendall(self.outgoing.read())

    def recv(self) -> bytes:
        """All the bytes that are there, until ``close_notify`` if that is."""
        self.take()
        parts = []
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            while data := self.tls.read(1 << 20):
                parts.append(data)
        return b"".join(parts)

    def was_notified(self) -> bool:
        """Whether ``close_notify`` came; after ``recv``."""
        try:
            return self.tls.read(1) == b""
        except ssl.SSLZeroReturnError:
            return True
        except ssl.SSLWantReadError:
            return False


class Scene:
    """Connections of a client and a server, on which nothing was said."""

    def __init__(self, files: Files, stack: contextlib.ExitStack) -> None:
        self.files = files
        self._stack = stack
        self.server_context = server_context(files.cert, files.key)
        self.client_context = ssl.create_default_context()
        files.authority.configure_trust(self.client_context)

    def pair(self) -> tuple[socket.socket, socket.socket]:
        a, b = socket.socketpair()
        return self._stack.enter_context(a), self._stack.enter_context(b)

    def tcp_pair(self) -> tuple[socket.socket, socket.socket]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            a = self._stack.enter_context(socket.create_connection(listener.getsockname()))
            b = self._stack.enter_context(listener.accept()[0])
        return a, b

    def wrap(self, plain: socket.socket) -> TlsSocket:
        return self._stack.enter_context(wrap(self.server_context, plain))

    def connect(
        self, pair: Callable[[], tuple[socket.socket, socket.socket]] | None = None
    ) -> tuple[TlsSocket, Client]:
        a, b = (pair or self.pair)()
        return self.wrap(a), Client(b, self.client_context)

    def agreed(
        self, pair: Callable[[], tuple[socket.socket, socket.socket]] | None = None
    ) -> tuple[TlsSocket, Client]:
        server, client = self.connect(pair)
        shake(server, client)
        return server, client


@pytest.fixture
def scene(files: Files) -> Iterator[Scene]:
    with contextlib.ExitStack() as stack:
        yield Scene(files, stack)


def wait(*readable: socket.socket) -> None:
    """Wait until one of them can be read: over TCP that is not at once."""
    assert select.select(readable, (), (), 10)[0], "nothing came"


def shake(server: TlsSocket, client: Client) -> None:
    """The handshake to its end on both sides."""
    done = False
    while not (done and client.agreed):
        client.socket.sendall(client.handshake())
        if not done:
            wait(server)
            done = server.handshake()
        if not client.agreed:
            wait(client.socket)
            client.take()


def fill(server: TlsSocket) -> tuple[bytes, bytes]:
    """Send until the kernel refuses; what it took and what it refused."""
    sent = bytearray()
    for number in range(10_000):
        piece = b"%04d" % number * 250
        try:
            sent += piece[: server.send(piece)]
        except BlockingIOError:
            return bytes(sent), piece
    raise AssertionError("the kernel takes everything")


# The handshake ---------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_a_handshake_byte_by_byte_and_a_request(scene: Scene, version: ssl.TLSVersion) -> None:
    scene.client_context.minimum_version = scene.client_context.maximum_version = version
    server, client = scene.connect()
    done = False
    steps = 0
    while not (done and client.agreed):
        for byte in client.handshake():
            assert not done
            client.socket.sendall(bytes([byte]))
            done = server.handshake()
            assert server.wants == (0 if done else READ)
            steps += 1
        assert client.take() or client.agreed
    assert steps > 100
    assert server.version() == {"TLSv1_2": "TLSv1.2", "TLSv1_3": "TLSv1.3"}[version.name]
    client.send(b"00003abc")
    assert server.recv(100) == b"00003abc"
    assert server.send(b"00003cba") == 8
    assert client.recv() == b"00003cba"


def test_the_request_may_come_with_the_end_of_the_handshake(scene: Scene) -> None:
    server, client = scene.connect()
    client.socket.sendall(client.handshake())
    assert not server.handshake()
    client.take()
    finished = client.handshake()
    assert client.agreed
    client.tls.write(b"00003abc")
    client.socket.sendall(finished + client.outgoing.read())
    assert server.handshake()
    assert server.recv(100) == b"00003abc"


def test_no_tickets_follow_a_handshake(scene: Scene) -> None:
    _, client = scene.agreed()
    assert client.tls.version() == "TLSv1.3"
    assert client.take() == 0


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
def test_tls_1_1_is_refused(scene: Scene) -> None:
    scene.client_context.minimum_version = ssl.TLSVersion.TLSv1_1
    scene.client_context.maximum_version = ssl.TLSVersion.TLSv1_1
    scene.client_context.set_ciphers("ALL:@SECLEVEL=0")  # else the client itself would not
    server, client = scene.connect()
    client.socket.sendall(client.handshake())
    with pytest.raises(OSError, match="unsupported protocol") as caught:
        server.handshake()
    assert (caught.value.errno, caught.value.strerror) == (errno.EPROTO, "unsupported protocol")
    client.take()
    with pytest.raises(ssl.SSLError, match="protocol version"):  # it was told why
        client.handshake()


def test_a_client_that_speaks_plain_text_is_refused_in_plain_words(scene: Scene) -> None:
    server, client = scene.connect()
    client.socket.sendall(b"00003abc")
    with pytest.raises(OSError, match=r"^\[Errno \d+\] [a-z ]+$") as caught:
        server.handshake()
    assert caught.value.strerror == "wrong version number"
    assert type(caught.value) is OSError


@pytest.mark.parametrize("sent", [0, 1, 50])
def test_a_client_that_leaves_in_mid_handshake(scene: Scene, sent: int) -> None:
    server, client = scene.connect()
    client.socket.sendall(client.handshake()[:sent])
    assert not server.handshake()
    client.socket.close()
    with pytest.raises(ConnectionResetError, match="the TLS connection was cut off"):
        server.handshake()


def test_a_reset_in_mid_handshake(scene: Scene) -> None:
    server, client = scene.connect(scene.tcp_pair)
    client.socket.sendall(client.handshake())
    wait(server)
    assert not server.handshake()
    reset(client.socket)
    wait(server)
    with pytest.raises(ConnectionResetError):
        server.handshake()


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01"])
def test_a_peer_that_is_gone_before_it_is_wrapped(scene: Scene, said: bytes) -> None:
    peer, plain = scene.tcp_pair()
    peer.sendall(said)
    reset(peer)
    wait(plain)
    with pytest.raises(OSError, match="not connected") as caught:
        wrap(scene.server_context, plain)
    assert not isinstance(caught.value, ssl.SSLError)
    assert plain.fileno() == -1


def test_wrap_takes_the_socket_over(scene: Scene) -> None:
    plain, _ = scene.pair()
    number = plain.fileno()
    with wrap(scene.server_context, plain) as server:
        assert isinstance(server, TlsSocket)
        assert server.fileno() == number
        assert not server.getblocking()
        assert plain.fileno() == -1
    assert server.fileno() == -1


def test_a_socket_that_is_closed_cannot_be_wrapped(scene: Scene) -> None:
    plain, _ = scene.pair()
    plain.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        wrap(scene.server_context, plain)


def test_a_context_of_the_other_side_is_refused_in_plain_words(scene: Scene, files: Files) -> None:
    of_a_client = client_context()
    of_a_client.check_hostname = False
    of_a_server = server_context(files.cert, files.key)
    with pytest.raises(OSError, match=r"\] Cannot create a server socket") as caught:
        wrap(of_a_client, scene.tcp_pair()[0])
    assert not isinstance(caught.value, ssl.SSLError)
    with pytest.raises(OSError, match=r"\] Cannot create a client socket") as caught:
        wrap_client(of_a_server, scene.tcp_pair()[0], NAME)
    assert not isinstance(caught.value, ssl.SSLError)


def test_an_agreed_connection_whose_peer_is_gone_stays_open(scene: Scene, trust: Path) -> None:
    server, client = client_of(scene, client_context(trust))
    agree(server, client)
    reset(client)
    wait(server)
    with pytest.raises(OSError, match="not connected"):
        server.getpeername()
    assert server.fileno() != -1


# As the client ---------------------------------------------------------------------


@pytest.fixture
def trust(files: Files) -> Path:
    """The authority of the server's certificate, on disk."""
    return files.write("authority.pem", files.authority.cert_pem.bytes())


def client_of(
    scene: Scene, context: ssl.SSLContext, name: str = NAME
) -> tuple[TlsSocket, TlsSocket]:
    """Both ends as they are used by programs; nothing was said yet."""
    a, b = scene.tcp_pair()
    b.setblocking(False)
    client = scene._stack.enter_context(wrap_client(context, b, name))
    return scene.wrap(a), client


def agree(server: TlsSocket, client: TlsSocket) -> None:
    """The handshake to its end on both sides."""
    waiting = [end for end in (client, server) if not end.handshake()]
    while waiting:
        assert all(end.wants == READ for end in waiting)
        wait(*waiting)
        waiting = [end for end in waiting if not end.handshake()]
    assert client.wants == server.wants == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_both_ends_agree_and_talk(scene: Scene, trust: Path, version: ssl.TLSVersion) -> None:
    scene.server_context.maximum_version = version
    server, client = client_of(scene, client_context(trust))
    agree(server, client)
    client.send(b"00003abc")
    wait(server)
    assert server.recv(100) == b"00003abc"
    server.send(b"00003cba")
    wait(client)
    assert client.recv(100) == b"00003cba"
    assert client.version() == {"TLSv1_2": "TLSv1.2", "TLSv1_3": "TLSv1.3"}[version.name]


def test_wrap_client_takes_the_socket_over(scene: Scene, trust: Path) -> None:
    plain, _ = scene.tcp_pair()
    plain.setblocking(False)
    number = plain.fileno()
    with wrap_client(client_context(trust), plain, NAME) as client:
        assert isinstance(client, TlsSocket)
        assert client.fileno() == number
        assert not client.getblocking()
        assert plain.fileno() == -1


def test_a_server_that_is_gone_leaves_its_socket_to_the_caller(scene: Scene, trust: Path) -> None:
    peer, plain = scene.tcp_pair()
    reset(peer)
    wait(plain)
    with pytest.raises(OSError, match="not connected"):
        wrap_client(client_context(trust), plain, NAME)
    assert plain.fileno() != -1


@pytest.mark.parametrize("said", [b"bye", b""])
@pytest.mark.parametrize("side", ["client", "server"])
def test_a_peer_that_goes_while_it_is_wrapped_is_told_plainly(
    scene: Scene, trust: Path, side: str, said: bytes
) -> None:
    class GoesNow(socket.socket):
        """The peer says something or not and resets right after it was seen to be there."""

        def getpeername(self) -> object:
            name = super().getpeername()
            peer.sendall(said)
            reset(peer)
            wait(self)
            return name

    def take_over(plain: socket.socket) -> TlsSocket:
        if side == "client":
            return wrap_client(client_context(trust), plain, NAME)
        return wrap(scene.server_context, plain)

    peer, other = scene.tcp_pair()
    with GoesNow(fileno=other.detach()) as plain:
        plain.setblocking(False)
        with pytest.raises(OSError, match="Connection reset by peer") as caught:
            take_over(plain)
        assert not isinstance(caught.value, ssl.SSLError)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("other.test", "Hostname mismatch"),
        ("127.0.0.1", "IP address mismatch"),
    ],
)
def test_a_server_of_another_name_is_refused(
    scene: Scene, trust: Path, name: str, reason: str
) -> None:
    server, client = client_of(scene, client_context(trust), name)
    with pytest.raises(OSError, match=reason) as caught:
        agree(server, client)
    assert not isinstance(caught.value, ssl.SSLError)


@pytest.mark.parametrize("authority", ["system", "foreign"])
def test_a_server_of_an_unknown_authority_is_refused(scene: Scene, authority: str) -> None:
    context = client_context(None if authority == "system" else scene.files.client_ca)
    server, client = client_of(scene, context)
    with pytest.raises(OSError, match="unable to get local issuer certificate"):
        agree(server, client)


@pytest.mark.parametrize("apart", [False, True])
def test_a_client_shows_its_certificate(scene: Scene, trust: Path, apart: bool) -> None:
    leaf = scene.files.clients.issue_cert("client.test")
    chain = b"".join(pem.bytes() for pem in leaf.cert_chain_pems)
    key = leaf.private_key_pem.bytes()
    if apart:
        cert = scene.files.write("client.pem", chain)
        context = client_context(trust, cert, scene.files.write("client.key", key))
    else:
        context = client_context(trust, scene.files.write("client.pem", key + chain))
    scene.server_context = server_context(scene.files.both, None, scene.files.client_ca)
    server, client = client_of(scene, context)
    agree(server, client)
    assert server.peer_name() == "client.test"
    assert client.peer_name() == NAME


def test_what_a_context_of_a_client_allows(trust: Path) -> None:
    for context in (client_context(), client_context(trust)):
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert context.check_hostname
    assert client_context(trust).cert_store_stats()["x509_ca"] == 1


@pytest.mark.parametrize("role", ["authority", "cert", "key"])
def test_files_of_a_client_that_cannot_be_used(files: Files, trust: Path, role: str) -> None:
    path = files.write("poor.pem", b"")
    paths = {"authority": trust, "cert": files.cert, "key": files.key} | {role: path}
    with pytest.raises(ValueError, match=r"poor\.pem: no (certificate|private key) in it$"):
        client_context(**paths)


# Certificates of clients -----------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_with_the_right_certificate_is_let_in(
    scene: Scene, version: ssl.TLSVersion
) -> None:
    scene.server_context = server_context(scene.files.both, None, scene.files.client_ca)
    scene.client_context.maximum_version = version
    scene.files.clients.issue_cert("client.test").configure_cert(scene.client_context)
    server, client = scene.agreed()
    client.send(b"00003abc")
    assert server.recv(100) == b"00003abc"
    assert peer_name(server) == server.peer_name() == "client.test"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("has", "reason"),
    [
        ("none", "peer did not return a certificate"),
        ("foreign", "certificate verify failed: unable to get local issuer certificate"),
    ],
)
def test_other_clients_are_refused_and_told(
    scene: Scene, version: ssl.TLSVersion, has: str, reason: str
) -> None:
    scene.server_context = server_context(scene.files.cert, scene.files.key, scene.files.client_ca)
    scene.client_context.maximum_version = version
    if has == "foreign":
        trustme.CA().issue_cert("client.test").configure_cert(scene.client_context)
    server, client = scene.connect()
    client.socket.sendall(client.handshake())
    assert not server.handshake()
    client.take()
    client.socket.sendall(client.handshake())
    with pytest.raises(OSError, match=reason) as caught:
        server.handshake()
    assert caught.value.strerror == reason
    client.take()
    with pytest.raises(ssl.SSLError, match="alert"):
        client.tls.read(1)


@pytest.mark.parametrize(
    ("identities", "common_name", "name"),
    [
        (["a.test", "b.test"], "other", "a.test"),
        (["me@a.test"], None, "me@a.test"),
        (["10.0.0.1", "a.test"], None, "a.test"),
        (["10.0.0.1"], "a name", "a name"),
        (["10.0.0.1"], None, None),
    ],
)
def test_the_name_in_a_certificate(
    scene: Scene, identities: list[str], common_name: str | None, name: str | None
) -> None:
    scene.server_context = server_context(scene.files.cert, scene.files.key, scene.files.client_ca)
    scene.files.clients.issue_cert(*identities, common_name=common_name).configure_cert(
        scene.client_context
    )
    server, _ = scene.agreed()
    assert server.peer_name() == name


def test_a_uri_is_a_name(scene: Scene) -> None:
    uri = "spiffe://a.test/billing"
    key = rsa.generate_private_key(65537, 2048)
    path = scene.files.write("uri.pem", self_signed(key, x509.UniformResourceIdentifier(uri)))
    scene.server_context = server_context(scene.files.cert, scene.files.key, path)
    scene.client_context.load_cert_chain(path)
    server, _ = scene.agreed()
    assert server.peer_name() == uri


def self_signed(key: rsa.RSAPrivateKey, *names: x509.GeneralName) -> bytes:
    """A certificate and its key; trustme makes neither weak ones nor those with URIs."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "self")])
    day = dt.timedelta(days=1)
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(Encoding.PEM)
    return pem + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def test_without_a_certificate_there_is_no_name(scene: Scene) -> None:
    server, _ = scene.agreed()
    assert server.peer_name() is None


def test_a_certificate_that_is_asked_for_and_not_shown(scene: Scene) -> None:
    scene.server_context.verify_mode = ssl.CERT_OPTIONAL
    server, _ = scene.agreed()
    assert server.peer_name() is None


# Bytes -----------------------------------------------------------------------------


def test_a_read_that_finds_nothing_waits_for_input(scene: Scene) -> None:
    server, client = scene.agreed()
    with pytest.raises(BlockingIOError) as caught:
        server.recv(100)
    assert caught.value.errno == errno.EAGAIN
    assert server.wants == 0
    client.tls.write(b"00003abc")
    *head, last = client.outgoing.read()
    client.socket.sendall(bytes(head))
    with pytest.raises(BlockingIOError):  # the poller had an event for part of a record
        server.recv(100)
    assert server.wants == 0
    client.socket.sendall(bytes([last]))
    assert server.recv(100) == b"00003abc"


def test_a_full_read_may_leave_bytes_that_no_poller_knows_of(scene: Scene) -> None:
    server, client = scene.agreed()
    client.send(b"x" * 1000)
    assert server.recv(999) == b"x" * 999
    assert select.select([server], [], [], 0)[0] == []
    assert server.recv(999) == b"x"


def test_a_read_that_is_not_full_leaves_nothing_that_no_poller_knows_of(scene: Scene) -> None:
    server, client = scene.agreed()
    client.send(b"x" * 1000)
    client.send(b"y" * 1000)
    assert server.recv(1 << 16) == b"x" * 1000  # one record, though there is another one
    assert select.select([server], [], [], 0)[0] == [server]
    assert server.recv(1 << 16) == b"y" * 1000
    assert select.select([server], [], [], 0)[0] == []
    assert server.pending() == 0


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_what_can_be_sent(
    scene: Scene, kind: Callable[[bytes], bytes | bytearray | memoryview]
) -> None:
    server, client = scene.agreed()
    assert server.send(kind(b"")) == 0
    assert server.send(kind(b"00003cba")) == 8
    long = b"0123456789" * 5_000
    assert server.send(kind(long)) == len(long)
    assert client.recv() == b"00003cba" + long


def test_a_refused_send_says_so_and_what_went_before_is_told(scene: Scene) -> None:
    server, client = scene.agreed()
    data = bytes(range(256)) * 8192
    sent = server.send(data)
    # Were it all or nothing, as OpenSSL has it, a slow peer would seem to read nothing.
    assert 0 < sent < len(data)
    assert sent % RECORD_SIZE == 0
    with pytest.raises(BlockingIOError) as caught:
        server.send(data[sent:])
    assert caught.value.errno == errno.EAGAIN
    assert server.wants == 0
    assert client.recv() == data[:sent]


def test_refused_calls_leave_nothing_to_the_garbage_collector(scene: Scene) -> None:
    server, _ = scene.agreed()
    _, refused = fill(server)
    gc.collect()
    for _ in range(10):
        with contextlib.suppress(BlockingIOError):
            server.send(refused)
        with contextlib.suppress(BlockingIOError):
            server.recv(100)
    assert gc.collect() == 0


@pytest.mark.parametrize("refusals", [1, 3])
def test_a_refused_send_is_retried_with_more_after_it(scene: Scene, refusals: int) -> None:
    server, client = scene.agreed()
    before, refused = fill(server)
    unsent = bytearray(refused)
    for _ in range(refusals):
        with pytest.raises(BlockingIOError) as caught:
            server.send(unsent)
        unsent += b"more" * 10_000  # it may move in memory, though the error is at hand
        assert caught.value.errno == errno.EAGAIN
    expected = before + bytes(unsent)
    received = client.recv()
    while len(received) < len(expected):
        del unsent[: server.send(unsent)]
        received += client.recv()
    assert received == expected
    assert not unsent


def test_reading_goes_on_while_a_send_is_refused(scene: Scene) -> None:
    server, client = scene.agreed()
    before, refused = fill(server)
    client.send(b"00003abc")
    assert server.recv(100) == b"00003abc"
    assert client.recv() == before
    assert server.send(refused + b"later") == 1005
    assert client.recv() == refused + b"later"


@pytest.mark.parametrize("transport", ["unix", "tcp"])
@pytest.mark.parametrize("version", VERSIONS)
def test_large_transfers_both_ways_through_full_buffers(
    scene: Scene, version: ssl.TLSVersion, transport: str
) -> None:
    scene.client_context.maximum_version = version

    def pair() -> tuple[socket.socket, socket.socket]:
        ends = scene.pair() if transport == "unix" else scene.tcp_pair()
        for end in ends:  # small, so that records are cut anywhere
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)
        return ends

    server, client = scene.agreed(pair)
    total = b"".join(b"%07d\n" % number for number in range(250_000))
    request = total[: len(total) // 4]
    client.tls.write(request)
    to_server = bytearray(client.outgoing.read())
    unsent = memoryview(total)
    got, received = bytearray(), bytearray()
    cut = 0
    while len(got) < len(request) or len(received) < len(total):
        writing = [s for s, left in ((server, unsent), (client.socket, to_server)) if len(left)]
        readable, writable, _ = select.select([server, client.socket], writing, [], 10)
        assert readable or writable, "stuck"
        if server in readable:
            with contextlib.suppress(BlockingIOError):  # part of a record
                while len(data := server.recv(1000)) == 1000:
                    got += data
                got += data
        if server in writable:
            with contextlib.suppress(BlockingIOError):
                sent = server.send(unsent[:100_000])
                cut += sent < len(unsent[:100_000])
                unsent = unsent[sent:]
        assert server.wants == 0
        if client.socket in readable:
            received += client.recv()
        if client.socket in writable:
            del to_server[: client.socket.send(to_server)]
    assert got == request
    assert received == total
    assert cut > 10


# What OpenSSL wants ----------------------------------------------------------------


def test_each_call_says_which_event_it_waits_for_if_it_is_not_its_own(scene: Scene) -> None:
    # Calls on a connection that has not agreed on TLS go on with the handshake, and
    # so wait for either event; the standard library can start nothing later that does.
    plain, peer = scene.pair()
    plain.setblocking(False)
    stuffed = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            stuffed += plain.send(b"x" * 100)
    server, client = scene.wrap(plain), Client(peer, scene.client_context)

    assert not server.handshake()
    assert server.wants == READ
    with pytest.raises(BlockingIOError):
        server.recv(100)
    assert server.wants == 0
    with pytest.raises(BlockingIOError):
        server.send(b"00003cba")
    assert server.wants == READ

    client.socket.sendall(client.handshake())
    with pytest.raises(BlockingIOError):
        server.recv(100)
    assert server.wants == WRITE
    with pytest.raises(BlockingIOError):
        server.send(b"00003cba")
    assert server.wants == 0
    assert not server.handshake()
    assert server.wants == WRITE

    while stuffed:
        stuffed -= len(peer.recv(stuffed))
    assert not server.handshake()
    assert server.wants == READ
    client.take()
    client.socket.sendall(client.handshake())
    assert server.handshake()
    assert server.wants == 0


@pytest.mark.parametrize("call", ["recv", "send"])
def test_a_call_that_goes_through_wants_nothing(scene: Scene, call: str) -> None:
    server, client = scene.agreed()
    client.send(b"00003abc")
    server.wants = READ | WRITE
    if call == "recv":
        server.recv(100)
    else:
        server.send(b"00003cba")
    assert server.wants == 0


# The end ---------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_shutdown_tells_the_client_within_tls_after_the_replies(
    scene: Scene, version: ssl.TLSVersion
) -> None:
    scene.client_context.maximum_version = version
    server, client = scene.agreed()
    client.send(b"unread")
    server.send(b"00003cba")
    server.shutdown(socket.SHUT_WR)
    assert client.recv() == b"00003cba"
    assert client.was_notified()
    assert client.take() == -1
    with pytest.raises(BrokenPipeError):  # and not sent as clear text
        server.send(b"more")
    # What still comes can be read away, up to the end.
    client.send(b"late")
    client.socket.shutdown(socket.SHUT_WR)
    while server.recv(100):
        pass
    assert server.wants == 0


def test_after_shutdown_a_read_waits_for_input(scene: Scene) -> None:
    server, _ = scene.agreed()
    server.wants = WRITE
    server.shutdown(socket.SHUT_WR)
    with pytest.raises(BlockingIOError):
        server.recv(100)
    assert server.wants == 0


def test_shutdown_with_full_buffers_is_a_plain_end(scene: Scene) -> None:
    server, client = scene.agreed()
    before, _ = fill(server)
    server.shutdown(socket.SHUT_WR)
    assert client.recv() == before
    assert not client.was_notified()
    assert client.take() == -1


def test_shutdown_before_tls_is_agreed_on(scene: Scene) -> None:
    server, client = scene.connect()
    server.shutdown(socket.SHUT_RDWR)
    assert client.take() == -1


def test_shutdown_of_the_read_side_alone_would_cost_the_secrecy(scene: Scene) -> None:
    server, client = scene.agreed()
    with pytest.raises(ValueError, match="read side alone"):
        server.shutdown(socket.SHUT_RD)
    server.send(b"secret")
    assert client.recv() == b"secret"


def test_shutdown_of_a_connection_that_was_reset(scene: Scene) -> None:
    server, client = scene.agreed(scene.tcp_pair)
    reset(client.socket)
    wait(server)
    with pytest.raises(OSError, match="not connected"):
        server.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_that_ends_its_side_still_gets_its_replies(
    scene: Scene, version: ssl.TLSVersion
) -> None:
    scene.client_context.maximum_version = version
    server, client = scene.agreed()
    client.tls.write(b"00003abc")
    with pytest.raises(ssl.SSLWantReadError):  # close_notify is sent, and one looked for
        client.tls.unwrap()
    client.socket.sendall(client.outgoing.read())
    assert server.recv(100) == b"00003abc"
    assert server.recv(100) == b""
    assert server.recv(100) == b""
    assert server.send(b"00003cba") == 8
    server.shutdown(socket.SHUT_WR)
    assert client.recv() == b"00003cba"
    assert client.was_notified()


@pytest.mark.parametrize("cut", [0, 1, 10])
def test_a_client_that_vanishes_has_its_input_end(scene: Scene, cut: int) -> None:
    server, client = scene.agreed()
    client.send(b"00003ab")
    client.tls.write(b"c")
    client.socket.sendall(client.outgoing.read()[:cut])
    client.socket.shutdown(socket.SHUT_WR)
    assert server.recv(100) == b"00003ab"
    assert server.recv(100) == b""
    assert server.recv(100) == b""


def test_a_reset_fails_what_is_sent(scene: Scene) -> None:
    server, client = scene.agreed(scene.tcp_pair)
    reset(client.socket)
    wait(server)
    with pytest.raises(ConnectionResetError):
        server.send(b"00003cba")


def test_a_reset_ends_input(scene: Scene) -> None:
    server, client = scene.agreed(scene.tcp_pair)
    reset(client.socket)
    wait(server)
    # Which of the two depends on the Python: see TlsSocket.recv.
    with contextlib.suppress(ConnectionResetError):
        assert server.recv(100) == b""
    with pytest.raises(OSError, match=r"^\[Errno \d+\] [a-zA-Z ]+$") as caught:
        server.send(b"00003cba")
    assert not isinstance(caught.value, BlockingIOError)


def test_records_that_were_tampered_with(scene: Scene) -> None:
    server, client = scene.agreed()
    client.tls.write(b"00003abc")
    record = bytearray(client.outgoing.read())
    record[-1] ^= 1
    client.socket.sendall(record)
    with pytest.raises(OSError, match="bad record mac") as caught:
        server.recv(100)
    assert caught.value.strerror == "decryption failed or bad record mac"
    assert server.wants == 0
    with pytest.raises(OSError, match=r"^\[Errno \d+\] [a-zA-Z ]+$") as caught:
        server.send(b"more")
    assert not isinstance(caught.value, BlockingIOError)


# Contexts --------------------------------------------------------------------------


def test_what_a_context_allows(files: Files) -> None:
    context = server_context(str(files.cert), str(files.key))
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_NONE
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION
    assert server_context(files.both, None, files.client_ca).verify_mode == ssl.CERT_REQUIRED


def test_a_context_of_ones_own(scene: Scene) -> None:
    own = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    own.load_cert_chain(scene.files.cert, scene.files.key)
    prepare(own)
    assert own.options & ssl.OP_NO_RENEGOTIATION
    scene.server_context = own
    server, client = scene.agreed()
    assert isinstance(server, TlsSocket)
    client.send(b"00003abc")
    assert server.recv(100) == b"00003abc"


def test_a_context_that_asks_for_the_name_of_a_server() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.check_hostname = True
    with pytest.raises(ValueError, match="expected one for servers"):
        prepare(context)


BROKEN = b"-----BEGIN %b-----\nAAAA\n-----END %b-----\n"


@pytest.mark.parametrize("role", ["cert", "key", "client_ca"])
@pytest.mark.parametrize(
    ("name", "reason"),
    [("missing.pem", "No such file or directory"), ("", "Is a directory")],
)
def test_files_that_cannot_be_read(files: Files, role: str, name: str, reason: str) -> None:
    path = files.directory / name
    paths = {"cert": files.cert, "key": files.key, "client_ca": files.client_ca} | {role: path}
    with pytest.raises(ValueError, match=reason) as caught:
        server_context(**paths)
    assert str(caught.value) == f"{path}: {reason}"


@pytest.mark.parametrize("role", ["cert", "client_ca"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no certificate in it"),
        (b"\xff\xfe", "no certificate in it"),
        (BROKEN.replace(b"%b", b"CERTIFICATE"), "a certificate in it cannot be read"),
    ],
)
def test_files_without_a_certificate(files: Files, role: str, content: bytes, reason: str) -> None:
    path = files.write("poor.pem", content)
    paths = {"cert": files.cert, "key": files.key, "client_ca": files.client_ca} | {role: path}
    with pytest.raises(ValueError, match=reason) as caught:
        server_context(**paths)
    assert str(caught.value) == f"{path}: {reason}"


def test_a_chain_that_breaks_off(files: Files) -> None:
    path = files.write("chain.pem", files.cert.read_bytes() + files.cert.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"chain\.pem: a certificate in it cannot be read"):
        server_context(path, files.key)


def test_text_around_certificates_may_be_in_any_language(files: Files) -> None:
    path = files.write("text.pem", "# Schlüssel für …\n".encode() + files.both.read_bytes())
    assert server_context(path, None, path).cert_store_stats()["x509"] == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no private key in it"),
        (BROKEN.replace(b"%b", b"PRIVATE KEY"), "the private key in it cannot be read"),
    ],
)
def test_files_without_a_key(files: Files, content: bytes, reason: str) -> None:
    path = files.write("poor.pem", content)
    with pytest.raises(ValueError, match=reason) as caught:
        server_context(files.cert, path)
    assert str(caught.value) == f"{path}: {reason}"


def test_a_certificate_without_its_key(files: Files) -> None:
    with pytest.raises(ValueError, match=r"cert\.pem: no private key in it"):
        server_context(files.cert, None)


@pytest.mark.parametrize("kind", list(trustme.KeyType))
def test_a_key_of_another_certificate(files: Files, kind: trustme.KeyType) -> None:
    other = files.authority.issue_cert(NAME, key_type=kind)
    path = files.write("other.pem", other.private_key_pem.bytes())
    with pytest.raises(ValueError, match="is not that of") as caught:
        server_context(files.cert, path)
    assert str(caught.value) == f"{path}: the private key is not that of {files.cert}"


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_an_encrypted_key_is_refused_and_nobody_is_asked(files: Files, form: PrivateFormat) -> None:
    key = serialization.load_pem_private_key(files.private_key, None)
    encryption = serialization.BestAvailableEncryption(b"secret")
    path = files.write("encrypted.pem", key.private_bytes(Encoding.PEM, form, encryption))
    with pytest.raises(ValueError, match="the private key is encrypted") as caught:
        server_context(files.cert, path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_weak_certificate(files: Files) -> None:
    weak = self_signed(rsa.generate_private_key(65537, 1024), x509.DNSName(NAME))
    path = files.write("weak.pem", weak)
    with pytest.raises(ValueError, match=r"weak\.pem: ee key too small$"):
        server_context(path, None)


def test_an_error_without_a_reason_is_told_without_its_place_in_openssl() -> None:
    error = ssl.SSLError(1, "[SSL] something odd (_ssl.c:992)")
    error.reason = ""
    assert _words(error) == "something odd"

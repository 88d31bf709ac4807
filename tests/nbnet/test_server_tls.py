"""Servers that speak TLS, on real sockets, with clients of the standard library."""

from __future__ import annotations

import os
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from support.serving import exchange, read, serving

from nbnet import Certificate, Context, Limits, Server
from nbnet.framing import encode_frame

authority = trustme.CA()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with server.pem (certificate and key) and ca.pem."""
    folder = tmp_path_factory.mktemp("certificates")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
        folder / "server.pem"
    )
    authority.cert_pem.write_to_path(folder / "ca.pem")
    return folder


def client_context(*, own: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if own:
        authority.issue_cert("somebody@example.org").configure_cert(context)
    return context


def connect(server: Server, *, own: bool = False) -> ssl.SSLSocket:
    plain = socket.create_connection(server.address, timeout=20)
    # An end without close_notify is to raise.
    return client_context(own=own).wrap_socket(
        plain, server_hostname="127.0.0.1", suppress_ragged_eofs=False
    )


@pytest.fixture(params=["epoll", "poll", "select"])
def server(request: pytest.FixtureRequest, files: Path) -> Iterator[Server]:
    tls = Certificate(files / "server.pem")
    with Server(port=0, tls=tls, poller=request.param, limits=Limits(drain=0.5)) as running:
        yield running


def test_requests_are_answered_pipelined_cut_and_large(server: Server) -> None:
    payload = os.urandom(99_999)
    with connect(server) as peer:
        assert exchange(peer, b"00003abc00002de", 15) == b"00003cba00002ed"
        for byte in b"00003abc":
            peer.send(bytes([byte]))
        assert read(peer, 8) == b"00003cba"
        assert exchange(peer, encode_frame(payload), 100_004) == encode_frame(payload[::-1])
        # Many frames in a record: OpenSSL has them all when the first is read.
        assert exchange(peer, b"00003abc" * 1500, 12_000) == b"00003cba" * 1500


def test_a_slow_reader_gets_everything(server: Server) -> None:
    request = encode_frame(b"ab" * 40_000)
    with connect(server) as peer:
        for _ in range(5):
            peer.sendall(request * 3)
            assert read(peer, 3 * 80_005) == encode_frame(b"ba" * 40_000) * 3


def test_a_fault_flushes_earlier_replies_and_says_goodbye(server: Server) -> None:
    with connect(server) as peer:
        peer.sendall(b"00003abc+0003xyz")
        assert read(peer, 8) == b"00003cba"
        assert peer.recv(1) == b""


def test_peers_that_speak_something_else_cost_nobody(server: Server) -> None:
    with socket.create_connection(server.address, timeout=20) as plain, connect(server) as peer:
        plain.sendall(b"00003abc")
        assert plain.recv(100) == b""  # the end, not a reset
        assert exchange(peer, b"00003abc", 8) == b"00003cba"


def test_a_silent_peer_is_closed(files: Path) -> None:
    limits = Limits(handshake_timeout=0.2)
    with (
        Server(port=0, tls=Certificate(files / "server.pem"), limits=limits) as server,
        socket.create_connection(server.address, timeout=20) as peer,
    ):
        assert peer.recv(1) == b""


def test_clients_show_certificates_and_handlers_are_told_whose(files: Path) -> None:
    def handler(_: bytes, context: Context) -> bytes:
        return f"{context.tls_name}".encode()

    tls = Certificate(files / "server.pem", client_ca=files / "ca.pem")
    with Server(handler, port=0, tls=tls) as server:
        with connect(server, own=True) as peer:
            expected = encode_frame(b"somebody@example.org")
            assert exchange(peer, b"00001a", len(expected)) == expected
        with (
            pytest.raises(ssl.SSLError, match=r"CERTIFICATE_REQUIRED|certificate required"),
            connect(server) as stranger,
        ):
            # In TLS 1.3 the client is done before the server has looked.
            exchange(stranger, b"00001a", 1)


def test_threads_and_tls_together(files: Path) -> None:
    tls = Certificate(files / "server.pem")
    with Server(bytes.upper, port=0, tls=tls, threads=2) as server, connect(server) as peer:
        assert exchange(peer, b"00003abc" * 500, 4000) == b"00003ABC" * 500


def test_a_context_of_the_users_own(files: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files / "server.pem")
    with Server(port=0, tls=context) as server, connect(server) as peer:
        assert exchange(peer, b"00003abc", 8) == b"00003cba"


def test_edge_triggered_events_do_not_go_with_tls(files: Path) -> None:
    with pytest.raises(ValueError, match="do not go with TLS"):
        Server(port=0, tls=Certificate(files / "server.pem"), trigger="edge")


def test_files_that_cannot_be_used_are_named(files: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.pem"):
        Server(port=0, tls=Certificate(files / "nothing.pem"))


def serial(address: tuple[str, int]) -> str:
    """The serial number of the certificate that a server shows."""
    with (
        socket.create_connection(address, timeout=20) as plain,
        client_context().wrap_socket(plain, server_hostname="127.0.0.1") as peer,
    ):
        certificate = peer.getpeercert()
        assert certificate is not None
        return str(certificate["serialNumber"])


def test_a_reload_takes_the_new_certificate_and_a_bad_one_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "server.pem"

    def renew() -> None:
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(file)

    renew()
    with serving("--tls-cert", str(file), "--drain", "1s") as server:
        assert isinstance(server.address, tuple)
        first = serial(server.address)
        renew()
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("reloaded")
        second = serial(server.address)
        assert second != first
        file.write_text("nothing")
        server.process.send_signal(signal.SIGHUP)
        assert "server.pem" in server.wait_for("not reloaded")
        assert serial(server.address) == second
        server.end()


def test_a_reload_lets_tls_connections_finish_what_they_have(tmp_path: Path) -> None:
    file = tmp_path / "server.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(file)
    with serving("--tls-cert", str(file), "--drain", "5s") as server:
        with client_context().wrap_socket(server.connect(), server_hostname="127.0.0.1") as peer:
            assert exchange(peer, b"00003abc00004de", 8) == b"00003cba"
            server.process.send_signal(signal.SIGHUP)
            server.wait_for("reloading")
            assert exchange(peer, b"fg", 9) == b"00004gfed"
            assert peer.recv(1) == b""  # and then the old process ends it
        server.wait_for("reloaded")
        server.end()

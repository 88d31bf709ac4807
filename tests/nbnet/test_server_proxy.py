"""Servers behind a proxy, on real sockets; the proxy is the test, which writes PROXY headers."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from support.proxying import LOOK, header
from support.serving import exchange, read, serving, wait_for_end

from nbnet import Certificate, Context, Limits, Server
from nbnet.framing import encode_frame
from nbnet.handover import Arrival, Departure
from nbnet.notation import Target
from nbnet.running import open_loop
from nbnet.settings import Settings

WHO = """
def handle(payload, context):
    return str(context.peer).encode()
"""
CLIENT = encode_frame(b"192.0.2.7:4000")
BY_LINE = b"PROXY TCP4 192.0.2.7 198.51.100.9 4000 6789\r\n"
HERE = ("127.0.0.0/8",)


def who(_payload: bytes, context: Context) -> bytes:
    return str(context.peer).encode()


def connect(address: Target, source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(address, timeout=20, source_address=(source, 0))


def reset(peer: socket.socket) -> None:
    """Close as HAProxy ends a health check: without a word of farewell."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


@pytest.fixture(
    params=[
        {},
        {"trigger": "edge"},
        {"threads": 2},
        {"trigger": "edge", "threads": 2},
        {"poller": "poll"},
        {"poller": "select"},
    ],
    ids=lambda options: " ".join(f"{name}={value}" for name, value in options.items()) or "epoll",
)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with Server(who, port=0, proxy_protocol=HERE, **request.param) as running:
        yield running


@pytest.mark.parametrize("said", [header(), BY_LINE], ids=["binary", "text"])
def test_the_client_is_who_the_proxy_says(server: Server, said: bytes) -> None:
    with connect(server.address) as whole, connect(server.address) as parts:
        assert exchange(whole, said + b"00003abc", len(CLIENT)) == CLIENT
        parts.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        parts.sendall(said[:9])
        assert exchange(whole, b"00001a" * 2, 2 * len(CLIENT)) == 2 * CLIENT
        parts.sendall(said[9:])
        assert exchange(whole, b"00001a", len(CLIENT)) == CLIENT
        assert exchange(parts, b"00003abc" * 3, 3 * len(CLIENT)) == 3 * CLIENT


def test_who_is_trusted_needs_a_header_and_who_is_not_must_have_none() -> None:
    with Server(who, port=0, proxy_protocol=["127.0.0.2", "127.0.0.8/29"]) as server:
        with connect(server.address, "127.0.0.9") as proxy:
            assert exchange(proxy, header() + b"00001a", len(CLIENT)) == CLIENT
        with connect(server.address, "127.0.0.1") as client:
            name = str(Target(*client.getsockname())).encode()
            assert exchange(client, b"00001a", 5 + len(name)) == encode_frame(name)
        with connect(server.address, "127.0.0.1") as client:
            client.sendall(header() + b"00001a")
            assert read(client, 1) == b""
        with connect(server.address, "127.0.0.2") as proxy:
            proxy.sendall(b"00001a" * 4)
            with pytest.raises(ConnectionResetError):  # what was sent is not read to the end
                read(proxy, 1)
        loop = server._loop
        assert loop is not None
    counters = loop.count()
    assert (counters.proxy_errors, counters.protocol_errors, counters.requests) == (1, 1, 2)


def test_a_proxy_may_come_through_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with Server(who, unix=path, proxy_protocol=["unix"]), socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(20)
        peer.connect(path)
        assert exchange(peer, header() + b"00001a", len(CLIENT)) == CLIENT


def test_tls_begins_behind_the_header_and_health_checks_are_not_errors(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = trustme.CA()
    pem = tmp_path / "server.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(pem)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with (
        caplog.at_level(logging.INFO, "nbnet"),
        Server(who, port=0, proxy_protocol=HERE, tls=Certificate(pem)) as server,
    ):
        for word in (b"", LOOK, LOOK, LOOK):
            looks = connect(server.address)
            looks.sendall(word)
            reset(looks)
        plain = connect(server.address)
        plain.sendall(BY_LINE)
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as peer:
            assert exchange(peer, b"00001a" * 2, 2 * len(CLIENT)) == 2 * CLIENT
        loop = server._loop
        assert loop is not None
    counters = loop.count()
    assert (counters.tls_handshakes, counters.handshake_failures, counters.lost) == (1, 0, 0)
    assert counters.proxy_errors == 0
    assert not caplog.records


def test_connections_move_to_another_process_at_any_byte_of_their_header() -> None:
    """As at a reload; both loops here, one after the other."""
    said = header() + b"00001a"
    settings = Settings.read(who, Limits(linger=0.1), proxy_protocol=HERE)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.setblocking(False)
        address = Target(*listener.getsockname())
        peers = [stack.enter_context(connect(address)) for _ in said]
        for cut, peer in enumerate(peers):
            peer.sendall(said[:cut])
        old, _ = stack.enter_context(open_loop([listener.dup()], settings))
        new, _ = stack.enter_context(open_loop([], settings))
        ours, theirs = socket.socketpair()
        ends: list[bool] = []

        def leave(well: bool) -> None:
            ends.append(well)
            old.leave()

        def when_all_are_here() -> bool:
            if old.connections == len(peers):
                Departure(old, ours, leave)
                return False
            return True

        old.each_turn(when_all_are_here)
        old.run()
        assert ends == [True]
        assert old.counters.handed_over == len(peers)
        Arrival(new, theirs)
        for cut, peer in enumerate(peers):
            peer.sendall(said[cut:])
            peer.shutdown(socket.SHUT_WR)
        new.leave()
        new.run()
        for cut, peer in enumerate(peers):
            assert read(peer, 100) == CLIENT, cut


def test_a_reload_loses_nobody_and_reads_again_who_is_trusted(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(WHO)
    config = tmp_path / "nbnet.toml"
    config.write_text('handler = "mine:handle"\nproxy-protocol = ["127.0.0.2", "10.0.0.0/8"]\n')
    with (
        serving("--workers", "2", "--config", str(config), cwd=tmp_path) as server,
        contextlib.ExitStack() as stack,
    ):
        assert isinstance(server.address, Target)
        peers = []
        for number in range(24):
            peer = stack.enter_context(connect(server.address, "127.0.0.2"))
            peer.sendall((header() + b"00001a")[:number])
            peers.append(peer)
        served = stack.enter_context(connect(server.address, "127.0.0.2"))
        assert exchange(served, header() + b"00001a", len(CLIENT)) == CLIENT
        config.write_text('handler = "mine:handle"\nproxy-protocol = "127.0.0.3, unix"\n')
        workers = server.children()
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("reloaded")
        for worker in workers:
            wait_for_end(worker)
        for number, peer in enumerate(peers):
            rest = (header() + b"00001a")[number:]
            assert exchange(peer, rest, len(CLIENT)) == CLIENT, number
        assert exchange(served, b"00001a", len(CLIENT)) == CLIENT
        with connect(server.address, "127.0.0.3") as peer:
            assert exchange(peer, header() + b"00001a", len(CLIENT)) == CLIENT
        with connect(server.address, "127.0.0.2") as peer:
            assert exchange(peer, b"00001a", 5)[:3] == b"000"
        stack.close()
        assert "WARNING" not in server.end()


def test_on_the_command_line_proxies_are_repeated_or_a_list() -> None:
    options = ("--proxy-protocol", "127.0.0.2,::1", "--proxy-protocol", "127.0.0.3")
    with serving(*options) as server:
        assert isinstance(server.address, Target)
        for source in ("127.0.0.2", "127.0.0.3"):
            with connect(server.address, source) as peer:
                assert exchange(peer, header() + b"00003abc", 8) == b"00003cba"
        with connect(server.address, "127.0.0.3") as peer:
            peer.sendall(b"00001a")
            assert read(peer, 1) == b""
        said = server.end()
    assert "closing, PROXY protocol: no PROXY header where one is required" in said


def test_networks_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'10\.0\.0\.1/8' is no network: expected 10\.0\.0\.0/8"):
        Server(proxy_protocol=["10.0.0.1/8"])
    with pytest.raises(TypeError, match=r"a list of networks, not '10\.0\.0\.0/8'"):
        Server(proxy_protocol="10.0.0.0/8")

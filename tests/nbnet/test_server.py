"""Servers on real sockets: what depends on the kernel."""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from nbnet import Context, Limits, Server, serve
from nbnet.framing import encode_frame
from nbnet.listeners import ListenError, open_tcp
from nbnet.notation import Target
from nbnet.server import _listening


@pytest.fixture(params=["epoll level", "epoll edge", "poll level", "select level"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    poller, trigger = request.param.split()
    with Server(port=0, poller=poller, trigger=trigger) as running:
        yield running


SHORT = Limits(linger=0.1)
"""For a server that is stopped while a peer stays: it waits no longer for that one."""


def connect(address: Target) -> socket.socket:
    return socket.create_connection(address, timeout=10)


def read_to_end(peer: socket.socket) -> bytes:
    """Everything until the server closes; a reset raises."""
    data = bytearray()
    while piece := peer.recv(65536):
        data += piece
    return bytes(data)


def read(peer: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = peer.recv(size - len(data))
        assert piece, f"closed after {bytes(data)!r}"
        data += piece
    return bytes(data)


def test_a_request_is_answered(server: Server) -> None:
    with connect(server.address) as peer:
        peer.sendall(b"00003abc")
        assert read(peer, 8) == b"00003cba"


def test_byte_by_byte_pipelined_and_binary_requests(server: Server) -> None:
    requests = b"00003abc" + encode_frame(bytes(range(256))) + b"\r\n00002de"
    with connect(server.address) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for index in range(len(requests)):
            peer.send(requests[index : index + 1])
        expected = b"00003cba" + encode_frame(bytes(reversed(range(256)))) + b"00002ed"
        assert read(peer, len(expected)) == expected


@pytest.mark.parametrize(
    "bad", [b"0003a", b"+0003", b" 0003", b"0_003", b"00000", b"00003a\n\n00001a"]
)
def test_a_fault_flushes_earlier_replies_and_leaves_others_alone(
    server: Server, bad: bytes
) -> None:
    with connect(server.address) as peer, connect(server.address) as other:
        # Much that is never read follows the fault: closing at once would make
        # the kernel reset the connection and cut off the reply.
        peer.sendall(b"00003abc" + bad + b"x" * 100_000)
        assert read_to_end(peer).startswith(b"00003cba")
        other.sendall(b"00001a")
        assert read(other, 6) == b"00001a"


def test_a_large_reply_survives_a_fault_behind_it(server: Server) -> None:
    payload = os.urandom(60_000)
    with connect(server.address) as peer:
        peer.sendall(encode_frame(payload) * 5 + b"oops" + b"x" * 50_000)
        assert read_to_end(peer) == encode_frame(payload[::-1]) * 5


def test_a_half_close_gets_all_replies(server: Server) -> None:
    with connect(server.address) as peer:
        peer.sendall(b"00003abc" * 1000)
        peer.shutdown(socket.SHUT_WR)
        assert read_to_end(peer) == b"00003cba" * 1000


def test_a_slow_reader_gets_everything(server: Server) -> None:
    """60 replies of 100 kB are more than the kernel holds: partial writes, pauses."""
    payload = os.urandom(99_999)
    count = 60
    with connect(server.address) as peer:
        writer = threading.Thread(target=peer.sendall, args=(encode_frame(payload) * count,))
        writer.start()
        expected = encode_frame(payload[::-1])
        for _ in range(count):
            assert read(peer, len(expected)) == expected
        writer.join()


def test_connections_that_come_and_go_without_a_word(server: Server) -> None:
    for _ in range(5):
        connect(server.address).close()
    with connect(server.address) as peer:
        peer.sendall(b"00001a")
        assert read(peer, 6) == b"00001a"


@pytest.mark.usefixtures("raise_fd_limit")
@pytest.mark.parametrize("server", ["epoll level", "epoll edge", "poll level"], indirect=True)
def test_2000_connections_at_once(server: Server) -> None:
    peers = [connect(server.address) for _ in range(2000)]
    try:
        for number, peer in enumerate(peers):
            peer.sendall(encode_frame(b"%d" % number))
        for number, peer in enumerate(peers):
            expected = encode_frame((b"%d" % number)[::-1])
            assert read(peer, len(expected)) == expected
    finally:
        for peer in peers:
            peer.close()


@pytest.fixture
def raise_fd_limit() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_handler_and_the_limits_are_used() -> None:
    with (
        Server(bytes.upper, port=0, limits=Limits(max_frame=3)) as server,
        connect(server.address) as peer,
    ):
        peer.sendall(b"00003abc00004abcd")
        assert read_to_end(peer) == b"00003ABC"


def test_stopping_ends_connections_and_may_be_repeated() -> None:
    server = Server(port=0, limits=SHORT)
    with server, connect(server.address) as peer:
        peer.sendall(b"00001a")
        assert read(peer, 6) == b"00001a"
        server.stop()
        assert peer.recv(1) == b""
        server.stop()
        with pytest.raises(ConnectionRefusedError):
            connect(server.address)


def test_a_server_that_was_not_entered() -> None:
    server = Server(port=0)
    with pytest.raises(RuntimeError, match="no address before it is entered"):
        _ = server.address
    server.stop()


def test_a_server_is_entered_once(server: Server) -> None:
    with pytest.raises(RuntimeError, match="make another one"):
        server.__enter__()


def test_a_crash_of_the_loop_is_reported_when_stopping() -> None:
    def handler(_: bytes) -> bytes:
        raise KeyboardInterrupt

    server = Server(handler, port=0)
    server.__enter__()
    with connect(server.address) as peer:
        peer.sendall(b"00001a")
        assert read_to_end(peer) == b""
    with pytest.raises(RuntimeError, match="loop crashed") as raised:
        server.stop()
    assert isinstance(raised.value.__cause__, KeyboardInterrupt)


def test_an_address_in_use_is_an_error(server: Server) -> None:
    with pytest.raises(OSError, match="in use"), Server(port=server.address.port):
        pass


@pytest.mark.parametrize("host", ["host.invalid", "a..b", "x" * 64])
def test_an_unknown_host_is_an_error(host: str) -> None:
    with (
        pytest.raises(ListenError, match=f"cannot listen on {host}:0: "),
        Server(host=host, port=0),
    ):
        pass


def test_a_handler_that_is_no_function_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="a handler is a function of the payload, not 127"):
        Server(127)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'127\.0\.0\.1': expected module:function"):
        Server("127.0.0.1")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"poller": "kqueue"}, "'kqueue' is no poller"),
        ({"trigger": "up"}, "'up' is no trigger"),
        ({"trigger": "edge", "poller": "poll"}, "need epoll, not poll"),
        ({"port": 70_000}, "port 70000 is outside of 0 to 65535"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message), Server(**settings):
        pass


def test_ipv6() -> None:
    with Server(host="::1", port=0) as server, connect(server.address) as peer:
        assert server.address.host == "::1"
        peer.sendall(b"00003abc")
        assert read(peer, 8) == b"00003cba"


def test_a_second_server_can_take_the_port_at_once() -> None:
    with Server(port=0, limits=SHORT) as server, connect(server.address) as peer:
        peer.sendall(b"00001a")
        read(peer, 6)
        server.stop()
        with Server(port=server.address.port):
            pass


def serve_while(action: Callable[[Target], object]) -> None:
    """Serve on a free port until a signal, with an action in a thread beside it."""
    threads: list[threading.Thread] = []

    def on_listening(address: Target | str) -> None:
        assert isinstance(address, Target)
        threads.append(threading.Thread(target=action, args=(address,)))
        threads[0].start()

    serve(port=0, on_listening=on_listening)
    threads[0].join()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_ends_on_a_signal_and_restores_the_handlers(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    replies: list[bytes] = []

    def use(address: Target) -> None:
        with connect(address) as peer:
            peer.sendall(b"00003abc")
            replies.append(read(peer, 8))
            signal.pthread_kill(threading.main_thread().ident or 0, number)
            replies.append(peer.recv(1))

    serve_while(use)
    assert replies == [b"00003cba", b""]
    assert signal.getsignal(number) is before


def test_a_signal_that_another_thread_gets_ends_serve_too() -> None:
    """The loop waits in the main thread and must be woken there."""

    def use(address: Target) -> None:
        connect(address).close()
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    serve_while(use)


def test_serve_belongs_into_the_main_thread() -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            serve(port=0)
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(errors) == 1


def test_a_unix_socket(tmp_path: Path) -> None:
    def who(_: bytes, context: Context) -> bytes:
        return str(context.peer).encode()

    path = str(tmp_path / "socket")
    with Server(who, unix=path) as server:
        with pytest.raises(RuntimeError, match=f"listens on unix:{path}, which is no host"):
            _ = server.address
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(10)
            peer.connect(path)
            peer.sendall(b"00001a")
            assert read(peer, 16) == b"00011unix socket"
    assert not Path(path).exists()


def test_a_wildcard_takes_both_families() -> None:
    def who(_: bytes, context: Context) -> bytes:
        assert isinstance(context.peer, Target)
        return context.peer.host.encode()

    with Server(who, host="*", port=0) as server:
        for host in ("127.0.0.1", "::1"):
            with connect(Target(host, server.address.port)) as peer:
                peer.sendall(b"00001a")
                assert read(peer, 5 + len(host))[5:] == host.encode()


def test_a_handler_that_declares_a_second_parameter_is_told_who_asks() -> None:
    def who(payload: bytes, context: Context) -> bytes:
        return f"{payload.decode()} {context.peer} {context.tls_name}".encode()

    with Server(who, port=0) as server, connect(server.address) as peer:
        name = "{}:{}".format(*peer.getsockname())
        peer.sendall(b"00001a")
        expected = encode_frame(f"a {name} None".encode())
        assert read(peer, len(expected)) == expected


def test_a_slow_handler_in_threads_does_not_hold_up_others() -> None:
    go_on = threading.Event()

    def handler(payload: bytes) -> bytes:
        if payload == b"slow":
            assert go_on.wait(10)
        return payload

    with (
        Server(handler, port=0, threads=4) as server,
        connect(server.address) as slow,
        connect(server.address) as quick,
    ):
        slow.sendall(b"00004slow00001a")
        quick.sendall(b"00001b" * 100)
        assert read(quick, 600) == b"00001b" * 100
        go_on.set()
        assert read(slow, 15) == b"00004slow00001a"


def test_metrics_of_a_server_in_a_thread() -> None:
    with Server(port=0, metrics="127.0.0.1:0") as server:
        with connect(server.address) as peer:
            peer.sendall(b"00003abc")
            read(peer, 8)
        server.stop()  # what was counted is published at the end, at the latest
        with pytest.raises(RuntimeError, match="serves no metrics"):
            _ = Server(port=0).metrics_address
    with (
        Server(port=0, metrics="[::1]:0") as server,
        urlopen(f"http://{server.metrics_address}/metrics", timeout=10) as answer,
    ):
        assert b"nbnet_workers 1.0" in answer.read()


@pytest.mark.parametrize("metrics", ["9100", "host:port", "127.0.0.1:70000"])
def test_a_place_for_metrics_that_is_none(metrics: str) -> None:
    with pytest.raises(ValueError, match="is no place to serve"):
        Server(port=0, metrics=metrics)


def test_a_handler_may_stop_its_own_server() -> None:
    def handler(payload: bytes) -> bytes:
        own.stop()
        return payload

    own = Server(handler, port=0, limits=SHORT)
    with own, connect(own.address) as peer:
        peer.sendall(b"00001a")
        assert read_to_end(peer) == b"00001a"


def test_serve_in_one_process_serves_metrics_and_need_not_tell_where(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is stopped when it has said that it serves metrics, and where."""

    class Stops(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "metrics on" in record.getMessage():
                signal.raise_signal(signal.SIGTERM)

    handler = Stops()
    log = logging.getLogger("nbnet")
    log.addHandler(handler)
    try:
        with caplog.at_level(logging.INFO, "nbnet"):
            serve(port=0, metrics="127.0.0.1:0")
    finally:
        log.removeHandler(handler)
    assert "stopped: 0 requests" in caplog.text


def test_a_third_signal_ends_even_a_handler_that_does_not_return() -> None:
    def handler(payload: bytes) -> bytes:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        return payload

    ends: list[bytes] = []

    def use(address: Target) -> None:
        with connect(address) as peer:
            peer.sendall(b"00001a")
            ends.append(read_to_end(peer))

    threads: list[threading.Thread] = []

    def on_listening(address: Target | str) -> None:
        assert isinstance(address, Target)
        threads.append(threading.Thread(target=use, args=(address,)))
        threads[0].start()

    serve(handler, port=0, on_listening=on_listening)
    threads[0].join()
    assert ends == [b""]


def test_sockets_that_were_inherited_are_listened_on_and_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = open_tcp("127.0.0.1", 0)
    monkeypatch.setattr("nbnet.server.inherited", lambda: given)
    with _listening("no.such.host.invalid", 1, None, activated=True) as bounds:
        assert bounds is given
        connect(given[0].address).close()  # type: ignore[arg-type]
    assert all(each.fileno() == -1 for each in given[0].sockets)

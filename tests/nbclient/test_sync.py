"""What only the blocking front does."""

from __future__ import annotations

import errno
import gc
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from nbclient import Client, ConnectError, ConnectionLost, PoolTimeout, RequestTimeout
from nbclient.dialing import TimedStream
from nbclient.sync_connection import Connection
from nbnet.notation import Target

GOOD = [("expect", b"00003abc"), ("send", b"00003cba"), ("eof", b"")]


def use_sockets(monkeypatch: pytest.MonkeyPatch, kind: type[socket.socket]) -> None:
    """Let the client, and nobody else, make its sockets of this kind."""
    monkeypatch.setattr(
        "nbclient.dialing.socket", SimpleNamespace(**{**vars(socket), "socket": kind})
    )


class FaultySocket(socket.socket):
    """A socket whose ``recv`` raises what the test says, once; a look ahead does not."""

    fault: BaseException | None = None

    def recv(self, *args: Any) -> bytes:
        if socket.MSG_PEEK in args[1:]:
            return super().recv(*args)
        fault, FaultySocket.fault = FaultySocket.fault, None
        if fault is not None:
            raise fault
        return super().recv(*args)

    def connect(self, address: Any) -> None:
        if isinstance(FaultySocket.fault, OSError):
            raise FaultySocket.fault
        super().connect(address)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> type[FaultySocket]:
    use_sockets(monkeypatch, FaultySocket)
    monkeypatch.setattr(FaultySocket, "fault", None)
    return FaultySocket


def test_ctrl_c_in_a_request_closes_the_connection(
    scripted: Callable[..., Target], faulty: type[FaultySocket]
) -> None:
    address = scripted([("expect", b"00001a"), ("send", b"00001A"), ("eof", b"")], GOOD)
    with Client(address) as client:
        faulty.fault = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            client.request(b"a")
        assert client.request(b"abc") == b"cba"


def test_ctrl_c_while_connecting_leaves_no_socket_open(
    address: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    class Interrupted(socket.socket):
        def connect(self, _: Any) -> None:
            opened.append(self)
            raise KeyboardInterrupt

    with Client(address) as client:
        with monkeypatch.context() as patch:
            use_sockets(patch, Interrupted)
            with pytest.raises(KeyboardInterrupt):
                client.request(b"abc")
        assert opened[0].fileno() == -1
        assert client.request(b"abc") == b"cba"


def test_a_timeout_of_the_kernel_is_not_ours(address: Target, faulty: type[FaultySocket]) -> None:
    gave_up = TimeoutError(errno.ETIMEDOUT, "Connection timed out")
    with Client(address) as client:
        faulty.fault = gave_up
        with pytest.raises(ConnectError, match="Connection timed out"):
            client.request(b"abc")
        faulty.fault = None
        assert client.request(b"abc") == b"cba"
        faulty.fault = gave_up
        with pytest.raises(ConnectionLost, match="Connection timed out"):
            client.request(b"abc")


def test_a_deadline_is_for_the_whole_request(
    scripted: Callable[..., Target], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A byte comes with every look at the clock, which goes on by 1 s: each read
    # is quick, and yet the time is over in the middle of the reply.
    class Clock:
        now = 0.0

        @classmethod
        def monotonic(cls) -> float:
            cls.now += 1.0
            return cls.now

    monkeypatch.setattr("nbclient.sync.time", Clock)
    monkeypatch.setattr("nbclient.sync_connection.time", Clock)
    monkeypatch.setattr("nbclient.dialing.READ_SIZE", 1)
    address = scripted([("expect", b"00003abc"), ("send", b"00003cba"), ("eof", b"")])
    with Client(address, timeout=6.0) as client, pytest.raises(RequestTimeout, match="within 6 s"):
        client.request(b"abc")


def test_sending_is_under_the_deadline_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody accepts, and small buffers take no 99,999 bytes.
    class Small(socket.socket):
        def connect(self, address: Any) -> None:
            self.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            super().connect(address)

    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        use_sockets(monkeypatch, Small)
        with Client(deaf.getsockname(), timeout=0.1) as client, pytest.raises(RequestTimeout):
            client.request(b"x" * 99_999)


def test_small_requests_are_not_held_back(address: Target) -> None:
    with Client(address) as client:
        client.request(b"abc")
        (connection,) = client._open
        assert isinstance(connection.stream, TimedStream)
        kept = connection.stream._socket
        assert kept.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_generator_that_is_dropped_leaves_no_socket_open(address: Target) -> None:
    with Client(address) as client:
        for reply in client.request_many([b"abc"] * 20_000):
            assert reply == b"cba"
            break
        gc.collect()  # an unclosed socket would warn, and a warning is an error here
        # The one that is in step was kept.
        assert set(client._open) == {kept for stack in client._idle.values() for kept in stack}
        assert client.request(b"ab") == b"ba"


def test_a_second_connection_is_kept_too(address: Target) -> None:
    with Client(address) as client:
        replies = client.request_many([b"ab", b"cd"])
        assert next(replies) == b"ba"
        assert client.request(b"ef") == b"fe"
        assert list(replies) == [b"dc"]
        ((_, idle),) = client._idle.items()
        assert len(idle) == 2


def test_who_finds_all_connections_in_use_waits_for_one(address: Target) -> None:
    with Client(address, max_connections=1, timeout=0.2, retries=0) as client:
        replies = client.request_many([b"ab", b"cd"])
        assert next(replies) == b"ba"
        with pytest.raises(PoolTimeout, match=f"all 1 connections to {address} in use for 0.2 s"):
            client.request(b"ef")
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(client.request, b"ef", timeout=None)
            while not client._waiting:
                time.sleep(0)  # as soon as it waits, and not on time
            assert list(replies) == [b"dc"]
            assert waiting.result() == b"fe"


def test_a_socket_that_connected_to_itself_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bound(socket.socket):
        """Has the port that it is going to ask for, as chance may have it."""

        def connect(self, address: Any) -> None:
            self.bind(address)
            super().connect(address)

    with socket.create_server(("127.0.0.1", 0)) as free:
        address = Target(*free.getsockname())
    use_sockets(monkeypatch, Bound)
    refused = pytest.raises(ConnectError, match="Connection refused")
    with Client(address, retries=0) as client, refused:
        client.request(b"abc")


def test_a_connection_that_was_not_made_yet_is_nothing_to_close(address: Target) -> None:
    client = Client(address)
    [server] = client._servers.all
    connecting = Connection(server, client._settings, client._idle[server])
    client._open.add(connecting)
    client._forget()  # as in a forked child
    client._open.add(connecting)
    with pytest.warns(ResourceWarning, match="unclosed"):
        client.__del__()
    client.close()
    connecting.forget()


def test_who_misses_a_connection_that_is_given_back_just_then_looks_again(
    address: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    class GivenBackLate(list[Connection]):
        """Empty for who looks twice, and full for who looks again."""

        looks = 0

        def pop(self, _index: Any = -1, /) -> Connection:
            self.looks += 1
            if self.looks < 3:
                raise IndexError
            return super().pop()

    with Client(address, max_connections=1, timeout=5.0) as client:
        client.request(b"abc")
        [server] = client._servers.all
        client._idle[server] = client._only_idle = late = GivenBackLate(client._idle[server])
        monkeypatch.setattr(client, "_evict", lambda: None)
        assert client.request(b"abc") == b"cba"
        assert late.looks == 3


def test_a_connection_that_is_out_of_step_is_not_used_again(
    address: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it got there with a reply that is right."""
    ask = Connection.ask
    asked: list[Connection] = []

    def ask_and_stumble(self: Connection, *args: Any) -> bytes:
        asked.append(self)
        reply = ask(self, *args)
        self.in_step = False
        return reply

    monkeypatch.setattr(Connection, "ask", ask_and_stumble)
    with Client(address) as client:
        assert [client.request(b"abc") for _ in range(2)] == [b"cba"] * 2
    assert asked[0] is not asked[1]

"""Both fronts with servers that fail, several of them, and other ways to reach them than TCP."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from support.fronts import Open

from nbclient import (
    Client,
    ClosedError,
    ConnectError,
    ConnectionLost,
    ConnectTimeout,
    Event,
    NbclientError,
    RequestTimeout,
)
from nbclient.servers import Attempts
from nbnet import Certificate, Server
from nbnet.notation import Address, Target

ASKED = ("expect", b"00001a")
ANSWERED = ("send", b"00001A")


@pytest.fixture
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pause is as long as it may be."""
    monkeypatch.setattr(Attempts.__init__, "__kwdefaults__", {"jitter": lambda: 1.0})


# Retries -----------------------------------------------------------------------------


async def test_a_request_that_may_have_been_executed_is_not_repeated(
    connect: Open, scripted: Callable[..., Target]
) -> None:
    address = scripted([ASKED], [ASKED, ANSWERED])
    async with connect(address) as client:
        with pytest.raises(ConnectionLost) as caught:
            await client.request(b"a")
        assert caught.value.maybe_executed
        assert caught.value.peer == str(address)
        assert caught.value.stage == "receiving"
        assert await client.request(b"a") == b"A"


async def test_one_that_may_be_executed_twice_is_repeated(
    connect: Open, scripted: Callable[..., Target]
) -> None:
    address = scripted([ASKED], [ASKED, ("reset", b"")], [ASKED, ANSWERED])
    async with connect(address, retries=2, backoff=0.0) as client:
        assert await client.request(b"a", idempotent=True) == b"A"


async def test_retries_end(connect: Open, scripted: Callable[..., Target]) -> None:
    address = scripted([ASKED], [ASKED])
    events: list[Event] = []
    async with connect(address, retries=1, backoff=0.0, on_event=events.append) as client:
        with pytest.raises(ConnectionLost):
            await client.request(b"a", idempotent=True)
    assert [event.kind for event in events].count("retry") == 1


async def test_a_server_that_comes_back_is_found(connect: Open) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = Target(*bound.getsockname())
        events: list[Event] = []

        def listen(event: Event) -> None:
            events.append(event)
            if [event.kind for event in events].count("retry") == 2 and not threads:
                bound.listen()
                threads.append(threading.Thread(target=answer))
                threads[0].start()

        def answer() -> None:
            peer, _ = bound.accept()
            with peer:
                assert peer.recv(100) == b"00001a"
                peer.sendall(b"00001A")
                peer.recv(1)  # the end

        threads: list[threading.Thread] = []
        options = {"retries": 3, "backoff": 0.001, "on_event": listen}
        try:
            async with connect(address, **options) as client:
                assert await client.request(b"a") == b"A"
        finally:
            for thread in threads:
                thread.join()
    assert [event.kind for event in events] == [
        *["request", "connect", "failed", "retry"] * 2,
        *["request", "connect", "reply", "close"],
    ] or [event.kind for event in events] == [
        *["connect", "retry"] * 2,
        *["connect", "request", "reply", "close"],
    ]


@pytest.mark.usefixtures("no_jitter")
async def test_no_pause_goes_past_the_deadline(connect: Open, refusing: Target) -> None:
    async with connect(refusing, retries=9, backoff=60.0, backoff_cap=60.0, timeout=5) as client:
        with pytest.raises(ConnectError):  # at once, in place of a minute's pause
            await client.request(b"a")


async def test_a_request_has_a_timeout_of_its_own(
    connect: Open, scripted: Callable[..., Target]
) -> None:
    address = scripted([ASKED, ("eof", b"")], [ASKED, ANSWERED])
    async with connect(address, timeout=None) as client:
        with pytest.raises(RequestTimeout, match=f"no reply from {address} within 50 ms"):
            await client.request(b"a", timeout=0.05)
        assert await client.request(b"a") == b"A"
        with pytest.raises(ValueError, match="timeout of 0"):
            await client.request(b"a", timeout=0)


async def test_an_attempt_to_connect_has_a_timeout_of_its_own(connect: Open) -> None:
    def slow(_: Address, timeout: float | None) -> object:
        raise TimeoutError if timeout == 0.25 else AssertionError(timeout)

    async def never(_: Address) -> object:
        import trio

        await trio.sleep_forever()
        raise AssertionError

    way = slow if "blocking" in connect.__name__ else never
    options = {"connect": way, "connect_timeout": 0.25, "retries": 0, "timeout": None}
    async with connect("nowhere:1", **options) as client:
        with pytest.raises(ConnectTimeout, match=r"no connection to nowhere:1 within 0.25 s"):
            await client.request(b"a")


# Several servers ---------------------------------------------------------------------


async def test_requests_go_to_all_servers(connect: Open) -> None:
    with Server(lambda _: b"1", port=0) as first, Server(lambda _: b"2", port=0) as second:
        async with connect([first.address, second.address], max_connections=2) as client:
            many = [client.request_many([b"a", b"b"]) for _ in range(2)]
            # Each has a connection: the one with fewer under way is the other server.
            assert {await anext(replies) for replies in many} == {b"1", b"2"}
            for replies in many:
                await replies.aclose()


async def test_a_server_that_is_down_costs_nothing_but_an_attempt(
    connect: Open, address: Target, refusing: Target
) -> None:
    events: list[Event] = []
    async with connect([refusing, address], retries=0, on_event=events.append) as client:
        for _ in range(5):
            assert await client.request(b"abc") == b"cba"
    failed = [event for event in events if event.kind == "connect" and event.error is not None]
    assert [event.peer for event in failed] in ([str(refusing)], [])


async def test_all_down_gives_each_reason(connect: Open, refusing: Target, tmp_path: Path) -> None:
    nowhere = f"unix:{tmp_path / 'none'}"
    async with connect([refusing, nowhere], retries=0) as client:
        with pytest.raises(ConnectError) as caught:
            await client.request(b"abc")
        with pytest.raises(ConnectError):  # they are left out now, and yet tried
            await client.request(b"abc")
    error = caught.value
    assert error.reasons == {str(refusing): "Connection refused", nowhere: os.strerror(2)}
    assert str(error).startswith("cannot connect to any server: ")
    assert str(refusing) in str(error)
    assert nowhere in str(error)
    assert not error.maybe_executed


async def test_a_server_that_does_not_answer_is_left_out(
    connect: Open, address: Target, scripted: Callable[..., Target]
) -> None:
    silent = scripted([ASKED, ("eof", b"")])
    async with connect([silent, address], timeout=0.2) as client:
        outcomes = []
        for _ in range(4):
            try:
                outcomes.append(await client.request(b"a"))
            except RequestTimeout:
                outcomes.append(b"late")
    assert outcomes.count(b"late") == 1
    assert outcomes.count(b"a") == 3


# Other ways --------------------------------------------------------------------------


async def test_a_unix_socket(connect: Open, tmp_path: Path) -> None:
    path = tmp_path / "nbnet.sock"
    with Server(unix=str(path)):
        async with connect(f"unix:{path}") as client:
            assert await client.request(b"abc") == b"cba"
            assert [reply async for reply in client.request_many([b"ab", b"cd"])] == [b"ba", b"dc"]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(authority: trustme.CA, tmp_path: Path) -> dict[str, str]:
    """Certificates of the server and of a client, and who signed them."""
    paths = {name: str(tmp_path / f"{name}.pem") for name in ("ca", "server", "client")}
    authority.cert_pem.write_to_path(paths["ca"])
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(paths["server"])
    authority.issue_cert("me@here").private_key_and_cert_chain_pem.write_to_path(paths["client"])
    return paths


@contextlib.contextmanager
def secure_server(files: dict[str, str], *, mutual: bool = False) -> Iterator[Target]:
    certificate = Certificate(files["server"], client_ca=files["ca"] if mutual else None)
    with Server(port=0, tls=certificate) as server:
        assert isinstance(server.address, Target)
        yield server.address


async def test_tls(connect: Open, files: dict[str, str]) -> None:
    with secure_server(files) as target:
        async with connect(f"tls://127.0.0.1:{target.port}", tls_ca=files["ca"]) as client:
            with pytest.raises(ConnectError, match="does not verify"):
                await client.request(b"abc")
        async with connect(
            f"tls://127.0.0.1:{target.port}", tls_ca=files["ca"], tls_server_name="localhost"
        ) as client:
            for size in (3, 20_000, 99_999):
                payload = os.urandom(size)
                assert await client.request(payload) == payload[::-1]
            got = [reply async for reply in client.request_many(b"%d0" % n for n in range(5_000))]
            assert got == [(b"%d0" % n)[::-1] for n in range(5_000)]
            assert await client.request(b"abc") == b"cba"


async def test_mutual_tls(connect: Open, files: dict[str, str]) -> None:
    with secure_server(files, mutual=True) as target:
        name = {"tls_server_name": "localhost", "tls_ca": files["ca"]}
        where = f"127.0.0.1:{target.port}"
        async with connect(where, **name, tls_cert=files["client"]) as client:
            assert await client.request(b"abc") == b"cba"
        async with connect(where, **name, retries=0) as client:
            with pytest.raises(NbclientError):
                await client.request(b"abc")


# Watching ----------------------------------------------------------------------------


async def test_events_tell_what_happened(connect: Open, scripted: Callable[..., Target]) -> None:
    address = scripted([ASKED, ANSWERED, ASKED])
    events: list[Event] = []
    async with connect(address, on_event=events.append) as client:
        assert await client.request(b"a") == b"A"
        with pytest.raises(ConnectionLost):
            await client.request(b"a")
    kinds = [event.kind for event in events]
    assert sorted(kinds) == sorted(["connect", "request", "reply", "request", "failed", "close"])
    assert kinds[-2:] in (["failed", "close"], ["close", "failed"])
    assert {event.peer for event in events} == {str(address)}
    assert {event.request for event in events if event.kind in ("request", "reply")} == {1, 2}
    (reply,) = (event for event in events if event.kind == "reply")
    assert reply.size == 1
    assert 0 < reply.seconds < 5
    (failed,) = (event for event in events if event.kind == "failed")
    assert isinstance(failed.error, ConnectionLost)


async def test_a_hook_that_fails_harms_nobody(
    connect: Open, address: Target, caplog: pytest.LogCaptureFixture
) -> None:
    def hook(_: Event) -> None:
        raise LookupError("not found")

    async with connect(address, on_event=hook) as client:
        assert await client.request(b"abc") == b"cba"
    assert "the hook on_event failed" in caplog.text


def test_closing_ends_a_pause(refusing: Target) -> None:
    """A thread that waits for another attempt finds out. (A task is cancelled in place of this.)"""
    outcomes: list[BaseException] = []
    retrying = threading.Event()

    def note(event: Event) -> None:
        if event.kind == "retry":
            retrying.set()

    def ask() -> None:
        try:
            client.request(b"abc")
        except NbclientError as error:
            outcomes.append(error)

    client = Client(refusing, timeout=None, backoff=30.0, backoff_cap=30.0, on_event=note)
    with client:
        thread = threading.Thread(target=ask)
        thread.start()
        assert retrying.wait(10)
        client.close()
        thread.join(10)
    assert [type(error) for error in outcomes] == [ClosedError]


async def test_events_of_request_many(connect: Open, scripted: Callable[..., Target]) -> None:
    address = scripted([("expect", b"00001a00001b00001c"), ("send", b"00001A")])
    events: list[Event] = []
    async with connect(address, on_event=events.append) as client:
        with pytest.raises(ConnectionLost):
            assert [reply async for reply in client.request_many([b"a", b"b", b"c"])]
    told = [(event.kind, event.request) for event in events if event.request]
    assert sorted(told) == [
        *[("failed", 2), ("failed", 3), ("reply", 1)],
        *[("request", 1), ("request", 2), ("request", 3)],
    ]
    assert all(isinstance(e.error, ConnectionLost) for e in events if e.kind == "failed")

"""Both fronts through one set of cases, so that they cannot drift apart."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import re
import select
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NoReturn

import pytest
import trio
from support.fronts import Blocking, Front, Open

from nbclient import (
    AsyncClient,
    Client,
    ClosedError,
    ConnectError,
    ConnectionLost,
    NbclientError,
    ProtocolError,
    RequestTimeout,
)
from nbclient.dialing import TimedStream
from nbnet import Server
from nbnet.notation import Target


async def collect(replies: AsyncIterator[bytes]) -> list[bytes]:
    return [reply async for reply in replies]


# Against a real server --------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [b"a", b"abc", bytes(range(256)), b"\r\n", b"00003abc", b"xy" * 49_999 + b"z"],
    ids=["one", "short", "binary", "line end", "a frame", "largest"],
)
async def test_a_reply_is_the_payload_backwards(
    connect: Open, address: Target, payload: bytes
) -> None:
    async with connect(address) as client:
        assert await client.request(payload) == payload[::-1]
        assert await collect(client.request_many([payload, b"ab"])) == [payload[::-1], b"ba"]


async def test_a_target_may_be_text(connect: Open, address: Target) -> None:
    async with connect(str(address), timeout=None) as client:
        assert await client.request(b"abc") == b"cba"


async def test_an_empty_reply(connect: Open) -> None:
    with Server(lambda _: b"", port=0) as server:
        async with connect(server.address) as client:
            assert await client.request(b"abc") == b""
            assert await collect(client.request_many([b"a", b"b"])) == [b"", b""]


@pytest.mark.parametrize(
    ("count", "size"), [(0, 1), (1, 1), (20_000, 1), (300, 1000), (8, 70_000), (8, 99_999)]
)
async def test_many_are_answered_in_order(
    connect: Open, address: Target, count: int, size: int
) -> None:
    async with connect(address) as client:
        number = itertools.count()
        async for reply in client.request_many(b"%0*d" % (size, n) for n in range(count)):
            assert reply == (b"%0*d" % (size, next(number)))[::-1]
        assert next(number) == count


async def test_payloads_are_taken_as_they_are_needed(connect: Open, address: Target) -> None:
    numbers = itertools.count()
    async with connect(address) as client:
        endless = client.request_many(b"%08d" % n for n in numbers)
        async with contextlib.aclosing(endless) as replies:
            for n in range(10_000):
                assert await anext(replies) == (b"%08d" % n)[::-1]
        # Those answered, 64 KiB of 13 bytes in flight, and one that has to wait.
        assert next(numbers) <= 10_000 + 65_536 // 13 + 5_100
        assert await client.request(b"abc") == b"cba"


async def test_requests_share_one_connection(
    connect: Open, scripted: Callable[..., Target]
) -> None:
    address = scripted(
        [
            *[("expect", b"00001a"), ("send", b"00001A")] * 2,
            ("expect", b"00001b00001c"),
            ("send", b"00001B00001C"),
            ("eof", b""),
        ]
    )
    async with connect(address) as client:
        assert await client.request(b"a") == b"A"
        assert await client.request(b"a") == b"A"
        assert await collect(client.request_many([b"b", b"c"])) == [b"B", b"C"]


async def test_nothing_connects_before_a_request(connect: Open, refusing: Target) -> None:
    async with connect(refusing) as client:
        assert await collect(client.request_many([])) == []


# Payloads that cannot be sent ----------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "kind"),
    [(b"", ValueError), (b"x" * 100_000, ValueError), ("abc", TypeError), (None, TypeError)],
    ids=["empty", "too long", "text", "None"],
)
async def test_an_unfit_payload_is_refused_before_a_byte_is_sent(
    connect: Open, scripted: Callable[..., Target], payload: Any, kind: type[Exception]
) -> None:
    address = scripted([("expect", b"00001a"), ("send", b"00001A"), ("eof", b"")])
    async with connect(address) as client:
        with pytest.raises(kind):  # with no connection yet
            await client.request(payload)
        assert await client.request(b"a") == b"A"
        with pytest.raises(kind):  # with one, which is kept
            await client.request(payload)
    async with connect(address) as client:
        with pytest.raises(kind):
            await collect(client.request_many([b"a", payload]))


async def test_what_is_no_iterable_is_refused_at_once(connect: Open, address: Target) -> None:
    async with connect(address) as client:
        with pytest.raises(TypeError):
            await collect(client.request_many(5))  # type: ignore[arg-type]


async def test_an_iterable_that_fails_gives_its_error(connect: Open, address: Target) -> None:
    def failing() -> Iterator[bytes]:
        yield from [b"ab"] * 20_000
        raise LookupError("no more")

    async with connect(address) as client:
        with pytest.raises(LookupError, match="no more"):
            await collect(client.request_many(failing()))
        assert await client.request(b"abc") == b"cba"


# Faults of the server --------------------------------------------------------------

SENT = b"00001a00001b"

FAULTS = [
    pytest.param([("send", b"00001A")], [b"A"], ConnectionLost, id="closes after one reply"),
    pytest.param(
        [("send", b"00001A00005B")], [b"A"], ConnectionLost, id="closes in the middle of a reply"
    ),
    pytest.param([], [], ConnectionLost, id="closes at once"),
    pytest.param([("reset", b"")], [], ConnectionLost, id="resets"),
    pytest.param([("send", b"00001A+0001B"), ("eof", b"")], [b"A"], ProtocolError, id="bad header"),
    pytest.param([("send", b"1\n"), ("eof", b"")], [], ProtocolError, id="bad header, cut short"),
    pytest.param(
        [("send", b"00001A00001B00001C"), ("eof", b"")],
        [b"A", b"B"],
        ProtocolError,
        id="a reply more",
    ),
    pytest.param(
        [("send", b"00001A00001Bxyz"), ("eof", b"")], [b"A", b"B"], ProtocolError, id="junk behind"
    ),
    pytest.param([("eof", b"")], [], RequestTimeout, id="is silent"),
    pytest.param(
        [("send", b"00001A00001"), ("eof", b"")], [b"A"], RequestTimeout, id="falls silent"
    ),
]

GOOD = [("expect", b"00003abc"), ("send", b"00003cba"), ("eof", b"")]


@pytest.mark.parametrize(("script", "replies", "kind"), FAULTS)
async def test_a_fault_follows_the_replies_and_ends_the_connection(
    connect: Open,
    scripted: Callable[..., Target],
    script: list[tuple[str, bytes]],
    replies: list[bytes],
    kind: type[NbclientError],
) -> None:
    address = scripted([("expect", SENT), *script], GOOD)
    async with connect(address, timeout=0.1 if kind is RequestTimeout else 5) as client:
        got: list[bytes] = []

        async def run() -> None:
            async for reply in client.request_many([b"a", b"b"]):
                got.append(reply)

        with pytest.raises(kind):
            await run()
        assert got == replies
        assert await client.request(b"abc") == b"cba"


ONE_FAULTS = [
    pytest.param([], ConnectionLost, id="closes"),
    pytest.param([("send", b"00001")], ConnectionLost, id="closes in the middle of a reply"),
    pytest.param([("reset", b"")], ConnectionLost, id="resets"),
    pytest.param([("send", b"hello"), ("eof", b"")], ProtocolError, id="bad header"),
    pytest.param([("send", b"00001A00001B"), ("eof", b"")], ProtocolError, id="a reply more"),
    pytest.param([("send", b"00001A0"), ("eof", b"")], ProtocolError, id="a byte more"),
    pytest.param([("eof", b"")], RequestTimeout, id="is silent"),
    pytest.param([("send", b"00003A"), ("eof", b"")], RequestTimeout, id="falls silent"),
]


@pytest.mark.parametrize(("script", "kind"), ONE_FAULTS)
async def test_a_fault_in_a_request_ends_the_connection(
    connect: Open,
    scripted: Callable[..., Target],
    script: list[tuple[str, bytes]],
    kind: type[NbclientError],
) -> None:
    address = scripted([("expect", b"00001a"), *script], GOOD)
    async with connect(address, timeout=0.1 if kind is RequestTimeout else 5) as client:
        with pytest.raises(kind):
            await client.request(b"a")
        assert await client.request(b"abc") == b"cba"


async def test_a_reset_names_the_address_and_the_reason(
    connect: Open, scripted: Callable[..., Target]
) -> None:
    address = scripted([("expect", b"00001a"), ("reset", b"")])
    async with connect(address) as client:
        with pytest.raises(ConnectionLost) as caught:
            await client.request(b"a")
    assert str(caught.value) == f"lost the connection to {address}: Connection reset by peer"
    assert caught.value.__cause__ is not None


async def test_replies_sent_before_a_reset_are_given(
    connect: Open, scripted: Callable[..., Target]
) -> None:
    # The server answers one request and closes with others unread, which resets;
    # the client may be sending or reading at that moment.
    address = scripted([("expect", b"00003abc"), ("send", b"00003cba")], GOOD)
    async with connect(address) as client:
        got: list[bytes] = []

        async def run() -> None:
            payloads = itertools.chain([b"abc"], itertools.repeat(b"fail" * 5_000))
            async for reply in client.request_many(payloads):
                got.append(reply)

        with pytest.raises(ConnectionLost):
            await run()
        assert got == [b"cba"]
        assert await client.request(b"abc") == b"cba"


async def test_a_connection_that_cannot_be_written_to_is_read_to_its_end(
    connect: Open, scripted: Callable[..., Target], gate: threading.Event
) -> None:
    large = b"x" * 99_999  # goes alone: what follows it is not sent before its reply
    script = [("expect", b"99999" + large), ("send", b"00001X"), ("gate", b""), ("reset", b"")]
    address = scripted(script, GOOD)
    async with connect(address) as client:
        async with contextlib.aclosing(client.request_many([large, b"y"])) as replies:
            assert await anext(replies) == b"X"
            gate.set()
            wait_until_readable(client)
            with pytest.raises(ConnectionLost):
                await anext(replies)
        assert await client.request(b"abc") == b"cba"


async def test_a_late_reply_does_not_reach_a_later_request(
    connect: Open, scripted: Callable[..., Target]
) -> None:
    """redis-py once gave each caller the reply of the one before, after a timeout."""
    late = [("expect", b"00005first"), ("eof", b""), ("send", b"00005tsrif")]
    right = [("expect", b"00006second"), ("send", b"00006dnoces"), ("eof", b"")]
    address = scripted(late, right)
    async with connect(address, timeout=0.1) as client:
        with pytest.raises(RequestTimeout, match=f"no reply from {address} within 0.1 s"):
            await client.request(b"first")
        assert await client.request(b"second") == b"dnoces"


# A connection that is kept ------------------------------------------------------------


@pytest.mark.parametrize(
    "surprise",
    [[], [("reset", b"")], [("send", b"00001x"), ("eof", b"")], [("send", b"\r\n"), ("eof", b"")]],
    ids=["closed", "reset", "unasked reply", "line end"],
)
async def test_a_kept_connection_that_became_readable_is_dropped(
    connect: Open,
    scripted: Callable[..., Target],
    gate: threading.Event,
    surprise: list[tuple[str, bytes]],
) -> None:
    answer = [("expect", b"00001a"), ("send", b"00001A")]
    address = scripted([*answer, ("gate", b""), *surprise], GOOD)
    async with connect(address) as client:
        assert await client.request(b"a") == b"A"
        gate.set()
        wait_until_readable(client)
        assert await client.request(b"abc") == b"cba"


def open_sockets(client: Front) -> list[Any]:
    """The sockets that a client has."""
    if isinstance(client, Blocking):
        streams = [connection.stream for connection in client.client._open]
        return [stream._socket for stream in streams if isinstance(stream, TimedStream)]
    assert isinstance(client, AsyncClient)
    opened = [connection.stream for connection in client._open]
    return [stream.socket for stream in opened if isinstance(stream, trio.SocketStream)]


def wait_until_readable(client: Front) -> None:
    """Wait until the kernel has something for the only connection of a client."""
    (only,) = open_sockets(client)
    assert select.select([only.fileno()], [], [], 5)[0]


async def test_leaving_before_the_last_reply_closes_the_connection(
    connect: Open, scripted: Callable[..., Target]
) -> None:
    address = scripted([("expect", SENT), ("send", b"00001A"), ("eof", b"")], GOOD)
    async with connect(address) as client:
        async with contextlib.aclosing(client.request_many([b"a", b"b"])) as replies:
            assert await anext(replies) == b"A"
        assert await client.request(b"abc") == b"cba"


async def test_leaving_with_all_replies_at_hand_keeps_the_connection(
    connect: Open, scripted: Callable[..., Target]
) -> None:
    address = scripted([("expect", SENT), ("send", b"00001A00001B"), *GOOD])
    async with connect(address) as client:
        async with contextlib.aclosing(client.request_many([b"a", b"b"])) as replies:
            assert await anext(replies) == b"A"
        assert await client.request(b"abc") == b"cba"


async def test_leaving_behind_the_last_reply_keeps_the_connection(
    connect: Open, scripted: Callable[..., Target]
) -> None:
    address = scripted([("expect", b"00001a"), ("send", b"00001A"), *GOOD])
    async with connect(address) as client:
        async with contextlib.aclosing(client.request_many([b"a"])) as replies:
            assert await anext(replies) == b"A"
        assert await client.request(b"abc") == b"cba"


async def test_a_request_between_replies_has_a_connection_of_its_own(
    connect: Open, address: Target
) -> None:
    async with connect(address) as client:
        got = []
        async for reply in client.request_many([b"ab", b"cd", b"ef"]):
            got += [reply, await client.request(reply)]
        assert got == [b"ba", b"ab", b"dc", b"cd", b"fe", b"ef"]
        assert await client.request(b"abc") == b"cba"


# Connecting ------------------------------------------------------------------------------


async def test_nobody_listens(connect: Open, refusing: Target) -> None:
    async with connect(refusing) as client:
        for _ in range(2):  # the client stays of use
            with pytest.raises(ConnectError) as caught:
                await client.request(b"abc")
            assert str(caught.value) == f"cannot connect to {refusing}: Connection refused"
            assert isinstance(caught.value.__cause__, OSError)
        with pytest.raises(ConnectError):
            await collect(client.request_many([b"abc"]))


@pytest.mark.parametrize("host", ["x" * 64, "a..b"], ids=["long label", "empty label"])
async def test_a_name_that_cannot_be_one(connect: Open, host: str) -> None:
    async with connect((host, 1)) as client:
        with pytest.raises(ConnectError, match=f"cannot connect to {re.escape(host)}:1: "):
            await client.request(b"abc")


async def test_a_name_that_nobody_knows(connect: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: object, **__: object) -> NoReturn:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    async with connect("nobody.invalid:1") as client:
        with pytest.raises(ConnectError, match=r"nobody\.invalid:1: Name or service not known$"):
            await client.request(b"abc")


async def test_a_name_with_several_addresses(
    connect: Open, address: Target, refusing: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(*addresses: Target) -> Callable[..., list[Any]]:
        entry = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return lambda *_, **__: [(*entry, tuple(address)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", found(refusing, address))
    async with connect("some.example:1") as client:
        assert await client.request(b"abc") == b"cba"
    monkeypatch.setattr(socket, "getaddrinfo", found(refusing, refusing))
    async with connect("some.example:1") as client:
        with pytest.raises(ConnectError, match=r"some\.example:1: Connection refused$"):
            await client.request(b"abc")


async def test_the_time_to_connect_counts(connect: Open) -> None:
    with socket.socket() as full, contextlib.ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        # A queue of 0 takes one connection; the kernel drops further attempts.
        for _ in range(2):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        async with connect(full.getsockname(), timeout=0.1) as client:
            with pytest.raises(RequestTimeout):
                await client.request(b"abc")


# Closing ---------------------------------------------------------------------------------


async def test_closing_twice_and_use_afterwards(connect: Open, address: Target) -> None:
    async with connect(address) as client:
        assert await client.request(b"abc") == b"cba"
        await client.aclose()
        await client.aclose()
        with pytest.raises(ClosedError, match=f"the client for {address} is closed"):
            await client.request(b"abc")
        with pytest.raises(ClosedError):
            await collect(client.request_many([b"abc"]))


async def test_a_client_never_used_can_be_closed(connect: Open, refusing: Target) -> None:
    async with connect(refusing) as client:
        await client.aclose()


async def test_closing_between_replies(connect: Open, scripted: Callable[..., Target]) -> None:
    address = scripted([("expect", SENT), ("send", b"00001A00001B"), ("eof", b"")])
    async with (
        connect(address) as client,
        contextlib.aclosing(client.request_many([b"a", b"b"])) as replies,
    ):
        assert await anext(replies) == b"A"
        await client.aclose()
        with pytest.raises(ClosedError):
            await anext(replies)


def test_the_fronts_have_the_same_names() -> None:
    owner = {"retire", "gone", "reached", "missed"}  # what connections call

    def public(front: type) -> dict[str, list[str]]:
        names = {"aclose": "close", "__aenter__": "__enter__", "__aexit__": "__exit__"}
        return {
            names.get(name, name): list(inspect.signature(value).parameters)
            for name, value in inspect.getmembers(front, inspect.isfunction)
            if (not name.startswith("_") or name == "__init__") and name not in owner
        }

    assert public(Client) == public(AsyncClient)


@pytest.mark.parametrize("name", [".x", "a..b", "\udcff"])
async def test_a_name_that_no_certificate_can_have_is_told_and_leaves_nothing_open(
    connect: Open, address: Target, name: str
) -> None:
    """A socket left open would warn, and warnings are errors here."""
    async with connect(f"tls://{address}", tls_server_name=name) as client:
        with pytest.raises(ConnectError, match="is in no certificate"):
            await client.request(b"abc")


async def test_a_window_lets_something_through(connect: Open, address: Target) -> None:
    async with connect(address) as client:
        with pytest.raises(ValueError, match="a window of 0 requests lets none through"):
            await collect(client.request_many([b"abc"], window=0))

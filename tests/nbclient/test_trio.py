"""What only the trio front does: cancellation, tasks, time that is mocked."""

# A clock works by being asked for, and a fake has the signature of what it replaces.
# ruff: noqa: ARG001, ARG002

from __future__ import annotations

import contextlib
import gc
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, memory_stream_pair

from nbclient import AsyncClient, ClosedError, ConnectError, ConnectionLost, RequestTimeout
from nbclient.exchange import Exchange, Request
from nbclient.servers import Server
from nbclient.trio import open_stream
from nbclient.trio_connection import Call, Connection
from nbnet.framing import FrameDecoder, encode_frame
from nbnet.notation import Address, Target

Serve = Callable[[trio.abc.Stream], Any]
Connected = Callable[[Serve], contextlib.AbstractAsyncContextManager[AsyncClient]]


@contextlib.asynccontextmanager
async def connected(serve: Serve, limit: float | None = None) -> AsyncIterator[AsyncClient]:
    """A client whose every connection leads to a task in this run that serves it."""

    async def open_stream(_: Address) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        ours, theirs = memory_stream_pair()
        nursery.start_soon(serve, theirs)
        return ours

    async with trio.open_nursery() as nursery:
        async with AsyncClient(timeout=limit, max_connections=1, connect=open_stream) as client:
            yield client
        nursery.cancel_scope.cancel()


async def requests_on(stream: trio.abc.Stream) -> AsyncGenerator[bytes, None]:
    decoder = FrameDecoder()
    with contextlib.suppress(trio.BrokenResourceError):
        async for data in stream:
            for payload in decoder.feed(bytes(data)):
                yield payload


def reversing(delay: float = 0.0) -> Serve:
    """Serves a connection; each reply takes ``delay`` seconds and comes in two pieces."""

    async def serve(stream: trio.abc.Stream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async with contextlib.aclosing(requests_on(stream)) as requests:
                async for payload in requests:
                    frame = encode_frame(payload[::-1])
                    await trio.sleep(delay / 2)
                    await stream.send_all(frame[:6])
                    await trio.sleep(delay / 2)
                    await stream.send_all(frame[6:])

    return serve


async def test_a_timeout_of_the_client(autojump_clock: MockClock) -> None:
    async with connected(reversing(10.0), limit=4.0) as client:
        started = trio.current_time()
        with pytest.raises(RequestTimeout, match="within 4 s"):
            await client.request(b"abc")
        assert trio.current_time() - started == pytest.approx(4.0)


async def test_a_deadline_of_the_caller_is_a_cancellation(autojump_clock: MockClock) -> None:
    async with connected(reversing(10.0), limit=30.0) as client:
        with trio.move_on_after(4.0) as scope:
            await client.request(b"first")
        assert scope.cancelled_caught
        with pytest.raises(trio.TooSlowError), trio.fail_after(4.0):
            await client.request(b"second")
        # Under way when they were cancelled, neither reply reaches this request.
        assert await client.request(b"third") == b"driht"


async def test_a_timeout_counts_for_the_next_reply(autojump_clock: MockClock) -> None:
    async with connected(reversing(3.0), limit=4.0) as client:
        got = []
        async for reply in client.request_many([b"ab", b"cd", b"ef"]):
            await trio.sleep(10.0)  # the time of the caller does not count
            got.append(reply)
        assert got == [b"ba", b"dc", b"fe"]


async def test_the_time_of_an_iterable_does_not_count(autojump_clock: MockClock) -> None:
    async def slow() -> AsyncIterator[bytes]:
        for payload in (b"ab", b"cd"):
            await trio.sleep(10.0)
            yield payload

    async with connected(reversing(), limit=4.0) as client:
        assert [reply async for reply in client.request_many(slow())] == [b"ba", b"dc"]


async def test_no_limit_is_none(autojump_clock: MockClock) -> None:
    async with connected(reversing(1e6), limit=None) as client:
        assert await client.request(b"abc") == b"cba"


async def test_tasks_take_turns_in_the_order_they_came(autojump_clock: MockClock) -> None:
    finished: list[bytes] = []
    connections = 0

    async def serve(stream: trio.abc.Stream) -> None:
        nonlocal connections
        connections += 1
        await reversing(1.0)(stream)

    async def ask(client: AsyncClient, payload: bytes) -> None:
        assert await client.request(payload) == payload[::-1]
        finished.append(payload)

    async with connected(serve) as client:
        async with trio.open_nursery() as nursery:
            for n in range(5):
                nursery.start_soon(ask, client, b"%d0" % n)
                await trio.testing.wait_all_tasks_blocked()
        assert trio.current_time() == pytest.approx(5.0, abs=0.1)
    assert finished == [b"00", b"10", b"20", b"30", b"40"]
    assert connections == 1


async def test_waiting_for_other_tasks_counts(autojump_clock: MockClock) -> None:
    outcomes: list[object] = []

    async def ask(client: AsyncClient, payload: bytes) -> None:
        try:
            outcomes.append(await client.request(payload))
        except RequestTimeout:
            outcomes.append("timeout")

    async with connected(reversing(3.0), limit=5.0) as client, trio.open_nursery() as nursery:
        for payload in (b"ab", b"cd"):
            nursery.start_soon(ask, client, payload)
            await trio.testing.wait_all_tasks_blocked()
    assert outcomes == [b"ba", "timeout"]


async def test_a_task_that_is_cancelled_does_not_disturb_the_others(
    autojump_clock: MockClock,
) -> None:
    async def ask(client: AsyncClient, payload: bytes, patience: float) -> None:
        with trio.move_on_after(patience):
            assert await client.request(payload) == payload[::-1]

    async with connected(reversing(1.0)) as client, trio.open_nursery() as nursery:
        for n in range(12):
            nursery.start_soon(ask, client, b"%02d" % n, n % 5 + 0.5)


async def test_closing_while_a_task_waits_for_its_reply(autojump_clock: MockClock) -> None:
    async with connected(reversing(10.0)) as client:
        errors: list[ClosedError] = []

        async def ask() -> None:
            with pytest.raises(ClosedError) as caught:
                await client.request(b"abc")
            errors.append(caught.value)

        async with trio.open_nursery() as nursery:
            for _ in range(3):  # one reads, two wait for it to
                nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            await client.aclose()
        assert len(errors) == 3


async def test_closing_while_tasks_connect() -> None:
    outcomes: list[str] = []

    async def open_stream(_: Address) -> trio.abc.Stream:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            outcomes.append("cancelled")
            raise
        raise AssertionError

    async def ask() -> None:
        with pytest.raises(ClosedError):
            await client.request(b"abc")

        outcomes.append("closed")

    async with AsyncClient(connect=open_stream, max_connections=1) as client:
        async with trio.open_nursery() as nursery:
            for _ in range(3):  # one connects, for all
                nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            await client.aclose()
        assert sorted(outcomes) == ["cancelled", "closed", "closed", "closed"]


async def test_closing_while_a_task_sends() -> None:
    class Clogged(trio.abc.Stream):
        """Takes nothing; sending waits until the stream is closed."""

        closed = trio.Event()

        async def send_all(self, data: object) -> None:
            await self.closed.wait()
            raise trio.ClosedResourceError

        async def aclose(self) -> None:
            self.closed.set()
            await trio.lowlevel.checkpoint()

        async def wait_send_all_might_not_block(self) -> None:
            raise NotImplementedError

        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            raise NotImplementedError

    async def open_stream(_: Address) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return Clogged()

    async def ask() -> None:
        with pytest.raises(ClosedError):
            await client.request(b"abc")

    async with AsyncClient(connect=open_stream) as client, trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        await client.aclose()


async def test_closing_under_cancellation_closes(address: Target) -> None:
    client = AsyncClient(address)
    assert await client.request(b"abc") == b"cba"
    (connection,) = client._open
    stream = connection.stream
    assert isinstance(stream, trio.SocketStream)
    with trio.CancelScope() as scope:
        scope.cancel()
        await client.aclose()
    assert scope.cancelled_caught  # closing is a checkpoint
    assert stream.socket.fileno() == -1


async def test_the_end_of_a_stream_without_a_reason() -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await stream.aclose()

    async with connected(serve) as client:
        with pytest.raises(ConnectionLost, match="with a reply outstanding"):
            await client.request(b"abc")


async def test_payloads_may_come_from_an_async_iterable(address: Target) -> None:
    async def numbers(count: int) -> AsyncIterator[bytes]:
        for n in range(count):
            await trio.lowlevel.checkpoint()
            yield b"%d0" % n

    async with AsyncClient(address) as client:
        got = [reply async for reply in client.request_many(numbers(9_000))]
        assert got == [(b"%d0" % n)[::-1] for n in range(9_000)]
        assert [reply async for reply in client.request_many(numbers(0))] == []


async def test_an_async_iterable_waits_for_the_window(address: Target) -> None:
    taken = 0

    async def numbers() -> AsyncGenerator[bytes, None]:
        nonlocal taken
        for n in range(1_000):
            await trio.lowlevel.checkpoint()
            taken += 1
            yield b"%d0" % n

    async with AsyncClient(address) as client:
        given = 0
        async for reply in client.request_many(numbers(), window=3):
            assert reply == (b"%d0" % given)[::-1]
            given += 1
            assert taken - given <= 3
        assert given == 1_000


async def test_replies_do_not_keep_tasks_from_running(address: Target) -> None:
    async with AsyncClient(address) as client:
        with trio.CancelScope() as scope:
            scope.cancel()
            await client.request(b"abc")
        assert scope.cancelled_caught


async def test_a_generator_that_is_dropped_closes_its_connection(address: Target) -> None:
    async with AsyncClient(address) as client:

        async def leave() -> None:
            async for reply in client.request_many([b"abc"] * 20_000):
                assert reply == b"cba"
                break
            gc.collect()

        with pytest.warns(ResourceWarning, match="aclosing"):  # trio's own, for every generator
            await leave()
        await trio.testing.wait_all_tasks_blocked()
        assert all(connection in client._shared for connection in client._open)
        assert await client.request(b"ab") == b"ba"


# Whatever is cancelled and whenever, a reply is the one to its request ------------

Plan = list[tuple[float, float, float]]
"""For each request: the patience of the caller, and how long the first and the
second half of the reply take; seconds."""


def run(plan: Plan) -> None:
    """Play a plan and check each reply that comes."""

    async def serve(stream: trio.abc.Stream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async with contextlib.aclosing(requests_on(stream)) as requests:
                async for payload in requests:
                    _, first, second = plan[int(payload)]
                    frame = encode_frame(b"re: " + payload)
                    await trio.sleep(first)
                    await stream.send_all(frame[:7])
                    await trio.sleep(second)
                    await stream.send_all(frame[7:])

    async def play() -> None:
        async with connected(serve) as client:
            for number, (patience, _, _) in enumerate(plan):
                with trio.move_on_after(patience):
                    assert await client.request(b"%d" % number) == b"re: %d" % number

    trio.run(play, clock=MockClock(autojump_threshold=0))


seconds = st.integers(0, 4).map(float)
LATE: Plan = [(1.5, 1.0, 1.0), (9.0, 0.0, 0.0)]  # cancelled in the middle of the reply


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(seconds, seconds, seconds), max_size=8))
@example(LATE)
def test_a_reply_is_the_one_to_its_request(plan: Plan) -> None:
    run(plan)


def test_the_property_has_teeth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the reply to a cancelled request not waited for, replies would slip."""

    def forget(exchange: Exchange, request: Request) -> None:
        exchange._due.remove(request)
        exchange.load = exchange.wanted = 0

    monkeypatch.setattr(Exchange, "abandon", forget)
    with pytest.raises(BaseExceptionGroup) as caught:
        run(LATE)
    assert caught.group_contains(AssertionError)


def test_elsewhere_than_under_trio_it_says_what_to_use() -> None:
    client = AsyncClient()
    with pytest.raises(RuntimeError, match="is for trio; under asyncio, use Client"):
        client.request(b"abc").send(None)


async def test_the_one_server_that_refuses_is_tried_as_often_as_was_asked(
    refusing: Target,
) -> None:
    async with AsyncClient(refusing, retries=2, backoff=0.001) as client:
        with pytest.raises(ConnectError):
            await client.request(b"abc")


async def test_a_socket_that_connected_to_itself_is_a_refusal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with trio.socket.socket() as connected:
        await connected.bind(("127.0.0.1", 0))
        await connected.connect(connected.getsockname())

        async def open_tcp_stream(*_: object) -> trio.SocketStream:
            await trio.lowlevel.checkpoint()
            return trio.SocketStream(connected)

        monkeypatch.setattr(trio, "open_tcp_stream", open_tcp_stream)
        async with AsyncClient("127.0.0.1:1", retries=0) as client:
            with pytest.raises(ConnectError, match="Connection refused"):
                await client.request(b"abc")


async def test_a_forked_child_lets_go_of_streams_of_any_kind() -> None:
    ours, theirs = memory_stream_pair()
    client = AsyncClient()
    secure = trio.SSLStream(ours, ssl.create_default_context(), server_hostname="here")
    opened = [SimpleNamespace(stream=each) for each in (ours, secure)]
    client._open = opened  # type: ignore[assignment]
    client._forget()
    assert not client._open
    await trio.aclose_forcefully(theirs)
    await client.aclose()


class Faulty(trio.abc.Stream):
    """A stream of somebody's own, whose calls fail as told."""

    def __init__(self, *, sending: BaseException | None, receiving: BaseException | None) -> None:
        self.sending, self.receiving = sending, receiving
        self.closed = False

    async def send_all(self, data: object) -> None:
        await trio.lowlevel.checkpoint()
        if self.sending is not None:
            raise self.sending

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        assert self.receiving is not None
        raise self.receiving

    async def aclose(self) -> None:
        self.closed = True
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("where", ["sending", "receiving"])
async def test_what_a_stream_of_ones_own_raises_ends_its_connection(where: str) -> None:
    error = ZeroDivisionError("a mistake there")
    faults: dict[str, BaseException | None] = {"sending": None, "receiving": None, where: error}
    stream = Faulty(**faults)

    async def connect(_: Address) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return stream

    async with AsyncClient(connect=connect, retries=0) as client:
        with pytest.raises(ZeroDivisionError):
            await client.request(b"abc")
        assert stream.closed


async def test_a_stream_that_somebody_else_closed_ends_what_is_sent_ahead() -> None:
    stream = Faulty(sending=trio.ClosedResourceError(), receiving=trio.ClosedResourceError())

    async def connect(_: Address) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return stream

    async with AsyncClient(connect=connect, retries=0) as client:
        replies = client.request_many([b"abc"])
        with pytest.raises(ConnectionLost):
            await anext(replies)


async def test_a_connection_that_is_made_after_the_client_was_closed_is_closed_too(
    autojump_clock: MockClock,
) -> None:
    ours, theirs = memory_stream_pair()

    async def connect(_: Address) -> trio.abc.Stream:
        with trio.CancelScope(shield=True):  # it does not let itself be cancelled
            await trio.sleep(2.0)
        return ours

    async def ask() -> None:
        with pytest.raises(ClosedError):
            await client.request(b"abc")

    async with AsyncClient(connect=connect, retries=0) as client, trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(1.0)
        await client.aclose()
    assert await theirs.receive_some() == b""


async def test_a_server_that_was_tried_is_not_counted_twice() -> None:
    client = AsyncClient(["127.0.0.1:1", "127.0.0.1:2"])
    server = client._servers.all[0]
    connection: Any = SimpleNamespace(worked=False, stale=False, server=server)
    attempts = client._settings.attempts(trio.current_time() + 5.0, idempotent=False)
    tried = [server]
    await client._go_on(connection, ConnectError("refused"), attempts, tried, 1)
    assert tried == [server], "the other one has not been tried yet"
    await client.aclose()


async def test_a_handshake_that_is_cancelled_closes_its_stream(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = memory_stream_pair()
    ours.socket = SimpleNamespace(  # type: ignore[attr-defined]
        getsockname=lambda: "here", getpeername=lambda: "there"
    )

    async def open_tcp_stream(*_: object) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return ours

    monkeypatch.setattr(trio, "open_tcp_stream", open_tcp_stream)
    async with AsyncClient("tls://127.0.0.1:1", retries=0) as client:
        with trio.move_on_after(1.0) as scope:
            await client.request(b"abc")
        assert scope.cancelled_caught
    with contextlib.suppress(trio.BrokenResourceError):
        while await theirs.receive_some():
            pass


class Nobody:
    """An owner that is not to be told anything."""


async def lonely() -> Connection:
    """A connection that is not open, of which nothing is asked."""

    async def connect(_: Address) -> trio.abc.Stream:
        raise AssertionError("nobody is to open it")

    address = Address("127.0.0.1", 1)
    settings = AsyncClient(str(address))._settings
    return Connection(Server(address), settings, connect, Nobody())  # type: ignore[arg-type]


async def test_who_leaves_before_it_has_taken_the_role_that_it_was_given_gives_it_back() -> None:
    connection = await lonely()
    call = Call(b"00001a", 1.0)
    connection.heir = call
    assert not connection.leave(call)
    assert connection.heir is None


async def test_after_a_fault_no_role_is_handed_on() -> None:
    connection = await lonely()
    first, other = Call(b"00001a", 1.0), Call(b"00001b", 1.0)
    connection.enter(first)
    connection.exchange.poison(ConnectionLost("gone"))
    assert connection.leave(other), "it has to be closed"
    assert connection.heir is None


async def test_ctrl_c_in_a_handshake_closes_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(_: trio.SSLStream[trio.abc.Stream]) -> None:
        await trio.lowlevel.checkpoint()
        raise KeyboardInterrupt

    monkeypatch.setattr(trio.SSLStream, "do_handshake", interrupted)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listeners[0] as listener:
        host, port = listener.socket.getsockname()
        target = Address(host, port, tls=True)
        settings = AsyncClient(str(target))._settings
        with pytest.raises(KeyboardInterrupt):
            await open_stream(target, settings)
        with trio.fail_after(20.0):
            peer = await listener.accept()
            assert await peer.receive_some() == b""
            await peer.aclose()

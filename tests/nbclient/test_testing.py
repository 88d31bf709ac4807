"""The server in memory: as the real one on the wire, and as wrong as it is told to be.

The property tests play the same bytes to it and to the real server's connection.
What trio asks of streams is checked by trio's own tests.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, check_half_closeable_stream, wait_all_tasks_blocked

from nbclient import (
    AsyncClient,
    Client,
    ConnectError,
    ConnectionLost,
    NbclientError,
    RemoteProtocolError,
    RequestTimeout,
)
from nbclient.testing import (
    SILENT,
    FakeConnection,
    FakeServer,
    FakeStream,
    Fault,
    WouldHangError,
)
from nbnet import Limits, Server
from nbnet.connection import Connection
from nbnet.counters import Counters
from nbnet.framing import MAX_PAYLOAD, FrameError, encode_frame
from nbnet.notation import parse_address
from nbnet.states import State

ABC = b"00003abc"
CBA = b"00003cba"


def drain(stream: FakeStream) -> tuple[bytes, bool]:
    """All that has come, and whether it was the end."""
    got = b""
    with contextlib.suppress(TimeoutError):
        while data := stream.receive(0.0):
            got += data
        return got, True
    return got, False


async def drain_trio(stream: trio.abc.ReceiveStream) -> tuple[bytes, bool]:
    """What there is until one would have to wait; whether the end has come."""
    got = b""
    ended = False

    async def read() -> None:
        nonlocal got, ended
        while data := await stream.receive_some():
            got += data
        ended = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return got, ended


# As the real server ----------------------------------------------------------------


def picky(payload: bytes) -> bytes:
    """Answers all kinds of replies, and none to some requests."""
    if payload.startswith(b"!"):
        raise RuntimeError("handler")
    if payload.startswith(b"?"):
        return cast("bytes", "text")
    if payload.startswith(b"+"):
        return bytes(MAX_PAYLOAD + 1)
    if payload.startswith(b"_"):
        raise SystemExit(3)
    return payload[:0:-1]  # the first byte is lost: empty ones, too


frames = st.builds(encode_frame, st.binary(min_size=1, max_size=12))
fatal = st.sampled_from([b"00001!", b"00002?a", b"00001+", b"00001_", b"00000"])
noise = st.sampled_from([b"\r\n", b"\r", b"+0003", b" ", b"0000", b"99999", b"\n", b"00010abc"])
streams = st.lists(st.one_of(frames, frames, frames, fatal, noise, st.binary(max_size=4)))


def cut_up(stream: bytes, sizes: list[int]) -> list[bytes]:
    cuts = itertools.accumulate(sizes)
    edges = [0, *(cut for cut in cuts if cut < len(stream)), len(stream)]
    return [stream[start:stop] for start, stop in itertools.pairwise(edges)]


def play_to_the_real_one(reads: list[bytes], *, eof: bool) -> tuple[bytes, bool]:
    """Replies of the real server's connection, and whether it ends."""
    served = Connection(picky, Limits(), Counters(), "peer", 0.0)
    replies = b""
    for data in filter(None, reads):
        if served.state is State.READING:
            replies += served.receive(data, 0.0)
    if eof and served.state is State.READING:
        served.receive_eof()
    return replies, served.state is not State.READING


@given(streams, st.lists(st.integers(1, 9)))
def test_bytes_and_end_are_those_of_the_real_connection(
    parts: list[bytes], sizes: list[int]
) -> None:
    reads = cut_up(b"".join(parts), sizes)
    stream = FakeServer(picky).connect()
    for data in reads:
        stream.send(data, 1.0)
    assert drain(stream) == play_to_the_real_one(reads, eof=False)


@given(streams, st.lists(st.integers(1, 9)), st.booleans())
def test_and_so_for_trio_with_a_half_close(parts: list[bytes], sizes: list[int], eof: bool) -> None:
    reads = cut_up(b"".join(parts), sizes)

    async def main() -> tuple[bytes, bool]:
        stream = await FakeServer(picky).open_stream()
        for data in reads:
            await stream.send_all(data)
        if eof:
            await stream.send_eof()
        return await drain_trio(stream)

    clock = MockClock(autojump_threshold=0)
    assert trio.run(main, clock=clock) == play_to_the_real_one(reads, eof=eof)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"00002ab\r\n00002cd",
        b"00002ab00001!00002cd",
        b"00002ab00001+",
        b"00001a+0003abc",
        b"00001a00000",
        b"00002ab00009a",
        encode_frame(b"x" * MAX_PAYLOAD) * 2,
    ],
)
async def test_bytes_and_end_are_those_of_the_real_server(sent: bytes) -> None:
    with (
        Server(picky, port=0) as server,
        socket.create_connection(server.address, timeout=10) as peer,
    ):
        peer.sendall(sent)
        peer.shutdown(socket.SHUT_WR)
        real = b"".join(iter(lambda: peer.recv(1 << 16), b""))
    stream = await FakeServer(picky).open_stream()
    await stream.send_all(sent)
    await stream.send_eof()
    assert await drain_trio(stream) == (real, True)


def test_what_ended_a_connection_is_on_record() -> None:
    server = FakeServer(picky)
    for sent in [b"00001!", b"00001?", b"00001+", b"00001_", b"x", b"00001a"]:
        server.connect().send(sent, 1.0)
    kinds = [RuntimeError, TypeError, ValueError, SystemExit, FrameError]
    assert [type(error) for error in server.errors] == kinds
    assert [connection.ended for connection in server.connections] == [True] * 5 + [False]


def test_ctrl_c_in_a_handler_is_not_swallowed() -> None:
    def handler(_: bytes) -> bytes:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FakeServer(handler).connect().send(ABC, 1.0)


def test_what_is_sent_behind_the_end_is_thrown_away() -> None:
    server = FakeServer()
    stream = server.connect()
    assert stream.send(ABC + b"x", 1.0) == 9
    assert stream.send(ABC, 1.0) == 8
    assert drain(stream) == (CBA, True)
    assert server.requests == [b"abc"]


# Records ---------------------------------------------------------------------------


def test_requests_and_connections_are_on_record() -> None:
    server = FakeServer()
    one, two = server.connect(parse_address("a:1")), server.connect(parse_address("unix:b"), 1.0)
    one.send(b"00001a00001b", 1.0)
    two.send(b"00001c", 1.0)
    one.send(b"00001d00009", 1.0)
    assert server.requests == [b"a", b"b", b"c", b"d"]
    assert [connection.requests for connection in server.connections] == [
        [b"a", b"b", b"d"],
        [b"c"],
    ]
    assert [str(connection.address) for connection in server.connections] == ["a:1", "unix:b"]
    assert server.open == 2
    one.close()
    one.close()
    assert server.open == 1
    two.abort()
    assert server.open == 0


def test_many_threads_each_with_a_stream() -> None:
    together = threading.Barrier(8, timeout=10)

    def handler(payload: bytes) -> bytes:
        if payload == b"0":
            together.wait()  # handlers do run at the same time
        return payload

    server = FakeServer(handler, faults=[Fault(delay=1)] * 80)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            with server.connect() as stream:
                for n in range(100):
                    frame = encode_frame(b"%d" % n)
                    stream.send(frame, 5.0)
                    assert stream.receive(5.0) == frame
        except BaseException as error:  # for the test to raise
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(server.requests) == 800
    assert server.open == 0


def test_trio_is_not_loaded_before_it_is_needed() -> None:
    code = (
        "import sys; from nbclient.testing import FakeServer; s = FakeServer().connect();"
        "s.send(b'00001a', 1); s.receive(1); print('trio' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=30
    )
    assert done.stdout == "False\n"


# Faults, on both kinds of streams ------------------------------------------------------


class Peer:
    """A stream of either kind. A wait has a timeout of 5 s, and twice as much after one
    that was too long, since no time has passed on a blocking stream then."""

    def __init__(self, stream: FakeStream | trio.abc.HalfCloseableStream) -> None:
        self.stream = stream
        self.patience = 5.0

    async def send(self, data: bytes) -> None:
        if not isinstance(self.stream, FakeStream):
            with trio.fail_after(5):
                return await self.stream.send_all(data)
        while data:
            data = data[self.stream.send(data, 5.0) :]
        return None

    async def receive(self) -> bytes:
        try:
            if isinstance(self.stream, FakeStream):
                return self.stream.receive(self.patience)
            with trio.fail_after(self.patience):
                return bytes(await self.stream.receive_some())
        except (ConnectionResetError, trio.BrokenResourceError):
            return b"reset"
        except (TimeoutError, trio.TooSlowError):
            self.patience *= 2
            return b"late"


@pytest.fixture(params=["blocking", "trio"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def open_peer(server: FakeServer, kind: str) -> Peer:
    return Peer(server.connect(timeout=5.0) if kind == "blocking" else await server.open_stream())


@pytest.mark.parametrize(
    ("fault", "reads"),
    [
        (None, [CBA + b"00001z", b"late"]),
        (Fault(delay=4), [CBA + b"00001z", b"late"]),
        (Fault(delay=6), [b"late", CBA + b"00001z", b"late"]),
        (SILENT, [b"late", b"late"]),
        (Fault(raw=b"HTTP/1.1"), [b"HTTP/1.100001z", b"late"]),
        (Fault(corrupt=(3, b"x")), [b"000x3cba00001z", b"late"]),
        (Fault(corrupt=(7, b"xyz")), [b"00003cbxyz00001z", b"late"]),
        (Fault(copies=2), [CBA + CBA + b"00001z", b"late"]),
        (Fault(copies=0), [b"00001z", b"late"]),
        (Fault(cut=0), [b"", b""]),
        (Fault(cut=3), [b"000", b"", b""]),
        (Fault(cut=99), [CBA, b"", b""]),
        (Fault(cut=7, reset=True), [b"00003cb", b"reset", b"reset"]),
        (Fault(cut=2, delay=6), [b"late", b"00", b""]),
        (Fault(pieces=(1, 4)), [b"0", b"0003", b"cba", b"00001z", b"late"]),
        (Fault(pieces=(4,), cut=6, reset=True), [b"0000", b"3c", b"reset"]),
    ],
)
async def test_a_fault_of_a_reply(
    kind: str, autojump_clock: MockClock, fault: Fault | None, reads: list[bytes]
) -> None:
    del autojump_clock  # trio_test runs on it
    server = FakeServer(faults=[fault])
    peer = await open_peer(server, kind)
    await peer.send(ABC + b"00001z")
    assert [await peer.receive() for _ in reads] == reads
    cut = fault is not None and fault.cut is not None
    assert server.requests == ([b"abc"] if cut else [b"abc", b"z"])


async def test_faults_by_payload_and_injected_ones(kind: str, autojump_clock: MockClock) -> None:
    del autojump_clock
    server = FakeServer(faults=lambda payload: Fault(raw=b"-") if payload == b"bad" else None)
    server.inject(None, Fault(raw=b"+"))
    peer = await open_peer(server, kind)
    for name in [b"bad", b"abc", b"bad", b"abc"]:
        await peer.send(encode_frame(name))
    assert await peer.receive() == b"00003dab" + b"+" + b"-" + CBA


async def test_faults_may_go_on_for_ever(kind: str, autojump_clock: MockClock) -> None:
    del autojump_clock
    peer = await open_peer(FakeServer(faults=itertools.repeat(Fault(pieces=(7,)))), kind)
    await peer.send(ABC * 2)
    assert [await peer.receive() for _ in range(4)] == [b"00003cb", b"a"] * 2


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("after", [0, 2, 5, 8, 12, 16])
async def test_a_cut_of_the_stream_of_replies(
    kind: str, autojump_clock: MockClock, after: int, reset: bool
) -> None:
    del autojump_clock
    server = FakeServer()
    server.cut(after, reset=reset, times=2)
    for _ in range(2):
        peer = await open_peer(server, kind)
        if after:
            await peer.send(ABC)
            got = await peer.receive()
            if after > 8:
                await peer.send(ABC)
                got += await peer.receive()
            assert got == (CBA * 2)[:after]
        assert await peer.receive() == (b"reset" if reset else b"")
        if reset:
            with pytest.raises((BrokenPipeError, trio.BrokenResourceError)):
                await peer.send(ABC)
        else:
            await peer.send(ABC)
    peer = await open_peer(server, kind)
    await peer.send(ABC * 2)
    assert await peer.receive() == CBA * 2


async def test_refusing(kind: str) -> None:
    server = FakeServer()
    server.refuse(times=2)
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            await open_peer(server, kind)
    await open_peer(server, kind)
    server.refuse()
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            await open_peer(server, kind)
    server.accept()
    await open_peer(server, kind)
    assert server.refused == 5
    assert len(server.connections) == 2


async def test_dropping_all_connections(kind: str, autojump_clock: MockClock) -> None:
    del autojump_clock
    server = FakeServer(faults=[None, Fault(delay=1)])
    for reset, end in [(False, b""), (True, b"reset")]:
        server.inject(None, Fault(delay=1))
        peer = await open_peer(server, kind)
        await peer.send(ABC * 2)
        server.drop(reset=reset)
        server.drop(reset=not reset)  # has ended already
        assert [await peer.receive() for _ in range(3)] == [CBA, end, end]


async def test_dropping_loses_what_waits_behind_a_late_reply(
    kind: str, autojump_clock: MockClock
) -> None:
    del autojump_clock
    server = FakeServer(faults=[Fault(delay=1), None])
    peer = await open_peer(server, kind)
    await peer.send(ABC * 2)
    server.drop()
    assert await peer.receive() == b""


def test_what_is_closed_can_be_dropped_also_when_trio_has_ended() -> None:
    server = FakeServer()

    async def main() -> None:
        async with await server.open_stream():
            pass

    trio.run(main)
    server.drop()
    assert server.open == 0


async def test_pieces_come_alone(kind: str, autojump_clock: MockClock) -> None:
    del autojump_clock
    server = FakeServer(faults=[None, None, Fault(pieces=(2,))])
    peer = await open_peer(server, kind)
    await peer.send(ABC * 4)
    assert [await peer.receive() for _ in range(4)] == [CBA * 2, b"00", b"003cba", CBA]


async def test_bytes_that_nobody_asked_for(kind: str, autojump_clock: MockClock) -> None:
    del autojump_clock
    server = FakeServer()
    peer = await open_peer(server, kind)
    server.connections[0].say(b"hello")
    assert await peer.receive() == b"hello"
    await peer.send(ABC)
    server.connections[0].say(b"hello")
    assert await peer.receive() == CBA + b"hello"


async def test_no_requests_are_taken_while_too_much_is_unread(
    kind: str, autojump_clock: MockClock
) -> None:
    del autojump_clock
    server = FakeServer(high_water=20)
    peer = await open_peer(server, kind)
    await peer.send(ABC * 2)
    await peer.send(ABC)
    with pytest.raises((TimeoutError, trio.TooSlowError)):
        await peer.send(ABC)
    assert len(server.requests) == 3
    assert await peer.receive() == CBA * 3
    await peer.send(ABC)
    assert await peer.receive() == CBA


@pytest.mark.parametrize(
    "values",
    [
        {"delay": -1.0},
        {"delay": math.nan},
        {"copies": -1},
        {"cut": -1},
        {"reset": True},
        {"pieces": (1, 0)},
        {"corrupt": (-1, b"x")},
    ],
)
def test_faults_that_make_no_sense(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|needs"):
        Fault(**values)


def test_a_cut_that_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="a cut after -1 bytes"):
        FakeServer().cut(-1)


# Blocking streams ------------------------------------------------------------------------


def test_a_wait_passes_at_once_or_takes_no_time() -> None:
    stream = FakeServer(faults=[Fault(delay=3600), Fault(delay=3600)]).connect()
    stream.send(ABC, 1.0)
    for _ in range(2):
        assert not stream.readable()
        with pytest.raises(TimeoutError) as caught:
            stream.receive(3599.0)
        assert caught.value.errno is None  # unlike that of a connection which broke
    assert stream.receive(3600.0) == CBA
    stream.send(ABC, 1.0)
    assert stream.receive(None) == CBA


def test_a_wait_without_end_is_an_error_of_the_test() -> None:
    server = FakeServer(faults=[SILENT])
    stream = server.connect()
    stream.send(ABC, None)
    with pytest.raises(WouldHangError, match=r"receive\(\)"):
        stream.receive(None)
    server.clog()
    with pytest.raises(WouldHangError, match=r"send\(\)"):
        stream.send(ABC, None)
    server.connect_delay = math.inf
    with pytest.raises(WouldHangError, match=r"connect\(\)"):
        server.connect()


def test_connecting_takes_its_time() -> None:
    server = FakeServer(connect_delay=2)
    with pytest.raises(TimeoutError):
        server.connect(timeout=1.0)
    assert not server.connections
    server.connect(timeout=3.0)
    server.connect()
    assert len(server.connections) == 2


@pytest.mark.parametrize("taken", [0, 3, 8, 99])
def test_a_blocking_send_that_passes_on_a_part(taken: int) -> None:
    server = FakeServer()
    server.clog(taken, delay=2)
    stream = server.connect()
    sent = 0
    if taken:
        sent = stream.send(memoryview(ABC), 1.0)
        assert sent == min(taken, 8)
    with pytest.raises(TimeoutError):
        stream.send(ABC[sent:] or b"0", 1.5)
    assert server.requests == ([b"abc"] if taken >= 8 else [])
    assert stream.send(ABC[sent:] + ABC, 2.0) == 16 - sent
    assert server.requests == [b"abc"] * 2


def test_use_after_closing_and_aborting() -> None:
    server = FakeServer()
    stream = server.connect()
    stream.send(ABC, 1.0)
    stream.abort()
    assert stream.readable()
    assert stream.receive(None) == b""
    with pytest.raises(BrokenPipeError):
        stream.send(ABC, 1.0)
    stream.close()
    for use in (lambda: stream.send(ABC, 1.0), lambda: stream.receive(1.0)):
        with pytest.raises(OSError, match="Bad file descriptor"):
            use()


def test_two_threads_on_a_stream_are_a_bug() -> None:
    seen: list[str] = []

    def handler(payload: bytes) -> bytes:
        with pytest.raises(RuntimeError, match="two threads send on one stream") as caught:
            stream.send(ABC, 1.0)
        seen.append(str(caught.value))
        return payload

    stream = FakeServer(handler).connect()
    stream.send(ABC, 1.0)
    assert len(seen) == 1


def test_a_connection_may_end_inside_the_handler() -> None:
    def handler(payload: bytes) -> bytes:
        if payload == b"b":
            server.drop()
        return payload

    server = FakeServer(handler)
    stream = server.connect()
    stream.send(b"00001a00001b00001c", 1.0)
    assert drain(stream) == (b"00001a", True)
    assert server.requests == [b"a", b"b"]


# Streams for trio ----------------------------------------------------------------------


class Half(FakeConnection):
    """A connection whose requests are what the other one replies: two ends of one stream."""

    other: Half

    def receive(self, data: bytes) -> None:
        if not self.other.open:
            raise BrokenPipeError
        self.other.say(data)

    def receive_eof(self) -> None:
        self.other._finish(reset=False)

    def writable_at(self, size: int = 1) -> float:
        if not (self.open and self.other.open):
            return -math.inf
        return math.inf if size and self.other._unread > self._server.high_water else -math.inf

    def take(self, size: int) -> bytes | None:
        try:
            return super().take(size)
        finally:
            self.other.wake()

    def close(self) -> None:
        super().close()
        self.receive_eof()
        self.other.wake()


async def open_pair(high_water: int = 1 << 30) -> tuple[trio.abc.HalfCloseableStream, ...]:
    server = FakeServer(high_water=high_water)
    streams = [await server.open_stream(), await server.open_stream()]
    for connection in server.connections:
        connection.__class__ = Half
    one, two = server.connections
    assert isinstance(one, Half)
    assert isinstance(two, Half)
    one.other, two.other = two, one
    return tuple(streams)


async def test_the_stream_keeps_the_rules_of_trio() -> None:
    async def make() -> tuple[trio.abc.HalfCloseableStream, trio.abc.HalfCloseableStream]:
        one, two = await open_pair()
        return one, two

    async def make_clogged() -> tuple[trio.abc.HalfCloseableStream, trio.abc.HalfCloseableStream]:
        one, two = await open_pair(high_water=0)
        await one.send_all(b"clogs")
        await two.send_all(b"clogs")
        return one, two

    await check_half_closeable_stream(make, make_clogged)


async def test_a_cancelled_receive_loses_nothing(autojump_clock: MockClock) -> None:
    del autojump_clock
    stream = await FakeServer(faults=[Fault(delay=1, pieces=(1,) * 7)]).open_stream()
    await stream.send_all(ABC)
    got, waits = b"", 0
    while len(got) < 8:
        with trio.move_on_after(0.3 if waits % 2 else 0):
            got += await stream.receive_some()
        waits += 1
    assert got == CBA
    assert waits > 8


@pytest.mark.parametrize("taken", [0, 3, 8, 99])
async def test_a_cancelled_send_has_passed_on_what_was_chosen(
    autojump_clock: MockClock, taken: int
) -> None:
    del autojump_clock
    server = FakeServer()
    server.clog(taken, delay=2)
    stream = await server.open_stream()
    with trio.move_on_after(1) as scope:
        await stream.send_all(ABC)
    assert scope.cancelled_caught
    assert server.requests == ([b"abc"] if taken >= 8 else [])
    started = trio.current_time()
    await stream.send_all(ABC[taken:] + ABC)  # what is left over goes before anything else
    assert trio.current_time() - started == pytest.approx(1)
    assert server.requests == [b"abc"] * 2


async def test_a_send_that_is_clogged_for_a_while_goes_on(autojump_clock: MockClock) -> None:
    del autojump_clock
    server = FakeServer()
    server.clog(3, delay=2)
    stream = await server.open_stream()
    started = trio.current_time()
    await stream.send_all(ABC)
    assert trio.current_time() - started == pytest.approx(2)
    assert await stream.receive_some() == CBA


async def test_reading_makes_room_for_who_waits_to_send(autojump_clock: MockClock) -> None:
    del autojump_clock
    server = FakeServer(high_water=7)
    stream = await server.open_stream()
    await stream.send_all(ABC)
    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, ABC)
            await wait_all_tasks_blocked()
            assert len(server.requests) == 1
            assert await stream.receive_some(3) == CBA[:3]
    assert await stream.receive_some() == CBA[3:] + CBA


@pytest.mark.parametrize("reset", [False, True])
async def test_the_end_wakes_those_who_wait(autojump_clock: MockClock, reset: bool) -> None:
    del autojump_clock
    server = FakeServer()
    server.clog()
    stream = await server.open_stream()
    ends: list[str] = []

    async def send() -> None:
        await stream.send_all(ABC)
        ends.append("thrown away")

    async def receive() -> None:
        assert await stream.receive_some() == b""
        ends.append("end")

    async def note(wait: Callable[[], Awaitable[None]]) -> None:
        try:
            await wait()
        except trio.BrokenResourceError:
            ends.append("broken")

    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(note, send)
            nursery.start_soon(note, receive)
            await wait_all_tasks_blocked()
            server.drop(reset=reset)
    assert sorted(ends) == (["broken"] * 2 if reset else ["end", "thrown away"])


async def test_connecting_takes_trio_s_time(autojump_clock: MockClock) -> None:
    del autojump_clock
    server = FakeServer(connect_delay=2)
    with trio.move_on_after(1):
        await server.open_stream()
    assert not server.connections
    with trio.fail_after(3):
        await server.open_stream()
    server.connect_delay = math.inf
    with trio.move_on_after(3600) as scope:
        await server.open_stream()
    assert scope.cancelled_caught
    assert server.open == 1


# The clients through it ------------------------------------------------------------------


async def ask(kind: str, server: FakeServer, *payloads: bytes, **options: Any) -> list[object]:
    """What a client gets for each request: the reply, or the class of the error."""
    got: list[object] = []
    if kind == "blocking":
        with Client(connect=server.connect, **options) as client:
            for payload in payloads:
                try:
                    got.append(client.request(payload))
                except NbclientError as error:
                    got.append(type(error))
    else:
        async with AsyncClient(connect=server.open_stream, **options) as many:
            for payload in payloads:
                try:
                    got.append(await many.request(payload))
                except NbclientError as error:
                    got.append(type(error))
    assert server.open == 0
    return got


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (None, b"cba"),
        (Fault(pieces=(1,) * 7), b"cba"),
        (Fault(delay=0.01), b"cba"),
        (Fault(delay=7), RequestTimeout),
        (SILENT, RequestTimeout),
        *((Fault(cut=size), ConnectionLost) for size in range(8)),
        *((Fault(cut=size, reset=True), ConnectionLost) for size in range(8)),
        (Fault(raw=b"HTTP/1.1 400 Bad Request"), RemoteProtocolError),
        (Fault(corrupt=(4, b"x")), RemoteProtocolError),
        (Fault(copies=2), RemoteProtocolError),
    ],
)
async def test_a_client_comes_through_a_fault(
    kind: str, autojump_clock: MockClock, fault: Fault | None, outcome: object
) -> None:
    del autojump_clock
    server = FakeServer(faults=[None, fault])
    got = await ask(kind, server, b"x", b"abc", b"de", timeout=0.05, retries=0)
    assert got == [b"x", outcome, b"ed"]
    assert server.requests == [b"x", b"abc", b"de"]


async def test_a_client_meets_a_connection_that_ended_behind_a_reply(
    kind: str, autojump_clock: MockClock
) -> None:
    del autojump_clock
    server = FakeServer(faults=[Fault(cut=8)])
    got = await ask(kind, server, b"abc", b"de", b"f", retries=0)
    assert got == [b"cba", b"ed", b"f"]


async def test_a_client_tries_again_to_connect(kind: str, autojump_clock: MockClock) -> None:
    del autojump_clock
    server = FakeServer()
    server.refuse(times=2)
    assert await ask(kind, server, b"abc", retries=2, backoff=0.001) == [b"cba"]
    server.refuse()
    assert await ask(kind, server, b"abc", retries=2, backoff=0.001) == [ConnectError]
    assert server.refused == 5


@pytest.mark.parametrize("reset", [False, True])
async def test_a_client_leaves_a_connection_that_was_dropped_or_speaks_unasked(
    kind: str, autojump_clock: MockClock, reset: bool
) -> None:
    del autojump_clock
    server = FakeServer()
    if kind == "blocking":
        with Client(connect=server.connect, retries=0) as client:
            assert client.request(b"a") == b"a"
            server.drop(reset=reset)
            assert client.request(b"b") == b"b"
            server.connections[-1].say(b"00001x")
            assert client.request(b"c") == b"c"
    else:
        async with AsyncClient(connect=server.open_stream, retries=2) as many:
            assert await many.request(b"a") == b"a"
            server.drop(reset=reset)
            assert await many.request(b"b", idempotent=True) == b"b"
    assert server.open == 0


async def test_replies_by_the_thousand(kind: str) -> None:
    server = FakeServer(faults=lambda payload: Fault(pieces=(1, 3)) if payload > b"9" else None)
    payloads = [b"%d" % number for number in range(3000)]
    if kind == "blocking":
        with Client(connect=server.connect) as client:
            got = list(client.request_many(payloads))
    else:
        async with AsyncClient(connect=server.open_stream) as many:
            got = [reply async for reply in many.request_many(payloads)]
    assert got == [payload[::-1] for payload in payloads]
    assert server.requests == payloads

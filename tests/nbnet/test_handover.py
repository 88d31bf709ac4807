"""Connections that move from one loop to another, as between two processes."""

from __future__ import annotations

import array
import contextlib
import errno
import socket
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.serving import read

from nbnet.connection import Connection
from nbnet.counters import Counters
from nbnet.framing import encode_frame
from nbnet.handlers import Handler, reverse
from nbnet.handover import MOVES_PER_TURN, Arrival, Departure, Record, Records, pack_record
from nbnet.limits import Limits
from nbnet.listeners import open_tcp
from nbnet.notation import Target
from nbnet.pollers import READ, DescriptorError
from nbnet.running import open_loop
from nbnet.settings import Settings
from nbnet.states import MOVABLE, State

PEERS = st.one_of(st.text(), st.builds(Target, st.text(), st.integers(0, 65535)))
RECORDS = st.lists(
    st.builds(Record, PEERS, st.integers(0, 2**40), st.binary(), st.binary(), st.booleans()),
    max_size=5,
)


@given(records=RECORDS, cut=st.integers(1, 50))
def test_records_survive_any_cut(records: list[Record], cut: int) -> None:
    stream = b"".join(map(pack_record, records))
    parser = Records()
    found = [
        record
        for start in range(0, len(stream), cut)
        for record in parser.feed(stream[start : start + cut])
    ]
    assert found == records


@given(
    payloads=st.lists(st.binary(min_size=1, max_size=30), max_size=8),
    cuts=st.lists(st.integers(0, 60), max_size=12),
    room=st.integers(0, 40),
)
def test_a_connection_can_move_at_any_byte(
    payloads: list[bytes], cuts: list[int], room: int
) -> None:
    limits = Limits(frames_per_turn=2, high_water=50, low_water=20)
    served = Connection(reverse, limits, Counters(), "peer", 0.0)
    stream = b"".join(map(encode_frame, payloads))
    got = b""
    for cut in [*cuts, len(stream)]:
        if served.state.value in ("reading", "writing"):
            piece, stream = stream[:cut], stream[cut:]
            if piece:
                served.block(served.receive(piece, 1.0), 1.0)
        assert served.state in MOVABLE
        unread, unsent = served.pack()
        served.move_out()
        served = Connection(reverse, limits, Counters(), "peer", 0.0)
        served.unpack(unread, unsent, 1.0)
        got += served.unsent[:room]
        served.take(len(served.unsent[:room]), 1.0)
    while served.unsent or served.waiting or stream:
        got += served.unsent
        served.take(len(served.unsent), 1.0)
        if served.waiting:
            served.block(served.resume(1.0), 1.0)
        elif stream:
            served.block(served.receive(stream, 1.0), 1.0)
            stream = b""
    assert got == b"".join(encode_frame(payload[::-1]) for payload in payloads)


class Running:
    """A loop in a thread, and a way to have something done there."""

    def __init__(
        self, listener: socket.socket, handler: Handler = reverse, **settings: int
    ) -> None:
        self.stack = contextlib.ExitStack()
        # A peer that stays when a loop ends is not waited for.
        read = Settings.read(handler, Limits(drain=5.0, linger=0.1), **settings)  # type: ignore[arg-type]
        self.loop, _ = self.stack.enter_context(open_loop([listener.dup()], read))
        self.calls: list[Callable[[], object]] = []
        self.ask, self.asked = socket.socketpair()
        self.loop.watch(self.asked.fileno(), READ, self._do)
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()

    def _do(self) -> None:
        self.asked.recv(1)
        self.calls.pop(0)()

    def do(self, call: Callable[[], object]) -> None:
        self.calls.append(call)
        self.ask.send(b"x")

    def end(self) -> None:
        self.loop.stop()
        self.thread.join()
        self.stack.close()
        self.ask.close()
        self.asked.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    [bound] = open_tcp("127.0.0.1", 0)
    yield bound.for_worker(0)
    bound.close()


def connect(listener: socket.socket) -> socket.socket:
    return socket.create_connection(listener.getsockname(), timeout=20)


def move(old: Running, new: Running) -> bool:
    """Have one loop hand over to another; say how that ended."""
    ours, theirs = socket.socketpair()
    ends: list[bool] = []
    ended = threading.Event()

    def end(well: bool) -> None:
        ends.append(well)
        old.loop.stop()
        ended.set()

    new.do(lambda: Arrival(new.loop, theirs))
    old.do(lambda: Departure(old.loop, ours, end))
    assert ended.wait(20)
    return ends[0]


def test_connections_go_on_in_the_other_loop_with_what_was_unread_and_unsent(
    listener: socket.socket,
) -> None:
    old, new = Running(listener), Running(listener)
    # Newcomers are for the old one until they move.
    new.do(lambda: new.loop.hold_accepting(True))
    count = 2 * MOVES_PER_TURN + 5
    peers = [connect(listener) for _ in range(count)]
    big = encode_frame(b"ab" * 40_000)
    try:
        for peer in peers:
            peer.sendall(b"00003abc00004de")  # the second is not whole
        for peer in peers:
            assert read(peer, 8) == b"00003cba"
        writer = threading.Thread(target=peers[0].sendall, args=(b"fg" + big * 100,))
        writer.start()  # more replies than the kernel holds: some are unsent
        assert move(old, new)
        old.end()
        assert old.loop.counters.handed_over == count
        for peer in peers[1:]:
            peer.sendall(b"fg")
            assert read(peer, 9) == b"00004gfed"
        assert read(peers[0], 9) == b"00004gfed"
        expected = encode_frame(b"ba" * 40_000)
        for _ in range(100):
            assert read(peers[0], len(expected)) == expected
        writer.join()
    finally:
        for peer in peers:
            peer.close()
        new.end()
    assert new.loop.counters.adopted == count
    assert new.loop.counters.requests + old.loop.counters.requests == 2 * count + 100
    assert new.loop.counters.accepted == 0


def test_a_connection_that_threads_work_for_moves_after_that(listener: socket.socket) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def handler(payload: bytes) -> bytes:
        begun.set()
        assert go_on.wait(20)
        return payload

    old = Running(listener, handler, threads=2)
    new = Running(listener)
    new.do(lambda: new.loop.hold_accepting(True))
    with connect(listener) as peer, connect(listener) as other:
        other.sendall(b"00001")
        peer.sendall(b"00002ab00002cd")
        assert begun.wait(20)
        ours, theirs = socket.socketpair()
        new.do(lambda: Arrival(new.loop, theirs))
        old.do(lambda: Departure(old.loop, ours, lambda _: old.loop.stop()))
        other.sendall(b"z")
        go_on.set()
        assert read(peer, 14) == b"00002ab00002cd"
        peer.sendall(b"00002ef")
        assert read(peer, 7) == b"00002fe"  # by the new one, which reverses
        old.end()
        new.end()
    assert new.loop.counters.adopted == 2


def test_if_nobody_takes_them_the_connections_stay(listener: socket.socket) -> None:
    old = Running(listener)
    with connect(listener) as peer:
        peer.sendall(b"00001a")
        assert read(peer, 6) == b"00001a"
        ours, theirs = socket.socketpair()
        theirs.close()
        ends: list[bool] = []
        ended = threading.Event()

        def end(well: bool) -> None:
            ends.append(well)
            ended.set()

        old.do(lambda: Departure(old.loop, ours, end))
        assert ended.wait(20)
        assert ends == [False]
        with connect(listener) as newcomer:
            newcomer.sendall(b"00001b")
            assert read(newcomer, 6) == b"00001b"
        old.end()


def test_connections_that_arrive_while_others_leave_move_on(listener: socket.socket) -> None:
    """A reload right after a reload: the process in the middle waits for all to come."""
    first, middle, last = (Running(listener) for _ in range(3))
    for running in (middle, last):
        running.do(lambda running=running: running.loop.hold_accepting(True))  # type: ignore[misc]
    peers = [connect(listener) for _ in range(MOVES_PER_TURN + 5)]
    try:
        for peer in peers:
            peer.sendall(b"00003abc00004de")
            assert read(peer, 8) == b"00003cba"
        ends = [socket.socketpair() for _ in range(2)]
        last.do(lambda: Arrival(last.loop, ends[1][1]))
        middle.do(lambda: Arrival(middle.loop, ends[0][1]))
        middle.do(lambda: Departure(middle.loop, ends[1][0], lambda _: middle.loop.stop()))
        first.do(lambda: Departure(first.loop, ends[0][0], lambda _: first.loop.stop()))
        first.end()
        middle.thread.join()
        middle.end()
        for peer in peers:
            peer.sendall(b"fg")
            assert read(peer, 9) == b"00004gfed"
    finally:
        for peer in peers:
            peer.close()
        last.end()
    assert last.loop.counters.adopted == len(peers)


def test_what_arrives_at_a_loop_that_stops_is_answered_and_ended(listener: socket.socket) -> None:
    old, new = Running(listener), Running(listener)
    new.do(lambda: new.loop.hold_accepting(True))
    with connect(listener) as peer:
        peer.sendall(b"00003abc00004de")
        assert read(peer, 8) == b"00003cba"
        ours, theirs = socket.socketpair()
        new.do(lambda: Arrival(new.loop, theirs))
        new.do(new.loop.stop)
        old.do(lambda: Departure(old.loop, ours, lambda _: old.loop.stop()))
        old.end()
        peer.sendall(b"fg")
        assert read(peer, 10) == b"00004gfed"  # and the end
        new.end()
    assert new.loop.counters.adopted == 1


# What the kernel seldom does, on links made by hand ---------------------------------------


class FakeLoop:
    """The calls of a loop that moving needs, and what they were."""

    arrivals = 0
    connections = 1

    def __init__(self, *channels: Any) -> None:
        self.channels = list(channels)
        self.watched: dict[int, Callable[[], None]] = {}
        self.moved: list[Any] = []
        self.turn: Callable[[], bool] | None = None
        self.fails: Exception | None = None
        self.held = False

    def hold_accepting(self, held: bool) -> None:
        self.held = held

    def each_turn(self, action: Callable[[], bool] | None) -> None:
        self.turn = action

    def movable(self) -> Iterator[Any]:
        return iter(self.channels)

    def will_be_movable(self) -> bool:
        return False

    def move_out(self, channel: Any) -> None:
        self.channels.remove(channel)
        self.moved.append(channel)

    def watch(self, fd: int, _events: int, call: Callable[[], None]) -> None:
        if self.fails is not None:
            raise self.fails
        self.watched[fd] = call

    def unwatch(self, fd: int) -> None:
        del self.watched[fd]

    def expect(self, count: int) -> None:
        """As of the real one."""

    def adopt(self, connection: socket.socket, peer: Target | str, **_: Any) -> None:
        assert not connection.get_inheritable(), "a handler's child would keep it open"
        connection.close()
        self.moved.append(peer)


def channel(unsent: bytes = b"") -> Any:
    """A connection that can move; the standard input goes in place of its socket."""
    return SimpleNamespace(
        peer="somebody", requests=1, fd=0, state=State.READING, pack=lambda: (b"", unsent)
    )


@pytest.fixture
def links() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def departing(loop: FakeLoop, link: socket.socket, ends: list[bool]) -> Departure:
    return Departure(loop, link, ends.append)  # type: ignore[arg-type]


def test_a_record_that_the_link_takes_in_parts_goes_on_when_there_is_room(
    links: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = links
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    loop, ends = FakeLoop(channel(b"x" * 400_000)), list[bool]()
    departing(loop, ours, ends)
    assert loop.turn is not None
    size = 0
    while not ends:
        if not loop.turn() and loop.watched:
            assert not loop.turn(), "it waits"
            [unblock] = loop.watched.values()
            size += len(theirs.recv(1 << 20))
            unblock()
    while data := theirs.recv(1 << 20):
        size += len(data)
    assert ends == [True]
    assert size > 400_000


def test_a_link_that_cannot_be_waited_for_ends_the_departure(
    links: tuple[socket.socket, socket.socket],
) -> None:
    loop, ends = FakeLoop(channel(b"x" * 4_000_000)), list[bool]()
    loop.fails = DescriptorError("too large a number")
    departing(loop, links[0], ends)
    while loop.turn is not None:
        loop.turn()
    assert ends == [False]
    assert not loop.held


def test_what_arrives_is_not_for_what_a_handler_starts(
    links: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = links
    loop = FakeLoop()
    Arrival(loop, theirs)  # type: ignore[arg-type]
    with socket.socket() as moving:
        socket.send_fds(ours, [pack_record(Record("came", 1, b"", b""))], [moving.fileno()])
    ours.close()
    [receive] = loop.watched.values()
    receive()
    assert loop.moved == ["came"]


class FakeLink:
    """A link whose calls end as told."""

    def __init__(self, *results: Any) -> None:
        self.results = list(results)
        self.closed = False

    def _next(self, *_: Any) -> Any:
        result = self.results.pop(0)
        if isinstance(result, OSError):
            raise result
        return result

    recvmsg = sendmsg = _next

    def setblocking(self, _flag: bool) -> None:
        """As of the real one."""

    def fileno(self) -> int:
        return 99

    def close(self) -> None:
        self.closed = True


def test_while_too_many_are_on_their_way_it_tries_again() -> None:
    size = len(pack_record(Record("somebody", 1, b"", b"")))
    link = FakeLink(OSError(errno.ETOOMANYREFS, "too many"), size)
    loop, ends = FakeLoop(channel()), list[bool]()
    departing(loop, link, ends)  # type: ignore[arg-type]
    assert loop.turn is not None
    assert loop.turn(), "at once"
    loop.turn()
    assert ends == [True]
    assert len(loop.moved) == 1


def test_a_connection_without_a_descriptor_to_spare_is_lost_and_the_others_come(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lost = pack_record(Record("lost", 1, b"", b""))
    came = pack_record(Record("came", 1, b"", b""))
    descriptor = socket.socket().detach()
    link = FakeLink(
        (lost, [], socket.MSG_CTRUNC, None),
        (
            came,
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]).tobytes())],
            0,
            None,
        ),
        BlockingIOError(),
        ConnectionResetError(),
    )
    loop = FakeLoop()
    Arrival(loop, link)  # type: ignore[arg-type]
    [receive] = loop.watched.values()
    receive()
    assert loop.moved == ["came"]
    assert "lost: lost on its way here, too many open files" in caplog.text
    receive()  # the other process died
    assert link.closed
    assert not loop.watched


def test_many_arrivals_are_taken_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbnet.handover.ARRIVALS_PER_TURN", 2)
    link = FakeLink((b"", [], 0, None))
    link.results[:0] = [(b"\0", [], 0, None)] * 2
    loop = FakeLoop()
    Arrival(loop, link)  # type: ignore[arg-type]
    [receive] = loop.watched.values()
    receive()
    assert not link.closed
    receive()
    assert link.closed

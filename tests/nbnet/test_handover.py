"""Connections that move from one loop to another, as between two processes."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

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
from nbnet.pollers import READ
from nbnet.running import open_loop
from nbnet.settings import Settings
from nbnet.states import MOVABLE

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

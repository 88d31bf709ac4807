"""Handlers in threads: the pool itself, and connections and the loop with one in memory."""

from __future__ import annotations

import functools
import logging
import math
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.kernel import FakeSocket, Kernel
from support.lives import live, lives
from support.pool import FakePool

from nbnet.connection import Connection
from nbnet.counters import Counters
from nbnet.framing import encode_frame
from nbnet.handlers import Bound, reverse
from nbnet.limits import Limits
from nbnet.loop import Loop
from nbnet.pollers import ERROR, READ
from nbnet.states import MOVABLE, State
from nbnet.threads import Job, ThreadPool


class Threads:
    """A real pool that says when something is done."""

    def __init__(self, threads: int) -> None:
        self.woken = threading.Semaphore(0)
        self.pool = ThreadPool(threads, self.woken.release)

    def wait(self, count: int) -> list[tuple[object, Job]]:
        done: list[tuple[object, Job]] = []
        while len(done) < count:
            assert self.woken.acquire(timeout=20)
            done += self.pool.take_done()
        return done


def test_jobs_run_in_threads_and_come_back_with_their_owners() -> None:
    threads = Threads(2)
    jobs = [Job(bytes.upper, b"%d" % number) for number in range(20)]
    for number, job in enumerate(jobs):
        threads.pool.submit(number, job)
    done = dict(threads.wait(20))
    assert [done[number] for number in range(20)] == jobs
    assert [job.reply for job in jobs] == [b"%d" % number for number in range(20)]
    threads.pool.close()


def test_as_many_jobs_run_at_a_time_as_there_are_threads() -> None:
    together = threading.Barrier(3, timeout=20)

    def handler(payload: bytes) -> bytes:
        together.wait()
        return payload

    threads = Threads(3)
    for _ in range(3):
        threads.pool.submit(None, Job(handler, b"a"))
    assert [job.error for _, job in threads.wait(3)] == [None] * 3
    threads.pool.close()


def test_what_a_handler_raises_comes_back_and_leaves_the_thread_alive() -> None:
    def handler(payload: bytes) -> bytes:
        raise KeyboardInterrupt if payload == b"a" else ValueError("no")

    threads = Threads(1)
    threads.pool.submit(1, Job(handler, b"a"))
    threads.pool.submit(2, Job(handler, b"b"))
    errors = [job.error for _, job in threads.wait(2)]
    assert [type(error) for error in errors] == [KeyboardInterrupt, ValueError]
    threads.pool.close()


def test_an_abandoned_job_comes_back_without_having_run() -> None:
    job = Job(bytes.upper, b"a")
    job.abandoned = True
    job.run()
    assert (job.reply, job.nanoseconds) == (b"", 0)


def test_closing_ends_the_threads() -> None:
    before = threading.active_count()
    threads = Threads(4)
    assert threading.active_count() == before + 4
    threads.pool.close()
    assert threading.active_count() == before


@pytest.mark.parametrize(("threads", "window"), [(1, 1), (2, 1), (8, 4)])
def test_one_connection_cannot_have_all_threads(threads: int, window: int) -> None:
    pool = ThreadPool(threads, lambda: None)
    assert pool.window == window
    pool.close()


def test_no_threads_are_an_error() -> None:
    with pytest.raises(ValueError, match="0 threads cannot work"):
        ThreadPool(0, lambda: None)


# A connection with threads ---------------------------------------------------------


def connection(
    pool: FakePool, handler: Bound = reverse, limits: Limits | None = None
) -> Connection:
    return Connection(handler, limits or Limits(), Counters(), "peer", 0.0, pool=pool)


def collect(served: Connection, pool: FakePool) -> bytes:
    for _, job in pool.take_done():
        job.done = True
    return served.collect(1.0)


def test_replies_leave_in_order_whichever_is_done_first() -> None:
    pool = FakePool(window=3)
    served = connection(pool)
    assert served.receive(b"00001a00001b00001c00001d", 1.0) == b""
    assert served.state.value == "working"
    assert len(pool.todo) == 3
    pool.run(1)
    assert collect(served, pool) == b""
    pool.run(0)
    assert collect(served, pool) == b"00001a00001b"
    assert [job.payload for _, job in pool.todo] == [b"c", b"d"]
    pool.run(1)
    pool.run(0)
    assert collect(served, pool) == b"00001c00001d"
    after = served.state
    assert after is State.READING
    assert served.requests == 4


def test_a_failing_handler_ends_the_connection_after_the_replies_before_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def handler(payload: bytes) -> bytes:
        if payload == b"b":
            raise RuntimeError("bad")
        return payload

    pool = FakePool(window=4)
    served = connection(pool, handler)
    served.receive(b"00001a00001b00001c", 1.0)
    left = pool.todo[2][1]
    pool.run()
    pool.run()
    assert collect(served, pool) == b"00001a"
    assert served.state is State.FLUSHING
    assert left.abandoned
    assert "RuntimeError: bad" in caplog.text


def test_an_unfit_reply_of_a_thread_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    pool = FakePool(window=2)
    served = connection(pool, lambda p: p if p == b"a" else "text")  # type: ignore[arg-type,return-value]
    served.receive(b"00001a00001b", 1.0)
    pool.run()
    pool.run()
    assert collect(served, pool) == b"00001a"
    assert served.state is State.FLUSHING
    assert "a payload is bytes, not str" in caplog.text


def test_ctrl_c_in_a_thread_is_not_swallowed() -> None:
    def handler(_: bytes) -> bytes:
        raise KeyboardInterrupt

    pool = FakePool()
    served = connection(pool, handler)
    served.receive(b"00001a", 1.0)
    pool.run()
    with pytest.raises(KeyboardInterrupt):
        collect(served, pool)


def test_a_fault_behind_requests_that_threads_have_is_acted_on_after_them() -> None:
    pool = FakePool(window=1)
    served = connection(pool)
    served.receive(b"00001a00001bX", 1.0)
    pool.run()
    assert collect(served, pool) == b"00001a"
    pool.run()
    assert collect(served, pool) == b"00001b"
    assert served.state is State.FLUSHING


def delivering(stream: bytes) -> tuple[Connection, FakePool]:
    """A connection whose first reply the kernel refused while a thread has its last request."""
    pool = FakePool(window=2)
    served = connection(pool)
    served.receive(stream, 1.0)
    pool.run()
    served.block(collect(served, pool), 1.0)
    assert served.state is State.DELIVERING
    pool.run()
    return served, pool


def test_a_fault_is_acted_on_although_replies_were_refused_before_the_last_one() -> None:
    served, pool = delivering(b"00001a00001bX")
    served.block(collect(served, pool), 1.0)
    assert served.state is State.FLUSHING
    assert served.unsent == b"00001a00001b"
    assert served._counters.protocol_errors == 1


def test_a_stop_is_acted_on_although_replies_were_refused_before_the_last_one() -> None:
    served, pool = delivering(b"00001a00001b")
    served.stop(1.0)
    served.block(collect(served, pool), 1.0)
    assert served.state is State.FLUSHING
    assert served.unsent == b"00001a00001b"


def test_more_requests_wait_until_the_replies_before_them_are_sent() -> None:
    pool = FakePool(window=2)
    served = connection(pool)
    served._counters.in_flight = 4  # those of others
    served.receive(b"00001a00001b00001c00001d", 1.0)
    assert served._counters.in_flight == 6
    pool.run()
    served.block(collect(served, pool), 1.0)
    pool.run()
    pool.run()
    served.block(collect(served, pool), 1.0)
    assert served.state is State.PAUSED
    assert (list(served.waiting), pool.todo) == ([b"d"], [])
    served.take(18, 1.0)
    assert served.state.value == "busy"
    served.resume(1.0)
    assert [job.payload for _, job in pool.todo] == [b"d"]


def test_requests_that_come_while_replies_wait_are_not_worked_on() -> None:
    pool = FakePool()
    served = connection(pool)
    served.block(b"00001a", 1.0)
    assert served.receive(b"00001b", 1.0) == b""
    assert served.state is State.PAUSED
    assert pool.todo == []


@pytest.mark.parametrize("refused", [False, True])
def test_a_peer_is_not_blamed_for_the_time_that_threads_took(*, refused: bool) -> None:
    pool = FakePool(window=2)
    served = connection(pool, limits=Limits(frame_timeout=3.0))
    served.receive(b"00001a00001b000", 20.0)
    assert served.deadline() == (math.inf, "turn")
    pool.run()
    first = collect(served, pool)
    if refused:
        served.block(first, 20.0)
    pool.run()
    for _, job in pool.take_done():
        job.done = True
    served.collect(29.0)
    if refused:
        served.take(6, 29.0)
    assert served.state is State.READING
    assert served.deadline() == (32.0, "frame")


class Peer(RuleBasedStateMachine):
    """Anything may happen at any time: the table is kept and no reply is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = FakePool(window=2)
        self.served = connection(self.pool, limits=Limits(high_water=60, low_water=20))
        self.asked: list[bytes] = []
        self.handed = b""
        self.taken = b""

    def hand(self, replies: bytes, room: int) -> None:
        self.handed += replies
        self.served.block(replies, 1.0)
        self.take(room)

    @precondition(lambda self: self.served.state in (State.READING, State.WRITING))
    @rule(
        requests=st.lists(st.binary(min_size=1, max_size=30), max_size=6),
        fault=st.booleans(),
        room=st.integers(0, 80),
    )
    def receive(self, requests: list[bytes], fault: bool, room: int) -> None:
        data = b"".join(map(encode_frame, requests)) + (b"x" if fault else b"")
        self.asked += [encode_frame(request[::-1]) for request in requests]
        self.hand(self.served.receive(data, 1.0), room)

    @precondition(lambda self: self.pool.todo)
    @rule(index=st.integers(0, 1))
    def work(self, index: int) -> None:
        self.pool.run(min(index, len(self.pool.todo) - 1))

    @precondition(lambda self: self.served.state in (State.WORKING, State.DELIVERING))
    @rule(room=st.integers(0, 80))
    def collect(self, room: int) -> None:
        self.hand(collect(self.served, self.pool), room)

    @precondition(lambda self: self.served.state is State.BUSY)
    @rule(room=st.integers(0, 80))
    def resume(self, room: int) -> None:
        self.hand(self.served.resume(1.0), room)

    @precondition(lambda self: self.served.state not in (State.LINGERING, State.CLOSED))
    @rule(room=st.integers(0, 80))
    def take(self, room: int) -> None:
        sent = bytes(self.served.unsent[:room])
        self.taken += sent
        self.served.take(len(sent), 1.0)

    @precondition(lambda self: self.served.state in (State.READING, State.WRITING, State.LINGERING))
    @rule(room=st.integers(0, 80))
    def eof(self, room: int) -> None:
        self.served.receive_eof()
        self.take(room)

    @precondition(lambda self: self.served.state in MOVABLE)
    @rule(room=st.integers(0, 80))
    def move_to_another_process(self, room: int) -> None:
        unread, unsent = self.served.pack()
        before, self.served = (
            self.served,
            connection(self.pool, limits=Limits(high_water=60, low_water=20)),
        )
        before.move_out()
        assert before.state is State.CLOSED
        assert before._counters.unsent == 0
        self.served.unpack(unread, unsent, 1.0)
        self.take(room)

    @rule()
    def stop(self) -> None:
        self.served.stop(1.0)

    @precondition(lambda self: self.served.state is not State.CLOSED)
    @rule()
    def lose(self) -> None:
        self.taken = self.handed = b"".join(self.asked)
        self.served.lose("reset")

    @invariant()
    def no_reply_is_lost_or_out_of_order(self) -> None:
        owed = b"".join(self.asked)
        assert owed.startswith(self.handed)
        assert self.taken + self.served.unsent == self.handed
        if not self.served.waiting and not self.served._jobs:
            assert self.handed == owed

    @invariant()
    def states_say_what_waits(self) -> None:
        served = self.served
        state = served.state
        assert served._counters.unsent == len(served.unsent)
        assert (state in (State.WORKING, State.DELIVERING)) == bool(served._jobs) or (
            state is State.DELIVERING
        )
        assert len(served._jobs) <= 2
        if state is State.WORKING:
            assert not served.unsent
        if state in (State.DELIVERING, State.PAUSED, State.WRITING):
            assert served.unsent
        if state in (State.READING, State.WRITING, State.FLUSHING, State.LINGERING):
            assert not served.waiting

    @invariant()
    def a_deadline_is_set_unless_it_is_the_servers_turn(self) -> None:
        when, kind = self.served.deadline()
        if self.served.state is not State.CLOSED:
            ours = self.served.state in (State.BUSY, State.WORKING)
            assert (when == math.inf) == ours, kind


@lives
def test_whatever_a_peer_does(count: int) -> None:
    live(Peer, count)


# The loop with threads ---------------------------------------------------------------


class Scene:
    """A loop with threads on the kernel in memory, level- or edge-triggered."""

    def __init__(self, edge: bool) -> None:
        self.kernel = Kernel()
        self.pool = FakePool(window=2, on_done=self.kernel.wake_up.set)
        self.edge = edge

    def run(self, *steps: Callable[[], object], handler: Bound = reverse, **limits: float) -> Loop:
        loop = Loop(
            [self.kernel.listener],
            handler,
            poller=self.kernel,
            clock=self.kernel.clock,
            wake_up=self.kernel.wake_up,
            limits=Limits(**limits),  # type: ignore[arg-type]  # ints and floats by name
            edge=self.edge,
            pool=self.pool,
        )
        self.kernel.steps.extend([*steps, loop.stop])
        loop.run()
        assert not self.kernel.interest
        assert (loop.counters.connections, loop.counters.unsent) == (0, 0)
        return loop


@pytest.fixture(params=["level", "edge"])
def scene(request: pytest.FixtureRequest) -> Scene:
    return Scene(request.param == "edge")


def test_a_slow_handler_does_not_hold_up_other_connections(scene: Scene) -> None:
    slow, quick = scene.kernel.connect(), scene.kernel.connect()

    def quick_is_answered() -> None:
        assert quick.received == b"00002ih"
        assert not slow.received
        scene.pool.run()

    def second_is_answered() -> None:
        assert slow.received == b"00004wols"

    loop = scene.run(
        lambda: slow.inbox.append(b"00004slow"),
        lambda: quick.inbox.append(b"00002hi"),
        lambda: scene.pool.run(1),
        quick_is_answered,
        second_is_answered,
    )
    assert loop.counters.requests == 2
    assert loop.counters.in_flight == 0
    assert sum(loop.counters.handler_times) == 2


def test_nothing_more_is_read_while_threads_work_and_waiting_does_not_spin(scene: Scene) -> None:
    peer = scene.kernel.connect()
    polls: list[int] = []

    def more() -> None:
        polls.append(scene.kernel.polls)
        peer.inbox.append(b"00001b")

    def still_unread() -> None:
        polls.append(scene.kernel.polls)
        assert list(peer.inbox) == [b"00001b"]
        scene.pool.run()

    scene.run(
        lambda: peer.inbox.append(b"00001a"),
        more,
        still_unread,
        scene.pool.run,
    )
    assert peer.received == b"00001a00001b"
    # The one that reports the input, and the one that waits without it.
    assert polls[1] - polls[0] <= 2


def test_a_reset_while_threads_work_does_not_spin_and_costs_no_other(scene: Scene) -> None:
    peer, other = scene.kernel.connect(), scene.kernel.connect()

    def reset() -> None:
        peer.hung_up = True
        peer.send_error = ConnectionResetError(104, "reset")
        peer.inbox.append(ConnectionResetError(104, "reset"))

    def both() -> None:
        assert scene.kernel.polls < 20
        scene.pool.run()
        other.inbox.append(b"00001z")

    scene.run(lambda: peer.inbox.append(b"00001a"), reset, both, scene.pool.run)
    assert peer.closed
    assert other.received == b"00001z"


def test_replies_that_the_kernel_refuses_stop_the_work_but_not_the_order(scene: Scene) -> None:
    peer = scene.kernel.connect()
    peer.room = 4

    def refused() -> None:
        assert peer.received == b"0000"
        assert scene.pool.most == 2
        assert [job.payload for _, job in scene.pool.todo] == [b"b", b"c"]
        scene.pool.run()
        scene.pool.run()

    def nothing_more_is_given_out() -> None:
        assert not scene.pool.todo
        peer.room = 100

    scene.run(
        lambda: peer.inbox.append(b"00001a00001b00001c00001d"),
        scene.pool.run,
        refused,
        nothing_more_is_given_out,
        scene.pool.run,
    )
    assert peer.received == b"00001a00001b00001c00001d"


def test_stopping_waits_for_the_threads(scene: Scene) -> None:
    peer = scene.kernel.connect()
    scene.kernel.at(3.0, scene.pool.run)
    loop = scene.run(lambda: peer.inbox.append(b"00001a"))
    assert peer.received == b"00001a"
    assert scene.kernel.now < 5
    assert loop.counters.requests == 1


def test_stopping_does_not_wait_for_ever_for_the_threads(scene: Scene) -> None:
    peer = scene.kernel.connect()
    scene.run(lambda: peer.inbox.append(b"00001a"), drain=2.0)
    assert peer.closed
    assert scene.kernel.now == 2.0
    assert scene.pool.todo[0][1].abandoned


def test_a_job_that_comes_back_after_its_connection_is_gone_does_nothing(scene: Scene) -> None:
    peer, other = scene.kernel.connect(), scene.kernel.connect()

    def fail() -> None:
        peer.room = 0
        scene.pool.run()  # the reply cannot be sent: more is not given out

    def gone() -> None:
        peer.send_error = ConnectionResetError(104, "reset")
        peer.hung_up = True

    def late() -> None:
        assert peer.closed
        scene.pool.run()
        other.inbox.append(b"00001z")

    loop = scene.run(lambda: peer.inbox.append(b"00001a00001b"), fail, gone, late, scene.pool.run)
    assert other.received == b"00001z"
    assert loop.counters.in_flight == 0


def test_spurious_events_while_threads_work_do_nothing(scene: Scene) -> None:
    peer = scene.kernel.connect()

    def spurious() -> None:
        scene.kernel.injected += [(peer.fd, READ), (peer.fd, ERROR | READ)]

    scene.run(lambda: peer.inbox.append(b"00001a"), spurious, spurious, scene.pool.run)
    assert peer.received == b"00001a"


@given(cuts=st.lists(st.integers(1, 40), max_size=8), order=st.lists(st.integers(0, 3)))
def test_any_cut_and_any_order_of_threads_give_the_replies_in_order(
    cuts: list[int], order: list[int]
) -> None:
    scene = Scene(edge=False)
    peer: FakeSocket = scene.kernel.connect()
    payloads = [b"%d" % number for number in range(20)]
    stream = b"".join(map(encode_frame, payloads))
    steps: list[Callable[[], object]] = []
    start = 0
    for cut in [*cuts, len(stream)]:
        if piece := stream[start : start + cut]:
            steps.append(functools.partial(peer.inbox.append, piece))
        start += cut
    picks = iter(order)

    def work() -> None:
        if scene.pool.todo:
            scene.pool.run(min(next(picks, 0), len(scene.pool.todo) - 1))

    scene.run(*steps, *[work] * 40)
    assert peer.received == b"".join(encode_frame(payload[::-1]) for payload in payloads)


def test_the_log_says_nothing_of_what_is_usual(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    peer = scene.kernel.connect()
    with caplog.at_level(logging.INFO, logger="nbnet"):
        scene.run(lambda: peer.inbox.append(b"00001a"), scene.pool.run)
    assert not caplog.records

"""The event loop on a kernel in memory: what depends on timing and order."""

from __future__ import annotations

import errno
import itertools
import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from support import kernel as kernel_in_memory
from support.kernel import FakeSocket, error

from nbnet.acceptor import PAUSE
from nbnet.channels import FIRST_READ_SIZE, READ_SIZE
from nbnet.deadlines import TICK
from nbnet.handlers import Handler, reverse
from nbnet.limits import Limits
from nbnet.loop import LARGE_BUDGET, SAMPLED, Loop
from nbnet.notation import Target
from nbnet.pollers import ERROR, READ, WRITE, DescriptorError


class Kernel(kernel_in_memory.Kernel):
    """The kernel, and which trigger the loop is to use on it."""

    edge = False

    def waits_for(self, socket: FakeSocket) -> int:
        """What the loop asked the poller to report of a socket."""
        return self.interest[socket.fd] & (READ | WRITE)

    def loop(self, handler: Handler = reverse, **limits: float) -> Loop:
        return Loop(
            [self.listener],
            handler,
            poller=self,
            clock=self.clock,
            wake_up=self.wake_up,
            limits=Limits(**limits),  # type: ignore[arg-type]  # ints and floats by name
            edge=self.edge,
        )


def run(
    kernel: Kernel, *steps: Callable[[], object], handler: Handler = reverse, **limits: float
) -> Loop:
    """Run a loop through the steps, then stop it; everything must be let go of."""
    loop = kernel.loop(handler, **limits)
    kernel.steps.extend(steps)
    if kernel.timetable:
        kernel.at(kernel.timetable[-1][0], loop.stop)
    else:
        kernel.steps.append(loop.stop)
    loop.run()
    assert_nothing_is_left(kernel, loop)
    return loop


def assert_nothing_is_left(kernel: Kernel, loop: Loop) -> None:
    assert not kernel.interest
    assert set(kernel.open.values()) == {kernel.listener, kernel.wake_up}
    assert kernel.listener.closed
    assert (loop.connections, loop.counters.connections, loop.counters.unsent) == (0, 0, 0)
    assert len(loop._deadlines) == 0
    assert not loop._ready


@pytest.fixture(params=["level", "edge"])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    kernel = Kernel()
    kernel.edge = request.param == "edge"
    return kernel


@pytest.fixture
def peer(kernel: Kernel) -> FakeSocket:
    return kernel.connect()


def test_a_request_is_answered(kernel: Kernel, peer: FakeSocket) -> None:
    loop = run(kernel, lambda: peer.inbox.append(b"00003abc"))
    assert peer.received == b"00003cba"
    assert (loop.counters.accepted, loop.counters.requests) == (1, 1)


def test_an_answer_costs_one_poll_one_read_and_one_send(kernel: Kernel, peer: FakeSocket) -> None:
    def request() -> None:
        polls.append(kernel.polls)
        peer.inbox.append(b"00003abc")

    def answered() -> None:
        polls.append(kernel.polls)
        calls.append((peer.recvs, peer.sends))

    polls: list[int] = []
    calls: list[tuple[int, int]] = []
    run(kernel, request, answered)
    # The poll that reports the request, and the one that waits for the next.
    assert polls[1] - polls[0] == 1
    assert calls == [(1, 1)]


def test_pipelined_and_cut_requests_are_answered_in_order(kernel: Kernel, peer: FakeSocket) -> None:
    run(
        kernel,
        lambda: peer.inbox.extend([b"00003abc000", b"02", b"de00001f"]),
    )
    assert peer.received == b"00003cba00002ed00001f"


def test_what_the_kernel_refuses_is_sent_when_it_takes_more(
    kernel: Kernel, peer: FakeSocket
) -> None:
    def blocked() -> None:
        assert peer.received == b"000"
        assert kernel.waits_for(peer) == READ | WRITE
        peer.room = 1 << 20

    def flushed() -> None:
        assert peer.received == b"00003cba00002ed"
        assert kernel.waits_for(peer) == READ

    peer.room = 3
    run(kernel, lambda: peer.inbox.append(b"00003abc00002de"), blocked, flushed)


def test_a_send_refused_whole_is_no_error(kernel: Kernel, peer: FakeSocket) -> None:
    peer.room = 0
    run(
        kernel,
        lambda: peer.inbox.append(b"00003abc"),
        lambda: setattr(peer, "room", 100),
    )
    assert peer.received == b"00003cba"


def test_requests_are_still_read_while_few_replies_wait(kernel: Kernel, peer: FakeSocket) -> None:
    peer.room = 0
    run(
        kernel,
        lambda: peer.inbox.append(b"00003abc"),
        lambda: peer.inbox.append(b"00003def"),
        lambda: setattr(peer, "room", 100),
    )
    assert peer.received == b"00003cba00003fed"


def test_reading_pauses_above_the_high_water_mark_and_resumes_below_the_low_one(
    kernel: Kernel, peer: FakeSocket
) -> None:
    request = b"00100" + b"x" * 100

    def over_the_high_mark() -> None:
        assert kernel.waits_for(peer) == WRITE
        peer.inbox.append(b"00001a")  # is not read now
        peer.room = 100

    def between_the_marks() -> None:
        assert kernel.waits_for(peer) == WRITE
        assert peer.inbox
        peer.room = 60

    def under_the_low_mark() -> None:
        assert kernel.waits_for(peer) == READ | WRITE
        assert not peer.inbox
        peer.room = 1000

    peer.room = 0
    run(
        kernel,
        lambda: peer.inbox.append(request * 2),
        over_the_high_mark,
        between_the_marks,
        under_the_low_mark,
        high_water=200,
        low_water=100,
    )
    assert peer.received == request * 2 + b"00001a"


@pytest.mark.parametrize("bad", [b"0003a", b"+0003abc", b" 0003abc", b"0_003abc", b"00000"])
def test_after_a_bad_header_the_earlier_replies_are_flushed_then_it_is_closed(
    kernel: Kernel, peer: FakeSocket, bad: bytes
) -> None:
    other = kernel.connect()

    def lingers() -> None:
        assert peer.received == b"00003cba"
        assert peer.write_shut
        assert not peer.closed
        peer.inbox.extend([b"thrown away", b""])

    def closed() -> None:
        assert peer.closed
        other.inbox.append(b"00002hi")

    run(kernel, lambda: peer.inbox.append(b"00003abc" + bad), lingers, closed)
    assert other.received == b"00002ih"


def test_a_fault_with_a_full_kernel_still_sends_every_reply_earned(
    kernel: Kernel, peer: FakeSocket
) -> None:
    peer.room = 5
    run(
        kernel,
        lambda: peer.inbox.append(b"00003abcXYZ"),
        lambda: setattr(peer, "room", 100),
        lambda: peer.inbox.append(b""),
    )
    assert peer.received == b"00003cba"
    assert peer.write_shut


def test_a_peer_that_does_not_close_after_a_fault_is_closed_in_time(
    kernel: Kernel, peer: FakeSocket
) -> None:
    closed: list[float] = []
    kernel.steps.append(lambda: peer.inbox.append(b"bad"))
    kernel.at(1.9, lambda: closed.append(peer.closed))
    kernel.at(2.2, lambda: closed.append(peer.closed))
    run(kernel, linger=2.0)
    assert closed == [False, True]


def test_a_half_close_still_gets_all_replies(kernel: Kernel, peer: FakeSocket) -> None:
    peer.room = 3
    run(
        kernel,
        lambda: peer.inbox.extend([b"00003abc00003def", b""]),
        lambda: setattr(peer, "room", 100),
    )
    assert peer.received == b"00003cba00003fed"
    assert peer.closed


def test_hang_up_does_not_drop_what_was_not_read_yet(kernel: Kernel, peer: FakeSocket) -> None:
    def half_close() -> None:
        peer.inbox.extend([b"00003abc", b""])
        peer.hung_up = True

    run(kernel, half_close)
    assert peer.received == b"00003cba"


def test_a_reset_ends_only_its_connection(kernel: Kernel, peer: FakeSocket) -> None:
    other = kernel.connect()
    run(
        kernel,
        lambda: peer.inbox.append(error(errno.ECONNRESET)),
        lambda: other.inbox.append(b"00001a"),
    )
    assert peer.closed
    assert other.received == b"00001a"


@pytest.mark.parametrize("room", [0, 100])
def test_a_reset_noticed_by_send_ends_only_its_connection(
    kernel: Kernel, peer: FakeSocket, room: int
) -> None:
    def reset() -> None:
        peer.send_error = error(errno.EPIPE)
        peer.hung_up = True
        if room:
            peer.inbox.append(b"00001a")

    peer.room = room
    steps = [reset] if room else [lambda: peer.inbox.append(b"00001a"), reset]
    run(kernel, *steps)
    assert peer.closed


def test_a_reset_before_the_reply_ends_only_its_connection(
    kernel: Kernel, peer: FakeSocket
) -> None:
    other = kernel.connect()

    def ask_and_go() -> None:
        peer.inbox.append(b"00001a")
        peer.send_error = error(errno.ECONNRESET)

    loop = run(kernel, ask_and_go, lambda: other.inbox.append(b"00001b"))
    assert peer.closed
    assert other.received == b"00001b"
    assert loop.counters.lost == 1


def test_requests_are_counted_on_open_connections_too(kernel: Kernel, peer: FakeSocket) -> None:
    counted: list[int] = []
    loop = kernel.loop()
    kernel.steps.append(lambda: peer.inbox.append(b"00001a00001b"))
    kernel.steps.append(lambda: counted.append(loop.count().requests))
    kernel.steps.append(loop.stop)
    loop.run()
    assert counted == [2]
    assert loop.count().requests == 2


def test_a_reset_while_reading_is_paused_does_not_spin(kernel: Kernel, peer: FakeSocket) -> None:
    def reset() -> None:
        assert kernel.waits_for(peer) == WRITE
        peer.send_error = error(errno.ECONNRESET)
        peer.hung_up = True

    peer.room = 0
    run(kernel, lambda: peer.inbox.append(b"00100" + b"x" * 100), reset, high_water=50, low_water=1)
    assert peer.closed
    assert kernel.polls < 20


def test_a_reset_while_lingering_ends_the_connection(kernel: Kernel, peer: FakeSocket) -> None:
    run(
        kernel,
        lambda: peer.inbox.append(b"bad"),
        lambda: peer.inbox.append(error(errno.ECONNRESET)),
    )
    assert peer.closed


def test_a_peer_gone_before_the_write_side_is_shut(kernel: Kernel, peer: FakeSocket) -> None:
    def bad_and_gone() -> None:
        peer.inbox.append(b"bad")
        peer.send_error = error(errno.EPIPE)

    run(kernel, bad_and_gone)
    assert peer.closed


def test_an_event_for_a_descriptor_closed_in_the_same_batch_does_not_reach_its_successor(
    kernel: Kernel,
) -> None:
    """uvloop#645: replies went to whoever got the descriptor's number next."""
    first, second = kernel.connect(), kernel.connect()
    newcomer: list[FakeSocket] = []

    def one_batch() -> None:
        # While the first is dealt with, the second ends and a third connects;
        # the batch still holds another event for the second's number.
        first.inbox.append(b"00001a")
        second.inbox.append(b"")
        newcomer.append(kernel.connect())
        kernel.injected = [(second.fd, READ), (first.fd, READ), (second.fd, READ | ERROR)]

    def after() -> None:
        assert second.closed
        assert not newcomer[0].closed
        newcomer[0].inbox.append(b"00002hi")

    run(kernel, one_batch, after)
    assert first.received == b"00001a"
    assert newcomer[0].received == b"00002ih"


def test_spurious_and_stale_events_do_nothing(kernel: Kernel, peer: FakeSocket) -> None:
    run(
        kernel,
        lambda: kernel.injected.extend([(peer.fd, READ), (999, READ), (kernel.listener.fd, READ)]),
        lambda: kernel.injected.extend([(peer.fd, WRITE), (peer.fd, READ | WRITE)]),
        lambda: peer.inbox.append(b"00001a"),
    )
    assert peer.received == b"00001a"


def test_a_handler_that_fails_ends_its_connection_and_no_other(
    kernel: Kernel, peer: FakeSocket, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(payload: bytes) -> bytes:
        if payload == b"bad":
            raise RuntimeError("no such thing")
        return payload

    other = kernel.connect()
    run(
        kernel,
        lambda: peer.inbox.append(b"00002ok00003bad00002no"),
        lambda: other.inbox.append(b"00002ok"),
        handler=handler,
        linger=0.0,
    )
    assert peer.received == b"00002ok"
    assert other.received == b"00002ok"
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info
    assert "no such thing" in caplog.text


def fails_once(kernel: Kernel, code: int, *, at: int, fd: int) -> None:
    """Have the nth registration of a descriptor fail."""
    register, left = kernel.register, itertools.count(1)

    def failing(number: int, eventmask: int, /) -> None:
        if number == fd and next(left) == at:
            raise error(code)
        register(number, eventmask)

    kernel.register = failing  # type: ignore[method-assign]


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.ENOSPC])
def test_a_listener_that_cannot_be_watched_again_is_watched_a_moment_later(
    kernel: Kernel, code: int
) -> None:
    # The first time after a pause for want of descriptors, the second one at the start.
    for at in (2, 1):
        again = Kernel()
        again.edge = kernel.edge
        fails_once(again, code, at=at, fd=again.listener.fd)
        again.listener.queue.append(error(errno.EMFILE))
        late = again.connect()
        again.at(5 * PAUSE, lambda late=late: late.inbox.append(b"00003abc"))  # type: ignore[misc]
        run(again)
        assert late.received == b"00003cba"


def test_a_listener_that_cannot_be_watched_again_does_not_wait_for_another_deadline(
    kernel: Kernel,
) -> None:
    first, late = kernel.connect(), kernel.connect()
    fails_once(kernel, errno.ENOMEM, at=2, fd=kernel.listener.fd)
    kernel.at(1.0, lambda: first.inbox.append(b""))  # which makes room for the other
    kernel.at(1.0 + 2 * PAUSE, lambda: late.inbox.append(b"00003abc"))
    answered: list[bytes] = []
    kernel.at(1.1 + 2 * PAUSE, lambda: answered.append(bytes(late.received)))
    run(kernel, max_connections=1)
    assert answered == [b"00003cba"]


@pytest.mark.parametrize(
    ("watched", "code"), [("wake_up", errno.ENOMEM), ("listener", errno.EPERM)]
)
def test_a_loop_that_cannot_start_closes_its_listeners(
    kernel: Kernel, watched: str, code: int
) -> None:
    fails_once(kernel, code, at=1, fd=getattr(kernel, watched).fd)
    loop = kernel.loop()
    with pytest.raises(OSError, match=os.strerror(code)):
        loop.run()
    assert_nothing_is_left(kernel, loop)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_without_descriptors_accepting_pauses_says_so_once_and_resumes(
    kernel: Kernel, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    late = FakeSocket(kernel)
    kernel.steps.append(lambda: kernel.listener.queue.extend([error(code), error(code), late]))
    kernel.at(1.9 * PAUSE, lambda: accepted.append(late.fd))
    kernel.at(2.1 * PAUSE, lambda: accepted.append(late.fd))
    kernel.at(1.0, lambda: late.inbox.append(b"00001a"))
    accepted: list[int] = []
    run(kernel)
    assert accepted[0] == -1
    assert accepted[1] > 0
    assert late.received == b"00001a"
    assert caplog.text.count("cannot accept") == 1
    assert kernel.polls < 20


def test_a_connection_that_failed_in_the_queue_is_passed_over(kernel: Kernel) -> None:
    kernel.listener.queue.append(error(errno.ECONNABORTED))
    peer = kernel.connect()
    run(kernel, lambda: peer.inbox.append(b"00001a"))
    assert peer.received == b"00001a"


def test_a_broken_listener_ends_the_loop_and_lets_go_of_everything(
    kernel: Kernel, peer: FakeSocket
) -> None:
    with pytest.raises(OSError, match="Bad file"):
        run(kernel, lambda: kernel.listener.queue.append(error(errno.EBADF)))
    assert peer.closed
    assert not kernel.interest


def test_stopping_waits_for_replies_that_the_kernel_refused(
    kernel: Kernel, peer: FakeSocket
) -> None:
    idle = kernel.connect()

    def taken() -> None:
        assert idle.closed
        peer.room = 100
        peer.inbox.append(b"")

    peer.room = 1
    kernel.steps.append(lambda: peer.inbox.append(b"00001a"))
    loop = kernel.loop()
    kernel.steps.extend([loop.stop, taken])
    loop.run()
    assert peer.received == b"00001a"
    assert peer.closed


@pytest.mark.parametrize(("stops", "ends_at"), [(1, 10.0), (2, 0.0)])
def test_stopping_ends_in_time_and_at_once_when_asked_twice(
    kernel: Kernel, peer: FakeSocket, stops: int, ends_at: float
) -> None:
    peer.room = 1
    kernel.steps.append(lambda: peer.inbox.append(b"00001a"))
    loop = kernel.loop(drain=10.0)
    kernel.steps.extend([loop.stop] * stops)
    loop.run()
    assert kernel.now == ends_at
    assert peer.closed


def test_an_ipv6_peer_is_named_as_people_write_it(
    kernel: Kernel, peer: FakeSocket, caplog: pytest.LogCaptureFixture
) -> None:
    accept = kernel.listener.accept
    kernel.listener.accept = lambda: (accept()[0], ("::1", 4000, 0, 0))  # type: ignore[assignment,method-assign,return-value]
    with caplog.at_level(logging.DEBUG, logger="nbnet"):
        run(kernel, lambda: peer.inbox.append(b"bad"), linger=0.0)
    assert "[::1]:4000: closing after 0 requests, protocol error: expected a digit" in caplog.text


def test_no_more_is_answered_in_a_turn_than_allowed_and_others_come_between(
    kernel: Kernel, peer: FakeSocket
) -> None:
    other = kernel.connect()
    order: list[bytes] = []

    def handler(payload: bytes) -> bytes:
        order.append(payload)
        return payload

    def pipeline() -> None:
        peer.inbox.append(b"00001a00001b00001c00001d00001e")
        other.inbox.append(b"00001z")

    run(kernel, pipeline, handler=handler, frames_per_turn=2)
    assert peer.received == b"00001a00001b00001c00001d00001e"
    assert order.index(b"z") <= 4
    assert b"".join(order).replace(b"z", b"") == b"abcde"


def test_while_requests_wait_nothing_more_is_read(kernel: Kernel, peer: FakeSocket) -> None:
    reads: list[int] = []

    def handler(payload: bytes) -> bytes:
        reads.append(peer.recvs)
        return payload

    run(
        kernel,
        lambda: peer.inbox.extend([b"00001a00001b00001c", b"00001d"]),
        handler=handler,
        frames_per_turn=1,
    )
    assert peer.received == b"00001a00001b00001c00001d"
    assert reads[:3] == [reads[0]] * 3


def test_what_comes_behind_waiting_requests_is_acted_on_after_them(
    kernel: Kernel, peer: FakeSocket
) -> None:
    other = kernel.connect()
    peer.room = other.room = 3

    def send() -> None:
        peer.inbox.append(b"00001a00001b00001cX")
        other.inbox.extend([b"00001a00001b00001c", b""])

    def make_room() -> None:
        peer.room = other.room = 100

    run(
        kernel,
        send,
        make_room,
        frames_per_turn=1,
        linger=0.0,
    )
    assert peer.received == other.received == b"00001a00001b00001c"
    assert peer.write_shut
    assert other.closed


def test_a_handler_that_makes_much_of_little_does_not_fill_the_memory(
    kernel: Kernel, peer: FakeSocket
) -> None:
    most: list[int] = []

    def handler(_: bytes) -> bytes:
        most.append(loop.counters.unsent)
        return bytes(10_000)

    loop = kernel.loop(handler, high_water=20_000, low_water=10_000)
    peer.room = 0
    kernel.steps.append(lambda: peer.inbox.append(b"00001a" * 1000))
    kernel.steps.append(lambda: setattr(peer, "room", 1 << 30))
    kernel.steps.append(loop.stop)
    loop.run()
    assert_nothing_is_left(kernel, loop)
    assert len(peer.received) == 1000 * 10_005
    assert max(most) <= 20_000 + 32 * 10_005


def test_too_much_output_of_all_together_ends_who_adds_to_it(
    kernel: Kernel, peer: FakeSocket
) -> None:
    peers = [peer, *(kernel.connect() for _ in range(3))]

    def send() -> None:
        for each in peers:
            each.room = 0
            each.inbox.append(b"00100" + bytes(100))

    def make_room() -> None:
        for each in peers:
            each.room = 1000

    loop = run(kernel, send, make_room, max_output=250)
    assert loop.counters.shed == 2
    assert sum(len(each.received) == 105 for each in peers) == 2


@pytest.mark.parametrize(
    ("sent", "kind", "seconds"),
    [
        (b"", "first_byte", 6.0),
        (b"0", "frame", 1.0),
        (b"00001a00002b", "frame", 1.0),
        (b"00001a", "idle", 3.0),
        (b"\r\n", "idle", 3.0),
        (b"bad", "linger", 4.0),
    ],
)
def test_deadlines(
    kernel: Kernel, peer: FakeSocket, sent: bytes, kind: str, seconds: float
) -> None:
    closed: list[bool] = []
    if sent:
        kernel.steps.append(lambda: peer.inbox.append(sent))
    kernel.at(seconds - 0.01, lambda: closed.append(peer.closed))
    kernel.at(seconds + 2 * TICK, lambda: closed.append(peer.closed))
    loop = run(
        kernel,
        first_byte_timeout=6.0,
        frame_timeout=1.0,
        idle_timeout=3.0,
        write_timeout=2.0,
        linger=4.0,
    )
    assert closed == [False, True]
    assert getattr(loop.counters, f"{kind}_timeouts") == 1


def test_a_frame_that_trickles_in_has_one_deadline_for_all_its_bytes(
    kernel: Kernel, peer: FakeSocket
) -> None:
    for tenths in range(1, 30):
        kernel.at(tenths / 10, lambda: None if peer.closed else peer.inbox.append(b"0"))
    loop = run(kernel, lambda: peer.inbox.append(b"99999"), frame_timeout=2.0, idle_timeout=1.0)
    assert loop.counters.frame_timeouts == 1


def test_output_that_moves_is_not_given_up_and_output_that_does_not_is(
    kernel: Kernel, peer: FakeSocket
) -> None:
    closed: list[bool] = []
    peer.room = 0
    for second in range(1, 5):
        kernel.at(float(second), lambda: setattr(peer, "room", 1))
    kernel.at(4.9, lambda: closed.append(peer.closed))
    kernel.at(6.3, lambda: closed.append(peer.closed))
    loop = run(kernel, lambda: peer.inbox.append(b"00003abc"), write_timeout=2.0)
    assert closed == [False, True]
    assert peer.received == b"0000"
    assert loop.counters.write_timeouts == 1


@pytest.mark.parametrize("batch", [1, 2, 2048])
def test_what_came_in_time_is_not_late_because_the_process_stood_still(
    kernel: Kernel, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where more connections have something to read than a batch of events holds."""
    monkeypatch.setattr("nbnet.loop.MAX_EVENTS", batch)
    peers = [kernel.connect() for _ in range(5)]
    late = kernel.connect()

    def stand_still() -> None:
        for each in peers:
            each.inbox.append(b"c")
        kernel.now += 60.0
        kernel.stalled = True

    for each in (*peers, late):
        kernel.steps.append(partial(each.inbox.append, b"00003ab"))
    loop = run(kernel, stand_still, frame_timeout=5.0, idle_timeout=9.0)
    assert [each.received for each in peers] == [b"00003cba"] * 5
    assert loop.counters.frame_timeouts == 1, "whose rest has not come"


def test_deadlines_are_kept_though_every_batch_is_full(
    kernel: Kernel, peer: FakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbnet.loop.MAX_EVENTS", 1)
    busy = kernel.connect()
    answer = busy.send

    def asks_again(data: bytes | bytearray | memoryview) -> int:
        if not peer.closed:
            kernel.now += 0.1
            busy.inbox.append(b"00001a")
        return answer(data)

    monkeypatch.setattr(busy, "send", asks_again)
    kernel.steps.append(lambda: peer.inbox.append(b"0"))
    kernel.steps.append(lambda: busy.inbox.append(b"00001a"))
    loop = run(kernel, frame_timeout=2.0)
    assert loop.counters.frame_timeouts == 1
    assert 20 <= loop.counters.requests <= 40


def test_requests_put_off_the_idle_deadline_without_touching_a_timer(
    kernel: Kernel, peer: FakeSocket
) -> None:
    for tenths in range(100):
        kernel.at(tenths / 10, lambda: peer.inbox.append(b"00001a"))
    loop = run(kernel, idle_timeout=1.0)
    assert loop.counters.idle_timeouts == 0
    assert peer.received == b"00001a" * 100


def test_a_deadline_of_nought_is_none(kernel: Kernel, peer: FakeSocket) -> None:
    kernel.steps.append(lambda: peer.inbox.append(b"00001a0"))
    kernel.at(100_000.0, lambda: peer.inbox.append(b"0001b"))
    run(kernel, first_byte_timeout=0, frame_timeout=0, idle_timeout=0, write_timeout=0)
    assert peer.received == b"00001a00001b"


def test_at_the_cap_newcomers_wait_until_one_leaves(kernel: Kernel, peer: FakeSocket) -> None:
    second = kernel.connect()
    run(
        kernel,
        lambda: peer.inbox.append(b"00001a"),
        lambda: peer.inbox.append(b""),
        lambda: second.inbox.append(b"00001b"),
        max_connections=1,
    )
    assert second.received == b"00001b"
    assert kernel.polls < 20


def test_at_the_cap_newcomers_are_refused_if_so_asked(kernel: Kernel, peer: FakeSocket) -> None:
    second = kernel.connect()
    loop = run(kernel, lambda: peer.inbox.append(b"00001a"), max_connections=1, refuse=True)
    assert second.closed
    assert peer.received == b"00001a"
    assert (loop.counters.accepted, loop.counters.refused_full) == (2, 1)


def test_an_address_has_a_cap_of_its_own_and_gets_its_place_back(
    kernel: Kernel, peer: FakeSocket
) -> None:
    second = kernel.connect()
    third = FakeSocket(kernel)
    loop = run(
        kernel,
        lambda: peer.inbox.append(b""),
        lambda: kernel.listener.queue.append(third),
        lambda: third.inbox.append(b"00001c"),
        max_per_ip=1,
    )
    assert second.closed
    assert not second.received
    assert third.received == b"00001c"
    assert loop.counters.refused_per_ip == 1


def test_a_descriptor_that_the_poller_cannot_watch_is_refused(
    kernel: Kernel, peer: FakeSocket, caplog: pytest.LogCaptureFixture
) -> None:
    register = kernel.register

    def limited(fd: int, eventmask: int, /) -> None:
        if fd == 6:
            raise DescriptorError("too high")
        register(fd, eventmask)

    kernel.register = limited  # type: ignore[method-assign]
    second = kernel.connect()
    loop = run(kernel, lambda: peer.inbox.append(b"00001a"))
    assert second.closed
    assert peer.received == b"00001a"
    assert loop.counters.refused_full == 1
    assert "cannot accept with 1 connections open: too high" in caplog.text


def test_stopping_answers_what_has_come_and_what_was_begun(
    kernel: Kernel, peer: FakeSocket
) -> None:
    begun = kernel.connect()
    loop = kernel.loop()

    def stop_with_input() -> None:
        peer.inbox.append(b"00001a")
        loop.stop()

    kernel.steps.append(lambda: begun.inbox.append(b"00001a0000"))
    kernel.steps.append(stop_with_input)
    kernel.steps.append(lambda: begun.inbox.append(b"2bc"))
    kernel.steps.append(lambda: begun.inbox.append(b""))
    loop.run()
    assert_nothing_is_left(kernel, loop)
    assert peer.received == b"00001a"
    assert begun.received == b"00001a00002cb"


def test_stopping_answers_requests_that_wait_for_their_turn(
    kernel: Kernel, peer: FakeSocket
) -> None:
    loop: Loop

    def handler(payload: bytes) -> bytes:
        if payload == b"a":
            loop.stop()
        return payload

    loop = kernel.loop(handler, frames_per_turn=1, linger=0.0)
    kernel.steps.append(lambda: peer.inbox.append(b"00001a00001b00001c"))
    loop.run()
    assert_nothing_is_left(kernel, loop)
    assert peer.received == b"00001a00001b00001c"


def test_more_input_than_one_read_takes_is_read_to_the_end(
    kernel: Kernel, peer: FakeSocket
) -> None:
    payload = bytes(99_999)
    run(kernel, lambda: peer.inbox.append(b"99999" + payload + b"00001a"))
    assert peer.received == b"99999" + payload + b"00001a"


@pytest.mark.parametrize("timeouts", [{"frame_timeout": 1.0}, {"idle_timeout": 1.0}])
def test_a_peer_is_not_blamed_for_the_time_in_which_it_was_not_read(
    kernel: Kernel, peer: FakeSocket, timeouts: dict[str, Any]
) -> None:
    def make_room() -> None:
        assert kernel.waits_for(peer) == WRITE
        peer.room = 1 << 20

    def go_on() -> None:
        assert not peer.closed
        peer.inbox.append(b"2bc")

    peer.room = 0
    kernel.steps.append(lambda: peer.inbox.append(b"00100" + bytes(100) + b"0000"))
    kernel.at(5.0, make_room)
    kernel.at(5.5, go_on)
    loop = run(kernel, handler=reverse, high_water=50, low_water=10, **timeouts)
    assert peer.received.endswith(b"00002cb")
    assert loop.counters.frame_timeouts == loop.counters.idle_timeouts == 0


def test_a_connection_that_was_just_used_is_not_cut_off_when_the_server_stops(
    kernel: Kernel, peer: FakeSocket
) -> None:
    def asks_on() -> None:
        assert peer.write_shut
        assert not peer.closed
        peer.inbox.extend([b"00001b", b""])  # too late, and no reason for a reset

    loop = kernel.loop()
    kernel.steps.extend([lambda: peer.inbox.append(b"00001a"), loop.stop, asks_on])
    loop.run()
    assert_nothing_is_left(kernel, loop)
    assert peer.received == b"00001a"
    assert kernel.now < 0.5


def test_a_connection_that_does_not_close_holds_up_a_stop_for_a_second_only(
    kernel: Kernel, peer: FakeSocket
) -> None:
    loop = kernel.loop()
    kernel.steps.extend([lambda: peer.inbox.append(b"00001a"), loop.stop])
    loop.run()
    assert_nothing_is_left(kernel, loop)
    assert 1.0 <= kernel.now <= 1.0 + 2 * TICK


def test_a_connection_idle_for_a_while_is_ended_at_once_when_the_server_stops(
    kernel: Kernel, peer: FakeSocket
) -> None:
    silent = kernel.connect()
    kernel.steps.append(lambda: peer.inbox.append(b"00001a"))
    kernel.at(2.0, lambda: None)
    run(kernel)
    assert peer.closed
    assert silent.closed
    assert not peer.write_shut
    assert kernel.now == 2.0


def test_what_goes_on_coming_does_not_put_off_a_stop(kernel: Kernel, peer: FakeSocket) -> None:
    answered: list[bytes] = []

    def handler(payload: bytes) -> bytes:
        answered.append(payload)
        if len(answered) == 10:
            loop.stop()
        if len(answered) < 1000:
            peer.inbox.append(b"00001a")  # the next one, at once
        return payload

    loop = kernel.loop(handler)
    peer.inbox.append(b"00001a")
    loop.run()
    assert_nothing_is_left(kernel, loop)
    assert len(answered) < 100


def test_all_replies_before_a_fault_of_the_handler_are_counted(
    kernel: Kernel, peer: FakeSocket
) -> None:
    def handler(payload: bytes) -> bytes:
        if payload == b"b":
            raise RuntimeError
        return payload

    loop = run(
        kernel, lambda: peer.inbox.append(b"00001a" * 500 + b"00001b"), handler=handler, linger=0.0
    )
    assert peer.received == b"00001a" * 500
    assert loop.counters.requests == 500


def test_a_peer_is_not_blamed_for_the_time_in_which_its_requests_waited(
    kernel: Kernel, peer: FakeSocket
) -> None:
    def slow(payload: bytes) -> bytes:
        kernel.now += 1.0
        return payload

    def go_on() -> None:
        assert not peer.closed
        peer.inbox.append(b"1b")

    kernel.steps.append(lambda: peer.inbox.append(b"00001a" * 5 + b"0000"))
    kernel.at(6.0, go_on)
    loop = run(kernel, handler=slow, frames_per_turn=1, frame_timeout=2.5)
    assert peer.received == b"00001a" * 5 + b"00001b"
    assert loop.counters.frame_timeouts == 0


def test_those_who_send_little_do_not_wait_for_those_who_send_much(kernel: Kernel) -> None:
    large = b"99999" + b"x" * 99_999
    many = [kernel.connect() for _ in range(40)]
    peer = kernel.connect()
    turns: list[int] = []  # bytes that were taken of the others when the peer was answered

    def taken() -> int:
        return sum(each.taken for each in many)

    def handler(payload: bytes) -> bytes:
        if payload == b"small":
            turns.append(taken())
            if len(turns) < 10:
                peer.inbox.append(b"00005small")
        return payload

    def begin() -> None:
        for each in many:
            each.inbox.append(large * 5)
        peer.inbox.append(b"00005small")

    run(kernel, begin, handler=handler)
    assert len(turns) == 10
    # Each of its turns came after some of what the others sent, not after a round of all.
    steps = [after - before for before, after in itertools.pairwise(turns[2:])]
    assert max(steps) <= LARGE_BUDGET + 2 * READ_SIZE
    # And nobody was forgotten, nor much preferred.
    assert all(each.received == large * 5 for each in many)


def test_those_who_send_much_take_turns(kernel: Kernel) -> None:
    large = b"99999" + b"x" * 99_999
    many = [kernel.connect() for _ in range(20)]
    spread: list[int] = []

    def handler(payload: bytes) -> bytes:
        taken = [each.taken for each in many]
        spread.append(max(taken) - min(taken))
        return payload

    def begin() -> None:
        for each in many:
            each.inbox.append(large * 5)

    run(kernel, begin, handler=handler)
    assert max(spread) <= 3 * READ_SIZE


def test_who_was_sampled_or_once_sent_much_still_counts_as_sending_little(
    kernel: Kernel, peer: FakeSocket
) -> None:
    kernel.edge = False  # else a message takes two turns, and the samples are of the others
    sizes: list[int] = []
    loop = kernel.loop()

    def look() -> None:
        sizes.append(loop._channels[peer.fd].read_size)

    kernel.steps.append(lambda: peer.inbox.append(b"00500" + b"x" * 500))
    kernel.steps.append(look)
    for _ in range(2 * SAMPLED):
        kernel.steps.append(lambda: peer.inbox.append(b"00001a"))
    kernel.steps.extend([look, loop.stop])
    loop.run()
    assert sizes == [READ_SIZE, FIRST_READ_SIZE]


def test_a_connection_that_cannot_be_watched_again_ends_alone(
    kernel: Kernel, peer: FakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = kernel.connect()
    real = kernel.modify

    def modify(fd: int, eventmask: int, /) -> None:
        if fd == peer.fd:
            raise error(errno.ENOMEM)
        real(fd, eventmask)

    monkeypatch.setattr(kernel, "modify", modify)
    peer.room = other.room = 3
    run(
        kernel,
        lambda: peer.inbox.append(b"00001a"),
        lambda: other.inbox.append(b"00001b"),
        lambda: setattr(other, "room", 100),
    )
    assert peer.closed
    assert other.received == b"00001b"


def test_leaving_is_no_first_stop(kernel: Kernel, peer: FakeSocket) -> None:
    """A server that handed over and is then stopped still gives its last peers their time."""
    loop = kernel.loop(drain=5.0)
    peer.room = 3
    kernel.steps.append(lambda: peer.inbox.append(b"00001a"))

    def leave() -> None:
        loop.leave()
        kernel.wake_up.set()

    kernel.at(1.0, leave)
    kernel.at(2.0, loop.stop)
    kernel.at(3.0, lambda: setattr(peer, "room", 100))
    kernel.at(3.5, lambda: peer.inbox.append(b""))
    loop.run()
    assert_nothing_is_left(kernel, loop)
    assert peer.received == b"00001a"


def test_a_loop_that_gave_up_does_not_wait_for_arrivals(kernel: Kernel) -> None:
    loop = kernel.loop(drain=1.0)
    loop.arrivals = 1
    kernel.steps.append(loop.stop)
    loop.run()
    assert kernel.now == 1.0
    assert kernel.polls < 10


def test_room_is_kept_for_connections_that_are_to_be_adopted(kernel: Kernel) -> None:
    loop = kernel.loop(max_connections=2)
    loop.expect(1)
    first, second, adopted = kernel.connect(), kernel.connect(), FakeSocket(kernel)

    def adopt() -> None:
        assert len(kernel.listener.queue) == 1
        adopted.fd = kernel.allocate(adopted)
        loop.adopt(adopted, "somebody", requests=0, unread=b"00001a", unsent=b"")
        loop.expect(0)

    kernel.steps.extend([adopt, lambda: first.inbox.append(b""), loop.stop])
    loop.run()
    assert_nothing_is_left(kernel, loop)
    assert adopted.received == b"00001a"
    assert loop.counters.accepted == 2
    assert second.closed


@pytest.mark.parametrize("stopping", [False, True])
def test_a_connection_that_is_adopted_while_all_ends_is_served_and_ended(
    kernel: Kernel, stopping: bool
) -> None:
    loop = kernel.loop(max_per_ip=1)
    adopted = FakeSocket(kernel)
    loop.arrivals = 1

    def adopt() -> None:
        adopted.fd = kernel.allocate(adopted)
        loop.adopt(adopted, Target("10.0.0.1", 5), requests=3, unread=b"00001a", unsent=b"")
        loop.arrivals = 0

    kernel.steps.extend([loop.stop, adopt] if stopping else [adopt, loop.stop])
    loop.run()
    assert adopted.received == b"00001a"
    assert_nothing_is_left(kernel, loop)


def test_a_connection_that_cannot_be_adopted_is_closed_and_counted(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = kernel.loop()
    adopted = FakeSocket(kernel)
    register = kernel.register

    def no_room(fd: int, eventmask: int, /) -> None:
        if fd == adopted.fd:
            raise error(errno.ENOSPC)
        register(fd, eventmask)

    def adopt() -> None:
        adopted.fd = kernel.allocate(adopted)
        loop.adopt(adopted, "somebody", requests=0, unread=b"", unsent=b"")

    monkeypatch.setattr(kernel, "register", no_room)
    kernel.steps.extend([adopt, loop.stop])
    loop.run()
    assert adopted.closed
    assert (loop.counters.adopted, loop.counters.refused_full) == (0, 1)
    assert_nothing_is_left(kernel, loop)


def test_of_two_connections_of_an_address_one_may_end(kernel: Kernel) -> None:
    peers = [kernel.connect(), kernel.connect()]
    loop = run(kernel, lambda: peers[0].inbox.append(b""), max_per_ip=2)
    assert (loop.counters.accepted, loop.counters.refused_per_ip) == (2, 0)


def test_a_connection_that_is_lost_twice_over_ends_once(
    kernel: Kernel, peer: FakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is to linger, the poller cannot watch it, and the peer has reset it meanwhile."""
    real = kernel.modify

    def modify(fd: int, eventmask: int, /) -> None:
        if fd == peer.fd and not eventmask & WRITE:
            raise error(errno.ENOMEM)
        real(fd, eventmask)

    def shutdown(_how: int, /) -> None:
        raise error(errno.ENOTCONN)

    monkeypatch.setattr(kernel, "modify", modify)
    monkeypatch.setattr(peer, "shutdown", shutdown)
    peer.room = 3
    loop = run(kernel, lambda: peer.inbox.append(b"00001aX"), lambda: setattr(peer, "room", 100))
    assert peer.closed
    assert peer.received == b"00001a"
    assert loop.counters.lost == 1


def test_what_ends_by_a_deadline_as_the_time_to_stop_is_over_ends_once(
    kernel: Kernel, peer: FakeSocket
) -> None:
    begun = kernel.connect()
    peer.room = 3
    loop = kernel.loop(drain=5.0, write_timeout=2.0)

    def send() -> None:
        peer.inbox.append(b"00003abc")
        begun.inbox.append(b"00003a")

    kernel.steps.extend([send, loop.stop, lambda: setattr(kernel, "now", kernel.now + 60.0)])
    loop.run()
    assert_nothing_is_left(kernel, loop)
    assert peer.closed
    assert begun.closed
    assert loop.counters.write_timeouts == 1

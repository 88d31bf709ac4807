"""The event loop on a kernel in memory: what depends on timing and order."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

import pytest
from support.kernel import FakeSocket, Kernel, error

from nbnet.handlers import Handler, reverse
from nbnet.limits import Limits
from nbnet.loop import ACCEPT_PAUSE, Loop
from nbnet.pollers import ERROR, READ, WRITE


def run(
    kernel: Kernel, *steps: Callable[[], object], handler: Handler = reverse, **limits: float
) -> Loop:
    """Run a loop through the steps, then stop it; everything must be let go of."""
    loop = Loop(
        kernel.listener,
        handler,
        poller=kernel,
        clock=kernel.clock,
        wake_up=kernel.wake_up,
        limits=Limits(**limits),  # type: ignore[arg-type]  # ints and floats by name
    )
    kernel.steps.extend(steps)
    kernel.steps.append(loop.stop)
    loop.run()
    assert not kernel.interest
    assert set(kernel.open.values()) == {kernel.listener, kernel.wake_up}
    assert kernel.listener.closed
    assert loop.connections == 0
    return loop


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def peer(kernel: Kernel) -> FakeSocket:
    return kernel.connect()


def test_a_request_is_answered(kernel: Kernel, peer: FakeSocket) -> None:
    loop = run(kernel, lambda: peer.inbox.append(b"00003abc"))
    assert peer.received == b"00003cba"
    assert (loop.accepted, loop.requests) == (1, 1)


def test_an_answer_costs_one_poll_one_read_and_one_send(kernel: Kernel, peer: FakeSocket) -> None:
    def request() -> None:
        polls.append(kernel.polls)
        peer.inbox.append(b"00003abc")

    polls: list[int] = []
    run(kernel, request, lambda: polls.append(kernel.polls))
    # The poll that reports the request, and the one that waits for the next.
    assert polls[1] - polls[0] == 1
    assert (peer.recvs, peer.sends) == (1, 1)


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
        assert kernel.interest[peer.fd] == READ | WRITE
        peer.room = 1 << 20

    def flushed() -> None:
        assert peer.received == b"00003cba00002ed"
        assert kernel.interest[peer.fd] == READ

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
        assert kernel.interest[peer.fd] == WRITE
        peer.inbox.append(b"00001a")  # is not read now
        peer.room = 100

    def between_the_marks() -> None:
        assert kernel.interest[peer.fd] == WRITE
        assert peer.inbox
        peer.room = 60

    def under_the_low_mark() -> None:
        assert kernel.interest[peer.fd] == READ | WRITE
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
    closed_at: list[float] = []
    peer_close = peer.close

    def close() -> None:
        closed_at.append(kernel.now)
        peer_close()

    peer.close = close  # type: ignore[method-assign]
    kernel.at_end = lambda: None
    loop = Loop(
        kernel.listener,
        reverse,
        poller=kernel,
        clock=kernel.clock,
        wake_up=kernel.wake_up,
        limits=Limits(linger=2.0),
    )
    kernel.steps.append(lambda: peer.inbox.append(b"bad"))
    kernel.at_end = loop.stop
    loop.run()
    assert closed_at == [2.0]


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


def test_a_reset_while_reading_is_paused_does_not_spin(kernel: Kernel, peer: FakeSocket) -> None:
    def reset() -> None:
        assert kernel.interest[peer.fd] == WRITE
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


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_without_descriptors_accepting_pauses_says_so_once_and_resumes(
    kernel: Kernel, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    late = FakeSocket(kernel)

    def full() -> None:
        kernel.listener.queue.extend([error(code), error(code), late])

    def resumed() -> None:
        assert kernel.now == pytest.approx(2 * ACCEPT_PAUSE)
        late.inbox.append(b"00001a")

    kernel.steps.append(full)
    loop = Loop(
        kernel.listener,
        reverse,
        poller=kernel,
        clock=kernel.clock,
        wake_up=kernel.wake_up,
        limits=Limits(),
    )
    ends = iter([resumed, loop.stop])
    kernel.at_end = lambda: next(ends)()  # noqa: PLW0108
    loop.run()
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
    loop = Loop(
        kernel.listener,
        reverse,
        poller=kernel,
        clock=kernel.clock,
        wake_up=kernel.wake_up,
        limits=Limits(),
    )
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
    loop = Loop(
        kernel.listener,
        reverse,
        poller=kernel,
        clock=kernel.clock,
        wake_up=kernel.wake_up,
        limits=Limits(drain=10.0),
    )
    kernel.steps.extend([loop.stop] * stops)
    loop.run()
    assert kernel.now == ends_at
    assert peer.closed


def test_an_ipv6_peer_is_named_as_people_write_it(
    kernel: Kernel, peer: FakeSocket, caplog: pytest.LogCaptureFixture
) -> None:
    accept = kernel.listener.accept
    kernel.listener.accept = lambda: (accept()[0], ("::1", 4000, 0, 0))  # type: ignore[assignment,method-assign,return-value]
    with caplog.at_level(logging.INFO, logger="nbnet"):
        run(kernel, lambda: peer.inbox.append(b"bad"), linger=0.0)
    assert "[::1]:4000: closing, protocol error: expected a digit" in caplog.text

"""The real load loop in a world in memory: what depends on timing and order.

``run`` of ``fakes`` checks after every run that each request sent was counted
once, that the snapshots add up, and that every socket was closed once.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loadgen.connection import BAD_HEADER, TIMEOUT, UNEXPECTED_BYTES, WRONG_LENGTH, WRONG_PAYLOAD
from loadgen.engine import CONNECTING_AT_ONCE, READ_SIZE, SURPLUS_WAIT
from loadgen.histogram import bucket_indices
from loadgen.recording import FOLD_AT
from loadgen.tally import MISMATCHES_KEPT, Mismatch, Phase
from loadgen.traffic import reversed_text
from nbnet.pollers import ERROR, READ, WRITE

from .fakes import (
    LATENCY,
    MS,
    FakeSocket,
    World,
    connects,
    fails_to_connect,
    honest,
    never_connects,
    only_at,
    os_error,
    run,
    silent,
)

FRAME, EXPECTED = reversed_text(b"abc")


def bucket(nanoseconds: int) -> int:
    return bucket_indices([nanoseconds])[0]


def says(*pieces: bytes) -> Callable[[FakeSocket], None]:
    return lambda socket: socket.say(*pieces)


# Connecting ------------------------------------------------------------------


def test_every_connection_is_held_and_its_time_recorded() -> None:
    world = World()
    world.connect_takes = 2 * MS
    counts = run(world, connections=3).counts
    assert (counts.held, counts.failed_to_connect, counts.lost) == (3, 0, 0)
    assert counts.connect == {bucket(2 * MS): 3}


def test_the_time_to_connect_counts_from_before_the_call_that_connects() -> None:
    world = World()
    world.dial_takes, world.connect_takes = 3 * MS, 2 * MS
    assert run(world).counts.connect == {bucket(5 * MS): 1}


def test_only_some_hundred_connections_are_begun_at_once() -> None:
    world = World()
    pending: list[int] = []
    dial = world.dial

    def counting_dial() -> FakeSocket:
        pending.append(sum(not socket.connected for socket in world.sockets))
        return dial()

    world.dial = counting_dial  # type: ignore[method-assign]  # to look in at each call
    run(world, connections=2 * CONNECTING_AT_ONCE + 3, duration=0.001)
    assert len(pending) == 2 * CONNECTING_AT_ONCE + 3
    assert max(pending) == CONNECTING_AT_ONCE - 1


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ECONNREFUSED, "connect: refused"),
        (errno.ENETUNREACH, "connect: Network is unreachable"),
        (errno.ETIMEDOUT, "connect: timeout"),
        (errno.EADDRNOTAVAIL, "connect: Cannot assign requested address"),
        (errno.EMFILE, "connect: Too many open files"),
    ],
)
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "later"])
def test_connections_that_fail_are_counted_by_kind(code: int, kind: str, at_once: bool) -> None:
    world = World()
    world.dials.extend([connects, os_error(code) if at_once else fails_to_connect(code)])
    counts = run(world, connections=3).counts
    assert (counts.held, counts.failed_to_connect) == (2, 1)
    assert counts.errors == {kind: 1}
    assert counts.verified > 0


def test_without_any_connection_nothing_is_measured() -> None:
    world = World()
    world.dials.extend([fails_to_connect(errno.ECONNREFUSED)] * 2)
    outcome = run(world, connections=2)
    assert outcome.counts.sent == 0
    assert outcome.elapsed == 0
    assert {snapshot.phase for snapshot in outcome.snapshots} == {Phase.DONE}


def test_connecting_that_gets_no_answer_ends_at_its_deadline() -> None:
    world = World()
    world.dials.extend([connects, never_connects])
    counts = run(world, connections=2, connect_timeout=0.5, duration=0.01).counts
    assert (counts.held, counts.failed_to_connect) == (1, 1)
    assert counts.errors == {"connect: timeout": 1}
    assert counts.verified == 11
    assert world.now == 500 * MS + 10 * MS + LATENCY + (LATENCY + SURPLUS_WAIT)


def test_connections_not_even_begun_by_the_deadline_count_as_failed() -> None:
    world = World()
    asked = CONNECTING_AT_ONCE + 88
    world.dials.extend([never_connects] * asked)
    counts = run(world, connections=asked, connect_timeout=0.5).counts
    assert len(world.sockets) == CONNECTING_AT_ONCE
    assert counts.errors == {"connect: timeout": asked}


def test_there_are_snapshots_while_connecting() -> None:
    world = World()
    world.connect_takes = 600 * MS
    snapshots = run(world).snapshots
    assert [s.phase for s in snapshots[:4]] == [Phase.CONNECTING] * 2 + [
        Phase.READY,
        Phase.DRAINING,
    ]
    assert [s.counts.held for s in snapshots[:3]] == [0, 0, 1]


@pytest.mark.parametrize(
    ("act", "kind"),
    [
        (lambda socket: socket.say(b"00003cba"), "unexpected bytes"),
        (lambda socket: socket.close_by_server(), "EOF"),
        (lambda socket: socket.reset_by_server(), "reset"),
    ],
    ids=["says something", "closes", "resets"],
)
def test_a_server_that_acts_before_any_request_loses_its_connection_at_once(
    act: Callable[[FakeSocket], None], kind: str
) -> None:
    def acts_early(socket: FakeSocket) -> None:
        connects(socket)
        act(socket)

    world = World()
    world.dials.extend([acts_early, never_connects])  # the second keeps the phase going
    counts = run(world, connections=2).counts
    assert (counts.held, counts.lost, counts.failed_to_connect) == (1, 1, 1)
    assert (counts.sent, counts.wrong, counts.failed) == (0, 0, 0)
    assert counts.errors[kind] == 1
    assert not world.sockets[0].received


def test_stopping_while_connecting_measures_nothing_and_blames_nobody() -> None:
    world = World()
    world.dials.extend([connects, never_connects])
    world.at(300 * MS, world.stop)
    outcome = run(world, connections=2)
    assert world.now == 300 * MS
    assert (outcome.counts.held, outcome.counts.failed_to_connect) == (1, 0)
    assert outcome.counts.sent == 0
    assert outcome.snapshots[-1].phase is Phase.DONE


# Measuring -------------------------------------------------------------------


def test_each_verified_reply_is_followed_by_the_next_request() -> None:
    world = World()
    outcome = run(world, connections=2, duration=0.01)
    counts = outcome.counts
    # Ten round trips in the time, and the request of the last is waited for.
    assert (counts.sent, counts.verified, counts.on_time) == (22, 22, 20)
    assert counts.latency == {bucket(LATENCY): 22}
    assert all(bytes(socket.received) == FRAME * 11 for socket in world.sockets)
    assert outcome.elapsed == 0.01
    assert counts.cpu_seconds == 0.0025
    assert not counts.errors


def test_a_request_costs_one_poll_one_read_and_one_send() -> None:
    world = World()
    run(world, duration=0.05)
    names = [name for name, _ in world.calls]
    first_reply = names.index("recv")
    assert names[first_reply : first_reply + 150] == ["recv", "send", "poll"] * 50


@pytest.mark.parametrize("cut", range(1, len(EXPECTED)))
def test_a_reply_in_two_pieces_is_verified(cut: int) -> None:
    world = World(server=only_at(3, says(EXPECTED[:cut], EXPECTED[cut:])))
    counts = run(world, connections=2).counts
    assert counts.verified == counts.sent == 22
    assert not counts.errors


# How fast examples are made says nothing about the code.
@settings(
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    size=st.integers(1, 40) | st.sampled_from([65_530, 65_531, 65_536, 99_999]),
    cuts=st.lists(st.lists(st.integers(min_value=1, max_value=100_003), max_size=8), min_size=1),
)
def test_however_replies_are_cut_each_is_verified(size: int, cuts: list[list[int]]) -> None:
    message = reversed_text((bytes(range(251)) * 400)[:size])

    def serve(socket: FakeSocket, request: int) -> None:
        ends = sorted({cut % len(message.expected) for cut in cuts[request % len(cuts)]} - {0})
        starts = [0, *ends]
        pieces = [
            message.expected[start:end]
            for start, end in zip(starts, [*ends, len(message.expected)], strict=True)
        ]
        socket.say(*pieces)

    world = World(message, serve)
    counts = run(world, connections=2, duration=0.0025).counts
    assert counts.verified == counts.sent == 6
    assert (counts.lost, counts.wrong) == (0, 0)


def test_replies_that_take_several_reads_are_verified() -> None:
    world = World(reversed_text(bytes(range(250)) * 399))
    assert 2 * len(world.message.expected) > READ_SIZE
    counts = run(world, pipeline=2).counts
    assert counts.verified == counts.sent > 1


@pytest.mark.parametrize(
    ("pieces", "kind", "got"),
    [
        ((b"00003abc",), WRONG_PAYLOAD, b"00003abc"),
        ((b"00003cbX",), WRONG_PAYLOAD, b"00003cbX"),
        ((b"00003c", b"ba!"), UNEXPECTED_BYTES, b"!"),
        ((b"0", b"0003cbX"), WRONG_PAYLOAD, b"00003cbX"),
        ((b"00003c", b"00003cba"), WRONG_PAYLOAD, b"00003c00003cba"),
        ((b"00002cb",), WRONG_LENGTH, b"00002cb"),
        ((b"00004xcba",), WRONG_LENGTH, b"00004xcba"),
        ((b"00000",), WRONG_LENGTH, b"00000"),
        ((b"0001",), WRONG_LENGTH, b"0001"),
        ((b"+0003cba",), BAD_HEADER, b"+0003cba"),
        ((b"0", b"00", b"X"), BAD_HEADER, b"000X"),
        # No more is read than shows the fault.
        ((b"HTTP/1.1 400 Bad Request\r\n",), BAD_HEADER, b"HTTP/1.1 "),
        ((b"00003cba00003cba",), UNEXPECTED_BYTES, b"0"),
        ((b"00003cba\r\n",), UNEXPECTED_BYTES, b"\r"),
    ],
)
def test_a_wrong_reply_is_counted_kept_and_ends_its_connection(
    pieces: tuple[bytes, ...], kind: str, got: bytes
) -> None:
    world = World(server=only_at(3, says(*pieces)))
    outcome = run(world)
    counts = outcome.counts
    wrong = kind != UNEXPECTED_BYTES  # else the reply was right, but for what follows it
    assert (counts.sent, counts.verified, counts.wrong, counts.lost) == (3, 3 - wrong, wrong, 1)
    assert counts.errors == {kind: 1}
    asked = (FRAME, EXPECTED) if wrong else (b"", b"")
    assert outcome.mismatches == [Mismatch(1, kind, *asked, got)]


def test_bytes_that_come_after_a_right_reply_are_a_wrong_reply_to_the_next_request() -> None:
    world = World(server=only_at(3, says(EXPECTED, b"!")))
    outcome = run(world)
    assert (outcome.counts.sent, outcome.counts.verified, outcome.counts.wrong) == (4, 3, 1)
    assert outcome.mismatches == [Mismatch(1, BAD_HEADER, FRAME, EXPECTED, b"!")]


def test_only_the_first_wrong_replies_are_kept() -> None:
    world = World(server=only_at(2, says(b"no")))
    outcome = run(world, connections=MISMATCHES_KEPT + 5)
    assert outcome.counts.wrong == MISMATCHES_KEPT + 5
    assert [each.connection for each in outcome.mismatches] == [*range(1, MISMATCHES_KEPT + 1)]


@pytest.mark.parametrize("said", [b"", b"000", b"00003cb"], ids=["nothing", "header", "payload"])
@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (FakeSocket.close_by_server, "EOF"),
        (FakeSocket.reset_by_server, "reset"),
    ],
    ids=["closed", "reset"],
)
def test_a_connection_that_ends_before_a_reply_is_whole_fails_that_request(
    said: bytes, end: Callable[..., None], kind: str
) -> None:
    def act(socket: FakeSocket) -> None:
        if said:
            socket.say(said)
        end(socket, after=2 * LATENCY)

    counts = run(World(server=only_at(3, act))).counts
    assert (counts.sent, counts.verified, counts.failed, counts.lost) == (3, 2, 1, 1)
    assert counts.errors == {kind: 1}


@pytest.mark.parametrize("hung_up", [True, False], ids=["reported", "not reported"])
@pytest.mark.parametrize("events", [1, 2], ids=["once", "twice"])
def test_a_read_that_fails_loses_its_connection_once(hung_up: bool, events: int) -> None:
    def fail(socket: FakeSocket) -> None:
        def act() -> None:
            socket.hung_up = hung_up
            socket.inbox.append(os_error(errno.ETIMEDOUT))
            socket.world.injected.extend([(socket.fd, READ)] * (events - 1))

        socket.world.at(socket.world.now + LATENCY, act)

    counts = run(World(server=only_at(2, fail))).counts
    assert (counts.sent, counts.verified, counts.failed, counts.lost) == (2, 1, 1, 1)
    assert counts.errors == {"timeout": 1}


def test_a_reply_that_comes_with_a_hangup_is_still_verified() -> None:
    def last_words(socket: FakeSocket) -> None:
        def hang_up() -> None:
            socket.hung_up = True
            socket.inbox.extend([EXPECTED, b""])

        socket.world.at(socket.world.now + LATENCY, hang_up)

    counts = run(World(server=only_at(2, last_words))).counts
    assert (counts.sent, counts.verified, counts.failed) == (3, 2, 1)
    assert counts.errors == {"EOF": 1}


@pytest.mark.parametrize("code", [errno.EPIPE, errno.ECONNRESET])
@pytest.mark.parametrize("cut", [0, 3], ids=["whole reply", "cut reply"])
def test_a_send_that_fails_fails_its_request(code: int, cut: int) -> None:
    def last_reply(socket: FakeSocket) -> None:
        socket.send_error = os_error(code)
        socket.say(*filter(None, [EXPECTED[:cut], EXPECTED[cut:]]))

    counts = run(World(server=only_at(3, last_reply))).counts
    assert (counts.sent, counts.verified, counts.failed, counts.lost) == (4, 3, 1, 1)


def test_a_first_send_that_fails_fails_its_request_even_if_time_is_over_at_once() -> None:
    def breaks(socket: FakeSocket) -> None:
        connects(socket)
        socket.send_error = os_error(errno.EPIPE)

    world = World()
    world.dials.append(breaks)
    counts = run(world, connections=2, duration=1e-10).counts
    assert (counts.sent, counts.failed, counts.timed_out, counts.verified) == (2, 1, 0, 1)
    assert counts.errors == {"reset": 1}


def test_an_error_without_a_text_of_the_system_is_named_by_its_own() -> None:
    def fail(socket: FakeSocket) -> None:
        socket.send_error = OSError("the cable is out")
        socket.say(EXPECTED)

    assert run(World(server=only_at(2, fail))).counts.errors == {"the cable is out": 1}


@pytest.mark.parametrize("room", range(1, len(FRAME) + 2))
def test_a_request_that_the_kernel_takes_in_parts_is_completed(room: int) -> None:
    def narrow(socket: FakeSocket) -> None:
        connects(socket)
        socket.limit_room(room)

    world = World()
    world.dials.append(narrow)
    counts = run(world, connections=2, duration=0.05).counts
    narrow_one, wide_one = world.sockets
    assert counts.verified == counts.sent
    assert 2 <= len(narrow_one.received) / len(FRAME) < len(wide_one.received) / len(FRAME)
    assert bytes(narrow_one.received) == FRAME * (len(narrow_one.received) // len(FRAME))


@pytest.mark.parametrize("spurious", [False, True])
def test_a_request_that_the_kernel_refuses_is_sent_when_there_is_room(spurious: bool) -> None:
    def full(socket: FakeSocket) -> None:
        connects(socket)
        socket.limit_room(100, full=True)
        if spurious:
            event = (socket.fd, WRITE)
            world.at(5 * LATENCY // 4, lambda: world.injected.append(event))

    world = World()
    world.dials.append(full)
    counts = run(world, duration=0.002).counts
    assert counts.verified == counts.sent == 2
    assert counts.latency == {bucket(LATENCY): 1, bucket(3 * LATENCY // 2): 1}
    assert bytes(world.sockets[0].received) == FRAME * 2


def test_only_an_unsent_rest_waits_for_the_socket_to_become_writable() -> None:
    def narrow(socket: FakeSocket) -> None:
        connects(socket)
        socket.limit_room(5)

    masks: list[int] = []
    world = World()
    world.dials.append(narrow)
    # Connected at 1 ms, when 5 of 8 bytes are taken; the others at 2.5; the reply
    # is there at 3.5, and then 2 bytes of the next request are taken.
    for time in (2, 3, 4):
        world.at(time * MS, lambda: masks.append(world.interest[world.sockets[0].fd]))
    run(world)
    assert masks == [READ | WRITE, READ, READ | WRITE]


def watching_fails(world: World, call: str, *, at: int) -> None:
    """Have the nth call of the poller fail for want of memory, not counting the control's."""
    original, calls = getattr(world, call), itertools.count(1)

    def failing(fd: int, eventmask: int, /) -> None:
        if fd != world.control_fd and next(calls) == at:
            raise os_error(errno.ENOMEM)
        original(fd, eventmask)

    setattr(world, call, failing)


@pytest.mark.parametrize("call", ["register", "modify"])
def test_a_connection_that_cannot_be_watched_is_not_made(call: str) -> None:
    world = World()
    watching_fails(world, call, at=1)
    counts = run(world, connections=2).counts
    assert (counts.held, counts.failed_to_connect) == (1, 1)
    assert counts.errors == {"connect: Cannot allocate memory": 1}
    assert counts.verified == counts.sent > 0


@pytest.mark.parametrize(("call", "verified"), [(2, 0), (3, 0), (4, 1)])
def test_a_connection_that_cannot_be_watched_for_a_rest_is_lost(call: int, verified: int) -> None:
    # The first call is when it is made; then at a rest, when that is sent, and again.
    def narrow(socket: FakeSocket) -> None:
        connects(socket)
        socket.limit_room(5)

    world = World()
    world.dials.append(narrow)
    watching_fails(world, "modify", at=call)
    counts = run(world).counts
    assert (counts.sent, counts.verified, counts.failed) == (verified + 1, verified, 1)
    assert (counts.lost, counts.errors) == (1, {"Cannot allocate memory": 1})


def test_a_connection_that_fails_while_a_request_is_being_completed_is_lost() -> None:
    def narrow(socket: FakeSocket) -> None:
        connects(socket)
        socket.limit_room(5)
        socket.reset_by_server(after=5 * LATENCY // 2)

    world = World()
    world.dials.append(narrow)
    counts = run(world).counts
    assert (counts.sent, counts.verified, counts.failed, counts.lost) == (1, 0, 1, 1)
    assert counts.errors == {"reset": 1}


@pytest.mark.parametrize("mask", [READ, READ | WRITE, ERROR, WRITE])
def test_a_spurious_event_changes_nothing(mask: int) -> None:
    world = World()
    world.at(7 * LATENCY // 2, lambda: world.injected.append((world.sockets[0].fd, mask)))
    world.at(7 * LATENCY // 2, lambda: world.injected.append((world.control_fd + 1000, mask)))
    counts = run(world).counts
    assert counts.verified == counts.sent == 11
    assert not counts.errors


def test_an_event_of_a_closed_connection_is_ignored() -> None:
    world = World(server=lambda socket, n: (silent if socket.fd == 4 else honest)(socket, n))
    world.at(3 * LATENCY, lambda: world.sockets[0].close_by_server(after=0))
    world.at(5 * LATENCY, lambda: world.injected.append((4, READ)))
    counts = run(world, connections=2).counts
    assert counts.errors == {"EOF": 1}
    assert counts.lost == 1


def test_connections_are_closed_after_the_batch_that_ended_them() -> None:
    def serve(socket: FakeSocket, request: int) -> None:
        if request == 2 and socket.fd == 4:
            socket.say(b"wrong")
        else:
            honest(socket, request)

    world = World(server=serve)
    run(world, connections=3)
    closed = world.calls.index(("close", 4))
    assert world.calls[closed - 6 : closed + 2] == [
        ("poll", -1),
        ("recv", 4),
        ("recv", 5),
        ("send", 5),
        ("recv", 6),
        ("send", 6),
        ("close", 4),
        ("poll", -1),
    ]


def test_the_run_ends_early_when_no_connection_is_left() -> None:
    world = World(server=only_at(3, FakeSocket.close_by_server))
    outcome = run(world, connections=2, duration=10)
    assert outcome.elapsed == 0.003
    assert (outcome.counts.failed, outcome.counts.lost) == (2, 2)


def test_stopping_while_measuring_waits_for_the_replies_still_to_come() -> None:
    world = World()
    world.at(LATENCY * 11 // 2, world.stop)
    outcome = run(world, connections=2, duration=10)
    assert outcome.elapsed == 0.0045
    assert outcome.counts.verified == outcome.counts.sent == 10
    assert outcome.snapshots[-1].phase is Phase.DONE


def test_more_latencies_than_are_kept_at_once_are_all_counted() -> None:
    counts = run(World(), connections=FOLD_AT + 100, duration=0.004).counts
    assert counts.verified == counts.sent == 5 * (FOLD_AT + 100)
    assert counts.latency == {bucket(LATENCY): counts.verified}


def test_snapshots_come_four_times_a_second_and_add_up() -> None:
    outcome = run(World(), duration=1.0)
    measured = [s for s in outcome.snapshots if s.phase is Phase.MEASURING]
    assert [s.elapsed for s in measured] == [0.25, 0.5, 0.75]
    assert [s.counts.verified for s in measured] == [250, 250, 250]
    draining, done = outcome.snapshots[-2:]
    assert (draining.phase, draining.counts.verified) == (Phase.DRAINING, 250)
    assert (done.phase, done.counts.verified) == (Phase.DONE, 1)
    assert {s.second for s in outcome.snapshots} == {0}
    assert outcome.counts.verified == 1001


# Draining --------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"rate": 4000.0}, {"pipeline": 2}])
def test_requests_in_flight_are_those_of_each_snapshot(options: dict[str, Any]) -> None:
    outcome = run(World(server=slow), connections=2, duration=1.0, grace=5.0, **options)
    measured = [s for s in outcome.snapshots if s.phase is Phase.MEASURING]
    per_connection = options.get("pipeline", 1)
    assert len(measured) > 1
    for snapshot in measured:
        in_flight = snapshot.counts.in_flight_seconds / 0.25
        assert in_flight == pytest.approx(2 * per_connection, rel=0.05)


def slow(socket: FakeSocket, _number: int) -> None:
    socket.say(EXPECTED, after=30 * MS)


def test_a_late_reply_is_verified_but_not_on_time() -> None:
    world = World(server=slow)
    outcome = run(world, duration=0.05)
    counts = outcome.counts
    assert (counts.sent, counts.verified, counts.on_time) == (2, 2, 1)
    assert counts.latency == {bucket(30 * MS): 2}
    assert outcome.elapsed == 0.05
    assert world.now == 61 * MS + (30 * MS + SURPLUS_WAIT), "no longer than a surplus may take"


def test_replies_are_awaited_for_the_grace_and_then_time_out() -> None:
    world = World(server=only_at(3, lambda _: None))
    counts = run(world, connections=2, grace=0.5).counts
    assert (counts.sent, counts.verified, counts.timed_out, counts.lost) == (6, 4, 2, 0)
    assert world.now == LATENCY + 10 * MS + 500 * MS


@pytest.mark.parametrize(
    ("act", "wrong", "failed", "kind"),
    [
        (lambda socket: socket.say(b"00003abc", after=20 * MS), 1, 0, "wrong payload"),
        (lambda socket: socket.say(b"00003", b"c!", after=20 * MS), 1, 0, "wrong payload"),
        (lambda socket: socket.close_by_server(after=20 * MS), 0, 1, "EOF"),
        (lambda socket: socket.reset_by_server(after=20 * MS), 0, 1, "reset"),
    ],
    ids=["wrong", "wrong in pieces", "closed", "reset"],
)
def test_what_goes_wrong_while_draining_is_counted_once(
    act: Callable[[FakeSocket], None], wrong: int, failed: int, kind: str
) -> None:
    world = World(server=only_at(3, act))
    counts = run(world).counts
    assert (counts.sent, counts.verified) == (3, 2)
    assert (counts.wrong, counts.failed, counts.timed_out) == (wrong, failed, 0)
    assert counts.errors == {kind: 1}
    assert world.now < 30 * MS, "there was nothing more to wait for"


def test_a_reply_in_pieces_is_verified_while_draining() -> None:
    def drip(socket: FakeSocket, _number: int) -> None:
        for position in range(len(EXPECTED)):
            socket.say(EXPECTED[position : position + 1], after=(10 + position) * MS)

    counts = run(World(server=drip), duration=0.02).counts
    assert counts.verified == counts.sent == 2


@pytest.mark.parametrize(
    ("act", "errors"),
    [
        (
            lambda socket: socket.say(b"00003cba", after=2 * MS),
            {"unexpected bytes": 1},
        ),
        # It has done its work: a server may close what it likes by then.
        (lambda socket: socket.close_by_server(after=2 * MS), {}),
        (lambda socket: socket.reset_by_server(after=2 * MS), {}),
    ],
    ids=["says more", "closes", "resets"],
)
def test_what_comes_after_the_last_reply_of_a_connection_fails_no_request(
    act: Callable[[FakeSocket], None], errors: dict[str, int]
) -> None:
    def serve(socket: FakeSocket, request: int) -> None:
        if socket.fd == 5:
            return  # keeps the engine waiting
        honest(socket, request)
        if socket.world.now == 11 * MS:
            act(socket)

    world = World(server=serve)
    counts = run(world, connections=2).counts
    assert (counts.sent, counts.verified, counts.timed_out) == (12, 11, 1)
    assert (counts.wrong, counts.failed, counts.lost) == (0, 0, len(errors))
    assert counts.errors == errors | {"timeout": 1}


def test_an_unsent_rest_is_completed_while_draining() -> None:
    def narrow(socket: FakeSocket) -> None:
        connects(socket)
        socket.limit_room(1)

    world = World()
    world.dials.append(narrow)
    counts = run(world, duration=0.004).counts
    assert counts.verified == counts.sent == 1
    assert bytes(world.sockets[0].received) == FRAME


def test_stopping_while_draining_ends_the_wait() -> None:
    world = World(server=slow)
    world.at(55 * MS, world.stop)
    counts = run(world, duration=0.05).counts
    assert (counts.sent, counts.verified, counts.on_time) == (2, 1, 1)
    assert counts.timed_out == 1
    assert world.now == 55 * MS


def test_a_reply_to_a_request_that_was_not_sent_whole_is_wrong() -> None:
    """And the next request must not be written into the middle of it."""

    def answers_early(socket: FakeSocket) -> None:
        connects(socket)
        socket.limit_room(5)
        socket.say(EXPECTED, after=MS + MS // 4)

    world = World(server=lambda *_: None)
    world.dials.append(answers_early)
    counts = run(world, duration=0.05).counts
    assert (counts.sent, counts.verified, counts.wrong, counts.lost) == (1, 0, 1, 1)


def test_one_reply_too_many_is_found_at_the_end_though_all_looked_right() -> None:
    def doubles_the_second(socket: FakeSocket, number: int) -> None:
        socket.say(EXPECTED, after=MS)
        if number == 2:
            socket.say(EXPECTED, after=MS + MS // 2)

    counts = run(World(server=doubles_the_second), duration=0.05).counts
    assert counts.wrong == 0
    assert counts.verified == counts.sent
    assert counts.errors == {"unexpected bytes": 1}
    assert counts.lost == 1


def test_a_stall_of_the_machine_does_not_make_the_run_wait_for_ever() -> None:
    """A time to wait that is over already means for ever to epoll."""
    world = World(server=lambda *_: None)

    def stall() -> None:
        world.now += 700 * MS

    world.at(100 * MS, stall)
    outcome = run(world, duration=1.0, grace=0.1)
    assert outcome.counts.timed_out == 1
    assert 1.0 <= outcome.elapsed <= 1.01


# A process that stands still ------------------------------------------------------------


def stands_still(world: World, *, at: int, for_: int) -> None:
    """Stop the process in a wait: as the kernel does it, that gives nothing then."""
    wait, poll = world.wait, world.poll

    def stopped() -> bool:
        nonlocal at
        if world.now < at:
            return False
        at, world.now = 1 << 62, world.now + for_
        return True

    def stopped_wait(seconds: float) -> bool:
        return not stopped() and wait(seconds)

    def stopped_poll(timeout: float, maxevents: int, /) -> list[tuple[int, int]]:
        return [] if timeout and stopped() else poll(timeout, maxevents)

    world.wait, world.poll = stopped_wait, stopped_poll  # type: ignore[method-assign]


@pytest.mark.parametrize("options", [{}, {"pipeline": 2}, {"rate": 5000}])
def test_replies_that_came_while_the_process_stood_still_are_not_late(
    options: dict[str, Any],
) -> None:
    world = World()
    stands_still(world, at=100 * MS, for_=900 * MS)
    counts = run(world, connections=5, duration=2.0, timeout=0.5, **options).counts
    assert counts.verified == counts.sent > 0
    assert (counts.lost, counts.errors) == (0, {})


def test_replies_that_never_come_are_late_however_often_the_process_stands_still() -> None:
    world = World(server=silent)
    world.oversleeps = 300 * MS
    counts = run(world, connections=5, duration=4.0, timeout=0.5, pipeline=2).counts
    assert (counts.lost, counts.errors) == (5, {TIMEOUT: 5})


def test_replies_that_came_while_the_process_stood_still_at_the_end_are_not_late() -> None:
    world = World(server=lambda socket, _: socket.say(EXPECTED, after=50 * MS))
    stands_still(world, at=101 * MS, for_=900 * MS)
    counts = run(world, connections=5, duration=0.1, grace=0.2).counts
    assert counts.verified == counts.sent > 0
    assert counts.timed_out == 0


# Connections that fail in loops other than the plain one ---------------------------------

LOOPS: list[dict[str, Any]] = [{"rate": 1000}, {"rate": 1000, "pipeline": 2}, {"pipeline": 2}]


@pytest.mark.parametrize("options", LOOPS)
@pytest.mark.parametrize("mask", [READ, ERROR])
def test_events_without_anything_to_read_do_nothing_in_any_loop(
    options: dict[str, Any], mask: int
) -> None:
    world = World(server=lambda socket, _: socket.say(EXPECTED, after=3 * MS))
    world.at(5 * MS // 2, lambda: world.injected.append((world.sockets[0].fd, mask)))
    counts = run(world, duration=0.02, **options).counts
    assert counts.verified == counts.sent > 0
    assert not counts.errors


@pytest.mark.parametrize("options", LOOPS)
def test_a_read_that_fails_costs_its_connection_in_any_loop(options: dict[str, Any]) -> None:
    def serve(socket: FakeSocket, number: int) -> None:
        if number == 3:
            socket.world.at(
                socket.world.now + LATENCY, lambda: socket._arrive(os_error(errno.ECONNRESET))
            )
        else:
            socket.say(EXPECTED)

    counts = run(World(server=serve), connections=2, duration=0.05, **options).counts
    assert counts.lost == 2
    assert counts.errors == {"reset": 2}
    assert counts.failed > 0


@pytest.mark.parametrize(("sends", "lost"), [("refused", 0), ("in part", 0), ("failing", 1)])
def test_a_send_of_what_has_been_due_that_does_not_go_at_once(sends: str, lost: int) -> None:
    """The one connection is always waited for, so that the reply lets the next request go."""

    def serve(socket: FakeSocket, number: int) -> None:
        if number == 2 and sends == "failing":
            socket.send_error = os_error(errno.EPIPE)
        elif number == 2:
            at = socket.world.now + 3 * MS  # together with the reply
            socket.world.at(at, lambda: socket.limit_room(3, full=sends == "refused"))
        socket.say(EXPECTED, after=3 * MS)

    counts = run(World(server=serve), duration=0.03, rate=1000).counts
    assert counts.lost == lost
    assert counts.verified >= 2
    assert counts.verified + counts.failed == counts.sent


def test_a_connection_that_ended_while_it_was_free_is_given_nothing() -> None:
    """Both as it is noticed in a batch in which a request is due, and later."""

    def serve(socket: FakeSocket, number: int) -> None:
        socket.say(EXPECTED, after=10 * MS)
        if number == 1 and socket is socket.world.sockets[0]:
            socket.close_by_server(after=20 * MS)

    counts = run(World(server=serve), connections=2, duration=0.1, rate=100).counts
    assert counts.lost == 1
    assert counts.verified == counts.sent == 10


def test_what_is_left_of_the_requests_goes_out_together() -> None:
    world = World()
    counts = run(world, connections=1, duration=1.0, pipeline=4, requests=3).counts
    assert counts.verified == counts.sent == 3


def test_a_replacement_that_the_kernel_puts_off_is_made_later() -> None:
    def serve(socket: FakeSocket, number: int) -> None:
        socket.say(EXPECTED)
        if number == 3 and socket is socket.world.sockets[0]:
            socket.close_by_server(after=LATENCY)

    world = World(server=serve)
    world.dials.extend([connects, BlockingIOError(errno.EAGAIN, "")])
    counts = run(world, duration=1.0, reconnect=True).counts
    assert (counts.lost, counts.reconnected) == (1, 1)
    assert len(world.sockets) == 2


def test_what_was_held_back_and_cannot_be_sent_costs_its_connection() -> None:
    def serve(socket: FakeSocket, number: int) -> None:
        socket.say(EXPECTED)
        if number == 2:
            socket.limit_room(3)
            socket.world.at(
                socket.world.now + LATENCY + MS // 8,
                lambda: setattr(socket, "send_error", os_error(errno.EPIPE)),
            )

    counts = run(World(server=serve), duration=0.05, pipeline=2).counts
    assert counts.lost == 1


def test_a_replacement_that_fails_when_nothing_more_is_sent_is_counted_and_not_tried_again() -> (
    None
):
    def serve(socket: FakeSocket, number: int) -> None:
        socket.say(EXPECTED, after=LATENCY if number < 9 else 5 * LATENCY)
        if number == 9 and socket is socket.world.sockets[0]:
            socket.close_by_server(after=3 * LATENCY // 2)

    world = World(server=serve)
    world.dials.extend([connects, connects, fails_to_connect(errno.ECONNREFUSED)])
    counts = run(world, connections=2, duration=0.01, reconnect=True).counts
    assert counts.errors == {"EOF": 1, "connect: refused": 1}
    assert (counts.lost, counts.reconnected) == (1, 0)
    assert len(world.sockets) == 3


def test_a_reply_whose_turn_goes_to_a_connection_that_has_ended_goes_to_another() -> None:
    """In one batch a free connection ends, and another has its reply as the next one comes due."""
    world = World()
    at = 25 * MS  # between requests, which are due every 10 ms

    def serve(socket: FakeSocket, _number: int) -> None:
        if socket is world.sockets[0] or world.now > at:
            socket.say(EXPECTED)

    def stalls(socket: FakeSocket) -> None:
        connects(socket)
        recv = socket.recv

        def late(size: int, /) -> bytes:
            world.now += 10 * MS if world.sockets[0].inbox else 0
            return recv(size)

        socket.recv = late  # type: ignore[method-assign]

    def both() -> None:
        world.sockets[0]._arrive(b"")
        world.sockets[1]._arrive(EXPECTED)

    world.server = serve
    world.dials.extend([connects, stalls])
    world.at(at, both)
    counts = run(world, connections=2, duration=0.1, rate=100).counts
    assert (counts.lost, counts.errors) == (1, {"EOF": 1})
    assert counts.verified == counts.sent == 9


@pytest.mark.parametrize("options", [{}, {"pipeline": 2}])
def test_what_comes_due_while_latencies_are_put_away_is_sent_at_once(
    options: dict[str, Any],
) -> None:
    """A clock that goes on whenever it is looked at, and a batch of more than are kept."""

    class Ticking(World):
        def clock(self) -> int:
            self.now += 20_000
            return self.now

    world = Ticking(server=lambda socket, _: socket.say(EXPECTED, after=20 * MS))
    counts = run(
        world, connections=4 * FOLD_AT, duration=0.2, grace=1.0, rate=20_000, **options
    ).counts
    assert counts.verified == counts.sent > 2 * FOLD_AT


def test_stopped_before_the_word_to_start_nothing_is_sent() -> None:
    world = World()
    world.control.start = None
    world.at(500 * MS, world.stop)
    outcome = run(world, connections=3)
    assert (outcome.counts.held, outcome.counts.sent, outcome.elapsed) == (3, 0, 0.0)
    assert [each.phase for each in outcome.snapshots[-2:]] == [Phase.READY, Phase.DONE]


@pytest.mark.parametrize("options", [{}, *LOOPS])
def test_nothing_is_sent_for_a_reply_that_is_read_when_time_is_over(
    options: dict[str, Any],
) -> None:
    """Though the batch that it is in began in time: the clock goes on with each look at it."""

    class Ticking(World):
        def clock(self) -> int:
            self.now += 50_000
            return self.now

    world = Ticking(server=lambda socket, _: socket.say(EXPECTED, after=89 * MS // 10))
    outcome = run(world, connections=20, duration=0.009, **options)
    assert outcome.elapsed == 0.009
    assert outcome.counts.verified == outcome.counts.sent > outcome.counts.on_time


def test_a_connection_that_ends_while_it_thinks_is_given_nothing() -> None:
    def serve(socket: FakeSocket, number: int) -> None:
        socket.say(EXPECTED)
        if number == 2 and socket is socket.world.sockets[0]:
            socket.close_by_server(after=2 * LATENCY)

    counts = run(World(server=serve), connections=2, duration=0.05, think=0.005).counts
    assert (counts.lost, counts.failed) == (1, 0)
    assert counts.verified == counts.sent > 4

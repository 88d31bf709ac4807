"""Loads other than the plain closed loop, in a world in memory: when requests go, and where.

As in ``test_engine``, ``run`` checks after every run that all adds up.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loadgen.connection import (
    BAD_HEADER,
    EOF,
    RESET,
    TIMEOUT,
    UNEXPECTED_BYTES,
    Connection,
)
from loadgen.engine import LOOK_EVERY, MOST_SHARES
from loadgen.histogram import Histogram, bucket_indices
from loadgen.load import LATE, RETRY_AFTER
from loadgen.tally import Phase
from loadgen.traffic import messages, reversed_text
from nbnet.pollers import READ, WRITE

from .fakes import (
    LATENCY,
    MS,
    FakeSocket,
    World,
    connects,
    fails_to_connect,
    never_connects,
    only_at,
    run,
    silent,
)

FRAME, EXPECTED = reversed_text(b"abc")


def bucket(nanoseconds: int) -> int:
    return bucket_indices([nanoseconds])[0]


def in_turn(payloads: str) -> tuple[World, list[bytes]]:
    """A world of several messages, whose server answers each as it should be."""
    pairs = messages([each.encode() for each in payloads.split()], "reverse")
    answers = {message.frame: message.expected for message in pairs}

    def serve(socket: FakeSocket, _number: int) -> None:
        socket.say(answers[socket.last_request])

    return World(server=serve), [message.frame for message in pairs]


# Open loop -------------------------------------------------------------------


def test_requests_are_sent_when_they_are_due() -> None:
    world = World()
    outcome = run(world, connections=2, duration=0.1, rate=100)
    assert [time - world.sent_at[0] for time in world.sent_at] == [n * 10 * MS for n in range(10)]
    assert outcome.counts.latency == outcome.counts.service == {bucket(LATENCY): 10}
    assert (outcome.counts.late, outcome.counts.unsent) == (0, 0)
    assert outcome.elapsed == 0.1


def test_connections_take_turns() -> None:
    world = World()
    run(world, connections=3, duration=0.1, rate=90)
    assert [socket.requests_received for socket in world.sockets] == [3, 3, 3]


@pytest.mark.parametrize(
    ("plan", "served"),
    [
        ({"rate": 200.0}, 2),
        ({"rate": 200.0, "pipeline": 2}, 1),
        ({}, 5),
        ({"pipeline": 3}, 5),
        ({"active": 2}, 2),
        ({"duration": 0.0005}, 5),
    ],
)
def test_connections_with_a_right_reply_are_counted(plan: dict[str, Any], served: int) -> None:
    assert run(World(), connections=5, **plan).counts.served == served


def test_a_connection_without_a_right_reply_has_not_served() -> None:
    assert run(World(server=silent), connections=2).counts.served == 0
    wrong = run(World(server=lambda socket, _: socket.say(b"00003abc")), connections=2)
    assert wrong.counts.served == 0


def test_requests_are_sent_between_whole_milliseconds() -> None:
    world = World()
    run(world, connections=20, duration=0.01, rate=12_800)
    gaps = [after - before for before, after in pairwise(world.sent_at)]
    assert len(gaps) == 127
    assert all(abs(gap - 78_125) <= 1000 for gap in gaps)


def test_latency_counts_from_when_a_request_was_due_and_service_from_its_sending() -> None:
    """The one connection is busy for 5 ms, and a request is due each ms."""
    world = World(server=lambda socket, _: socket.say(EXPECTED, after=5 * MS))
    outcome = run(world, duration=0.01, rate=1000)
    counts = outcome.counts
    assert (counts.sent, counts.unsent) == (2, 8)
    assert counts.service == {bucket(5 * MS): 2}
    assert counts.latency == {bucket(5 * MS): 1, bucket(9 * MS): 1}  # due at 1 ms, sent at 5
    assert counts.late == 1


def test_a_wait_for_a_connection_is_no_lag_of_the_loader() -> None:
    world = World(server=lambda socket, _: socket.say(EXPECTED, after=5 * MS))
    counts = run(world, duration=0.1, rate=1000).counts
    assert counts.lag == {bucket(0): 1}


def test_a_loader_that_wakes_up_late_has_a_lag() -> None:
    world = World()
    world.oversleeps = 2 * MS
    counts = run(world, connections=5, duration=0.1, rate=100).counts
    assert counts.sent == 10
    # All but the first, which is due as the run begins.
    assert counts.lag[bucket(2 * MS)] >= 8
    assert counts.late >= 8
    assert counts.latency[bucket(3 * MS)] >= 8
    assert counts.service == {bucket(LATENCY): counts.verified}


def test_what_a_loader_slept_through_until_the_end_is_its_lag() -> None:
    """As of a process that is stopped: a connection was free all the time, and nobody sent."""
    world = World()
    world.at(500 * MS, lambda: setattr(world, "oversleeps", 1000 * MS))
    counts = run(world, connections=5, duration=1.0, rate=100).counts
    assert counts.sent + counts.unsent == 100
    assert counts.unsent > 40
    lag = Histogram(counts.lag)
    assert lag.max == pytest.approx(counts.unsent * 10 * MS, rel=0.05)
    assert lag.percentile(100 * (1 - counts.unsent / 200)) == pytest.approx(lag.max / 2, rel=0.1)


def test_what_was_due_during_a_stall_is_sent_after_it_and_its_wait_is_told() -> None:
    """The server freezes from 100 to 200 ms; with 5 connections 5 requests get through to it."""

    def freezes(socket: FakeSocket, _number: int) -> None:
        now = socket.world.now - LATENCY  # since the start
        until_thaw = 200 * MS - now
        socket.say(EXPECTED, after=LATENCY if now < 100 * MS else max(LATENCY, until_thaw))

    counts = run(World(server=freezes), connections=5, duration=1.0, rate=1000).counts
    assert (counts.sent, counts.unsent) == (1000, 0)
    histogram = Histogram(counts.latency)
    # 100 of 1,000 requests wait, evenly from 0 to 100 ms.
    assert histogram.percentile(99) == pytest.approx(90 * MS, rel=0.05)
    assert histogram.max >= 100 * MS
    assert sum(count for index, count in counts.service.items() if index > bucket(50 * MS)) == 5


def test_replies_after_the_end_count_and_requests_due_after_it_do_not() -> None:
    world = World(server=lambda socket, _: socket.say(EXPECTED, after=30 * MS))
    outcome = run(world, connections=10, duration=0.05, rate=100)
    assert (outcome.counts.sent, outcome.counts.verified, outcome.counts.on_time) == (5, 5, 2)
    assert outcome.counts.unsent == 0


def test_stages_change_the_rate() -> None:
    world = World()
    run(world, connections=50, duration=1.5, stages=((0.5, 200.0), (1.0, 200.0)))
    start = LATENCY
    by_tenth = Counter((time - start) // (100 * MS) for time in world.sent_at)
    # 2 * 200 * t**2 up to 50 at half a second, then 20 in each tenth.
    assert [by_tenth[tenth] for tenth in range(15)] == [2, 6, 10, 14, 18] + [20] * 10


def test_the_same_seed_gives_the_same_arrivals() -> None:
    def sent(seed: int) -> list[int]:
        world = World()
        run(world, connections=50, duration=0.1, rate=1000, poisson=True, seed=seed)
        return world.sent_at

    assert sent(1) == sent(1) != sent(2)


def test_stopping_counts_only_what_was_due_until_then() -> None:
    world = World()
    world.at(LATENCY + 35 * MS, world.stop)
    outcome = run(world, connections=5, duration=10, rate=100)
    assert outcome.counts.sent == 4
    assert outcome.counts.unsent == 0
    assert outcome.elapsed == 0.035


def test_unsent_requests_are_those_due_before_the_end_and_not_sent() -> None:
    counts = run(World(server=silent), duration=0.1, rate=1000, grace=0.01).counts
    assert (counts.sent, counts.unsent, counts.timed_out) == (1, 99, 1)


# Closed loop ------------------------------------------------------------------


def test_a_connection_thinks_before_its_next_request() -> None:
    world = World()
    counts = run(world, connections=2, duration=0.05, think=0.009).counts
    starts = sorted({time - LATENCY for time in world.sent_at})
    assert starts == [n * 10 * MS for n in range(5)]
    assert counts.latency == {bucket(LATENCY): counts.verified}
    assert counts.verified == 10


def test_a_pipeline_is_kept_full_and_filled_up_in_one_send() -> None:
    world = World()
    counts = run(world, duration=0.01, pipeline=4).counts
    assert (counts.sent, counts.verified) == (40, 40)
    assert counts.in_flight_seconds == pytest.approx(0.04, rel=0.01)
    sends = [call for call in world.calls if call[0] == "send"]
    assert len(sends) < 40


def test_a_deep_pipeline_is_not_walked_for_each_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    """All its replies come in one read that is no whole one; a walk each is minutes of work."""
    walks = 0
    in_flight: Callable[[Connection], int] = vars(Connection)["in_flight"].fget

    def counted(connection: Connection) -> int:
        nonlocal walks
        walks += 1
        return in_flight(connection)

    monkeypatch.setattr(Connection, "in_flight", property(counted))

    def serve(socket: FakeSocket, number: int) -> None:
        if number == 500:
            socket.say(EXPECTED * 500 + EXPECTED[:3])
            socket.say(EXPECTED[3:], after=2 * MS)

    counts = run(World(server=serve), pipeline=501, requests=501, duration=0.1).counts
    assert counts.verified == 501
    assert walks < 50


@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    pipeline=st.integers(1, 5),
    room=st.none() | st.integers(1, 40),
    cuts=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    rate=st.none() | st.sampled_from([500, 5000]),
    expect_any=st.booleans(),
)
def test_however_streams_are_cut_each_reply_belongs_to_its_request(
    pipeline: int, room: int | None, cuts: list[int], rate: int | None, expect_any: bool
) -> None:
    """Messages of different lengths, in flight together, sent and answered in pieces."""
    pool = messages([b"a", b"bc", b"defgh" * 3, b"ijk"], "none" if expect_any else "reverse")

    def serve(socket: FakeSocket, number: int) -> None:
        payload = socket.last_request[5:]
        replies = socket.held + b"%05d%b" % (len(payload), payload[::-1])
        cut = cuts[number % len(cuts)]
        pieces = [replies[at : at + cut] for at in range(0, len(replies), cut)]
        socket.held = pieces.pop()  # until the next reply, or for a while
        socket.say(*pieces)
        socket.world.at(socket.world.now + 3 * LATENCY, lambda: release(socket))

    def release(socket: FakeSocket) -> None:
        socket.say(*filter(None, [socket.held]))
        socket.held = b""

    def prepare(socket: FakeSocket) -> None:
        connects(socket)
        if room is not None:
            socket.limit_room(room)

    world = World(server=serve)
    world.dials.extend([prepare, prepare])
    counts = run(
        world, connections=2, duration=0.03, pipeline=pipeline, rate=rate, messages=pool
    ).counts
    assert counts.verified == counts.sent > 0
    assert not counts.errors


def test_a_whole_number_of_requests_is_sent_and_then_the_run_ends() -> None:
    world = World()
    outcome = run(world, connections=3, duration=10, requests=7)
    assert (outcome.counts.sent, outcome.counts.verified, outcome.counts.unsent) == (7, 7, 0)
    assert outcome.elapsed == 0.003


def test_requests_that_were_not_sent_by_the_end_are_told() -> None:
    counts = run(World(), duration=0.01, requests=100).counts
    assert counts.sent + counts.unsent == 100
    assert counts.sent == 10


def test_a_number_of_requests_bounds_an_open_loop_too() -> None:
    outcome = run(World(), connections=5, duration=10, rate=1000, requests=7)
    assert (outcome.counts.sent, outcome.counts.unsent) == (7, 0)
    assert outcome.elapsed == 0.007


def test_only_active_connections_send() -> None:
    world = World()
    counts = run(world, connections=5, duration=0.01, active=2).counts
    assert [bool(socket.received) for socket in world.sockets] == [True, True, False, False, False]
    assert counts.held == 5


def test_an_idle_connection_that_ends_is_lost_and_replaced_by_an_idle_one() -> None:
    world = World()
    world.at(5 * MS, lambda: world.sockets[2].close_by_server(after=0))
    counts = run(world, connections=3, active=2, reconnect=True, duration=0.5).counts
    assert (counts.lost, counts.reconnected, counts.failed) == (1, 1, 0)
    assert counts.errors == {EOF: 1}
    assert [bool(socket.received) for socket in world.sockets] == [True, True, False, False]


# Churn and replacement ----------------------------------------------------------


def test_a_connection_is_replaced_after_its_requests() -> None:
    world = World()
    counts = run(world, duration=0.1, requests_per_connection=3).counts
    received = [socket.requests_received for socket in world.sockets]
    assert set(received[:-1]) == {3}
    assert len(received) > 10
    assert (counts.lost, counts.failed, dict(counts.errors)) == (0, 0, {})
    assert counts.reconnected == len(world.sockets) - 1


def test_a_connection_whose_requests_were_the_last_is_not_replaced() -> None:
    world = World()
    counts = run(world, duration=10, requests=30, requests_per_connection=10).counts
    assert (len(world.sockets), counts.reconnected) == (3, 2)


def test_churn_with_several_in_flight_sends_no_more_than_allowed() -> None:
    world = World()
    run(world, connections=2, duration=0.1, requests_per_connection=5, pipeline=3)
    received = [socket.requests_received for socket in world.sockets]
    assert max(received) == 5
    assert received.count(5) >= len(received) - 2


def test_churn_in_an_open_loop() -> None:
    world = World()
    counts = run(world, connections=4, duration=0.1, rate=1000, requests_per_connection=2).counts
    assert (counts.sent, counts.unsent) == (100, 0)
    assert max(socket.requests_received for socket in world.sockets) == 2


@pytest.mark.parametrize("plan", [{}, {"pipeline": 3}, {"rate": 1000}, {"think": 0.001}])
@pytest.mark.parametrize(
    ("act", "kind"),
    [(FakeSocket.close_by_server, EOF), (FakeSocket.reset_by_server, RESET)],
)
def test_a_connection_that_failed_after_it_served_is_replaced_at_once(
    act: Callable[[FakeSocket], None], kind: str, plan: dict[str, Any]
) -> None:
    world = World(server=only_at(3, act))
    counts = run(world, duration=0.05, reconnect=True, **plan).counts
    assert counts.reconnected >= 5
    assert counts.errors == {kind: counts.lost}
    assert counts.lost >= counts.reconnected
    assert counts.verified >= counts.reconnected


def test_a_connection_that_failed_before_it_served_is_replaced_after_a_while() -> None:
    world = World(server=only_at(1, FakeSocket.close_by_server))
    counts = run(world, duration=1.0, reconnect=True).counts
    round_trip = RETRY_AFTER + 2 * LATENCY
    assert counts.lost == pytest.approx(1_000 * MS / round_trip, abs=1)


def test_a_connection_that_cannot_be_replaced_is_tried_again() -> None:
    world = World(server=only_at(2, FakeSocket.close_by_server))
    world.dials.extend([connects, *[fails_to_connect(errno.ECONNREFUSED)] * 3, connects])
    counts = run(world, duration=0.5, reconnect=True).counts
    assert counts.errors["connect: refused"] == 3
    assert counts.failed_to_connect == 0, "those are of the connections asked for"
    assert counts.reconnected >= 1


def test_replacing_that_gets_no_answer_is_given_up_after_the_timeout_and_tried_again() -> None:
    world = World(server=only_at(2, FakeSocket.close_by_server))
    world.dials.extend([connects, never_connects, connects])
    counts = run(world, duration=1.0, reconnect=True, timeout=0.2).counts
    assert counts.errors["connect: timeout"] == 1
    assert counts.reconnected >= 1


def test_nothing_is_replaced_when_the_time_is_over() -> None:
    world = World(server=only_at(3, lambda socket: socket.close_by_server(after=20 * MS)))
    run(world, duration=0.01, reconnect=True)
    assert len(world.sockets) == 1


def test_without_replacement_a_run_ends_when_no_connection_is_left() -> None:
    outcome = run(World(server=only_at(3, FakeSocket.close_by_server)), duration=10, rate=1000)
    assert outcome.elapsed < 0.01


# Timeouts -----------------------------------------------------------------------


@pytest.mark.parametrize("plan", [{}, {"rate": 100}, {"think": 0.001}])
def test_a_reply_that_takes_too_long_costs_its_connection(plan: dict[str, Any]) -> None:
    world = World(server=only_at(2, lambda _socket: None))
    counts = run(world, connections=2, duration=1.0, timeout=0.1, reconnect=True, **plan).counts
    assert counts.timed_out == counts.errors[TIMEOUT] > 10
    assert counts.lost == counts.timed_out - 2, "those at the end are not given up"
    assert (counts.failed, counts.reconnected) == (0, counts.lost)


def test_requests_behind_one_that_timed_out_fail() -> None:
    counts = run(World(server=silent), duration=1.0, timeout=0.1, pipeline=3).counts
    assert (counts.timed_out, counts.failed, counts.lost) == (1, 2, 1)


def test_a_timeout_is_noticed_soon() -> None:
    world = World(server=silent)
    counts = run(world, duration=10, timeout=0.5, grace=0.01).counts
    assert counts.timed_out == 1
    assert world.now < 500 * MS + 2 * MOST_SHARES * LOOK_EVERY + 100 * MS


def test_idle_connections_do_not_time_out() -> None:
    counts = run(World(), connections=3, active=1, duration=1.0, timeout=0.1).counts
    assert (counts.timed_out, counts.lost) == (0, 0)


# Warming up ---------------------------------------------------------------------


@pytest.mark.parametrize("plan", [{}, {"pipeline": 2}, {"rate": 1000}])
def test_the_warm_up_is_not_counted(plan: dict[str, Any]) -> None:
    def slow_at_first(socket: FakeSocket, _number: int) -> None:
        early = socket.world.now < 30 * MS
        socket.say(EXPECTED, after=5 * MS if early else LATENCY)

    outcome = run(World(server=slow_at_first), connections=8, warmup=0.05, duration=0.1, **plan)
    counts = outcome.counts
    assert counts.latency == {bucket(LATENCY): counts.verified}
    assert outcome.elapsed == 0.1
    expected = {"rate": 100, "pipeline": 1600}.get(next(iter(plan), ""), 800)
    assert counts.on_time == pytest.approx(expected, abs=16)
    assert counts.sent_bytes == counts.sent * len(FRAME)
    assert counts.received_bytes == counts.verified * len(EXPECTED)


def test_measuring_begins_in_time_however_late_the_engine_is() -> None:
    """It stands still from 40 to 90 ms; the warm-up was to end at 50."""
    world = World()

    def stand_still() -> None:
        world.now = 90 * MS

    world.at(40 * MS, stand_still)
    outcome = run(world, connections=5, warmup=0.05, duration=0.1, rate=1000)
    counts = outcome.counts
    assert outcome.elapsed == 0.1
    # What is in flight when measuring begins is measured as well.
    assert 100 <= counts.sent + counts.unsent <= 100 + 5


def test_what_goes_wrong_while_warming_up_is_told() -> None:
    world = World(server=only_at(2, lambda socket: socket.say(b"00003abc")))
    counts = run(world, connections=2, warmup=0.05, duration=0.01, reconnect=True).counts
    assert counts.wrong >= 2


def test_warming_up_is_a_phase_of_its_own() -> None:
    snapshots = run(World(), warmup=0.6, duration=0.3).snapshots
    assert [each.phase for each in snapshots].count(Phase.WARMING) == 2
    assert all(not each.counts.sent for each in snapshots if each.phase is Phase.WARMING)


def test_a_number_of_requests_counts_from_the_end_of_the_warm_up() -> None:
    counts = run(World(), connections=2, warmup=0.05, duration=10, requests=50).counts
    assert (counts.sent, counts.verified, counts.unsent) == (50, 50, 0)


def test_stopping_while_warming_up_measures_nothing() -> None:
    world = World()
    world.at(30 * MS, world.stop)
    outcome = run(world, warmup=1.0, duration=1.0)
    assert outcome.elapsed == 0


# Traffic ------------------------------------------------------------------------


@pytest.mark.parametrize("plan", [{}, {"rate": 1000}, {"pipeline": 3}])
def test_messages_are_sent_in_turn(plan: dict[str, Any]) -> None:
    world, frames = in_turn("abc de fghi")
    counts = run(
        world,
        connections=1,
        duration=0.02,
        messages=messages([b"abc", b"de", b"fghi"], "reverse"),
        **plan,
    ).counts
    assert counts.verified == counts.sent > 6
    sent = bytes(world.sockets[0].received)
    assert sent == (b"".join(frames) * 100)[: len(sent)]


def test_a_reply_to_the_request_before_is_wrong() -> None:
    """The same bytes come each time, which is right every second time."""
    world = World(server=lambda socket, _: socket.say(b"00002ab"))
    outcome = run(world, messages=messages([b"ba", b"cd"], "reverse"))
    assert (outcome.counts.verified, outcome.counts.wrong) == (1, 1)
    assert outcome.mismatches[0].expected == b"00002dc"


@pytest.mark.parametrize("reply", [b"00000", b"00002xy", b"00003cba"])
def test_where_any_reply_will_do_it_has_to_be_well_formed(reply: bytes) -> None:
    world = World(server=lambda socket, _: socket.say(reply[:3], reply[3:]))
    counts = run(world, messages=messages([b"abc"], "none")).counts
    assert counts.verified == counts.sent == 10
    assert counts.received_bytes == 10 * len(reply)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (b"x", BAD_HEADER),
        (b"00001a00001b", UNEXPECTED_BYTES),
        (b"00001ax", UNEXPECTED_BYTES),
        (b"00001a0", UNEXPECTED_BYTES),
        (b"00001a\r\n\r\n00", UNEXPECTED_BYTES),
    ],
)
def test_what_is_no_reply_is_found_where_any_will_do(said: bytes, kind: str) -> None:
    world = World(server=only_at(3, lambda socket: socket.say(said)))
    counts = run(world, messages=messages([b"abc"], "none")).counts
    assert counts.errors == {kind: 1}
    assert counts.lost == 1
    assert counts.verified == 2 + said.startswith(b"00001a")


def test_a_reply_to_a_request_that_is_still_being_sent_is_unexpected() -> None:
    def answers_early(socket: FakeSocket) -> None:
        connects(socket)
        socket.limit_room(len(FRAME) + 3)
        socket.say(EXPECTED, EXPECTED, after=MS + MS // 4)

    world = World(server=lambda *_: None)
    world.dials.append(answers_early)
    counts = run(world, pipeline=2, duration=0.05).counts
    assert (counts.sent, counts.verified, counts.wrong, counts.failed) == (3, 1, 1, 1)
    assert counts.errors == {UNEXPECTED_BYTES: 1}


def test_several_unsent_requests_are_sent_in_order() -> None:
    def narrow(socket: FakeSocket) -> None:
        connects(socket)
        socket.limit_room(11)

    world, frames = in_turn("abc de fghi")
    world.dials.append(narrow)
    run(world, pipeline=5, duration=0.03, messages=messages([b"abc", b"de", b"fghi"], "reverse"))
    sent = bytes(world.sockets[0].received)
    assert len(sent) > 100
    assert sent == (b"".join(frames) * 100)[: len(sent)]


# Starting together ----------------------------------------------------------------


def test_nothing_is_sent_before_the_word_to_start() -> None:
    world = World()
    world.control.start = None

    def say() -> None:
        world.control.start = world.now + 7 * MS

    world.at(500 * MS, say)
    run(world, duration=0.01)
    assert world.sent_at[0] == 507 * MS


def test_connections_lost_before_the_start_are_replaced_after_it() -> None:
    world = World()
    world.control.start = None

    def close_all() -> None:
        for socket in world.sockets:
            socket.close_by_server(after=0)

    world.at(300 * MS, close_all)
    world.at(500 * MS, lambda: setattr(world.control, "start", 0))
    counts = run(world, connections=2, duration=0.1, reconnect=True).counts
    assert (counts.lost, counts.held, counts.reconnected) == (2, 2, 2)
    assert counts.verified > 0


def test_a_connection_lost_before_the_start_is_told() -> None:
    world = World()
    world.control.start = None
    world.at(300 * MS, lambda: world.sockets[0].close_by_server(after=0))
    world.at(500 * MS, lambda: setattr(world.control, "start", 0))
    counts = run(world, connections=2, duration=0.01).counts
    assert (counts.lost, counts.held) == (1, 2)
    assert counts.verified > 0


def test_connections_are_begun_at_the_rate_asked_for() -> None:
    world = World()
    begun: list[int] = []
    dial = world.dial

    def noting_dial() -> FakeSocket:
        begun.append(world.now)
        return dial()

    world.dial = noting_dial  # type: ignore[method-assign]  # to look in at each call
    run(world, connections=5, connect_rate=100, duration=0.01)
    assert begun == [n * 10 * MS for n in range(5)]


def test_a_dial_that_has_to_wait_is_made_again() -> None:
    world = World()
    world.dials.extend([BlockingIOError(errno.EAGAIN, "full"), connects])
    counts = run(world, connections=2, duration=0.01).counts
    assert (counts.held, counts.failed_to_connect) == (2, 0)


# A handshake, and what the kernel tells ---------------------------------------------


def test_a_connection_may_take_several_steps_to_make() -> None:
    world = World()
    world.handshake = [READ, WRITE]
    counts = run(world, connections=2, duration=0.01).counts
    assert counts.held == 2
    assert counts.verified > 0
    assert [socket.steps for socket in world.sockets] == [3, 3]


def test_a_sample_tells_where_replies_waited() -> None:
    """They reach the kernel after 1 ms and are read half a millisecond later."""
    world = World()
    world.stamps_waits = MS // 2
    counts = run(world, connections=51, duration=0.0101).counts
    # The first of each fifty.
    assert counts.wait.total() == counts.server.total() == 2 * counts.verified // 51
    assert set(counts.wait) == {bucket(MS // 2)}
    assert set(counts.server) == {bucket(MS // 2)}


def test_a_request_is_late_from_a_millisecond_on() -> None:
    assert LATE == MS

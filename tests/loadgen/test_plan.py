"""Plans are validated and shared out; rates and stages are read as people write them."""

from __future__ import annotations

import dataclasses
import math
import socket
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.plan import LONGEST_DURATION, Job, Plan, PlanError, parse_rate, parse_stages
from loadgen.schedule import Schedule, Stage
from loadgen.traffic import Message, Traffic
from nbnet.machine import SocketAddress

quiet = settings(deadline=None, derandomize=True)
NAN, INF = math.nan, math.inf


def test_a_plan_is_what_was_asked() -> None:
    traffic = Traffic(payload=b"hello")
    plan = Plan(connections=5000, duration=30.0, traffic=traffic)
    assert (plan.connections, plan.duration, plan.traffic) == (5000, 30.0, traffic)


# What makes no sense -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"connections": 0}, "0 connections: at least 1 is needed"),
        ({"connections": -3}, "-3 connections: at least 1 is needed"),
        ({"pipeline": 0}, "0 requests in flight a connection: at least 1 is needed"),
        ({"requests": 0}, "0 requests: at least 1 is needed"),
        ({"active": 0}, "0 active connections: at least 1 is needed"),
        ({"requests_per_connection": 0}, "0 requests a connection: at least 1 is needed"),
        (
            {"connections": 5, "active": 6},
            "6 active connections are more than the 5 held",
        ),
        ({"duration": 0.0}, "a duration of 0 s: more than 0 is needed"),
        ({"duration": -1.0}, "a duration of -1 s: more than 0 is needed"),
        ({"duration": NAN}, "a duration of nan s: more than 0 is needed"),
        ({"duration": 1e9}, "a duration of 1e+09 s: at most a year is possible"),
        ({"duration": INF}, "a duration of inf s: at most a year is possible"),
        ({"timeout": 0.0}, "a timeout of 0 s: more than 0 is needed"),
        ({"timeout": NAN}, "a timeout of nan s: more than 0 is needed"),
        ({"timeout": INF}, "a timeout of inf s: at most a year is possible"),
        ({"warmup": -1.0}, "a warm-up of -1 s: at least 0 is needed"),
        ({"warmup": NAN}, "a warm-up of nan s: at least 0 is needed"),
        ({"warmup": 1e9}, "a warm-up of 1e+09 s: at most a year is possible"),
        ({"connect_timeout": -1.0}, "a connect timeout of -1 s: at least 0 is needed"),
        ({"connect_timeout": INF}, "a connect timeout of inf s: at most a year is possible"),
        ({"think": -1.0}, "a think time of -1 s: at least 0 is needed"),
        ({"think": INF}, "a think time of inf s: at most a year is possible"),
        ({"grace": -1.0}, "a grace of -1 s: at least 0 is needed"),
        ({"grace": INF}, "a grace of inf s: at most a year is possible"),
        ({"rate": 0.0}, "a rate of 0: more than 0 is needed"),
        ({"rate": -1.0}, "a rate of -1: a number from 0 on is needed"),
        ({"rate": NAN}, "a rate of nan: a number from 0 on is needed"),
        ({"rate": INF}, "a rate of inf: a number from 0 on is needed"),
        ({"connect_rate": 0.0}, "a connect rate of 0: more than 0 is needed"),
        ({"connect_rate": -1.0}, "a connect rate of -1: a number from 0 on is needed"),
        ({"connect_rate": NAN}, "a connect rate of nan: a number from 0 on is needed"),
        ({"connect_rate": INF}, "a connect rate of inf: a number from 0 on is needed"),
        (
            {"rate": 5.0, "think": 1.0},
            "a think time belongs to a closed loop: an open one sends by its rate",
        ),
        (
            {"stages": ((10.0, 5.0),), "think": 1.0},
            "a think time belongs to a closed loop: an open one sends by its rate",
        ),
        ({"poisson": True}, "arrivals belong to an open loop: give its rate as well"),
        ({"stages": ((0.0, 5.0), (10.0, 5.0))}, "a stage of 0 s: more than 0 is needed"),
        ({"stages": ((NAN, 5.0),)}, "a stage of nan s: more than 0 is needed"),
        ({"stages": ((10.0, -5.0),)}, "a rate of -5: a number from 0 on is needed"),
        ({"stages": ((10.0, INF),)}, "a rate of inf: a number from 0 on is needed"),
        (
            {"stages": ((5.0, 0.0), (5.0, 0.0))},
            "stages to a rate of 0 alone: nothing would be sent",
        ),
        (
            {"stages": ((10.0, 0.0),), "rate": 0.0},
            "stages to a rate of 0 alone: nothing would be sent",
        ),
        (
            {"stages": ((5.0, 1.0), (4.0, 1.0))},
            (
                "the stages take 9.00 s and the duration is 10.0 s: they are the duration, "
                "give no other"
            ),
        ),
        (
            {"stages": ((INF, 5.0),)},
            (
                "the stages take inf s and the duration is 10.0 s: they are the duration, "
                "give no other"
            ),
        ),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(PlanError) as caught:
        Plan(**given)
    assert str(caught.value) == says


@pytest.mark.parametrize(
    "given",
    [
        {"duration": LONGEST_DURATION},
        {"warmup": LONGEST_DURATION},
        {"connections": 1, "pipeline": 1, "requests": 1, "active": 1},
        {"grace": 0.0, "connect_timeout": 0.0},
        {"rate": 1e-6},
        {"rate": 0.0, "stages": ((10.0, 5.0),)},
        {"rate": 5.0, "stages": ((10.0, 0.0),)},
        {"stages": ((5.0, 0.0), (5.0, 1.0))},
        {"stages": ((0.1, 1.0),) * 3, "duration": 0.3},  # as far as floats add up
    ],
)
def test_the_extremes_of_what_makes_sense_are_taken(given: dict[str, Any]) -> None:
    Plan(**given)


# What follows from a plan ------------------------------------------------------------


def test_a_rate_or_stages_open_the_loop() -> None:
    assert not Plan().is_open_loop
    assert Plan(rate=5.0).is_open_loop
    assert Plan(stages=((10.0, 5.0),)).is_open_loop


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ({}, True),
        ({"active": 5, "warmup": 1.0, "connect_rate": 5.0, "reconnect": False}, True),
        ({"rate": 5.0}, False),
        ({"stages": ((10.0, 5.0),)}, False),
        ({"pipeline": 2}, False),
        ({"think": 0.1}, False),
        ({"requests": 5}, False),
        ({"requests_per_connection": 5}, False),
    ],
)
def test_a_plain_plan_asks_for_nothing_between_reply_and_request(
    given: dict[str, Any], plain: bool
) -> None:
    assert Plan(**given).is_plain is plain


def test_idle_connections_send_nothing() -> None:
    assert (Plan(connections=10, pipeline=4).senders, Plan(connections=10).in_flight) == (10, 10)
    plan = Plan(connections=10, active=3, pipeline=4)
    assert (plan.senders, plan.in_flight) == (3, 12)


def test_connecting_may_take_as_much_longer_as_its_rate_asks() -> None:
    assert Plan(connect_timeout=5.0).connect_seconds == 5.0
    assert Plan(connections=100, connect_rate=10.0, connect_timeout=5.0).connect_seconds == 15.0


@pytest.mark.parametrize(
    ("given", "stages"),
    [
        ({"rate": 5.0, "duration": 2.0}, [Stage(2.0, 5.0, 5.0)]),
        ({"rate": 5.0, "duration": 2.0, "warmup": 1.0}, [Stage(3.0, 5.0, 5.0)]),
        ({"stages": ((10.0, 5.0),)}, [Stage(10.0, 0.0, 5.0)]),
        (
            {"rate": 1.0, "stages": ((4.0, 5.0), (6.0, 2.0))},
            [Stage(4.0, 1.0, 5.0), Stage(6.0, 5.0, 2.0)],
        ),
        (
            {"rate": 1.0, "stages": ((10.0, 5.0),), "warmup": 3.0},
            [Stage(3.0, 1.0, 1.0), Stage(10.0, 1.0, 5.0)],
        ),
        # Warming up at nought would warm nothing.
        (
            {"stages": ((4.0, 0.0), (6.0, 5.0)), "warmup": 3.0},
            [Stage(3.0, 5.0, 5.0), Stage(4.0, 0.0, 0.0), Stage(6.0, 0.0, 5.0)],
        ),
    ],
)
def test_the_rate_over_time(given: dict[str, Any], stages: list[Stage]) -> None:
    assert Plan(**given).schedule_stages == stages


# Shares ------------------------------------------------------------------------------


@st.composite
def shared(draw: st.DrawFn) -> tuple[Plan, int]:
    """A plan, and a number of workers that it can be shared out to."""
    connections = draw(st.integers(1, 60))
    active = draw(st.none() | st.integers(1, connections))
    requests = draw(st.none() | st.integers(1, 1000))
    plan = Plan(
        connections=connections,
        active=active,
        requests=requests,
        connect_rate=draw(st.none() | st.integers(1, 1000)),
        rate=draw(st.none() | st.just(500.0)),
    )
    return plan, draw(st.integers(1, min(plan.senders, requests or plan.senders)))


@quiet
@given(shared())
def test_the_shares_add_up_to_the_plan(case: tuple[Plan, int]) -> None:
    plan, workers = case
    shares = [plan.share(worker, workers) for worker in range(workers)]
    assert sum(share.connections for share in shares) == plan.connections
    assert sum(share.senders for share in shares) == plan.senders
    if plan.requests is not None:
        assert sum(share.requests or 0 for share in shares) == plan.requests
    if plan.connect_rate is not None:
        assert sum(share.connect_rate or 0 for share in shares) == pytest.approx(plan.connect_rate)


@quiet
@given(shared())
def test_shares_differ_by_one_at_most(case: tuple[Plan, int]) -> None:
    plan, workers = case
    shares = [plan.share(worker, workers) for worker in range(workers)]
    for numbers in (
        [share.connections for share in shares],
        [share.senders for share in shares],
        [share.requests or 0 for share in shares],
    ):
        assert max(numbers) - min(numbers) <= 1


def test_a_share_is_the_plan_in_all_other_respects() -> None:
    plan = Plan(connections=10, rate=500.0, pipeline=3, seed=7, warmup=2.0)
    assert plan.share(1, 2) == dataclasses.replace(plan, connections=5)
    assert plan.share(0, 1) == plan


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"connections": 3}, "4 workers are more than the 3 connections that send"),
        ({"active": 2}, "4 workers are more than the 2 connections that send"),
        ({"requests": 3}, "4 workers are more than the 3 requests"),
    ],
)
def test_a_worker_without_work_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(PlanError) as caught:
        Plan(**given).share(0, 4)
    assert str(caught.value) == says


def job(plan: Plan, messages: int = 1, worker: int = 0, workers: int = 1) -> Job:
    return Job(
        plan=plan,
        address=SocketAddress(socket.AF_INET, ("127.0.0.1", 6789)),
        messages=(Message(b"00001x", b"00001x"),) * messages,
        worker=worker,
        workers=workers,
    )


def test_workers_begin_with_messages_far_from_each_other() -> None:
    assert [job(Plan(), 10, worker, 3).first_message for worker in range(3)] == [0, 3, 6]
    assert [job(Plan(), 1, worker, 3).first_message for worker in range(3)] == [0, 0, 0]


def test_a_closed_loop_has_no_schedule() -> None:
    assert job(Plan()).schedule is None


@pytest.mark.parametrize("poisson", [False, True])
def test_a_worker_has_its_part_of_the_schedule(poisson: bool) -> None:
    plan = Plan(duration=1.0, rate=100.0, warmup=1.0, poisson=poisson, seed=7)
    schedule = job(plan, worker=1, workers=3).schedule
    assert schedule is not None
    assert list(schedule) == list(
        Schedule([Stage(2.0, 100.0, 100.0)], poisson=poisson, seed=7, worker=1, workers=3)
    )


# Notation ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("500", 500.0),
        ("500/s", 500.0),
        ("50k", 50_000.0),
        ("50k/s", 50_000.0),
        ("1.5M", 1_500_000.0),
        ("0", 0.0),
        ("0.5", 0.5),
        (".5/s", 0.5),
        ("2.25", 2.25),
        ("1000000000000000", 1e15),
    ],
)
def test_a_rate_as_people_write_it(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


NONSENSE = [
    "",
    " ",
    "/s",
    "nan",
    "inf",
    "1e9",
    "-1",
    "+1",
    "-0.5",
    "1.",
    "1,5",
    "1_000",
    "0x10",
    "5 k",
    "5K",
    "500/m",
    "500/s/s",
    "5\n",
    "5\n/s",
    "\u0665",
    "9" * 400,
    "9" * 400 + ".5",
    "1000000000000000.5",
]


@pytest.mark.parametrize("text", NONSENSE)
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no rate") as caught:
        parse_rate(text)
    assert str(caught.value) == f"{text!r} is no rate: expected one like 500, 50k or 1.5M"


@quiet
@given(st.text(alphabet="0123456789.ekM/s-+naif", max_size=12))
def test_any_text_is_a_rate_that_a_plan_takes_or_is_refused(text: str) -> None:
    try:
        rate = parse_rate(text)
    except ValueError:
        return
    Plan(rate=rate, stages=((10.0, 1.0),))


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("10s:10k", ((10.0, 10_000.0),)),
        ("10s:10k,1m:50k/s,5:0", ((10.0, 10_000.0), (60.0, 50_000.0), (5.0, 0.0))),
        ("500ms:0.5", ((0.5, 0.5),)),
    ],
)
def test_stages_as_people_write_them(text: str, stages: tuple[tuple[float, float], ...]) -> None:
    assert parse_stages(text) == stages


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "'' is no stage: expected TIME:RATE, as in 10s:10k"),
        ("10s", "'10s' is no stage: expected TIME:RATE, as in 10s:10k"),
        ("10s:5,", "'' is no stage: expected TIME:RATE, as in 10s:10k"),
        ("10s:5;10s:5", "'10s:5;10s:5' is no stage: '5;10s:5' is no rate: "),
        ("nan:5", "'nan:5' is no stage: 'nan' is no duration: "),
        ("inf:5", "'inf:5' is no stage: 'inf' is no duration: "),
        ("-1:5", "'-1:5' is no stage: '-1' is no duration: "),
        ("1e9:5", "'1e9:5' is no stage: '1e9' is no duration: "),
        (":5", "':5' is no stage: '' is no duration: "),
        ("10s:", "'10s:' is no stage: '' is no rate: "),
        ("10s:nan", "'10s:nan' is no stage: 'nan' is no rate: "),
        ("10s:5, 10s:5", "' 10s:5' is no stage: ' 10s' is no duration: "),
    ],
)
def test_what_is_no_row_of_stages_is_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match="is no stage") as caught:
        parse_stages(text)
    assert str(caught.value).startswith(says)

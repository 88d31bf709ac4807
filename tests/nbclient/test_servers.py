"""Which server is chosen, when one is left out, and when a request is tried again."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbclient.errors import (
    ClosedError,
    ConnectError,
    ConnectionLost,
    ConnectTimeout,
    NbclientError,
    PoolTimeout,
    RemoteProtocolError,
    RequestTimeout,
)
from nbclient.servers import EJECTED_AT_MOST, EJECTED_FOR, Attempts, Server, Servers, back_off
from nbnet.notation import parse_address


def make(count: int, jitter: float = 1.0) -> Servers:
    """So many servers: a:1, b:1 and so on. With a jitter of 1, pauses are the longest."""
    names = "abcdefgh"[:count]
    return Servers([parse_address(f"{name}:1") for name in names], lambda: jitter)


def chosen(servers: Servers, now: float = 0.0, times: int = 1) -> str:
    """The names of the servers that the next requests get; all of these stay under way."""
    names = ""
    for _ in range(times):
        server = servers.choose(now)
        assert server is not None
        server.busy += 1
        names += server.name[0]
    return names


def let_fail(servers: Servers, name: str, now: float = 0.0) -> Server:
    server = next(server for server in servers.all if server.name.startswith(name))
    servers.failed(server, f"{name} is out", now)
    return server


# Choosing ----------------------------------------------------------------------


def test_servers_are_named_as_targets_are_written() -> None:
    targets = ["a:1", "[::1]:2", "tls://b:3", "unix:/run/x.sock"]
    servers = Servers([parse_address(target) for target in targets])
    assert [server.name for server in servers.all] == targets


def test_a_single_server_is_chosen_whatever_it_did() -> None:
    servers = make(1)
    assert chosen(servers, times=3) == "aaa"
    let_fail(servers, "a")
    assert chosen(servers) == "a"
    assert servers.choose(0.0, servers.all) is None


def test_equals_have_their_turns() -> None:
    servers = make(3)
    # Each request is answered before the next.
    assert [servers.choose(0.0) for _ in range(6)] == [*servers.all, *servers.all]


def test_who_has_the_fewest_requests_under_way_gets_the_next() -> None:
    servers = make(3)
    for server, busy in zip(servers.all, (3, 1, 2), strict=True):
        server.busy = busy
    assert chosen(servers, times=2)[0] == "b"
    assert sorted(server.busy for server in servers.all) == [2, 3, 3]
    assert sorted(chosen(servers, times=4)) in (list("abcc"), list("abbc"))
    assert {server.busy for server in servers.all} <= {4, 3}


@given(st.integers(2, 8), st.integers(1, 60))
def test_requests_are_spread_evenly(count: int, requests: int) -> None:
    servers = make(count)
    chosen(servers, times=requests)
    busy = [server.busy for server in servers.all]
    assert max(busy) - min(busy) <= 1


def test_what_was_tried_is_not_chosen_again() -> None:
    servers = make(3)
    tried: list[Server] = []
    for _ in range(3):
        server = servers.choose(0.0, tried)
        assert server is not None
        assert server not in tried
        tried.append(server)
    assert servers.choose(0.0, tried) is None


# Leaving out -------------------------------------------------------------------


def test_a_server_that_failed_is_left_out_for_a_while_and_then_probed() -> None:
    servers = make(2)
    server = let_fail(servers, "a", 10.0)
    assert server.reason == "a is out"
    assert server.ejected_until == 10.0 + EJECTED_FOR
    # It has fewer under way, and is left out all the same.
    assert chosen(servers, 10.0, times=3) == "bbb"
    assert chosen(servers, 9.999 + EJECTED_FOR) == "b"
    assert chosen(servers, 10.0 + EJECTED_FOR) == "a"


def test_it_is_left_out_twice_as_long_at_each_further_failure_up_to_a_limit() -> None:
    servers = make(2)
    spans = [let_fail(servers, "a", 100.0).ejected_until - 100.0 for _ in range(100)]
    assert spans[:7] == [EJECTED_FOR * 2**n for n in range(7)]
    assert set(spans[7:]) == {EJECTED_AT_MOST}


@pytest.mark.parametrize(("jitter", "share"), [(0.0, 0.5), (0.5, 0.75), (1.0, 1.0)])
def test_half_of_the_time_is_certain_and_half_is_random(jitter: float, share: float) -> None:
    server = let_fail(make(2, jitter), "a")
    assert server.ejected_until == EJECTED_FOR * share


def test_by_default_the_random_half_is_random() -> None:
    servers = Servers([parse_address("a:1"), parse_address("b:1")])
    spans = set()
    for _ in range(20):
        server = servers.all[0]
        servers.failed(server, "out", 0.0)
        spans.add(server.ejected_until)
        servers.worked(server)
    assert len(spans) > 1
    assert all(EJECTED_FOR / 2 <= span <= EJECTED_FOR for span in spans)


def test_once_it_worked_what_was_before_is_forgotten() -> None:
    servers = make(2)
    for _ in range(5):
        server = let_fail(servers, "a")
    servers.worked(server)
    assert (server.reason, server.failures, server.ejected_until) == ("", 0, 0.0)
    assert servers.choose(0.0) is server
    assert let_fail(servers, "a").ejected_until == EJECTED_FOR  # as at the first time


def test_with_all_left_out_the_one_that_is_due_first_is_tried_and_then_the_others() -> None:
    servers = make(3)
    for name, now in (("b", 0.0), ("c", 0.1), ("a", 0.2)):
        let_fail(servers, name, now)
    tried: list[Server] = []
    while (server := servers.choose(0.2, tried)) is not None:
        tried.append(server)
    assert [server.name for server in tried] == ["b:1", "c:1", "a:1"]


def test_who_is_not_left_out_is_tried_before_those_who_are() -> None:
    servers = make(3)
    let_fail(servers, "a")
    let_fail(servers, "b")
    last = servers.choose(0.0)
    assert last is servers.all[2]
    assert servers.choose(0.0, [last]) in servers.all[:2]


# Back-off ----------------------------------------------------------------------


def test_a_span_doubles_up_to_its_cap_and_never_overflows() -> None:
    assert [back_off(0.05, 2.0, times) for times in range(8)] == [
        *(0.05, 0.1, 0.2, 0.4, 0.8, 1.6),
        *(2.0, 2.0),
    ]
    assert back_off(0.05, 2.0, 100_000) == 2.0
    assert back_off(0.0, 2.0, 5) == 0.0
    assert back_off(5.0, 2.0, 0) == 2.0


def attempts(
    retries: int = 3,
    *,
    idempotent: bool = False,
    deadline: float = math.inf,
    jitter: Callable[[], float] = lambda: 1.0,
) -> Attempts:
    return Attempts(retries, 0.1, 1.0, idempotent=idempotent, deadline=deadline, jitter=jitter)


UNSENT = ConnectionLost("nothing was sent")
WHO_KNOWS = ConnectionLost("who knows", maybe_executed=True)


def test_pauses_double_until_there_are_no_retries_left() -> None:
    tries = attempts(6)
    pauses = list(iter(lambda: tries.pause(UNSENT, 0.0), None))
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert tries.made == 6


def test_with_no_retries_the_first_error_is_raised() -> None:
    assert attempts(0).pause(UNSENT, 0.0) is None


def test_a_pause_is_a_random_share_of_its_span() -> None:
    shares = itertools.cycle([0.0, 0.5, 0.25])
    tries = attempts(jitter=lambda: next(shares))
    assert [tries.pause(UNSENT, 0.0) for _ in range(3)] == [0.0, 0.1, 0.1]


def test_by_default_the_share_is_random() -> None:
    pauses = set()
    for _ in range(20):
        pause = Attempts(1, 0.1, 1.0, idempotent=False, deadline=math.inf).pause(UNSENT, 0.0)
        assert pause is not None
        assert 0.0 <= pause < 0.1
        pauses.add(pause)
    assert len(pauses) > 1


def test_what_may_have_been_executed_is_repeated_only_if_its_caller_allows_it() -> None:
    assert attempts().pause(WHO_KNOWS, 0.0) is None
    assert attempts(idempotent=True).pause(WHO_KNOWS, 0.0) == 0.1


def test_a_pause_never_reaches_the_deadline() -> None:
    tries = attempts(deadline=5.0)
    assert tries.pause(UNSENT, 4.9) is None
    assert tries.made == 0  # for it was not tried again
    assert tries.pause(UNSENT, 4.89) == 0.1
    assert tries.pause(UNSENT, 4.89) is None
    assert tries.deadline == 5.0


@pytest.mark.parametrize(
    ("error", "repeated"),
    [
        (ConnectError("refused"), True),
        (ConnectTimeout("black hole"), True),
        (RemoteProtocolError("junk"), True),
        (RequestTimeout("no reply"), False),
        (PoolTimeout("all in use"), False),
        (ClosedError("closed"), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, NbclientError) else "",
)
@pytest.mark.parametrize("maybe_executed", [False, True])
def test_there_is_no_retry_when_the_time_is_over_or_the_client_closed(
    error: NbclientError, *, repeated: bool, maybe_executed: bool
) -> None:
    error.maybe_executed = maybe_executed
    assert (attempts(idempotent=True).pause(error, 0.0) is not None) == repeated

"""When abusers begin, and that all of them end."""

from __future__ import annotations

import itertools
import os
import select
import socket
import time
from collections.abc import Callable
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from loadgen.chaos_abuses import ABUSES, FLOOD
from loadgen.chaos_storm import BULK_OF_ALL, EXAMPLES, MOST_A_SECOND, Abusers, Storm, beginning
from loadgen.dialing import KernelDialer
from loadgen.traffic import messages
from nbnet.machine import SocketAddress
from nbnet.notation import Target

CALM = Storm(
    address=SocketAddress(socket.AF_INET, ("127.0.0.1", 1)),
    messages=messages([b"abc", b"defg"], "reverse"),
    largest=None,
    abuses=("idle",),
    abusers=2,
    seconds=0.2,
    patience=0.2,
)


def against(address: Target, storm: Storm) -> Storm:
    return replace(storm, address=SocketAddress(socket.AF_INET, tuple(address)))


@given(
    abusers=st.integers(1, 300),
    seconds=st.floats(0.25, 30.0),
    abuses=st.sets(st.sampled_from(list(ABUSES)), min_size=1),
)
def test_abusers_begin_in_the_first_part_of_the_storm_and_not_all_at_once(
    abusers: int, seconds: float, abuses: set[str]
) -> None:
    storm = replace(CALM, abuses=tuple(abuses), abusers=abusers, seconds=seconds)
    starts = storm.starts()
    assert starts == sorted(starts)
    window = beginning(seconds)
    for name in abuses - {"connect-flood"}:
        times = [when for when, kind, _ in starts if kind == name]
        assert len(times) == abusers
        assert max(times) < window
    flood = [when for when, kind, _ in starts if kind == "connect-flood"]
    assert len(flood) % FLOOD == 0
    assert all(
        later - earlier > 0.9 / MOST_A_SECOND for earlier, later in itertools.pairwise(flood)
    )
    assert max(flood, default=0) <= max(window, window / 2 + FLOOD / MOST_A_SECOND)


def test_slow_readers_ask_for_less_each_the_more_there_are() -> None:
    assert replace(CALM, abusers=1000).means.bulk * 1000 <= BULK_OF_ALL


def test_those_that_are_stopped_are_neither_right_nor_wrong(address: Target) -> None:
    reading, writing = os.pipe()
    os.close(writing)  # the word to stop
    with select.epoll() as poller:
        storm = replace(against(address, CALM), seconds=60.0)
        abusers = Abusers(
            storm,
            dialer=KernelDialer(storm.address),
            poller=poller,
            clock=time.monotonic,
            stopping=reading,
        )
        [outcome] = abusers.run()
    os.close(reading)
    assert (outcome.begun, outcome.right, outcome.wrong) == (1, 0, 0)


def test_a_storm_is_over_in_time_whatever_the_server_does() -> None:
    # A clock that leaps whenever it is looked at: nothing is answered in time.
    now = iter(range(1_000_000))
    reading, writing = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as mute, select.epoll() as poller:
        storm = against(Target(*mute.getsockname()), replace(CALM, seconds=4.0, patience=100.0))
        abusers = Abusers(
            storm,
            dialer=KernelDialer(storm.address),
            poller=_Impatient(poller),
            clock=lambda: float(next(now)),
            stopping=reading,
        )
        [outcome] = abusers.run()
    os.close(reading)
    os.close(writing)
    assert outcome.begun == outcome.wrong == 2


def test_those_that_are_left_when_the_time_is_over_were_answered_wrongly() -> None:
    now = 0.0
    reading, writing = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as mute, select.epoll() as poller:
        storm = against(Target(*mute.getsockname()), replace(CALM, abusers=5, patience=100.0))

        class Leaping(_Impatient):
            def poll(self, timeout: float, maxevents: int, /) -> list[tuple[int, int]]:
                nonlocal now
                now = storm.longest if len(abusers._alive) == 5 else now + timeout
                return super().poll(timeout, maxevents)

        abusers = Abusers(
            storm,
            dialer=KernelDialer(storm.address),
            poller=Leaping(poller),
            clock=lambda: now,
            stopping=reading,
        )
        [outcome] = abusers.run()
    os.close(reading)
    os.close(writing)
    assert (outcome.begun, outcome.right, outcome.wrong) == (5, 0, 5)
    assert all(each.said.startswith("no end; 0 ") for each in outcome.examples)
    assert len(outcome.examples) == EXAMPLES < 5, "the first of them are enough"


class _Impatient:
    """A poller that never waits, since the clock goes on by itself."""

    def __init__(self, poller: select.epoll) -> None:
        self.register: Callable[[int, int], None] = poller.register
        self.modify = poller.modify
        self.unregister = poller.unregister
        self.close = poller.close
        self._poll = poller.poll

    def poll(self, timeout: float, maxevents: int, /) -> list[tuple[int, int]]:
        assert timeout >= 0
        return self._poll(0, maxevents)


class _Haunted(_Impatient):
    """Tells besides of every descriptor that it was ever told, and of one that it was not."""

    def __init__(self, poller: select.epoll, stopping: int) -> None:
        super().__init__(poller)
        self._stopping = stopping
        self._told = {1 << 20}
        self._poller = poller
        self.register = self.remember

    def remember(self, fd: int, mask: int) -> None:
        self._poller.register(fd, mask)
        self._told.add(fd)

    def poll(self, timeout: float, maxevents: int, /) -> list[tuple[int, int]]:
        events = self._poll(min(timeout, 0.01), maxevents)
        there = {fd for fd, _ in events}
        return [*events, *((fd, select.EPOLLIN) for fd in self._told - there - {self._stopping})]


def test_events_of_what_is_over_or_has_nothing_to_say_change_nothing(address: Target) -> None:
    reading, writing = os.pipe()
    with select.epoll() as poller:
        storm = replace(
            against(address, CALM),
            abuses=("split", "half-close", "bad-header", "reset"),
            abusers=3,
            seconds=1.0,
            patience=30.0,
        )
        abusers = Abusers(
            storm,
            dialer=KernelDialer(storm.address),
            poller=_Haunted(poller, reading),
            clock=time.monotonic,
            stopping=reading,
        )
        outcomes = abusers.run()
    os.close(reading)
    os.close(writing)
    assert [(each.begun, each.right, each.examples) for each in outcomes] == [(3, 3, [])] * 4

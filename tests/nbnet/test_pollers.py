"""Every poller keeps to the four calls that the loops rely on."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections.abc import Iterator

import pytest

from nbnet.pollers import (
    EDGE,
    ERROR,
    POLLERS,
    READ,
    WRITE,
    DescriptorError,
    Poller,
    SelectPoller,
    open_poller,
)


@pytest.fixture(params=POLLERS)
def poller(request: pytest.FixtureRequest) -> Iterator[Poller]:
    with contextlib.closing(open_poller(request.param)) as opened:
        yield opened


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    a, b = socket.socketpair()
    with a, b:
        yield a, b


def test_the_four_calls(poller: Poller, pair: tuple[socket.socket, socket.socket]) -> None:
    a, b = pair
    poller.register(a.fileno(), READ)
    assert poller.poll(0, 10) == []
    b.send(b"x")
    assert poller.poll(-1, 10) == [(a.fileno(), READ)]
    assert poller.poll(-1, 10) == [(a.fileno(), READ)]  # level-triggered: again
    poller.modify(a.fileno(), READ | WRITE)
    assert poller.poll(-1, 10) == [(a.fileno(), READ | WRITE)]
    poller.modify(a.fileno(), WRITE)
    assert poller.poll(-1, 10) == [(a.fileno(), WRITE)]
    poller.modify(a.fileno(), 0)
    assert poller.poll(0.001, 10) == []
    poller.unregister(a.fileno())
    assert poller.poll(0, 10) == []


def test_nobody_is_left_out_for_ever_when_events_are_many(poller: Poller) -> None:
    pairs = [socket.socketpair() for _ in range(4)]
    try:
        for a, _ in pairs:
            poller.register(a.fileno(), WRITE)
        seen = {fd for _ in range(4) for fd, _ in poller.poll(-1, 2)}
        assert seen == {a.fileno() for a, _ in pairs}
    finally:
        for each in pairs:
            each[0].close()
            each[1].close()


@pytest.mark.parametrize("name", ["epoll", "poll"])
def test_a_hang_up_is_reported_unasked(
    name: str, pair: tuple[socket.socket, socket.socket]
) -> None:
    with contextlib.closing(open_poller(name)) as poller:
        a, b = pair
        poller.register(a.fileno(), 0)
        b.close()
        [(_, mask)] = poller.poll(-1, 10)
        assert mask & ERROR


def test_an_edge_comes_once_and_again_after_modify(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    with contextlib.closing(open_poller("epoll")) as poller:
        a, b = pair
        poller.register(a.fileno(), READ | EDGE)
        b.send(b"x")
        assert poller.poll(-1, 10) == [(a.fileno(), READ)]
        assert poller.poll(0, 10) == []
        poller.modify(a.fileno(), READ | EDGE)
        assert poller.poll(-1, 10) == [(a.fileno(), READ)]
        b.shutdown(socket.SHUT_WR)
        [(_, mask)] = poller.poll(-1, 10)
        assert mask != READ  # the end of input can be told apart


def test_more_than_1023_events_come_in_one_batch() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    pairs = []
    try:
        pairs = [socket.socketpair() for _ in range(1100)]
        with contextlib.closing(open_poller()) as poller:
            for a, _ in pairs:
                poller.register(a.fileno(), WRITE)
            assert len(poller.poll(-1, 4096)) == 1100
    finally:
        for pair in pairs:
            for each in pair:
                each.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_select_refuses_a_descriptor_that_it_cannot_watch() -> None:
    poller = SelectPoller()
    with pytest.raises(DescriptorError, match="select cannot watch descriptor 1024"):
        poller.register(1024, READ)
    assert poller.poll(0, 1) == []
    reader, writer = os.pipe()
    poller.register(reader, READ)
    assert poller.poll(0, 1) == []
    os.close(writer)
    assert poller.poll(-1, 1) == [(reader, READ)]
    os.close(reader)


def test_an_unknown_poller_is_refused() -> None:
    with pytest.raises(ValueError, match="'kqueue' is no poller: expected one of epoll, poll"):
        open_poller("kqueue")

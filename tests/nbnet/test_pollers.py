"""The real poller keeps to the four calls that the loops rely on."""

from __future__ import annotations

import socket

import pytest

from nbnet.pollers import ERROR, READ, WRITE, Poller, open_poller


def test_the_four_calls() -> None:
    with open_poller() as real:
        poller: Poller = real
        a, b = socket.socketpair()
        with a, b:
            poller.register(a.fileno(), READ)
            assert poller.poll(0, 10) == []
            b.send(b"x")
            assert poller.poll(-1, 10) == [(a.fileno(), READ)]
            poller.modify(a.fileno(), READ | WRITE)
            assert poller.poll(-1, 10) == [(a.fileno(), READ | WRITE)]
            poller.unregister(a.fileno())
            assert poller.poll(0, 10) == []


def test_more_than_1023_events_come_in_one_batch() -> None:
    pairs = [socket.socketpair() for _ in range(1100)]
    try:
        with open_poller() as poller:
            for a, _ in pairs:
                poller.register(a.fileno(), WRITE)
            assert len(poller.poll(-1, 4096)) == 1100
    finally:
        for pair in pairs:
            for each in pair:
                each.close()


def test_errors_are_reported_unasked() -> None:
    a, b = socket.socketpair()
    with a, open_poller() as poller:
        b.close()
        poller.register(a.fileno(), 0)
        [(_, mask)] = poller.poll(-1, 10)
        assert mask & ERROR


def test_a_closed_poller_says_so() -> None:
    poller = open_poller()
    poller.close()
    with pytest.raises(ValueError, match="closed"):
        poller.poll(0, 1)

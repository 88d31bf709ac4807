"""A worker's side of the talk with its supervisor, in this process."""

from __future__ import annotations

import gc
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from nbnet.handlers import reverse
from nbnet.listeners import open_tcp
from nbnet.settings import Settings
from nbnet.worker import Control, run_worker

READ = partial(Settings.read, reverse)


@pytest.fixture
def pair() -> Iterator[tuple[Control, Control]]:
    pair = Control.pair()
    yield pair
    for end in pair:
        end.close()


def test_an_end_that_was_closed_with_words_unread_is_gone(pair: tuple[Control, Control]) -> None:
    one, other = pair
    one.send({"unread": True})
    other.close()
    assert one.receive() is None
    one.send({"to": "nobody"})


def test_a_socket_that_is_passed_is_not_for_what_a_handler_starts(
    pair: tuple[Control, Control],
) -> None:
    one, other = pair
    with socket.socket() as link:
        one.send({"hand over": True}, link)
    heard = other.receive()
    assert heard is not None
    assert heard[1] is not None
    with heard[1]:
        assert not heard[1].get_inheritable()


def run(pair: tuple[Control, Control], act: Callable[[], object]) -> bool:
    """Run a worker in this thread, and something beside it once it is ready."""

    def beside() -> None:
        ready.wait(20)
        act()

    ready = threading.Event()
    ours, theirs = pair
    [bound] = open_tcp("127.0.0.1", 0)
    helper = threading.Thread(target=beside)
    helper.start()
    try:
        return run_worker(READ, [bound.for_worker(0)], theirs, None, 0, lambda _: ready.set())
    finally:
        helper.join()
        bound.close()
        gc.unfreeze()
        assert ours.receive() is not None


def test_a_worker_ends_when_its_supervisor_does(pair: tuple[Control, Control]) -> None:
    ours, _ = pair

    def act() -> None:
        ours.send({"what": "it does not know"})
        ours._connection.shutdown(socket.SHUT_WR)

    assert run(pair, act)


def test_a_spurious_word_is_none(
    pair: tuple[Control, Control], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pair
    receive, spurious = theirs.receive, [True]

    def receive_nothing_first() -> object:
        if spurious:
            spurious.clear()
            raise BlockingIOError
        return receive()

    monkeypatch.setattr(theirs, "receive", receive_nothing_first)
    assert run(pair, lambda: ours._connection.shutdown(socket.SHUT_WR))
    assert not spurious


def test_settings_that_cannot_be_read_are_told(pair: tuple[Control, Control]) -> None:
    def read() -> Settings:
        raise ValueError("no such handler")

    ours, theirs = pair
    assert not run_worker(read, [], theirs, None, 0, lambda _: None)
    assert ours.receive() == ({"failed": "no such handler"}, None)

"""Waking a waiting poller."""

from __future__ import annotations

import contextlib
import threading

from nbnet.pollers import READ, open_poller
from nbnet.wakeup import WakeUp


def test_a_wake_up_ends_a_wait_and_is_cleared() -> None:
    wake_up = WakeUp()
    with contextlib.closing(open_poller()) as poller:
        poller.register(wake_up.fileno(), READ)
        thread = threading.Thread(target=wake_up.set)
        thread.start()
        assert poller.poll(-1, 1) == [(wake_up.fileno(), READ)]
        thread.join()
        wake_up.clear()
        assert poller.poll(0, 1) == []
    wake_up.close()
    wake_up.close()


def test_setting_it_more_often_than_it_holds_does_not_block() -> None:
    wake_up = WakeUp()
    for _ in range(100_000):
        wake_up.set()
    wake_up.clear()
    with contextlib.closing(open_poller()) as poller:
        poller.register(wake_up.fileno(), READ)
        assert poller.poll(0, 1) == []
    wake_up.close()

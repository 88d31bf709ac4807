"""What a supervisor decides, without processes: for moments that real ones seldom meet."""

from __future__ import annotations

import errno
import math
import os
import selectors
import signal
import socket
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import pytest

from nbnet.board import Board
from nbnet.handlers import reverse
from nbnet.settings import Settings
from nbnet.supervisor import (
    FIRST_PAUSE,
    FORCED_GRACE,
    LONGEST_PAUSE,
    Process,
    Supervisor,
    board_rows,
)
from nbnet.worker import Control

NOBODY = 1 << 22  # more than the kernel's largest number of a process


class Metrics:
    """What serves metrics, and fails or ends at once."""

    error: BaseException | None = None

    def serve_forever(self) -> None:
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """As of the real one."""


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def supervisor(metrics: Metrics) -> Iterator[Supervisor]:
    board = Board(board_rows(1))
    made = Supervisor(
        partial(Settings.read, reverse), [], 1, board=board, metrics=cast("Any", metrics)
    )
    made._started = True
    yield made
    made._processes.clear()
    made._close()


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The signals that are sent, to whom."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    return sent


def worker(supervisor: Supervisor, **fields: Any) -> Process:
    """A worker that serves."""
    [slot] = supervisor._slots
    process = Process(NOBODY, slot, None, supervisor._rows.popleft(), ready=True, **fields)
    supervisor._processes[NOBODY] = slot.serving = process
    return process


def test_who_has_served_for_long_is_started_again_soon(supervisor: Supervisor) -> None:
    [slot] = supervisor._slots
    slot.pause = 8 * FIRST_PAUSE
    supervisor._ended(worker(supervisor, started=time.monotonic()), 1)
    assert slot.pause == 16 * FIRST_PAUSE
    supervisor._ended(worker(supervisor, started=time.monotonic() - 2 * LONGEST_PAUSE), 1)
    assert slot.pause == 2 * FIRST_PAUSE
    assert slot.start_at - time.monotonic() <= FIRST_PAUSE


def test_a_process_that_the_kernel_does_not_give_is_asked_for_again(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", fork)
    slots = [*supervisor._slots, supervisor._metrics_slot]
    rows = list(supervisor._rows)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    for slot in slots:
        slot.start_at = 0.0
    now = time.monotonic()
    supervisor._keep_times(now)
    assert all(now < slot.start_at <= now + 2 * FIRST_PAUSE for slot in slots)
    assert sorted(supervisor._rows) == rows
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
    assert "cannot start the worker: Resource temporarily unavailable" in caplog.text


def test_who_does_not_end_in_time_is_told_and_then_killed(
    supervisor: Supervisor, killed: list[tuple[int, int]]
) -> None:
    process = worker(supervisor, end_at=5.0)
    supervisor._keep_times(4.0)
    assert not killed
    supervisor._keep_times(5.0)
    assert 5.0 < process.end_at < math.inf
    supervisor._keep_times(process.end_at)
    assert killed == [(NOBODY, signal.SIGTERM), (NOBODY, signal.SIGKILL)]


def test_a_second_and_a_third_signal_hurry(
    supervisor: Supervisor, killed: list[tuple[int, int]]
) -> None:
    process = worker(supervisor)
    supervisor._obey(signal.SIGTERM)
    supervisor._obey(signal.SIGTERM)
    assert process.end_at - time.monotonic() <= FORCED_GRACE
    supervisor._obey(signal.SIGTERM)
    assert [number for _, number in killed] == [signal.SIGTERM, signal.SIGTERM, signal.SIGKILL]


def test_a_reload_starts_a_worker_that_is_dead_just_now_at_once(supervisor: Supervisor) -> None:
    [slot] = supervisor._slots
    slot.start_at = time.monotonic() + 5.0
    supervisor._obey(signal.SIGHUP)
    supervisor._go_on_reloading()
    assert slot.start_at <= time.monotonic()


@pytest.mark.parametrize("old", ["gone", "not to be spoken to"])
def test_the_new_worker_takes_the_place_though_the_old_one_does_not_hand_over(
    supervisor: Supervisor, old: str
) -> None:
    [slot] = supervisor._slots
    if old == "gone":
        slot.start_at = time.monotonic() + 5.0
    else:
        worker(supervisor)
    slot.next = new = Process(NOBODY + 1, slot, None, 2)
    supervisor._link, there = socket.socketpair()
    with there:
        supervisor._is_ready(new)
        assert there.recv(1) == b"", "nobody is left to hand over"
    assert slot.serving is new
    assert slot.start_at == math.inf
    assert len(slot.leaving) == (old != "gone")


def test_a_reload_that_fails_while_all_ends_is_not_told(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor._obey(signal.SIGTERM)
    supervisor._reload_failed("it had to end")
    assert not caplog.text
    assert supervisor._failed_reloads == 0


def test_nobody_need_be_told_that_all_are_ready(supervisor: Supervisor) -> None:
    supervisor._started = False
    supervisor._is_ready(worker(supervisor))
    assert supervisor._started


@pytest.mark.parametrize(("error", "code"), [(None, 0), (RuntimeError("no"), 1)])
def test_the_child_that_serves_metrics_says_how_it_ended(
    supervisor: Supervisor,
    metrics: Metrics,
    error: BaseException | None,
    code: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics.error = error
    ours, theirs = Control.pair()
    try:
        assert supervisor._run_child(supervisor._metrics_slot, theirs, None, 0, 0) == code
    finally:
        ours.close()
        theirs.close()
    assert ("the metrics process crashed" in caplog.text) == (error is not None)


def test_who_is_left_after_an_error_is_killed_and_reaped() -> None:
    made = Supervisor(partial(Settings.read, reverse), [], 1, board=Board(board_rows(1)))
    [slot] = made._slots
    ours, theirs = Control.pair()
    made._selector.register(ours, selectors.EVENT_READ)
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exec sleep 600"], os.environ)
    made._processes = {
        pid: Process(pid, slot, ours, 1),
        NOBODY: Process(NOBODY, slot, None, 2),  # gone, and reaped by somebody else
    }
    made._close()
    assert not made._processes
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    assert theirs.receive() is None, "its end of the talk is closed"
    theirs.close()

"""Worker processes: started, watched, replaced and ended. The parent's side.

The supervisor owns the listening sockets and never accepts. Each worker has a
slot, which says what it listens on; whoever dies is started again in its slot,
after a pause that doubles each time, and what was waiting to be accepted waits
for the next. A reload puts a new process beside the old one, slot by slot: when
the new one is ready, the old one hands its connections over and ends.

The rules:

* this process has one thread and imports nothing of the user's: children are
  forked from it, each reads the settings afresh, and a handler that does not
  import costs a child;
* no worker outlives it: the kernel kills them (``die_with_parent``);
* a reload that fails leaves everything as it was, and the reason in the log.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import selectors
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Final, NoReturn

from nbnet import streams
from nbnet.board import Board
from nbnet.listeners import Bound
from nbnet.machine import die_with_parent
from nbnet.running import signals_call
from nbnet.settings import Settings
from nbnet.systemd import notify_ready, notify_reloading, notify_stopping
from nbnet.wakeup import WakeUp
from nbnet.worker import Control, run_worker

if TYPE_CHECKING:
    from nbnet.metrics import MetricsServer

log = logging.getLogger("nbnet")

FIRST_PAUSE: Final = 0.1
"""Seconds before a worker that died is started again; doubled each time ..."""
LONGEST_PAUSE: Final = 10.0
"""... up to this; after as long in good health it starts from the first again."""
GRACE: Final = 2.0
"""Seconds beyond what a worker was given to end in, before it is killed."""
HANDOVER_SECONDS: Final = 60.0
"""How long an old worker may take to hand its connections over before it is told
to end with what it still has."""
FORCED_GRACE: Final = 0.5
"""The same at the second signal."""


_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)


class StartError(ValueError):
    """The server cannot start with these settings; the text says why."""


@dataclass(slots=True, eq=False)
class Process:
    """A child: what it is for and how it fares.

    Attributes:
        control: this end of the talk with it; None for the one that serves metrics.
        row: where on the board it counts.
        ready: whether it said that it serves.
        failure: why it cannot, in its words.
        drain: seconds that it takes to end well, at most.
        end_at: when it has to end; infinite for not yet.
        told: whether it was told to, so that the next word is the last.
    """

    pid: int
    slot: Slot
    control: Control | None
    row: int
    ready: bool = False
    failure: str | None = None
    drain: float = 10.0
    started: float = 0.0
    end_at: float = math.inf
    told: bool = False


@dataclass(slots=True, eq=False)
class Slot:
    """A place for a process.

    Attributes:
        name: for the log.
        serving: the process that has the place.
        next: the one that is to replace it, in a reload.
        leaving: those that are handing over or ending.
        start_at: when to start one again; infinite for not at all.
    """

    name: str
    sockets: Sequence[socket.socket] = ()
    serving: Process | None = None
    next: Process | None = None
    leaving: list[Process] = field(default_factory=list)
    pause: float = FIRST_PAUSE
    start_at: float = math.inf


def board_rows(workers: int) -> int:
    """Rows of a board for so many workers, of whom each may have successors."""
    return 1 + 3 * workers


class Supervisor:
    """Runs workers until it is told to stop.

    Args:
        read: makes the settings; called in each worker.
        bounds: what to listen on, closed at the end.
        workers: how many processes serve.
        metrics: what to serve the counters with, in a process of its own.
        on_ready: called when every worker serves for the first time.
        last: whether the process ends when this does.
        in_child: a context to run a child in; its logging, for one.
    """

    def __init__(
        self,
        read: Callable[[], Settings],
        bounds: Sequence[Bound],
        workers: int,
        *,
        board: Board,
        metrics: MetricsServer | None = None,
        on_ready: Callable[[], None] | None = None,
        last: bool = False,
        in_child: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        self._read = read
        self._bounds = bounds
        self._board = board
        self._metrics = metrics
        self._on_ready = on_ready
        self._last = last
        self._in_child = in_child
        self._rows = deque(range(1, board_rows(workers)))
        self._slots = [
            Slot(
                f"worker {number + 1}" if workers > 1 else "the worker",
                [bound.for_worker(number) for bound in bounds],
            )
            for number in range(workers)
        ]
        self._metrics_slot = Slot("the metrics process")
        self._processes: dict[int, Process] = {}
        self._selector = selectors.DefaultSelector()
        self._wake_up = WakeUp()
        self._signals: deque[int] = deque()
        self._to_reload: deque[Slot] = deque()
        self._link: socket.socket | None = None  # on which the old one hands over
        self._reloading = False
        self._reload_asked = False
        self._started = False
        self._stops = 0
        self._restarts = self._reloads = self._failed_reloads = 0

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM; for the main thread.

        Raises:
            StartError: a worker could not start at the first go.
        """

        def hear(number: int, _frame: FrameType | None) -> None:
            self._signals.append(number)

        with contextlib.ExitStack() as stack:
            stack.callback(self._close)
            stack.enter_context(signals_call(hear, self._wake_up, *_SIGNALS, last=self._last))
            self._selector.register(self._wake_up, selectors.EVENT_READ, self._wake_up.clear)
            for slot in self._slots:
                slot.serving = self._start(slot)
            if self._metrics is not None:
                self._metrics_slot.serving = self._start(self._metrics_slot)
            while self._processes or not self._stops:
                self._turn()

    # What happens ----------------------------------------------------------------

    def _turn(self) -> None:
        """Wait for something and deal with it."""
        self._count_fleet()
        wait = min(self._next_time() - time.monotonic(), 60.0)
        for key, _ in self._selector.select(max(0.0, wait)):
            key.data()
        while self._signals:
            self._obey(self._signals.popleft())
        for process in list(self._processes.values()):
            with contextlib.suppress(ChildProcessError):
                pid, status = os.waitpid(process.pid, os.WNOHANG)
                if pid:
                    self._ended(process, os.waitstatus_to_exitcode(status))
        self._keep_times(time.monotonic())
        self._go_on_reloading()

    def _obey(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._reload_asked = not self._stops
        elif number != signal.SIGCHLD:
            self._stop()

    def _heard(self, process: Process) -> None:
        """A worker said something, or its end of the talk is closed."""
        with contextlib.suppress(BlockingIOError):
            self._hear(process)

    def _hear(self, process: Process) -> None:
        """As ``_heard``; raises ``BlockingIOError`` if there is nothing to hear."""
        assert process.control is not None
        heard = process.control.receive()
        if heard is None:
            self._hang_up(process)
            return
        message, _ = heard
        process.failure = message.get("failed", process.failure)
        if message.get("ready"):
            process.ready = True
            process.drain = message["drain"]
            self._is_ready(process)

    def _hang_up(self, process: Process) -> None:
        if process.control is not None:
            self._selector.unregister(process.control)
            process.control.close()
            process.control = None

    def _is_ready(self, process: Process) -> None:
        slot = process.slot
        if slot.next is process and not self._stops:
            self._replace(slot, process)
        if not self._started and all(
            each.serving is not None and each.serving.ready for each in self._slots
        ):
            self._started = True
            if self._on_ready is not None:
                self._on_ready()
            notify_ready()

    def _ended(self, process: Process, code: int) -> None:
        """A child is gone; decide what that means."""
        slot, now = process.slot, time.monotonic()
        with contextlib.suppress(BlockingIOError):
            while process.control is not None:  # its last words
                self._hear(process)
        # What a handler has forked may have the other end for as long as it likes.
        self._hang_up(process)
        del self._processes[process.pid]
        if process.row:
            self._board.retire(process.row)
            self._rows.append(process.row)
        how = f"ended by signal {-code}" if code < 0 else f"ended with code {code}"
        if process in slot.leaving:
            slot.leaving.remove(process)
            if code and not self._stops:
                log.warning("%s (%d), replaced by now, %s", slot.name, process.pid, how)
        elif process is slot.next:
            slot.next = None
            self._reload_failed(process.failure or how)
            if slot.serving is None and not self._stops:  # it died meanwhile
                self._start_later(slot)
        else:
            slot.serving = None
            if self._stops:
                return
            if not self._started:
                raise StartError(process.failure or f"{slot.name} {how} while starting")
            if slot.next is not None:
                return
            if now - process.started > LONGEST_PAUSE:
                slot.pause = FIRST_PAUSE
            log.error(
                "%s (%d) %s; starting it again in %g s",
                slot.name,
                process.pid,
                f"cannot start: {process.failure}" if process.failure else how,
                slot.pause,
            )
            self._start_later(slot)

    @staticmethod
    def _start_later(slot: Slot) -> None:
        slot.start_at = time.monotonic() + slot.pause
        slot.pause = min(2 * slot.pause, LONGEST_PAUSE)

    def _next_time(self) -> float:
        """When something is to be done even if nothing happens."""
        times = [process.end_at for process in self._processes.values()]
        times += [slot.start_at for slot in (*self._slots, self._metrics_slot)]
        return min(times, default=math.inf)

    def _keep_times(self, now: float) -> None:
        for slot in (*self._slots, self._metrics_slot):
            if now >= slot.start_at:
                slot.start_at = math.inf
                try:
                    slot.serving = self._start(slot)
                    self._restarts += 1
                except OSError as error:
                    log.error("cannot start %s: %s", slot.name, error.strerror)  # noqa: TRY400
                    self._start_later(slot)
        for process in self._processes.values():
            if now >= process.end_at:
                self._end(process, now)

    # Reloading -------------------------------------------------------------------

    def _go_on_reloading(self) -> None:
        """Replace the next worker, if that was asked for and the last one is done."""
        if self._stops or not self._started or any(s.next or s.leaving for s in self._slots):
            return
        if not self._to_reload:
            if self._reloading:
                self._reloading = False
                self._reloads += 1
                log.info("reloaded")
                notify_ready()
            if not self._reload_asked:
                return
            self._reload_asked = False
            self._reloading = True
            log.info("reloading")
            notify_reloading()
            self._to_reload.extend(self._slots)
        slot = self._to_reload.popleft()
        if slot.serving is None:  # dead just now: the next start reads the new settings
            slot.start_at = time.monotonic()
            return
        try:
            self._link, there = socket.socketpair()
            with there:
                slot.next = self._start(slot, there)
        except OSError as error:
            self._reload_failed(str(error.strerror))

    def _replace(self, slot: Slot, process: Process) -> None:
        """The new process of a slot serves: have the old one hand over."""
        old, slot.serving, slot.next = slot.serving, process, None
        slot.start_at = math.inf
        if old is not None:
            slot.leaving.append(old)
            old.end_at = time.monotonic() + HANDOVER_SECONDS
            if old.control is not None:
                old.control.send({"hand over": True}, self._link)
        self._close_link()

    def _close_link(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def _reload_failed(self, reason: str) -> None:
        self._close_link()
        if self._stops:
            return
        log.error("not reloaded, the old workers go on: %s", reason)
        self._failed_reloads += 1
        self._reloading = False
        self._to_reload.clear()
        notify_ready()

    # Processes -------------------------------------------------------------------

    def _start(self, slot: Slot, link: socket.socket | None = None) -> Process:
        """Fork a process for a slot; in the child this does not return.

        Raises:
            OSError: the kernel has no process or descriptor for it.
        """
        is_worker = slot is not self._metrics_slot
        old = slot.serving
        expected = 0
        if link is not None and old is not None and old.row in self._board.rows():
            expected = self._board.rows()[old.row].connections
        ours, theirs = Control.pair()
        row = self._rows.popleft() if is_worker else 0
        parent = os.getpid()
        self._flush()
        # A signal that comes before the child has handlers of its own is to meet
        # none of ours.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            pid = os.fork() or self._become(parent, before, slot, ours, theirs, link, expected, row)
        except OSError:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            ours.close()
            theirs.close()
            if row:
                self._rows.append(row)
            raise
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        process = Process(pid, slot, ours, row, started=time.monotonic(), ready=not is_worker)
        self._processes[pid] = process
        self._selector.register(ours, selectors.EVENT_READ, partial(self._heard, process))
        return process

    def _become(
        self,
        parent: int,
        signals: set[signal.Signals] | set[int],
        slot: Slot,
        ours: Control,
        theirs: Control,
        link: socket.socket | None,
        expected: int,
        row: int,
    ) -> NoReturn:
        """Be the child of this number's process, with these signals blocked, and end."""
        code = 1
        try:
            die_with_parent(parent)
            self._forget(slot, ours)
            signal.pthread_sigmask(signal.SIG_SETMASK, signals)
            code = self._run_child(slot, theirs, link, expected, row)
        finally:
            # Nothing of the parent's is to be unwound here.
            os._exit(code)

    def _run_child(
        self, slot: Slot, control: Control, link: socket.socket | None, expected: int, row: int
    ) -> int:
        """What a child does; gives its exit code."""
        with self._in_child():
            try:
                if slot is self._metrics_slot:
                    assert self._metrics is not None
                    self._metrics.serve_forever()
                    return 0
                publish = partial(self._board.publish, row)
                served = run_worker(self._read, slot.sockets, control, link, expected, publish)
                return int(not served)
            except BaseException:
                log.critical("%s crashed", slot.name, exc_info=True)
                return 1
            finally:
                self._flush()

    @staticmethod
    def _flush() -> None:
        """Leave nothing in a buffer that a fork would double or that ends with a child."""
        streams.flush(sys.stdout)
        streams.flush(sys.stderr)

    def _forget(self, slot: Slot, ours: Control) -> None:
        """Let go, in a child, of what is not its own."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        ours.close()
        if self._link is not None:  # or its end would never be seen
            self._link.close()
        for control in filter(None, (each.control for each in self._processes.values())):
            control.close()
        for bound in self._bounds:
            for listener in bound.sockets:
                if listener not in slot.sockets:
                    listener.close()
        if self._metrics is not None and slot is not self._metrics_slot:
            self._metrics.close()
        self._selector.close()
        self._wake_up.close()

    def _stop(self) -> None:
        """End all: well at the first call, soon at the second, now at the third."""
        self._stops += 1
        now = time.monotonic()
        if self._stops == 1:
            notify_stopping()
            for slot in (*self._slots, self._metrics_slot):
                slot.start_at = math.inf
            for bound in self._bounds:  # newcomers are refused rather than left waiting
                bound.close()
            if self._metrics is not None:
                self._metrics.close()
        for process in self._processes.values():
            process.told = self._stops > 2
            self._end(process, now)
            if self._stops == 2:
                process.end_at = now + FORCED_GRACE

    @staticmethod
    def _end(process: Process, now: float) -> None:
        """Tell a process to end, or end it if it was told before."""
        process.end_at = math.inf if process.told else now + process.drain + GRACE
        os.kill(process.pid, signal.SIGKILL if process.told else signal.SIGTERM)
        process.told = True

    def _count_fleet(self) -> None:
        fleet = self._board.fleet
        fleet.workers = sum(s.serving is not None and s.serving.ready for s in self._slots)
        fleet.restarts = self._restarts
        fleet.reloads = self._reloads
        fleet.failed_reloads = self._failed_reloads

    def _close(self) -> None:
        """Leave nothing behind, also after an error."""
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, 0)
            self._hang_up(process)
        self._processes.clear()
        self._close_link()
        for bound in self._bounds:
            bound.close()
        self._selector.close()
        self._wake_up.close()

"""The event loop on the real kernel, and the signals that stop it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import Any

from nbnet.channels import SecureSocket
from nbnet.counters import Counters
from nbnet.loop import Loop
from nbnet.machine import SPARE_FDS, fd_limit
from nbnet.pollers import open_poller
from nbnet.settings import Settings
from nbnet.threads import ThreadPool
from nbnet.wakeup import WakeUp


@contextlib.contextmanager
def open_loop(
    listeners: Sequence[socket.socket],
    settings: Settings,
    publish: Callable[[Counters], None] | None = None,
) -> Iterator[tuple[Loop, WakeUp]]:
    """A loop on the real kernel; its poller, wake-up and threads end with it.

    Args:
        listeners: listening sockets, non-blocking; the loop closes them.
        settings: what to do with what comes.
        publish: called now and then with what has been counted.
    """
    limits = settings.limits
    if not limits.max_connections:
        limits = replace(limits, max_connections=max(1, fd_limit() - SPARE_FDS))
    with contextlib.ExitStack() as stack:
        poller = stack.enter_context(contextlib.closing(open_poller(settings.poller)))
        wake_up = stack.enter_context(contextlib.closing(WakeUp()))
        pool = None
        if settings.threads:
            pool = stack.enter_context(
                contextlib.closing(ThreadPool(settings.threads, wake_up.set))
            )
        secure: Callable[[Any], SecureSocket] | None = None
        if settings.tls is not None:
            from nbnet.tls import wrap

            secure = partial(wrap, settings.tls)
        loop = Loop(
            listeners,
            settings.handler,
            poller=poller,
            clock=time.monotonic,
            wake_up=wake_up,
            limits=limits,
            edge=settings.edge,
            secure=secure,
            read=os.read,
            write=os.write,
            pool=pool,
            trusts=settings.proxies or None,
            publish=publish,
        )
        yield loop, wake_up


class Forced(BaseException):
    """A third signal: end at once. No handler's ``except Exception`` stops it."""


@contextlib.contextmanager
def signals_stop(loop: Loop, wake_up: WakeUp, *numbers: signal.Signals) -> Iterator[None]:
    """Signals of these numbers stop the loop, as long as this lasts.

    The first asks it to end well, the second to end at once, and the third
    raises ``Forced`` even in the middle of a handler.
    """
    seen = 0

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal seen
        seen += 1
        if seen > 2:
            raise Forced
        loop.stop()

    with signals_call(stop, wake_up, *numbers):
        yield


@contextlib.contextmanager
def signals_call(
    action: Callable[[int, FrameType | None], None],
    wake_up: WakeUp,
    *numbers: signal.Signals,
    last: bool = False,
) -> Iterator[None]:
    """Signals of these numbers call ``action`` and make ``wake_up`` readable.

    At the end they do what they did before; ``last`` has them do nothing more,
    for a process that ends then: one signal too many is not to change how.
    """
    before = {number: signal.signal(number, action) for number in numbers}
    # A signal that comes right before the poller waits runs no Python code until
    # the wait is over; the interpreter's own handler writes here at once.
    before_fd = signal.set_wakeup_fd(wake_up.signal_fd(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before_fd)
        for number, handler in before.items():
            # None is a handler that was not installed from Python.
            after = signal.SIG_DFL if handler is None else handler
            signal.signal(number, signal.SIG_IGN if last else after)

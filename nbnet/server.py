"""Servers for use: sockets, a thread or signals around the event loop.

``serve`` blocks and is what ``nbnet serve`` runs; ``Server`` runs in a thread
of a program that has other things to do, a test above all.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import FrameType, TracebackType
from typing import Final, Self

from nbnet.handlers import Handler, reverse
from nbnet.limits import Limits
from nbnet.loop import Loop
from nbnet.machine import SPARE_FDS, Address, fd_limit, look_up
from nbnet.notation import Target
from nbnet.pollers import POLLERS, open_poller
from nbnet.wakeup import WakeUp

log = logging.getLogger("nbnet")

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 6789
BACKLOG: Final = 4096
"""Connections that may wait to be accepted; the kernel cuts it to
net.core.somaxconn, which is 4,096 by default."""


class ListenError(OSError):
    """An address cannot be listened on; the text names it and says why."""

    def __str__(self) -> str:
        return str(self.strerror)


def open_listener(host: str, port: int) -> socket.socket:
    """A listening, non-blocking TCP socket; port 0 lets the kernel choose.

    Raises:
        ListenError: the host is unknown, or the address cannot be had.
        ValueError: there is no such port.
    """
    if not 0 <= port < 65536:
        raise ValueError(f"port {port} is outside of 0 to 65535")
    target = Target(host, port)
    try:
        address = look_up(target, passive=True)[0]
        return _listen(address)
    except OSError as error:
        raise ListenError(
            error.errno, f"cannot listen on {target}: {error.strerror or error}"
        ) from error


def _listen(address: Address) -> socket.socket:
    listener = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        # A server that restarts must not wait for the old connections' TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit this, which saves a call for each of them.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setblocking(False)
        listener.bind(address.sockaddr)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def address_of(listener: socket.socket) -> Target:
    """The address that a socket is really bound to."""
    host, port = listener.getsockname()[:2]
    return Target(host, port)


class Server:
    """A server in a thread of its own, from ``with`` to its end.

    Args:
        handler: takes the payload of a request, returns that of its reply.
            Runs in the server's thread and must not block.
        host: the address to bind; a name is resolved.
        port: the port, 0 to let the kernel choose one.
        limits: the bounds to keep.
        poller: what waits for events: "epoll", "poll" or "select".
        trigger: when events come: "level" or, with epoll only, "edge".

    Raises:
        TypeError: the handler is no function.
        ValueError: there is no such poller or trigger.

    Raises (on entering):
        ListenError: the address cannot be had; an ``OSError``.
        RuntimeError: the server was entered before.

    >>> with Server(bytes.upper, port=0) as server:
    ...     with socket.create_connection(server.address) as peer:
    ...         peer.sendall(b"00003abc")
    ...         peer.recv(100)
    b'00003ABC'
    """

    def __init__(
        self,
        handler: Handler = reverse,
        host: str = DEFAULT_HOST,
        port: int = DEFAULT_PORT,
        *,
        limits: Limits | None = None,
        poller: str = "epoll",
        trigger: str = "level",
    ) -> None:
        self._settings = _Settings.read(handler, limits, poller, trigger)
        self._host = host
        self._port = port
        self._address: Target | None = None
        self._loop: Loop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._stopping = False
        self._crash: BaseException | None = None

    @property
    def address(self) -> Target:
        """Host and port really bound, a tuple; known once the server was entered.

        Raises:
            RuntimeError: the server was not entered yet.
        """
        if self._address is None:
            raise RuntimeError("the server has no address before it is entered")
        return self._address

    def __enter__(self) -> Self:
        if self._thread is not None:
            raise RuntimeError("a Server is entered once; make another one")
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(open_listener(self._host, self._port))
            self._address = address_of(listener)
            # The loop is made here, not in the thread, so that stop() finds it.
            self._loop, _ = stack.enter_context(_open_loop(listener, self._settings))
            self._thread = threading.Thread(
                target=self._run,
                args=(stack.pop_all(),),
                name=f"nbnet {self._address}",
                daemon=True,
            )
        self._thread.start()
        return self

    def _run(self, stack: contextlib.ExitStack) -> None:
        assert self._loop is not None
        with stack:
            try:
                self._loop.run()
            except BaseException as error:
                log.critical("the server on %s crashed", self._address, exc_info=error)
                self._crash = error

    def stop(self) -> None:
        """Stop serving; returns when every connection has ended. May be called again.

        Raises:
            RuntimeError: the loop had crashed; the cause is chained.
        """
        thread, loop = self._thread, self._loop
        if thread is None or loop is None:
            return
        with self._lock:
            # Asking the loop twice would mean that it must not wait.
            if not self._stopping:
                self._stopping = True
                loop.stop()
        if thread is threading.current_thread():
            return  # a handler stops its own server: it ends after this turn
        thread.join()
        crash, self._crash = self._crash, None
        if crash is not None:
            raise RuntimeError("the server's loop crashed") from crash

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def serve(
    handler: Handler = reverse,
    host: str = DEFAULT_HOST,
    port: int = DEFAULT_PORT,
    *,
    limits: Limits | None = None,
    poller: str = "epoll",
    trigger: str = "level",
    on_listening: Callable[[Target], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; blocks. For the main thread of a program.

    Args:
        handler: takes the payload of a request, returns that of its reply.
            Runs in the event loop and must not block.
        host: the address to bind; a name is resolved.
        port: the port, 0 to let the kernel choose one.
        limits: the bounds to keep.
        poller: what waits for events: "epoll", "poll" or "select".
        trigger: when events come: "level" or, with epoll only, "edge".
        on_listening: called with the address really bound, once connections
            can be made.

    The first signal stops the server well, within ``limits.drain`` seconds; a
    second one ends it at once, and a third even in the middle of a handler.

    Raises:
        ListenError: the address cannot be had; an ``OSError``.
        ValueError: there is no such poller or trigger; or this is not the main
            thread, where signals arrive.

    Example::

        serve(bytes.upper, port=6789)
    """
    settings = _Settings.read(handler, limits, poller, trigger)
    with (
        contextlib.suppress(_Forced),
        open_listener(host, port) as listener,
        _open_loop(listener, settings) as (loop, wake_up),
        _signals_stop(loop, wake_up),
    ):
        if on_listening is not None:
            on_listening(address_of(listener))
        # What start-up allocated lives as long as the process: the garbage
        # collector need not walk it again and again.
        gc.freeze()
        loop.run()
        log.info(
            "stopped: %d requests answered on %d connections",
            loop.counters.requests,
            loop.counters.accepted,
        )


@dataclass(frozen=True, slots=True)
class _Settings:
    """What a loop is made of besides its sockets, validated."""

    handler: Handler
    limits: Limits
    poller: str
    edge: bool

    @classmethod
    def read(cls, handler: Handler, limits: Limits | None, poller: str, trigger: str) -> Self:
        if not callable(handler):
            raise TypeError(f"a handler is a function of the payload, not {handler!r}")
        if poller not in POLLERS:
            raise ValueError(f"{poller!r} is no poller: expected one of {', '.join(POLLERS)}")
        if trigger not in ("level", "edge"):
            raise ValueError(f"{trigger!r} is no trigger: expected level or edge")
        if trigger == "edge" and poller != "epoll":
            raise ValueError(f"edge-triggered events need epoll, not {poller}")
        return cls(handler, limits or Limits(), poller, trigger == "edge")


@contextlib.contextmanager
def _open_loop(listener: socket.socket, settings: _Settings) -> Iterator[tuple[Loop, WakeUp]]:
    """A loop on the real kernel, its poller and wake-up closed at the end."""
    limits = settings.limits
    if not limits.max_connections:
        limits = replace(limits, max_connections=max(1, fd_limit() - SPARE_FDS))
    with (
        contextlib.closing(open_poller(settings.poller)) as poller,
        contextlib.closing(WakeUp()) as wake_up,
    ):
        loop = Loop(
            listener,
            settings.handler,
            poller=poller,
            clock=time.monotonic,
            wake_up=wake_up,
            limits=limits,
            edge=settings.edge,
        )
        yield loop, wake_up


class _Forced(BaseException):
    """A third signal: end at once. No handler's ``except Exception`` stops it."""


@contextlib.contextmanager
def _signals_stop(loop: Loop, wake_up: WakeUp) -> Iterator[None]:
    """SIGINT and SIGTERM stop the loop, as long as this lasts."""
    seen = 0

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal seen
        seen += 1
        if seen > 2:
            raise _Forced
        loop.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    # A signal that comes right before the poller waits runs no Python code until
    # the wait is over; the interpreter's own handler writes here at once.
    before_fd = signal.set_wakeup_fd(wake_up.signal_fd(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before_fd)
        for number, handler in before.items():
            # None is a handler that was not installed from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

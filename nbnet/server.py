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
from types import FrameType, TracebackType
from typing import Final, Self

from nbnet.handlers import Handler, reverse
from nbnet.limits import Limits
from nbnet.loop import Loop
from nbnet.notation import Target
from nbnet.pollers import open_poller
from nbnet.wakeup import WakeUp

log = logging.getLogger("nbnet")

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 6789
BACKLOG: Final = 4096
"""Connections that may wait to be accepted; the kernel cuts it to
net.core.somaxconn, which is 4,096 by default."""


def open_listener(host: str, port: int) -> socket.socket:
    """A listening, non-blocking TCP socket; port 0 lets the kernel choose.

    Raises:
        OSError: the host is unknown, or the address cannot be had.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        # A server that restarts must not wait for the old connections' TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit this, which saves a call for each of them.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setblocking(False)
        listener.bind(address)
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

    Raises (on entering):
        OSError: the address cannot be had.
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
    ) -> None:
        self._handler = handler
        self._host = host
        self._port = port
        self._limits = limits or Limits()
        self._address: Target | None = None
        self._loop: Loop | None = None
        self._thread: threading.Thread | None = None
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
        listener = open_listener(self._host, self._port)
        self._address = address_of(listener)
        # The loop is made here, not in the thread, so that stop() finds it.
        stack = contextlib.ExitStack()
        self._loop, _ = stack.enter_context(_open_loop(listener, self._handler, self._limits))
        self._thread = threading.Thread(
            target=self._run, args=(stack,), name=f"nbnet {self._address}", daemon=True
        )
        self._thread.start()
        return self

    def _run(self, stack: contextlib.ExitStack) -> None:
        assert self._loop is not None
        with stack:
            try:
                self._loop.run()
            except BaseException as error:
                self._crash = error

    def stop(self) -> None:
        """Stop serving; returns when every connection has ended. May be called again.

        Raises:
            RuntimeError: the loop had crashed; the cause is chained.
        """
        thread, loop = self._thread, self._loop
        if thread is None or loop is None:
            return
        if thread.is_alive():
            loop.stop()
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
    on_listening: Callable[[Target], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; blocks. For the main thread of a program.

    Args:
        handler: takes the payload of a request, returns that of its reply.
            Runs in the event loop and must not block.
        host: the address to bind; a name is resolved.
        port: the port, 0 to let the kernel choose one.
        limits: the bounds to keep.
        on_listening: called with the address really bound, once connections
            can be made.

    The first signal stops the server well, within ``limits.drain`` seconds; a
    second one ends it at once.

    Raises:
        OSError: the address cannot be had.
        ValueError: this is not the main thread, where signals arrive.

    Example::

        serve(bytes.upper, port=6789)
    """
    with (
        open_listener(host, port) as listener,
        _open_loop(listener, handler, limits or Limits()) as (loop, wake_up),
    ):
        with _signals_stop(loop, wake_up):
            address = address_of(listener)
            if on_listening is not None:
                on_listening(address)
            # What start-up allocated lives as long as the process: the garbage
            # collector need not walk it again and again.
            gc.freeze()
            loop.run()
        log.info(
            "stopped: %d requests answered on %d connections",
            loop.counters.requests,
            loop.counters.accepted,
        )


@contextlib.contextmanager
def _open_loop(
    listener: socket.socket, handler: Handler, limits: Limits
) -> Iterator[tuple[Loop, WakeUp]]:
    """A loop on the real kernel, its poller and wake-up closed at the end."""
    with contextlib.closing(open_poller()) as poller, contextlib.closing(WakeUp()) as wake_up:
        loop = Loop(
            listener,
            handler,
            poller=poller,
            clock=time.monotonic,
            wake_up=wake_up,
            limits=limits,
        )
        yield loop, wake_up


@contextlib.contextmanager
def _signals_stop(loop: Loop, wake_up: WakeUp) -> Iterator[None]:
    """SIGINT and SIGTERM stop the loop, as long as this lasts."""

    def stop(_number: int, _frame: FrameType | None) -> None:
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
            signal.signal(number, handler)

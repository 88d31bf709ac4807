"""Servers for use: the event loop with sockets, threads, signals and processes around it.

``serve`` blocks and is what ``nbnet serve`` runs; ``Server`` runs in a thread
of a program that has other things to do, a test above all.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from nbnet.board import Board
from nbnet.counters import Counters
from nbnet.handlers import Handler, reverse
from nbnet.limits import Limits
from nbnet.listeners import Bound, is_wildcard, open_tcp, open_unix
from nbnet.loop import Loop
from nbnet.notation import Target, parse_place
from nbnet.running import Forced, open_loop, signals_stop
from nbnet.settings import Certificate, Settings
from nbnet.supervisor import Supervisor, board_rows
from nbnet.systemd import inherited, notify_ready

if TYPE_CHECKING:
    import ssl

    from nbnet.metrics import MetricsServer

log = logging.getLogger("nbnet")

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 6789


class Server:
    """A server in a thread of its own, from ``with`` to its end.

    Args:
        handler: takes the payload of a request, returns that of its reply; the
            function, or its name as ``module:function``. If it declares a
            second parameter it gets the ``Context`` there. Runs in the server's
            thread, where it must not block, unless there are ``threads``.
        host: the address to bind; a name is resolved, "*" is all of them.
        port: the port, 0 to let the kernel choose one.
        unix: the path of a unix socket to listen on instead.
        limits: the bounds to keep.
        poller: what waits for events: "epoll", "poll" or "select".
        trigger: when events come: "level" or, with epoll only, "edge".
        threads: how many threads run the handler; 0 for none.
        tls: the files for TLS, or a context made of them; without, connections
            are plain.
        proxy_protocol: networks of proxies, like ("10.0.0.0/8", "::1"); "unix"
            is a proxy that comes through a unix socket. They have to say for
            whom they speak, with a PROXY header before anything else; nobody
            else may.
        metrics: where to serve what is counted, as HOST:PORT; needs the extra
            ``nbnet[metrics]``.

    Raises:
        TypeError: the handler is no function.
        ValueError: something makes no sense or cannot be loaded.

    Raises (on entering):
        ListenError: the address cannot be had; an ``OSError``.
        MetricsUnavailable: metrics are asked for and prometheus-client is not
            installed; an ``ImportError``.
        RuntimeError: the server was entered before.

    >>> import socket
    >>> with Server(bytes.upper, port=0) as server:
    ...     with socket.create_connection(server.address) as peer:
    ...         peer.sendall(b"00003abc")
    ...         peer.recv(100)
    b'00003ABC'
    """

    def __init__(
        self,
        handler: Handler | str = reverse,
        host: str = DEFAULT_HOST,
        port: int = DEFAULT_PORT,
        *,
        unix: str | None = None,
        limits: Limits | None = None,
        poller: str = "epoll",
        trigger: str = "level",
        threads: int = 0,
        tls: Certificate | ssl.SSLContext | None = None,
        proxy_protocol: Sequence[str] = (),
        metrics: str | None = None,
    ) -> None:
        self._settings = Settings.read(
            handler,
            limits,
            poller=poller,
            trigger=trigger,
            threads=threads,
            tls=tls,
            proxy_protocol=proxy_protocol,
        )
        self._host = host
        self._port = port
        self._unix = unix
        self._metrics = None if metrics is None else parse_place(metrics)
        self._metrics_address: Target | None = None
        self._bounds: Sequence[Bound] = ()
        self._loop: Loop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._stopping = False
        self._crash: BaseException | None = None

    @property
    def address(self) -> Target:
        """Host and port really bound, a tuple; known once the server was entered.

        Raises:
            RuntimeError: the server was not entered yet, or listens on a unix
                socket.
        """
        if not self._bounds:
            raise RuntimeError("the server has no address before it is entered")
        address = self._bounds[0].address
        if not isinstance(address, Target):
            raise RuntimeError(f"the server listens on {address}, which is no host and port")
        return address

    @property
    def metrics_address(self) -> Target:
        """Where metrics are really served; known once the server was entered.

        Raises:
            RuntimeError: the server was not entered yet, or serves none.
        """
        if self._metrics_address is None:
            raise RuntimeError("the server serves no metrics")
        return self._metrics_address

    def __enter__(self) -> Self:
        if self._thread is not None:
            raise RuntimeError("a Server is entered once; make another one")
        with contextlib.ExitStack() as stack:
            bounds = stack.enter_context(_listening(self._host, self._port, self._unix))
            publish = None
            if self._metrics is not None:
                board = Board(2)
                served = stack.enter_context(_metrics_server(board, self._metrics))
                self._metrics_address = served.address
                publish = partial(board.publish, 1)
            # The loop is made here, not in the thread, so that stop() finds it.
            listeners = [bound.for_worker(0) for bound in bounds]
            self._loop, _ = stack.enter_context(open_loop(listeners, self._settings, publish))
            self._bounds = bounds
            self._thread = threading.Thread(
                target=self._run,
                args=(stack.pop_all(),),
                name=f"nbnet {bounds[0].address}",
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
                log.critical("the server on %s crashed", self._bounds[0], exc_info=error)
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
    handler: Handler | str = reverse,
    host: str = DEFAULT_HOST,
    port: int = DEFAULT_PORT,
    *,
    unix: str | None = None,
    limits: Limits | None = None,
    poller: str = "epoll",
    trigger: str = "level",
    threads: int = 0,
    tls: Certificate | ssl.SSLContext | None = None,
    proxy_protocol: Sequence[str] = (),
    metrics: str | None = None,
    workers: int | None = None,
    on_listening: Callable[[Target | str], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; blocks. For the main thread of a program.

    Args:
        handler, host, port, unix, limits, poller, trigger, threads, tls,
        proxy_protocol, metrics: as for ``Server``. Where the service manager hands over
            listening sockets (``LISTEN_FDS``), they are used instead of
            ``host``, ``port`` and ``unix``.
        workers: how many processes serve, forked from this one, which watches
            over them; SIGHUP then has them replaced one by one, without a
            connection noticing. None serves in this process, and ignores SIGHUP
            as far as Python does.
        on_listening: called with each address really bound, once connections
            can be made.

    The first signal stops the server well, within ``limits.drain`` seconds; a
    second one ends it at once, and a third even in the middle of a handler.

    A reload (SIGHUP) reads afresh what has a name: a handler given as
    ``module:function`` and the files of a ``Certificate``.

    Raises:
        ListenError: an address cannot be had; an ``OSError``.
        MetricsUnavailable: see ``Server``.
        ValueError: something makes no sense or cannot be loaded; or this is not
            the main thread, where signals arrive.

    Example::

        serve("shop.orders:handle", port=6789, workers=4)
    """
    read = partial(
        Settings.read,
        handler,
        limits,
        poller=poller,
        trigger=trigger,
        threads=threads,
        tls=tls,
        proxy_protocol=proxy_protocol,
    )
    serve_settings(
        read,
        host,
        port,
        unix=unix,
        metrics=metrics,
        workers=workers,
        on_listening=on_listening,
        secure=tls is not None,
        last=False,
    )


def serve_settings(
    read: Callable[[], Settings],
    host: str,
    port: int,
    *,
    unix: str | None,
    metrics: str | None,
    workers: int | None,
    on_listening: Callable[[Target | str], None] | None,
    secure: bool,
    last: bool,
    in_child: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> None:
    """What ``serve`` does, with settings that are made where and when they are needed.

    Args:
        read: makes the settings; called in each worker, at each reload again.
        secure: whether they say to speak TLS.
        last: whether the process ends when this does.
        in_child: a context for each worker to run in; its logging, for one.
    """
    settings = None if workers else read()
    target = None if metrics is None else parse_place(metrics)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(Forced))
        bounds = stack.enter_context(_listening(host, port, unix, workers or 1, activated=True))
        board = Board(board_rows(workers or 1))
        served = None if target is None else _metrics_server(board, target)
        if served is not None:
            stack.callback(served.close)

        def ready() -> None:
            for bound in bounds:
                if on_listening is not None:
                    on_listening(bound.address)
            if served is not None:
                log.info("metrics on http://%s/metrics", served.address)
            for bound in bounds:
                if is_wildcard(bound) and not secure:
                    log.warning("%s is open to every network, without TLS", bound.address)

        if settings is None:
            Supervisor(
                read,
                bounds,
                workers or 1,
                board=board,
                metrics=served,
                on_ready=ready,
                last=last,
                in_child=in_child,
            ).run()
        else:
            publish = partial(board.publish, 1)
            listeners = [bound.for_worker(0) for bound in bounds]
            if served is not None:
                stack.enter_context(served)
            loop, wake_up = stack.enter_context(open_loop(listeners, settings, publish))
            stack.enter_context(signals_stop(loop, wake_up, signal.SIGINT, signal.SIGTERM))
            ready()
            notify_ready()
            # What start-up allocated lives as long as the process: the garbage
            # collector need not walk it again and again.
            gc.freeze()
            loop.run()
        _say_stopped(board.totals())


def _say_stopped(totals: Counters) -> None:
    log.info("stopped: %d requests answered on %d connections", totals.requests, totals.accepted)


@contextlib.contextmanager
def _listening(
    host: str, port: int, unix: str | None, copies: int = 1, *, activated: bool = False
) -> Iterator[list[Bound]]:
    """The sockets to listen on: those that were inherited, or those that were named."""
    bounds = inherited() if activated else []
    if not bounds:
        bounds = open_tcp(host, port, copies=copies) if unix is None else [open_unix(unix)]
    try:
        yield bounds
    finally:
        for bound in bounds:
            bound.close()


def _metrics_server(board: Board, target: Target) -> MetricsServer:
    from nbnet.metrics import MetricsServer  # who serves no metrics need not load it

    return MetricsServer(board, *target)

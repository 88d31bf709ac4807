"""Prometheus metrics over HTTP, at ``/metrics``: whatever a collector tells.

The rules:

* prometheus-client is loaded when metrics are asked for, and not before;
* what asks for metrics gets a few threads and a deadline, and no more.
"""

from __future__ import annotations

import contextlib
import io
import logging
import select
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from nbnet.board import MetricsUnavailable
from nbnet.listeners import ListenError, open_tcp
from nbnet.notation import Target

if TYPE_CHECKING:
    from prometheus_client import Metric

__all__ = ["Collector", "CollectorServer", "ListenError", "MetricsUnavailable"]

log = logging.getLogger("nbnet")


class Collector(Protocol):
    """What tells metrics, for prometheus_client."""

    def collect(self) -> Iterable[Metric]:
        """The metrics as they are now; called in any thread, in several at once."""


def _open_exposition(collector: Collector) -> Callable[[str], tuple[bytes, str]]:
    """A function that writes the metrics: takes the Accept header, gives text and its type.

    Raises:
        MetricsUnavailable: prometheus-client is not installed.
    """
    try:
        from prometheus_client.exposition import choose_encoder
    except ModuleNotFoundError as error:
        raise MetricsUnavailable(
            "metrics need prometheus-client: pip install 'nbnet[metrics]'"
        ) from error

    def write(accept: str) -> tuple[bytes, str]:
        try:
            encoder, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version in the header that is none
            encoder, content_type = choose_encoder("")
        return encoder(collector), content_type

    return write


class CollectorServer:
    """Serves the metrics of a collector over HTTP, at ``/metrics``.

    It listens from the start, and answers in ``serve_forever`` or, in daemon
    threads, inside ``with``.

    Args:
        collector: what to serve.
        host, port: where, as for a server; port 0 lets the kernel choose one.
        timeout: seconds that a request may take to come, and its answer to go.
        threads: requests served at a time; others wait to be accepted.

    Attributes:
        address: host and port really bound.

    Raises:
        ListenError: the address cannot be had; an ``OSError``.
        MetricsUnavailable: prometheus-client is not installed; an ``ImportError``.
        ValueError: there is no such port.

    >>> from urllib.request import urlopen
    >>> from prometheus_client import CollectorRegistry, Gauge
    >>> registry = CollectorRegistry()
    >>> Gauge("answer", "Of all.", registry=registry).set(42)
    >>> with CollectorServer(registry, "127.0.0.1", 0) as server:
    ...     with urlopen(f"http://{server.address}/metrics") as answer:
    ...         b"answer 42.0" in answer.read()
    True
    """

    def __init__(
        self,
        collector: Collector,
        host: str,
        port: int,
        *,
        timeout: float = 5.0,
        threads: int = 4,
    ) -> None:
        self._site = _Site(_open_exposition(collector), timeout)
        try:
            self._bounds = open_tcp(host, port)
        except ListenError as error:
            text = str(error).replace("cannot listen on", "cannot serve metrics on", 1)
            raise ListenError(error.errno, text) from error
        address = self._bounds[0].address
        assert isinstance(address, Target)
        self.address: Target = address
        self._listeners = [each for bound in self._bounds for each in bound.sockets]
        self._count = threads
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._open: set[socket.socket] = set()

    def serve_forever(self) -> None:
        """Serve until the process ends or another thread calls ``close``."""
        with self:
            for thread in self._threads:
                thread.join()

    def close(self) -> None:
        """Stop serving and listening; may be called again, and in forked processes.

        A process that does not serve only lets go of its copies of the sockets.
        """
        with self._lock:
            self._closing.set()
            if self._threads:
                for each in (*self._listeners, *self._open):
                    # This wakes whoever waits for it. The peer may be gone.
                    with contextlib.suppress(OSError):
                        each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for bound in self._bounds:
            bound.close()

    def __enter__(self) -> Self:
        with self._lock:
            if self._closing.is_set() or self._threads:
                raise RuntimeError("a server of metrics serves once; make another one")
            self._threads = [
                threading.Thread(target=self._serve, name=f"nbnet metrics {number}", daemon=True)
                for number in range(self._count)
            ]
            for thread in self._threads:
                thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _serve(self) -> None:
        """What each thread does: take a connection and answer it, one after the other."""
        poller = select.poll()
        listeners = {listener.fileno(): listener for listener in self._listeners}
        for descriptor in listeners:
            poller.register(descriptor, select.POLLIN)
        while not self._closing.is_set():
            for descriptor, _ in poller.poll():
                self._take(listeners[descriptor])

    def _take(self, listener: socket.socket) -> None:
        try:
            connection, peer = listener.accept()
        except BlockingIOError:  # another thread was quicker
            return
        except OSError as error:
            # For want of descriptors, as a rule; they are for others to give back.
            if not self._closing.wait(_PAUSE):
                log.debug("metrics: cannot accept: %s", error)
            return
        with connection:
            with self._lock:
                if self._closing.is_set():
                    return
                self._open.add(connection)
            try:
                _Request(connection, peer, self._site)
            except OSError as error:
                log.debug("metrics: connection lost: %s", error)
            except Exception:
                # What a request makes the libraries raise costs the request, no thread.
                log.exception("metrics: a request was not answered")
            finally:
                with self._lock:
                    self._open.discard(connection)


_PAUSE: Final = 1.0
"""Seconds without accepting after that has failed."""


class _Site(socketserver.BaseServer):
    """What requests need to be answered, in the form in which ``http.server`` takes it."""

    def __init__(self, write: Callable[[str], tuple[bytes, str]], timeout: float) -> None:
        super().__init__(("", 0), _Request)
        self.write = write
        self.seconds = timeout


class _Request(BaseHTTPRequestHandler):
    """One request, on a connection of its own."""

    server: _Site

    def setup(self) -> None:
        super().setup()
        self._end = time.monotonic() + self.server.seconds
        self.rfile.close()
        self.rfile = io.BufferedReader(_Punctual(self.connection, self._end))

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(HTTPStatus.NOT_FOUND, explain="Metrics are at /metrics.")
            return
        text, content_type = self.server.write(self.headers.get("Accept", ""))
        self.connection.settimeout(_left(self._end))
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def do_HEAD(self) -> None:
        self.do_GET()

    def version_string(self) -> str:
        return "nbnet"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        log.debug("metrics: %s", format % args)


class _Punctual(io.RawIOBase):
    """Reads from a connection up to a time, however slowly the bytes come."""

    def __init__(self, connection: socket.socket, end: float) -> None:
        self._connection = connection
        self._end = end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._connection.settimeout(_left(self._end))
        return self._connection.recv_into(buffer)


def _left(end: float) -> float:
    """Seconds until then.

    Raises:
        TimeoutError: there are none.
    """
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time for a request is over")
    return left

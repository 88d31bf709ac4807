"""Seeing inside a server from outside: what is on a board, in Prometheus format, over HTTP.

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
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from itertools import accumulate
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from nbnet import __version__
from nbnet.board import Board, MetricsUnavailable
from nbnet.counters import HANDLER_BUCKETS, Counters
from nbnet.listeners import ListenError, open_tcp
from nbnet.notation import Target

if TYPE_CHECKING:
    from prometheus_client import Metric

log = logging.getLogger("nbnet")

_COUNTERS: Final[Mapping[str, tuple[str, str]]] = {
    "accepted": ("connections_accepted", "Connections accepted, those refused at once included."),
    "accept_failures": (
        "accept_failures",
        "Times that accepting paused for want of descriptors or memory.",
    ),
    "handed_over": ("connections_handed_over", "Connections that another process took over."),
    "adopted": ("connections_adopted", "Connections taken over from another process."),
    "requests": ("requests", "Requests answered."),
    "received_bytes": ("received_bytes", "Bytes of requests, headers included, TLS not."),
    "sent_bytes": ("sent_bytes", "Bytes of replies, headers included, TLS not."),
    "paused": ("pauses", "Times that a connection was not read because of its unsent replies."),
    "tls_handshakes": ("tls_handshakes", "TLS handshakes that came to an end."),
}
"""Metric, without prefix and ``_total``, and help text by counter."""

_REFUSALS: Final = {"refused_full": "full", "refused_per_ip": "per_ip"}
_ERRORS: Final = {
    "protocol_errors": "protocol",
    "handler_errors": "handler",
    "lost": "lost",
    "shed": "shed",
    "handshake_failures": "handshake",
    "handshake_timeouts": "handshake_timeout",
    "first_byte_timeouts": "first_byte_timeout",
    "frame_timeouts": "frame_timeout",
    "idle_timeouts": "idle_timeout",
    "write_timeouts": "write_timeout",
    "linger_timeouts": "linger_timeout",
}
"""The value of a label by counter."""

_GAUGES: Final[Mapping[str, tuple[str, str]]] = {
    "connections": ("connections", "Connections open now."),
    "paused_now": ("connections_paused", "Connections not read because of unsent replies."),
    "unsent": ("unsent_bytes", "Bytes of replies that the kernel has not taken yet."),
    "in_flight": ("requests_in_flight", "Requests that threads of the handler have now."),
}


class NbnetCollector:
    """Tells prometheus_client what is on a board; a ``Collector`` of its.

    To be registered by programs that serve metrics of their own as well::

        REGISTRY.register(NbnetCollector(board))
    """

    def __init__(self, board: Board) -> None:
        self._board = board

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            InfoMetricFamily,
        )

        totals, rows = self._board.read()
        fleet = self._board.fleet

        yield InfoMetricFamily("nbnet", "The version of nbnet.", {"version": __version__})
        for name, (metric, text) in _COUNTERS.items():
            value = getattr(totals, name)
            yield CounterMetricFamily(f"nbnet_{metric}", text, value, unit=_unit(metric))
        for name, (metric, text) in _GAUGES.items():
            value = getattr(totals, name)
            yield GaugeMetricFamily(f"nbnet_{metric}", text, value, unit=_unit(metric))

        refused = CounterMetricFamily(
            "nbnet_connections_refused",
            "Connections closed at once: there were too many, or too many from their address.",
            labels=["reason"],
        )
        for name, reason in _REFUSALS.items():
            refused.add_metric([reason], getattr(totals, name))
        yield refused
        errors = CounterMetricFamily(
            "nbnet_errors", "Connections ended because something went wrong.", labels=["kind"]
        )
        for name, kind in _ERRORS.items():
            errors.add_metric([kind], getattr(totals, name))
        yield errors
        yield _handler_times(totals)

        yield GaugeMetricFamily("nbnet_workers", "Processes that serve now.", fleet.workers)
        yield CounterMetricFamily(
            "nbnet_worker_restarts", "Processes started again after they had died.", fleet.restarts
        )
        reloads = CounterMetricFamily(
            "nbnet_reloads",
            "Reloads; after a failed one everything goes on as before.",
            labels=["result"],
        )
        reloads.add_metric(["ok"], fleet.reloads)
        reloads.add_metric(["failed"], fleet.failed_reloads)
        yield reloads

        # Numbers of rows come round again, so that there are never many labels.
        note = "a process that takes its place has another number and counts from 0."
        requests = CounterMetricFamily(
            "nbnet_worker_requests", f"Requests answered by worker; {note}", labels=["worker"]
        )
        connections = GaugeMetricFamily(
            "nbnet_worker_connections", f"Connections by worker; {note}", labels=["worker"]
        )
        for row, counters in rows.items():
            requests.add_metric([str(row)], counters.requests)
            connections.add_metric([str(row)], counters.connections)
        yield requests
        yield connections


def _unit(metric: str) -> str:
    return "bytes" if metric.endswith("_bytes") else ""


def _handler_times(totals: Counters) -> Metric:
    from prometheus_client.core import HistogramMetricFamily

    bounds = [*map(repr, HANDLER_BUCKETS), "+Inf"]
    return HistogramMetricFamily(
        "nbnet_handler_seconds",
        "Time in the handler: of every request that a thread took, else of a sample, so that "
        "the count is not the number of requests.",
        list(zip(bounds, accumulate(totals.handler_times), strict=True)),
        totals.handler_nanoseconds / 1e9,
        unit="seconds",
    )


def _open_exposition(board: Board) -> Callable[[str], tuple[bytes, str]]:
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
    collector = NbnetCollector(board)

    def write(accept: str) -> tuple[bytes, str]:
        try:
            encoder, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version in the header that is none
            encoder, content_type = choose_encoder("")
        return encoder(collector), content_type

    return write


class MetricsServer:
    """Serves the metrics of a board over HTTP, at ``/metrics``.

    It listens from the start, and answers in ``serve_forever`` or, in daemon
    threads, inside ``with``.

    Args:
        board: what to serve.
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
    >>> with MetricsServer(Board(2), "127.0.0.1", 0) as server:
    ...     with urlopen(f"http://{server.address}/metrics") as answer:
    ...         b"nbnet_requests_total 0.0" in answer.read()
    True
    """

    def __init__(
        self,
        board: Board,
        host: str,
        port: int,
        *,
        timeout: float = 5.0,
        threads: int = 4,
    ) -> None:
        self._site = _Site(_open_exposition(board), timeout)
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
                raise RuntimeError("a MetricsServer serves once; make another one")
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

"""Seeing inside a server from outside: what is on a board, for Prometheus.

prometheus-client is loaded when metrics are asked for, and not before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from nbnet import __version__
from nbnet.board import Board
from nbnet.counters import HANDLER_BUCKETS, Counters
from nbnet.http_metrics import CollectorServer

if TYPE_CHECKING:
    from prometheus_client import Metric

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
    "proxy_errors": "proxy",
    "handler_errors": "handler",
    "lost": "lost",
    "shed": "shed",
    "handshake_failures": "handshake",
    "proxy_timeouts": "proxy_timeout",
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


class MetricsServer(CollectorServer):
    """Serves the metrics of a board; see ``CollectorServer``.

    >>> from urllib.request import urlopen
    >>> with MetricsServer(Board(2), "127.0.0.1", 0) as server:
    ...     with urlopen(f"http://{server.address}/metrics") as answer:
    ...         b"nbnet_requests_total 0.0" in answer.read()
    True
    """

    def __init__(
        self, board: Board, host: str, port: int, *, timeout: float = 5.0, threads: int = 4
    ) -> None:
        super().__init__(NbnetCollector(board), host, port, timeout=timeout, threads=threads)

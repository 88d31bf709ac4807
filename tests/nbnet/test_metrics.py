"""What Prometheus is told of a board, and how."""

from __future__ import annotations

import builtins
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from http.client import HTTPConnection
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from support.counted import distinct
from support.forked import exit_code, in_child

import nbnet.board
import nbnet.http_metrics
import nbnet.metrics
from nbnet import __version__
from nbnet.board import Board, MetricsUnavailable
from nbnet.counters import HANDLER_BUCKETS, Counters
from nbnet.listeners import ListenError
from nbnet.metrics import MetricsServer, NbnetCollector
from nbnet.notation import Target

TIMEOUT = 20.0
"""Seconds that anything here may take."""


def samples(families: Iterable[Metric]) -> dict[str, float]:
    """Each sample by its name and labels, as in ``nbnet_errors_total{kind="lost"}``."""
    found = {}
    for family in families:
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def exposed(board: Board) -> dict[str, float]:
    return samples(parse_text(generate_latest(NbnetCollector(board)).decode()))


# What Prometheus is told -------------------------------------------------------


def test_every_counter_is_exposed() -> None:
    board = Board(2)
    counters = distinct()
    board.publish(1, counters)
    values = set(exposed(board).values())
    for each in fields(counters):
        value = getattr(counters, each.name)
        if each.name == "handler_times":
            value = sum(value)
        elif each.name == "handler_nanoseconds":
            value = value / 1e9
        assert value in values, each.name


def test_names_and_labels() -> None:
    """They are used by dashboards and alerts: not to be changed lightly."""
    board = Board(2)
    counters = distinct()
    board.publish(1, counters)
    found = exposed(board)
    names = {name for name in found if not name.startswith("nbnet_handler_seconds")}
    assert names == {
        f'nbnet_info{{version="{__version__}"}}',
        "nbnet_connections_accepted_total",
        'nbnet_connections_refused_total{reason="full"}',
        'nbnet_connections_refused_total{reason="per_ip"}',
        "nbnet_connections_handed_over_total",
        "nbnet_connections_adopted_total",
        "nbnet_accept_failures_total",
        "nbnet_requests_total",
        "nbnet_received_bytes_total",
        "nbnet_sent_bytes_total",
        "nbnet_pauses_total",
        "nbnet_tls_handshakes_total",
        "nbnet_connections",
        "nbnet_connections_paused",
        "nbnet_unsent_bytes",
        "nbnet_requests_in_flight",
        'nbnet_errors_total{kind="protocol"}',
        'nbnet_errors_total{kind="handler"}',
        'nbnet_errors_total{kind="lost"}',
        'nbnet_errors_total{kind="shed"}',
        'nbnet_errors_total{kind="handshake"}',
        'nbnet_errors_total{kind="proxy"}',
        'nbnet_errors_total{kind="proxy_timeout"}',
        'nbnet_errors_total{kind="handshake_timeout"}',
        'nbnet_errors_total{kind="first_byte_timeout"}',
        'nbnet_errors_total{kind="frame_timeout"}',
        'nbnet_errors_total{kind="idle_timeout"}',
        'nbnet_errors_total{kind="write_timeout"}',
        'nbnet_errors_total{kind="linger_timeout"}',
        "nbnet_workers",
        "nbnet_worker_restarts_total",
        'nbnet_reloads_total{result="ok"}',
        'nbnet_reloads_total{result="failed"}',
        'nbnet_worker_requests_total{worker="1"}',
        'nbnet_worker_connections{worker="1"}',
    }
    assert found['nbnet_errors_total{kind="lost"}'] == counters.lost
    assert found['nbnet_errors_total{kind="idle_timeout"}'] == counters.idle_timeouts
    assert found['nbnet_connections_refused_total{reason="per_ip"}'] == counters.refused_per_ip
    assert found["nbnet_connections_paused"] == counters.paused_now
    assert found["nbnet_pauses_total"] == counters.paused


def test_the_histogram_is_cumulative_and_in_seconds() -> None:
    board = Board(2)
    counters = Counters()
    for nanoseconds in (500, 1_000, 1_001, 2_000_000, 60_000_000_000):
        counters.observe_handler(nanoseconds)
    board.publish(1, counters)
    found = exposed(board)
    buckets = {
        float(name.split('"')[1]): value
        for name, value in found.items()
        if name.startswith("nbnet_handler_seconds_bucket")
    }
    assert list(buckets) == [*HANDLER_BUCKETS, float("inf")]
    assert [buckets[1e-6], buckets[4e-6], buckets[0.001024], buckets[0.004096]] == [2, 3, 3, 4]
    assert [buckets[16.777216], buckets[float("inf")]] == [4, 5]
    assert found["nbnet_handler_seconds_count"] == 5
    assert found["nbnet_handler_seconds_sum"] == pytest.approx(60.002002501)


def test_the_fleet_and_each_worker_are_exposed() -> None:
    board = Board(4)
    fleet = board.fleet
    fleet.workers, fleet.restarts, fleet.reloads, fleet.failed_reloads = 2, 3, 4, 5
    board.publish(1, Counters(requests=10, connections=1))
    board.publish(3, Counters(requests=20, connections=2))
    found = exposed(board)
    assert found["nbnet_workers"] == 2
    assert found["nbnet_worker_restarts_total"] == 3
    assert found['nbnet_reloads_total{result="ok"}'] == 4
    assert found['nbnet_reloads_total{result="failed"}'] == 5
    assert found['nbnet_worker_requests_total{worker="1"}'] == 10
    assert found['nbnet_worker_requests_total{worker="3"}'] == 20
    assert found['nbnet_worker_connections{worker="3"}'] == 2
    board.retire(3)
    found = exposed(board)
    assert 'nbnet_worker_requests_total{worker="3"}' not in found
    assert (found["nbnet_requests_total"], found["nbnet_connections"]) == (30, 1)


def test_the_collector_can_join_a_registry_of_the_program() -> None:
    board = Board(2)
    board.publish(1, Counters(requests=3))
    registry = CollectorRegistry(auto_describe=True)
    registry.register(NbnetCollector(board))
    assert registry.get_sample_value("nbnet_requests_total") == 3


# The server --------------------------------------------------------------------


@pytest.fixture
def board() -> Board:
    board = Board(2)
    board.publish(1, distinct())
    return board


@pytest.fixture
def server(board: Board) -> Iterator[MetricsServer]:
    with MetricsServer(board, "127.0.0.1", 0) as running:
        yield running


def ask(
    address: Target,
    path: str = "/metrics",
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
) -> tuple[int, str, bytes]:
    """Status, content type and content of an answer."""
    connection = HTTPConnection(address.host, address.port, timeout=TIMEOUT)
    try:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers.get("Content-Type", ""), answer.read()
    finally:
        connection.close()


def read_to_end(peer: socket.socket) -> bytes:
    return b"".join(iter(lambda: peer.recv(65536), b""))


def test_metrics_are_served_as_text(server: MetricsServer) -> None:
    status, content_type, content = ask(server.address)
    assert (status, content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
    found = samples(parse_text(content.decode()))
    assert found["nbnet_requests_total"] == distinct().requests


def test_openmetrics_is_served_to_who_asks_for_it(server: MetricsServer) -> None:
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    status, content_type, content = ask(server.address, headers={"Accept": accept})
    assert status == 200
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    parse: Callable[[str], Iterable[Metric]] = openmetrics.text_string_to_metric_families
    families = {family.name: family for family in parse(content.decode())}
    assert families["nbnet_sent_bytes"].unit == "bytes"
    assert families["nbnet_handler_seconds"].type == "histogram"
    assert samples(families.values())["nbnet_sent_bytes_total"] == distinct().sent_bytes


def test_a_version_that_is_none_gets_plain_text(server: MetricsServer) -> None:
    accept = "application/openmetrics-text; version=nonsense"
    status, content_type, _ = ask(server.address, headers={"Accept": accept})
    assert (status, content_type.partition(";")[0]) == (200, "text/plain")


def test_a_query_is_no_other_page(server: MetricsServer) -> None:
    assert ask(server.address, "/metrics?x=1")[0] == 200


@pytest.mark.parametrize("path", ["/", "/metrics/", "/favicon.ico", "//[", "*"])
def test_there_is_nothing_elsewhere(server: MetricsServer, path: str) -> None:
    status, _, content = ask(server.address, path)
    assert status == 404
    assert b"Metrics are at /metrics." in content


def test_head_gives_no_content(server: MetricsServer) -> None:
    with socket.create_connection(server.address, timeout=TIMEOUT) as peer:
        peer.sendall(b"HEAD /metrics HTTP/1.0\r\n\r\n")
        answer = read_to_end(peer)
    head, _, content = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 OK")
    assert content == b""
    length = int(head.partition(b"Content-Length: ")[2].split()[0])
    assert length == len(ask(server.address)[2])


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_nothing_but_get_and_head_is_taken(server: MetricsServer, method: str) -> None:
    assert ask(server.address, method=method)[0] == 501


def test_nonsense_is_refused_and_the_next_is_served(server: MetricsServer) -> None:
    for nonsense in (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"GET\r\n", b"\r\n"):
        with socket.create_connection(server.address, timeout=TIMEOUT) as peer:
            peer.sendall(nonsense)
            peer.shutdown(socket.SHUT_WR)
            assert b"200" not in read_to_end(peer)
    assert ask(server.address)[0] == 200


def test_peers_that_send_nothing_do_not_stop_others(board: Board) -> None:
    """More of them than there are threads are sent away when their time is over."""
    with MetricsServer(board, "127.0.0.1", 0, timeout=0.2, threads=2) as server:
        silent = [socket.create_connection(server.address, timeout=TIMEOUT) for _ in range(4)]
        assert ask(server.address)[0] == 200
        for peer in silent:
            assert peer.recv(1) == b""
            peer.close()


def test_one_silent_peer_delays_nobody(board: Board) -> None:
    with (
        MetricsServer(board, "127.0.0.1", 0, timeout=10 * TIMEOUT, threads=2) as server,
        socket.create_connection(server.address, timeout=TIMEOUT) as silent,
    ):
        for _ in range(5):
            assert ask(server.address)[0] == 200
        silent.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert silent.recv(12, socket.MSG_WAITALL) == b"HTTP/1.0 200"


def test_a_trickle_gains_no_time(board: Board) -> None:
    """The time is for the request, not for each byte of it."""
    with MetricsServer(board, "127.0.0.1", 0, timeout=0.2, threads=1) as server:
        with socket.create_connection(server.address) as peer:
            peer.sendall(b"GET /metrics HTTP/1.0\r\nX: ")
            peer.settimeout(0.02)
            started = time.monotonic()
            while time.monotonic() < started + TIMEOUT:
                try:
                    assert peer.recv(1) == b""
                    break
                except TimeoutError:
                    peer.sendall(b"x")
                except ConnectionResetError:  # it did not read the last ones
                    break
            else:
                raise AssertionError("still reading")
        assert ask(server.address)[0] == 200


def test_no_time_at_all_is_a_timeout_too(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    with (
        MetricsServer(board, "127.0.0.1", 0, timeout=0.0) as server,
        socket.create_connection(server.address, timeout=TIMEOUT) as peer,
    ):
        assert peer.recv(1) == b""
    assert [record for record in caplog.records if record.levelname != "DEBUG"] == []


def test_who_is_accepted_while_the_server_closes_is_sent_away(board: Board) -> None:
    server = MetricsServer(board, "127.0.0.1", 0)
    with socket.create_connection(server.address, timeout=TIMEOUT) as peer:
        peer.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        server._closing.set()
        server._take(server._listeners[0])
        with pytest.raises(ConnectionResetError):  # the request was not read
            peer.recv(1)
    server.close()


def test_a_request_that_makes_a_library_raise_costs_no_thread(
    board: Board, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with MetricsServer(board, "127.0.0.1", 0, threads=1) as server:
        with monkeypatch.context() as patch:

            def fail(_self: NbnetCollector) -> Iterator[Metric]:
                raise ZeroDivisionError

            patch.setattr(NbnetCollector, "collect", fail)
            with socket.create_connection(server.address, timeout=TIMEOUT) as peer:
                peer.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                assert peer.recv(1) == b""
        assert ask(server.address)[0] == 200
    assert [record.message for record in caplog.records] == ["metrics: a request was not answered"]


def test_a_peer_that_is_gone_is_no_matter(
    server: MetricsServer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("INFO", "nbnet")
    for _ in range(5):
        with socket.create_connection(server.address, timeout=TIMEOUT) as peer:
            # Reset instead of end: whoever reads or writes there gets an error.
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            peer.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
    assert ask(server.address)[0] == 200
    server.close()
    assert caplog.records == []
    assert capfd.readouterr().err == ""


def test_a_lack_of_descriptors_passes(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accepting pauses: a loop at full speed would take the time of others."""
    monkeypatch.setattr(nbnet.http_metrics, "_PAUSE", 0.01)
    server = MetricsServer(board, "127.0.0.1", 0, threads=1)
    listener, failures = server._listeners[0], iter([24, 23, 103])

    class Scarce:
        """A listener whose first calls fail."""

        def accept(self) -> tuple[socket.socket, Any]:
            for number in failures:
                raise OSError(number, os.strerror(number))
            return listener.accept()

        def __getattr__(self, name: str) -> Any:
            return getattr(listener, name)

    monkeypatch.setattr(server, "_listeners", [Scarce()])
    with server:
        assert ask(server.address)[0] == 200
    assert list(failures) == []


def test_close_waits_for_nobody(board: Board) -> None:
    """Neither for a peer that says nothing nor for one that was not accepted yet."""
    server = MetricsServer(board, "127.0.0.1", 0, timeout=10 * TIMEOUT, threads=2)
    with server:
        peers = [socket.create_connection(server.address, timeout=TIMEOUT) for _ in range(3)]
        peers[0].sendall(b"GET /met")
    assert not any(thread.is_alive() for thread in server._threads)
    for peer in peers:
        peer.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(server.address, timeout=TIMEOUT)
    server.close()


def test_a_server_serves_once(server: MetricsServer) -> None:
    with pytest.raises(RuntimeError, match="serves once"):
        server.serve_forever()
    server.close()
    with pytest.raises(RuntimeError, match="serves once"):
        server.__enter__()


def test_a_server_that_never_served_can_be_closed(board: Board) -> None:
    server = MetricsServer(board, "127.0.0.1", 0)
    server.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(server.address, timeout=TIMEOUT)


def test_serve_forever_ends_when_another_thread_closes(board: Board) -> None:
    server = MetricsServer(board, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    assert ask(server.address)[0] == 200
    server.close()
    thread.join(TIMEOUT)
    assert not thread.is_alive()


def test_a_process_of_its_own_serves_what_another_one_counts() -> None:
    board = Board(3)
    server = MetricsServer(board, "127.0.0.1", 0)
    served_by = in_child(server.serve_forever)
    try:
        assert exit_code(in_child(lambda: board.publish(1, Counters(requests=5)))) == 0
        # A process that lets go of its copy of the listener takes it from nobody.
        assert exit_code(in_child(server.close)) == 0
        server.close()
        board.retire(1)
        board.publish(2, Counters(requests=2))
        _, _, content = ask(server.address)
        assert samples(parse_text(content.decode()))["nbnet_requests_total"] == 7
    finally:
        os.kill(served_by, signal.SIGTERM)
        assert exit_code(served_by) == -signal.SIGTERM


def test_ipv6(board: Board) -> None:
    try:
        server = MetricsServer(board, "::1", 0)
    except ListenError as error:
        pytest.skip(str(error))
    with server:
        assert str(server.address).startswith("[::1]:")
        assert ask(server.address)[0] == 200


def test_an_address_that_is_taken(server: MetricsServer, board: Board) -> None:
    with pytest.raises(ListenError) as caught:
        MetricsServer(board, *server.address)
    assert str(caught.value) == (
        f"cannot serve metrics on {server.address}: Address already in use"
    )
    assert isinstance(caught.value, OSError)
    assert ask(server.address)[0] == 200


def test_without_prometheus_client(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "prometheus_client":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MetricsUnavailable) as caught:
        MetricsServer(board, "127.0.0.1", 0)
    assert str(caught.value) == "metrics need prometheus-client: pip install 'nbnet[metrics]'"
    assert isinstance(caught.value, ImportError)


def test_prometheus_client_is_imported_when_it_is_needed() -> None:
    program = (
        "import sys, nbnet.metrics; nbnet.metrics.Board(2).totals(); "
        "sys.exit('prometheus_client' in sys.modules)"
    )
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", program], os.environ)
    assert exit_code(pid) == 0

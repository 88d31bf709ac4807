"""Serving any collector; what the server does with its peers is in ``test_metrics``."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.request import urlopen

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from nbnet.http_metrics import CollectorServer


class Answers:
    """A collector that counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def collect(self) -> Iterator[Metric]:
        self.asked += 1
        yield GaugeMetricFamily("asked", "How often.", self.asked)


def test_a_collector_is_asked_for_each_request() -> None:
    with CollectorServer(Answers(), "127.0.0.1", 0, threads=1) as server:
        for number in (1, 2):
            with urlopen(f"http://{server.address}/metrics", timeout=20) as answer:
                assert f"asked {number}.0\n".encode() in answer.read()

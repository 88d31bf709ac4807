"""Serving any collector; what the server does with its peers is in ``test_metrics``."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.request import urlopen

import pytest
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from nbnet.http_metrics import CollectorServer, parse_place
from nbnet.notation import Target


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


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("127.0.0.1:9100", Target("127.0.0.1", 9100)),
        ("localhost:0", Target("localhost", 0)),
        ("[::1]:0", Target("::1", 0)),
        ("*:9100", Target("*", 9100)),
    ],
)
def test_a_place_is_a_host_and_a_port_of_which_0_is_any(text: str, place: Target) -> None:
    assert parse_place(text) == place


@pytest.mark.parametrize("text", ["", "0", ":0", "9100", "host:", "::1:0", "a b:0", "host:65536"])
def test_anything_else_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="is no place to serve: expected HOST:PORT or"):
        parse_place(text)

"""Verified traffic on a network that delays, loses and reorders packets.

The server is on one machine of the test's own and loadgen on another, see
``support.network``. Twice: once with netem, where the kernel has it, and once
with what does the same. The longer form::

    pytest -m slow tests/loadgen/test_network.py
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.network import FAR, Machine, Wire, why_no_wire, wired
from support.serving import started


@pytest.fixture(scope="module", params=["relay", "netem"])
def network(request: pytest.FixtureRequest) -> Iterator[tuple[Machine, Wire]]:
    """Where loadgen is to run, and the wire to the server."""
    if reason := why_no_wire(request.param):
        pytest.skip(reason)
    with wired(request.param) as (near, far, wire):
        serve = [sys.executable, "-m", "nbnet", "serve", "--host", FAR]
        with started(far.command(*serve)) as server:
            yield near, wire
            wire.set()
            server.end()


def load(near: Machine, *options: str) -> dict[str, Any]:
    """Run a load that must not fail; its report."""
    words = [sys.executable, "-m", "loadgen", "--target", f"{FAR}:6789"]
    report: dict[str, Any] = json.loads(near.run(*words, "--json", "-", *options))
    requests = report["requests"]
    assert requests["verified"] == requests["planned"] > 0
    assert (requests["wrong"], requests["failed"], requests["timed_out"]) == (0, 0, 0)
    return report


def test_every_reply_is_right_however_packets_are_lost_and_overtake(
    network: tuple[Machine, Wire],
) -> None:
    near, wire = network
    wire.set(delay=0.01, loss=0.01, reorder=0.25)
    sizes = ("--payload-size", "10-2KiB", "--pipeline", "4")
    report = load(near, "--conns", "16", *sizes, "--requests", "320")
    assert report["requests"]["verified"] == 320


def test_an_open_loop_shows_the_delay_of_the_network(network: tuple[Machine, Wire]) -> None:
    near, wire = network
    wire.set(delay=0.03)
    report = load(near, "--conns", "5", "--rate", "40", "--duration", "700ms")
    # There and back; to connect takes as long. A busy machine delays the most, not all.
    for figure in ("latency_seconds", "service_seconds"):
        assert 0.06 <= report[figure]["min"] < 0.1, figure
    assert 0.06 <= report["connect_seconds"]["min"] < 0.1
    assert report["split"]["server_seconds"]["p50"] >= 0.06  # the wait is not the loader's


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("delay", "loss", "reorder"),
    [(0.005, 0.05, 0.25), (0.05, 0.02, 0.5), (0.1, 0.0, 0.0), (0.001, 0.1, 0.0)],
)
def test_large_payloads_on_bad_networks(
    network: tuple[Machine, Wire], delay: float, loss: float, reorder: float
) -> None:
    near, wire = network
    wire.set(delay=delay, loss=loss, reorder=reorder)
    what = ("--payload-unique", "--payload-size", "lognormal:2000,2", "--pipeline", "8")
    often = ("--requests", "3000", "--requests-per-conn", "100", "--timeout", "60s")
    load(near, "--conns", "50", *what, *often)


@pytest.mark.slow
def test_an_outage_is_seen_by_an_open_loop_and_nothing_is_lost(
    network: tuple[Machine, Wire],
) -> None:
    """A second in which nothing comes through: who would have asked then, has waited."""
    near, wire = network
    wire.set(delay=0.01)
    words = ["--conns", "10", "--rate", "100", "--duration", "5s", "--warmup", "1s"]
    with ThreadPoolExecutor() as pool:
        loaded = pool.submit(load, near, *words, "--timeout", "20s", "--grace", "20s")
        while near.established() < 10:
            assert not loaded.done()
            time.sleep(0.05)
        time.sleep(2)  # the warm-up is over
        wire.set(loss=1)
        time.sleep(1)
        wire.set(delay=0.01)
        report = loaded.result()
    latency, service = report["latency_seconds"], report["service_seconds"]
    assert 0.02 <= latency["p50"] < 0.1
    assert latency["max"] > 0.9
    # Each connection has one request that was sent and waited; the others were due.
    assert latency["p90"] > 0.3 > service["p90"]

"""Runs on hosts with networks of their own, and one with a clock of its own."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadgen import agent

from .clusters import PATIENCE, DaskCluster, starting
from .networks import HUB, Network, network
from .processes import is_gone, wait_until
from .schema import assert_all_verified, assert_valid

AHEAD = 100_000
"""Seconds by which the monotonic clock of the second host is."""
OTHER_CLOCK = ["unshare", "--time", "--monotonic", str(AHEAD), "--fork", "--kill-child"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


class World:
    """Two hosts with a Dask worker each, and a server and the scheduler between them."""

    def __init__(
        self,
        net: Network,
        cluster: DaskCluster,
        target: str,
        hosts: list[str],
        *,
        has_other_clock: bool,
    ) -> None:
        self.net = net
        self.cluster = cluster
        self.hosts = hosts
        self.has_other_clock = has_other_clock
        self._command = [
            *(*net.inside, sys.executable, "-m", "loadgen", "--cluster", cluster.scheduler),
            *("--target", target, "--conns", "20"),
        ]

    def loadgen(self, *options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._command, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    with network() as net, contextlib.ExitStack() as stack:
        cluster = stack.enter_context(starting(folder, host=HUB, prefix=net.inside))
        (first, inside_first), (second, inside_second) = net.add_host(), net.add_host()
        clock: list[str] = []
        if not subprocess.run([*inside_second, *OTHER_CLOCK, "true"], check=False).returncode:
            clock = OTHER_CLOCK
        cluster.add(first, prefix=inside_first)
        cluster.add(second, prefix=[*inside_second, *clock])
        server = stack.enter_context(
            subprocess.Popen(
                [*net.inside, sys.executable, "-m", "nbnet", "serve", "--host", HUB, "--port", "0"],
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(server.kill)
        assert server.stderr is not None
        target = server.stderr.readline().split()[-1]
        for host in (first, second):
            cluster.wait(host)
        yield World(net, cluster, target, [first, second], has_other_clock=bool(clock))


def test_hosts_with_networks_and_a_clock_of_their_own_start_together(
    world: World, tmp_path: Path
) -> None:
    file = tmp_path / "run.json"
    with world.loadgen("--rate", "1000", "--duration", "2s", "--json", str(file)) as process:
        _, err = process.communicate(timeout=3 * PATIENCE)
    assert process.returncode == 0, err
    assert re.search(r"^2 hosts, 2 workers: 10\.91\.1\.2, 10\.91\.2\.2; clocks compared", err)
    document = json.loads(file.read_text())
    assert_valid(document)
    assert_all_verified(document, 20)
    one, other = document["hosts"]
    assert [one["host"], other["host"]] == world.hosts
    assert one["held"] == other["held"] == 10
    # Open loop at one rate of all: every second request is due to each.
    assert document["requests"]["planned"] == 2000
    assert 500 < one["requests"] <= 1000
    assert 500 < other["requests"] <= 1000
    assert abs(one["clock_offset_seconds"]) <= one["start_within_seconds"] < 0.1
    if not world.has_other_clock:
        pytest.skip("no clock of its own could be given to the second host")
    # Without allowing for it, it would have started a day later.
    assert other["clock_offset_seconds"] == pytest.approx(AHEAD, abs=0.1)
    assert other["start_within_seconds"] < 0.1
    assert other["duration_seconds"] == 2.0


def test_a_cut_link_is_noticed_and_both_sides_end_by_themselves(world: World) -> None:
    # The first one: its processes can be seen from here.
    with world.loadgen("--duration", "10m", "--cluster-keep-going") as process:
        assert process.stderr is not None
        wait_until(lambda: len(world.cluster.engines(world.hosts[0])) == 2, seconds=PATIENCE)
        pids = world.cluster.engines(world.hosts[0])
        process.stderr.readline()
        world.net.cut(1)
        cut = time.monotonic()
        line = process.stderr.readline()
        noticed = time.monotonic() - cut
        assert line.startswith("host 10.91.1.2: nothing heard for ")
        assert noticed < 1.5
        while "was lost" not in (line := process.stderr.readline()):
            assert line
        assert time.monotonic() - cut < 8.0
        assert process.poll() is None, "the other one goes on"
        process.terminate()
        out, _ = process.communicate(timeout=3 * PATIENCE)
    assert process.returncode == 130
    assert "host 10.91.1.2 was lost" in " ".join(out.split())
    # Nothing can be told to it; but nobody asks it for the time.
    wait_until(lambda: all(is_gone(pid) for pid in pids), seconds=agent.LEASE + 10)

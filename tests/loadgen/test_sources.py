"""More connections than a pair of addresses has ports, in a network of the test's own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

# A network namespace has its own loopback, which is down at first, and its own
# range of local ports.
NETWORK = """
import fcntl, pathlib, socket, struct, sys
UP = 0x1 | 0x40  # IFF_UP, IFF_RUNNING
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh", b"lo", UP))  # SIOCSIFFLAGS
pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("40000 40099")
from loadgen.cli import main
main()
"""
UNSHARE = ["unshare", "--map-root-user", "--net"]


@pytest.fixture(scope="module", autouse=True)
def _namespaces() -> None:
    if shutil.which("unshare") is None or subprocess.run([*UNSHARE, "true"]).returncode:
        pytest.skip("no network namespaces may be made here")


def loadgen(*options: str) -> subprocess.CompletedProcess[str]:
    """Run loadgen where there are 100 local ports."""
    return subprocess.run(
        [*UNSHARE, sys.executable, "-c", NETWORK, *options], capture_output=True, text=True
    )


def test_connections_to_loopback_are_spread_over_its_addresses() -> None:
    done = loadgen("--conns", "250", "--duration", "100ms", "--workers", "2", "--json", "-")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["connections"]["held"] == 250
    assert report["requests"]["verified"] > 250


def test_addresses_that_are_given_are_used_instead() -> None:
    options = ("--conns", "150", "--duration", "100ms", "--json", "-")
    done = loadgen(*options, "--source", "127.0.1.1", "--source", "127.0.1.2")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["connections"]["held"] == 150


def test_too_few_addresses_are_refused_before_anything_is_connected() -> None:
    done = loadgen("--conns", "150", "--source", "127.0.1.1")
    assert done.returncode == 2
    assert "at most 100, or 2 addresses" in done.stderr

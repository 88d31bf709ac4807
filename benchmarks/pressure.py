"""What other clients notice while somebody abuses the server.

    python benchmarks/pressure.py [--hostile 5000] [--seconds 6]

Starts ``nbnet serve``, measures verified throughput of 50 connections in peace,
under each abuse, and after it:

* stall: connections that send one byte and no more;
* deaf: connections that ask for large replies and read none;
* exhaustion: more connections than the server may have open files.

Prints throughput beside that in peace, the server's memory, and how many
hostile connections are open.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nbnet.framing import encode_frame
from nbnet.machine import raise_fd_limit
from nbnet.notation import Target, parse_target

FEW_FILES = 500
"""The server's limit of open files when they are to run out."""


@contextlib.contextmanager
def serving(*options: str, files: int | None = None) -> Iterator[tuple[int, Target]]:
    """A server in a process of its own; gives its number and address."""

    def limit() -> None:
        if files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    with subprocess.Popen(
        [sys.executable, "-m", "nbnet", "serve", "--port", "0", "--log-level", "error", *options],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,  # noqa: PLW1509  (there are no threads here)
    ) as process:
        try:
            assert process.stderr is not None
            yield process.pid, parse_target(process.stderr.readline().split()[-1])
        finally:
            process.terminate()


@contextlib.contextmanager
def load(target: Target, seconds: float) -> Iterator[Callable[[], list[int]]]:
    """50 verified connections for so long; gives what waits for their requests by second."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "loadgen", "--target", str(target), "--conns", "50"),
            *("--duration", f"{seconds}s", "--json", "-"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def series() -> list[int]:
        run = json.loads(process.communicate()[0])
        if run["verdict"] != "OK: every reply verified":
            print(f"  {run['verdict']}")
        return [second["requests"] for second in run["series"]]

    try:
        yield series
    finally:
        process.kill()
        process.wait()


def memory(pid: int) -> float:
    """Resident memory of a process in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / (1 << 20)


def stall(target: Target, count: int) -> list[socket.socket]:
    """Connections that send the first byte of a request."""
    return [talk(target, b"0") for _ in range(count)]


def deaf(target: Target, count: int) -> list[socket.socket]:
    """Connections that ask for more than the kernel holds, and read nothing.

    Not for much more: all sockets of a machine share net.ipv4.tcp_mem, and when
    that is used up every connection stands still, whoever serves it.
    """
    request = encode_frame(bytes(20_000))
    return [talk(target, request * 5) for _ in range(count)]


def crowd(target: Target, count: int) -> list[socket.socket]:
    """Connections, and nothing more."""
    return [talk(target, b"") for _ in range(count)]


def talk(target: Target, data: bytes) -> socket.socket:
    """Connect with little room for replies and send what can be sent."""
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    peer.connect(target)
    peer.setblocking(False)
    with contextlib.suppress(OSError):
        peer.send(data)
    return peer


def measure(
    name: str,
    abuse: Callable[[Target, int], list[socket.socket]],
    *options: str,
    hostile: int,
    seconds: float,
    files: int | None = None,
) -> None:
    """One abuse on a fresh server, in the middle third of a load that goes on."""
    third = int(seconds)
    with serving(*options, files=files) as (pid, target), load(target, 3 * third) as series:
        time.sleep(third)
        at_rest = memory(pid)
        peers = abuse(target, hostile)
        time.sleep(third)
        under = memory(pid)
        for peer in peers:
            peer.close()
        requests = series()
        # The seconds in which the abuse begins and ends belong to neither.
        before = statistics.median(requests[1 : third - 1])
        during = statistics.median(requests[third + 1 : 2 * third - 1])
        after = statistics.median(requests[2 * third + 1 :])
        print(
            f"{name:<12}{len(peers):>6} hostile   in peace {before:>9,.0f}/s   "
            f"under it {during / before:>5.0%}   after it {after / before:>5.0%}   "
            f"memory {at_rest:.0f} to {under:.0f} MiB",
            flush=True,
        )


def main() -> None:
    """Run each abuse in turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hostile", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each third of a run")
    options = parser.parse_args()
    raise_fd_limit()
    hostile, seconds = options.hostile, options.seconds
    measure("stall", stall, hostile=hostile, seconds=seconds)
    measure("deaf", deaf, hostile=hostile, seconds=seconds)
    measure(
        "exhaustion",
        crowd,
        "--idle-timeout",
        "0",
        hostile=2 * FEW_FILES,
        seconds=seconds,
        files=FEW_FILES,
    )


if __name__ == "__main__":
    main()

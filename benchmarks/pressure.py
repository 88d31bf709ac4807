"""What other clients notice while somebody abuses the server.

    python benchmarks/pressure.py [--hostile 5000] [--seconds 6]

Starts ``nbnet serve``, measures verified throughput of 50 connections in peace,
under each abuse, and after it:

* stall: connections that send one byte and no more;
* deaf: connections that ask for large replies and read none;
* exhaustion: more connections than the server may have open files.

Prints throughput as it begins (the deaf are served until the kernel holds no more
for them), under it and after it beside that in peace, the server's memory, and
how many hostile connections are open.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import statistics
import time
from collections.abc import Callable

from scenes import loading, serving

from nbnet.framing import encode_frame
from nbnet.machine import raise_fd_limit
from nbnet.notation import Target

FEW_FILES = 500
"""The server's limit of open files when they are to run out."""


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
    """One abuse on a fresh server, in the middle of a load that goes on."""
    part = int(seconds)
    with serving(*options, files=files) as server, loading(server.address, 50, 4 * part) as load:
        time.sleep(part)
        at_rest = server.memory()
        peers = abuse(server.address, hostile)
        time.sleep(2 * part)
        under = server.memory()
        for peer in peers:
            peer.close()
        run = load.result()
        if run["verdict"] != "OK: every reply verified":
            print(f"  {run['verdict']}")
        requests = [second["requests"] for second in run["series"]]
        # A second in which one part goes over into another belongs to neither.
        before, begin, during, after = (
            statistics.median(requests[number * part + 1 : (number + 1) * part - 1])
            for number in range(4)
        )
        print(
            f"{name:<12}{len(peers):>6} hostile   in peace {before:>9,.0f}/s   "
            f"as it begins {begin / before:>5.0%}   under it {during / before:>5.0%}   "
            f"after it {after / before:>5.0%}   memory {at_rest:.0f} to {under:.0f} MiB",
            flush=True,
        )


def main() -> None:
    """Run each abuse in turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hostile", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each quarter of a run")
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

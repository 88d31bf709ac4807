"""What an idle connection costs the server in memory of its own.

    python benchmarks/idle_memory.py [--connections 15000] [--steps 5]

Opens connections to ``nbnet serve``, each of which asks once and then rests, and
prints the growth of the worker's resident memory per connection at each step and
over all. The kernel's memory for sockets is not in it.
"""

from __future__ import annotations

import argparse
import socket

from scenes import serving

from nbnet.machine import raise_fd_limit


def main() -> None:
    """Open connections step by step and print what they cost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--connections", type=int, default=15_000)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    raise_fd_limit()
    step = options.connections // options.steps
    peers: list[socket.socket] = []
    with serving("--idle-timeout", "0", "--first-byte-timeout", "0") as server:
        first = before = server.memory()
        for number in range(1, options.steps + 1):
            for _ in range(step):
                peer = socket.create_connection(server.address)
                peer.sendall(b"00003abc")
                assert peer.recv(8, socket.MSG_WAITALL) == b"00003cba"
                peers.append(peer)
            now = server.memory()
            print(
                f"{number * step:>7,} connections  {now:>6.1f} MiB  "
                f"{(now - before) * 1024 / step:.2f} KiB for each of these"
            )
            before = now
        print(f"over all: {(before - first) * 1024 / len(peers):.2f} KiB a connection")
        for peer in peers:
            peer.close()


if __name__ == "__main__":
    main()

"""Servers in turn (A B A B ...) with many frames of mixed lengths in flight.

    python benchmarks/pipelined.py \\
        --server uvloop='python benchmarks/peers/uvloop_protocol.py {port}' \\
        --server nbnet='nbnet serve --port {port}' \\
        --conns 100 --depth 128 --runs 7

Each connection has a block of frames of its own, made beforehand along with its
replies: it sends the block, reads as many bytes as the replies have, compares
them all, and begins again. So each reply is verified, and each frame costs the
loader, one epoll loop on processor 1, next to nothing. How busy the loader was
is printed: near 100 % it was the limit, and not the server. Servers run on
processor 0; they have to reverse payloads.

The first server named is what the others are compared with. A shared machine
changes its speed by half from minute to minute: quote the ratios, which come
from neighbouring runs, and their spread.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import socket
import statistics
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass

from side_by_side import cpu_seconds, free_port, named, running

from nbnet.machine import raise_fd_limit

READ, WRITE = select.EPOLLIN, select.EPOLLOUT


class ServerError(Exception):
    """The server gave a wrong reply, closed a connection or answers no more."""


@dataclass(frozen=True)
class Block:
    """Frames sent at once, and all that has to come back."""

    requests: bytes
    replies: bytes


def make_blocks(
    count: int, depth: int, shortest: int, longest: int, *, seed: int = 0
) -> list[Block]:
    """Blocks of ``depth`` frames, all different, with payloads of random length and bytes."""
    source = random.Random(seed)
    blocks = []
    for _ in range(count):
        payloads = [source.randbytes(source.randint(shortest, longest)) for _ in range(depth)]
        blocks.append(
            Block(
                b"".join(b"%05d%b" % (len(payload), payload) for payload in payloads),
                b"".join(b"%05d%b" % (len(payload), payload[::-1]) for payload in payloads),
            )
        )
    return blocks


class Peer:
    """One connection of the loader: a block out, its replies in, and again."""

    def __init__(self, port: int, block: Block) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self._requests = memoryview(block.requests)
        self._expected = block.replies
        self._got = bytearray(len(block.replies))
        self._into = memoryview(self._got)
        self._sent = 0
        self._received = 0

    def send(self) -> bool:
        """Send what the kernel takes; whether that was the rest of the block.

        Raises:
            ServerError: the connection was lost.
        """
        try:
            self._sent += self.socket.send(self._requests[self._sent :])
        except BlockingIOError:
            return False
        except ConnectionError as error:
            raise ServerError(f"the connection was lost: {error}") from None
        return self._sent == len(self._requests)

    def receive(self) -> bool:
        """Read what has come; whether that was the rest of the replies.

        Raises:
            ServerError: the connection has ended, or a reply is wrong.
        """
        try:
            size = self.socket.recv_into(self._into[self._received :])
        except BlockingIOError:
            return False
        except ConnectionError as error:
            raise ServerError(f"the connection was lost: {error}") from None
        if not size:
            raise ServerError("the server closed a connection")
        self._received += size
        if self._received < len(self._expected):
            return False
        if self._got != self._expected:
            at = next(i for i, byte in enumerate(self._expected) if byte != self._got[i])
            raise ServerError(
                f"wrong reply at byte {at}: expected {self._expected[at : at + 40]!r}, "
                f"got {bytes(self._got[at : at + 40])!r}"
            )
        self._sent = self._received = 0
        return True


@dataclass(frozen=True)
class Measured:
    """What one run came to.

    Attributes:
        blocks: whole blocks whose replies were verified.
        seconds: how long that took.
        busy: the part of it that the loader used its processor.
    """

    blocks: int
    seconds: float
    busy: float


def load(port: int, blocks: list[Block], seconds: float) -> Measured:
    """Send each block again and again on a connection of its own, for so long.

    What is in flight at the end is waited for, so that connections end well.

    Raises:
        ServerError: the server gave a wrong reply, ended a connection, or
            answered nothing for 10 s.
    """
    with ExitStack() as stack:
        poller = stack.enter_context(select.epoll())
        peers = {}
        for block in blocks:
            peer = Peer(port, block)
            stack.callback(peer.socket.close)
            peers[peer.socket.fileno()] = peer
            poller.register(peer.socket, READ)
        done = 0
        in_flight = len(peers)
        cpu, start = time.process_time(), time.perf_counter()
        end = start + seconds
        for fd, peer in peers.items():
            if not peer.send():
                poller.modify(fd, READ | WRITE)
        while in_flight:
            events = poller.poll(10, len(peers))
            if not events:
                raise ServerError("the server answers no more")
            go_on = time.perf_counter() < end
            for fd, event in events:
                peer = peers[fd]
                if event & WRITE and peer.send():
                    poller.modify(fd, READ)
                if event & ~WRITE and peer.receive():
                    done += 1
                    if not go_on:
                        in_flight -= 1
                    elif not peer.send():
                        poller.modify(fd, READ | WRITE)
        elapsed = time.perf_counter() - start
        return Measured(done, elapsed, (time.process_time() - cpu) / elapsed)


def main() -> None:
    """Load every server in turn and print a line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--server", type=named, action="append", required=True)
    parser.add_argument("--conns", type=int, default=100)
    parser.add_argument("--depth", type=int, default=128, help="frames in flight a connection")
    parser.add_argument("--shortest", type=int, default=3, help="bytes in the shortest payload")
    parser.add_argument("--longest", type=int, default=50, help="bytes in the longest payload")
    parser.add_argument("--seed", type=int, default=0, help="of lengths and bytes")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    if not 1 <= options.shortest <= options.longest <= 99_999:
        parser.error("expected 1 <= shortest <= longest <= 99999")
    raise_fd_limit()
    blocks = make_blocks(
        options.conns, options.depth, options.shortest, options.longest, seed=options.seed
    )
    os.sched_setaffinity(0, {1})
    rates: dict[str, list[float]] = defaultdict(list)
    costs: dict[str, list[float]] = defaultdict(list)
    busy: dict[str, list[float]] = defaultdict(list)
    with ExitStack() as stack:
        ports = {name: free_port() for name, _ in options.server}
        pids = {
            name: stack.enter_context(running(command, ports[name]))
            for name, command in options.server
        }
        for _ in range(options.runs):
            for name, pid in pids.items():
                before = cpu_seconds(pid)
                try:
                    measured = load(ports[name], blocks, options.seconds)
                except ServerError as error:
                    raise SystemExit(f"{name}: {error}") from None
                used = cpu_seconds(pid) - before
                frames = measured.blocks * options.depth
                rates[name].append(frames / measured.seconds)
                costs[name].append(used / frames * 1e6)
                busy[name].append(measured.busy)
    base = next(iter(rates.values()))
    for name, measured_rates in rates.items():
        ratios = [rate / other for rate, other in zip(measured_rates, base, strict=True)]
        print(
            f"{options.depth} in flight on {options.conns}  {name:>10}"
            f"{statistics.median(measured_rates):>12,.0f} frames/s   ratio "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            f"   server {statistics.median(costs[name]):.3f} us/frame"
            f" (lowest {min(costs[name]):.3f})   loader {max(busy[name]):.0%} busy"
        )


if __name__ == "__main__":
    main()

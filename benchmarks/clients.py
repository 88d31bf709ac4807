"""The client beside what one writes without it, in turn (A B A B ...), every reply compared.

    python benchmarks/clients.py --server './server {port}' --runs 7

The server runs on processor 0, the client on processor 1; it has to reverse
payloads. Compared are

    request         ``Client.request`` with a bare loop of sendall and recv
    shared          1,000 trio tasks on an ``AsyncClient`` with 4 connections, with
                    1,000 tasks in plain trio that have a connection each
    request_many    ``Client.request_many`` and ``AsyncClient.request_many``, with
                    the bare loop

A shared machine changes its speed by half from minute to minute: quote the
ratios, which come from neighbouring runs, and their spread.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import trio
from side_by_side import free_port, running

from nbclient import AsyncClient, Client
from nbnet.machine import raise_fd_limit
from nbnet.notation import Target

PAYLOAD, REPLY = b"abc", b"cba"
REQUEST_FRAME, REPLY_FRAME = b"00003abc", b"00003cba"
TASKS = 1_000
CONNECTIONS = 4

Rate = Callable[[Target, int], float]
"""Requests a second, over so many requests."""


class WrongReplyError(Exception):
    """A reply was not the one to its request."""


def check(reply: bytes, expected: bytes) -> None:
    if reply != expected:
        raise WrongReplyError(f"{reply!r} instead of {expected!r}")


def bare(target: Target, count: int) -> float:
    with socket.create_connection(target) as server:
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        started = time.perf_counter()
        for _ in range(count):
            server.sendall(REQUEST_FRAME)
            check(server.recv(65_536), REPLY_FRAME)
        return count / (time.perf_counter() - started)


def request(target: Target, count: int) -> float:
    with Client(target) as client:
        check(client.request(PAYLOAD), REPLY)
        started = time.perf_counter()
        for _ in range(count):
            check(client.request(PAYLOAD), REPLY)
        return count / (time.perf_counter() - started)


def request_many(target: Target, count: int) -> float:
    with Client(target) as client:
        started = time.perf_counter()
        for number, reply in enumerate(client.request_many(b"%d" % n for n in range(count))):
            if int(reply[::-1]) != number:
                raise WrongReplyError(f"{reply!r} to request {number}")
        return count / (time.perf_counter() - started)


def request_many_trio(target: Target, count: int) -> float:
    async def main() -> float:
        async with AsyncClient(target) as client:
            started = time.perf_counter()
            number = 0
            async for reply in client.request_many(b"%d" % n for n in range(count)):
                if int(reply[::-1]) != number:
                    raise WrongReplyError(f"{reply!r} to request {number}")
                number += 1
            return count / (time.perf_counter() - started)

    return trio.run(main)


def shared(target: Target, count: int) -> float:
    async def main() -> float:
        async with AsyncClient(target, max_connections=CONNECTIONS) as client:

            async def ask() -> None:
                for _ in range(count // TASKS):
                    check(await client.request(PAYLOAD), REPLY)

            started = time.perf_counter()
            async with trio.open_nursery() as nursery:
                for _ in range(TASKS):
                    nursery.start_soon(ask)
            return count / (time.perf_counter() - started)

    return trio.run(main)


def one_each(target: Target, count: int) -> float:
    async def main() -> float:
        async def ask(stream: trio.SocketStream) -> None:
            async with stream:
                for _ in range(count // TASKS):
                    await stream.send_all(REQUEST_FRAME)
                    reply = b""
                    while len(reply) < len(REPLY_FRAME):
                        reply += await stream.receive_some()
                    check(reply, REPLY_FRAME)

        streams = [await trio.open_tcp_stream(*target) for _ in range(TASKS)]
        started = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(ask, stream)
        return count / (time.perf_counter() - started)

    return trio.run(main)


# What is compared, with what, and how many requests of each make a run.
SCENES: dict[str, tuple[Rate, int, Rate, int]] = {
    "request": (request, 10_000, bare, 10_000),
    "shared": (shared, 100_000, one_each, 20_000),
    "request_many": (request_many, 500_000, bare, 5_000),
    "request_many (trio)": (request_many_trio, 500_000, bare, 5_000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--server", default="nbnet serve --port {port}")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--scene", choices=SCENES, action="append", help="all of them by default")
    options = parser.parse_args()
    raise_fd_limit()
    port = free_port()
    target = Target("127.0.0.1", port)
    rates: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with running(options.server, port):
        os.sched_setaffinity(0, {1})
        for _ in range(options.runs):
            for name in options.scene or SCENES:
                ours, count, other, other_count = SCENES[name]
                rates[name].append((ours(target, count), other(target, other_count)))
    for name, pairs in rates.items():
        ours_rate = statistics.median(ours for ours, _ in pairs)
        best = max(ours for ours, _ in pairs)
        other_rate = statistics.median(other for _, other in pairs)
        ratios = sorted(ours / other for ours, other in pairs)
        print(
            f"{name:20} {ours_rate:11,.0f}/s (best {best:,.0f})   beside {other_rate:9,.0f}/s"
            f"   ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


if __name__ == "__main__":
    main()

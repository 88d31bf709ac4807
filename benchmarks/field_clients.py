"""The clients beside what one writes without them, every reply compared.

    python benchmarks/field_clients.py [--quick] [--markdown FILE] [--svg FILE] [--json FILE]

The server is the C loop of ``peers/server.c`` on processor 0, or nbnet without a
compiler; the clients run in this process on processor 1, in turn. ``Client`` is set
beside a bare loop of ``sendall`` and ``recv``; ``AsyncClient`` beside streams of trio
and of asyncio. Those have no deadlines, no pool and no reconnection, and send and
compare as they best can:

    one at a time   the next request when the reply has come
    sent ahead      many requests under way on one connection: ``request_many``, and by
                    hand 128 at once
    1,000 tasks     each asks one at a time: ``AsyncClient`` has them share 4 connections,
                    the others have a connection for each
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass

import reports
import trio
from environment import LOADER_CORE, Environment, add_options, machine, prepare
from pinned import free_port, memory, nbnet_serve, running
from results import FEWEST_ROUNDS, Results, Unit, in_turn

from nbclient import AsyncClient, Client
from nbnet.machine import raise_fd_limit
from nbnet.notation import Target

PAYLOAD, REPLY = b"abc", b"cba"
REQUEST_FRAME, REPLY_FRAME = b"00003abc", b"00003cba"
TASKS = 1_000
CONNECTIONS = 4
AHEAD = 128
"""Requests that are sent at once by hand."""
HELD = 1_000
"""Connections that memory is measured with."""


@dataclass(frozen=True)
class Spent:
    """What requests took, in seconds for each."""

    wall: float
    cpu: float


Way = Callable[[Target, int], Spent]
"""Makes so many requests."""


class WrongReplyError(Exception):
    """A reply was not the one to its request."""


class Watch:
    """Reads both clocks, from when it is made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def spent(self, count: int) -> Spent:
        """What each of so many requests took."""
        return Spent(
            (time.perf_counter() - self._wall) / count, (time.process_time() - self._cpu) / count
        )


def check(reply: bytes, expected: bytes) -> None:
    """Compare a reply with what had to come."""
    if reply != expected:
        raise WrongReplyError(f"{reply!r} instead of {expected!r}")


def payloads(count: int) -> Iterator[bytes]:
    """All different."""
    return (b"%d" % number for number in range(count))


def batches(count: int) -> Iterator[tuple[bytes, list[bytes]]]:
    """Frames that are sent at once by hand, and the payloads that have to come back."""
    for start in range(0, count, AHEAD):
        asked = [b"%d" % number for number in range(start, min(start + AHEAD, count))]
        frames = b"".join(b"%05d%b" % (len(payload), payload) for payload in asked)
        yield frames, [payload[::-1] for payload in asked]


def compare_batch(got: bytes, expected: list[bytes]) -> None:
    """Take replies apart and compare each."""
    at = 0
    for reply in expected:
        start = at + 5
        at = start + int(got[at:start])
        check(got[start:at], reply)


def open_socket(target: Target) -> socket.socket:
    """A connection without delays."""
    peer = socket.create_connection(target)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return peer


# One caller that blocks ---------------------------------------------------------------


def client_request(target: Target, count: int) -> Spent:
    with Client(target) as client:
        check(client.request(PAYLOAD), REPLY)
        watch = Watch()
        for _ in range(count):
            check(client.request(PAYLOAD), REPLY)
        return watch.spent(count)


def socket_request(target: Target, count: int) -> Spent:
    with open_socket(target) as server:
        watch = Watch()
        for _ in range(count):
            server.sendall(REQUEST_FRAME)
            check(server.recv(65_536), REPLY_FRAME)
        return watch.spent(count)


def client_ahead(target: Target, count: int) -> Spent:
    with Client(target) as client:
        check(client.request(PAYLOAD), REPLY)
        watch = Watch()
        for number, reply in enumerate(client.request_many(payloads(count))):
            check(reply[::-1], b"%d" % number)
        return watch.spent(count)


def socket_ahead(target: Target, count: int) -> Spent:
    with open_socket(target) as server:
        watch = Watch()
        for frames, expected in batches(count):
            server.sendall(frames)
            compare_batch(server.recv(len(frames), socket.MSG_WAITALL), expected)
        return watch.spent(count)


# trio ---------------------------------------------------------------------------------


def async_request(target: Target, count: int) -> Spent:
    async def main() -> Spent:
        async with AsyncClient(target) as client:
            check(await client.request(PAYLOAD), REPLY)
            watch = Watch()
            for _ in range(count):
                check(await client.request(PAYLOAD), REPLY)
            return watch.spent(count)

    return trio.run(main)


def async_ahead(target: Target, count: int) -> Spent:
    async def main() -> Spent:
        async with AsyncClient(target) as client:
            check(await client.request(PAYLOAD), REPLY)
            watch = Watch()
            number = 0
            async for reply in client.request_many(payloads(count)):
                check(reply[::-1], b"%d" % number)
                number += 1
            return watch.spent(count)

    return trio.run(main)


def async_tasks(target: Target, count: int) -> Spent:
    async def main() -> Spent:
        async with AsyncClient(target, max_connections=CONNECTIONS) as client:

            async def ask() -> None:
                for _ in range(count // TASKS):
                    check(await client.request(PAYLOAD), REPLY)

            watch = Watch()
            async with trio.open_nursery() as nursery:
                for _ in range(TASKS):
                    nursery.start_soon(ask)
            return watch.spent(count)

    return trio.run(main)


async def trio_receive(stream: trio.SocketStream, size: int) -> bytes:
    got = b""
    while len(got) < size:
        data = await stream.receive_some()
        if not data:
            raise WrongReplyError(f"the server closed a connection after {got!r}")
        got += data
    return got


async def trio_ask(stream: trio.SocketStream, count: int) -> None:
    for _ in range(count):
        await stream.send_all(REQUEST_FRAME)
        check(await trio_receive(stream, len(REPLY_FRAME)), REPLY_FRAME)


def trio_request(target: Target, count: int) -> Spent:
    async def main() -> Spent:
        async with await trio.open_tcp_stream(*target) as stream:
            watch = Watch()
            await trio_ask(stream, count)
            return watch.spent(count)

    return trio.run(main)


def trio_ahead(target: Target, count: int) -> Spent:
    async def main() -> Spent:
        async with await trio.open_tcp_stream(*target) as stream:
            watch = Watch()
            for frames, expected in batches(count):
                await stream.send_all(frames)
                compare_batch(await trio_receive(stream, len(frames)), expected)
            return watch.spent(count)

    return trio.run(main)


def trio_tasks(target: Target, count: int) -> Spent:
    async def main() -> Spent:
        async with AsyncExitStack() as stack:
            streams = [
                await stack.enter_async_context(await trio.open_tcp_stream(*target))
                for _ in range(TASKS)
            ]
            watch = Watch()
            async with trio.open_nursery() as nursery:
                for stream in streams:
                    nursery.start_soon(trio_ask, stream, count // TASKS)
            return watch.spent(count)

    return trio.run(main)


# asyncio ------------------------------------------------------------------------------

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def asyncio_ask(streams: Streams, count: int) -> None:
    reader, writer = streams
    for _ in range(count):
        writer.write(REQUEST_FRAME)
        await writer.drain()
        check(await reader.readexactly(len(REPLY_FRAME)), REPLY_FRAME)


async def asyncio_close(*streams: Streams) -> None:
    for _, writer in streams:
        writer.close()
    for _, writer in streams:
        await writer.wait_closed()


def asyncio_request(target: Target, count: int) -> Spent:
    async def main() -> Spent:
        streams = await asyncio.open_connection(*target)
        watch = Watch()
        await asyncio_ask(streams, count)
        spent = watch.spent(count)
        await asyncio_close(streams)
        return spent

    return asyncio.run(main())


def asyncio_ahead(target: Target, count: int) -> Spent:
    async def main() -> Spent:
        reader, writer = streams = await asyncio.open_connection(*target)
        watch = Watch()
        for frames, expected in batches(count):
            writer.write(frames)
            await writer.drain()
            compare_batch(await reader.readexactly(len(frames)), expected)
        spent = watch.spent(count)
        await asyncio_close(streams)
        return spent

    return asyncio.run(main())


def asyncio_tasks(target: Target, count: int) -> Spent:
    async def main() -> Spent:
        streams = [await asyncio.open_connection(*target) for _ in range(TASKS)]
        watch = Watch()
        async with asyncio.TaskGroup() as group:
            for each in streams:
                group.create_task(asyncio_ask(each, count // TASKS))
        spent = watch.spent(count)
        await asyncio_close(*streams)
        return spent

    return asyncio.run(main())


# Memory of connections ----------------------------------------------------------------


def hold_clients(target: Target, count: int) -> float:
    with ExitStack() as stack:
        before = memory(os.getpid())
        for _ in range(count):
            check(stack.enter_context(Client(target)).request(PAYLOAD), REPLY)
        return (memory(os.getpid()) - before) / count


def hold_sockets(target: Target, count: int) -> float:
    with ExitStack() as stack:
        before = memory(os.getpid())
        for _ in range(count):
            server = stack.enter_context(open_socket(target))
            server.sendall(REQUEST_FRAME)
            check(server.recv(65_536), REPLY_FRAME)
        return (memory(os.getpid()) - before) / count


def hold_async_clients(target: Target, count: int) -> float:
    async def main() -> float:
        async with AsyncExitStack() as stack:
            before = memory(os.getpid())
            for _ in range(count):
                client = await stack.enter_async_context(AsyncClient(target))
                check(await client.request(PAYLOAD), REPLY)
            return (memory(os.getpid()) - before) / count

    return trio.run(main)


def hold_trio(target: Target, count: int) -> float:
    async def main() -> float:
        async with AsyncExitStack() as stack:
            before = memory(os.getpid())
            for _ in range(count):
                stream = await trio.open_tcp_stream(*target)
                await trio_ask(await stack.enter_async_context(stream), 1)
            return (memory(os.getpid()) - before) / count

    return trio.run(main)


def hold_asyncio(target: Target, count: int) -> float:
    async def main() -> float:
        before = memory(os.getpid())
        held = []
        for _ in range(count):
            held.append(await asyncio.open_connection(*target))
            await asyncio_ask(held[-1], 1)
        cost = (memory(os.getpid()) - before) / count
        await asyncio_close(*held)
        return cost

    return asyncio.run(main())


Hold = Callable[[Target, int], float]

BY_TASKS = "1,000 tasks"

# Ways by load and contender; how many requests make about a second is found out.
BLOCKING: dict[str, dict[str, Way]] = {
    "one at a time": {"Client": client_request, "bare socket": socket_request},
    "sent ahead": {"Client": client_ahead, "bare socket": socket_ahead},
}
ASYNC: dict[str, dict[str, Way]] = {
    "one at a time": {
        "AsyncClient": async_request,
        "bare socket": socket_request,
        "trio streams": trio_request,
        "asyncio streams": asyncio_request,
    },
    "sent ahead": {
        "AsyncClient": async_ahead,
        "bare socket": socket_ahead,
        "trio streams": trio_ahead,
        "asyncio streams": asyncio_ahead,
    },
    BY_TASKS: {
        "AsyncClient": async_tasks,
        "trio streams": trio_tasks,
        "asyncio streams": asyncio_tasks,
    },
}
HOLDS: dict[str, Hold] = {
    "Client": hold_clients,
    "bare socket": hold_sockets,
    "AsyncClient": hold_async_clients,
    "trio streams": hold_trio,
    "asyncio streams": hold_asyncio,
}


def measure(
    name: str,
    scenes: Mapping[str, Mapping[str, Way]],
    target: Target,
    *,
    rounds: int,
    seconds: float,
    seed: int,
) -> list[Results]:
    """Have all ways make requests in turn: how many a second, and what one costs."""
    names = list(next(iter(scenes.values())))
    rate = Results(name, f"Requests a second beside {names[0]}", names)
    cost = Results(f"{name}-cpu", "The client's processor time", names, Unit.TIME)
    for scene, ways in scenes.items():
        unit = TASKS if scene == BY_TASKS else AHEAD
        counts = {
            way: unit * round(1 + seconds / ask(target, unit).wall / unit)
            for way, ask in ways.items()
        }
        for way in in_turn(scene, ways, rounds, seed):
            spent = ways[way](target, counts[way])
            rate.add(scene, way, 1 / spent.wall)
            cost.add(scene, way, spent.cpu)
    return [rate, cost]


def measure_memory(target: Target, count: int) -> Results:
    """What a client with one connection that has asked once costs, in a process of its own."""
    found = Results("clients-memory", "The client's memory", list(HOLDS), Unit.MEMORY)
    context = multiprocessing.get_context("fork")
    for name, hold in HOLDS.items():
        with context.Pool(1) as pool:
            pool.apply(hold, (target, 20))  # what the first ones cost is not theirs
            found.add("a connection", name, pool.apply(hold, (target, count)))
    return found


def run(
    environment: Environment, *, quick: bool, rounds: int, seconds: float, seed: int
) -> list[Results]:
    """All of it."""
    raise_fd_limit()
    binary = environment.binaries.get("server")
    command = nbnet_serve() if binary is None else [str(binary), "{port}"]
    port = free_port()
    target = Target("127.0.0.1", port)
    own = os.sched_getaffinity(0)
    with running(command, port):
        os.sched_setaffinity(0, {LOADER_CORE})
        try:
            found = []
            for name, scenes in (("clients", BLOCKING), ("async-clients", ASYNC)):
                chosen = dict(list(scenes.items())[: 1 if quick else None])
                found += measure(name, chosen, target, rounds=rounds, seconds=seconds, seed=seed)
            found.append(measure_memory(target, 100 if quick else HELD))
        finally:
            os.sched_setaffinity(0, own)
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    reports.add_timing(parser, rounds=FEWEST_ROUNDS, seconds=0.8)
    add_options(parser)
    reports.add_files(parser)
    options = parser.parse_args()
    environment = prepare(options.environment, install=not options.no_install)
    found = run(environment, quick=options.quick, **reports.timing(options))
    reports.write(options, found, machine(environment))


if __name__ == "__main__":
    main()

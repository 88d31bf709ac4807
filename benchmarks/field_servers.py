"""nbnet beside servers on other libraries: the same protocol, handler and load.

    python benchmarks/field_servers.py [--quick] [--markdown FILE] [--svg FILE] [--json FILE]

Installs the peers into an environment of its own, starts all servers on processor 0,
and loads one after the other from processor 1, round by round, in an order drawn by
lot. The load is the C loop of ``peers/load.c``, which compares all replies and costs
less than any server but the one in C; without a compiler it is loadgen. Printed are
verified replies a second, processor time of the server for one, memory of an idle
connection, and the ratio of each to nbnet with its interval.

A ``--server NAME=COMMAND`` with ``{port}`` in it takes the place of the peers; the
first one named is then what the others are compared with.
"""

from __future__ import annotations

import argparse
import shlex
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import reports
from environment import Environment, add_options, machine, prepare
from pinned import (
    LoadError,
    free_port,
    load,
    loadgen,
    memory,
    nbnet_serve,
    running,
)
from results import FEWEST_ROUNDS, Results, Unit, in_turn

from nbnet.machine import SPARE_FDS, raise_fd_limit
from nbnet.notation import parse_count

BASE = "nbnet"
BUSY = 0.95
"""From this share of its processor on, the loader may be the limit."""
IDLE = 5_000
"""Connections that memory is measured with."""


@dataclass(frozen=True)
class Load:
    """What a server has to bear.

    Attributes:
        connections: that always have something in flight.
        in_flight: frames of each.
        size: bytes of each payload.
    """

    connections: int
    in_flight: int = 1
    size: int = 3

    def __str__(self) -> str:
        whole, rest = divmod(self.size, 1024)
        size = f"{whole} KiB" if whole and not rest else f"{self.size} B"
        return f"{self.connections:,} x {self.in_flight}, {size}"

    @staticmethod
    def parse(text: str) -> Load:
        """CONNECTIONS[:IN_FLIGHT[:SIZE]].

        >>> str(Load.parse("5k:16"))
        '5,000 x 16, 3 B'
        """
        connections, *rest = text.split(":")
        return Load(parse_count(connections), *map(int, rest))


LOADS = (
    Load(50),
    Load(1_000),
    Load(5_000),
    Load(15_000),
    Load(50, in_flight=16),
    Load(50, in_flight=128),
    Load(50, size=1024),
    Load(50, size=65_536),
)
QUICK = (Load(50), Load(1_000), Load(50, in_flight=128))


def contenders(environment: Environment) -> dict[str, list[str]]:
    """The commands of all servers that can run here, with ``{port}``."""
    found = {BASE: nbnet_serve()}
    if "server" in environment.binaries:
        found["C loop"] = [str(environment.binaries["server"]), "{port}"]
    for name, package, module, *options in (
        ("uvloop", "uvloop", "asyncio_protocol.py", "--loop", "uvloop"),
        ("asyncio Protocol", None, "asyncio_protocol.py"),
        ("asyncio streams", None, "asyncio_streams.py"),
        ("trio", "trio", "trio_streams.py"),
        ("gevent", "gevent", "gevent_server.py"),
        ("Twisted", "twisted", "twisted_protocol.py"),
        ("state machine", None, "state_machine.py"),
    ):
        if package is None or environment.has(package):
            found[name] = environment.peer(str(module), "{port}", *map(str, options))
        else:
            print(f"{name} is left out: {package} is not installed", file=sys.stderr)
    return found


def loader(environment: Environment, asked: Load, port: int, seconds: float) -> list[str]:
    """The command that loads a server: the C loop, or loadgen without a compiler."""
    if "load" not in environment.binaries:
        return loadgen(port, asked.connections, seconds, asked.in_flight, asked.size)
    words = (port, asked.connections, seconds, asked.in_flight, asked.size)
    return [str(environment.binaries["load"]), *map(str, words)]


def measure(
    environment: Environment,
    servers: Mapping[str, Sequence[str]],
    loads: Iterable[Load],
    *,
    rounds: int,
    seconds: float,
    seed: int,
) -> tuple[Results, Results]:
    """Load all servers in turn: what they answer a second, and what one request costs them."""
    names = list(servers)
    rate = Results("servers", f"Requests a second beside {names[0]}", names)
    cost = Results("servers-cpu", "The server's processor time for a request", names, Unit.TIME)
    bound: dict[str, None] = {}
    with ExitStack() as stack:
        ports = {name: free_port() for name in servers}
        pids = {
            name: stack.enter_context(running(command, ports[name]))
            for name, command in servers.items()
        }
        for asked in loads:
            failed: set[str] = set()
            for name in in_turn(str(asked), servers, rounds, seed):
                if name in failed:
                    continue
                try:
                    found = load(loader(environment, asked, ports[name], seconds), pids[name])
                except LoadError as error:
                    failed.add(name)
                    for each in (rate, cost):
                        each.leave_out(str(asked), name, str(error))
                    continue
                rate.add(str(asked), name, found.rate)
                cost.add(str(asked), name, found.server_cpu)
                if found.loader_busy > BUSY:
                    bound[f"{name} at {asked}"] = None
    if bound:
        rate.remarks.append(
            f"The loader used more than {BUSY:.0%} of its processor, and may have been the limit, "
            f"for {'; '.join(bound)}: these may be faster still."
        )
    return rate, cost


def measure_memory(servers: Mapping[str, Sequence[str]], count: int) -> Results:
    """What an idle connection that has asked once costs each server; kernel memory is not in it."""
    found = Results("servers-memory", "The server's memory", list(servers), Unit.MEMORY)
    for name, command in servers.items():
        port = free_port()
        with running(command, port) as pid, ExitStack() as stack:
            ask(stack.enter_context(socket.create_connection(("127.0.0.1", port))))
            before = memory(pid)
            found.add("started", name, before)
            for _ in range(count):
                ask(stack.enter_context(socket.create_connection(("127.0.0.1", port))))
            found.add("an idle connection", name, (memory(pid) - before) / count)
    return found


def ask(peer: socket.socket) -> None:
    """One request, and its reply."""
    peer.sendall(b"00003abc")
    reply = peer.recv(8, socket.MSG_WAITALL)
    if reply != b"00003cba":
        raise SystemExit(f"wrong reply {reply!r}")


def run(
    environment: Environment,
    servers: Mapping[str, Sequence[str]],
    loads: Iterable[Load],
    idle: int,
    *,
    rounds: int,
    seconds: float,
    seed: int,
) -> list[Results]:
    """All of it."""
    loads = possible(loads)
    found = measure(environment, servers, loads, rounds=rounds, seconds=seconds, seed=seed)
    return [*found, measure_memory(servers, min(idle, raise_fd_limit() - SPARE_FDS))]


def possible(loads: Iterable[Load]) -> list[Load]:
    """Without those of more connections than a process may have here."""
    most = raise_fd_limit() - SPARE_FDS
    found = []
    for each in loads:
        if each.connections > most:
            print(f"{each}: at most {most:,} connections here (ulimit -Hn)", file=sys.stderr)
        else:
            found.append(each)
    return found


def add_loads(parser: argparse.ArgumentParser) -> None:
    """Which loads."""
    parser.add_argument(
        "--load",
        type=Load.parse,
        action="append",
        metavar="CONNECTIONS[:IN_FLIGHT[:SIZE]]",
        help="instead of those of the tables",
    )


def named(text: str) -> tuple[str, list[str]]:
    """NAME=COMMAND."""
    name, _, command = text.partition("=")
    return name, shlex.split(command)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--server", type=named, action="append", metavar="NAME=COMMAND")
    parser.add_argument("--idle", type=parse_count, default=IDLE, help="connections (%(default)s)")
    add_loads(parser)
    reports.add_timing(parser, rounds=FEWEST_ROUNDS, seconds=1.2)
    add_options(parser)
    reports.add_files(parser)
    options = parser.parse_args()
    environment = prepare(options.environment, install=not options.no_install)
    servers = dict(options.server or contenders(environment))
    loads = options.load or (QUICK if options.quick else LOADS)
    found = run(environment, servers, loads, options.idle, **reports.timing(options))
    reports.write(options, found, machine(environment))


if __name__ == "__main__":
    main()

"""loadgen beside other load generators, against the same server, every reply verified.

    python benchmarks/field_loaders.py [--quick] [--markdown FILE] [--svg FILE] [--json FILE]

The server is the C loop of ``peers/server.c`` on processor 0, or nbnet without a
compiler; the generators run on processor 1, in turn. Printed are verified replies a
second, processor time of the generator for one, and its memory for a connection.

Others that are installed by name (wrk, hey, oha, k6, siege) speak HTTP and cannot take
part; locust can, with a user that has a socket.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping

import reports
from environment import Environment, add_options, machine, prepare
from field_servers import Load, add_loads, possible
from pinned import LoadError, free_port, load, loadgen, nbnet_serve, running
from results import FEWEST_ROUNDS, Results, Unit, in_turn

from nbnet.notation import parse_count

BASE = "loadgen"
LOADS = (
    Load(50),
    Load(1_000),
    Load(5_000),
    Load(15_000),
    Load(50, in_flight=16),
    Load(50, in_flight=128),
    Load(50, size=65_536),
)
QUICK = (Load(50), Load(1_000))
FEW, MANY = 50, 2_000
"""Connections between which memory of one is measured."""

Command = Callable[[int, Load, float], list[str]]


def contenders(environment: Environment) -> dict[str, Command]:
    """What makes the command of each generator that can run here."""

    def own(port: int, asked: Load, seconds: float) -> list[str]:
        return loadgen(port, asked.connections, seconds, asked.in_flight, asked.size)

    def words(port: int, asked: Load, seconds: float) -> list[str]:
        values = (port, asked.connections, seconds, asked.in_flight, asked.size)
        return [str(value) for value in values]

    found: dict[str, Command] = {BASE: own}
    if "load" in environment.binaries:
        found["C loop"] = lambda *asked: [str(environment.binaries["load"]), *words(*asked)]
    if environment.has("locust"):
        found["locust"] = lambda *asked: environment.peer("locust_user.py", *words(*asked))
    else:
        print("locust is left out: it is not installed", file=sys.stderr)
    return found


def run(
    environment: Environment,
    loaders: Mapping[str, Command],
    loads: Iterable[Load],
    *,
    many: int = MANY,
    rounds: int,
    seconds: float,
    seed: int,
) -> list[Results]:
    """All of it."""
    loads = possible(loads)
    binary = environment.binaries.get("server")
    command = nbnet_serve() if binary is None else [str(binary), "{port}"]
    port = free_port()
    with running(command, port) as server:
        found = measure(loaders, loads, port, server, rounds=rounds, seconds=seconds, seed=seed)
        found.append(measure_memory(loaders, port, server, many))
    return found


def measure(
    loaders: Mapping[str, Command],
    loads: Iterable[Load],
    port: int,
    server: int,
    *,
    rounds: int,
    seconds: float,
    seed: int,
) -> list[Results]:
    """Run all generators in turn: replies a second, and what one costs them."""
    names = list(loaders)
    rate = Results("loaders", f"Requests a second beside {BASE}", names)
    cost = Results("loaders-cpu", "The generator's processor time", names, Unit.TIME)
    for asked in loads:
        failed: set[str] = set()
        for name in in_turn(str(asked), loaders, rounds, seed):
            if name in failed:
                continue
            try:
                found = load(loaders[name](port, asked, seconds), server)
            except LoadError as error:
                failed.add(name)
                for each in (rate, cost):
                    each.leave_out(str(asked), name, str(error))
                continue
            rate.add(str(asked), name, found.rate)
            cost.add(str(asked), name, found.loader_cpu)
    return [rate, cost]


def measure_memory(loaders: Mapping[str, Command], port: int, server: int, many: int) -> Results:
    """The most memory with few connections, and what each more of many costs."""
    found = Results("loaders-memory", "The generator's memory", list(loaders), Unit.MEMORY)
    whole, each = f"{FEW} connections", "a connection more"
    for name, command in loaders.items():
        try:
            first, last = (
                load(command(port, Load(connections), 1.5), server, watch_memory=True).loader_memory
                for connections in (FEW, many)
            )
        except LoadError as error:
            for row in (whole, each):
                found.leave_out(row, name, str(error))
            continue
        found.add(whole, name, first)
        found.add(each, name, (last - first) / (many - FEW))
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    reports.add_timing(parser, rounds=FEWEST_ROUNDS, seconds=1.5)
    add_loads(parser)
    parser.add_argument("--memory-connections", type=parse_count, default=MANY, metavar="N")
    add_options(parser)
    reports.add_files(parser)
    options = parser.parse_args()
    environment = prepare(options.environment, install=not options.no_install)
    loads = options.load or (QUICK if options.quick else LOADS)
    found = run(
        environment,
        contenders(environment),
        loads,
        many=options.memory_connections,
        **reports.timing(options),
    )
    reports.write(options, found, machine(environment))


if __name__ == "__main__":
    main()

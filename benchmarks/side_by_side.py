"""Servers or load generators in turn (A B A B ...) on pinned processors.

    python benchmarks/side_by_side.py \\
        --server c='./server {port}' --server nbnet='nbnet serve --port {port}' \\
        --loader c='./load {port} {conns} {seconds} {depth}' \\
        --conns 50,1000,5000 --runs 7

Every server meets every loader; the first pair named is what the others are
compared with. Servers run on processor 0, loaders on processor 1. A loader
prints, last of all, its requests a second, or one JSON document of loadgen.

A shared machine changes its speed by half from minute to minute: quote the
ratios, which come from neighbouring runs, and their spread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import socket
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def running(command: str, port: int) -> Iterator[int]:
    """A server on processor 0, from when it takes connections; gives its process number."""
    process = subprocess.Popen(
        ["taskset", "-c", "0", *shlex.split(command.format(port=port))],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"did not start: {command}") from None
                time.sleep(0.05)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def cpu_seconds(pid: int) -> float:
    """Processor time that a process, its children and theirs have used.

    Those that have ended are in it once their parent has taken notice.
    """
    total = 0.0
    pids = [pid]
    while pids:
        process = Path(f"/proc/{pids.pop()}")
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            # Of the process in user and system mode, then of children that it waited for.
            total += sum(map(int, fields[11:15])) / TICKS
            for children in process.glob("task/*/children"):
                pids.extend(map(int, children.read_text().split()))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended in between
    return total


def requests_per_second(command: str, **values: float) -> float:
    """Run a loader on processor 1; give what it measured."""
    done = subprocess.run(
        ["taskset", "-c", "1", *shlex.split(command.format(**values))],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    if done.stdout.startswith("{"):
        return float(json.loads(done.stdout)["throughput"]["requests_per_second"])
    return float(done.stdout.split()[-1])


def named(text: str) -> tuple[str, str]:
    """NAME=COMMAND."""
    name, _, command = text.partition("=")
    return name, command


def main() -> None:
    """Run every pair in turn and print a line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--server", type=named, action="append", required=True)
    parser.add_argument("--loader", type=named, action="append", required=True)
    parser.add_argument("--conns", default="50,1000,5000")
    parser.add_argument("--depth", type=int, default=1, help="requests in flight a connection")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    pairs = list(itertools.product(options.server, options.loader))
    with ExitStack() as stack:
        ports = {name: free_port() for name, _ in options.server}
        pids = {
            name: stack.enter_context(running(command, ports[name]))
            for name, command in options.server
        }
        for conns in map(int, options.conns.split(",")):
            rates: dict[tuple[str, str], list[float]] = defaultdict(list)
            costs: dict[tuple[str, str], list[float]] = defaultdict(list)
            for _, ((server, _), (loader, command)) in itertools.product(
                range(options.runs), pairs
            ):
                before = cpu_seconds(pids[server])
                rate = requests_per_second(
                    command,
                    port=ports[server],
                    conns=conns,
                    seconds=options.seconds,
                    depth=options.depth,
                )
                rates[server, loader].append(rate)
                used = cpu_seconds(pids[server]) - before
                costs[server, loader].append(used / (rate * options.seconds) * 1e6)
            base = next(iter(rates.values()))
            for (server, loader), measured in rates.items():
                ratios = [rate / other for rate, other in zip(measured, base, strict=True)]
                print(
                    f"{conns:>6} connections  {server:>10} < {loader:<10}"
                    f"{statistics.median(measured):>12,.0f}/s   ratio "
                    f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                    f"   server {statistics.median(costs[server, loader]):.2f} us/request"
                    f" (lowest {min(costs[server, loader]):.2f})",
                    flush=True,
                )


if __name__ == "__main__":
    main()

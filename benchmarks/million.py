"""As many concurrent verified connections as one machine holds, up to a million.

    python benchmarks/million.py --connections 10k,100k,300k,1M

For each number ``nbnet serve --workers`` and ``loadgen --workers`` hold that many
connections between them, spread over 127.0.0.0/8, first with a hundredth of them
active, then a tenth, then all. Each is loaded twice: in an open loop at ``--rate``,
which in its last form reaches every connection (checked), for the latency; and in a
closed loop of all active ones for the throughput. What a connection costs is read
off the kernel's slabs and the processes' own memory, when all are there.

What the machine does not allow is said first, with what to change. It ends by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scenes import Server, processes, serving

from loadgen.plan import parse_share
from loadgen.preflight import available_memory, local_ports
from nbnet.machine import SPARE_FDS, raise_fd_limit
from nbnet.notation import parse_count, parse_duration

CONNECT_RATE = 8000.0
"""Connections begun a second: as many as two cores take for both sides. What comes faster
than it is accepted overflows the listeners, and a connection whose first packet is dropped
there too often is given up by the kernel after two minutes."""
SOCKET_BYTES = 5 << 10
"""Memory of a socket in the kernel, with its file and its place in an epoll."""
OWN_BYTES = 1 << 10
"""Memory of a connection in a process, at most."""
PROCESS_BYTES = 24 << 20
"""Memory of a process without connections."""


ALL = 0.999
"""The share from which on all connections count as there: others come and go meanwhile."""


@dataclass
class Memory:
    """What is in use: bytes of slabs, and of processes of their own, by side."""

    slab: int
    server: int
    loader: int


@dataclass
class Watch:
    """Sees from outside when how many connections are there, and what they take."""

    target: int
    server: Server
    held: int = 0
    seconds: float = 0.0  # from the first connection to the last
    full: Memory | None = None
    _over: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def over(self, loader: subprocess.Popen[str]) -> Iterator[None]:
        """Watch a load."""
        thread = threading.Thread(target=self._look, args=(loader,))
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _look(self, loader: subprocess.Popen[str]) -> None:
        before = tcp_sockets()
        begun = None
        while not self._over.wait(0.1):
            now = time.monotonic()
            # Both ends are here.
            held = (tcp_sockets() - before) // 2
            self.held = max(self.held, held)
            if begun is None and held > 0:
                begun = now
            if begun is not None and self.full is None and held >= ALL * self.target:
                self.seconds = now - begun
                self.full = memory(self.server, loader.pid)


def tcp_sockets() -> int:
    """TCP sockets in use on this machine."""
    for line in Path("/proc/net/sockstat").read_text().splitlines():
        if line.startswith("TCP:"):
            return int(line.split()[2])
    raise OSError("no TCP in /proc/net/sockstat")


def children(pid: int) -> list[int]:
    """The processes that one has started."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def private_bytes(pids: Iterable[int]) -> int:
    """Memory of processes, what they share with others counted in part."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) << 10
    return total


def memory(server: Server, loader: int | None) -> Memory:
    """What is in use now."""
    slab = 0
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Slab:"):
            slab = int(line.split()[1]) << 10
    engines = [] if loader is None else children(loader)
    return Memory(slab, private_bytes(server.workers()), private_bytes(engines))


def preflight(connections: int, files: int) -> list[str]:
    """What keeps this machine from holding so many, and what to change."""
    count = processes(connections, files)
    missing = []
    allowed = int(Path("/proc/sys/fs/file-max").read_text())
    opened = int(Path("/proc/sys/fs/file-nr").read_text().split()[0])
    if 2 * connections + 64 * count > allowed - opened:
        missing.append(
            f"{allowed - opened:,} open files in all: sysctl fs.file-max={3 * connections}"
        )
    ports = local_ports() * 250
    if connections > ports:
        missing.append(f"{ports:,} ports: sysctl net.ipv4.ip_local_port_range='1024 65535'")
    needed = connections * 2 * (SOCKET_BYTES + OWN_BYTES) + 2 * count * PROCESS_BYTES
    free = available_memory()
    if needed > free:
        missing.append(f"{free >> 20:,} MiB of memory are free, and {needed >> 20:,} are needed")
    tasks = int(Path("/proc/sys/kernel/pid_max").read_text())
    if 2 * count + 100 > tasks:
        missing.append(f"{tasks:,} processes: sysctl kernel.pid_max={4 * count + 1000}")
    return missing


def load(server: Server, connections: int, count: int, *options: str) -> tuple[Any, Watch]:
    """Load the server; what loadgen says, and what was seen from outside."""
    watch = Watch(connections, server)
    command = [sys.executable, "-m", "loadgen", "--target", str(server.address)]
    command += ["--conns", str(connections), "--workers", str(count), "--connect-timeout", "300s"]
    command += ["--connect-rate", f"{CONNECT_RATE:g}"]
    command += ["--timeout", "120s", "--grace", "120s", "--quiet", *options, "--json", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sys.stderr, text=True) as loader:
        assert loader.stdout is not None
        with watch.over(loader):
            text = loader.stdout.read()
        code = loader.wait()
    if code not in (0, 1):
        raise SystemExit(f"loadgen ended with {code}")
    return json.loads(text), watch


def row(name: str, document: Any) -> str:
    """A load, in a line."""
    connections, requests = document["connections"], document["requests"]
    latency = document["latency_seconds"]
    bad = requests["wrong"] + requests["failed"] + requests["timed_out"]
    return (
        f"{name:<22}{connections['served']:>10,}{requests['verified']:>12,}{bad:>6,}"
        f"{document['throughput']['requests_per_second']:>10,.0f}"
        f"{1e3 * (latency['p50'] or 0):>11,.1f}{1e3 * (latency['p99'] or 0):>11,.1f}"
    )


def measure(connections: int, files: int, options: argparse.Namespace) -> list[Any]:
    """Hold so many connections, under each load; prints as it goes."""
    count = max(processes(connections, files), options.processes)
    documents = []
    idle = ("--idle-timeout", "0", "--first-byte-timeout", "0")
    print(f"\n{connections:,} connections, {count} processes a side", flush=True)
    with serving("--workers", str(count), *idle) as server:
        server.wait_until_up(count)
        before = memory(server, None)
        told = False
        for share in map(parse_share, options.active.split(",")):
            active = max(1, round(connections * share))
            # The last load is to reach every connection.
            seconds = max(options.duration, 1.1 * active / options.rate)
            name = "all" if share == 1 else f"{100 * share:g} %"
            loads = {
                f"{name} active, open": (
                    *("--rate", f"{options.rate:g}", "--duration", f"{seconds:.1f}s"),
                    *("--warmup", "2s"),
                ),
                f"{name} active, closed": ("--duration", f"{options.duration}s"),
            }
            for label, how in loads.items():
                if options.open_only and label.endswith("closed"):
                    continue
                document, watch = load(server, connections, count, "--active", str(active), *how)
                if not told and watch.full is not None:
                    told = True
                    show_cost(connections, before, watch)
                    print(
                        f"{'':<22}{'served':>10}{'verified':>12}{'bad':>6}{'req/s':>10}"
                        f"{'p50 ms':>11}{'p99 ms':>11}"
                    )
                print(row(label, document), flush=True)
                for kind, number in document["errors"].items():
                    print(f"{'':<22}{number:>10,} {kind}", flush=True)
                documents.append(document)
                held = document["connections"]["held"]
                if held != connections:
                    raise SystemExit(f"only {held:,} of {connections:,} connections were made")
                if label == "all active, open" and document["connections"]["served"] < connections:
                    print("not every connection had its turn: give --rate 5k", flush=True)
    return documents


def show_cost(connections: int, before: Memory, watch: Watch) -> None:
    """What was seen when all connections were there."""
    assert watch.full is not None
    full = watch.full
    # The loader's engines are new, so what they take without connections is in it.
    print(
        f"held {watch.held:,}; made in {watch.seconds:.1f} s, "
        f"{connections / watch.seconds:,.0f} a second\n"
        f"bytes a connection: kernel {(full.slab - before.slab) / connections / 2:,.0f} a socket, "
        f"server {(full.server - before.server) / connections:,.0f}, "
        f"loader {full.loader / connections:,.0f} (with its processes)",
        flush=True,
    )


def main() -> None:
    """Measure each number of connections that the machine allows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--connections", default="10k,100k,300k,1M", metavar="N,...")
    parser.add_argument("--active", default="1%,10%,100%", metavar="PERCENT,...")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="a side, at least")
    parser.add_argument("--rate", type=parse_count, default=20_000, metavar="N")
    parser.add_argument("--duration", type=parse_duration, default=20.0, metavar="TIME")
    parser.add_argument("--open-only", action="store_true", help="leave closed loops out")
    parser.add_argument("--json", metavar="FILE", help="all documents of loadgen")
    options = parser.parse_args()
    files = raise_fd_limit() - SPARE_FDS
    documents = []
    for text in options.connections.split(","):
        connections = parse_count(text)
        missing = preflight(connections, files)
        if missing:
            print(f"\n{connections:,} connections: this machine has " + "; ".join(missing))
            continue
        documents += measure(connections, files, options)
    if options.json:
        Path(options.json).write_text(json.dumps(documents, indent=2))


if __name__ == "__main__":
    main()

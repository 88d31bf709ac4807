"""What waiting for events costs as the number of connections grows, for each way to wait.

    python benchmarks/growth.py --runs 3 --chart docs/growth.svg

The same server and the same load, a thousand connections that always have a
request under way, among more and more that rest. The ways are those of the
article: sleep and check, ``select``, ``poll``, ``epoll`` level- and edge-triggered.
They take turns, so that a machine that changes its speed changes it for all.
Where a process may not have so many files open, several share them on either side,
still on one processor. Then a careless server on edge-triggered events is asked several
things at once.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from pinned import free_port, running
from scenes import processes

from loadgen.report.html_charts import load_pygal
from nbnet.machine import SPARE_FDS, raise_fd_limit
from nbnet.notation import parse_count
from nbnet.pollers import SelectPoller

PEERS = Path(__file__).parent / "peers"
SERVE = f"{sys.executable} -m nbnet serve"
REST = "--port {port} --log-level error --idle-timeout 0 --first-byte-timeout 0"
WAYS = {
    "sleep and check": f"{sys.executable} {PEERS}/sleeping.py serve {REST}",
    "select": f"{SERVE} --poller select {REST}",
    "poll": f"{SERVE} --poller poll {REST}",
    "epoll, level": f"{SERVE} --trigger level {REST}",
    "epoll, edge": f"{SERVE} --trigger edge {REST}",
}
PIPELINES = (1, 2, 4, 8)
"""Requests at once that each peer of the careless server makes."""
PEERS_ASKING = 50


def measure(port: int, connections: int, active: int, seconds: float, *options: str) -> Any:
    """Load a server from processor 1; loadgen's document.

    Raises:
        SystemExit: not all connections were made.
    """
    command = ["taskset", "-c", "1", sys.executable, "-m", "loadgen", "--quiet"]
    command += ["--target", f"127.0.0.1:{port}", "--conns", str(connections)]
    command += ["--active", str(active), "--duration", f"{seconds}s", *options, "--json", "-"]
    done = subprocess.run(
        command, check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    document = json.loads(done.stdout)
    held = document["connections"]["held"]
    if held != connections:
        raise SystemExit(f"only {held:,} of {connections:,} connections were made")
    return document


def fits(way: str, connections: int) -> bool:
    """Whether a way to wait can watch so many."""
    return way != "select" or connections + SPARE_FDS <= SelectPoller.LIMIT


def compare(
    loads: list[tuple[int, int]], files: int, runs: int, seconds: float
) -> dict[str, list[Any]]:
    """Measure each way under each load; medians of rate and p99, None where it cannot be."""
    table: dict[str, list[Any]] = defaultdict(list)
    for idle, active in loads:
        found: dict[str, list[tuple[float, float]]] = defaultdict(list)
        workers = str(processes(idle + active, files))
        if workers != "1":
            print(f"{workers} processes a side:", flush=True)
        for _ in range(runs):
            for way, command in WAYS.items():
                if not fits(way, idle + active):
                    continue
                port = free_port()
                with running(f"{command} --workers {workers}", port):
                    document = measure(
                        port,
                        *(idle + active, active, seconds),
                        *("--workers", workers, "--timeout", "60s", "--connect-timeout", "60s"),
                    )
                p99 = document["latency_seconds"]["p99"]
                rate = document["throughput"]["requests_per_second"]
                found[way].append((rate, math.inf if p99 is None else p99))
        for way in WAYS:
            values = found.get(way)
            table[way].append(
                None
                if values is None
                else tuple(statistics.median(each) for each in zip(*values, strict=True))
            )
        for way in WAYS:
            show(way, idle, active, found.get(way))
    return table


def show(way: str, idle: int, active: int, values: list[tuple[float, float]] | None) -> None:
    """A line of the table."""
    text = f"{idle:>8,} idle, {active:>5,} active  {way:<16}"
    if values is None:
        print(f"{text}  cannot watch a descriptor above {SelectPoller.LIMIT - 1:,}", flush=True)
        return
    rates, p99s = zip(*values, strict=True)
    print(
        f"{text}{statistics.median(rates):>9,.0f}/s ({min(rates):,.0f} to {max(rates):,.0f})"
        f"   p99 {1e3 * statistics.median(p99s):>7,.1f} ms",
        flush=True,
    )


def careless() -> None:
    """Ask a server that reads once an event several things at once, and then nothing more."""
    print("\nrequests at once, to a server that reads once an event: replies that came")
    for trigger in ("level", "edge"):
        cells = []
        for pipeline in PIPELINES:
            port = free_port()
            command = f"{sys.executable} {PEERS}/careless_edge.py {{port}} --trigger {trigger}"
            with running(command, port):
                document = measure(
                    port,
                    *(PEERS_ASKING, PEERS_ASKING, 5.0),
                    *("--requests", str(PEERS_ASKING * pipeline), "--pipeline", str(pipeline)),
                    *("--timeout", "1s", "--no-reconnect"),
                )
            requests = document["requests"]
            cells.append(f"{pipeline}: {requests['verified']:,} of {requests['sent']:,}")
        print(f"{trigger:<6} {'   '.join(cells)}", flush=True)


def draw(table: dict[str, list[Any]], loads: list[tuple[int, int]], path: Path) -> None:
    """Requests a second over idle connections."""
    pygal, style = load_pygal()
    plot = pygal.Line(
        style=style(background="white", plot_background="white"),
        js=(),
        width=720,
        height=360,
        include_x_axis=True,
        truncate_legend=-1,
        title=f"requests/s of {loads[-1][1]:,} active connections, over idle ones",
        disable_xml_declaration=True,
    )
    shown = [n for n, (idle, _) in enumerate(loads) if idle]
    plot.x_labels = [f"{loads[n][0]:,}" for n in shown]
    for way in WAYS:
        if any(table[way][n] for n in shown):
            plot.add(way, [table[way][n] and table[way][n][0] for n in shown])
    plot.render_to_file(str(path))


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--idle", default="0,1k,3k,10k,18k,100k", metavar="N,...")
    parser.add_argument("--active", type=parse_count, default=1000, metavar="N")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--chart", type=Path, metavar="FILE.svg")
    options = parser.parse_args()
    files = raise_fd_limit() - 2 * SPARE_FDS
    loads = []
    for idle in map(parse_count, options.idle.split(",")):
        # Without idle ones fewer are active, so that select can take part.
        active = options.active if idle else min(options.active, 900)
        loads.append((idle, active))
    table = compare(loads, files, options.runs, options.seconds)
    careless()
    if options.chart is not None:
        draw(table, loads, options.chart)


if __name__ == "__main__":
    main()

"""Whether an open loop holds its rate, and what latency it then shows.

    python benchmarks/open_loop.py --server './server {port}' \\
        --load 50:80k --load 5000:50k --runs 5

The server runs on processor 0, loadgen on processor 1. A closed loop of the
same connections is measured in turn with it, to say what the machine gives at
the moment: at more than about two thirds of that rate any loop has queues.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from contextlib import ExitStack
from typing import Any

from pinned import free_port, running


def measure(port: int, conns: str, *load: str, seconds: float) -> dict[str, Any]:
    """Run loadgen on processor 1; give its document."""
    command = ["taskset", "-c", "1", sys.executable, "-m", "loadgen"]
    command += ["--target", f"127.0.0.1:{port}", "--conns", conns, "--duration", f"{seconds}s"]
    done = subprocess.run(
        [*command, *load, "--json", "-"],
        check=False,  # a rate that is missed is no error, and told below
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def main() -> None:
    """Measure each load beside the closed loop, so many times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--server", required=True, help="command, with {port}")
    parser.add_argument("--load", action="append", metavar="CONNS:RATE")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    port = free_port()
    with ExitStack() as stack:
        stack.enter_context(running(shlex.join(shlex.split(options.server)), port))
        for load in options.load or ["50:80k", "5000:50k"]:
            conns, _, rate = load.partition(":")
            medians = []
            for _ in range(options.runs):
                closed = measure(port, conns, seconds=options.seconds)
                opened = measure(port, conns, "--rate", rate, seconds=options.seconds)
                reached = opened["throughput"]["requests_per_second"]
                latency = opened["latency_seconds"]
                medians.append(latency["p50"])
                print(
                    f"{conns:>6} connections, {rate:>5}/s asked: {reached:>9,.0f}/s   "
                    f"p50 {latency['p50'] * 1e6:>9,.0f} us   p99 {latency['p99'] * 1e6:>9,.0f} us"
                    f"   worker {opened['loader']['cpu_percent']:>3.0f} %   (closed loop "
                    f"{closed['throughput']['requests_per_second']:,.0f}/s)",
                    flush=True,
                )
            print(
                f"{conns:>6} connections, {rate:>5}/s asked: p50 "
                f"{statistics.median(medians) * 1e6:,.0f} us "
                f"({min(medians) * 1e6:,.0f} to {max(medians) * 1e6:,.0f})"
            )


if __name__ == "__main__":
    main()

"""Whether loadgen tells of stalls: its figures beside what they have to be.

    python benchmarks/stalls.py [--rate 1000] [--duration 20] [--chart stalls.svg]

A server holds back all replies for the last second of every five. Of requests
that come evenly, a fifth then waits, evenly for 0 to 1 s, so the latency that
99 in 100 do not exceed is 0.95 s. The open loop has to say so; the closed loop
sends nothing while it waits, says something far lower, and has to say why.
"""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from loadgen.report.html_charts import load_pygal

CYCLE = 5.0
STALL = 1.0


class StallingServer:
    """Answers in order, but holds back everything in the last second of each cycle.

    The cycles begin with the first request.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = self._listener.getsockname()[1]
        self._began: float | None = None
        self._held: list[tuple[socket.socket, bytes]] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def restart(self) -> None:
        """Let the cycles begin anew with the next request."""
        self._began = None

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            while True:
                left = self._stalled_for()
                for key, _ in selector.select(left if self._held else None):
                    if key.fileobj is self._listener:
                        connection, _ = self._listener.accept()
                        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        selector.register(connection, selectors.EVENT_READ)
                    else:
                        assert isinstance(key.fileobj, socket.socket)
                        self._answer(selector, key.fileobj)
                if self._held and not self._stalled_for():
                    for connection, reply in self._held:
                        connection.send(reply)
                    self._held.clear()

    def _stalled_for(self) -> float:
        """Seconds until the stall is over; 0 without one."""
        if self._began is None:
            return 0.0
        phase = (time.monotonic() - self._began) % CYCLE
        return CYCLE - phase if phase >= CYCLE - STALL else 0.0

    def _answer(self, selector: selectors.BaseSelector, connection: socket.socket) -> None:
        request = connection.recv(4096)
        if not request:
            selector.unregister(connection)
            connection.close()
            return
        if self._began is None:
            self._began = time.monotonic()
        reply = request[:5] + request[:4:-1]
        if self._stalled_for():
            self._held.append((connection, reply))
        else:
            connection.send(reply)


PERCENTILES = ("p50", "p75", "p90", "p95", "p99", "p99.9")


def analytic(percentile: float) -> float:
    """Of requests that come evenly: a share of STALL / CYCLE waits evenly up to STALL seconds."""
    return max(0.0, STALL - (1 - percentile / 100) * CYCLE)


def draw(told: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Latency by percentile: what each way to measure says, beside what it is."""
    pygal, style = load_pygal()
    plot = pygal.Line(
        style=style(background="white", plot_background="white"),
        js=(),
        width=720,
        height=360,
        truncate_legend=-1,
        legend_at_bottom=True,
        legend_at_bottom_columns=2,
        title="latency in seconds of a server that stalls for 1 s in 5",
        disable_xml_declaration=True,
    )
    plot.x_labels = PERCENTILES
    plot.add("what users have", [analytic(float(name[1:])) for name in PERCENTILES])
    for name, times in told.items():
        plot.add(name, [times[each] for each in PERCENTILES])
    plot.render_to_file(str(path))


def main() -> None:
    """Measure the open loop and the closed one against the same server."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", default="1000")
    parser.add_argument("--duration", default="20")
    parser.add_argument("--conns", default="50")
    parser.add_argument("--chart", type=Path, metavar="FILE.svg")
    options = parser.parse_args()
    server = StallingServer()
    expected = analytic(99)
    told: dict[str, Mapping[str, float]] = {}
    for name, load in (("open loop", ["--rate", options.rate]), ("closed loop", [])):
        server.restart()
        command = [sys.executable, "-m", "loadgen", "--target", f"127.0.0.1:{server.port}"]
        command += ["--conns", options.conns, "--duration", options.duration, "--json", "-", *load]
        done = subprocess.run(
            command,
            check=False,  # what went wrong stands in the notes
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        report = json.loads(done.stdout)
        told[name] = report["latency_seconds"]
        if load:
            told[f"{name}, from the actual send"] = report["service_seconds"]
        p99, service = report["latency_seconds"]["p99"], report["service_seconds"]["p99"]
        print(
            f"{name:<12} {report['throughput']['requests_per_second']:>9,.0f} requests/s   "
            f"p99 {p99:.4f} s, {p99 / expected - 1:+.1%} of the {expected} s that it is   "
            f"(from the actual send {service:.4f} s)",
            flush=True,
        )
        for note in report["notes"]:
            print(f"    {note}")
    for name, times in told.items():
        cells = (f"{each} {times[each]:.4f}" for each in PERCENTILES)
        print(f"{name:<35} {'   '.join(cells)}")
    if options.chart is not None:
        draw(told, options.chart)


if __name__ == "__main__":
    main()

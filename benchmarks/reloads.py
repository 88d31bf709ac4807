"""What clients on persistent connections notice of reloads.

    python benchmarks/reloads.py [--reloads 20] [--conns 200] [--workers 1]

Starts ``nbnet serve``, keeps verified requests going on connections that are
never closed, and sends SIGHUP again and again: each reload replaces every worker
process and hands its connections over. Prints how many requests were answered
and how many connections failed, which is to be none.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import time

from scenes import loading, serving


def main() -> None:
    """Reload under load and print what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reloads", type=int, default=20)
    parser.add_argument("--conns", type=int, default=200)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="of the handler")
    options = parser.parse_args()
    arguments = ("--workers", str(options.workers), "--threads", str(options.threads))
    with serving(*arguments, level="info") as server:
        # Ended by hand once the last reload is done.
        with loading(server.address, options.conns, 3600) as load:
            time.sleep(2)  # for all to connect
            took = []
            for _ in range(options.reloads):
                start = time.monotonic()
                server.process.send_signal(signal.SIGHUP)
                server.wait_for("reloaded")
                took.append(time.monotonic() - start)
            load.stop()
            run = load.result()
        requests, connections = run["requests"], run["connections"]
        print(
            f"{options.reloads} reloads of {options.workers} worker(s), each in "
            f"{statistics.median(took):.2f} s (longest {max(took):.2f} s)\n"
            f"{requests['verified']:,} requests verified on {connections['held']} connections: "
            f"{requests['wrong']} wrong, {requests['failed']} failed, "
            f"{connections['lost']} connections lost\n"
            f"latency p50 {run['latency_seconds']['p50'] * 1e3:.1f} ms, "
            f"p99 {run['latency_seconds']['p99'] * 1e3:.1f} ms, "
            f"longest {run['latency_seconds']['max'] * 1e3:.0f} ms"
        )
        if requests["wrong"] or requests["failed"] or connections["lost"]:
            sys.exit(1)


if __name__ == "__main__":
    main()

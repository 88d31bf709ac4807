"""What a second worker process gains, with a handler that costs something.

    python benchmarks/workers.py [--workers 2] [--rounds 2000] [--runs 5]

The handler hashes the payload so many times; the load generator shares the
processors with the server, so its part is to be small beside that. Servers with
one and with several workers are measured in turn, and the ratios printed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics

from scenes import loading, serving

ROUNDS = int(os.environ.get("ROUNDS", "0"))


def burn(payload: bytes) -> bytes:
    """The handler: half a microsecond a round, or so."""
    for _ in range(ROUNDS):
        hashlib.sha256(payload).digest()
    return payload[::-1]


def main() -> None:
    """Measure one worker and several, in turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    os.environ["ROUNDS"] = str(options.rounds)
    ratios = []
    for _ in range(options.runs):
        rates = []
        for workers in (1, options.workers):
            with (
                serving("--workers", str(workers), "--handler", "workers:burn") as server,
                loading(server.address, 200, 2) as load,
            ):
                rates.append(load.result()["throughput"]["requests_per_second"])
        ratios.append(rates[1] / rates[0])
        print(
            f"1 worker {rates[0]:,.0f}/s   {options.workers} workers {rates[1]:,.0f}/s", flush=True
        )
    print(
        f"{options.workers} workers against one: {statistics.median(ratios):.2f} times "
        f"({min(ratios):.2f} to {max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()

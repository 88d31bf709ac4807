"""Plays seeds by command; see the package for examples.

Prints a line every few seconds, each failing seed with the command that shows it
again, and at the end what was simulated, and how fast. Exits with 1 if any failed.
"""

from __future__ import annotations

import argparse
import sys
import time

from simulation.kernel import SimulationFailure
from simulation.runs import WORLDS, run_seed

_EVERY = 5.0
"""Seconds between lines."""


def main(arguments: list[str] | None = None) -> int:
    """Play the seeds that the arguments name; the exit code."""
    parser = argparse.ArgumentParser(prog="simulation", description="Play simulated runs by seed.")
    parser.add_argument("--world", choices=WORLDS, default="server")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="the first seed")
    parser.add_argument("--seeds", type=int, default=1000, metavar="N", help="how many")
    parser.add_argument("--trace", action="store_true", help="print what happens, step by step")
    parser.add_argument("--keep-going", action="store_true", help="do not end at a failure")
    options = parser.parse_args(arguments)
    started = shown = time.monotonic()
    events = connections = requests = cut = failed = 0
    simulated = 0.0
    for seed in range(options.first, options.first + options.seeds):
        try:
            outcome = run_seed(options.world, seed, print if options.trace else None)
        except SimulationFailure as failure:
            failed += 1
            print(f"FAILED {failure}", flush=True)
            if not options.keep_going:
                break
            continue
        events += outcome.events
        simulated += outcome.seconds
        connections += outcome.connections
        requests += outcome.requests
        cut += outcome.cut
        now = time.monotonic()
        if now > shown + _EVERY:
            shown = now
            done = seed - options.first + 1
            print(f"{done:,} of {options.seeds:,} seeds, {failed} failed", flush=True)
    seconds = time.monotonic() - started
    done = seed - options.first + 1 if options.seeds > 0 else 0
    print(
        f"{options.world}: {done:,} seeds, {failed} failed; {connections:,} connections, "
        f"{requests:,} requests answered, {cut:,} connections cut off for a reason; "
        f"{events:,} events in {seconds:.1f} s, {events / max(seconds, 1e-9):,.0f} events/s; "
        f"{simulated:,.0f} s simulated"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

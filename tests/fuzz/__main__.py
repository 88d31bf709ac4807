"""Give the targets inputs by the million.

    PYTHONPATH=tests python -m fuzz [--inputs 1M] [--seed 1] [--processes 1] [--target NAME]

Prints for each target how many inputs it had, how many a second, and on how many it
failed: with an exception, or by doing other than the reference. Of these the first are
shown, made as small as could be, to be kept in tests/fuzz/corpus; then the exit code is
1. The same seed gives the same inputs, whatever the number of processes.
"""

from __future__ import annotations

import argparse
import sys
import time

from fuzz.running import Found, fuzz
from fuzz.targets import TARGETS
from nbnet.notation import parse_count

TELL_EVERY = 30.0
"""Seconds."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--inputs", type=parse_count, default=1_000_000, help="for each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--target", action="append", choices=TARGETS, help="default: all in turn")
    options = parser.parse_args(arguments)
    if options.processes < 1 or options.inputs < 1:
        parser.error("at least one input and one process are needed")
    failed = 0
    for name in options.target or TARGETS:
        tell = _teller(name, options.inputs)
        found, seconds = fuzz(name, options.inputs, options.seed, options.processes, tell)
        failed += found.failed
        print(
            f"{name:<8} {found.inputs:>12,} inputs {seconds:>8.1f} s "
            f"{found.inputs / seconds:>9,.0f} inputs/s {found.failed:>6,} failed",
            flush=True,
        )
        for finding in found.findings:
            print(f"    {finding.data!r}\n        {finding.said}", flush=True)
    print(f"FAILED: {failed:,} inputs" if failed else "OK: none failed")
    return int(failed > 0)


class _teller:  # noqa: N801  (used as a function)
    """Says now and then, on standard error, how far it is."""

    def __init__(self, name: str, inputs: int) -> None:
        self._name, self._inputs = name, inputs
        self._next = time.monotonic() + TELL_EVERY

    def __call__(self, found: Found) -> None:
        if time.monotonic() >= self._next:
            self._next += TELL_EVERY
            share = found.inputs / self._inputs
            print(f"{self._name}: {share:.0%}, {found.failed} failed", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

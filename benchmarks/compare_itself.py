"""How often ``loadgen compare`` calls a difference: of a server with itself, and with a slower one.

    python benchmarks/compare_itself.py [--more 0,20] [--times 10] [--repeat 60] [--duration 0.5]

The handler does arithmetic for some tenths of a millisecond on one thread, so that
the server is the limit, whatever speed the machine has just then. The slower one
does so many per cent more of it; without any, a server is compared with itself. Of
equal servers one in twenty may be called different, fewer because of the floor of 1 %.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter

from scenes import serving

from nbnet.notation import Target

STEPS = 20_000
MORE = float(os.environ.get("MORE", "0"))
"""Per cent more steps of the slower handler; it is in the server's environment."""
_MORE_STEPS = round(STEPS * (1 + MORE / 100))


def work(payload: bytes) -> bytes:
    """The handler."""
    sum(range(STEPS))
    return payload[::-1]


def more_work(payload: bytes) -> bytes:
    """The slower one."""
    sum(range(_MORE_STEPS))
    return payload[::-1]


def compare(a: Target, b: Target, options: argparse.Namespace) -> str:
    """Compare two servers once; gives what was found, and prints what it comes to."""
    began = time.monotonic()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "loadgen", "compare", "--a", str(a), "--b", str(b)),
            *("--json", "-", "--repeat", str(options.repeat)),
            *("--duration", str(options.duration), "--conns", str(options.conns)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    last = done.stderr.rstrip().splitlines()[-1]
    print(f"  {last}  ({time.monotonic() - began:.0f} s)", flush=True)
    return str(json.loads(done.stdout)["finding"])


def main() -> None:
    """Compare time after time and count what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=10, help="comparisons of each kind")
    parser.add_argument("--more", default="0,20", help="per cent more work; 0 is the same server")
    parser.add_argument("--repeat", type=int, default=60, help="runs of each server")
    parser.add_argument("--duration", type=float, default=0.5, help="seconds of a run")
    parser.add_argument("--conns", type=int, default=20)
    options = parser.parse_args()
    for more in options.more.split(","):
        os.environ["MORE"] = more
        print(f"{more} % more work", flush=True)
        with (
            serving("--handler", "compare_itself:work") as one,
            serving("--handler", "compare_itself:more_work") as other,
        ):
            b = other.address if float(more) else one.address
            found = Counter(compare(one.address, b, options) for _ in range(options.times))
        print("  ", ", ".join(f"{each}: {number}" for each, number in found.most_common()))


if __name__ == "__main__":
    main()

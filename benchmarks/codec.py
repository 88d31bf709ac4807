"""How many frames a second one process decodes, reverses and encodes.

    python benchmarks/codec.py [--runs 20]

Payloads of 3 to 50 bytes in mixed order, 128 frames a read, the decoder, the
default handler and the encoder as the server uses them: no sockets.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

from nbnet.connection import Connection
from nbnet.counters import Counters
from nbnet.framing import encode_frames
from nbnet.handlers import reverse
from nbnet.limits import Limits

FRAMES = 128
READS = 1000


def main() -> None:
    """Print frames a second: lowest, median and highest of the runs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    generator = random.Random(1)
    data = encode_frames([generator.randbytes(generator.randint(3, 50)) for _ in range(FRAMES)])
    rates = []
    for _ in range(runs):
        receive = Connection(reverse, Limits(), Counters(), "benchmark", 0.0).receive
        start = time.perf_counter()
        for _ in range(READS):
            receive(data, 0.0)
        rates.append(FRAMES * READS / (time.perf_counter() - start) / 1e6)
    print(
        f"{runs} runs: {min(rates):.2f} to {max(rates):.2f}, "
        f"median {statistics.median(rates):.2f} million frames/s"
    )


if __name__ == "__main__":
    main()

"""Inputs by the million: frames and what nearly is one, by a seed.

An input is made of pieces, glued and then, half of the time, damaged. Inputs come in
blocks, each of which depends on the seed and its own number alone: so they are the
same ones whatever the number of processes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Final

from fuzz.plan import SIZE
from nbnet.framing import MAX_PAYLOAD

BLOCK: Final = 5_000
"""Inputs of a block."""
PIECES: Final = 400
"""Pieces of which the inputs of a block are made."""
TOKENS: Final = (
    *(b"\r\n", b"\r", b"\n", b"\r\n\r\n", b"0", b"00", b"0000", b"+", b"_", b" ", b"-1"),
    *(b"00000", b"00001", b"00002", b"00005", b"00012", b"00013", b"00099", b"00100"),
    *(b"000001", b"0000", b"99999", b"04095", b"04096", b"+0001a", b" 0001a", b"0_001a"),
    *("\u0660".encode(), "\u00b2".encode(), b"\x00", b"\xff", b"00001!", b"00001?", b"GET / "),
)
SIZES: Final = (0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 4, 5, 5, 6, 7, 10, 12, 13, 20)
RARE_SIZES: Final = (99, 100, 101, 4090, 4095, 4096, 4097, 5000)
STEPS: Final = bytes((*range(16), *range(16), 31, 63, 127, 159, 160, 200, 255))
"""Steps of cuts that inputs have, as their plan says them: most are short."""


def block(seed: int, number: int, seeds: Sequence[bytes] = ()) -> Iterator[bytes]:
    """The inputs of a block; ``seeds`` are some that are known to matter."""
    rng = random.Random(f"{seed} {number}")
    pieces = _pieces(rng, seeds)
    choose, pick, below = rng.choices, rng.random, rng.randrange
    for _ in range(BLOCK):
        count = 1 + int(pick() * pick() * 8)
        parts = choose(pieces, k=count)
        if pick() < 0.15:  # a run of equal ones, which decoders take at once
            parts += parts[:1] * int(pick() * 5)
        stream = b"".join(parts)
        if stream and pick() < 0.5:
            stream = _damaged(rng, stream, pieces)
        yield bytes(choose(range(256), k=3)) + bytes(choose(STEPS, k=SIZE - 3)) + stream
    if number % 20 == 0:
        size = rng.choice((MAX_PAYLOAD, MAX_PAYLOAD - 1, 65_536, 70_000))
        yield bytes([0, below(256), below(256), 255, 255, 254]) + _frame(rng, size) * 2


def _pieces(rng: random.Random, seeds: Sequence[bytes]) -> list[bytes]:
    pieces = [*TOKENS]
    for _ in range(PIECES):
        kind = rng.random()
        if kind < 0.75:
            pieces.append(_frame(rng, rng.choice(SIZES)))
        elif kind < 0.85:
            pieces.append(rng.choice(TOKENS))
        elif kind < 0.93 and seeds:
            pieces.append(rng.choice(seeds)[SIZE:])
        elif kind < 0.99:
            pieces.append(rng.randbytes(rng.randrange(1, 8)))
    if rng.random() < 0.5:
        pieces.append(_frame(rng, rng.choice(RARE_SIZES)))
    return pieces


def _frame(rng: random.Random, size: int) -> bytes:
    if size > 200:
        payload = rng.randbytes(64) * (size // 64 + 1)
    elif rng.random() < 0.4:
        payload = bytes(rng.choices(b"01a!?\r\n", k=size))  # what looks like more of the protocol
    else:
        payload = rng.randbytes(size)
    return b"%05d" % size + payload[:size]


def _damaged(rng: random.Random, stream: bytes, pieces: list[bytes]) -> bytes:
    place = rng.randrange(len(stream))
    match int(rng.random() * 7):
        case 0:  # a bit
            return (
                stream[:place]
                + bytes([stream[place] ^ 1 << rng.randrange(8)])
                + stream[place + 1 :]
            )
        case 1:  # a byte gone
            return stream[:place] + stream[place + 1 :]
        case 2:  # something put between
            return stream[:place] + rng.choice(pieces) + stream[place:]
        case 3:  # the rest gone
            return stream[:place]
        case 4:  # a part twice
            end = place + rng.randrange(1, 20)
            return stream[:end] + stream[place:]
        case 5:  # the beginning gone
            return stream[place:]
        case _:  # a byte that matters
            return stream[:place] + bytes(rng.choices(b"0195\r\n+_!?", k=1)) + stream[place + 1 :]

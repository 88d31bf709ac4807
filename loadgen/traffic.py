"""What a run sends and what has to come back, built ahead of it.

A run takes its messages in turn from a pool, from the start again when it is
used up. So nothing is made while the clock runs, and the same seed gives the
same bytes in the same order.
"""

from __future__ import annotations

import itertools
import math
import random
import re
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, cast

from nbnet.framing import MAX_PAYLOAD, FrameDecoder, FrameError, encode_frame
from nbnet.loading import load_function
from nbnet.notation import parse_size

POOL: Final = 65_536
"""Messages of a pool whose payloads all differ, at least."""
SIZED_POOL: Final = 4_096
"""Messages of a pool of different sizes."""
POOL_BYTES: Final = 256 << 20
"""Bytes that a pool may take."""
_OVERHEAD: Final = 240
"""Bytes that a message takes beside its own, in frame and reply: two objects of
``bytes``, a tuple, the references, the sums of the lengths."""

_ALPHABET: Final = (string.ascii_letters + string.digits).encode()
_PRINTABLE: Final = bytes(_ALPHABET[byte % len(_ALPHABET)] for byte in range(256))
_LOGNORMAL: Final = re.compile(r"lognormal:([^,]+),([0-9]+(?:\.[0-9]+)?)")


class TrafficError(ValueError):
    """The traffic that was asked for cannot be made; the message says why."""


class Message(NamedTuple):
    """A request as it goes over the wire, and the reply as it has to come back.

    ``expected`` is empty where any well-formed reply will do.
    """

    frame: bytes
    expected: bytes


@dataclass(frozen=True, slots=True)
class Sizes:
    """How long payloads are: evenly distributed from ``low`` to ``high``, or lognormal.

    ``sigma`` is the standard deviation of the logarithm, 0 for an even
    distribution; ``median`` is of the lognormal one, cut to 1 to 99,999.
    """

    low: int
    high: int
    median: int = 0
    sigma: float = 0.0

    def draw(self, rng: random.Random) -> int:
        """One length, in bytes."""
        if not self.median:
            return rng.randint(self.low, self.high)
        # Cut as a logarithm: its power may be more than a float holds.
        logarithm = rng.normalvariate(math.log(self.median), self.sigma)
        return max(self.low, round(math.exp(min(logarithm, math.log(self.high)))))

    def __str__(self) -> str:
        if self.median:
            return f"{self.median:,} bytes (median, lognormal, sigma {self.sigma:g})"
        return f"{self.low:,} bytes" if self.is_fixed else f"{self.low:,} to {self.high:,} bytes"

    @property
    def is_fixed(self) -> bool:
        """Whether all are of one length."""
        return self.low == self.high


def parse_sizes(text: str) -> Sizes:
    """The lengths in ``512``, ``4KiB``, ``16-1KiB`` or ``lognormal:MEDIAN,SIGMA``.

    Raises:
        ValueError: the text says no such thing, or more than a frame holds.

    >>> parse_sizes("16-1KiB")
    Sizes(low=16, high=1024, median=0, sigma=0.0)
    >>> parse_sizes("lognormal:200,1.5")
    Sizes(low=1, high=99999, median=200, sigma=1.5)
    """
    wrong = (
        f"{text!r} is no payload size: expected one like 512, 4KiB, 16-1KiB or lognormal:200,1.5"
    )
    match = _LOGNORMAL.fullmatch(text)
    try:
        if match:
            bounds = [parse_size(match[1])]
        else:
            bounds = [parse_size(part) for part in text.split("-", 1)]
    except ValueError:
        raise ValueError(wrong) from None
    if not 1 <= bounds[0] <= bounds[-1]:
        raise ValueError(wrong)
    if bounds[-1] > MAX_PAYLOAD:
        raise ValueError(f"a payload of {bounds[-1]} bytes: a request holds 1 to {MAX_PAYLOAD:,}")
    if match:
        return Sizes(1, MAX_PAYLOAD, bounds[0], float(match[2]))
    return Sizes(bounds[0], bounds[-1])


def read_payloads(text: bytes, *, frames: bool = False) -> tuple[bytes, ...]:
    """The payloads in the contents of a file: one a line, or frame after frame.

    An empty line is no payload; a line ends with LF or CR LF.

    Raises:
        ValueError: there is none, one is too long, or these are no frames.

    >>> read_payloads(b"abc\\nde\\n")
    (b'abc', b'de')
    >>> read_payloads(b"00003abc00002de", frames=True)
    (b'abc', b'de')
    """
    if frames:
        decoder = FrameDecoder()
        try:
            payloads = decoder.feed(text)
            decoder.finish()
        except FrameError as error:
            raise ValueError(f"no frames: {error}") from None
    else:
        lines = [line.removesuffix(b"\r") for line in text.split(b"\n")]
        payloads = [line for line in lines if line]
        for number, line in enumerate(lines, start=1):
            if len(line) > MAX_PAYLOAD:
                raise ValueError(
                    f"line {number} has {len(line):,} bytes: a request holds 1 to {MAX_PAYLOAD:,}"
                )
    if not payloads:
        raise ValueError("there is no payload in it")
    return tuple(payloads)


def make_payloads(sizes: Sizes, seed: int, shortest: int = 1) -> tuple[bytes, ...]:
    """Payloads of random letters and digits, of the given sizes; one where that is enough.

    Args:
        shortest: the bytes that each has at least, of a lognormal distribution, whose
            lower end nobody chose.
    """
    if sizes.median:
        sizes = replace(sizes, low=max(sizes.low, shortest))
    rng = random.Random(seed)
    if sizes.is_fixed:
        lengths = [sizes.low]
    else:
        drawn = (sizes.draw(rng) for _ in range(SIZED_POOL))
        totals = itertools.accumulate(drawn, lambda total, size: total + size)
        ends = list(itertools.takewhile(lambda total: 2 * total <= POOL_BYTES, totals))
        lengths = [end - start for start, end in itertools.pairwise([0, *ends])]
    return tuple(rng.randbytes(length).translate(_PRINTABLE) for length in lengths)


def make_unique(payloads: Sequence[bytes], seed: int, in_flight: int) -> Iterator[bytes]:
    """Give each of many payloads a number of its own in place of its first bytes.

    There are enough of them that no two requests in flight at once are the same.

    Raises:
        TrafficError: a payload is too short for a number, or they take too much memory.

    >>> next(make_unique([b"abcdef"], seed=1, in_flight=10))[3:]
    b'def'
    """
    count = max(POOL, 2 * in_flight, len(payloads))
    width = _width(count)
    shortest, longest = min(map(len, payloads)), max(map(len, payloads))
    if shortest < width:
        raise TrafficError(
            f"--payload-unique puts a number of {width} bytes into each payload, and the "
            f"shortest has {shortest}"
        )
    mean = sum(map(len, payloads)) / len(payloads)
    if count * (2 * mean + _OVERHEAD) > POOL_BYTES:
        # Fewer than usual will do, as long as those in flight all differ.
        count = int(POOL_BYTES / (2 * mean + _OVERHEAD))
        if count < 2 * in_flight:
            raise TrafficError(
                f"--payload-unique with {in_flight:,} requests in flight of up to {longest:,} "
                f"bytes takes more than {POOL_BYTES >> 20} MiB: use shorter payloads "
                f"or at most {count // 2:,} in flight"
            )
    numbers = [bytes(digits) for digits in _numbers(seed, width, count)]
    return (
        number + payload[width:]
        for number, payload in zip(numbers, itertools.cycle(payloads), strict=False)
    )


def _width(count: int) -> int:
    """Bytes of the numbers that so many payloads take."""
    return math.ceil(math.log(count, len(_ALPHABET)))


def _numbers(seed: int, width: int, count: int) -> Iterator[bytes]:
    """So many different numbers of ``width`` digits, from somewhere on."""
    base = len(_ALPHABET)
    start = random.Random(seed).randrange(base**width)
    for number in range(start, start + count):
        yield bytes(_ALPHABET[number // base**place % base] for place in range(width))


def expectation(name: str) -> Callable[[bytes], bytes] | None:
    """What a payload has to be answered with: ``reverse``, ``echo``, ``none`` or a function.

    ``none`` takes any well-formed reply, which is None here. A function is named
    ``module:function``, takes the payload and returns that of the reply.

    Raises:
        TrafficError: there is no such function.

    >>> expectation("reverse")(b"abc")
    b'cba'
    """
    if name == "reverse":
        return lambda payload: payload[::-1]
    if name == "echo":
        return lambda payload: payload
    if name == "none":
        return None
    try:
        return cast("Callable[[bytes], bytes]", load_function(name, "expectation"))
    except ValueError as error:
        raise TrafficError(f"--expect: {error}") from error


def messages(payloads: Iterable[bytes], expect: str) -> tuple[Message, ...]:
    """Encode payloads and what has to come back for each.

    Raises:
        TrafficError: a function that tells the reply fails, or gives what cannot be one.

    >>> messages([b"abc"], "reverse")
    (Message(frame=b'00003abc', expected=b'00003cba'),)
    """
    answer = expectation(expect)
    return tuple(_message(payload, answer) for payload in payloads)


def _message(payload: bytes, answer: Callable[[bytes], bytes] | None) -> Message:
    frame = encode_frame(payload)
    if answer is None:
        return Message(frame, b"")
    try:
        return Message(frame, encode_frame(answer(payload)))
    except Exception as error:  # whatever a user's function raises
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise TrafficError(
            f"--expect: no reply to {payload[:20]!r} can be told: {reason}"
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What requests carry and what has to come back.

    Attributes:
        payload: of every request, 1 to 99,999 bytes, if neither of the next two is given.
        sizes: payloads of these sizes, of random letters and digits.
        payloads: these, in turn.
        unique: whether each payload is given a number of its own.
        expect: see ``expectation``.

    Raises:
        TrafficError: a payload is empty or too long for a frame.
    """

    payload: bytes = b"abc"
    sizes: Sizes | None = None
    payloads: tuple[bytes, ...] = ()
    unique: bool = False
    expect: str = "reverse"

    def __post_init__(self) -> None:
        if not 1 <= len(self.payload) <= MAX_PAYLOAD:
            raise TrafficError(
                f"a payload of {len(self.payload)} bytes: a request holds 1 to {MAX_PAYLOAD:,}"
            )

    def describe(self) -> str:
        """What the payloads are, in words.

        >>> Traffic(sizes=parse_sizes("16-64")).describe()
        'random text of 16 to 64 bytes'
        """
        if self.sizes is not None:
            return f"random text of {self.sizes}"
        if self.payloads:
            count = len(self.payloads)
            return f"{count:,} payloads of a file" if count > 1 else "1 payload of a file"
        return f"{len(self.payload):,} bytes"

    def build(self, seed: int, in_flight: int) -> tuple[Message, ...]:
        """The messages of a run with up to so many requests in flight.

        Raises:
            TrafficError: they cannot be made.

        >>> len(Traffic().build(seed=1, in_flight=10))
        1
        """
        payloads: Iterable[bytes]
        if self.sizes is not None:
            shortest = _width(max(POOL, 2 * in_flight)) if self.unique else 1
            payloads = make_payloads(self.sizes, seed, shortest)
        else:
            payloads = self.payloads or (self.payload,)
        if self.unique:
            payloads = make_unique(tuple(payloads), seed, in_flight)
        return messages(payloads, self.expect)


class Pool:
    """A cycle of messages, from one of them on, and what some of them in a row weigh.

    >>> pool = Pool(messages([b"abc", b"de"], "reverse"), start=1)
    >>> pool.take().frame, pool.take().frame
    (b'00002de', b'00003abc')
    >>> pool.sent_bytes(3), pool.received_bytes(1)
    (22, 7)
    """

    def __init__(self, messages: Sequence[Message], start: int = 0) -> None:
        self.messages = [*messages[start:], *messages[:start]]
        self.take: Callable[[], Message] = itertools.cycle(self.messages).__next__
        """The next message."""
        self.longest_reply = max(len(message.expected) for message in messages)
        self.any_reply = not messages[0].expected
        self._joined: dict[int, tuple[Message, tuple[Message, ...]]] = {}
        self._sent = [0, *itertools.accumulate(len(each.frame) for each in self.messages)]
        self._received = [
            0,
            *itertools.accumulate(len(each.expected) for each in self.messages),
        ]

    def take_several(self, count: int) -> tuple[Message, tuple[Message, ...]]:
        """The next messages as one, and each by itself.

        >>> pool = Pool(messages([b"abc"], "reverse"))
        >>> pool.take_several(2)[0]
        Message(frame=b'00003abc00003abc', expected=b'00003cba00003cba')
        """
        if len(self.messages) > 1:
            return _join(tuple(self.take() for _ in range(count)))
        if count not in self._joined:
            self._joined[count] = _join((self.messages[0],) * count)
        return self._joined[count]

    def sent_bytes(self, count: int) -> int:
        """Of the frames of the first ``count`` messages taken."""
        return _sum(self._sent, count)

    def received_bytes(self, count: int) -> int:
        """Of the replies to the first ``count`` messages taken."""
        return _sum(self._received, count)


def _join(parts: tuple[Message, ...]) -> tuple[Message, tuple[Message, ...]]:
    frames, replies = zip(*parts, strict=True)
    return Message(b"".join(frames), b"".join(replies)), parts


def _sum(sums: list[int], count: int) -> int:
    rounds, rest = divmod(count, len(sums) - 1)
    return rounds * sums[-1] + sums[rest]


def reversed_text(payload: bytes) -> Message:
    """A request to the server that reverses text.

    >>> reversed_text(b"abc")
    Message(frame=b'00003abc', expected=b'00003cba')
    """
    return messages([payload], "reverse")[0]

"""What hostile clients do in ``loadgen chaos``, by name, and what the protocol demands then.

An abuse is a function that takes a ``Peer`` and what there is to say, and gives
its steps; it ends if the server did as it has to, and raises ``Fault`` if not.
The abuser's number chooses among variants, so that a few of a kind differ.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from loadgen.chaos_peer import Peer, Steps, Wait
from loadgen.traffic import Message
from nbnet.framing import HEADER_SIZE, MAX_PAYLOAD
from nbnet.pollers import READ

CUT: Final = 0.001
"""Seconds between the pieces of a frame that is split."""
SETTLE: Final = 0.02
"""Seconds in which no bytes may follow the last reply that was asked for."""
DRIPS: Final = 20
"""Pieces in which a slow writer sends its request, and a slow reader reads a little."""
SIP: Final = 256
"""Bytes that a slow reader reads at a time."""
FLOOD: Final = 20
"""Connections that one abuser of connect-flood stands for."""
SPLIT_BYTES: Final = 64
"""Bytes of a frame that go one at a time."""
ONE_WRITE: Final = 65536
"""Bytes of the frames that go in one write, at most."""

BAD_HEADERS: Final = (
    b"0003a",  # a letter
    b"+0003",  # a sign
    b" 0003",  # a space before
    b"00000",  # a request holds a byte at least
    b"000003",  # a digit too many, which is a length of 0
    b"0003 ",
    b"-0003",
    b"0_003",
    b"0x003",
    b"3.000",
    b"\n0003",  # LF without CR
    b"\r0003",  # CR without LF
    b"\0\0\0\3a",
    "٠٠٠٣".encode(),  # digits, but not ASCII's
    b"GET / HTTP/1.1",
)
"""What is no header; the first are those that few abusers try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What abuses have at hand.

    Attributes:
        messages: small requests and the replies to them.
        largest: a request of 99,999 bytes; None where no reply to it can be told.
        bulk: bytes that a slow reader asks for.
        hold: seconds that a slow or silent one takes.
        max_frame: the longest request that the server takes, where that is less
            than the protocol's; None if it is not known.
    """

    messages: tuple[Message, ...]
    largest: Message | None
    bulk: int
    hold: float
    max_frame: int | None = None

    def some(self, count: int, number: int) -> list[Message]:
        """So many messages; other ones for another number, where there are others."""
        start = count * number
        return [self.messages[(start + n) % len(self.messages)] for n in range(count)]

    def upto(self, size: int, number: int) -> list[Message]:
        """Messages of so many bytes together at most, requests and replies counted alone; one
        at least.
        """
        sizes = itertools.accumulate(
            max(len(message.frame), len(message.expected)) for message in self._cycle(number)
        )
        count = sum(1 for _ in itertools.takewhile(lambda total: total <= size, sizes))
        return list(itertools.islice(self._cycle(number), max(1, count)))

    def _cycle(self, number: int) -> Iterator[Message]:
        start = number % len(self.messages)
        return itertools.cycle(self.messages[start:] + self.messages[:start])


@dataclass(frozen=True, slots=True)
class Abuse:
    """A kind of abuse.

    Attributes:
        steps: what it does.
        demand: what the protocol demands then, in a few words.
    """

    steps: Callable[[Peer, Means], Steps]
    demand: str


def split(peer: Peer, means: Means) -> Steps:
    """A frame byte for byte, then frames cut at each place of a header and around it."""
    yield from peer.connect()
    first = min(means.some(8, peer.number), key=lambda message: len(message.frame))
    peer.replies.ask([first])
    for n in range(min(len(first.frame), SPLIT_BYTES)):
        yield from peer.send(first.frame[n : n + 1])
        yield from peer.pause(CUT)
    yield from peer.send(first.frame[SPLIT_BYTES:])
    messages = means.some(HEADER_SIZE + 3, peer.number)
    peer.replies.ask(messages)
    stream, cuts = b"", [0]
    for n, message in enumerate(messages):
        # One more byte each: after 1 ... 5 of the header, the first of the payload, before
        # the last, at the end. What is left of a frame goes with what begins the next.
        inside = n + 1 if n <= HEADER_SIZE else len(message.frame) - (n == HEADER_SIZE + 1)
        cuts.append(len(stream) + min(inside, len(message.frame)))
        stream += message.frame
    for start, end in itertools.pairwise(cuts):
        yield from peer.send(stream[start:end])
        yield from peer.pause(CUT)
    yield from _finish(peer)


def coalesce(peer: Peer, means: Means) -> Steps:
    """As many frames as a large write holds, in one."""
    yield from peer.connect()
    messages = means.upto(ONE_WRITE, peer.number)
    peer.replies.ask(messages)
    yield from peer.send(b"".join(message.frame for message in messages))
    yield from _finish(peer)


def slow_read(peer: Peer, means: Means) -> Steps:
    """Ask for much, read little for a while, then all."""
    yield from peer.connect()
    messages = means.upto(means.bulk, peer.number)
    peer.replies.ask(messages)
    rest = memoryview(b"".join(message.frame for message in messages))
    end = peer.clock() + means.hold
    while peer.clock() < end and not peer.ended:
        rest = rest[peer.push(rest) :] if rest else rest
        peer.pull(SIP)
        yield from peer.pause(means.hold / DRIPS)
    if rest and not peer.ended:
        yield from peer.send(rest)
    yield from _finish(peer)


def slow_write(peer: Peer, means: Means) -> Steps:
    """Drip a request; the server may lose patience."""
    yield from peer.connect()
    first, dripped = means.some(2, peer.number)
    peer.replies.ask([first])
    yield from peer.send(first.frame)
    yield from peer.answered()
    peer.replies.ask([dripped])
    size = -(-len(dripped.frame) // DRIPS)
    for start in range(0, len(dripped.frame), size):
        yield from peer.quiet(means.hold / DRIPS)
        if peer.ended:
            return
        yield from peer.send(dripped.frame[start : start + size])
    yield from peer.answered_or_ended()


def half_close(peer: Peer, means: Means) -> Steps:
    """End the sending side behind some requests."""
    count = (1, 3, 0, 100)[peer.number % 4]
    peer.variant = "1 request" if count == 1 else f"{count} requests"
    yield from peer.connect()
    messages = means.some(count, peer.number)
    peer.replies.ask(messages)
    yield from peer.send(b"".join(message.frame for message in messages))
    peer.half_close()
    yield from peer.answered_and_ended()


def reset(peer: Peer, means: Means) -> Steps:
    """Cut off amid a request, or amid replies; the next connection has to be served."""
    yield from peer.connect()
    messages = means.upto(ONE_WRITE, peer.number)
    if peer.number % 2:
        peer.variant = "amid a reply"
        peer.replies.ask(messages)
        peer.push(b"".join(message.frame for message in messages))
        yield Wait(READ, peer.clock() + means.hold)  # for the first bytes of the replies
    else:
        peer.variant = "amid a request"
        yield from peer.send(messages[0].frame[: len(messages[0].frame) // 2])
    peer.reset()
    yield from _ask_anew(peer, means)


def bad_header(peer: Peer, means: Means) -> Steps:
    """Requests, and what is no header behind them."""
    header = BAD_HEADERS[peer.number % len(BAD_HEADERS)]
    peer.variant = repr(header)[1:]
    yield from peer.connect()
    messages = means.some(2, peer.number)
    peer.replies.ask(messages)
    yield from peer.send(b"".join(message.frame for message in messages) + header)
    yield from peer.answered_and_ended()


def oversize(peer: Peer, means: Means) -> Steps:
    """A header that announces as much as it can, or more than the server takes."""
    yield from peer.connect()
    [message] = means.some(1, peer.number)
    peer.replies.ask([message])
    if means.max_frame is not None and means.max_frame < MAX_PAYLOAD:
        peer.variant = f"{means.max_frame + 1} bytes"
        yield from peer.send(message.frame + b"%05d" % (means.max_frame + 1))
        yield from peer.answered_and_ended()
    elif peer.number % 2 and means.largest is not None:
        peer.variant = "99999 bytes"
        peer.replies.ask([means.largest])
        yield from peer.send(message.frame + means.largest.frame)
        yield from peer.answered_or_ended()
    else:
        peer.variant = "99999 and silence"
        yield from peer.send(message.frame + b"%05d" % MAX_PAYLOAD)
        yield from peer.answered()
        yield from peer.quiet(means.hold)


def idle(peer: Peer, means: Means) -> Steps:
    """Say nothing; then ask, if the server still listens."""
    yield from peer.connect()
    yield from peer.quiet(means.hold)
    if not peer.ended:
        messages = means.some(1, peer.number)
        peer.replies.ask(messages)
        yield from peer.send(messages[0].frame)
        yield from peer.answered_or_ended()


def connect_flood(peer: Peer, means: Means) -> Steps:
    """Connect and close at once, one of many; the last of each abuser asks as well."""
    yield from peer.connect()
    peer.close()
    if peer.number % FLOOD == FLOOD - 1:
        peer.variant = "the one after"
        yield from _ask_anew(peer, means)


def _finish(peer: Peer) -> Steps:
    """All replies, and nothing behind them."""
    yield from peer.answered()
    yield from peer.quiet(SETTLE)


def _ask_anew(peer: Peer, means: Means) -> Steps:
    """Whether the server lives."""
    yield from peer.connect()
    messages = means.some(1, peer.number)
    peer.replies.ask(messages)
    yield from peer.send(messages[0].frame)
    yield from peer.answered()


ABUSES: Final = {
    "split": Abuse(split, "the right replies"),
    "coalesce": Abuse(coalesce, "the right replies"),
    "slow-read": Abuse(slow_read, "the right replies"),
    "slow-write": Abuse(slow_write, "the right reply, or an end"),
    "half-close": Abuse(half_close, "all replies, then the end"),
    "reset": Abuse(reset, "the next one is served"),
    "bad-header": Abuse(bad_header, "earlier replies, then the end"),
    "oversize": Abuse(oversize, "served or ended"),
    "idle": Abuse(idle, "served or ended"),
    "connect-flood": Abuse(connect_flood, "the next one is served"),
}
"""All abuses, in the order in which they are reported."""


def parse_abuses(text: str) -> tuple[str, ...]:
    """The names in ``split,reset``, each once; ``all`` is all of them.

    Raises:
        ValueError: there is no such abuse.

    >>> parse_abuses("reset,split")
    ('split', 'reset')
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in ABUSES and name != "all":
            raise ValueError(f"{name!r} is no abuse: expected some of {', '.join(ABUSES)}, or all")
    return tuple(name for name in ABUSES if name in names or "all" in names)

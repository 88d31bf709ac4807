"""The target for ``nbclient``: to which request each reply goes, and what is a fault.

Some requests are outstanding, and the stream is what a server says then. It is read by
a ``Ledger``, by an ``Exchange`` of which some callers have given up, and, for one
request, by a connection of the blocking front, which has a fast path of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from support.reference import Reading, behind_line_ends, read

from fuzz.plan import Input, cuts, must_equal, parse
from nbclient.errors import ConnectionLost, NbclientError, RemoteProtocolError
from nbclient.exchange import Exchange, Ledger, Request
from nbclient.servers import Servers
from nbclient.settings import Settings
from nbclient.sync_connection import Connection
from nbnet.framing import MAX_PAYLOAD

PEER: Final = "127.0.0.1:6789"
SETTINGS: Final = Settings.read(PEER, timeout=None)
SERVER: Final = Servers(SETTINGS.addresses).all[0]


@dataclass(slots=True)
class Answer:
    """What a client has to make of a stream when so many requests are outstanding.

    Attributes:
        replies: to the first requests.
        ends: for each, how many bytes it takes to have it.
        known: bytes that show the fault; infinite as long as only the end is one.
        unasked: whether the fault is a byte that nobody asked for.
    """

    replies: list[bytes]
    ends: list[int]
    known: float
    unasked: bool


def client(data: bytes) -> None:
    """Every reply goes to its request, and nothing behind a fault to any."""
    given = parse(data)
    asked = given.choice % 8
    reading = read(given.stream, 0, MAX_PAYLOAD)
    answer = answer_to(asked, reading, given.stream)
    for number, pieces in enumerate(cuts(given)):
        _check_ledger(Ledger(PEER), pieces, asked, answer, given)
        if number == given.limits % 3:
            _check_exchange(pieces, asked, answer, given, number)
        elif asked:
            first = answer if asked == 1 else answer_to(1, reading, given.stream)
            _check_blocking(pieces, first, given.stream)


def answer_to(asked: int, reading: Reading, stream: bytes) -> Answer:
    """What a stream says to a client that has asked so often."""
    replies, ends = reading.payloads[:asked], reading.ends[:asked]
    if len(replies) < asked:
        return Answer(replies, ends, reading.fault.known if reading.fault else math.inf, False)
    at = behind_line_ends(stream, ends[-1] if ends else 0)
    if at == len(stream) or stream[at:] == b"\r":
        return Answer(replies, ends, math.inf, False)
    return Answer(replies, ends, at + 2 if stream[at : at + 1] == b"\r" else at + 1, True)


def _check_ledger(
    ledger: Ledger, pieces: list[bytes], asked: int, answer: Answer, given: Input
) -> None:
    batches = _batches(asked, given.place)
    for batch in batches:
        ledger.sent(batch, 10 * batch)
    position = count = 0
    for piece in [*pieces, b""]:
        before = count
        position += len(piece)
        if ledger.fault is None:
            while count < len(answer.ends) and answer.ends[count] <= position:
                count += 1
        must_equal("replies", ledger.receive(piece), answer.replies[before:count])
        must_equal("requests outstanding", ledger.outstanding, asked - count)
        if count != before:
            must_equal("bytes in flight", ledger.in_flight, 10 * _left_of(batches, count))
        must_equal("a fault", ledger.fault is not None, not piece or position >= answer.known)
        if ledger.fault is not None:
            _check_fault(ledger, answer)
            if not given.place % 4:
                break  # else nothing is to come of what follows


def _left_of(batches: list[int], count: int) -> int:
    """Requests of the batches of which not all were answered."""
    for number, batch in enumerate(batches):
        if batch > count:
            return sum(batches[number:])
        count -= batch
    return 0


def _check_fault(ledger: Ledger, answer: Answer) -> None:
    fault = ledger.fault
    wanted: type[NbclientError] = ConnectionLost
    if answer.known != math.inf:
        wanted = RemoteProtocolError
    must_equal("its kind", type(fault), wanted)
    must_equal("out of step", ledger.out_of_step, answer.unasked)
    must_equal("idle", ledger.idle, False)


def _batches(asked: int, pattern: int) -> list[int]:
    """So many requests, sent some at a time."""
    batches = []
    while asked:
        size = min(asked, 1 + pattern % 3)
        pattern //= 3
        batches.append(size)
        asked -= size
    return batches


def _check_exchange(
    pieces: list[bytes], asked: int, answer: Answer, given: Input, number: int
) -> None:
    exchange = Exchange(PEER)
    requests = [Request(b"00001%d" % n, math.inf) for n in range(asked)]
    given_up = [(given.place >> n) & 1 > 0 for n in range(asked)]
    for request in requests:
        exchange.add(request)
    exchange.take()
    for request, gives_up in zip(requests, given_up, strict=True):
        if gives_up and number % 2 == 0:
            exchange.abandon(request)
    position = count = 0
    for turn, piece in enumerate(pieces):
        before = count
        position += len(piece)
        if exchange.fault is None and (not answer.unasked or position < answer.known):
            while count < len(answer.ends) and answer.ends[count] <= position:
                count += 1
        due = [request for request in requests[before:count] if not request.abandoned]
        must_equal("requests done", exchange.complete(piece), due)
        if exchange.fault is not None and turn > given.place % 5:
            break
        if number % 2 and turn == given.place % 5:
            for request, gives_up in zip(requests, given_up, strict=True):
                if gives_up:
                    exchange.abandon(request)  # of no effect on those that are done
    exchange.complete(b"")
    failed = [request for request in requests[count:] if not request.abandoned]
    must_equal("requests failed", exchange.fail(), failed)
    for request, reply in zip(requests[:count], answer.replies, strict=False):
        if request.reply is not None or not request.abandoned:
            must_equal("a reply", request.reply, reply)
    for request in requests[count:]:
        must_equal("a reply behind a fault", request.reply, None)


class Pieces:
    """A stream that gives these pieces, one a read, and then its end."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces
        self.read = 0

    def send(self, data: bytes | memoryview, timeout: float | None) -> int:
        del timeout
        return len(data)

    def receive(self, timeout: float | None) -> bytes:
        del timeout
        self.read += 1
        return self.pieces[self.read - 1] if self.read <= len(self.pieces) else b""

    def readable(self) -> bool:
        return self.read < len(self.pieces)

    def abort(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


def _check_blocking(pieces: list[bytes], answer: Answer, stream: bytes) -> None:
    """One request on a connection of ``Client``: its reply or a fault, and no byte later."""
    connection = Connection(SERVER, SETTINGS, [])
    connection.stream = line = Pieces(pieces)
    reply: bytes | None = None
    error: NbclientError | None = None
    try:
        reply = connection.ask(b"00001a", math.inf, math.inf)
    except NbclientError as raised:
        error = raised
    end = answer.ends[0] if answer.ends else math.inf
    # Reads stop with the one that brings the reply, or shows the fault.
    position, reads = 0, 0
    while reads < len(pieces) and position < min(end, answer.known):
        position += len(pieces[reads])
        reads += 1
    if position < min(end, answer.known):
        reads += 1  # the end of the stream
    must_equal("reads", line.read, reads)
    good = position >= end and position < answer.known
    must_equal("a reply", reply, answer.replies[0] if good else None)
    must_equal("an error", error is None, good)
    if good:
        rest = behind_line_ends(stream[:position], int(end)) < position
        must_equal("in step", connection.in_step, not rest)
    elif error is not None:
        must_equal("maybe executed", error.maybe_executed, True)

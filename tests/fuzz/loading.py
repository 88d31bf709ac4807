"""The target for ``loadgen``: which replies it takes for right, which for wrong.

The stream is a server's answer to the frames that stand in it: some of them are
expected, whole or joined, the last ones may not have been sent. One edit of the answer
may make it wrong. What the load generator counts has to be what a comparison from the
beginning gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, cast

from support.reference import behind_line_ends, read

from fuzz.plan import Input, cuts, must_equal, parse
from loadgen.connection import BAD_HEADER, EOF, UNEXPECTED_BYTES, Connection
from loadgen.load import Load
from loadgen.opening import Dialer
from loadgen.plan import Plan
from loadgen.recording import Recorder
from loadgen.tally import Counts
from loadgen.traffic import Message, Pool
from nbnet.framing import MAX_PAYLOAD, FrameDecoder, encode_frame
from nbnet.pollers import Poller

PLAN: Final = Plan(connections=1, duration=1.0, reconnect=False)
MOST: Final = 8
"""Requests in flight at most."""


class Nothing:
    """A socket, poller and dialer of which nothing is wanted."""

    def recv(self, size: int, /) -> bytes:
        raise NotImplementedError

    def send(self, data: bytes | memoryview, /) -> int:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def fileno(self) -> int:
        return 5


@dataclass(slots=True)
class Wanted:
    """What is to be counted."""

    verified: int
    wrong: int
    failed: int
    kinds: tuple[str, ...]  # one of them is what ends the connection


def load(data: bytes) -> None:
    """Every reply is compared byte for byte, and none is taken for that of another."""
    given = parse(data)
    payloads = read(given.stream, 0, MAX_PAYLOAD).payloads[:MOST]
    unsent = min(given.limits % 4, len(payloads)) if given.limits >= 128 else 0
    any_reply = given.limits % 8 == 7
    expected = [encode_frame(payload) for payload in payloads]
    answer = _edited(given, expected)
    if any_reply:
        wanted = _taken_if_any(answer, len(expected), unsent)
    else:
        wanted = _compared(answer, expected, unsent)
    cut_up = Input(given.limits, given.choice, given.place, given.steps, answer)
    for number, pieces in enumerate(cuts(cut_up)):
        counts = _counted(pieces, expected, unsent, (given.choice + number) % 4, any_reply)
        got = (counts.verified, counts.wrong, counts.failed)
        must_equal("verified, wrong, failed", got, (wanted.verified, wanted.wrong, wanted.failed))
        must_equal("connections lost", counts.lost, 1)
        kind = next(iter(counts.errors))
        must_equal("what ended it", kind if kind in wanted.kinds else "", kind)


def _edited(given: Input, expected: list[bytes]) -> bytes:
    """The stream, or something wrong in its place."""
    stream, place = given.stream, given.place
    if stream:
        place %= len(stream)
    match given.choice // 4 % 8:
        case 0 | 1:
            return b"".join(expected)
        case 2:
            return stream[:place] + bytes([given.choice]) + stream[place + 1 :]
        case 3:
            return stream[:place] + stream[place + 1 :]
        case 4:
            return stream[:place] + b"0" + stream[place:]
        case 5:
            return b"".join(expected[1:2] + expected[:1] + expected[2:])
        case 6:
            return b"".join(expected)[:place]
        case _:
            return stream


def _compared(answer: bytes, expected: list[bytes], unsent: int) -> Wanted:
    """The replies from the first on, as long as they are right."""
    at = verified = 0
    while verified < len(expected) - unsent and answer.startswith(expected[verified], at):
        at += len(expected[verified])
        verified += 1
    left = len(expected) - verified
    rest = answer[at:]
    if left > unsent and expected[verified].startswith(rest):
        return Wanted(verified, 0, left, (EOF,))
    if not rest:
        return Wanted(verified, 0, left, (EOF,))
    wrong = min(left, 1)
    if left <= unsent:
        return Wanted(verified, wrong, left - wrong, (UNEXPECTED_BYTES,))
    # Which of them it is called is a matter of how much was there to look at.
    kinds = (BAD_HEADER, "wrong length", "wrong payload")
    return Wanted(verified, wrong, left - wrong, kinds)


def _taken_if_any(answer: bytes, asked: int, unsent: int) -> Wanted:
    """Frames, whatever is in them, as long as they were asked for."""
    reading = read(answer, 0, MAX_PAYLOAD)
    asked -= unsent
    verified = min(asked, len(reading.payloads))
    left = asked - verified + unsent
    wrong = min(left, 1)
    if verified < asked:
        if reading.fault is None:
            return Wanted(verified, 0, left, (EOF,))
        return Wanted(verified, wrong, left - wrong, (BAD_HEADER,))
    at = behind_line_ends(answer, reading.ends[verified - 1] if verified else 0)
    if answer[at:] in (b"", b"\r"):
        return Wanted(verified, 0, left, (EOF,))
    return Wanted(verified, wrong, left - wrong, (UNEXPECTED_BYTES,))


def _counted(
    pieces: list[bytes], expected: list[bytes], unsent: int, joined: int, any_reply: bool
) -> Counts:
    """What the load generator makes of it, read as ``loadgen.pumps`` does."""
    recorder = Recorder(open_loop=False)
    messages = [Message(b"00001a", b"" if any_reply else reply) for reply in expected]
    pool = Pool(messages or [Message(b"00001a", b"00001a")])
    nothing = Nothing()
    load = Load(
        PLAN,
        pool,
        None,
        recorder,
        dialer=cast(Dialer, nothing),
        poller=cast(Poller, nothing),
        clock=lambda: 0,
    )
    load.measuring = load.sending = True
    load.release = _released  # type: ignore[method-assign]
    connection = Connection(nothing, 1, sends=True, begun=0)
    if any_reply:
        connection.decoder = FrameDecoder(min_payload=0)
    load.connections[connection.fd] = connection
    load.in_flight = len(messages)
    connection.unsent.extend([b"00001a"] * unsent)
    while messages:
        size = min(len(messages), joined)
        if size > 1 and not unsent:
            parts = tuple(messages[:size])
            whole = Message(b"00001a" * size, b"".join(part.expected for part in parts))
            connection.add(whole, 0, 0, parts)
        else:
            size = 1
            connection.add(messages[0], 0, 0)
        del messages[:size]
    for piece in [*pieces, b""]:
        if connection.ended:
            break
        if piece and piece == connection.ready:
            load.release(connection, load.record(connection, 0), 0)
        else:
            load.receive(connection, piece, 0)
    must_equal("requests left in flight", load.in_flight, 0)
    recorder.fold_all()
    return recorder.counts


def _released(connection: Connection, count: int, now: int) -> None:
    """Nothing further is sent."""

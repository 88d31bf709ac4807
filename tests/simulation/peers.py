"""Scripted clients of the simulated server: honest ones, and all kinds of others.

A peer draws its script from the seed: what it sends, in what pieces and with
what pauses, how many requests it has in flight, how fast it reads, and how it
ends. Whatever it does, what it receives must be the beginning of what it is owed
by what it has sent. Of a ``strict`` one, which behaves well and sees no fault, it
must be all of that, and then the end of the stream.
"""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, Final

from simulation.account import EMPTY, FAILING, GROW, MOST, REVERSE, Handler, answer, frame
from simulation.kernel import MS, SECOND, Kernel
from simulation.network import End, Network

if TYPE_CHECKING:
    from nbnet.limits import Limits

HONEST: Final = ("pipeliner", "half-closer", "slow reader", "slow writer")
ENDED: Final = ("bad header", "too long", "failing handler")
"""The server ends these, after the replies that came before."""
RUDE: Final = ("resetter", "quitter", "deaf", "silent", "unfinished", "dripper", "stayer")
"""Nothing is promised to these, but that the server gets rid of them."""

BAD: Final = (b"+0003abc", b"000x3abc", b"00000", b" 0003abc", b"\n00003abc", b"-1", b"GET / HTTP")


class Peer:
    """One client with its script.

    Args:
        kind, count: what it is and how many requests it has, if not to be drawn.

    Attributes:
        number: part of each of its payloads.
        kind: one of the above.
        strict: whether it has to be served to the end.
        over: whether it has ended; ``outcome`` says how.
        received: what it has read.
    """

    def __init__(
        self,
        kernel: Kernel,
        network: Network,
        handler: Handler,
        limits: Limits,
        number: int,
        kind: str = "",
        count: int = 0,
    ) -> None:
        self.kernel = kernel
        self.number = number
        self.limits = limits
        self.over = False
        self.outcome = ""
        self.received = bytearray()
        rng = self._rng = kernel.rng
        kinds = (HONEST, HONEST, HONEST, ENDED, RUDE)[rng.randrange(5)]
        self.kind = kind or rng.choice(kinds)
        self._network = network
        self._handler = handler
        self._given = bool(count)
        self._draw_requests(count)
        # What is large in pieces that are small would take more than the limits allow.
        least = len(self.wire) // 20 * (1 if network.pace <= MS else 3)
        self.end = End(
            kernel,
            room=max(least, rng.choice((200, 5000, 300_000))),
            window=max(least, rng.choice((50, 2000, 300_000))),
            least=least,
        )
        self._draw_manners()
        self._sent = 0
        self._replies = 0
        self._due: int | None = None
        self._shut = False

    # The script -------------------------------------------------------------------

    def _draw_requests(self, given: int) -> None:
        rng, kind = self._rng, self.kind
        count = rng.choice((0, 1, 1, 2, 3, 5, 10, 40)) if kind not in HONEST else 0
        count = given or count or rng.choice((1, 2, 5, 10, 30, 100))
        large = rng.random() < 0.15 and self.limits.max_frame == MOST and not given
        spread = rng.choice((1, 30, 600, 600)) if not given else 60
        failing = rng.randrange(count) if kind == "failing handler" else -1
        wire = bytearray()
        self._ends: list[int] = []  # where each request ends
        self._reply_ends: list[int] = []
        self.expected = bytearray()
        for index in range(count):
            letter = rng.choice((REVERSE, REVERSE, REVERSE, EMPTY, GROW))
            if index == failing:
                letter = rng.choice(FAILING)
            payload = letter + b"%d.%d:" % (self.number, index)
            size = rng.randrange(spread)
            if large and rng.random() < 0.2 and len(wire) < 200_000:
                size = rng.choice((5000, 66_000, MOST - len(payload)))
            payload += b"abcdefg"[index % 7 : index % 7 + 1] * size
            payload = payload[: self.limits.max_frame]
            self._handler.known[payload] = False
            if rng.random() < 0.05:
                wire += b"\r\n"
            wire += frame(payload)
            reply = answer(payload)
            if index == failing:
                for more in range(rng.choice((0, 1, 5, 50))):
                    payload = b"r%d.after%d" % (self.number, more)
                    self._handler.known[payload] = False
                    wire += frame(payload)
                break
            assert reply is not None
            self._ends.append(len(wire))
            self.expected += frame(reply)
            self._reply_ends.append(len(self.expected))
        if kind == "bad header":
            wire += rng.choice(BAD)
            wire += frame(b"after%d" % self.number) * rng.choice((0, 1, 5, 50))
        elif kind == "too long" and self.limits.max_frame < MOST:
            wire += frame(b"z" * (self.limits.max_frame + 1)) * rng.randrange(1, 5)
        elif kind == "too long":
            wire += b"100000" + b"0" * 200
        elif kind == "silent":
            wire = wire[:0] if rng.random() < 0.5 else wire
        elif kind == "unfinished":
            wire = wire[: rng.randrange(len(wire))]
        elif kind == "dripper":
            wire += frame(b"r%d.d:" % self.number + b"d" * (self.limits.max_frame - 10))[:-1]
        self.wire = bytes(wire)

    def _draw_manners(self) -> None:
        rng, kind, limits = self._rng, self.kind, self.limits
        self._depth = rng.choice((1, 1, 2, 5, 1000))
        if kind in ("half-closer", "slow reader", "deaf", *ENDED):
            self._depth = rng.choice((1, 1000, 1000))
        self._reads = rng.choice((10_000, 1 << 20))  # bytes a read
        self._read_gap = 0
        self._piece = 0  # bytes of a write; 0 is whole requests
        self._gap = rng.choice((0, 0, MS, 20 * MS))
        self._cut_at = -1
        if kind == "slow reader":
            self._reads = rng.choice((1, 50, 3000))
            self._read_gap = rng.choice((1, 20, 200)) * MS
        elif kind == "slow writer":
            self._piece = rng.choice((1, 2, 7)) if not self._given else 20
            self._gap = rng.choice((0, MS, 50 * MS))
        elif kind == "dripper":
            self._piece, self._gap = 1, 300 * MS
        elif rng.random() < 0.3:
            self._piece = rng.choice((3, 100, 1000, 30_000))
        if kind in ("resetter", "quitter"):
            self._cut_at = rng.randrange(len(self.wire) + 1)
        if kind == "half-closer":
            self._cut_at = len(self.wire)
        self._stays = kind == "stayer" or (kind in ENDED and rng.random() < 0.2)
        self.strict = kind in (*HONEST, *ENDED) and not self._stays
        times = (limits.frame_timeout, limits.idle_timeout, limits.first_byte_timeout)
        if any(0 < each < 5 for each in times) or 0 < limits.write_timeout < 5:
            self.strict = False
        if limits.linger < 1 and kind in ENDED:
            self.strict = False  # closed before it has read all
        # All of it within twenty seconds, which is less than the write timeout of a
        # strict one's server; without that limit, a run would never end.
        reading = len(self.expected) * self._read_gap // self._reads
        self._reads *= 1 + reading // (20 * SECOND)
        longest = max(
            (b - a for a, b in zip([0, *self._ends], self._ends, strict=False)), default=0
        )
        if self._piece and longest // self._piece * (self._gap + MS) > 4 * SECOND:
            self._piece = 0 if self.strict else self._piece
        if self.kind in ENDED and len(self.wire) > 20_000:
            self._piece = 0

    def start(self) -> None:
        """Connect."""
        self.kernel.say("peer %d, a %s, connects", self.number, self.kind)
        self.end.on_change = self._woken
        self._network.connect(self.end, f"192.0.2.{1 + self.number % 3}")

    # What it does -------------------------------------------------------------------

    def _woken(self) -> None:
        if not self.over:
            self._soon(self._rng.randrange(100_000) if not self._read_gap else self._read_gap)

    def _soon(self, delay: int) -> None:
        when = self.kernel.now + delay
        if self._due is None or when < self._due:
            self._due = when
            self.kernel.at(when, self._step)

    def _step(self) -> None:
        if self.over or self._due is None or self._due > self.kernel.now:
            return
        self._due = None
        if not (self.end.connected or self.end.dead):
            return
        if self.kind != "deaf" and not self._read():
            return
        if self.kind == "deaf" and self.end.dead:
            self._finish("reset")
            return
        if self._write() and not self.over:
            self._soon(self._gap + self._rng.randrange(1000))
        elif not self.over:
            self._maybe_end()

    def _read(self) -> bool:
        """Read what is there, as its manners are; whether to go on."""
        try:
            data = self.end.read(self._reads)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ENOTCONN):
                return True
            self._finish("reset" if error.errno != errno.ECONNREFUSED else "refused")
            return False
        if not data:
            self._at_end()
            return False
        start = len(self.received)
        self.received += data
        self.kernel.say("peer %d reads %.60r", self.number, data)
        if data != self.expected[start : start + len(data)]:
            self.kernel.fail(
                f"peer {self.number}, a {self.kind}, gets {data[:60]!r} at byte {start}, "
                f"owed is {bytes(self.expected[start : start + 60])!r}"
            )
        while (
            self._replies < len(self._reply_ends)
            and len(self.received) >= self._reply_ends[self._replies]
        ):
            self._replies += 1
        if self._replies and (
            self._replies > len(self._ends) or self._sent < self._ends[self._replies - 1]
        ):
            self.kernel.fail(f"peer {self.number} gets a reply to what it has not sent")
        if self.end.inbox or self.end.eof:
            self._soon(self._read_gap + self._rng.randrange(1000))
        return True

    def _write(self) -> bool:
        """Send a piece; whether there is more that may be sent at once."""
        most = self._sendable()
        if self._sent >= most or self._shut:
            return False
        piece = self._piece or (most - self._sent)
        data = self.wire[self._sent : min(most, self._sent + piece)]
        try:
            sent = self.end.write(data)
        except OSError as error:
            if error.errno == errno.EAGAIN:
                return False  # its end says when
            if error.errno == errno.EPIPE or error.errno == errno.ECONNRESET:
                self._finish("reset")
            return False
        self._sent += sent
        if self._sent == self._cut_at:
            self._cut()
            return False
        return self._sent < self._sendable()

    def _sendable(self) -> int:
        """Up to where of the wire it may send now."""
        allowed = self._replies + self._depth
        most = self._ends[allowed - 1] if allowed <= len(self._ends) else len(self.wire)
        return min(most, self._cut_at if self._cut_at >= 0 else len(self.wire))

    def _maybe_end(self) -> None:
        if self._cut_at >= 0 and self._sent == self._cut_at and not self._shut:
            self._cut()
        elif (
            self._sent == len(self.wire)
            and len(self.received) == len(self.expected)
            and self.kind in HONEST
            and not self._shut
        ):
            # It has all, and says so; the server is to say so, too.
            self._shut_down()

    def _cut(self) -> None:
        if self.kind == "half-closer":
            self._shut_down()
        elif self.kind == "resetter":
            self.end.disturb("it resets")
            self.end.closed = True
            self.end.abort()
            self._finish("gone")
        else:
            self.end.disturb("it leaves")
            self.end.release()
            self._finish("gone")

    def _shut_down(self) -> None:
        self._shut = True
        # The server may have ended the connection meanwhile: reading will tell.
        with contextlib.suppress(OSError):
            self.end.shutdown()

    def _at_end(self) -> None:
        """The server has ended its stream."""
        if self._stays and not self.end.dead:
            # Neither closes nor stops: the server is not to wait for it for ever.
            if not self._shut and self._rng.random() < 0.5:
                try:
                    self.end.write(b"more")
                except OSError:
                    self._finish("end")
                    return
            self._soon(200 * MS)
            return
        self._finish("end")

    def _finish(self, outcome: str) -> None:
        self.over = True
        self.outcome = outcome
        self.kernel.say("peer %d is over: %s", self.number, outcome)
        if not self.end.closed:
            self.end.release()

    @property
    def is_served(self) -> bool:
        """Whether it has all that it is owed, and the end of the stream."""
        return len(self.received) == len(self.expected) and self.outcome == "end"

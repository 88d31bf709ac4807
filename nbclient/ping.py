"""``nbclient ping``: one request at a time, and what their round trips come to. No I/O.

The rules:

* requests start on a grid, ``interval`` apart, however long each takes: the
  interval does not drift. A time that has passed while a reply was out is left
  out, not caught up with;
* a payload differs from the one before it and from its own reverse as far as its
  size allows, so that neither a late reply nor an echo passes for the right one;
* memory does not grow with the number of requests: times are counted to four
  significant digits, finer than they are shown.
"""

from __future__ import annotations

import math
from typing import Final

_DIGITS: Final = 4
_FILLING: Final = b"abcdefghijklmnopqrstuvwxyz"


def payload_of(sequence: int, size: int) -> bytes:
    """The payload of the request with this number, in ``size`` bytes.

    >>> payload_of(7, 8), payload_of(12345, 3)
    (b'7:abcdef', b'345')
    """
    label = b"%d:" % sequence
    if size < len(label):
        return (b"%d" % sequence)[-size:]
    rest = size - len(label)
    return label + (_FILLING * (rest // len(_FILLING) + 1))[:rest]


def next_turn(turn: int, elapsed: float, interval: float) -> int:
    """The next turn whose time, ``turn * interval`` seconds after the first, is not past.

    >>> next_turn(0, 0.25, 1.0), next_turn(0, 3.5, 1.0), next_turn(4, 4.0, 1.0)
    (1, 4, 5)
    """
    return max(turn + 1, math.ceil(elapsed / interval)) if interval else turn + 1


class RoundTrips:
    """Counts round trips, in seconds, and what went wrong instead.

    Attributes:
        sent: requests that came to an end, one way or the other.
        received: replies that were right.
        wrong: replies that were not.

    >>> trips = RoundTrips()
    >>> for seconds in (0.001, 0.002, 0.003):
    ...     trips.add(seconds)
    >>> trips.fail()
    >>> print(trips.report("127.0.0.1:6789", 3.0))
    --- 127.0.0.1:6789 ping statistics ---
    4 sent, 3 received, 25% loss, time 3.000 s
    round trip min/avg/p50/p99/max/mdev = 1.000/2.000/2.000/3.000/3.000/0.816 ms
    """

    def __init__(self) -> None:
        self.sent = 0
        self.received = 0
        self.wrong = 0
        self._counts: dict[float, int] = {}
        self._min = math.inf
        self._max = 0.0
        # Welford: a difference of two sums would lose the digits that matter.
        self._mean = 0.0
        self._squares = 0.0

    def add(self, seconds: float) -> None:
        """A right reply came after this time."""
        self.sent += 1
        self.received += 1
        self._min = min(self._min, seconds)
        self._max = max(self._max, seconds)
        apart = seconds - self._mean
        self._mean += apart / self.received
        self._squares += apart * (seconds - self._mean)
        rounded = float(f"{seconds:.{_DIGITS}g}")
        self._counts[rounded] = self._counts.get(rounded, 0) + 1

    def fail(self, *, wrong: bool = False) -> None:
        """No reply came, or a wrong one."""
        self.sent += 1
        self.wrong += wrong

    @property
    def loss(self) -> float:
        """The share of requests that had no right reply, in percent."""
        return 100 * (1 - self.received / self.sent) if self.sent else 0.0

    def percentile(self, share: float) -> float:
        """The time within which this share (0 to 1) of the right replies came; 0 without any.

        >>> trips = RoundTrips()
        >>> for milliseconds in range(1, 101):
        ...     trips.add(milliseconds / 1000)
        >>> trips.percentile(0.5), trips.percentile(0.99), trips.percentile(1)
        (0.05, 0.099, 0.1)
        """
        # The nearest rank. Rounding must not lead past what was measured.
        rank = max(1, math.ceil(share * self.received))
        for seconds in sorted(self._counts):
            rank -= self._counts[seconds]
            if rank <= 0:
                return min(max(seconds, self._min), self._max)
        return 0.0

    def report(self, peer: str, elapsed: float) -> str:
        """The statistics as ping(8) words them, two or three lines without the last newline."""
        wrong = f", {self.wrong} wrong" if self.wrong else ""
        counts = f"{self.sent} sent, {self.received} received{wrong}, {self.loss:g}% loss"
        lines = [f"--- {peer} ping statistics ---", f"{counts}, time {elapsed:.3f} s"]
        if self.received:
            figures = (
                self._min,
                self._mean,
                self.percentile(0.5),
                self.percentile(0.99),
                self._max,
                math.sqrt(self._squares / self.received),
            )
            shown = "/".join(f"{1000 * seconds:.3f}" for seconds in figures)
            lines.append(f"round trip min/avg/p50/p99/max/mdev = {shown} ms")
        return "\n".join(lines)

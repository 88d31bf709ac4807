"""Many requests of one caller, sent ahead of their replies. No I/O.

Payloads come from an iterable that may be slow, or endless. The rules:

* how many requests, and how many bytes, may be unanswered is bounded;
* payloads that come at once go together, and those that come slowly are sent as
  they come;
* a reply is not kept waiting by the next payload for longer than the last took.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from nbclient.exchange import WINDOW, Ledger, encode_requests
from nbnet.framing import encode_frame

AT_ONCE: Final = 0.001
"""Seconds that those payloads may take to come that are sent together."""


def take_at_once(
    payloads: Iterator[bytes], wanted: int, clock: Callable[[], float]
) -> tuple[list[bytes], bool]:
    """So many payloads at most, fewer if they do not come at once; and whether they have ended.

    >>> take_at_once(iter([b"a", b"b", b"c"]), 2, lambda: 0.0)
    ([b'a', b'b'], False)
    """
    batch: list[bytes] = []
    soon = clock() + AT_ONCE
    for payload in payloads:
        batch.append(payload)
        if len(batch) == wanted or clock() > soon:
            return batch, False
    return batch, True


class Pipeline(Ledger):
    """Requests of one caller that has the connection alone and sends ahead.

    How many payloads to ask the caller for at a time starts at one and doubles
    as long as they come at once: those that come slowly are sent as they come.

    Args:
        peer: the server, for errors to name.
        window: requests that may be unanswered at a time.

    >>> pipeline = Pipeline("127.0.0.1:6789", window=2)
    >>> pipeline.wanted
    1
    >>> pipeline.add([b"abc"], 0.0)
    >>> pipeline.take()
    b'00003abc'
    >>> pipeline.receive(b"00003cba")
    [b'cba']
    """

    __slots__ = ("_chunks", "_patience", "_size", "_step", "_window")

    def __init__(self, peer: str, window: int) -> None:
        super().__init__(peer)
        self._window = window
        self._chunks: deque[tuple[int, bytes]] = deque()  # to be sent: requests, their bytes
        self._size = 0.0  # bytes of a frame, on average
        self._step = 1
        self._patience = 0.0

    @property
    def wanted(self) -> int:
        """How many payloads to add now; 0: replies have to come first."""
        if self._chunks:
            return 0
        room = WINDOW - self.in_flight
        if self._size * self._step > room:
            fitting = int(room / self._size) or (not self.outstanding)
        else:
            fitting = self._step
        return max(0, min(fitting, self._window - self.outstanding))

    @property
    def patience(self) -> float:
        """Seconds that replies are worth waiting for before more payloads are added.

        As long as the last ones took to come: who makes them as fast as they are
        taken loses nothing, and who waits for a reply before the next gets it.
        """
        return self._patience

    @property
    def idle(self) -> bool:
        """Whether nothing is under way and nothing was at fault."""
        return super().idle and not self._chunks

    def add(self, payloads: Sequence[bytes], seconds: float) -> None:
        """Take payloads, which took so long to come.

        Raises:
            LocalProtocolError: a payload is empty or too long; none is taken.
            TypeError: a payload is no bytes; none is taken.
        """
        data = encode_requests(payloads)
        count = len(payloads)
        self._patience = seconds
        in_time = int(count * AT_ONCE / seconds) if seconds > AT_ONCE else self._window
        self._step = max(1, min(2 * self._step, in_time))
        self._size = len(data) / count
        if count == 1 or self.in_flight + len(data) <= WINDOW:
            self._chunks.append((count, data))
        else:  # longer than those before
            self._chunks.extend((1, encode_frame(payload)) for payload in payloads)

    def take(self) -> bytes:
        """The bytes to send now, maybe none, as far as the window goes."""
        frames = []
        while self._chunks:
            count, data = self._chunks[0]
            if self.in_flight and self.in_flight + len(data) > WINDOW:
                break
            self._chunks.popleft()
            self.sent(count, len(data))
            frames.append(data)
        return b"".join(frames)

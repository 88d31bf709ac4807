"""What a run came to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Of one seed.

    Attributes:
        digest: the same for the same run, and for no other.
        events: things that happened, and calls that were made.
        seconds: simulated time.
        connections: that the server accepted.
        requests: that were answered.
        cut: connections that the server ended owing replies, all for a reason.
    """

    digest: int
    events: int
    seconds: float
    connections: int
    requests: int
    cut: int = 0

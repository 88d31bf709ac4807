"""The bounds that keep one peer from taking the server's memory or time."""

from __future__ import annotations

from dataclasses import dataclass

from nbnet.framing import MAX_PAYLOAD


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a server allows; sizes in bytes, times in seconds.

    Attributes:
        max_frame: the longest request payload taken; a longer one is a
            protocol error.
        high_water: a connection whose unsent replies exceed this is not read
            from ...
        low_water: ... until they fall below this.
        linger: how long a connection that the server ends may take to read its
            last replies and close.
        drain: how long a stopping server waits for connections to end well.

    Raises:
        ValueError: a value makes no sense.

    >>> Limits(max_frame=1000).max_frame
    1000
    """

    max_frame: int = MAX_PAYLOAD
    high_water: int = 256 * 1024
    low_water: int = 64 * 1024
    linger: float = 5.0
    drain: float = 10.0

    def __post_init__(self) -> None:
        if not 1 <= self.max_frame <= MAX_PAYLOAD:
            raise ValueError(f"max_frame is {self.max_frame}, expected 1 to {MAX_PAYLOAD}")
        if not 0 <= self.low_water <= self.high_water:
            raise ValueError(
                f"low_water {self.low_water} and high_water {self.high_water}: "
                "expected 0 <= low_water <= high_water"
            )
        if self.linger < 0 or self.drain < 0:
            raise ValueError("linger and drain are seconds, not negative")

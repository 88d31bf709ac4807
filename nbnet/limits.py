"""The bounds that keep one peer from taking the server's memory or time.

All are on by default but the one on connections per address: proxies and load
tests share an address.
"""

from __future__ import annotations

from dataclasses import dataclass

from nbnet.framing import MAX_PAYLOAD


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a server allows; sizes in bytes, times in seconds.

    A time of 0 is no limit, but for ``linger`` and ``drain``, where it is no time.

    Attributes:
        max_connections: connections held at a time; 0 takes what the limit of
            open files leaves.
        refuse: at that number, close newcomers at once instead of leaving them
            waiting to be accepted.
        max_per_ip: connections from one address at a time; a newcomer over it
            is closed.
        max_frame: the longest request payload taken; a longer one is a
            protocol error.
        frames_per_turn: requests of one connection answered before the others
            have their turn.
        high_water: a connection whose unsent replies exceed this is not read
            from ...
        low_water: ... until they fall to this.
        max_output: unsent replies of all connections together; a connection
            that adds to them above this is closed.
        handshake_timeout: how long it may take to agree on TLS.
        first_byte_timeout: how long a new connection may be silent.
        frame_timeout: how long a request may take from its first byte to its last;
            and a PROXY header, where one is required, from when the connection came.
        idle_timeout: how long a connection may be without a request.
        write_timeout: how long unsent replies may make no progress.
        linger: how long a connection that the server ends may take to read its
            last replies and close.
        drain: how long a stopping server waits for connections to end well.

    Raises:
        ValueError: a value makes no sense.

    >>> Limits(max_frame=1000).max_frame
    1000
    """

    max_connections: int = 0
    refuse: bool = False
    max_per_ip: int = 0
    max_frame: int = MAX_PAYLOAD
    frames_per_turn: int = 1024
    high_water: int = 256 * 1024
    low_water: int = 64 * 1024
    max_output: int = 256 * 1024 * 1024
    handshake_timeout: float = 10.0
    first_byte_timeout: float = 60.0
    frame_timeout: float = 10.0
    idle_timeout: float = 300.0
    write_timeout: float = 30.0
    linger: float = 5.0
    drain: float = 10.0

    def __post_init__(self) -> None:
        if not 1 <= self.max_frame <= MAX_PAYLOAD:
            raise ValueError(f"max_frame is {self.max_frame}, expected 1 to {MAX_PAYLOAD}")
        if self.frames_per_turn < 1:
            raise ValueError(f"frames_per_turn is {self.frames_per_turn}, expected at least 1")
        if not 0 <= self.low_water <= self.high_water:
            raise ValueError(
                f"low_water {self.low_water} and high_water {self.high_water}: "
                "expected 0 <= low_water <= high_water"
            )
        for name in (
            "max_connections",
            "max_per_ip",
            "max_output",
            "handshake_timeout",
            "first_byte_timeout",
            "frame_timeout",
            "idle_timeout",
            "write_timeout",
            "linger",
            "drain",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, not negative expected")

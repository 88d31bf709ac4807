"""What a server counts, as plain integers: adding to one is all it costs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Events since the start, and two sizes as they are now.

    Attributes:
        accepted: connections accepted, the refused ones included.
        refused_full: connections closed at once because there were too many.
        refused_per_ip: connections closed at once because there were too many
            from their address.
        accept_failures: times that accepting had to pause for want of
            descriptors or memory.
        requests: requests answered.
        protocol_errors: connections ended because the peer broke the protocol.
        handler_errors: connections ended because the handler failed.
        lost: connections that were reset.
        paused: times that a connection was not read any more because of its
            unsent replies.
        shed: connections ended because of the unsent replies of all together.
        first_byte_timeouts, frame_timeouts, idle_timeouts, write_timeouts,
        linger_timeouts: connections ended because this took too long.
        connections: connections open now.
        unsent: bytes of replies that the kernel has not taken yet.
    """

    accepted: int = 0
    refused_full: int = 0
    refused_per_ip: int = 0
    accept_failures: int = 0
    requests: int = 0
    protocol_errors: int = 0
    handler_errors: int = 0
    lost: int = 0
    paused: int = 0
    shed: int = 0
    first_byte_timeouts: int = 0
    frame_timeouts: int = 0
    idle_timeouts: int = 0
    write_timeouts: int = 0
    linger_timeouts: int = 0
    connections: int = 0
    unsent: int = 0

    def count_timeout(self, kind: str) -> None:
        """Count one timeout of a kind that ``Connection.deadline`` names."""
        name = f"{kind}_timeouts"
        setattr(self, name, getattr(self, name) + 1)

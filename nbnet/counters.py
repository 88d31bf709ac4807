"""What a server counts, as plain integers: adding to one is all it costs."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Final

HANDLER_BUCKETS: Final = tuple(1e-6 * 4**power for power in range(13))
"""Upper bounds, in seconds, of the buckets that durations of the handler fall in:
1 us to 16.8 s, each four times the one before. One more bucket has what is longer."""

GAUGES: Final = frozenset({"connections", "unsent", "in_flight", "paused_now"})
"""The counters that are sizes as they are now, and so may fall."""

_BUCKETS_NS: Final = tuple(round(bound * 1e9) for bound in HANDLER_BUCKETS)


@dataclass(slots=True)
class Counters:
    """Events since the start, and some sizes as they are now.

    Attributes:
        accepted: connections accepted, the refused ones included.
        refused_full: connections closed at once because there were too many.
        refused_per_ip: connections closed at once because there were too many
            from their address.
        accept_failures: times that accepting had to pause for want of
            descriptors or memory.
        handed_over: connections that another process has taken over.
        adopted: connections taken over from another process.
        requests: requests answered.
        received_bytes, sent_bytes: of requests read and replies sent, headers
            included, TLS not.
        protocol_errors: connections ended because the peer broke the protocol.
        proxy_errors: connections ended because a proxy did not begin them with a
            proper PROXY header.
        handler_errors: connections ended because the handler failed.
        tls_handshakes: TLS handshakes that came to an end.
        handshake_failures: connections ended because theirs did not.
        lost: connections that were reset; not those with nothing to lose, on
            which a proxy looked whether the server is there.
        paused: times that a connection was not read any more because of its
            unsent replies.
        shed: connections ended because of the unsent replies of all together.
        proxy_timeouts, handshake_timeouts, first_byte_timeouts, frame_timeouts,
        idle_timeouts, write_timeouts, linger_timeouts: connections ended because
            this took too long.
        handler_times: durations of the handler by bucket, see
            ``HANDLER_BUCKETS``: every one that ran in a thread, a sample of the
            others.
        handler_nanoseconds: their sum.
        connections: connections open now.
        unsent: bytes of replies that the kernel has not taken yet.
        in_flight: requests that threads have now.
        paused_now: connections not read now because of their unsent replies.
    """

    accepted: int = 0
    refused_full: int = 0
    refused_per_ip: int = 0
    accept_failures: int = 0
    handed_over: int = 0
    adopted: int = 0
    requests: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    protocol_errors: int = 0
    proxy_errors: int = 0
    handler_errors: int = 0
    tls_handshakes: int = 0
    handshake_failures: int = 0
    lost: int = 0
    paused: int = 0
    shed: int = 0
    proxy_timeouts: int = 0
    handshake_timeouts: int = 0
    first_byte_timeouts: int = 0
    frame_timeouts: int = 0
    idle_timeouts: int = 0
    write_timeouts: int = 0
    linger_timeouts: int = 0
    handler_times: list[int] = field(default_factory=lambda: [0] * (len(HANDLER_BUCKETS) + 1))
    handler_nanoseconds: int = 0
    connections: int = 0
    unsent: int = 0
    in_flight: int = 0
    paused_now: int = 0

    def count_timeout(self, kind: str) -> None:
        """Count one timeout of a kind that ``Connection.deadline`` names."""
        name = f"{kind}_timeouts"
        setattr(self, name, getattr(self, name) + 1)

    def observe_handler(self, nanoseconds: int) -> None:
        """Count one duration of the handler.

        >>> counters = Counters()
        >>> counters.observe_handler(1_000); counters.observe_handler(1_001)
        >>> counters.handler_times[:3], counters.handler_nanoseconds
        ([1, 1, 0], 2001)
        """
        self.handler_times[bisect_left(_BUCKETS_NS, nanoseconds)] += 1
        self.handler_nanoseconds += nanoseconds

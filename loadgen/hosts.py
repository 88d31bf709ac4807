"""What each host of a cluster did in a run, for the reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from loadgen.histogram import Histogram
from loadgen.tally import Counts
from nbnet.notation import format_duration

NOTICEABLE: Final = 0.01
"""Seconds by which the starts of hosts may differ before a run has to speak of it."""


@dataclass(slots=True, kw_only=True)
class HostFigures:
    """One host of a run.

    Attributes:
        host: its address.
        name: what it calls itself.
        workers: how many engines it ran.
        cores: processors that they could use.
        counts: everything that they counted.
        elapsed: seconds measured, the longest of them.
        clock_offset: seconds by which its monotonic clock is ahead of the controller's.
        clock_drift: seconds by which that has changed since, if clearly.
        start_within: seconds by which it may have started earlier or later than the
            moment that was agreed; None if it was not told to start.
        lost: why it did not come to its end; None if it did.
    """

    host: str
    name: str = ""
    workers: int = 1
    cores: int = 1
    counts: Counts = field(default_factory=Counts)
    elapsed: float = 0.0
    clock_offset: float = 0.0
    clock_drift: float = 0.0
    start_within: float | None = None
    lost: str | None = None

    @property
    def rate(self) -> float:
        """Verified replies a second of its measured time."""
        return self.counts.on_time / self.elapsed if self.elapsed else 0.0

    @property
    def latency(self) -> Histogram:
        """Its latencies, in nanoseconds."""
        return Histogram(self.counts.latency)

    @property
    def cpu_percent(self) -> float | None:
        """Of a core that an engine used, on average; they tell in the end."""
        if not (self.elapsed and self.counts.cpu_seconds):
            return None
        return 100 * self.counts.cpu_seconds / self.elapsed / self.workers

    @property
    def loss(self) -> str:
        """That it was lost, and what is missing therefore, in words."""
        when = f"after {format_duration(self.elapsed)}" if self.elapsed else "before it measured"
        return (
            f"host {self.host} was lost {when} ({self.lost}): its figures from then on are missing"
        )


def losses(hosts: Sequence[HostFigures]) -> list[str]:
    """What is missing of a run, host by host, in words."""
    return [host.loss for host in hosts if host.lost is not None]


def host_notes(hosts: Sequence[HostFigures]) -> list[str]:
    """What has to be said of the hosts' clocks; each a line for people."""
    late = {
        host.host: host.start_within
        for host in hosts
        if host.start_within is not None and host.start_within > NOTICEABLE
    }
    if not late:
        return []
    worst = max(late, key=late.__getitem__)
    words = (
        f"CLOCKS: {len(late)} of {len(hosts)} hosts may have started up to "
        f"{format_duration(late[worst])} earlier or later than the others ({worst}): "
        "the round trips to them take so long"
    )
    return [words]

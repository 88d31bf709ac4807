"""The figures of a run while it goes on, for Prometheus.

What reads the snapshots publishes a copy of the counts now and then; threads that
answer requests work on the latest copy, which nobody changes. So nobody waits
for anybody. prometheus-client and the HTTP server are loaded when metrics are
asked for, and not before.
"""

from __future__ import annotations

import contextlib
import sys
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from loadgen import __version__
from loadgen.histogram import Histogram, bucket_indices
from loadgen.plan import Plan
from loadgen.report.progress import Clock, Draw, Pace, connected
from loadgen.tally import Counts, Interval, Phase, Tally
from nbnet.command import EXIT_USAGE, CommandError
from nbnet.notation import parse_place

if TYPE_CHECKING:
    from prometheus_client import Metric

BUCKETS: Final = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Upper bounds of the histograms' buckets in seconds, from 50 us to what a reply may
take by default. The run's own counts are a thousand times finer: see the quantiles."""
QUANTILES: Final = (0.5, 0.9, 0.99, 0.999)
PUBLISH_EVERY: Final = 0.25
"""Seconds between copies of the counts, at least."""
_THREADS: Final = 2
"""Requests answered at a time: one whose peer says nothing does not stop the next."""
_LAST_BUCKETS: Final = bucket_indices(round(bound * 1e9) for bound in BUCKETS)

_COUNTERS: Final[Mapping[str, tuple[str, str]]] = {
    "sent": ("requests_sent", "Requests sent."),
    "unsent": ("requests_unsent", "Requests that were due and not sent."),
    "late": ("requests_late", "Requests sent more than a millisecond after they were due."),
    "failed": ("requests_failed", "Requests whose connection ended before the reply."),
    "timed_out": ("requests_timed_out", "Requests whose reply took too long."),
    "verified": ("replies_verified", "Replies that were right."),
    "wrong": ("replies_wrong", "Replies that were not."),
    "held": ("connections_made", "Connections made at the start."),
    "failed_to_connect": ("connections_failed", "Connections that could not be made."),
    "lost": ("connections_lost", "Connections that ended before the run did."),
    "reconnected": ("connections_reconnected", "Connections made in place of others."),
    "served": ("connections_served", "Connections with a right reply, told when they end."),
}
"""Metric, without prefix and ``_total``, and help text by count."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What a tally told at a time; nothing changes it any more."""

    phase: Phase
    elapsed: float
    last: Interval | None
    rate: float
    counts: Counts

    @classmethod
    def of(cls, tally: Tally) -> Figures:
        """A copy of what is told of a tally."""
        counts = replace(
            tally.counts,
            errors=Counter(tally.counts.errors),
            latency=Counter(tally.counts.latency),
            service=Counter(tally.counts.service),
        )
        last = tally.last()
        rate = tally.rate if last is None else float(last.requests)
        return cls(tally.phase, tally.elapsed, last, rate, counts)


class RunCollector:
    """Tells prometheus_client of a run; a ``Collector`` of its.

    >>> from prometheus_client import generate_latest
    >>> collector, tally = RunCollector(Plan()), Tally()
    >>> tally.counts.sent = 3
    >>> collector.publish(tally)
    >>> b"loadgen_requests_sent_total 3.0" in generate_latest(collector)
    True
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._figures = Figures.of(Tally())

    def publish(self, tally: Tally) -> None:
        """Tell this from now on; the tally may go on changing."""
        self._figures = Figures.of(tally)

    def collect(self) -> Iterator[Metric]:
        """The metrics as they were published last."""
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            InfoMetricFamily,
        )

        plan, figures = self._plan, self._figures
        counts = figures.counts
        yield InfoMetricFamily("loadgen", "The version of loadgen.", {"version": __version__})
        phases = GaugeMetricFamily(
            "loadgen_phase", "1 for what the run does now, 0 for the others.", labels=["phase"]
        )
        for phase in Phase:
            phases.add_metric([phase.value], float(phase is figures.phase))
        yield phases
        yield GaugeMetricFamily(
            "loadgen_elapsed_seconds", "Seconds measured so far.", figures.elapsed, unit="seconds"
        )
        if plan.requests is None:  # else the duration may be a bound that nobody asked for
            yield GaugeMetricFamily(
                "loadgen_duration_seconds", "Seconds to measure.", plan.duration, unit="seconds"
            )
        yield GaugeMetricFamily(
            "loadgen_connections", "Connections held now.", connected(plan, counts)
        )
        for name, (metric, text) in _COUNTERS.items():
            yield CounterMetricFamily(f"loadgen_{metric}", text, getattr(counts, name))
        errors = CounterMetricFamily(
            "loadgen_errors",
            "What ended connections, or kept them from being made.",
            labels=["kind"],
        )
        for kind, number in counts.errors.items():
            errors.add_metric([kind], number)
        yield errors
        yield GaugeMetricFamily(
            "loadgen_requests_per_second", "Replies verified in the last second.", figures.rate
        )
        yield _histogram(
            "loadgen_latency_seconds",
            "Of the replies verified, since their requests were due.",
            counts.latency,
        )
        if plan.is_open_loop:
            yield _histogram(
                "loadgen_service_seconds", "The same, since they were sent.", counts.service
            )
        yield _quantiles(figures)


def _histogram(name: str, text: str, latency: Mapping[int, int]) -> Metric:
    from prometheus_client.core import HistogramMetricFamily

    numbers = [0] * (len(BUCKETS) + 1)
    # What is as long as the bound to a thousandth counts as no longer than it.
    for index, number in latency.items():
        numbers[bisect_left(_LAST_BUCKETS, index)] += number
    bounds = [*map(repr, BUCKETS), "+Inf"]
    recorded = Histogram(latency)
    return HistogramMetricFamily(
        name,
        text,
        list(zip(bounds, accumulate(numbers), strict=True)),
        recorded.mean * len(recorded) / 1e9,
        unit="seconds",
    )


def _quantiles(figures: Figures) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(
        "loadgen_latency_quantile_seconds",
        "Latency that this share of the replies did not exceed: of the run so far, and of the "
        "last second.",
        labels=["window", "quantile"],
        unit="seconds",
    )
    latency = Histogram(figures.counts.latency)
    if latency:
        values = latency.percentiles([100 * each for each in QUANTILES])
        for quantile, value in zip(QUANTILES, values, strict=True):
            family.add_metric(["run", repr(quantile)], value / 1e9)
    last = figures.last
    if last is not None and last.p50 is not None and last.p99 is not None:
        family.add_metric(["second", "0.5"], last.p50 / 1e9)
        family.add_metric(["second", "0.99"], last.p99 / 1e9)
    return family


@contextlib.contextmanager
def served_metrics(
    place: str,
    plan: Plan,
    *,
    announce: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
    clock: Clock = time.monotonic,
) -> Iterator[Draw]:
    """Serve the figures of a run over HTTP, and give what publishes a tally.

    That is to be called for each snapshot, and is cheap to call.

    Args:
        place: HOST:PORT; port 0 lets the kernel choose one, which is announced.
        plan: what was asked.
        announce: takes a line with the address that was chosen.
        clock: monotonic seconds.

    Raises:
        CommandError: the place is none or cannot be had, or prometheus-client is
            not installed.
    """
    from nbnet.http_metrics import CollectorServer, ListenError, MetricsUnavailable

    collector = RunCollector(plan)
    try:
        wanted = parse_place(place)
        server = CollectorServer(collector, *wanted, threads=_THREADS)
    except (ListenError, MetricsUnavailable, ValueError) as error:
        raise CommandError(f"--metrics: {error}", EXIT_USAGE) from error
    pace = Pace(PUBLISH_EVERY)

    def publish(tally: Tally) -> None:
        # These may be the last words for a while, or at all.
        if tally.phase in (Phase.DRAINING, Phase.DONE) or pace.allows(clock()):
            collector.publish(tally)

    with server:
        if wanted.port == 0:
            announce(f"metrics on http://{server.address}/metrics")
        yield publish

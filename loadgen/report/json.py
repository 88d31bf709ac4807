"""The run for programs: schema ``loadgen/1``, in ``loadgen-1.schema.json`` beside this file.

Times are seconds as floats, rates are per second, counts are integers. What a
run did not measure is null. Within ``loadgen/1`` keys may come, none goes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from loadgen.histogram import Histogram
from loadgen.hosts import HostFigures
from loadgen.report import PERCENTILES, Run
from loadgen.report.files import is_replaced, write
from loadgen.tally import Interval, Tally
from nbnet import __version__

SCHEMA: Final = "loadgen-1.schema.json"
EVERY: Final = 10.0
"""Seconds between two checkpoints, if writing takes no more than its share of the time."""
LARGEST_SHARE: Final = 0.01


def document(run: Run, percentiles: Iterable[float] = ()) -> dict[str, Any]:
    """The run as JSON values.

    Args:
        percentiles: to be given beside those that are always there.
    """
    series = [_entry(interval) for interval in run.tally.intervals()]
    return _members(run, percentiles) | {"series": series}


def schema() -> dict[str, Any]:
    """What JSON Schema (draft 2020-12) says of the document, with units.

    >>> schema()["title"]
    'loadgen/1'
    """
    value: dict[str, Any] = json.loads(Path(__file__).with_name(SCHEMA).read_text("utf-8"))
    return value


def _members(run: Run, percentiles: Iterable[float]) -> dict[str, Any]:
    shown = sorted({*PERCENTILES, *percentiles})

    def times(histogram: Histogram) -> dict[str, float | None]:
        return _times(histogram, shown)

    def sampled(counts: Mapping[int, int]) -> dict[str, float | None] | None:
        return times(Histogram(counts)) if counts else None

    counts, tally, plan = run.tally.counts, run.tally, run.plan
    elapsed = tally.elapsed
    loader = run.loader
    return {
        "schema": "loadgen/1",
        "version": __version__,
        "plan": _plan(run),
        "target": str(run.target),
        "embedded": run.embedded,
        "started_at": run.started_at.isoformat(),
        "measured_from": tally.measured_from.isoformat() if tally.measured_from else None,
        "duration_seconds": elapsed,
        "interrupted": run.interrupted,
        "aborted_at_seconds": run.aborted_at,
        "connections": {
            "asked": plan.connections,
            "held": counts.held,
            "failed": counts.failed_to_connect,
            "lost": counts.lost,
            "reconnected": counts.reconnected,
            "served": counts.served,
        },
        "requests": {
            # A closed loop plans a request when it sends it.
            "planned": counts.sent + counts.unsent,
            "sent": counts.sent,
            "verified": counts.verified,
            "wrong": counts.wrong,
            "failed": counts.failed,
            "timed_out": counts.timed_out,
            "unsent": counts.unsent,
            "late": counts.late,
        },
        "errors": dict(counts.errors),
        "mismatches": [
            {
                "connection": mismatch.connection,
                "kind": mismatch.kind,
                "sent": mismatch.sent.hex(),
                "expected": mismatch.expected.hex(),
                "got": mismatch.got.hex(),
            }
            for mismatch in tally.mismatches
        ],
        "throughput": {
            "requests_per_second": tally.rate,
            "sent_bytes_per_second": counts.sent_bytes / elapsed if elapsed else 0.0,
            "received_bytes_per_second": counts.received_bytes / elapsed if elapsed else 0.0,
        },
        # In a closed loop every latency counts from the actual send.
        "latency_seconds": times(tally.latency),
        "service_seconds": times(tally.service),
        "connect_seconds": times(tally.connect),
        "split": {
            "samples": counts.wait.total(),
            "server_seconds": sampled(counts.server),
            "loader_wait_seconds": sampled(counts.wait),
        },
        "loader": {
            "workers": run.workers,
            "cpu_percent": loader.cpu_percent,
            "schedule_lag_seconds": sampled(counts.lag),
            "bound": loader.bound,
            "reason": loader.reason,
            "in_flight": loader.in_flight,
            "rate_times_latency": loader.rate_times_latency,
        },
        **({"hosts": [_host(host) for host in run.hosts]} if run.hosts else {}),
        "notes": run.notes,
        "thresholds": [
            {"expression": result.expression, "value": result.value, "passed": result.passed}
            for result in run.thresholds
        ],
        "series": None,  # it can be long: up to the caller
        "environment": {
            "python": platform.python_version(),
            "implementation": platform.python_implementation(),
            "system": platform.platform(),
            "processors": os.cpu_count(),
        },
        "verdict": run.verdict.text,
    }


def _host(host: HostFigures) -> dict[str, Any]:
    counts, latency = host.counts, host.latency
    p50, p99 = latency.percentiles([50, 99])
    return {
        "host": host.host,
        "name": host.name,
        "workers": host.workers,
        "cores": host.cores,
        "duration_seconds": host.elapsed,
        "held": counts.held,
        "requests": counts.verified,
        "wrong": counts.wrong,
        "failed": counts.failed,
        "timed_out": counts.timed_out,
        "rate": host.rate,
        "p50": _seconds(p50 if latency else None),
        "p99": _seconds(p99 if latency else None),
        "max": _seconds(latency.max if latency else None),
        "cpu_percent": host.cpu_percent,
        "clock_offset_seconds": host.clock_offset,
        "clock_drift_seconds": host.clock_drift,
        "start_within_seconds": host.start_within,
        "lost": host.lost,
    }


def _plan(run: Run) -> dict[str, Any]:
    plan, traffic = run.plan, run.plan.traffic
    return {
        "connections": plan.connections,
        "duration_seconds": plan.duration,
        "loop": "open" if plan.is_open_loop else "closed",
        "rate": plan.rate,
        "arrivals": ("poisson" if plan.poisson else "constant") if plan.is_open_loop else None,
        "stages": [{"seconds": seconds, "rate": rate} for seconds, rate in plan.stages],
        "requests": plan.requests,
        "think_seconds": plan.think,
        "pipeline": plan.pipeline,
        "active": plan.senders,
        "requests_per_connection": plan.requests_per_connection,
        "reconnect": plan.reconnect,
        "warmup_seconds": plan.warmup,
        "connect_rate": plan.connect_rate,
        "connect_timeout_seconds": plan.connect_timeout,
        "timeout_seconds": plan.timeout,
        "grace_seconds": plan.grace,
        "seed": plan.seed,
        "expect": traffic.expect,
        "unique": traffic.unique,
        "payloads": traffic.describe(),
    }


def _entry(interval: Interval) -> dict[str, Any]:
    return {
        "t": interval.start,
        "seconds": interval.seconds,
        "requests": interval.requests,
        "failed": interval.failed,
        "wrong": interval.wrong,
        "timed_out": interval.timed_out,
        "sent": interval.sent,
        "unsent": interval.unsent,
        "late": interval.late,
        "lost": interval.lost,
        "reconnected": interval.reconnected,
        "in_flight": interval.in_flight,
        "p50": _seconds(interval.p50),
        "p90": _seconds(interval.p90),
        "p99": _seconds(interval.p99),
        "p99.9": _seconds(interval.p999),
        "max": _seconds(interval.max),
        "errors": interval.errors,
    }


def text(run: Run, percentiles: Iterable[float] = ()) -> Iterator[str]:
    """The document as text, in pieces; of the series, each second is a line.

    Args:
        percentiles: to be given beside those that are always there.
    """
    before = "{\n"
    for key, value in _members(run, percentiles).items():
        yield f"{before}  {json.dumps(key)}: "
        before = ",\n"
        if key == "series":
            # A day has 86,400: made one by one, and not indented, which is fast.
            opening = "["
            for interval in run.tally.intervals():
                yield f"{opening}\n    {json.dumps(_entry(interval))}"
                opening = ","
            yield "[]" if opening == "[" else "\n  ]"
        else:
            yield json.dumps(value, indent=2).replace("\n", "\n  ")
    yield "\n}\n"


class Checkpoint:
    """Rewrites a file with the document so far while a run goes on.

    If the run is killed, what it had measured is there: marked as interrupted,
    with a verdict that begins with INCOMPLETE. What cannot be written is left
    to the end of the run, which says so.

    Args:
        path: the file; a pipe or standard output is left alone.
        percentiles: as of ``text``.
        clock: seconds, monotonic.

    >>> Checkpoint("run.json").every
    10.0
    """

    def __init__(
        self,
        path: str,
        percentiles: Iterable[float] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.every = EVERY
        self._path = path
        self._percentiles = tuple(percentiles)
        self._clock = clock
        self._next = clock() + EVERY if is_replaced(path) else math.inf

    def __call__(self, _tally: Tally, so_far: Callable[[], Run]) -> None:
        """Observe a run: to be called for each snapshot."""
        begun = self._clock()
        if begun < self._next:
            return
        with contextlib.suppress(OSError):
            write(self._path, text(so_far(), self._percentiles))
        now = self._clock()
        # The document grows with the run, its share of the time does not.
        self.every = max(EVERY, (now - begun) / LARGEST_SHARE)
        self._next = now + self.every


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e9


def _times(histogram: Histogram, percentiles: Sequence[float]) -> dict[str, float | None]:
    """The figures of a histogram; null, not nought, where nothing was recorded."""
    names = ["min", "mean", "max", *(f"p{percent:g}" for percent in percentiles)]
    if not histogram:
        return {"count": 0} | dict.fromkeys(names)
    values = [
        histogram.min,
        histogram.mean,
        histogram.max,
        *histogram.percentiles(percentiles),
    ]
    return {"count": len(histogram)} | {
        name: value / 1e9 for name, value in zip(names, values, strict=True)
    }

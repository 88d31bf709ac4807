"""The run for programs: schema ``loadgen/1``.

Times are seconds as floats, rates are per second, counts are integers. What a
run did not measure is null.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from loadgen.histogram import Histogram
from loadgen.report import PERCENTILES, Run
from nbnet import __version__


def document(run: Run) -> dict[str, Any]:
    """The run as JSON values."""
    counts, tally, plan = run.tally.counts, run.tally, run.plan
    elapsed = tally.elapsed
    latency = _times(tally.latency)
    return {
        "schema": "loadgen/1",
        "version": __version__,
        "plan": {
            "connections": plan.connections,
            "duration_seconds": plan.duration,
            "payload_bytes": len(plan.payload),
            "connect_timeout_seconds": plan.connect_timeout,
            "grace_seconds": plan.grace,
        },
        "target": str(run.target),
        "embedded": run.embedded,
        "started_at": run.started_at.isoformat(),
        "duration_seconds": elapsed,
        "interrupted": run.interrupted,
        "connections": {
            "asked": plan.connections,
            "held": counts.held,
            "failed": counts.failed_to_connect,
            "lost": counts.lost,
            "reconnected": 0,  # a lost connection is not replaced
        },
        "requests": {
            # A closed loop plans a request when it sends it.
            "planned": counts.sent,
            "sent": counts.sent,
            "verified": counts.verified,
            "wrong": counts.wrong,
            "failed": counts.failed,
            "timed_out": counts.timed_out,
            "unsent": 0,
            "late": 0,
        },
        "errors": dict(counts.errors),
        "mismatches": [
            {
                "connection": mismatch.connection,
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
        "latency_seconds": latency,
        # In a closed loop every latency counts from the actual send.
        "service_seconds": latency,
        "connect_seconds": _times(tally.connect),
        "split": {"samples": 0, "server_seconds": None, "loader_wait_seconds": None},
        "loader": {
            "cpu_percent": 100 * counts.cpu_seconds / elapsed if elapsed else 0.0,
            "schedule_lag_seconds": None,
            "bound": None,
            "reason": None,
        },
        "thresholds": [],
        "series": [
            {
                "t": interval.start,
                "requests": interval.counts.verified,
                "failed": interval.counts.failed,
                "p50": p50 / 1e9,
                "p99": p99 / 1e9,
            }
            for interval in tally.series
            for p50, p99 in [Histogram(interval.counts.latency).percentiles([50, 99])]
        ],
        "environment": {
            "python": platform.python_version(),
            "implementation": platform.python_implementation(),
            "system": platform.platform(),
            "processors": os.cpu_count(),
        },
        "verdict": run.verdict.text,
    }


def write(run: Run, path: str) -> None:
    """Write the document to a file, whole or not at all; ``-`` is standard output.

    Raises:
        OSError: the file cannot be written.
    """
    text = json.dumps(document(run), indent=2) + "\n"
    if path == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    part = Path(f"{path}.part{os.getpid()}")
    try:
        part.write_text(text)
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def _times(histogram: Histogram) -> dict[str, float]:
    values = histogram.percentiles(PERCENTILES)
    return {
        "count": len(histogram),
        "min": histogram.min / 1e9,
        "mean": histogram.mean / 1e9,
        "max": histogram.max / 1e9,
    } | {f"p{percent:g}": value / 1e9 for percent, value in zip(PERCENTILES, values, strict=True)}

"""The run for programs: schema ``loadgen/1``.

Times are seconds as floats, rates are per second, counts are integers. What a
run did not measure is null.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loadgen.histogram import Histogram
from loadgen.report import PERCENTILES, Run
from nbnet import __version__


def document(run: Run) -> dict[str, Any]:
    """The run as JSON values."""
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
        "duration_seconds": elapsed,
        "interrupted": run.interrupted,
        "connections": {
            "asked": plan.connections,
            "held": counts.held,
            "failed": counts.failed_to_connect,
            "lost": counts.lost,
            "reconnected": counts.reconnected,
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
        "latency_seconds": _times(tally.latency),
        "service_seconds": _times(tally.service),
        "connect_seconds": _times(tally.connect),
        "split": {
            "samples": counts.wait.total(),
            "server_seconds": _sampled(counts.server),
            "loader_wait_seconds": _sampled(counts.wait),
        },
        "loader": {
            "workers": run.workers,
            "cpu_percent": loader.cpu_percent,
            "schedule_lag_seconds": _sampled(counts.lag),
            "bound": loader.bound,
            "reason": loader.reason,
            "in_flight": loader.in_flight,
            "rate_times_latency": loader.rate_times_latency,
        },
        "notes": run.notes,
        "thresholds": [],
        "series": [
            {
                "t": interval.start,
                "requests": interval.requests,
                "failed": interval.failed,
                "p50": _seconds(interval.p50),
                "p99": _seconds(interval.p99),
            }
            for interval in tally.series
        ],
        "environment": {
            "python": platform.python_version(),
            "implementation": platform.python_implementation(),
            "system": platform.platform(),
            "processors": os.cpu_count(),
        },
        "verdict": run.verdict.text,
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


def write(run: Run, path: str) -> None:
    """Write the document of a run, see ``save``."""
    save(document(run), path)


def save(values: Mapping[str, Any], path: str) -> None:
    """Write JSON values to a file, whole or not at all; ``-`` is standard output.

    What is no regular file (a pipe, a device) is written into, not replaced.

    Raises:
        OSError: the file cannot be written.
    """
    text = json.dumps(values, indent=2) + "\n"
    if path == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    target = Path(os.path.realpath(path))  # where a link leads
    if not target.exists():
        _replace(target, text, _usual_mode())
    elif not target.is_file():
        Path(path).write_text(text)
    else:
        try:
            _replace(target, text, target.stat().st_mode)
        except OSError:  # a mounted file, or a folder that may not be written
            target.write_text(text)


def _replace(target: Path, text: str, mode: int) -> None:
    with tempfile.NamedTemporaryFile("w", dir=target.parent, prefix=".", delete=False) as file:
        part = Path(file.name)
        try:
            file.write(text)
            file.flush()
            part.chmod(mode)
            part.replace(target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def check_writable(path: str) -> None:
    """Notice before a run that its figures could not be saved.

    Raises:
        OSError: ``write`` would not be able to write there.
    """
    if path == "-":
        if sys.stdout is None:
            raise OSError(errno.EBADF, "standard output is closed")
        return
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    place = target if target.exists() else target.parent
    place.stat()
    if not os.access(place, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _usual_mode() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e9


def _sampled(counts: Mapping[int, int]) -> dict[str, float | None] | None:
    return _times(Histogram(counts)) if counts else None


def _times(histogram: Histogram) -> dict[str, float | None]:
    """The figures of a histogram; null, not nought, where nothing was recorded."""
    names = ["min", "mean", "max", *(f"p{percent:g}" for percent in PERCENTILES)]
    if not histogram:
        return {"count": 0} | dict.fromkeys(names)
    values = [
        histogram.min,
        histogram.mean,
        histogram.max,
        *histogram.percentiles(PERCENTILES),
    ]
    return {"count": len(histogram)} | {
        name: value / 1e9 for name, value in zip(names, values, strict=True)
    }

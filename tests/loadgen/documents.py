"""Documents of runs, made by hand: what a comparison reads of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

NAMES = ("mean", "p50", "p90", "p99", "p99.9")


def run_of(
    rate: float = 1000.0,
    latency: float | None = None,
    *,
    p99: float | None = None,
    failed: int = 0,
    series: Sequence[float] = (),
    loop: str = "closed",
    bound: bool = False,
    **plan: Any,
) -> dict[str, Any]:
    """A run of so many requests a second; its latency is what that gives for one connection."""
    latency = latency if latency is not None else (1 / rate if rate else None)
    times = dict.fromkeys(NAMES, latency) | {"p99": p99 if p99 is not None else latency}
    return {
        "schema": "loadgen/1",
        "plan": {"loop": loop, "connections": 1} | plan,
        "duration_seconds": float(len(series) or 10),
        "requests": {
            "sent": 10_000,
            "verified": 10_000 - failed,
            "wrong": 0,
            "failed": failed,
            "timed_out": 0,
        },
        "throughput": {"requests_per_second": rate},
        "latency_seconds": times,
        "service_seconds": times,
        "loader": {"bound": bound},
        "series": [
            {"t": float(second), "requests": each, "failed": 0, "p50": 1 / each, "p99": 2 / each}
            for second, each in enumerate(series)
        ],
        "environment": {"python": "3.11"},
        "verdict": f"FAILED: {failed} failed requests" if failed else "OK: every reply verified",
    }

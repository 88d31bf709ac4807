"""The keys of schema ``loadgen/1`` that programs may rely on, with their types."""

from __future__ import annotations

from types import NoneType
from typing import Any

PERCENTILES = ("p50", "p75", "p90", "p95", "p99", "p99.9", "p99.99")
FIGURES: dict[str, Any] = {"count": int} | dict.fromkeys(
    ("min", "mean", "max", *PERCENTILES), float
)
NOTHING: dict[str, Any] = {"count": int} | dict.fromkeys(FIGURES.keys() - {"count"}, NoneType)
"""The same where nothing was measured."""
SERIES = {"t": float, "requests": int, "failed": int, "p50": float, "p99": float}
MISMATCH = {"connection": int, "sent": str, "expected": str, "got": str}
PLAN: dict[str, Any] = {
    "connections": int,
    "duration_seconds": float,
    "loop": str,
    "pipeline": int,
    "active": int,
    "reconnect": bool,
    "think_seconds": float,
    "warmup_seconds": float,
    "connect_timeout_seconds": float,
    "timeout_seconds": float,
    "grace_seconds": float,
    "seed": int,
    "expect": str,
    "unique": bool,
    "payloads": str,
}
CLOSED_LOOP: dict[str, Any] = {
    "schema": str,
    "version": str,
    "plan": PLAN,
    "target": str,
    "embedded": bool,
    "started_at": str,
    "duration_seconds": float,
    "interrupted": bool,
    "connections": dict.fromkeys(["asked", "held", "failed", "lost", "reconnected"], int),
    "requests": dict.fromkeys(
        ["planned", "sent", "verified", "wrong", "failed", "timed_out", "unsent", "late"], int
    ),
    "errors": dict,
    "mismatches": list,
    "throughput": dict.fromkeys(
        ["requests_per_second", "sent_bytes_per_second", "received_bytes_per_second"], float
    ),
    "latency_seconds": FIGURES,
    "service_seconds": FIGURES,
    "connect_seconds": FIGURES,
    "split": {"samples": int, "server_seconds": FIGURES, "loader_wait_seconds": FIGURES},
    "loader": {
        "cpu_percent": float,
        "schedule_lag_seconds": NoneType,
        "bound": bool,
        "reason": (str, NoneType),
    },
    "thresholds": list,
    "series": list,
    "environment": {"python": str, "implementation": str, "system": str, "processors": int},
    "verdict": str,
}
"""Of a closed loop over TCP in which replies came."""
OPEN_LOOP = CLOSED_LOOP | {
    "plan": PLAN | {"rate": float, "arrivals": str},
    "loader": CLOSED_LOOP["loader"] | {"schedule_lag_seconds": FIGURES},
}


def assert_matches(value: Any, schema: Any, path: str = "document") -> None:
    """Whether a JSON value has all keys of the schema, of their types; others may be there."""
    if isinstance(schema, dict):
        assert schema.keys() <= value.keys(), path
        for key, inner in schema.items():
            assert_matches(value[key], inner, f"{path}.{key}")
    else:
        types = schema if isinstance(schema, tuple) else (schema,)
        assert type(value) in types, path


def assert_all_verified(document: Any, connections: int) -> None:
    """Whether a run held all its connections and every reply was right."""
    assert document["connections"] == {
        "asked": connections,
        "held": connections,
        "failed": 0,
        "lost": 0,
        "reconnected": 0,
    }
    requests = document["requests"]
    assert requests["sent"] == requests["verified"] >= connections
    assert requests["wrong"] == requests["failed"] == requests["timed_out"] == 0
    assert document["latency_seconds"]["count"] == requests["verified"]
    assert document["connect_seconds"]["count"] == connections
    assert document["errors"] == {}
    assert document["verdict"] == "OK: every reply verified"

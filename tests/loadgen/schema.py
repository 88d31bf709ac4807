"""Whether documents are what the schema ``loadgen/1`` says, and nothing more."""

from __future__ import annotations

import functools
from typing import Any

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]  # ships no types

from loadgen.report.json import schema


def assert_valid(document: Any) -> None:
    """Whether a document has all keys of the schema, of their types, and no others.

    The schema itself allows others, so that there can be some one day: here none
    may be forgotten in it.
    """
    errors = [f"{error.json_path}: {error.message}" for error in _validator().iter_errors(document)]
    assert errors == []


@functools.cache
def _validator() -> Any:
    closed = _closed(schema())
    Draft202012Validator.check_schema(closed)
    return Draft202012Validator(closed)


def _closed(part: Any) -> Any:
    """The schema without room for keys that it does not name."""
    if isinstance(part, list):
        return [_closed(each) for each in part]
    if not isinstance(part, dict):
        return part
    closed = {key: _closed(value) for key, value in part.items()}
    if part.get("type") == "object" and "properties" in part:
        closed.setdefault("additionalProperties", False)
    return closed


def assert_all_verified(document: Any, connections: int) -> None:
    """Whether a run held all its connections and every reply was right."""
    assert document["connections"] == {
        "asked": connections,
        "held": connections,
        "failed": 0,
        "lost": 0,
        "reconnected": 0,
        "served": connections,
    }
    requests = document["requests"]
    assert requests["sent"] == requests["verified"] >= connections
    assert requests["wrong"] == requests["failed"] == requests["timed_out"] == 0
    assert document["latency_seconds"]["count"] == requests["verified"]
    assert document["connect_seconds"]["count"] == connections
    assert document["errors"] == {}
    assert document["verdict"] == "OK: every reply verified"

"""The table that people read, and the document that programs read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from loadgen.compare import compare
from loadgen.report.comparison import conclusion, document, table

from .documents import run_of

FACTORS = (0.80, 0.79, 0.82, 0.81, 0.80, 0.78, 0.80, 0.81)


def sides(**changes: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Eight runs of each, of which B is slower by a fifth."""
    a = [run_of(50_000.0 * (1 + each / 50)) for each in range(8)]
    b = [
        run_of(50_000.0 * (1 + each / 50) * factor, **changes)
        for each, factor in enumerate(FACTORS)
    ]
    return a, b


def test_the_table_has_each_figure_with_its_change_and_ends_with_what_it_comes_to() -> None:
    a, b = sides()
    assert (
        table(compare(a, b, paired=True), "a:1", "b:2")
        == """\
A  a:1: 8 runs, requests/s 50,000 to 57,000
B  b:2: 8 runs, requests/s 40,000 to 46,170

                     A         B  B against A
requests/s      53,500    42,915  -20.0 % (-22.0 to -18.0)   slower
latency mean   18.7 us   23.3 us  +25.0 % (+22.0 to +28.2)   slower
latency p50    18.7 us   23.3 us  +25.0 % (+22.0 to +28.2)   slower
latency p90    18.7 us   23.3 us  +25.0 % (+22.0 to +28.2)   slower
latency p99    18.7 us   23.3 us  +25.0 % (+22.0 to +28.2)   slower
latency p99.9  18.7 us   23.3 us  +25.0 % (+22.0 to +28.2)   slower
errors             0 %       0 %  0 % (0 to 0)               no difference shown

B IS SLOWER: requests/s -20.0 % (-22.0 to -18.0) with 99.2 % confidence"""
    )


def test_no_line_is_wider_than_80_columns_however_long_names_and_figures_are() -> None:
    a, b = sides(p99=9.0, failed=1234, bound=True, connections=2)
    text = table(compare(a, b, paired=True), "server " * 20, "./other --with=some-option " * 9)
    assert max(map(len, text.splitlines())) <= 80
    assert "LOADER-BOUND" in text
    assert "NOT THE SAME LOAD" in text


def test_errors_are_told_beside_what_decides() -> None:
    a, b = sides(failed=100)
    assert conclusion(compare(a, b, paired=True)).endswith(
        "confidence; and more of its requests failed"
    )
    assert conclusion(compare(a, b, paired=True, by="errors")).startswith(
        "B HAS MORE ERRORS: errors +1.0 % (+1.0 to +1.0) with 99.2 % confidence"
    )


def test_no_reply_at_all_is_no_latency_and_slower_than_any() -> None:
    a, _ = sides()
    silent = compare(a, [run_of(0.0)] * 8, paired=True, by="p99")
    assert conclusion(silent).startswith("B IS SLOWER: latency p99 +inf % (")
    text = table(silent, "a", "b")
    assert "latency p99    18.7 us         -  +inf % (+inf to +inf)      slower\n" in text


def test_what_was_not_measured_has_no_figure() -> None:
    none = [run_of() | {"requests": dict.fromkeys(run_of()["requests"], 0)}] * 8
    assert conclusion(compare(none, none, paired=True, by="errors")) == (
        "NO DIFFERENCE SHOWN: errors was not measured on both sides"
    )


def test_what_was_not_measured_is_a_dash_and_null() -> None:
    none = [run_of() | {"requests": dict.fromkeys(run_of()["requests"], 0)}] * 8
    found = compare(none, none, paired=True)
    assert "\nerrors               -         -  -\n" in table(found, "a", "b")
    errors = document(found, none, none, ("a", "b"))["figures"]["errors"]
    assert (errors["a"], errors["b"], errors["finding"]) == (None, None, "no difference shown")
    assert None in (errors.get("ratio", 0), errors.get("difference", 0))


def test_the_document_is_json_even_where_a_change_has_no_end() -> None:
    a, b = [run_of(0.0)] * 8, [run_of(1.0)] * 8
    found = compare(a, b, paired=True)
    values = document(found, a, b, ("a", "b"))
    again = json.loads(json.dumps(values, allow_nan=False))
    assert again == values
    assert again["figures"]["rate"] == {
        "kind": "rate",
        "a": {"middle": 0.0, "low": 0.0, "high": 0.0, "confidence": 0.9921875},
        "b": {"middle": 1.0, "low": 1.0, "high": 1.0, "confidence": 0.9921875},
        "ratio": {"middle": None, "low": None, "high": None, "confidence": 0.9921875},
        "finding": "faster",
    }
    assert (again["finding"], again["decided_by"], again["b"]["runs"]) == ("faster", "rate", b)
    assert "requests/s           0         1  +inf % (+inf to +inf)" in table(found, "a", "b")


@pytest.mark.parametrize("method", ["samples", "seconds"])
def test_what_is_weaker_is_said(method: str) -> None:
    a, b = sides()
    count = 1 if method == "seconds" else 8
    found = compare(a[:count], b[:count], paired=False)
    assert found.method == method
    assert "NOT IN TURN: " in table(found, "a", "b")


def without_latency(*runs: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs in which no reply came."""
    for run in runs:
        run["latency_seconds"] = run["service_seconds"] = dict.fromkeys(run["latency_seconds"])
    return list(runs)


def test_single_runs_in_which_something_was_not_measured_are_compared() -> None:
    [a], [b] = [run_of(1000.0, series=[1000.0] * 10)], without_latency(run_of(900.0))
    assert "requests/s" in table(compare([a], [b], paired=False), "a:1", "b:2")

"""Benchmarks whose results the documentation relies on, in a form that takes seconds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def benchmark(name: str, *options: str) -> str:
    """Run one to its end; what it printed."""
    command = [sys.executable, str(BENCHMARKS / name), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_smaller_number_of_connections_than_a_million(tmp_path: Path) -> None:
    file = tmp_path / "documents.json"
    printed = benchmark(
        *("million.py", "--connections", "2k", "--processes", "2", "--active", "100%"),
        *("--rate", "4k", "--duration", "500ms", "--json", str(file)),
    )
    assert "2,000 connections, 2 processes a side" in printed
    documents: list[Any] = json.loads(file.read_text())
    assert len(documents) == 2
    for document in documents:
        assert document["connections"]["held"] == document["connections"]["served"] == 2_000
        assert document["requests"]["verified"] == document["requests"]["sent"] >= 2_000


def test_what_the_machine_does_not_allow_is_said_with_what_to_change() -> None:
    assert "connections: this machine has" in benchmark("million.py", "--connections", "1000M")


@pytest.mark.slow
def test_a_closed_loop_does_not_see_what_an_open_one_does(tmp_path: Path) -> None:
    chart = tmp_path / "stalls.svg"
    options = ("--duration", "10", "--rate", "500", "--conns", "600", "--chart", str(chart))
    opened, closed = re.findall(
        r"^.* loop .*p99 ([\d.]+) s", benchmark("stalls.py", *options), re.MULTILINE
    )
    assert float(closed) < 0.5 < float(opened)
    assert {"open loop", "closed loop", "what users have"} <= set(
        re.findall(r">([\w ]+)</text>", chart.read_text())
    )

"""The document that programs read: its keys are pinned."""

from __future__ import annotations

import json
import os
import platform
import resource
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support.forked import exit_code, in_child

from loadgen import __version__
from loadgen.plan import Plan
from loadgen.report import Run
from loadgen.report.json import Checkpoint, document, schema, text
from loadgen.tally import Counts, Tally

from . import runs
from .schema import assert_valid

KINDS: dict[str, Callable[[], Run]] = {
    "closed": runs.fine,
    "open": runs.open_loop,
    "failed": runs.failed,
    "interrupted": runs.interrupted_while_connecting,
    "nothing": lambda: runs.finished(Tally()),
    "loader-bound": runs.loader_bound,
}


@pytest.fixture
def fine() -> dict[str, Any]:
    return document(runs.fine())


@pytest.mark.parametrize("run", KINDS, ids=KINDS.keys())
def test_the_document_is_what_its_schema_says(run: str) -> None:
    assert_valid(document(KINDS[run]()))
    assert_valid(document(KINDS[run](), [12.5, 99.9999]))


def test_the_schema_tells_the_meaning_of_every_key() -> None:
    def undescribed(part: Any, path: str) -> list[str]:
        found = []
        for key, value in part.get("properties", {}).items():
            found += [] if value.get("description") else [f"{path}.{key}"]
            found += undescribed(value, f"{path}.{key}") + undescribed(
                value.get("items", {}), f"{path}.{key}[]"
            )
        return found

    assert undescribed(schema(), "") == []


def test_the_schema_knows_thresholds_and_refuses_what_is_something_else(
    fine: dict[str, Any],
) -> None:
    threshold = {"expression": "p99 < 5ms", "value": 0.0041, "passed": True}
    assert_valid(fine | {"thresholds": [threshold, threshold | {"value": None}]})
    for wrong in (
        {"thresholds": [threshold | {"passed": "yes"}]},
        {"schema": "loadgen/2"},
        {"duration_seconds": None},
        {"verdict": "PERHAPS: who knows"},
        {"surplus": 1},
    ):
        with pytest.raises(AssertionError):
            assert_valid(fine | wrong)


def test_each_threshold_has_its_value_in_the_units_of_the_schema() -> None:
    expressions = ("p99 > 5ms", "errors>0.1%", "sent<1k", "rate<2", "lag.p99>1ms")
    run = runs.finished(runs.fine().tally, thresholds=expressions)
    p99 = document(run)["latency_seconds"]["p99"]
    thresholds = json.loads(json.dumps(document(run)))["thresholds"]
    assert thresholds == [
        {"expression": "p99 > 5ms", "value": p99, "passed": False},
        {"expression": "errors>0.1%", "value": 0.0, "passed": True},
        {"expression": "sent<1k", "value": 8, "passed": False},
        {"expression": "rate<2", "value": 3.0, "passed": True},
        {"expression": "lag.p99>1ms", "value": None, "passed": False},
    ]


def test_what_was_asked_of_whom_and_when(fine: dict[str, Any]) -> None:
    assert (fine["schema"], fine["version"]) == ("loadgen/1", __version__)
    assert fine["plan"] == {
        "connections": 2,
        "duration_seconds": 2.0,
        "loop": "closed",
        "rate": None,
        "arrivals": None,
        "stages": [],
        "requests": None,
        "think_seconds": 0.0,
        "pipeline": 1,
        "active": 2,
        "requests_per_connection": None,
        "reconnect": True,
        "warmup_seconds": 0.0,
        "connect_rate": None,
        "connect_timeout_seconds": 10.0,
        "timeout_seconds": 10.0,
        "grace_seconds": 2.0,
        "seed": 1,
        "expect": "reverse",
        "unique": False,
        "payloads": "3 bytes",
    }
    assert (fine["target"], fine["embedded"]) == ("127.0.0.1:6789", True)
    started_at = datetime.fromisoformat(fine["started_at"])
    assert started_at == runs.fine().started_at
    assert started_at.tzinfo is not None
    assert fine["environment"] == {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": platform.platform(),
        "processors": os.cpu_count(),
    }


def test_stages_and_arrivals_are_told_as_they_were_asked() -> None:
    plan = Plan(duration=3.0, stages=((1.0, 10.0), (2.0, 20.0)), poisson=True)
    told = document(runs.finished(Tally(), plan))["plan"]
    assert told["stages"] == [{"seconds": 1.0, "rate": 10.0}, {"seconds": 2.0, "rate": 20.0}]
    assert (told["loop"], told["rate"], told["arrivals"]) == ("open", None, "poisson")


def test_an_open_loop_tells_what_was_planned_and_how_late_it_was() -> None:
    figures = document(runs.open_loop())
    requests = figures["requests"]
    assert (requests["planned"], requests["sent"]) == (1000, 990)
    assert (requests["unsent"], requests["late"]) == (10, 5)
    assert figures["latency_seconds"]["max"] == pytest.approx(0.004, rel=1e-3)
    assert figures["service_seconds"]["max"] == pytest.approx(0.002, rel=1e-3)
    assert figures["loader"]["schedule_lag_seconds"]["max"] == pytest.approx(30e-6, rel=1e-3)
    split = figures["split"]
    assert split["samples"] == split["server_seconds"]["count"] == 2
    assert split["server_seconds"]["max"] == pytest.approx(0.001, rel=1e-3)
    assert split["loader_wait_seconds"]["max"] == pytest.approx(20e-6, rel=1e-3)


def test_a_loader_that_is_the_bottleneck_is_told_with_the_reason() -> None:
    loader = document(runs.loader_bound())["loader"]
    assert loader["bound"] is True
    assert "97 % of a core" in loader["reason"]
    assert document(runs.fine())["loader"]["bound"] is False


def test_what_people_are_told_of_the_figures_programs_are_told_too() -> None:
    notes = document(runs.rate_missed())["notes"]
    assert [note.partition(":")[0] for note in notes] == ["RATE MISSED"]


def test_what_was_counted(fine: dict[str, Any]) -> None:
    assert fine["connections"] == {
        "asked": 2,
        "held": 2,
        "failed": 0,
        "lost": 0,
        "reconnected": 0,
        "served": 0,
    }
    assert fine["requests"] == {
        "planned": 8,
        "sent": 8,
        "verified": 8,
        "wrong": 0,
        "failed": 0,
        "timed_out": 0,
        "unsent": 0,
        "late": 0,
    }
    assert (fine["errors"], fine["mismatches"], fine["thresholds"]) == ({}, [], [])
    assert (fine["interrupted"], fine["verdict"]) == (False, "OK: every reply verified")


def test_rates_are_per_second_and_times_in_seconds(fine: dict[str, Any]) -> None:
    assert fine["duration_seconds"] == 2.0
    assert fine["throughput"] == {
        "requests_per_second": 3.0,
        "sent_bytes_per_second": 32.0,
        "received_bytes_per_second": 32.0,
    }
    assert fine["loader"]["cpu_percent"] == 37.5
    latency = fine["latency_seconds"]
    assert latency["count"] == 8
    assert latency["min"] == pytest.approx(0.001, rel=1e-3)
    assert latency["mean"] == pytest.approx(0.003625, rel=1e-3)
    assert latency["p50"] == pytest.approx(0.003, rel=1e-3)
    assert latency["p75"] == pytest.approx(0.004, rel=1e-3)
    assert latency["p99.99"] == latency["max"] == pytest.approx(0.010, rel=1e-3)
    assert fine["service_seconds"] == latency
    assert fine["connect_seconds"]["max"] == pytest.approx(0.0007, rel=1e-3)


def test_the_series_has_an_entry_a_second(fine: dict[str, Any]) -> None:
    first, second = fine["series"]
    assert (first["t"], first["requests"], first["failed"]) == (0.0, 4, 0)
    assert (second["t"], second["requests"], second["failed"]) == (1.0, 4, 0)
    assert first["p50"] == pytest.approx(0.001, rel=1e-3)
    assert first["p99"] == pytest.approx(0.003, rel=1e-3)
    assert second["p99"] == pytest.approx(0.010, rel=1e-3)


def test_a_failed_run_has_its_errors_and_wrong_replies() -> None:
    failed = document(runs.failed())
    assert failed["errors"] == {"connect: refused": 1, "wrong payload": 3, "EOF": 2}
    assert failed["mismatches"] == [
        {
            "connection": 2,
            "kind": "wrong payload",
            "sent": b"00003abc".hex(),
            "expected": b"00003cba".hex(),
            "got": b"00003abc".hex(),
        }
    ]
    assert failed["connections"]["failed"] == failed["connections"]["lost"] == 1
    assert failed["verdict"].startswith("FAILED: ")
    assert failed["embedded"] is False


def test_a_run_that_measured_nothing_has_all_keys_and_no_rates() -> None:
    nothing = document(runs.interrupted_while_connecting())
    assert list(nothing) == list(document(runs.fine()))
    assert nothing["interrupted"] is True
    assert set(nothing["throughput"].values()) == {0.0}
    latency = nothing["latency_seconds"]
    assert latency.pop("count") == 0
    assert set(latency.values()) == {None}
    assert (nothing["loader"]["cpu_percent"], nothing["loader"]["bound"]) == (0.0, None)


def test_a_run_without_a_reply_in_some_second_has_a_series_all_the_same() -> None:
    run = runs.finished(runs.snapshots(Counts(held=1, sent=1), Counts(failed=1)))
    first, second = document(run)["series"]
    assert (first["requests"], first["failed"], second["failed"]) == (0, 0, 1)
    assert {first[name] for name in ("p50", "p90", "p99", "p99.9", "max")} == {None}


def test_when_measuring_began_is_told_if_it_did(fine: dict[str, Any]) -> None:
    assert fine["measured_from"] is None
    run = runs.fine()
    run.tally.measured_from = datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC)
    assert document(run)["measured_from"] == "2026-01-02T03:04:06+00:00"
    assert_valid(document(run))


def test_percentiles_that_are_asked_for_stand_beside_the_usual_ones() -> None:
    latency = document(runs.fine(), [99.999, 12.5, 50.0])["latency_seconds"]
    assert list(latency)[4:] == [
        "p12.5", "p50", "p75", "p90", "p95", "p99", "p99.9", "p99.99", "p99.999",
    ]  # fmt: skip
    assert latency["p12.5"] == pytest.approx(0.001, rel=1e-3)


@pytest.mark.parametrize("run", KINDS, ids=KINDS.keys())
def test_the_text_is_the_document_with_a_line_for_each_second(run: str) -> None:
    made = KINDS[run]()
    lines = "".join(text(made, [12.5])).splitlines(keepends=True)
    assert json.loads("".join(lines)) == document(made, [12.5])
    seconds = [line for line in lines if line.startswith('    {"t": ')]
    assert len(seconds) == len(made.tally.series)


# Checkpoints -------------------------------------------------------------------


class Clock:
    """Seconds that pass when told to, and while a run is summed up."""

    def __init__(self) -> None:
        self.now = 100.0
        self.summed_up = 0
        self.takes = 0.0

    def __call__(self) -> float:
        return self.now

    def so_far(self) -> Run:
        self.summed_up += 1
        self.now += self.takes
        return runs.fine()


def test_a_checkpoint_is_written_every_ten_seconds(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "run.json"
    observe = Checkpoint(str(path), [12.5], clock=clock)
    written = []
    for _ in range(100):  # 25 seconds
        clock.now += 0.25
        observe(Tally(), clock.so_far)
        if path.exists():
            written.append(clock.now - 100)
            assert json.loads(path.read_text()) == document(runs.fine(), [12.5])
            path.unlink()
    assert written == [10.0, 20.0]
    assert clock.summed_up == 2


def test_checkpoints_that_take_long_are_rare(tmp_path: Path) -> None:
    clock = Clock()
    observe = Checkpoint(str(tmp_path / "run.json"), clock=clock)
    clock.takes = 1.0
    spent = 0.0
    while clock.now < 2100:
        before = clock.now
        observe(Tally(), clock.so_far)
        spent += clock.now - before
        clock.now += 0.25
    assert spent == clock.summed_up == 20


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    clock = Clock()
    observe = Checkpoint(str(tmp_path / "missing" / "run.json"), clock=clock)
    clock.now += 10
    observe(Tally(), clock.so_far)
    assert clock.summed_up == 1


def test_a_pipe_and_standard_output_get_the_document_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    clock = Clock()
    for path in ("-", str(pipe)):
        observe = Checkpoint(path, clock=clock)
        clock.now += 1000
        observe(Tally(), clock.so_far)
    assert (clock.summed_up, capsys.readouterr().out) == (0, "")


def test_a_disk_that_is_full_for_a_while_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    """In a child, whose files may not grow for a while: the kernel's own word for it."""
    clock, path = Clock(), tmp_path / "run.json"
    observe = Checkpoint(str(path), clock=clock)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def three_times() -> None:
        for limit in (limits[0], 0, limits[0]):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
            clock.now += 10
            observe(Tally(), clock.so_far)
            assert json.loads(path.read_text()) == document(runs.fine())
            assert list(tmp_path.iterdir()) == [path]
        assert clock.summed_up == 3

    assert exit_code(in_child(three_times)) == 0

"""The document that programs read: its keys are pinned."""

from __future__ import annotations

import json
import os
import platform
import threading
from datetime import datetime
from pathlib import Path
from types import NoneType
from typing import Any

import pytest

from loadgen import __version__
from loadgen.plan import Plan
from loadgen.report.json import check_writable, document, write
from loadgen.tally import Counts, Tally

from . import runs
from .schema import CLOSED_LOOP, MISMATCH, NOTHING, OPEN_LOOP, SERIES, assert_matches


@pytest.fixture
def fine() -> dict[str, Any]:
    return document(runs.fine())


def test_the_keys_of_a_closed_loop_are_those_of_the_schema(fine: dict[str, Any]) -> None:
    unsampled = {"samples": int, "server_seconds": NoneType, "loader_wait_seconds": NoneType}
    assert_matches(fine, CLOSED_LOOP | {"split": unsampled})
    for entry in fine["series"]:
        assert_matches(entry, SERIES)


def test_the_keys_of_an_open_loop_are_those_of_the_schema() -> None:
    document_ = document(runs.open_loop())
    assert_matches(document_, OPEN_LOOP)
    assert document_["plan"]["loop"] == "open"
    assert document_["plan"]["stages"] == []


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
    assert_matches(failed["mismatches"][0], MISMATCH)
    assert failed["connections"]["failed"] == failed["connections"]["lost"] == 1
    assert failed["verdict"].startswith("FAILED: ")
    assert failed["embedded"] is False


def test_a_run_that_measured_nothing_has_all_keys_and_no_rates() -> None:
    nothing = document(runs.interrupted_while_connecting())
    assert list(nothing) == list(document(runs.fine()))
    assert nothing["interrupted"] is True
    assert set(nothing["throughput"].values()) == {0.0}
    assert_matches(nothing["latency_seconds"], NOTHING)
    assert nothing["latency_seconds"]["count"] == 0
    assert (nothing["loader"]["cpu_percent"], nothing["loader"]["bound"]) == (0.0, None)


def test_a_run_without_a_reply_in_some_second_has_a_series_all_the_same() -> None:
    run = runs.finished(runs.snapshots(Counts(held=1, sent=1), Counts(failed=1)))
    assert document(run)["series"] == [
        {"t": 0.0, "requests": 0, "failed": 0, "p50": None, "p99": None},
        {"t": 1.0, "requests": 0, "failed": 1, "p50": None, "p99": None},
    ]


def test_the_document_is_written_to_a_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text("an older run")
    write(runs.fine(), str(path))
    assert json.loads(path.read_text()) == document(runs.fine())
    assert list(tmp_path.iterdir()) == [path]


def test_the_document_is_written_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    write(runs.fine(), "-")
    assert json.loads(capsys.readouterr().out) == document(runs.fine())


def test_a_link_is_followed_and_the_mode_of_a_file_kept(tmp_path: Path) -> None:
    path, link = tmp_path / "run.json", tmp_path / "link.json"
    path.touch(mode=0o600)
    link.symlink_to(path)
    write(runs.fine(), str(link))
    assert link.is_symlink()
    assert json.loads(path.read_text()) == document(runs.fine())
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_pipe_is_written_into_and_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(path.read_text()))
    reader.start()
    write(runs.fine(), str(path))
    reader.join()
    assert json.loads(read[0]) == document(runs.fine())
    assert path.is_fifo()


def test_what_could_not_be_written_is_noticed_before_the_run(tmp_path: Path) -> None:
    check_writable("-")
    check_writable(os.devnull)
    check_writable(str(tmp_path / "new.json"))
    with pytest.raises(IsADirectoryError):
        check_writable(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        check_writable(str(tmp_path / "missing" / "run.json"))


def test_a_folder_that_may_not_be_written_is_noticed_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(PermissionError):
        check_writable(str(tmp_path / "run.json"))


def test_a_file_that_cannot_be_replaced_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        write(runs.fine(), str(path))
    assert list(tmp_path.iterdir()) == [path], "nothing is left beside it"


def test_a_folder_that_went_away_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write(runs.fine(), str(tmp_path / "missing" / "run.json"))

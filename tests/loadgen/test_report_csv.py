"""The series as spreadsheets read it."""

from __future__ import annotations

import csv
import io
from collections import Counter

from loadgen.report.csv import COLUMNS, series
from loadgen.tally import Counts, Tally

from . import runs


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_a_fine_run_word_for_word() -> None:
    assert "".join(series(runs.fine())) == (
        "t,seconds,requests,failed,wrong,timed_out,sent,unsent,late,lost,reconnected,in_flight,"
        "p50_seconds,p90_seconds,p99_seconds,p99.9_seconds,max_seconds\r\n"
        "0,1.000,4,0,0,0,6,0,0,0,0,2.000,"
        "0.001000447,0.003000319,0.003000319,0.003000319,0.003000319\r\n"
        "1,1.000,4,0,0,0,2,0,0,0,0,2.000,"
        "0.004001791,0.010002431,0.010002431,0.010002431,0.010002431\r\n"
    )


def test_each_kind_of_error_that_occurred_has_a_column() -> None:
    first = Counts(held=2, lost=3, errors=Counter({"EOF": 2, 'odd, "kind"': 1}))
    second = Counts(errors=Counter({"EOF": 5}))
    text = "".join(series(runs.finished(runs.snapshots(first, second))))
    rows = read(text)
    assert list(rows[0]) == [*COLUMNS, "errors: EOF", 'errors: odd, "kind"']
    assert [row["errors: EOF"] for row in rows] == ["2", "5"]
    assert [row['errors: odd, "kind"'] for row in rows] == ["1", "0"]
    assert rows[0]["lost"] == "3"


def test_a_second_without_replies_has_empty_cells_for_its_latencies() -> None:
    run = runs.finished(runs.snapshots(Counts(held=1, sent=1), Counts(failed=1, timed_out=2)))
    first, second = read("".join(series(run)))
    assert (first["sent"], second["failed"], second["timed_out"]) == ("1", "1", "2")
    assert {first[name] for name in COLUMNS if name.endswith("_seconds")} == {""}


def test_a_run_that_measured_nothing_has_the_names_alone() -> None:
    assert "".join(series(runs.finished(Tally()))) == ",".join(COLUMNS) + "\r\n"


def test_long_runs_count_their_seconds_in_full() -> None:
    tally = runs.snapshots(*[Counts(verified=1)] * 1000)
    assert [row["t"] for row in read("".join(series(runs.finished(tally))))] == [
        str(second) for second in range(1000)
    ]

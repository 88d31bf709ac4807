"""Files for HdrHistogram's tools, read back by its Python implementation."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]  # ships no types
from hdrh.log import HistogramLogReader  # type: ignore[import-untyped]  # ships no types
from hypothesis import given, settings

from loadgen import __version__
from loadgen.histogram import Histogram
from loadgen.report import Run
from loadgen.report.hdrlog import distribution, hgrm, hlog
from loadgen.tally import Counts, Tally

from . import runs
from .reference import HIGHEST, PERCENTS, Recordings, counted, heavy_tailed, recordings, reference

MS = runs.MS
quiet = settings(deadline=None, derandomize=True, max_examples=30)

# Percentiles ------------------------------------------------------------------


def rows(histogram: Histogram, unit: float = 1) -> list[list[float]]:
    """Value, share and count of each row, but for the last one with 1 / (1 - share)."""
    lines = [line for line in list(distribution(histogram, unit))[2:] if not line.startswith("#")]
    return [[float(cell) for cell in line.split()] for line in lines]


def test_a_single_value_word_for_word() -> None:
    histogram = Histogram()
    histogram.record([5])
    assert "".join(distribution(histogram, unit=1)) == (
        "       Value     Percentile TotalCount 1/(1-Percentile)\n"
        "\n"
        "       5.000 0.000000000000          1           1.00\n"
        "       5.000 1.000000000000          1\n"
        "#[Mean    =        5.000, StdDeviation   =        0.000]\n"
        "#[Max     =        5.000, Total count    =            1]\n"
        "#[Buckets =            1, SubBuckets     =         2048]\n"
    )


def test_without_a_value_there_is_no_row() -> None:
    lines = "".join(hgrm(runs.interrupted_while_connecting())).splitlines()
    assert [line.split("=")[0].strip() for line in lines[2:]] == ["#[Mean", "#[Max", "#[Buckets"]
    assert "Total count    =            0]" in lines[3]


def test_shares_rise_by_equal_steps_within_each_half_of_what_is_left() -> None:
    shares = [row[1] for row in rows(counted(heavy_tailed(1000)))]
    assert shares[:16] == pytest.approx(
        [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.775, 0.8, 0.825, 0.85, 0.875]
    )
    assert shares[-1] == 1.0


def test_the_run_s_latencies_are_in_milliseconds() -> None:
    text = "".join(hgrm(runs.fine()))
    assert "       3.000 0.500000000000          4           2.00\n" in text
    assert "\n      10.002 1.000000000000          8\n" in text
    assert "#[Mean    =        3.625, StdDeviation   =        2.689]\n" in text
    assert "#[Max     =       10.002, Total count    =            8]\n" in text


@quiet
@given(recordings)
def test_each_row_is_where_the_reference_finds_that_share_reached(recordings: Recordings) -> None:
    theirs = reference(recordings)
    counts = {}
    seen = 0
    for value in theirs.get_recorded_iterator():
        seen += value.count_at_value_iterated_to
        counts[theirs.get_highest_equivalent_value(value.value_iterated_to)] = seen
    reached = list(counts)
    for value, share, count, *_ in rows(counted(recordings)):
        assert counts[int(value)] == count
        assert count / seen >= share - 1e-9
        place = reached.index(int(value))
        # The share is not reached before; the least that a row can have is the first.
        assert place == 0 or counts[reached[place - 1]] / seen < share + 1e-9


@quiet
@given(recordings)
def test_mean_deviation_and_size_are_those_of_the_reference(recordings: Recordings) -> None:
    theirs = reference(recordings)
    expected = [
        theirs.get_mean_value(),
        theirs.get_stddev(),
        theirs.get_max_value(),
        theirs.get_total_count(),
        theirs.bucket_count,
        theirs.sub_bucket_count,
    ]
    text = "".join(distribution(counted(recordings), unit=1))
    assert [float(each) for each in re.findall(r"= *([\d.]+)", text)] == pytest.approx(
        expected, rel=1e-9, abs=1e-3
    )


# Interval log -----------------------------------------------------------------


def read(run: Run, folder: Path) -> list[Any]:
    """The log's intervals as the reference reads them."""
    path = folder / "run.hlog"
    path.write_text("".join(hlog(run)))
    reader = HistogramLogReader(str(path), HdrHistogram(1, HIGHEST, 3))
    try:
        return list(iter(reader.get_next_interval_histogram, None))
    finally:
        reader.input_file.close()


def summed(intervals: list[Any]) -> Any:
    total = HdrHistogram(1, HIGHEST, 3)
    for interval in intervals:
        total.add(interval)
    return total


def percentiles(histogram: Any) -> list[int]:
    return [histogram.get_value_at_percentile(percent) for percent in PERCENTS]


def test_the_head_tells_the_format_and_when_measuring_began() -> None:
    run = runs.fine()
    run.tally.measured_from = datetime(2026, 1, 2, 3, 4, 6, 250_000, tzinfo=UTC)
    assert list(hlog(run))[:5] == [
        f"#[Logged with loadgen {__version__}]\n",
        "#[Histogram log format version 1.3]\n",
        "#[BaseTime: 1767323046.250 (seconds since epoch)]\n",
        "#[StartTime: 1767323046.250 (seconds since epoch), Fri Jan 02 03:04:06 UTC 2026]\n",
        '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"\n',
    ]


def test_a_closed_loop_has_an_interval_a_second_without_tags(tmp_path: Path) -> None:
    run = runs.fine()
    lines = list(hlog(run))[5:]
    assert [line.rpartition(",")[0] for line in lines] == [
        "0.000,1.000,3.000",
        "1.000,1.000,10.002",
    ]
    first, second = read(run, tmp_path)
    assert (first.get_tag(), first.get_total_count()) == (None, 4)
    began = run.started_at.timestamp() * 1000
    assert (second.get_start_time_stamp(), second.get_end_time_stamp()) == (
        began + 1000,
        began + 2000,
    )
    assert percentiles(summed([first, second])) == run.tally.latency.percentiles(PERCENTS)


def test_an_open_loop_has_the_service_time_under_a_tag(tmp_path: Path) -> None:
    tally = Tally(keep_histograms=True)
    for second in range(20):
        latency = [MS * (1 + second) + 1000 * number for number in range(50)]
        counts = Counts(
            latency=runs.recorded(*latency),
            service=runs.recorded(*[each // 2 for each in latency]),
        )
        if second == 7:
            counts = Counts(sent=3)  # the server hung
        tally.add(runs.snapshot(second, counts))
    run = runs.finished(tally, runs.open_loop().plan)
    intervals = read(run, tmp_path)
    assert [interval.get_tag() for interval in intervals] == [None, "service"] * 20
    assert intervals[14].get_total_count() == intervals[15].get_total_count() == 0
    latency_, service = summed(intervals[::2]), summed(intervals[1::2])
    assert percentiles(latency_) == run.tally.latency.percentiles(PERCENTS)
    assert percentiles(service) == run.tally.service.percentiles(PERCENTS)


def test_the_histograms_of_a_run_that_did_not_keep_them_are_asked_for_in_vain() -> None:
    with pytest.raises(ValueError, match="not kept"):
        list(hlog(runs.finished(Tally())))

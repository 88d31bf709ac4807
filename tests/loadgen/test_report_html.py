"""The page: whole, quiet, bounded, and nothing that came from outside is markup in it."""

from __future__ import annotations

import functools
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

import pytest

from loadgen.histogram import Histogram
from loadgen.plan import Plan
from loadgen.report import Run, html_charts
from loadgen.report.html import page
from loadgen.report.html_charts import Axis, Line, Tip, chart
from loadgen.report.html_details import _hex
from loadgen.report.html_series import POINTS, bins, percentile_curve
from loadgen.tally import Counts, Interval, Mismatch, Phase, Snapshot, Tally
from loadgen.traffic import Traffic
from nbnet.notation import Address, Target

from . import runs
from .command import call

LIMIT: Final = 300_000
HOSTILE: Final = "</title></style></svg><script>alert('1')</script>\"'&\x00\u202e\udcff"
VOID: Final = {"meta", "link"}
BROWSER: Final = next(
    (
        path
        for path in map(shutil.which, ("chromium", "chromium-browser"))
        # One in a snap does not see the files of tests.
        if path is not None and not path.startswith("/snap/")
    ),
    None,
)


class Reader(HTMLParser):
    """Every element, in order, and the text outside of the style sheet.

    Attributes:
        elements: name and attributes of each.
        text: what people read.
    """

    def __init__(self, document: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(document)
        self.close()
        assert self._open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag in ("dt", "dd", "th", "td", "b", "small", "p", "span"):
            self.text += " "

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data

    @property
    def words(self) -> str:
        """The text with single spaces."""
        return " ".join(self.text.split())


def svgs(document: str) -> list[ET.Element]:
    return [ET.fromstring(each) for each in re.findall(r"<svg.*?</svg>", document, re.DOTALL)]


def lines_of(svg: ET.Element) -> list[str]:
    return [
        path.get("d", "")
        for series in svg.iter("g")
        if series.get("class", "").startswith("series")
        for path in series
    ]


def long_run(seconds: int) -> Run:
    """So many seconds, every one of them different, some with errors."""

    class Long(Tally):
        def intervals(self) -> Iterator[Interval]:
            return (
                Interval(
                    start=float(at),
                    requests=80_000 + at % 977,
                    failed=at % 3,
                    p50=500_000 + at % 7919,
                    p99=2_000_000 + at * 7 % 9973,
                )
                for at in range(seconds)
            )

    tally = Long()
    latency = runs.recorded(*range(10_000, 3_000_000, 1500))
    counts = Counts(
        held=50,
        sent=seconds * 80_000,
        verified=seconds * 80_000,
        on_time=seconds * 80_000,
        failed=seconds,
        latency=latency,
        service=latency,
        connect=latency,
        server=latency,
        wait=latency,
    )
    counts.errors.update({f"kind {number}": number for number in range(2000)})
    junk = bytes(range(256)) * 390
    tally.mismatches = [Mismatch(1, "wrong payload", junk, junk, junk[::-1])] * 10
    tally.counts, tally.elapsed = counts, float(seconds)
    return runs.finished(tally, Plan(rate=80_000.0, duration=float(seconds)))


ALL = {
    "fine": runs.fine,
    "open loop": runs.open_loop,
    "rate missed": runs.rate_missed,
    "loader bound": runs.loader_bound,
    "failed": runs.failed,
    "interrupted": runs.interrupted_while_connecting,
    "long": functools.partial(long_run, 5000),
}


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_the_page_is_well_formed_and_asks_for_nothing(make: functools.partial[Run]) -> None:
    document = page(make())
    reader = Reader(document)
    for svg in svgs(document):
        assert svg.tag == "svg"
        assert svg.get("aria-label")
    names = {name for name, _ in reader.elements}
    assert not names & {"script", "iframe", "img", "object", "embed", "base", "form", "a"}
    assert not [
        value
        for _, attributes in reader.elements
        for name, value in attributes.items()
        if name.startswith("on") or (name in ("src", "href") and value != "data:,")
    ]
    assert not re.search(r"https?:|//\w|url\(|@import|@font-face", document)
    assert "default-src 'none'" in document


def test_the_verdict_comes_first_in_words_and_in_a_class_of_its_own() -> None:
    for run, word, kind in (
        (runs.fine(), "OK", "good"),
        (runs.failed(), "FAILED", "bad"),
        (runs.interrupted_while_connecting(), "INTERRUPTED", "open"),
    ):
        document = page(run)
        first = document.partition("<main>")[2].lstrip()
        assert first.startswith(f'<header class="verdict {kind}"')
        words = run.verdict.text.partition(": ")[2]
        assert f'<span class="word">{word}</span> <span>{words}</span></h1>' in first


def test_notes_stand_between_the_verdict_and_the_figures() -> None:
    for run, word in ((runs.rate_missed(), "RATE MISSED"), (runs.loader_bound(), "LOADER-BOUND")):
        document = page(run)
        assert (
            document.index("verdict") < document.index(f"<strong>{word}:") < document.index("<dl")
        )
        assert 'class="note warn"' in document
    assert 'class="note warn"' not in page(runs.fine())


def test_all_figures_of_an_open_loop_are_there() -> None:
    words = Reader(page(runs.open_loop())).words
    for figure in (
        "Throughput 990 requests/s",
        "Latency p50 2.00 ms",
        "Latency p99 2.00 ms",
        "Latency max 4.00 ms",
        "Requests 990 sent 990 verified, 5 late, 10 unsent",
        "Errors 0 requests 0 wrong, 0 failed, 0 missing",
        "Connections 2 held 0 failed, 0 lost",
        "latency 2.02 ms 2.00 ms 2.00 ms 2.00 ms 4.00 ms 4.00 ms 4.00 ms",
        "service 1.01 ms 1.00 ms",
        "server 950 us, 98 %",
        "load generator 15.0 us, 2 %",
        "connect 600 us 500 us 700 us",
        "Schedule lag p99 30.0 us",
        "Processor time 30 % of a core",
        "Rate 1,000 requests/s",
        "Arrivals Poisson",
        "Target 127.0.0.1:6789",
        f"Python {platform.python_implementation()} {platform.python_version()}",
        "2026-01-02 03:04:05+00:00",
        "50 %",
        "99 %",
    ):
        assert figure in words


def test_the_percentiles_of_latency_and_service_are_two_lines_in_an_open_loop() -> None:
    [_, _, latency, connect] = svgs(page(runs.open_loop()))
    assert (len(lines_of(latency)), len(lines_of(connect))) == (2, 1)
    [_, _, latency, _] = svgs(page(runs.fine()))
    assert len(lines_of(latency)) == 1


def test_a_failed_run_has_its_errors_and_its_wrong_replies_in_hex() -> None:
    document = page(runs.failed())
    words = Reader(document).words
    assert "wrong payload 3" in words
    assert "EOF 2" in words
    assert "connect: refused 1" in words
    assert "wrong payload, connection 2, differs at byte 5" in words
    assert "sent 30 30 30 30 33 61 62 63 00003abc" in words.replace(" </td>", "")
    assert "30 30 30 30 33 <mark>63</mark> 62 61" in document
    assert "30 30 30 30 33 <mark>61</mark> 62 63" in document
    assert "Failures requests a second" in words


def test_a_run_that_measured_nothing_has_no_charts_and_no_latency_of_nought() -> None:
    document = page(runs.interrupted_while_connecting())
    assert svgs(document) == []
    words = Reader(document).words
    assert "Latency p50 -" in words
    assert "latency - - -" in words


def test_a_day_long_run_stays_below_the_limit() -> None:
    document = page(long_run(86_400))
    assert len(document.encode()) < LIMIT
    for svg in svgs(document):
        for path in lines_of(svg):
            assert len(path.split()) <= 2 * POINTS
    words = Reader(document).words
    assert "each point is 288 s" in words
    assert "slowest second" in words


def test_the_worst_of_merged_seconds_is_kept() -> None:
    series = [Interval(start=float(at), requests=100, p50=1000, p99=2000) for at in range(86_400)]
    series[40_000] = Interval(
        start=40_000.0, wrong=1, failed=4, timed_out=2, p50=5000, p99=9_000_000
    )
    merged = bins(series)
    assert len(merged) <= POINTS
    [worst] = [each for each in merged if each.start <= 40_000 < each.end]
    assert (worst.lowest, worst.failed, worst.p50, worst.p99) == (0.0, 7, 1000, 9_000_000)
    assert sum(each.failed for each in merged) == 7


def test_a_sliver_of_a_second_at_the_end_has_no_rate() -> None:
    series = [Interval(start=0.0, requests=100), Interval(start=1.0, seconds=0.02, requests=3)]
    assert [each.rate for each in bins(series)] == [100.0, None]
    assert [each.rate for each in bins([Interval(start=0.0, seconds=0.25, requests=100)])] == [
        400.0
    ]
    assert bins([]) == []


def test_seconds_without_a_reply_are_gaps_and_a_second_between_them_is_a_dot() -> None:
    latency = runs.recorded(1_000_000)
    quiet, busy = Counts(), Counts(verified=1, on_time=1, sent=1, latency=latency)
    run = runs.finished(runs.snapshots(quiet, busy, quiet, busy, busy, busy))
    [_, over_time, *_] = svgs(page(run))
    for path in lines_of(over_time)[:2]:
        assert len(re.findall(r"-?[\d.]+ [\d.]+", path)) in (2, 3)
    assert len(lines_of(over_time)) == 4  # for p50 and p99, a dot and a line each


def test_a_run_without_any_reply_has_a_throughput_of_nought_over_time() -> None:
    run = runs.finished(runs.snapshots(Counts(held=1, sent=1), Counts(timed_out=1)))
    document = page(run)
    [throughput] = svgs(document)
    [line] = lines_of(throughput)
    assert len(line.split()) == 4, "two points, at the bottom"
    assert "No latency was measured" in document


def test_a_run_of_one_second_has_dots_that_can_be_seen() -> None:
    [throughput, latency, *_] = svgs(page(runs.open_loop()))
    for svg in (throughput, latency):
        series = [each for each in svg.iter("g") if "series" in each.get("class", "")]
        assert [path.get("class") for each in series for path in each] == ["dot"] * len(series)


def test_the_percentile_curve_ends_at_the_highest_value() -> None:
    histogram = Histogram()
    histogram.record([7])
    assert percentile_curve(histogram)[-1] == pytest.approx((0.0, 0.845), abs=1e-3)
    histogram.record([0] * 99)
    assert percentile_curve(histogram)[0] == (0.0, 0.0)
    assert percentile_curve(histogram)[-1] == pytest.approx((2.0, 0.845), abs=1e-3)


def hostile_run(monkeypatch: pytest.MonkeyPatch) -> Run:
    for name in ("python_version", "python_implementation", "platform"):
        monkeypatch.setattr(platform, name, lambda: HOSTILE)
    monkeypatch.setattr(Traffic, "describe", lambda _: HOSTILE)
    monkeypatch.setattr(Run, "notes", property(lambda _: [HOSTILE, f"{HOSTILE}: {HOSTILE}"]))
    run = runs.failed()
    payload = HOSTILE.encode(errors="surrogateescape")
    run.tally.counts.errors.update({HOSTILE: 4})
    run.tally.mismatches.append(Mismatch(3, HOSTILE, payload, payload, b"<script>"))
    return replace(
        run,
        plan=replace(run.plan, traffic=Traffic(expect=HOSTILE)),
        target=Address(HOSTILE, 1, path=HOSTILE),
        verdict=replace(run.verdict, text=f"{HOSTILE}: {HOSTILE}"),
    )


def test_nothing_from_outside_is_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    harmless = Reader(page(runs.failed()))
    document = page(hostile_run(monkeypatch))
    reader = Reader(document)
    assert "<script" not in document
    names = [name for name, _ in reader.elements]
    assert names.count("svg") == [name for name, _ in harmless.elements].count("svg")
    assert names.count("title") == 1 + len(re.findall("<rect[^>]*><title>", document))
    assert reader.text.count("<script>alert('1')</script>") >= 9, "it can be read all the same"
    labels = [svg.get("aria-label", "") for svg in svgs(document)]
    assert labels
    assert all("<script>alert('1')" in label for label in labels)
    document.encode()  # nothing is left that no file takes
    assert not re.search("[\x00\u202e]", document)


def test_nothing_from_outside_is_markup_inside_of_a_chart() -> None:
    axis = Axis(0.0, 1.0, [(0.0, HOSTILE), (1.0, "1")], HOSTILE)
    line = Line(HOSTILE, [(0.0, 0.0), (1.0, 1.0)])
    drawn = chart([line], axis, axis, label=HOSTILE, tips=[Tip(0.0, 1.0, HOSTILE)])
    assert "<script" not in drawn
    svg = ET.fromstring(drawn)
    shown = html_charts.visible(HOSTILE)
    assert svg.get("aria-label") == shown
    texts = [each.text for each in svg.iter() if each.tag in ("text", "title")]
    assert texts.count(shown) == 3, "two labels and the tip"
    assert "".join(each or "" for each in texts[-5:-1]) in shown, "a long title is broken"
    assert {each.tag for each in svg.iter()} == {"svg", "g", "path", "rect", "text", "title"}


def test_text_without_end_is_cut() -> None:
    run = replace(runs.fine(), target=Address("h", 1, path="x" * 100_000))
    assert len(page(run)) < LIMIT


def test_thresholds_are_told_with_what_was_measured() -> None:
    run = runs.finished(runs.fine().tally, thresholds=("p99>5ms", "wrong>0"))
    words = Reader(page(run)).words
    assert "Thresholds fails if measured p99 > 5ms FAILED 10.0 ms wrong > 0 ok 0" in words


def test_stages_are_told() -> None:
    plan = Plan(duration=3.0, stages=((1.0, 10.0), (2.0, 20.0)))
    tally = Tally()
    tally.add(Snapshot(phase=Phase.DONE, elapsed=0.0, counts=Counts()))
    words = Reader(page(runs.finished(tally, plan))).words
    assert "Stages 1.00 s to 10/s, 2.00 s to 20/s" in words


def test_the_command_writes_the_page_beside_the_figures(tmp_path: Path, address: Target) -> None:
    html, json = tmp_path / "run.html", tmp_path / "run.json"
    ended = call(
        *("-t", str(address), "-c", "5", "-d", "0.3", "--html", str(html), "--json", str(json))
    )
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.endswith("OK: every reply verified\n"), "the summary is printed all the same"
    assert str(address) in Reader(html.read_text()).words
    assert len(svgs(html.read_text())) == 4
    assert json.stat().st_size > 0


def test_that_nobody_listens_is_in_the_page_too(tmp_path: Path, refusing: Target) -> None:
    path = tmp_path / "run.html"
    assert call("-t", str(refusing), "-c", "3", "--html", str(path)).code == 4
    words = Reader(path.read_text()).words
    assert "no connection could be made" in words
    assert "connect: refused 3" in words


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("/nowhere/at/all.html", "loadgen: --html: cannot write /nowhere/at/all.html: "),
        ("/", "loadgen: --html: cannot write /: Is a directory"),
    ],
)
def test_a_page_that_could_not_be_written_is_noticed_before_the_run(path: str, line: str) -> None:
    ended = call("--html", path)
    assert ended.code == 2
    assert ended.line.startswith(line)


def test_a_page_that_cannot_be_written_after_the_run_costs_no_summary(
    monkeypatch: pytest.MonkeyPatch, address: Target
) -> None:
    monkeypatch.setattr("loadgen.report.files.check_writable", lambda _: None)
    ended = call("-t", str(address), "-c", "2", "-d", "0.1", "--html", "/nowhere/run.html")
    assert ended.code == 1
    assert ended.out.endswith("OK: every reply verified\n")
    assert ended.err == "loadgen: cannot write /nowhere/run.html: No such file or directory\n"


def test_the_command_starts_without_what_draws_charts() -> None:
    program = "import sys, loadgen.cli; sys.exit('pygal' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_drawing_leaves_no_finder_behind_that_later_imports_warn_of() -> None:
    program = (
        "import sys\n"
        "from loadgen.report.html_charts import Axis, Line, chart\n"
        "axis = Axis(0.0, 1.0, [(0.0, '0')])\n"
        "chart([Line('', [(0.0, 1.0)])], axis, axis, label='')\n"
        "assert 'pygal' in sys.modules\n"
        "sys.exit(not all(hasattr(each, 'find_spec') for each in sys.meta_path))\n"
    )
    assert subprocess.run([sys.executable, "-W", "error", "-c", program]).returncode == 0


def browse(page_file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Have the browser load a file, with a profile of its own."""
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={page_file.parent / 'profile'}", "--enable-logging=stderr"]
    command += ["--v=0", *arguments, page_file.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium")
def test_a_browser_shows_the_page_without_a_complaint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, picture = tmp_path / "run.html", tmp_path / "run.png"
    path.write_text(page(hostile_run(monkeypatch)), encoding="utf-8")
    done = browse(path, "--dump-dom")
    assert "CONSOLE" not in done.stderr
    assert done.stdout.count("<svg") == path.read_text().count("<svg") > 0
    assert "<script" not in done.stdout
    assert "differs at byte" in done.stdout
    browse(path, f"--screenshot={picture}", "--window-size=360,800")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 1_000


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium")
def test_the_browser_would_have_complained(tmp_path: Path) -> None:
    # Of what the page forbids: so silence in the test above says something.
    path = tmp_path / "run.html"
    path.write_text(page(runs.fine()).replace("<main>", "<main><script>1</script>"))
    assert "CONSOLE" in browse(path, "--dump-dom").stderr


def test_connections_that_were_replaced_are_told() -> None:
    run = runs.fine()
    run.tally.counts.reconnected = 7
    assert "0 lost, 7 replaced" in "".join(page(run))


def test_no_bytes_are_shown_as_none() -> None:
    assert _hex(b"", 0, None) == "-"

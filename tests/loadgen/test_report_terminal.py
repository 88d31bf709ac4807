"""The summary, word for word."""

from __future__ import annotations

from dataclasses import replace

from loadgen.plan import Plan
from loadgen.report.terminal import summary
from loadgen.tally import Counts, Mismatch
from loadgen.verdict import judge

from . import runs

FINE = """\
2 connections to 127.0.0.1:6789 (bundled server), 2.00 s measured

connections 2 asked   2 held   0 failed   0 lost
requests    8 sent
replies     8 verified   0 wrong   0 failed   0 missing
throughput  3 requests/s

                mean       p50       p90       p99     p99.9    p99.99       max
latency      3.63 ms   3.00 ms   4.00 ms   10.0 ms   10.0 ms   10.0 ms   10.0 ms
connect       600 us    500 us    700 us    700 us    700 us    700 us    700 us

OK: every reply verified"""

FAILED = """\
2 connections to 127.0.0.1:6789, 1.00 s measured

connections 2 asked   1 held   1 failed   1 lost
requests    5 sent
replies     2 verified   1 wrong   1 failed   1 missing
throughput  2 requests/s

                mean       p50       p90       p99     p99.9    p99.99       max
latency      1.50 ms   1.00 ms   2.00 ms   2.00 ms   2.00 ms   2.00 ms   2.00 ms
connect       500 us    500 us    500 us    500 us    500 us    500 us    500 us

errors
          3  wrong reply
          2  closed by the server
          1  connect: Connection refused

wrong replies, the first few (hex)
  connection 2
    sent      3030303033616263
    expected  3030303033636261
    got       3030303033616263

FAILED: 1 wrong replies, 1 failed requests, 1 requests without a reply, 1
connections not made, 1 connections lost"""

INTERRUPTED = """\
2 connections to 127.0.0.1:6789 (bundled server), 0 s measured

connections 2 asked   1 held   0 failed   0 lost
requests    0 sent
replies     0 verified   0 wrong   0 failed   0 missing
throughput  0 requests/s

                mean       p50       p90       p99     p99.9    p99.99       max
latency            -         -         -         -         -         -         -
connect            -         -         -         -         -         -         -

INTERRUPTED: every reply so far verified"""


def test_a_fine_run() -> None:
    assert summary(runs.fine()) == FINE


def test_a_failed_run_names_its_errors_and_shows_wrong_replies() -> None:
    assert summary(runs.failed()) == FAILED


def test_an_interrupted_run_reports_what_there_is() -> None:
    assert summary(runs.interrupted_while_connecting()) == INTERRUPTED


def test_long_frames_are_shown_by_their_beginning() -> None:
    mismatch = Mismatch(1, b"x" * 20, b"y" * 21, b"z" * 100_004)
    text = summary(runs.finished(runs.snapshots(Counts(held=1, wrong=1), mismatches=[mismatch])))
    assert "    sent      " + "78" * 20 + "\n" in text
    assert "    expected  " + "79" * 20 + "... and 1 bytes more\n" in text
    assert "    got       " + "7a" * 20 + "... and 99,984 bytes more\n" in text


def test_no_line_is_wider_than_80_columns_whatever_the_figures() -> None:
    many = 234_567_890
    counts = Counts(
        held=25_000,
        failed_to_connect=25_000,
        lost=25_000,
        sent=many,
        verified=many,
        on_time=many,
        wrong=25_000,
        failed=25_000,
        timed_out=25_000,
        latency=runs.recorded(123, 12_345, 1_234_567, 999_949_999, 123_456_789_012),
        connect=runs.recorded(99_999),
    )
    counts.errors["connect: Address family not supported by protocol"] = 25_000
    mismatch = Mismatch(25_000, b"99999" + b"x" * 99_999, b"y" * 100_004, b"z" * 65_536)
    run = runs.finished(runs.snapshots(counts, mismatches=[mismatch] * 10))
    run = replace(run, plan=Plan(connections=25_000), verdict=judge(counts, interrupted=True))
    lines = summary(run).splitlines()
    assert max(map(len, lines)) <= 80
    assert "INTERRUPTED: 25,000 wrong replies" in lines[-2]

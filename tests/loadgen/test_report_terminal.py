"""The summary, word for word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen import verdict
from loadgen.plan import Plan
from loadgen.report import Run
from loadgen.report.terminal import parse_percentiles, summary
from loadgen.tally import Counts, Mismatch
from loadgen.verdict import judge

from . import runs

FINE = """\
2 connections to 127.0.0.1:6789 (bundled server), 2.00 s measured
closed loop

connections 2 asked   2 held   0 failed   0 lost
requests    8 sent
replies     8 verified   0 wrong   0 failed   0 missing
throughput  3 requests/s
loader      1 worker 38 % of a core, 2.0 in flight

                mean       p50       p90       p99     p99.9    p99.99       max
latency      3.63 ms   3.00 ms   4.00 ms   10.0 ms   10.0 ms   10.0 ms   10.0 ms
connect       600 us    500 us    700 us    700 us    700 us    700 us    700 us

NOTE: in a closed loop nothing more is sent while the server stalls, so a stall
counts once a connection; use --rate for the latency that users see

OK: every reply verified"""

OPEN_LOOP = """\
2 connections to 127.0.0.1:6789, 1.00 s measured
open loop, 1,000 requests/s, Poisson arrivals

connections 2 asked   2 held   0 failed   0 lost
requests    1,000 planned   990 sent   5 late   10 unsent
replies     990 verified   0 wrong   0 failed   0 missing
throughput  990 requests/s
loader      1 worker 30 % of a core, 1.0 in flight, schedule lag p99 30.0 us

                mean       p50       p90       p99     p99.9    p99.99       max
latency      2.02 ms   2.00 ms   2.00 ms   2.00 ms   4.00 ms   4.00 ms   4.00 ms
service      1.01 ms   1.00 ms   1.00 ms   1.00 ms   2.00 ms   2.00 ms   2.00 ms
  server      950 us    900 us   1.00 ms   1.00 ms   1.00 ms   1.00 ms   1.00 ms
  loader     15.0 us   10.0 us   20.0 us   20.0 us   20.0 us   20.0 us   20.0 us
connect       600 us    500 us    700 us    700 us    700 us    700 us    700 us
latency: since a request was due; service: since it was sent
server, loader: until a reply was here, until it was read; 2 sampled

OK: every reply verified"""

RATE_MISSED = """\
RATE MISSED: 500 of 1,000 requests/s were sent, 500 were not: all connections
were waiting for replies; use more --conns, or the server is at its limit

OK: every reply verified; 50.0 % of the requests planned were sent"""

LOADER_BOUND = """\
LOADER-BOUND: its worker used 97 % of a core; half of the replies waited 400 us
for it after the server's 200 us: use fewer connections, a lower rate, or more
machines

NOTE: in a closed loop nothing more is sent while the server stalls, so a stall
counts once a connection; use --rate for the latency that users see

OK: every reply verified"""

FAILED = """\
2 connections to 127.0.0.1:6789, 1.00 s measured
closed loop

connections 2 asked   1 held   1 failed   1 lost
requests    5 sent
replies     2 verified   1 wrong   1 failed   1 missing
throughput  2 requests/s
loader      1 worker 0 % of a core, 0.0 in flight

                mean       p50       p90       p99     p99.9    p99.99       max
latency      1.50 ms   1.00 ms   2.00 ms   2.00 ms   2.00 ms   2.00 ms   2.00 ms
connect       500 us    500 us    500 us    500 us    500 us    500 us    500 us

errors
          3  wrong payload
          2  EOF
          1  connect: refused

wrong replies, in hex: how the request begins, and the reply from where it
differs
  conn                   byte  sent              expected        got
     2 wrong payload        5  3030303033616263  636261          616263

NOTE: in a closed loop nothing more is sent while the server stalls, so a stall
counts once a connection; use --rate for the latency that users see

FAILED: 1 wrong reply, 1 failed request, 1 request without a reply, 1 connection
not made, 1 connection lost"""

THRESHOLDS = """\
thresholds  fails if           measured
  ok        p99.9 > 20ms        10.0 ms
  FAILED    p99 >= 5ms          10.0 ms
  ok        errors > 0.1%        0.00 %
  FAILED    lag.p99 > 1ms  not measured
  FAILED    sent < 1k                 8

FAILED: 3 of 5 thresholds: p99 10.0 ms >= 5ms, lag.p99 was not measured, sent 8
< 1k"""

INTERRUPTED = """\
2 connections to 127.0.0.1:6789 (bundled server), 0 s measured
closed loop

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


def test_an_open_loop_tells_what_was_planned_and_counts_from_then() -> None:
    assert summary(runs.open_loop()) == OPEN_LOOP


def test_a_rate_that_was_missed_is_said_with_what_to_do() -> None:
    assert summary(runs.rate_missed()).endswith(f"\n\n{RATE_MISSED}")


def test_figures_of_the_loader_are_not_passed_off_as_the_server_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verdict, "usable_cores", lambda: 2)
    assert summary(runs.loader_bound()).endswith(f"\n\n{LOADER_BOUND}")


@pytest.mark.parametrize("make", [runs.fine, runs.open_loop, runs.rate_missed, runs.loader_bound])
def test_a_run_without_faults_has_less_than_thirty_lines(make: Callable[[], Run]) -> None:
    assert len(summary(make()).splitlines()) < 30


@pytest.mark.parametrize(
    ("plan", "line"),
    [
        (Plan(pipeline=8, think=0.05), "closed loop, 8 in flight each, 50.0 ms between"),
        (Plan(active=7, warmup=2.0), "closed loop, 7 active, 2.00 s warm-up before"),
        (Plan(requests_per_connection=1000), "closed loop, 1,000 a connection"),
        (Plan(rate=0.5), "open loop, 0.5 requests/s"),
        (
            Plan(duration=40.0, stages=((10.0, 10_000.0), (30.0, 50_000.0))),
            "open loop, 0/s to 10,000/s in 10.0 s, 50,000/s in 30.0 s",
        ),
    ],
)
def test_the_second_line_says_what_was_done(plan: Plan, line: str) -> None:
    assert summary(runs.finished(runs.snapshots(Counts(held=50)), plan)).splitlines()[1] == line


def test_several_workers_are_told_with_the_share_of_each() -> None:
    run = runs.finished(runs.fine().tally, workers=2)
    assert "loader      2 workers, each 19 % of a core, 2.0 in flight\n" in summary(run)


def test_replacements_are_told_where_there_were_any() -> None:
    counts = Counts(held=2, sent=5, verified=5, reconnected=3)
    text = summary(runs.finished(runs.snapshots(counts)))
    assert "2 held   0 failed   0 lost   3 replaced\n" in text


def test_percentiles_are_those_asked_for_in_their_order() -> None:
    lines = summary(runs.fine(), [99.9, 1, 12.5]).splitlines()
    assert lines[9:12] == [
        "                mean     p99.9        p1     p12.5       max",
        "latency      3.63 ms   10.0 ms   1.00 ms   1.00 ms   10.0 ms",
        "connect       600 us    700 us    500 us    500 us    700 us",
    ]


def test_percentiles_that_do_not_fit_stand_in_a_table_below() -> None:
    lines = summary(runs.fine(), parse_percentiles("50,75,90,95,99,99.9,99.99")).splitlines()
    assert lines[9:16] == [
        "                mean       p50       p75       p90       p95       p99     p99.9",
        "latency      3.63 ms   3.00 ms   4.00 ms   4.00 ms   10.0 ms   10.0 ms   10.0 ms",
        "connect       600 us    500 us    700 us    700 us    700 us    700 us    700 us",
        "",
        "              p99.99       max",
        "latency      10.0 ms   10.0 ms",
        "connect       700 us    700 us",
    ]


@given(st.lists(st.decimals("0.0001", "99.9999", places=4), min_size=1, max_size=19, unique=True))
def test_every_percentile_that_is_taken_has_a_column_of_its_own(shares: list[Decimal]) -> None:
    percentiles = parse_percentiles(",".join(f"{share:f}" for share in shares))
    assert list(percentiles) == [float(share) for share in shares]
    lines = summary(runs.fine(), percentiles).splitlines()
    assert max(map(len, lines)) <= 80
    names = [
        word for line in lines for word in line.split() if word[0] == "p" and word[1:2].isdigit()
    ]
    assert [float(name[1:]) for name in names] == list(percentiles)


def test_a_percentile_named_twice_is_shown_once() -> None:
    assert parse_percentiles("50, 99.0,50,99") == (50.0, 99.0)


@pytest.mark.parametrize(
    "text",
    ["", "fifty", "50,", "p50", "0", "0.0", "100", "-1", "nan", "1e1", "99.99999", "½", "50;99"],
)
def test_what_is_no_percentile_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no percentile: expected"):
        parse_percentiles(text)


def test_more_percentiles_than_anybody_reads_are_refused() -> None:
    parse_percentiles(",".join(map(str, range(1, 20))))
    with pytest.raises(ValueError, match="20 percentiles: at most 19 are shown"):
        parse_percentiles(",".join(map(str, range(1, 21))))


def test_a_failed_run_names_its_errors_and_shows_wrong_replies() -> None:
    assert summary(runs.failed()) == FAILED


def test_an_interrupted_run_reports_what_there_is() -> None:
    assert summary(runs.interrupted_while_connecting()) == INTERRUPTED


def test_thresholds_stand_above_the_verdict_with_what_was_measured() -> None:
    expressions = ("p99.9>20ms", "p99>=5ms", "errors>0.1%", "lag.p99>1ms", "sent<1k")
    run = runs.finished(runs.fine().tally, thresholds=expressions)
    assert summary(run).endswith(f"\n\n{THRESHOLDS}")


def shown(sent: bytes, expected: bytes, got: bytes, number: int = 1) -> str:
    mismatches = [Mismatch(n, "wrong payload", sent, expected, got) for n in range(1, number + 1)]
    return summary(runs.finished(runs.snapshots(Counts(held=1, wrong=1), mismatches=mismatches)))


def test_long_replies_are_shown_from_where_they_differ() -> None:
    text = shown(b"x" * 20, b"y" * 300 + b"abc", b"y" * 300 + b"\xff" * 99_000)
    assert (
        "     1 wrong payload      300  7878787878787878  616263          ffffffffffffff\n" in text
    )


def test_a_reply_that_nobody_asked_for_was_no_reply_to_anything() -> None:
    text = shown(b"", b"", b"00003abc")
    assert "        0  -                 -               30303030336162\n" in text


def test_all_wrong_replies_that_were_kept_are_shown() -> None:
    lines = shown(b"a", b"b", b"c", number=10).splitlines()
    assert [line.split()[0] for line in lines if " wrong payload " in line] == [
        str(number) for number in range(1, 11)
    ]


@pytest.mark.parametrize("rate", [None, 1e6], ids=["closed", "open"])
@pytest.mark.parametrize("byte", [b"y", b"\xff"], ids=["text", "hex"])
def test_no_line_is_wider_than_80_columns_whatever_the_figures(
    rate: float | None, byte: bytes
) -> None:
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
        unsent=many if rate else 0,
        late=many if rate else 0,
        reconnected=25_000,
        service=runs.recorded(123) if rate else Counter(),
        wait=runs.recorded(999_949_999),
        lag=runs.recorded(999_949_999) if rate else Counter(),
        in_flight_seconds=234_567.0,
        cpu_seconds=1.0,
        latency=runs.recorded(123, 12_345, 1_234_567, 999_949_999, 123_456_789_012),
        connect=runs.recorded(99_999),
    )
    counts.errors["connect: Address family not supported by protocol"] = 25_000
    mismatch = Mismatch(25_000, "wrong payload", b"99999", byte * 100_004, b"z" * 65_536)
    run = runs.finished(
        runs.snapshots(counts, mismatches=[mismatch] * 10),
        thresholds=(
            "service.p99.999999999 >= 99999999h59m59.999999s",
            f"max > {'1h' * 100}",
            "rate < 234567889.999999999",
            "server.p99>1ms",
        ),
    )
    plan = Plan(connections=25_000, rate=rate)
    run = replace(run, plan=plan, verdict=judge(counts, interrupted=True))
    lines = summary(run).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-2].startswith("INTERRUPTED: 25,000 wrong replies")

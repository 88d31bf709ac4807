"""Runs on hosts in memory: the steps they take together, and what is lost."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from loadgen.clocks import Sample
from loadgen.cluster import Cluster, engines_of
from loadgen.hosts import HostFigures, host_notes, losses
from loadgen.link import Event, Heard
from loadgen.plan import ClusterPlan, Plan, PlanError, parse_scheduler
from loadgen.report import html
from loadgen.report import json as json_report
from loadgen.report.terminal import summary
from loadgen.running import Site
from loadgen.share import Told
from loadgen.tally import Counts, Phase, Snapshot, Tally
from loadgen.verdict import examine, judge
from nbnet.command import CommandError
from nbnet.notation import Address

from . import runs
from .fake_hosts import TRIP, FakeHost, FakeLink
from .runs import recorded
from .schema import assert_valid

SECOND = 10**9
TARGET = Address("10.0.0.7", 6789)


class Ran:
    """A run to its end, and what it told."""

    def __init__(
        self,
        *hosts: FakeHost,
        plan: Plan | None = None,
        act: Callable[[FakeLink, Cluster, Snapshot], None] = lambda *_: None,
        workers: int | None = 1,
        before: Callable[[FakeLink, Cluster], None] = lambda *_: None,
        **cluster: Any,
    ) -> None:
        self.link = FakeLink(*hosts)
        self.lines: list[str] = []
        self.tally = Tally()
        self.cluster = Cluster(
            plan or Plan(connections=40, duration=5.0),
            Site(target=TARGET, workers=workers),
            ClusterPlan(scheduler="tcp://s:1", **cluster),
            tell=self.lines.append,
            link=self.link,
            clock=self.link.clock,
        )
        with self.cluster:
            before(self.link, self.cluster)
            for snapshot in self.cluster:
                self.tally.add(snapshot)
                act(self.link, self.cluster, snapshot)
        self.figures = self.cluster.figures
        self.losses = losses(self.figures)


def hosts(number: int = 2, **settings: Any) -> list[FakeHost]:
    return [FakeHost(f"10.0.0.{each + 1}", **settings) for each in range(number)]


# What hosts do together ------------------------------------------------------


def test_the_merged_histogram_is_the_sum_of_the_parts() -> None:
    rng = random.Random(1)
    three = hosts(3)
    for host in three:
        host.parts = [
            Counts(
                sent=50,
                verified=50,
                latency=recorded(*(rng.randrange(10**9) for _ in range(50))),
                in_flight_seconds=rng.random(),
            )
            for _ in range(8)
        ]
    ran = Ran(*three)
    whole, parts = Counts(), [Counts() for _ in three]
    for host, part in zip(three, parts, strict=True):
        for each in host.parts:
            part.add(each)
            whole.add(each)
    assert [figures.counts for figures in ran.figures] == parts
    assert ran.tally.counts.latency == whole.latency
    assert ran.tally.counts.latency.total() == 3 * 8 * 50 == ran.tally.counts.verified
    assert ran.losses == []


def test_the_shares_of_all_hosts_are_the_plan() -> None:
    three = hosts(3)
    ran = Ran(*three, plan=Plan(connections=100, duration=5.0, requests=1000), workers=2)
    shares = [host.share for host in three if host.share is not None]
    plans = [plan for share in shares for plan in share.plans()]
    assert ran.cluster.workers == len(plans) == 6
    assert sum(plan.connections for plan in plans) == 100
    assert sum(plan.requests or 0 for plan in plans) == 1000
    assert [share.first for share in shares] == [0, 2, 4]


@pytest.mark.parametrize(
    ("cores", "asked", "plan", "engines"),
    [
        ([2, 8], 3, Plan(connections=10), [3, 3]),
        ([2, 8], None, Plan(connections=1000), [2, 8]),
        ([2, 8], None, Plan(connections=300), [2, 3]),
        ([4, 4], None, Plan(connections=10), [1, 1]),
        ([4, 4], None, Plan(connections=1000, requests=5), [2, 2]),
    ],
)
def test_a_host_runs_as_many_engines_as_it_has_cores_if_they_pay(
    cores: list[int], asked: int | None, plan: Plan, engines: list[int]
) -> None:
    assert engines_of(plan, cores, asked) == engines


def test_all_start_at_the_same_moment_whatever_their_clocks_say() -> None:
    three = hosts(3)
    three[1].ahead, three[2].ahead = 5_000 * SECOND, -7 * SECOND
    started_at = []
    ran = Ran(*three, act=lambda link, *_: started_at.append(link.now))
    moments = {host.started - host.ahead for host in three if host.started is not None}
    assert len(moments) == 1
    assert moments.pop() > started_at[0] - SECOND
    assert [each.clock_offset for each in ran.figures] == [0.0, 5000.0, -7.0]
    assert {each.start_within for each in ran.figures} == {TRIP / 2 / 1e9}
    assert host_notes(ran.figures) == []
    assert ran.lines == [
        "3 hosts, 3 workers: 10.0.0.1, 10.0.0.2, 10.0.0.3; clocks compared to within 1.00 ms"
    ]


def test_a_host_that_hears_the_start_too_late_is_said() -> None:
    one, other = hosts()

    def slow(link: FakeLink, *_: object) -> None:
        heard = link._answer

        def answer(function: Any, host: FakeHost, *given: Any) -> Any:
            result = heard(function, host, *given)
            late = host is other and host.started is not None
            return result + SECOND if late else result

        link._answer = answer  # type: ignore[method-assign]

    ran = Ran(one, other, before=slow)
    said = host_notes(ran.figures)
    assert len(said) == 1
    assert said[0].startswith("CLOCKS: 1 of 2 hosts may have started up to 799 ms")
    assert "(10.0.0.2)" in said[0]


def test_no_host_connects_before_all_are_prepared_nor_starts_before_all_have_connected() -> None:
    one, other = hosts()
    other.deaf = "prepared"
    ran = Ran(one, other)
    assert one.told == ["stop"]
    [loss] = ran.losses
    assert loss == (
        "host 10.0.0.2 was lost before it measured (it was not prepared in time): "
        "its figures from then on are missing"
    )
    one, other = hosts()
    other.deaf = "connect"
    ran = Ran(one, other)
    assert one.told == ["connect", "stop"]
    assert "it had not connected in time" in ran.losses[0]


def test_what_one_host_cannot_do_is_refused_before_any_connects() -> None:
    one, other = hosts()
    other.refuses = ("100000 connections are more than the limit of open files allows here", 2)
    with pytest.raises(CommandError) as raised:
        Ran(one, other)
    assert raised.value.code == 2
    assert raised.value.message.startswith("host 10.0.0.2: 100000 connections are more")
    assert one.told == other.told == ["abort"]


def test_more_engines_than_connections_are_refused() -> None:
    with pytest.raises(PlanError, match="4 workers are more than the 3 connections"):
        Ran(*hosts(), plan=Plan(connections=3), workers=2)


def test_more_hosts_than_asked_are_left_alone_and_fewer_are_refused() -> None:
    three = hosts(3)
    assert len(Ran(*three, hosts=2).figures) == 2
    assert three[2].share is None
    with pytest.raises(CommandError) as raised:
        Ran(*hosts(2), hosts=3, patience=4.0)
    assert raised.value.code == 4
    assert "2 hosts with a Dask worker after 4 s" in raised.value.message
    with pytest.raises(CommandError, match=r": 1 host with a Dask worker"):
        Ran(*hosts(1), hosts=2)
    with pytest.raises(CommandError, match="no host with a Dask worker"):
        Ran()


# Hosts that do not fit -------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"version": {"loadgen": "0.0.9"}}, "has loadgen 0.0.9 and this machine "),
        ({"version": {"python": "3.9.1"}}, "has python 3.9.1 and this machine 3."),
        ({"version": {"distributed": "2024.1.0"}}, "has distributed 2024.1.0 and this machine "),
        (
            {"survey_fails": Exception("No module named 'loadgen'")},
            "has no loadgen: install the same",
        ),
        (
            {"survey_fails": AttributeError("Can't get attribute 'survey'")},
            "has another version of loadgen",
        ),
        ({"survey_fails": TimeoutError()}, "10.0.0.2: no answer in time"),
        ({"reserve_fails": RuntimeError("another run is going on there")}, "another run is going"),
        ({"reserve_fails": RuntimeError()}, "10.0.0.2: RuntimeError"),
    ],
)
def test_a_host_that_does_not_fit_is_refused_in_a_line(
    settings: dict[str, Any], words: str
) -> None:
    one, other = hosts(1)[0], FakeHost("10.0.0.2", **settings)
    with pytest.raises(CommandError) as raised:
        Ran(one, other)
    assert words in raised.value.message
    assert "host 10.0.0.2" in raised.value.message
    assert "\n" not in raised.value.message
    assert raised.value.code == 2
    assert "connect" not in one.told


# Hosts that are lost ---------------------------------------------------------


def loses(reason: str = "its Dask worker ended") -> Callable[..., None]:
    """The last host is gone when the first snapshot has come; the others go on."""

    def act(link: FakeLink, _: Cluster, snapshot: Snapshot) -> None:
        if snapshot.elapsed == 1.0:
            link.events.appendleft(Event(list(link.there)[-1], Heard.GONE, reason))

    return act


def long_parts() -> list[Counts]:
    return [Counts(held=1, sent=3, verified=3, on_time=3) for _ in range(3)]


def test_when_a_host_is_lost_the_others_report_and_the_verdict_says_what_is_missing() -> None:
    one, other = hosts(parts=long_parts())
    one.deaf = "start"  # goes on until it is told to stop
    ran = Ran(one, other, act=loses())
    assert one.told == ["connect", "start", "stop"]
    assert other.told[-1] == "abort"
    [loss] = ran.losses
    assert loss == (
        "host 10.0.0.2 was lost after 1.00 s (its Dask worker ended): "
        "its figures from then on are missing"
    )
    assert ran.lines[-1] == loss
    assert ran.tally.counts.verified == 3, "what it told before counts"
    verdict = judge(ran.tally.counts, interrupted=False, losses=ran.losses)
    assert verdict.exit_code == 1
    assert verdict.text == f"FAILED: {loss}; every other reply verified"


def test_with_keep_going_the_others_come_to_their_end() -> None:
    one, other = hosts(parts=long_parts())
    ran = Ran(one, other, act=loses(), keep_going=True)
    assert one.told == ["connect", "start"]
    assert [each.counts.verified for each in ran.figures] == [9, 0]
    assert len(ran.losses) == 1


def test_a_host_that_is_lost_while_connecting_does_not_hold_up_those_that_keep_going() -> None:
    one, other = hosts()
    other.deaf = "connect"
    ran = Ran(one, other, keep_going=True)
    assert one.told == ["connect", "start"]
    assert ran.figures[1].lost == "it had not connected in time"


def test_what_a_lost_host_tells_later_does_not_count() -> None:
    [only] = hosts(1, parts=long_parts())

    def act(link: FakeLink, *_: object) -> None:
        link.events.appendleft(Event(only.worker, Heard.GONE, "nothing was heard of it"))

    ran = Ran(only, act=act)
    assert ran.tally.counts.verified == ran.figures[0].counts.verified == 3
    assert ran.figures[0].lost is not None


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"sum_is_wrong": True}, "what was heard of it is not all that it counted"),
        ({"deaf": "stop"}, "it had not ended in time"),
        ({"deaf": "time"}, "it could not be told to go on: no answer in time"),
    ],
)
def test_a_host_that_does_not_come_to_a_good_end_is_lost(
    settings: dict[str, Any], reason: str
) -> None:
    ran = Ran(FakeHost("10.0.0.1", **settings))
    assert ran.figures[0].lost == reason


def test_messages_that_go_missing_are_noticed() -> None:
    [only] = hosts(1, deaf="start")

    def act(link: FakeLink, *_: object) -> None:
        only.say(Told.READY, skip=2)
        link.now += 1

    def before(link: FakeLink, _: Cluster) -> None:
        del link
        only.say(Told.SNAPSHOT, Snapshot(phase=Phase.CONNECTING, elapsed=0.0, counts=Counts()))

    ran = Ran(only, act=act, before=before)
    assert ran.figures[0].lost == "2 of its messages went missing"


def test_a_process_that_ends_without_a_word_and_one_that_failed_are_lost() -> None:
    one, other = hosts(deaf="prepared")

    def before(link: FakeLink, _: Cluster) -> None:
        link.events.append(Event(one.worker, Heard.ENDED, -9))
        other.say(Told.FAILED, "an engine's process failed")

    ran = Ran(one, other, before=before, keep_going=True)
    assert [each.lost for each in ran.figures] == [
        "its process ended with exit code -9",
        "an engine's process failed, see the log of its Dask worker",
    ]


def test_a_host_that_is_gone_after_it_told_everything_is_not_lost() -> None:
    [only] = hosts(1, deaf="start")

    def before(link: FakeLink, _: Cluster) -> None:
        only.say(Told.DONE, (0, Counts()))
        link.events.append(Event(only.worker, Heard.GONE, "its Dask worker ended"))

    assert Ran(only, before=before).losses == []


def test_a_host_that_does_not_answer_does_not_hold_up_the_others() -> None:
    one, other = hosts(deaf="time")
    other.deaf = ""
    ran = Ran(one, other, keep_going=True)
    assert [each.lost for each in ran.figures] == [
        "it could not be told to go on: no answer in time",
        None,
    ]
    asked = ran.link.asked.count(one.worker)
    assert asked <= 2, "once a comparison of clocks"


def test_a_host_whose_clock_is_not_known_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = hosts()
    asked = FakeLink.time

    def time(link: FakeLink, addresses: list[str], seconds: float) -> dict[str, Any]:
        answers = asked(link, addresses, seconds)
        return {each: TimeoutError() if each == one.worker else answers[each] for each in answers}

    monkeypatch.setattr(FakeLink, "time", time)
    ran = Ran(one, other, keep_going=True)
    assert [each.lost for each in ran.figures] == ["its clock could not be compared", None]
    assert one.started is None
    assert other.started is not None


# While it goes on ------------------------------------------------------------


def test_stopping_has_all_hosts_report() -> None:
    both = hosts(deaf="start")
    for host in both:
        host.parts = []
    stopped: list[bool] = []

    def before(link: FakeLink, cluster: Cluster) -> None:
        following = link.next

        def next_(seconds: float) -> Event | None:
            event = following(seconds)
            if event is None and not stopped:
                stopped.append(True)
                cluster.stop()
            return event

        link.next = next_  # type: ignore[method-assign]

    ran = Ran(*both, before=before)
    assert [host.told for host in both] == [["connect", "start", "stop"]] * 2
    assert ran.losses == []


def test_a_host_that_does_not_stop_is_lost_after_its_time() -> None:
    [only] = hosts(1, deaf="stop")
    ran = Ran(only, before=lambda _, cluster: cluster.stop())
    assert ran.figures[0].lost is not None
    assert ran.figures[0].lost.endswith("in time")


def test_silence_is_said_and_so_is_its_end_and_drift_is_noted() -> None:
    [only] = hosts(1, deaf="start")

    steady: list[Sample] = []

    def before(link: FakeLink, cluster: Cluster) -> None:
        following = link.next
        news = [
            Event(only.worker, Heard.SILENT, 0.85),
            Event(only.worker, Heard.AGAIN),
            Event("tcp://10.9.9.9:1", Heard.GONE, "of no concern"),
            Event(only.worker, Heard.BEAT),
        ]

        def next_(seconds: float) -> Event | None:
            event = following(seconds)
            if event is None and only.started is not None:
                if news:
                    return news.pop(0)
                if "stop" not in only.told:
                    sample = link.time([only.worker], 1.0)[only.worker]
                    if not steady:
                        steady.append(sample)  # it says the same as before
                        return Event(only.worker, Heard.TIME, sample)
                    drifted = sample._replace(theirs=sample.theirs + 50 * 10**6)
                    cluster.stop()
                    return Event(only.worker, Heard.TIME, drifted)
            return event

        link.next = next_  # type: ignore[method-assign]

    ran = Ran(only, before=before)
    assert ran.lines[1:] == [
        "host 10.0.0.1: nothing heard for 850 ms",
        "host 10.0.0.1: heard again",
    ]
    assert ran.figures[0].clock_drift == 0.05
    assert ran.losses == []


def test_an_error_in_the_parent_ends_all_hosts() -> None:
    both = hosts()

    def act(*_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Ran(*both, act=act)
    assert both[0].told == ["connect", "start", "abort"]


# Reports ---------------------------------------------------------------------


def test_the_summary_shows_each_host_and_which_was_lost() -> None:
    text = summary(runs.on_hosts())
    assert (
        """
hosts       workers  held  verified  requests/s      p99   cpu      start
  10.0.0.1        1    25     1,000       1,000  1.00 ms  50 %  +-1.20 ms
  10.0.0.2        1    25     2,000       4,000  2.00 ms     -       lost
"""
        in text
    )
    assert text.endswith(
        "FAILED: host 10.0.0.2 was lost after 500 ms (its Dask worker ended): its figures\n"
        "from then on are missing; every other reply verified"
    )
    assert all(len(line) <= 80 for line in text.splitlines())


def test_of_many_hosts_the_summary_shows_the_lost_and_the_slowest() -> None:
    lines = summary(runs.on_hosts(40)).splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("hosts "))
    shown = [line.split()[0] for line in lines[first + 1 : first + 17]]
    assert shown == ["10.0.0.40", *(f"10.0.0.{number}" for number in range(39, 24, -1))]
    assert lines[first + 17] == "  and 24 more, with a lower p99: see --json"


def test_the_document_has_each_host() -> None:
    document = json_report.document(runs.on_hosts())
    assert_valid(document)
    one, other = document["hosts"]
    assert one == {
        "host": "10.0.0.1",
        "name": "load-1",
        "workers": 1,
        "cores": 2,
        "duration_seconds": 1.0,
        "held": 25,
        "requests": 1000,
        "wrong": 0,
        "failed": 0,
        "timed_out": 0,
        "rate": 1000.0,
        "p50": one["p99"],
        "p99": pytest.approx(0.001, rel=0.001),
        "max": one["p99"],
        "cpu_percent": 50.0,
        "clock_offset_seconds": 12.5,
        "clock_drift_seconds": 0.0,
        "start_within_seconds": 0.0012,
        "lost": None,
    }
    assert (other["lost"], other["cpu_percent"]) == ("its Dask worker ended", None)
    assert "hosts" not in json_report.document(runs.fine()), "of a run on one machine"


def test_the_page_has_each_host() -> None:
    page = html.page(runs.on_hosts())
    assert '<th scope="row">10.0.0.2</th><td>1</td><td>25</td><td>2,000</td>' in page
    assert "<td><b>LOST</b></td>" in page
    assert "<h2>Hosts</h2>" not in html.page(runs.fine())


def test_advice_to_a_busy_loader_is_about_hosts() -> None:
    busy = runs.loader_bound().tally
    loader = examine(busy, 1, hosts=2)
    assert loader.reason is not None
    assert loader.reason.endswith("use more --workers where a host has cores left, or more hosts")


# Words -----------------------------------------------------------------------


def test_figures_without_a_measured_time_are_none() -> None:
    host = HostFigures(host="10.0.0.1")
    assert (host.rate, host.cpu_percent, len(host.latency)) == (0.0, None, 0)


@pytest.mark.parametrize("text", ["", "a", "foo://a:1", "tcp://", "tls://tls://a:1", "unix:/x"])
def test_what_is_no_scheduler_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no address of a scheduler: expected one like tcp://"):
        parse_scheduler(text)


def test_an_interrupted_run_says_what_is_missing_too() -> None:
    verdict = judge(Counts(held=1, sent=1, verified=1), interrupted=True, losses=["host a is gone"])
    assert verdict.exit_code == 130
    assert verdict.text == "INTERRUPTED: every reply so far verified; host a is gone"

"""What targets are taken, which load there is, and what the phases come to."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest

from loadgen import chaos as module
from loadgen.chaos import (
    Chaos,
    ChaosRun,
    Phases,
    TargetError,
    abusers_messages,
    check_machine,
    largest_message,
    local_target,
    plan_of,
)
from loadgen.chaos_storm import Outcome
from loadgen.plan import Plan, PlanError
from loadgen.report import Run
from loadgen.tally import Counts, Phase, Snapshot
from loadgen.traffic import Sizes, Traffic
from nbnet.machine import SocketAddress
from nbnet.notation import Address, Target

from .runs import MS, failed, fine, finished, recorded, snapshots


def resolving(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Have every name mean these addresses."""
    monkeypatch.setattr(
        module,
        "look_up",
        lambda target: [SocketAddress(2, (host, target.port)) for host in hosts],
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
def test_addresses_of_this_machine_are_taken(host: str) -> None:
    assert local_target(Address(host, 80)) == Address(host, 80)


def test_a_unix_socket_is_of_this_machine() -> None:
    assert local_target(Address("", 0, path="/run/x")) == Address("", 0, path="/run/x")


@pytest.mark.parametrize("host", ["192.0.2.1", "0.0.0.0", "2001:db8::1", "::ffff:192.0.2.1"])
def test_other_addresses_are_refused(host: str) -> None:
    with pytest.raises(TargetError, match=r"is not this machine: give --i-own-this-target"):
        local_target(Address(host, 80))


def test_a_name_is_refused_if_one_of_its_addresses_is_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolving(monkeypatch, "127.0.0.1", "192.0.2.1")
    with pytest.raises(TargetError, match=r"^rebind\.test:80 \(192\.0\.2\.1\) is not this machine"):
        local_target(Address("rebind.test", 80))


def test_a_name_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, "127.0.0.9")
    assert local_target(Address("here.test", 80)) == Address("127.0.0.9", 80)


def test_of_several_addresses_one_that_listens_is_taken(
    monkeypatch: pytest.MonkeyPatch, address: Target
) -> None:
    resolving(monkeypatch, "127.0.0.9", address.host)
    assert local_target(Address("here.test", address.port)).host == address.host


def test_whoever_owns_a_target_may_name_it() -> None:
    assert local_target(Address("192.0.2.1", 80), owned=True) == Address("192.0.2.1", 80)


def test_tls_is_refused() -> None:
    with pytest.raises(TargetError, match="give a target without TLS"):
        local_target(Address("127.0.0.1", 80, tls=True), owned=True)


# The load and the abusers ----------------------------------------------------------------


def test_the_load_has_a_rate_unless_one_is_described() -> None:
    assert plan_of(Plan(), Chaos()) == Plan(rate=2000.0, duration=16.0)
    assert plan_of(Plan(rate=5.0), Chaos()).rate == 5.0
    assert plan_of(Plan(pipeline=2), Chaos()).rate is None


@pytest.mark.parametrize(
    "plan", [Plan(duration=3.0), Plan(requests=5), Plan(stages=((10.0, 5.0),), duration=10.0)]
)
def test_the_phases_are_the_duration(plan: Plan) -> None:
    with pytest.raises(PlanError, match="the phases are the duration"):
        plan_of(plan, Chaos())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"abusers": 0}, "0 abusers of a kind: 1 to 1,000 are possible"),
        ({"abusers": 1001}, "1001 abusers of a kind"),
        ({"calm": 0.0}, "a calm of 0 s"),
        ({"max_frame": 100_000}, "a longest frame of 100000"),
        ({"max_slowdown": 0.5}, "a slowdown of 0.5"),
        ({"max_slowdown": math.nan}, "a slowdown of nan"),
        ({"abusers": 1000}, "10,000 abusers begin at 500/s at most, .* has room for 3,000"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        Chaos(**changes)


def test_more_abusers_than_open_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "raise_fd_limit", lambda: 132)
    check_machine(Plan(), Chaos(abusers=5), embedded=True)
    with pytest.raises(PlanError, match=r"60 abusers are more .*: at most 5 of each kind"):
        check_machine(Plan(), Chaos(abusers=6), embedded=True)


def test_abusers_send_requests_of_their_own_that_differ() -> None:
    messages = abusers_messages(Traffic(expect="echo"), seed=1)
    assert len({message.frame for message in messages}) == len(messages) > 100
    assert all(message.frame == message.expected for message in messages)


@pytest.mark.parametrize(
    "traffic",
    [
        Traffic(payload=b"xyz"),
        Traffic(payloads=(b"one", b"two")),
        Traffic(payload=b"xyz", expect="nbnet.handlers:reverse"),
        Traffic(sizes=Sizes(7, 7)),
    ],
)
def test_abusers_send_what_the_load_names(traffic: Traffic) -> None:
    assert abusers_messages(traffic, seed=1) == traffic.build(1, 1)


def test_the_longest_request_is_left_out_where_no_reply_can_be_told() -> None:
    known = largest_message(Traffic(), seed=1)
    assert known is not None
    assert len(known.frame) == 100_004
    assert largest_message(Traffic(expect="json:loads"), seed=1) is None


# What it comes to ------------------------------------------------------------------------


def phases_of(*seconds: tuple[float, Counts], chaos: Chaos | None = None) -> Phases:
    """The phases after such snapshots, each with the seconds at which it was made."""
    phases = Phases(chaos or Chaos(calm=1, storm=1, recovery=1), lambda: None)
    for elapsed, counts in seconds:
        phases.watch(Snapshot(phase=Phase.MEASURING, elapsed=elapsed, counts=counts))
    return phases


def served(count: int, latency: int) -> Counts:
    return Counts(verified=count, on_time=count, latency=recorded(*[latency] * count))


def chaos_run(run: Run, *outcomes: Outcome, storm: Counts, bound: float | None = None) -> ChaosRun:
    """A run with a second of calm, of storm and of recovery."""
    chaos = Chaos(calm=1, storm=1, recovery=1, max_slowdown=bound)
    calm = served(10, MS)
    phases = phases_of((1.0, calm), (2.0, storm), (3.0, calm)).phases
    return ChaosRun(chaos=chaos, run=run, embedded=True, phases=phases, outcomes=list(outcomes))


def test_snapshots_belong_to_the_phase_that_they_were_made_in() -> None:
    times = [0.25, 0.5, 0.75, 1.01, 1.25, 2.03, 2.25, 3.0]
    phases = phases_of(*((time, Counts(verified=1)) for time in times)).phases
    assert [phase.counts.verified for phase in phases] == [4, 2, 2]
    assert [phase.seconds for phase in phases] == [1.0, 1.0, 1.0]


def test_the_storm_begins_once_and_when_the_calm_phase_is_over() -> None:
    begun: list[float] = []
    phases = Phases(Chaos(calm=1), lambda: begun.append(elapsed))
    for elapsed in (0.5, 0.99, 1.0, 1.0, 1.25):
        phases.watch(Snapshot(phase=Phase.MEASURING, elapsed=elapsed, counts=Counts()))
    assert begun == [1.0]


def test_what_is_not_measured_belongs_to_no_phase() -> None:
    phases = Phases(Chaos(), lambda: pytest.fail("it begins too early"))
    for phase in (Phase.CONNECTING, Phase.READY, Phase.WARMING):
        phases.watch(Snapshot(phase=phase, elapsed=9.0, counts=Counts(held=1)))
    assert [each.counts.held for each in phases.phases] == [0, 0, 0]


def test_a_run_that_ends_early_has_shorter_phases() -> None:
    phases = phases_of((1.0, served(5, MS)), (1.5, served(5, MS))).phases
    assert [phase.seconds for phase in phases] == [1.0, 0.5, 0.0]
    assert phases[2].slowdown(phases[0]) is None


def test_slower_is_the_worse_of_p99_and_goodput() -> None:
    calm, storm, recovery = phases_of(
        (1.0, served(12, MS)), (2.0, served(12, 3 * MS)), (3.0, served(3, MS))
    ).phases
    assert storm.slowdown(calm) == pytest.approx(3.0, rel=0.02)
    assert recovery.slowdown(calm) == pytest.approx(4.0)


def test_a_phase_without_a_reply_is_infinitely_slow() -> None:
    assert chaos_run(fine(), storm=Counts()).slowdown == math.inf


def test_undisturbed_and_rightly_answered_is_fine() -> None:
    verdict = chaos_run(fine(), Outcome(name="reset", right=1), storm=served(10, MS)).verdict
    assert verdict.exit_code == 0
    assert verdict.text == (
        "OK: verified load undisturbed, every abuse answered as the protocol says"
    )


def test_a_slowdown_is_said_and_fails_only_where_there_is_a_bound() -> None:
    said = chaos_run(fine(), storm=served(10, 8 * MS)).verdict
    assert said.exit_code == 0
    assert said.text.startswith("OK: verified load undisturbed (but 8.0 times slower at worst)")
    bounded = chaos_run(fine(), storm=served(10, 8 * MS), bound=4.0).verdict
    assert bounded.exit_code == 3
    assert bounded.text.startswith("SLOWED: 8.0 times slower at worst, 4 allowed")
    assert chaos_run(fine(), storm=served(10, 8 * MS), bound=9.0).verdict.exit_code == 0


def test_a_wrong_reply_to_an_abuser_fails() -> None:
    outcome = Outcome(name="split", begun=3, right=1, wrong=2)
    verdict = chaos_run(fine(), outcome, storm=served(10, 8 * MS), bound=2.0).verdict
    assert verdict.exit_code == 1
    assert verdict.text == (
        "FAILED: verified load undisturbed; abuses answered otherwise than the protocol says: "
        "2 of split"
    )


def test_a_disturbed_load_fails() -> None:
    verdict = chaos_run(failed(), storm=served(10, MS)).verdict
    assert verdict.exit_code == 1
    assert verdict.text.startswith("FAILED: verified load disturbed (1 wrong reply, ")


def test_an_interrupted_run_says_so() -> None:
    run = finished(snapshots(served(10, MS)), interrupted=True)
    outcome = Outcome(name="split", begun=3, wrong=1)
    verdict = chaos_run(run, outcome, storm=Counts()).verdict
    assert verdict.exit_code == 130
    assert verdict.text.startswith("INTERRUPTED: every reply so far verified; abuses answered")


def test_without_any_connection_there_is_nothing_more_to_say() -> None:
    run = finished(snapshots(Counts(failed_to_connect=2, errors=Counter({"connect: refused": 2}))))
    assert run.verdict.exit_code == 4
    assert chaos_run(run, storm=Counts()).verdict == run.verdict


def test_a_snapshot_that_comes_after_a_whole_phase_was_missed_is_of_its_own_time() -> None:
    phases = phases_of((2.5, Counts(verified=1))).phases
    assert [phase.counts.verified for phase in phases] == [0, 0, 1]
    assert [phase.seconds for phase in phases] == [1.0, 1.0, 0.5]

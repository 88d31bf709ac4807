"""The process that runs the engines of a host, and the agent that looks after it; without Dask."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from loadgen import agent, children
from loadgen.host_process import own_addresses, prepare
from loadgen.plan import Plan, PlanError, TlsPlan
from loadgen.share import CONNECT, LENGTH, Share, Told
from loadgen.tally import Counts, Phase
from loadgen.traffic import Traffic, TrafficError
from loadgen.worker import START
from nbnet.command import CommandError
from nbnet.notation import Address

from .processes import children_of, is_gone, wait_until

Target = tuple[str, int]


def share(target: Target, **changes: Any) -> Share:
    """Of the second of two hosts: three engines, numbers 1 to 3 of 4."""
    plan = Plan(**({"connections": 40, "duration": 0.2, "grace": 0.2} | changes))
    return Share(plan=plan, target=Address(*target), first=1, workers=3, workers_in_all=4)


class Process:
    """It, and what it tells."""

    def __init__(self, share: Share) -> None:
        self.child = children.start("loadgen.host_process")
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.input, self.output = self.child.stdin, self.child.stdout
        self.input.write(pickle.dumps(share))
        self.input.flush()

    def hear(self) -> tuple[Told, Any]:
        (length,) = LENGTH.unpack(self.output.read(LENGTH.size))
        kind, value = pickle.loads(self.output.read(length))
        return kind, value

    def hear_until(self, wanted: Told) -> list[tuple[Told, Any]]:
        heard = [self.hear()]
        while heard[-1][0] is not wanted:
            heard.append(self.hear())
        return heard

    def say(self, word: bytes) -> None:
        self.input.write(word)
        self.input.flush()


@pytest.fixture
def begin() -> Iterator[Any]:
    begun: list[Process] = []

    def begin(share: Share) -> Process:
        begun.append(Process(share))
        return begun[-1]

    yield begin
    for process in begun:
        process.child.kill()
        children.reap(process.child)


# The process -----------------------------------------------------------------


def test_the_engines_of_a_host_go_step_by_step_and_their_sum_is_told(
    begin: Any, address: Target
) -> None:
    process = begin(share(address))
    assert process.hear() == (Told.PREPARED, None)
    process.say(CONNECT)
    connecting = process.hear_until(Told.READY)[:-1]
    assert {value.phase for _, value in connecting} <= {Phase.CONNECTING, Phase.READY}
    moment = time.monotonic_ns() + 10_000_000
    process.say(START.pack(moment))
    heard = process.hear_until(Told.DONE)
    assert time.monotonic_ns() > moment + 200_000_000
    snapshots = [value for kind, value in connecting + heard if kind is Told.SNAPSHOT]
    total = Counts()
    for each in snapshots:
        total.add(each.counts)
    assert heard[-1] == (Told.DONE, (len(snapshots), total))
    assert total.held == 30
    assert total.sent == total.verified > 30
    assert process.child.wait(10) == 0


def test_stopped_before_it_connects_it_has_counted_nothing(begin: Any, address: Target) -> None:
    process = begin(share(address))
    assert process.hear() == (Told.PREPARED, None)
    process.input.close()
    assert process.hear() == (Told.DONE, (0, Counts()))
    assert process.child.wait(10) == 0


def test_stopped_in_the_middle_it_reports(begin: Any, address: Target) -> None:
    process = begin(share(address, duration=600.0))
    process.hear_until(Told.PREPARED)
    process.say(CONNECT)
    process.hear_until(Told.READY)
    process.input.close()
    _, (number, total) = process.hear_until(Told.DONE)[-1]
    assert number >= 3
    assert total.held == 30
    assert process.child.wait(10) == 0


def test_an_engine_that_dies_is_told(begin: Any, address: Target) -> None:
    process = begin(share(address, duration=600.0))
    process.hear_until(Told.PREPARED)
    process.say(CONNECT)
    process.hear_until(Told.READY)
    os.kill(children_of(process.child.pid)["loadgen.worker"], signal.SIGKILL)
    kind, words = process.hear_until(Told.FAILED)[-1]
    assert (kind, words) == (Told.FAILED, "an engine's process failed")
    assert process.child.wait(10) == 0


def test_what_this_host_cannot_do_is_told_with_the_exit_code(begin: Any) -> None:
    process = begin(share(("nowhere.invalid", 1)))
    kind, (words, code) = process.hear()
    assert (kind, code) == (Told.REFUSED, 4)
    assert words.startswith("cannot connect to nowhere.invalid:1: ")
    assert process.child.wait(10) == 0


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"connections": 10**8}, PlanError, "75000000 connections are 25000000 a worker"),
        ({"traffic": Traffic(expect="no_such_module:f")}, TrafficError, "--expect: "),
        ({"connections": 3}, PlanError, "4 workers are more than the 3 connections"),
    ],
)
def test_checks_are_of_this_host_alone(
    changes: dict[str, Any], error: type[Exception], words: str, address: Target
) -> None:
    with pytest.raises(error, match=words):
        prepare(share(address, **changes))


def test_files_of_tls_are_those_of_this_host(address: Target) -> None:
    given = share(address)
    tls = TlsPlan(server_name="localhost", authority="/no/such/file")
    with pytest.raises((ValueError, CommandError), match="/no/such/file"):
        prepare(
            Share(
                plan=given.plan, target=given.target, first=0, workers=1, workers_in_all=1, tls=tls
            )
        )


def test_engines_are_numbered_over_all_hosts_and_unique_payloads_are_theirs_alone(
    address: Target,
) -> None:
    unique = Traffic(payload=b"abcdefgh", unique=True)
    whole = share(address, traffic=unique)
    alone = Share(plan=whole.plan, target=whole.target, first=0, workers=1, workers_in_all=4)
    jobs = [*prepare(alone), *prepare(whole)]
    assert [job.worker for job in jobs] == [0, 1, 2, 3]
    assert {job.workers for job in jobs} == {4}
    frames = [message.frame for job in jobs for message in job.messages]
    assert len(frames) == len(set(frames))


def test_addresses_of_other_hosts_are_left_to_them() -> None:
    assert own_addresses(()) == ()
    assert own_addresses(("192.0.2.1", "127.0.0.5", "::1")) in (
        ("127.0.0.5", "::1"),
        ("127.0.0.5",),
    )
    with pytest.raises(PlanError, match=r"--source 192\.0\.2\.1: none of them is an address of"):
        own_addresses(("192.0.2.1",))


# The agent -------------------------------------------------------------------


@pytest.fixture
def run() -> Iterator[str]:
    yield "a-run"
    agent.abort("a-run")
    agent._agents.clear()


class Driven:
    """An agent at work in a thread, as in Dask's worker."""

    def __init__(self, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[dict[str, Any]] = []
        self._worker = self
        monkeypatch.setattr("distributed.get_worker", lambda: self)
        self.thread = threading.Thread(target=agent.drive, args=(run, "tcp://here"))
        self.thread.start()

    def log_event(self, topic: str, event: dict[str, Any]) -> None:
        assert topic == agent.TOPIC
        assert event.pop("run") == "a-run"
        assert event.pop("host") == "tcp://here"
        self.events.append(event)

    def bodies(self) -> list[tuple[Told, Any]]:
        return [pickle.loads(event["body"]) for event in self.events if "body" in event]

    def wait_for(self, kind: Told) -> None:
        wait_until(lambda: kind in [kind for kind, _ in self.bodies()])

    def end(self) -> int:
        self.thread.join(20)
        assert not self.thread.is_alive()
        code: int = self.events[-1]["ended"]
        return code


def test_an_agent_passes_everything_on_in_order(
    run: str, address: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.reserve(run, pickle.dumps(share(address)))
    driven = Driven(run, monkeypatch)
    driven.wait_for(Told.PREPARED)
    agent.command(run, CONNECT)
    driven.wait_for(Told.READY)
    heard = agent.command(run, START.pack(time.monotonic_ns()))
    assert abs(heard - time.monotonic_ns()) < 10**9
    assert driven.end() == 0
    kinds = [kind for kind, _ in driven.bodies()]
    assert (kinds[0], kinds[-1]) == (Told.PREPARED, Told.DONE)
    numbers = [event["number"] for event in driven.events if "number" in event]
    assert numbers == list(range(len(kinds)))
    agent.reserve(run, b"")  # the host is free again


def test_an_agent_beats_while_nothing_is_told(
    run: str, address: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.reserve(run, pickle.dumps(share(address)))
    driven = Driven(run, monkeypatch)
    driven.wait_for(Told.PREPARED)
    told = len(driven.events)
    wait_until(lambda: len(driven.events) >= told + 2)
    assert driven.events[-1] == {"beat": True}
    agent.command(run, b"")
    agent.command(run, b"")  # harmless
    agent.command(run, CONNECT)  # too late
    assert driven.end() == 0
    assert driven.bodies()[-1] == (Told.DONE, (0, Counts()))


def test_an_agent_that_nobody_asks_for_the_time_ends(
    run: str, address: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "LEASE", 0.3)
    agent.reserve(run, pickle.dumps(share(address, duration=600.0)))
    driven = Driven(run, monkeypatch)
    assert driven.end() in (0, -9)


def test_an_agent_that_is_aborted_leaves_no_process(
    run: str, address: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.reserve(run, pickle.dumps(share(address, duration=600.0)))
    driven = Driven(run, monkeypatch)
    driven.wait_for(Told.PREPARED)
    child = agent._agents[run].child
    assert child is not None
    agent.abort(run)
    assert driven.end() == -9
    assert is_gone(child.pid)


def test_a_task_that_is_run_again_in_another_process_does_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    agent.drive("a-run-of-before", "tcp://here")
    agent.command("a-run-of-before", b"")
    agent.abort("a-run-of-before")


def test_stopped_before_it_was_begun_an_agent_starts_nothing(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    agent.reserve(run, b"")
    agent.command(run, b"")
    assert Driven(run, monkeypatch).end() == 0


def test_a_host_is_of_one_run_at_a_time_unless_nobody_came(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.reserve(run, b"")
    with pytest.raises(agent.BusyError, match="another run is going on there"):
        agent.reserve("another", b"")
    monkeypatch.setattr(agent, "LEASE", -1.0)
    agent.reserve("another", b"")
    assert list(agent._agents) == ["another"]


def test_a_survey_tells_what_has_to_be_equal() -> None:
    found = agent.survey()
    assert {"loadgen", "python", "distributed", "name", "cores"} == set(found)
    assert found["cores"] == len(os.sched_getaffinity(0))

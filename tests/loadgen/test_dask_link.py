"""What is heard over Dask, and what is made of silence, without Dask's processes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import trustme

from loadgen import agent
from loadgen.clocks import Sample
from loadgen.dask_link import (
    LOST_AFTER,
    SILENT_AFTER,
    DaskLink,
    _by_address,
    _expected,
    _reason,
    _security,
)
from loadgen.link import Event, Heard, Host
from loadgen.plan import ClusterPlan
from nbnet.command import CommandError

ONE, OTHER = "tcp://10.0.0.1:1", "tcp://10.0.0.2:1"


class FakeClient:
    """Dask's client, as far as it is asked; a worker does what it is told here and now."""

    def __init__(self) -> None:
        self.status = "running"
        self.scheduler = self

    async def run(self, function: Callable[..., Any], *arguments: Any, workers: list[str]) -> Any:
        await asyncio.sleep(0)
        return {workers[0]: function(*arguments)}

    async def identity(self, *, n_workers: int) -> dict[str, Any]:
        raise OSError(f"the scheduler is gone, with {n_workers}")


def unconnected() -> DaskLink:
    """A link that has heard of one host just now."""
    link = DaskLink(ClusterPlan(scheduler="tcp://s:1", patience=5.0), "a run")
    link._client = cast(Any, FakeClient())
    link._heard[ONE] = 100.0
    return link


def heard(link: DaskLink) -> list[Event]:
    events = []
    while (event := link.next(0)) is not None:
        events.append(event)
    return events


@contextlib.contextmanager
def at_work(link: DaskLink) -> Iterator[DaskLink]:
    """With its thread and event loop."""
    link._loop = asyncio.new_event_loop()
    link._thread.start()
    try:
        yield link
    finally:
        link._end()
        assert not link._thread.is_alive()
        assert link._loop.is_closed()


# Events ------------------------------------------------------------------------


def test_what_an_agent_tells_becomes_events() -> None:
    link = unconnected()
    for told in ({"number": 3, "body": b"x"}, {"beat": True}, {"ended": 1}):
        link._take((0.0, {"run": "a run", "host": ONE} | told))
    assert heard(link) == [
        Event(ONE, Heard.BODY, (3, b"x")),
        Event(ONE, Heard.BEAT),
        Event(ONE, Heard.ENDED, 1),
    ]
    assert not link._heard, "who has ended may be silent"


def test_what_agents_of_another_run_tell_is_of_no_concern() -> None:
    link = unconnected()
    link._take((0.0, {"run": "another", "host": OTHER, "beat": True}))
    assert heard(link) == []
    assert list(link._heard) == [ONE]


def test_a_worker_that_is_removed_is_gone_and_other_changes_are_of_no_concern() -> None:
    link = unconnected()
    link._take_change((0.0, {"action": "add-worker", "worker": ONE}))
    assert heard(link) == []
    link._take_change((0.0, {"action": "remove-worker", "worker": ONE}))
    assert heard(link) == [Event(ONE, Heard.GONE, "its Dask worker ended")]
    assert not link._heard


# Silence -----------------------------------------------------------------------


def test_silence_is_told_once_then_its_end_or_that_the_host_is_lost() -> None:
    link = unconnected()
    link._look(100.4, 100.5)
    assert heard(link) == []
    silent = 100.0 + SILENT_AFTER + 0.25
    for _ in range(2):
        link._look(silent - 0.1, silent)
    assert heard(link) == [Event(ONE, Heard.SILENT, pytest.approx(SILENT_AFTER + 0.25))]
    link._take((0.0, {"run": "a run", "host": ONE, "beat": True}))
    assert heard(link) == [Event(ONE, Heard.AGAIN), Event(ONE, Heard.BEAT)]
    lost = link._heard[ONE] + LOST_AFTER + 0.25
    for _ in range(2):
        link._look(lost - 0.1, lost)
    assert heard(link) == [Event(ONE, Heard.GONE, "nothing was heard of it for 5 s")]


def test_hosts_are_not_blamed_for_a_time_in_which_this_process_stood_still() -> None:
    link = unconnected()
    link._look(100.1, 200.0)
    assert heard(link) == []
    assert link._heard == {ONE: 200.0}


def test_without_a_scheduler_all_hosts_are_gone() -> None:
    link = unconnected()
    link._heard[OTHER] = 100.0
    link._client.status = "closed"
    link._look(100.1, 100.2)
    words = "the scheduler is gone"
    assert heard(link) == [Event(ONE, Heard.GONE, words), Event(OTHER, Heard.GONE, words)]


def test_the_clock_of_a_host_is_looked_at_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadgen.dask_link._ASK", 0.001)
    asked = []

    async def ask(host: str) -> Sample:
        asked.append(host)
        if len(asked) == 2:
            raise OSError("it does not answer this time")
        return Sample(1, len(asked), 2)

    async def watch() -> list[Event]:
        watching = asyncio.ensure_future(link._watch_clock(ONE))
        events: list[Event] = []
        while len(events) < 2:
            await asyncio.sleep(0)
            events += heard(link)
        watching.cancel()
        return events

    link = unconnected()
    monkeypatch.setattr(link, "_ask", ask)
    first, second, *_ = asyncio.run(watch())
    assert first == Event(ONE, Heard.TIME, Sample(1, 1, 2))
    assert second == Event(ONE, Heard.TIME, Sample(1, 3, 2))


# Calls -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (None, None),
        (ValueError("no\nmore"), "its agent failed: ValueError: no"),
        (
            RuntimeError("Error during deserialization of x"),
            "the scheduler has no or another nbnet",
        ),
    ],
)
def test_an_agent_that_failed_is_told_in_a_line(error: Exception | None, words: str | None) -> None:
    link = unconnected()

    class Placed:
        async def exception(self) -> Exception | None:
            return error

    asyncio.run(link._watch_task(cast(Any, Placed()), ONE))
    events = heard(link)
    assert [event.kind for event in events] == [Heard.GONE] * (words is not None)
    assert all(event.value.startswith(words) for event in events)


def test_a_scheduler_that_does_not_answer_is_a_line() -> None:
    with (
        at_work(unconnected()) as link,
        pytest.raises(CommandError, match=r"--cluster tcp://s:1: the scheduler does not answer"),
    ):
        link.hosts()


def test_what_went_wrong_on_a_host_is_the_answer_of_a_posted_call() -> None:
    def fails(run: str) -> None:
        raise ZeroDivisionError(run)

    with at_work(unconnected()) as link:
        link.post(agent.tell_time, {ONE: ("another run",)}, 5.0)
        event = link.next(5.0)
        link.post(fails, {OTHER: ("a run",)}, 5.0)
        failed = link.next(5.0)
    assert event is not None
    assert (event.worker, event.kind, event.value[0]) == (ONE, Heard.ANSWER, ("another run",))
    assert event.value[1] > 0
    assert failed is not None
    assert isinstance(failed.value[1], ZeroDivisionError)
    link.post(agent.tell_time, {ONE: ("a run",)}, 5.0)  # all is over
    assert link.next(0) is None


def test_what_is_left_in_the_event_loop_is_cancelled_at_the_end() -> None:
    ended = []

    async def for_ever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def begin() -> None:
        link._spawn(for_ever())
        await asyncio.sleep(0)

    with at_work(unconnected()) as link:
        link._wait(begin(), 5.0)
    assert ended == [True]


def test_only_what_ends_the_program_is_raised() -> None:
    error = OSError("gone")
    assert _expected(error) is error
    assert _expected("fine") == "fine"
    with pytest.raises(KeyboardInterrupt):
        _expected(KeyboardInterrupt())


def test_hosts_are_in_the_order_of_their_addresses() -> None:
    addresses = ["node-b", "10.0.0.10", "node-a", "10.0.0.9"]
    found = sorted((Host(address, "") for address in addresses), key=_by_address)
    assert [host.address for host in found] == ["10.0.0.9", "10.0.0.10", "node-a", "node-b"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError("refused\nreally"), "refused"),
        (TimeoutError(), "no answer in time"),
        (ConnectionResetError(), "ConnectionResetError"),
    ],
)
def test_why_there_is_no_connection(error: Exception, words: str) -> None:
    assert _reason(error) == words
    cause = OSError("in vain")
    cause.__cause__ = error if str(error) else None
    assert _reason(cause) == (words if str(error) else "in vain")


def test_files_of_tls_that_cannot_be_read_are_a_line() -> None:
    plan = ClusterPlan(scheduler="tls://s:1", authority="/no/ca", certificate="/no/cert")
    with pytest.raises(CommandError, match=r"--cluster-ca, --cluster-cert, --cluster-key: "):
        _security(plan)
    with pytest.raises(CommandError, match=r"needs --cluster-ca and --cluster-cert"):
        _security(ClusterPlan(scheduler="tls://s:1"))


def test_files_of_tls_make_a_way_that_is_encrypted(tmp_path: Path) -> None:
    authority, certificate = tmp_path / "ca.pem", tmp_path / "cert.pem"
    issuer = trustme.CA()
    issuer.cert_pem.write_to_path(str(authority))
    issuer.issue_cert("me@here").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    plan = ClusterPlan(
        scheduler="tls://s:1", authority=str(authority), certificate=str(certificate)
    )
    security = _security(plan)
    assert security.require_encryption
    assert security.tls_ca_file == str(authority)
    assert not _security(ClusterPlan(scheduler="tcp://s:1")).require_encryption

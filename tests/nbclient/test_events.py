"""What a hook and the log get to know, and that a broken hook breaks nothing else."""

from __future__ import annotations

import dataclasses
import logging
from typing import NoReturn

import pytest

from nbclient import Client
from nbclient.errors import ConnectionLost, NbclientError
from nbclient.events import Event, Observer
from nbnet.notation import Target

PEER = "127.0.0.1:6789"


def broken(event: Event) -> NoReturn:
    raise LookupError(event.kind)


def test_the_hook_gets_the_event_as_it_is() -> None:
    events: list[Event] = []
    observer = Observer(events.append)
    event = Event("reply", PEER, 0.002, size=3, request=1)
    observer(event)
    assert observer.active
    assert events == [event]
    assert events[0] is event


def test_without_a_hook_nobody_listens() -> None:
    observer = Observer(None)
    assert not observer.active
    observer(Event("connect", PEER))


def test_an_event_says_nothing_by_default_and_cannot_be_changed() -> None:
    event = Event("close", PEER)
    assert (event.seconds, event.size, event.request, event.error) == (0.0, 0, 0, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.peer = ""  # type: ignore[misc]


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (Event("connect", PEER), f"{PEER}: connect"),
        (Event("connect", PEER, error=NbclientError("refused")), f"{PEER}: connect: refused"),
        (Event("failed", PEER, error=ConnectionLost("lost it")), f"{PEER}: failed: lost it"),
        (Event("retry", PEER, error=ConnectionLost("lost it")), f"{PEER}: retry: lost it"),
        (Event("close", PEER), f"{PEER}: close"),
        (Event("request", PEER), None),
        (Event("reply", PEER), None),
    ],
)
@pytest.mark.parametrize("hook", [None, [].append], ids=["alone", "with a hook"])
def test_the_log_tells_what_is_rare(
    event: Event, line: str | None, hook: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "nbclient"):
        Observer(hook)(event)
    assert caplog.messages == ([] if line is None else [line])
    assert all(record.levelno == logging.DEBUG for record in caplog.records)


def test_what_a_hook_raises_is_logged_and_goes_no_further(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Observer(broken)(Event("reply", PEER))
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert record.exc_info[0] is LookupError


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_a_hook_is_none_of_its_faults(kind: type[BaseException]) -> None:
    def interrupted(event: Event) -> NoReturn:
        raise kind(event.kind)

    with pytest.raises(kind):
        Observer(interrupted)(Event("reply", PEER))


def test_a_request_works_with_a_hook_that_does_not(
    address: Target, caplog: pytest.LogCaptureFixture
) -> None:
    with Client(address, on_event=broken) as client:
        assert client.request(b"abc") == b"cba"
    said = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert [str(error) for error in said] == ["request", "connect", "reply", "close"]

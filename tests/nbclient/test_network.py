"""The client's timeouts and retries, on a network that delays, loses and reorders packets.

As ``docs/how-to/client.md`` documents them, for both fronts; the client is on one machine of the
test's own and the server on another, see ``support.network``.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
from support.network import FAR, NOBODY, Machine, Wire, why_no_wire, wired
from support.serving import started

# A program with clients that are named in its argument. A line in names one of them and
# has a payload and keywords for its ``request``; a line out has the reply or the error,
# the seconds that it took, and the events.
PROGRAM = """
import contextlib, json, sys, time
import trio
from nbclient import AsyncClient, Client, NbclientError
front, told = json.loads(sys.argv[1])
seen = []
def make(kind):
    def on_event(event):
        seen.append(event.kind)
    return {
        name: kind(targets, on_event=on_event, **options)
        for name, (targets, options) in told.items()
    }
def tell(started, said):
    if isinstance(said, NbclientError):
        said = [type(said).__name__, said.stage, said.maybe_executed]
    else:
        said = said.decode()
    print(json.dumps([said, time.monotonic() - started, seen]), flush=True)
    seen.clear()
def sync():
    with contextlib.ExitStack() as stack:
        clients = make(Client)
        for client in clients.values():
            stack.enter_context(client)
        for line in sys.stdin:
            name, payload, keywords = json.loads(line)
            started = time.monotonic()
            try:
                tell(started, clients[name].request(payload.encode(), **keywords))
            except NbclientError as error:
                tell(started, error)
async def tasks():
    async with contextlib.AsyncExitStack() as stack:
        clients = make(AsyncClient)
        for client in clients.values():
            await stack.enter_async_context(client)
        while line := await trio.to_thread.run_sync(sys.stdin.readline):
            name, payload, keywords = json.loads(line)
            started = time.monotonic()
            said = b"cancelled"
            with trio.move_on_after(keywords.pop("cancel", 60)):
                try:
                    said = await clients[name].request(payload.encode(), **keywords)
                except NbclientError as error:
                    said = error
            tell(started, said)
sync() if front == "sync" else trio.run(tasks)
"""


@pytest.fixture(scope="module", params=["relay", "netem"])
def network(request: pytest.FixtureRequest) -> Iterator[tuple[Machine, Wire]]:
    """Where clients are to run, and the wire to the server."""
    if reason := why_no_wire(request.param):
        pytest.skip(reason)
    with wired(request.param) as (near, far, wire):
        serve = [sys.executable, "-m", "nbnet", "serve", "--host", FAR]
        with started(far.command(*serve)) as server:
            yield near, wire
            wire.set()
            server.end()


LATE = 5.0
"""Seconds by which a busy machine may be late."""


class Calling:
    """Clients at work on the near machine."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def request(
        self, client: str, payload: str, **keywords: object
    ) -> tuple[object, float, list[str]]:
        """The reply or what the error says, the seconds that took, and the events."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([client, payload, keywords]) + "\n")
        self.process.stdin.flush()
        said, took, seen = json.loads(self.process.stdout.readline())
        return said, took, seen


@contextlib.contextmanager
def calling(
    near: Machine, front: str, **clients: tuple[list[str], dict[str, object]]
) -> Iterator[Calling]:
    """Clients of a front by name, each with its servers and its options."""
    with subprocess.Popen(
        near.command(sys.executable, "-c", PROGRAM, json.dumps([front, clients])),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Calling(process)
        process.communicate()
        assert process.returncode == 0


SERVER, SILENT = f"{FAR}:6789", f"{NOBODY}:6789"


@pytest.mark.parametrize("front", ["sync", "trio"])
def test_a_timeout_that_the_network_is_too_slow_for_costs_that_request_alone(
    network: tuple[Machine, Wire], front: str
) -> None:
    near, wire = network
    wire.set(delay=0.1)
    with calling(near, front, one=([SERVER], {"max_connections": 1})) as client:
        said, took, _ = client.request("one", "first")
        assert said == "tsrif"
        assert took >= 0.4  # to connect, and to ask
        said, took, _ = client.request("one", "late", timeout=0.15)
        assert said == ["RequestTimeout", "receiving", True]
        assert 0.15 <= took < 0.15 + LATE
        said, took, seen = client.request("one", "next")
        assert said == "txen"
        # What was too slow once gets no further request: this one has a new connection.
        assert "connect" in seen
        assert took >= 0.4
        if front == "trio":  # to cancel tells nothing of the network: it stays, in step
            assert client.request("one", "given up", cancel=0.1)[0] == "cancelled"
            said, took, seen = client.request("one", "after that")
            assert said == "taht retfa"
            assert "connect" not in seen
        # Nothing comes through: retries, allowed as they are, do not make it longer.
        wire.set(loss=1)
        said, took, _ = client.request("one", "lost", timeout=0.3, idempotent=True)
        assert said == ["RequestTimeout", "receiving", True]
        assert 0.3 <= took < 0.3 + LATE
        wire.set(delay=0.01, loss=0.02, reorder=0.25)
        for number in range(20):
            payload = f"again {number}"
            assert client.request("one", payload, timeout=20)[0] == payload[::-1]


@pytest.mark.parametrize("front", ["sync", "trio"])
def test_a_server_that_never_answers_is_given_up_in_time(
    network: tuple[Machine, Wire], front: str
) -> None:
    near, wire = network
    wire.set()
    with calling(
        near,
        front,
        one=([SILENT], {"timeout": 0.3}),
        patient=([SILENT], {"timeout": 20, "connect_timeout": 0.1}),
        several=([SILENT, SERVER], {"timeout": 1.5}),
    ) as client:
        said, took, _ = client.request("one", "abc")
        assert said == ["ConnectTimeout", "connecting", False]
        assert 0.3 <= took < 0.3 + LATE
        said, took, seen = client.request("patient", "abc")
        assert said == ["ConnectTimeout", "connecting", False]
        assert (seen.count("connect"), seen.count("retry")) == (3, 2)  # as many as by default
        assert took >= 0.3
        said, took, seen = client.request("several", "abc")
        assert said == "cba"
        assert took >= 0.75  # an equal share of the time for each server
        assert seen.count("connect") == 2
        said, _, seen = client.request("several", "abc")
        assert said == "cba"
        assert seen.count("connect") < 2  # it is left out for a while

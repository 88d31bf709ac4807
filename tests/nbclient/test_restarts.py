"""Clients under which real processes die: servers that are killed and come back, and forks.

Fifty threads on one ``Client``, a thousand tasks on one ``AsyncClient``, and
``nbnet.serve`` under them, which gets a SIGKILL whenever so many more replies have
come. The servers put every request on record before they answer it, and a line
that was written outlives its writer. So the tests know, and not only the client,
what was executed:

* each request ends in its own reply or in an error of the client;
* a request was executed once if it was answered, not at all if its error says
  so, and at most once if nobody knows;
* with ``idempotent=True`` and a server left, all are answered;
* the client goes on afterwards, and nothing is left: no descriptor, no slot of
  the pool, no request under way (of these two ``Server.busy`` is made).

A killed server comes back on its port. Meanwhile the port stays with a socket that
is bound to it and does not listen: connections are refused, and nobody gets it.

For longer, some 20 seconds each::

    pytest -m slow tests/nbclient/test_restarts.py
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pytest
import trio
from support.forking import Forked
from support.serving import TIMEOUT, Serving, started, wait_for_end
from trio.testing import wait_all_tasks_blocked

from nbclient import AsyncClient, Client, ClosedError, ConnectError, ConnectionLost, NbclientError
from nbclient.dialing import TimedStream
from nbnet.notation import Address

THREADS, TASKS = 50, 1000

RECORDING = """
import os, signal
record = os.open(os.environ["RECORD"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def reverse(payload):
    os.write(record, payload + b"\\n")
    if payload == b"die-07":
        os.kill(os.getpid(), signal.SIGKILL)
    return payload[::-1]
"""

SERVING = """
import sys
from nbnet import serve
def announce(address):
    print("listening on", address, file=sys.stderr, flush=True)
serve("recording:reverse", port=int(sys.argv[1]), workers=1, on_listening=announce)
"""


# What servers do -----------------------------------------------------------------------


class Place:
    """A port where a server runs, is killed, and runs again.

    Attributes:
        target: where that is.
        server: the one that runs now.
    """

    def __init__(self, stack: contextlib.ExitStack, directory: Path) -> None:
        self._directory = directory
        keeper = stack.enter_context(socket.socket())
        # Two sockets may have this option and one port as long as none of them listens.
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeper.bind(("127.0.0.1", 0))
        self.target = "{}:{}".format(*keeper.getsockname())
        self._life = stack.enter_context(contextlib.ExitStack())
        self.start()

    def start(self) -> None:
        self.server: Serving = self._life.enter_context(
            started(
                [sys.executable, "-c", SERVING, self.target.rpartition(":")[2]],
                by=Forked,
                cwd=self._directory,
                env={"RECORD": str(self._directory / "record")},
            )
        )
        # With its port it cannot be another one's.
        assert "{}:{}".format(*self.server.address) == self.target

    def kill(self) -> None:
        """Let it die at once, with whatever it was doing."""
        workers = self.server.children()
        self._life.close()
        for worker in workers:  # die with it, a moment later, and have its port until then
            wait_for_end(worker)

    def restart(self) -> None:
        self.kill()
        self.start()

    def stop(self) -> None:
        """Let it do nothing; the kernel goes on to take connections and bytes for it."""
        self._send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._send_signal(signal.SIGCONT)

    def _send_signal(self, number: signal.Signals) -> None:
        for process in (self.server.process.pid, *self.server.children()):
            os.kill(process, number)


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Callable[[int], list[Place]]]:
    """Starts servers that reverse payloads, in so many places."""
    (tmp_path / "recording.py").write_text(RECORDING)
    with contextlib.ExitStack() as stack:
        yield lambda number: [Place(stack, tmp_path) for _ in range(number)]


@pytest.fixture
def executed(tmp_path: Path) -> Callable[[], Counter[bytes]]:
    """How often each payload was executed until now."""
    return lambda: Counter((tmp_path / "record").read_bytes().split())


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture(autouse=True)
def _no_descriptor_is_left() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before


# What clients do -----------------------------------------------------------------------


Outcomes: TypeAlias = dict[bytes, bytes | NbclientError]
"""For each payload the reply, or the error."""


class Traffic:
    """Requests of many at a time, each with a payload of its own, and what came of them.

    Attributes:
        over: whether to begin no more.
        outcomes: what is known until now.
    """

    def __init__(self) -> None:
        self.over = False
        self.outcomes: Outcomes = {}
        self._numbers = count()
        self._changed = threading.Condition()
        self._replies = 0
        self._awaited = 0

    def payloads(self) -> Iterator[bytes]:
        """What one of the many sends, one after the other."""
        while not self.over:
            yield b"%06d" % next(self._numbers)

    def note(self, payload: bytes, outcome: bytes | NbclientError) -> None:
        with self._changed:
            self.outcomes[payload] = outcome
            self._replies += isinstance(outcome, bytes)
            if self._replies == self._awaited:
                self._changed.notify()

    def wait_for(self, replies: int) -> None:
        """Wait until so many more requests are answered."""
        with self._changed:
            self._awaited = self._replies + replies
            assert self._changed.wait_for(lambda: self._replies >= self._awaited, TIMEOUT)

    def errors(self) -> list[NbclientError]:
        return [error for error in self.outcomes.values() if isinstance(error, NbclientError)]


def check(outcomes: Outcomes, executed: Counter[bytes], *, idempotent: bool) -> None:
    """What the module says of a request: of all."""
    for payload, outcome in outcomes.items():
        times = executed[payload]
        if isinstance(outcome, bytes):
            assert outcome == payload[::-1]
            assert times == 1 or (idempotent and times > 1)
        else:
            assert type(outcome) in {ConnectionLost, ConnectError}
            assert times <= int(outcome.maybe_executed)
            assert type(outcome) is ConnectionLost or not outcome.maybe_executed
    assert executed.keys() <= outcomes.keys()


Script: TypeAlias = Callable[[Traffic], None]
"""What happens to the servers meanwhile; when it returns, the traffic is over."""
Drive: TypeAlias = Callable[..., Traffic]
"""Lets many send to the targets: ``(targets, script, *, idempotent, **options)``."""


def drive_threads(
    targets: Sequence[str], script: Script, *, idempotent: bool, **options: Any
) -> Traffic:
    """Fifty threads on one ``Client``."""
    traffic = Traffic()

    def ask() -> None:
        for payload in traffic.payloads():
            try:
                traffic.note(payload, client.request(payload, idempotent=idempotent))
            except NbclientError as error:
                traffic.note(payload, error)

    with Client(targets, **options) as client, ThreadPoolExecutor(THREADS) as pool:
        asking = [pool.submit(ask) for _ in range(THREADS)]
        try:
            script(traffic)
        finally:
            traffic.over = True
        for each in asking:
            each.result()
        idle = [connection for stack in client._idle.values() for connection in stack]
        assert set(client._open) == set(idle)
        assert client._waiting == 0
    assert not client._open
    return traffic


def drive_tasks(
    targets: Sequence[str], script: Script, *, idempotent: bool, **options: Any
) -> Traffic:
    """A thousand tasks on one ``AsyncClient``."""
    traffic = Traffic()

    async def ask(client: AsyncClient) -> None:
        for payload in traffic.payloads():
            try:
                traffic.note(payload, await client.request(payload, idempotent=idempotent))
            except NbclientError as error:
                traffic.note(payload, error)

    async def main() -> None:
        async with AsyncClient(targets, **options) as client:
            async with trio.open_nursery() as nursery:
                for _ in range(TASKS):
                    nursery.start_soon(ask, client)
                try:
                    await trio.to_thread.run_sync(script, traffic)
                finally:
                    traffic.over = True
            assert client._open == set(client._shared)
            assert all(connection.exchange.idle for connection in client._open)
        assert not client._open

    trio.run(main)
    return traffic


@pytest.fixture(params=[drive_threads, drive_tasks], ids=["threads", "tasks"])
def drive(request: pytest.FixtureRequest) -> Drive:
    """Lets many send, on the front under test."""
    chosen: Drive = request.param
    return chosen


class Size(NamedTuple):
    kills: int
    replies: int  # that have to come between two events


sizes = pytest.mark.parametrize(
    "size",
    [
        pytest.param(Size(2, 500), id="few"),
        pytest.param(
            Size(8, 10_000), id="many", marks=[pytest.mark.slow, pytest.mark.timeout(300)]
        ),
    ],
)


# Restarts ------------------------------------------------------------------------------


@sizes
@pytest.mark.parametrize("limit", [4, 100])
def test_one_server_is_killed_again_and_again(
    drive: Drive,
    places: Callable[[int], list[Place]],
    executed: Callable[[], Counter[bytes]],
    size: Size,
    limit: int,
) -> None:
    [place] = places(1)

    def script(traffic: Traffic) -> None:
        for _ in range(size.kills):
            traffic.wait_for(size.replies)
            place.restart()
        traffic.wait_for(size.replies)  # it works again

    options = {"timeout": TIMEOUT, "max_connections": limit}
    traffic = drive([place.target], script, idempotent=False, **options)
    check(traffic.outcomes, executed(), idempotent=False)


@sizes
def test_two_of_three_servers_die_for_good(
    drive: Drive,
    places: Callable[[int], list[Place]],
    executed: Callable[[], Counter[bytes]],
    size: Size,
) -> None:
    three = places(3)

    def script(traffic: Traffic) -> None:
        for place in three[:2]:
            traffic.wait_for(size.replies)
            place.kill()
        traffic.wait_for(size.replies)

    # A request is lost twice at most, and two retries are what it has.
    targets = [place.target for place in three]
    traffic = drive(targets, script, idempotent=True, timeout=TIMEOUT)
    assert traffic.errors() == []
    check(traffic.outcomes, executed(), idempotent=True)


@sizes
def test_of_two_servers_one_is_always_up(
    drive: Drive,
    places: Callable[[int], list[Place]],
    executed: Callable[[], Counter[bytes]],
    size: Size,
) -> None:
    two = places(2)

    def script(traffic: Traffic) -> None:
        for number in range(size.kills):
            traffic.wait_for(size.replies)
            two[number % 2].kill()
            traffic.wait_for(size.replies)  # from the other one
            two[number % 2].start()
        traffic.wait_for(size.replies)

    # Who is slow may meet every one of the kills, and that twice: what was sent is lost, and
    # then one server is asked before it is back and the other one after its end.
    targets = [place.target for place in two]
    traffic = drive(targets, script, idempotent=True, timeout=TIMEOUT, retries=2 * size.kills)
    assert traffic.errors() == []
    check(traffic.outcomes, executed(), idempotent=True)


# Requests that are under way for certain: the servers have stopped before they come -------------


class CountedStream(TimedStream):
    """Says when it has sent something."""

    def __init__(self, connected: socket.socket, sent: threading.Semaphore) -> None:
        super().__init__(connected)
        self._sent = sent

    def send(self, data: bytes | memoryview, timeout: float | None, /) -> int:
        size = super().send(data, timeout)
        self._sent.release()
        return size


def hold_threads(
    targets: Sequence[str], script: Callable[[], None], *, idempotent: bool, form: bytes = b"%d"
) -> Outcomes:
    """A request from each of fifty threads; the script runs when all are sent."""
    sent = threading.Semaphore(0)

    def connect(address: Address, timeout: float | None) -> CountedStream:
        return CountedStream(socket.create_connection(address.target, timeout), sent)

    def ask(payload: bytes) -> bytes | NbclientError:
        try:
            return client.request(payload, idempotent=idempotent)
        except NbclientError as error:
            return error

    with (
        Client(targets, connect=connect, timeout=TIMEOUT) as client,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        asking = {form % n: pool.submit(ask, form % n) for n in range(THREADS)}
        for _ in asking:
            assert sent.acquire(timeout=TIMEOUT)
        script()
        outcomes = {payload: each.result() for payload, each in asking.items()}
        # The end of the last connection may come after one has looked for it.
        assert client.request(b"abc", idempotent=True) == b"cba"
    return outcomes


def hold_tasks(
    targets: Sequence[str], script: Callable[[], None], *, idempotent: bool, form: bytes = b"%d"
) -> Outcomes:
    """The same of a thousand tasks."""
    outcomes: Outcomes = {}

    async def ask(client: AsyncClient, payload: bytes) -> None:
        try:
            outcomes[payload] = await client.request(payload, idempotent=idempotent)
        except NbclientError as error:
            outcomes[payload] = error

    async def main() -> None:
        async with AsyncClient(targets, timeout=TIMEOUT) as client:
            async with trio.open_nursery() as nursery:
                for number in range(TASKS):
                    nursery.start_soon(ask, client, form % number)
                await all_sent(client, TASKS)
                script()
            assert await client.request(b"abc", idempotent=True) == b"cba"

    trio.run(main)
    return outcomes


async def all_sent(client: AsyncClient, number: int) -> None:
    with trio.fail_after(TIMEOUT):
        while sum(connection.exchange.outstanding for connection in client._open) < number:
            await wait_all_tasks_blocked()


Hold: TypeAlias = Callable[..., Outcomes]


@pytest.fixture(params=[hold_threads, hold_tasks], ids=["threads", "tasks"])
def hold(request: pytest.FixtureRequest) -> Hold:
    """Has many requests under way, on the front under test; gives what came of them."""
    chosen: Hold = request.param
    return chosen


def test_what_is_lost_may_have_been_executed(
    hold: Hold, places: Callable[[int], list[Place]]
) -> None:
    [place] = places(1)
    place.stop()
    for error in hold([place.target], place.restart, idempotent=False).values():
        assert type(error) is ConnectionLost
        assert error.maybe_executed


def test_what_is_lost_and_may_be_executed_again_goes_to_another_server(
    hold: Hold, places: Callable[[int], list[Place]], executed: Callable[[], Counter[bytes]]
) -> None:
    one, two = places(2)
    one.stop()
    two.stop()

    def script() -> None:
        one.kill()
        two.go_on()

    outcomes = hold([one.target, two.target], script, idempotent=True)
    assert outcomes == {payload: payload[::-1] for payload in outcomes}
    assert executed() == Counter([*outcomes, b"abc"])  # never by the one that was stopped


def test_what_was_executed_and_killed_the_server_is_not_repeated(
    hold: Hold, places: Callable[[int], list[Place]], executed: Callable[[], Counter[bytes]]
) -> None:
    [place] = places(1)
    place.stop()
    outcomes = hold([place.target], place.go_on, idempotent=False, form=b"die-%02d")
    error = outcomes[b"die-07"]
    assert type(error) is ConnectionLost
    assert error.maybe_executed
    assert executed()[b"die-07"] == 1
    check({**outcomes, b"abc": b"cba"}, executed(), idempotent=False)


# Closing -------------------------------------------------------------------------------


class Announced(threading.Condition):
    """Says when somebody waits for it: who then gets its lock comes after that."""

    def __init__(self, lock: threading.RLock, waiting: threading.Semaphore) -> None:
        super().__init__(lock)
        self._waiting = waiting

    def wait(self, timeout: float | None = None) -> bool:
        self._waiting.release()
        return super().wait(timeout)


def test_closing_while_ten_threads_wait(places: Callable[[int], list[Place]]) -> None:
    [place] = places(1)
    place.stop()
    waiting = threading.Semaphore(0)

    def connect(address: Address, timeout: float | None) -> CountedStream:
        return CountedStream(socket.create_connection(address.target, timeout), waiting)

    client = Client(place.target, connect=connect, max_connections=2, timeout=None)
    client._freed = Announced(client._lock, waiting)
    with ThreadPoolExecutor(10) as pool:
        asking = [pool.submit(client.request, b"abc") for _ in range(10)]
        for _ in asking:  # two for their replies and eight for a connection
            assert waiting.acquire(timeout=TIMEOUT)
        client.close()
        errors = [each.exception(TIMEOUT) for each in asking]
    assert [type(error) for error in errors] == [ClosedError] * 10
    executed = [error.maybe_executed for error in errors if isinstance(error, ClosedError)]
    assert sorted(executed) == [False] * 8 + [True] * 2
    assert not client._open


async def test_closing_under_cancellation_with_and_without_tasks_that_wait(
    places: Callable[[int], list[Place]],
) -> None:
    [place] = places(1)
    idle, used = AsyncClient(place.target), AsyncClient(place.target, timeout=None)
    assert await idle.request(b"abc") == b"cba"
    place.stop()
    errors = []

    async def ask() -> None:
        with pytest.raises(ClosedError) as caught:
            await used.request(b"abc")
        errors.append(caught.value)

    with trio.fail_after(TIMEOUT):
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(ask)
            await all_sent(used, 10)
            for client in (idle, used):
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await client.aclose()
                assert scope.cancelled_caught
                assert not client._open
    assert [error.maybe_executed for error in errors] == [True] * 10


@contextlib.contextmanager
def warned() -> Iterator[list[str]]:
    """What was warned of until then."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
        gc.collect()
    assert {each.category for each in caught} == {ResourceWarning}
    texts += [str(each.message) for each in caught]


def test_a_client_that_was_left_open_warns(places: Callable[[int], list[Place]]) -> None:
    [place] = places(1)
    client = Client(place.target)
    client.request(b"abc")
    with warned() as texts:
        del client
    assert texts == [f"unclosed <nbclient.Client for {place.target}>"]


async def test_so_does_one_for_trio(places: Callable[[int], list[Place]]) -> None:
    [place] = places(1)
    client = AsyncClient(place.target)
    await client.request(b"abc")
    with warned() as texts:
        del client
    assert texts[0] == f"unclosed <nbclient.AsyncClient for {place.target}>"  # of sockets besides


@pytest.mark.parametrize("front", ["Client", "AsyncClient"])
def test_one_that_was_closed_or_never_used_does_not(
    places: Callable[[int], list[Place]], front: str
) -> None:
    [place] = places(1)
    if front == "Client":
        with Client(place.target) as client:
            client.request(b"abc")
        del client
        Client(place.target)
    else:

        async def main() -> None:
            async with AsyncClient(place.target) as client:
                await client.request(b"abc")

        trio.run(main)
        AsyncClient(place.target)
    gc.collect()  # a warning is an error here


# Forks -----------------------------------------------------------------------------------

FORKING = """
import contextlib, os, signal, sys, threading
import trio
from nbclient import AsyncClient, Client
from support.forked import exit_code, in_child

def sockets():
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing itself
            found.add(os.readlink(f"/proc/self/fd/{name}"))
    return {name for name in found if name.startswith("socket:")}

def payloads(number=200):
    return [b"%d-%d-%d" % (os.getpid(), threading.get_ident(), n) for n in range(number)]
"""

FORKED_UNDER_THREADS = (
    FORKING
    + """
client = Client(sys.argv[1])
over = threading.Event()
ready = threading.Barrier(11)

def ask(rounds=1):
    for payload in payloads():
        assert client.request(payload) == payload[::-1]

def go_on():
    ask()
    ready.wait()
    while not over.is_set():
        ask()

def child():
    signal.alarm(20)  # no child outlives the test
    assert not sockets()
    ask()
    assert len(sockets()) == 1
    client.close()

threads = [threading.Thread(target=go_on) for _ in range(10)]
for thread in threads:
    thread.start()
ready.wait()
codes = [exit_code(in_child(child)) for _ in range(10)]
over.set()
for thread in threads:
    thread.join()
ask()
client.close()
assert not sockets()
print(codes)
"""
)

FORKED_UNDER_TASKS = (
    FORKING
    + """
def names(client):
    return {connection.stream.socket.getsockname() for connection in client._open}

async def ask(client):
    for payload in payloads():
        assert await client.request(payload) == payload[::-1]

async def use_copy(client, parents, descriptors):
    signal.alarm(20)
    assert sockets().isdisjoint(descriptors)
    await ask(client)
    assert names(client).isdisjoint(parents)
    await client.aclose()

async def go_on(client, over):
    while not over.is_set():
        await ask(client)

def fork(client, parents):
    of_parent = {
        os.readlink(f"/proc/self/fd/{connection.stream.socket.fileno()}")
        for connection in client._open
    }
    return exit_code(in_child(lambda: trio.run(use_copy, client, parents, of_parent)))

async def main():
    over = trio.Event()
    async with AsyncClient(sys.argv[1]) as client, trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(go_on, client, over)
        await ask(client)
        # In a thread that is not trio's own, as a child cannot leave the run that it was born in.
        print([await trio.to_thread.run_sync(fork, client, names(client)) for _ in range(5)])
        over.set()
    assert not client._open

trio.run(main)
"""
)


@pytest.mark.parametrize(
    ("script", "codes"),
    [
        pytest.param(FORKED_UNDER_THREADS, [0] * 10, id="threads"),
        pytest.param(FORKED_UNDER_TASKS, [0] * 5, id="tasks"),
    ],
)
def test_a_forked_child_has_connections_of_its_own(
    places: Callable[[int], list[Place]], script: str, codes: list[int]
) -> None:
    [place] = places(1)
    done = subprocess.run(
        [sys.executable, "-c", script, place.target],
        cwd=Path(__file__).parents[1],  # where "support" is
        capture_output=True,
        text=True,
        timeout=2 * TIMEOUT,
    )
    assert done.stdout == f"{codes}\n", done.stderr
    assert done.returncode == 0, done.stderr

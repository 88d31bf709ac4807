"""The simulated kernel: it does what the real one does, and sees every misuse."""

from __future__ import annotations

import contextlib
import errno
import random
import select
import socket
import struct
from collections.abc import Callable
from functools import partial

import pytest

from nbnet.pollers import EDGE, READ, WRITE
from simulation.kernel import MS, SECOND, Kernel, Process, SimulationFailure
from simulation.network import End, Network
from simulation.poller import Poller
from simulation.sockets import Listener, Socket

# Both kernels play the same scripts. -------------------------------------------


class Simulated:
    """A connection in the simulated kernel: ends 0 and 1, and pollers of each trigger."""

    def __init__(self) -> None:
        self.kernel = Kernel(1)
        process = Process(self.kernel, "a process")
        listener = Listener(process)
        network = Network(self.kernel, listener, pieces=0)
        client = End(self.kernel, room=100_000, window=100_000, least=100_000)
        network.connect(client)
        self.kernel.wait(lambda: client.connected, self.kernel.now + SECOND)
        accepted, _ = listener.accept()
        self.sockets = [Socket(process, client, process.install(client)), accepted]
        self.pollers = [Poller(process), Poller(process)]

    def settle(self) -> None:
        self.kernel.wait(lambda: False, self.kernel.now + 100 * MS)

    def reset(self, which: int) -> None:
        self.sockets[which].end.abort()


class Real:
    """The same on a loopback connection."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            accepted, _ = listener.accept()
        self.sockets = [client, accepted]
        for each in self.sockets:
            each.setblocking(False)
        self.pollers = [select.epoll(), select.epoll()]

    def settle(self) -> None:
        # What was sent on loopback has arrived when the call returns.
        with contextlib.suppress(OSError):
            self.sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)

    def reset(self, which: int) -> None:
        self.sockets[which].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sockets[which].close()

    def close(self) -> None:
        for each in self.sockets:
            each.close()
        for poller in self.pollers:
            poller.close()


def play(script: str, world: Simulated | Real) -> list[object]:
    """What the steps of a script give: bytes, numbers, names of errors and of events."""
    results: list[object] = []
    for step in script.split():
        what, which = step[:-1], int(step[-1])
        each = world.sockets[which]
        try:
            if what == "send":
                results.append(each.send(b"abc"))
            elif what == "recv":
                results.append(each.recv(2))
            elif what == "shut":
                each.shutdown(socket.SHUT_WR)
            elif what == "close":
                each.close()
            elif what == "reset":
                world.reset(which)
            else:
                trigger = EDGE if what.startswith("e") else 0
                poller = world.pollers[which]
                if what.endswith("watch"):
                    poller.register(each.fileno(), READ | WRITE | select.EPOLLRDHUP | trigger)
                else:
                    results.append([mask for _, mask in poller.poll(0, 10)])
        except OSError as error:
            results.append(errno.errorcode[error.errno or 0])
        world.settle()
    return results


SCRIPTS = [
    "watch1 poll1 send0 poll1 recv1 poll1 recv1 poll1 recv1",
    "ewatch1 poll1 send0 poll1 poll1 send0 poll1 recv1 poll1",
    "send0 shut0 recv1 recv1 recv1 recv1 send1 recv0 recv0",
    "watch1 shut0 poll1 shut1 poll1",
    "ewatch1 poll1 shut0 poll1 poll1 send1 poll1 shut1 poll1",
    "send0 close0 recv1 recv1 recv1 send1 send1 recv1",
    "send1 close0 watch1 poll1 recv1 recv1 send1",
    "send1 close0 send1 send1",
    "send0 reset0 watch1 poll1 recv1 recv1 recv1 recv1 send1",
    "reset0 send1 send1 recv1",
    "reset0 shut1",
    "shut0 send0",
    "shut0 shut0 recv1",
    "reset0 watch1 poll1 recv1 poll1",
    "shut1 reset0 watch1 poll1 recv1 poll1",
    "shut0 recv1 close1 recv0 send0",
    "close0 send1 recv1 recv1 send1",
    "watch0 poll0 close1 poll0 send0 poll0 recv0 poll0",
]


def draw_script(rng: random.Random) -> str:
    """Steps at random that make sense: nothing is used after it was closed."""
    steps: list[str] = []
    closed, watched = set(), set()
    trigger = rng.choice(("", "e"))
    for _ in range(rng.randrange(3, 14)):
        which = rng.randrange(2)
        what = rng.choice(("send", "recv", "recv", "shut", "close", "reset", "watch", "poll"))
        if which in closed or (what == "poll" and which not in watched):
            continue
        if what == "watch" and which not in watched:
            watched.add(which)
        elif what == "watch":
            continue
        elif what in ("close", "reset"):
            if which in watched:
                continue
            closed.add(which)
        steps.append(f"{trigger if what in ('watch', 'poll') else ''}{what}{which}")
    return " ".join(steps)


@pytest.mark.parametrize("script", SCRIPTS)
def test_both_kernels_do_the_same(script: str) -> None:
    check_script(script)


def test_both_kernels_do_the_same_at_random() -> None:
    rng = random.Random(1)
    for _ in range(300):
        check_script(draw_script(rng))


def check_script(script: str) -> None:
    real = Real()
    try:
        expected = play(script, real)
    finally:
        real.close()
    assert play(script, Simulated()) == expected, script


# Misuse ---------------------------------------------------------------------------


@pytest.fixture
def world() -> Simulated:
    return Simulated()


def close_registered(world: Simulated) -> None:
    world.pollers[0].register(world.sockets[0].fd, READ)
    world.sockets[0].close()


def register_twice(world: Simulated) -> None:
    world.pollers[0].register(world.sockets[0].fd, READ)
    world.pollers[0].register(world.sockets[0].fd, READ)


def close_twice(world: Simulated) -> None:
    world.sockets[0].close()
    world.sockets[0].close()


def read_closed(world: Simulated) -> None:
    world.sockets[0].close()
    world.sockets[0].recv(1)


def register_closed(world: Simulated) -> None:
    world.sockets[0].close()
    world.pollers[0].register(world.sockets[0].fd, READ)


def spin(world: Simulated) -> None:
    world.sockets[0].end.abort()
    world.settle()
    world.pollers[1].register(world.sockets[1].fd, 0)
    while world.pollers[1].poll(-1, 1):
        pass


def wait_for_ever(world: Simulated) -> None:
    world.pollers[1].register(world.sockets[1].fd, READ)
    world.pollers[1].poll(-1, 1)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (close_registered, "closed while it is registered"),
        (register_twice, "registered twice"),
        (close_twice, "closed twice"),
        (read_closed, "used after it was closed"),
        (register_closed, "used and not open"),
        (lambda world: world.pollers[0].modify(3, READ), "modified and not registered"),
        (lambda world: world.pollers[0].unregister(3), "unregistered and was not"),
        (spin, "spins"),
        (wait_for_ever, "waits for ever"),
    ],
)
def test_misuse_fails_the_run(
    world: Simulated, act: Callable[[Simulated], object], message: str
) -> None:
    with pytest.raises(SimulationFailure, match=message):
        act(world)
    assert world.kernel.failure is not None


def test_descriptors_are_used_again_lowest_first(world: Simulated) -> None:
    first, second = world.sockets
    process = first.process
    numbers = sorted((first.fd, second.fd))
    first.close()
    second.close()
    found = [process.install(End(world.kernel, room=1, window=1)) for _ in range(3)]
    assert found[:2] == numbers
    assert found[2] > numbers[1]


def test_processes_take_turns_in_the_order_of_the_seed() -> None:
    def order(seed: int) -> str:
        kernel, steps = Kernel(seed), []

        def main(name: str) -> None:
            for _ in range(5):
                steps.append(name)
                kernel.wait(lambda: True, 0)

        kernel.run(("a", partial(main, "a")), ("b", partial(main, "b")))
        return "".join(steps)

    assert order(1) == order(1)
    assert len({order(seed) for seed in range(10)}) > 5


def test_a_process_that_fails_ends_the_others() -> None:
    kernel = Kernel(1)
    ended = []

    def waits() -> None:
        try:
            kernel.wait(lambda: False, kernel.now + SECOND)
            kernel.wait(lambda: False, kernel.now + SECOND)
        finally:
            ended.append(True)

    def fails() -> None:
        kernel.wait(lambda: False, kernel.now + 3 * SECOND // 2)
        kernel.fail("something")

    with pytest.raises(SimulationFailure, match="something"):
        kernel.run(("waits", waits), ("fails", fails))
    assert ended == [True]

"""One call fails: number 1, 2, ... of each kind, with each errno that it may have.

A scene is a run without any other fault, so that it is known which calls there
are. Then it is played again for each of them, and for pairs. What has to come of
it is in the tables:

* ``SURVIVED``: nothing is wrong but, at most, the connection that the call was
  for; all the others get every reply, and everything is closed in the end;
* ``FATAL``: a bug in this program, or a descriptor that somebody else has closed.
  The right thing is to end, with that error, and to leave nothing open.

What is missing cannot happen: ``EINTR`` is dealt with by the interpreter (PEP
475); ``close`` of a socket that is open does not fail on Linux, nor ``EPOLL_CTL_DEL``
of what is registered (whoever did that to one that is not would fail the run).
"""

from __future__ import annotations

import errno
import itertools
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

from loadgen.plan import Plan
from nbnet.limits import Limits
from simulation.faults import Faults
from simulation.kernel import MS, SECOND, Ended, Kernel, Process, SimulationFailure
from simulation.load_world import LoadWorld
from simulation.network import Network
from simulation.peers import Peer
from simulation.served import ServedProcess, Threads

Script: TypeAlias = Mapping[tuple[str, int], int]
"""Errors by kind of call and its number, from 1."""

_BROKEN: Final = (
    errno.ECONNRESET,
    errno.ETIMEDOUT,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ENOTCONN,
)
_NO_MEMORY: Final = (errno.ENOMEM, errno.ENOBUFS)

SURVIVED: Final[dict[str, dict[str, tuple[int, ...]]]] = {
    "server": {
        "recv": (errno.EAGAIN, *_BROKEN, *_NO_MEMORY),
        "send": (errno.EAGAIN, errno.EPIPE, *_BROKEN, *_NO_MEMORY),
        "accept": (
            errno.EAGAIN,
            errno.EMFILE,
            errno.ENFILE,
            *_NO_MEMORY,
            errno.ECONNABORTED,
            errno.EPERM,
            errno.EPROTO,
            # Errors of the network that are already there on a new connection.
            errno.ENETDOWN,
            errno.ENOPROTOOPT,
            errno.EHOSTDOWN,
            errno.ENONET,
            errno.EHOSTUNREACH,
            errno.EOPNOTSUPP,
            errno.ENETUNREACH,
        ),
        "shutdown": (errno.ENOTCONN,),
        "register": (errno.ENOMEM, errno.ENOSPC),
        "modify": (errno.ENOMEM,),
    },
    "load": {
        "recv": (errno.EAGAIN, *_BROKEN, *_NO_MEMORY),
        "send": (errno.EAGAIN, errno.EPIPE, *_BROKEN, *_NO_MEMORY),
        "dial": (
            errno.EAGAIN,
            errno.EMFILE,
            errno.ENFILE,
            *_NO_MEMORY,
            errno.EADDRNOTAVAIL,
            errno.ECONNREFUSED,
            errno.ENETUNREACH,
            errno.EACCES,
        ),
        "advance": (errno.ECONNREFUSED, *_BROKEN),
        "register": (errno.ENOMEM, errno.ENOSPC),
        "modify": (errno.ENOMEM,),
    },
}
FATAL: Final[dict[str, dict[str, tuple[int, ...]]]] = {
    "server": {
        "accept": (errno.EBADF, errno.EFAULT, errno.EINVAL, errno.ENOTSOCK),
        "poll": (errno.EBADF, errno.EFAULT, errno.EINVAL),
    },
    "load": {
        "poll": (errno.EBADF, errno.EFAULT, errno.EINVAL),
        "wait": (errno.EBADF, errno.EFAULT, errno.EINVAL),
    },
}

_KINDS: Final = ("pipeliner", "half-closer", "slow reader", "bad header", "slow writer")

_SEEDS: Final = (1024, 1024, 1015)
"""Of the scenes of a server: such that each kind of call comes in each."""


class ServerScene:
    """The loop among five peers that behave, and that can be told apart.

    Args:
        scene: which; the trigger and threads follow from it.
    """

    def __init__(self, scene: int, script: Script) -> None:
        self.kernel = kernel = Kernel(_SEEDS[scene])
        limits = Limits(high_water=300, low_water=100, frames_per_turn=5)
        self.faults = Faults(kernel, script=script)
        self.server = ServedProcess(
            kernel,
            limits=limits,
            edge=scene % 2 == 1,
            faults=self.faults,
            pool=Threads(kernel, 2, 5 * MS) if scene == 2 else None,
        )
        network = Network(kernel, self.server.listeners[0])
        self.peers = []
        for number, kind in enumerate(_KINDS):
            # Each draws from its own source, or a fault of one would change the others.
            peer = Peer(kernel, network, self.server.handler, limits, number, kind, 3)
            kernel.after(number * 2 * MS, peer.start)
            self.peers.append(peer)
        kernel.after(SECOND, self._look)

    def _look(self) -> None:
        if all(peer.over for peer in self.peers) or self.kernel.now > 1100 * SECOND:
            self.server.stop()
        else:
            self.kernel.after(SECOND, self._look)

    @property
    def process(self) -> Process:
        return self.server.process

    @property
    def calls(self) -> Counter[str]:
        return self.process.calls

    def stop(self) -> None:
        self.server.stop()

    def run(self) -> None:
        try:
            self.server.loop.run()
        except (OSError, KeyboardInterrupt):
            self.server.excuse, self.server.failed = "it ended with an error", True
            self.server.check_end()
            raise
        self.server.check_end()

    def check_others(self) -> None:
        """Nobody is worse off but those whose calls failed."""
        kernel = self.kernel
        kernel.wait(lambda: all(peer.over for peer in self.peers), kernel.now + 60 * SECOND)
        disturbed = [peer for peer in self.peers if peer.end.disturbed]
        if len(disturbed) > len(self.faults.done):
            kernel.fail(f"{len(disturbed)} peers suffer from {len(self.faults.done)} faults")
        for peer in self.peers:
            if not peer.end.disturbed and not peer.is_served:
                kernel.fail(
                    f"peer {peer.number}, a {peer.kind}, has {len(peer.received)} bytes of "
                    f"{len(peer.expected)} and ended by {peer.outcome or 'waiting'}"
                )


class LoadScene:
    """The engine with four connections, closed, open or pipelined."""

    def __init__(self, scene: int, script: Script) -> None:
        plan = Plan(
            connections=4,
            duration=0.006,
            rate=2000.0 if scene == 1 else None,
            pipeline=3 if scene == 2 else 1,
            connect_rate=1000.0,
            timeout=1.0,
            grace=1.0,
        )
        self.world = LoadWorld(2000 + scene, script=script, plan=plan, calm=True)

    @property
    def process(self) -> Process:
        return self.world.process

    @property
    def calls(self) -> Counter[str]:
        return self.process.calls

    def stop(self) -> None:
        self.world.interrupted = True
        self.world.control.stop()

    @property
    def faults(self) -> Faults:
        assert self.world.process.faults is not None
        return self.world.process.faults

    def run(self) -> None:
        self.world.run()

    def check_others(self) -> None:
        """Nothing is lost but what the faults were for."""
        counts, most = self.world.counts, len(self.faults.done)
        if not self.calls["poll"]:
            return  # it could not start
        lost = counts.lost + counts.failed_to_connect
        if max(lost, sum(counts.errors.values())) > most:
            self.world.kernel.fail(f"{lost} connections are lost to {most} faults: {counts}")
        if counts.timed_out or counts.wrong or counts.failed > most * self.world.plan.pipeline:
            self.world.kernel.fail(f"{most} faults cost more than their connections: {counts}")


SCENES: Final[dict[str, type[ServerScene | LoadScene]]] = {
    "server": ServerScene,
    "load": LoadScene,
}
VARIANTS: Final = 3
"""Scenes of each world."""


def torture(world: str, scene: int, script: Script) -> Counter[str]:
    """Play a scene with errors in it; the calls that there were.

    Raises:
        SimulationFailure: it came to something else than it should.
    """
    played: ServerScene | LoadScene = SCENES[world](scene, script)
    fatal = FATAL[world]
    ending = {code for (kind, _), code in script.items() if code in fatal.get(kind, ())}
    try:
        try:
            played.run()
        except OSError as error:
            if error.errno in ending:
                return played.calls
            # What cannot be watched from the very start on is not to be served.
            if ("register", 1) not in played.faults.done:
                raise
            return played.calls
        if ending and any(script[call] in ending for call in played.faults.done):
            played.faults.kernel.fail("it has gone on after an error that ends it")
        played.check_others()
    except (Exception, Ended) as error:
        told = ", ".join(f"{kind} {n}: {errno.errorcode[e]}" for (kind, n), e in script.items())
        failure = played.faults.kernel.failure or repr(error)
        raise SimulationFailure(f"{world} scene {scene}, {told}: {failure}") from error
    return played.calls


def stop_at(world: str, scene: int, number: int, *, times: int = 1) -> bool:
    """Play a scene in which signals come at the start of a call; whether there is that call.

    Args:
        number: of the call, of all kinds together.
        times: how many signals; the second does not wait.

    Raises:
        SimulationFailure: it did not end as it should.
    """
    played: ServerScene | LoadScene = SCENES[world](scene, {})
    left = number

    def count(_kind: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            for _ in range(times):
                played.stop()

    played.process.on_call = count
    try:
        played.run()
    except (Exception, Ended) as error:
        failure = played.faults.kernel.failure or repr(error)
        raise SimulationFailure(f"{world} scene {scene}, stop at {number}: {failure}") from error
    return left <= 0


def interrupt_at(scene: int, number: int) -> bool:
    """Play a scene of the server in which Ctrl-C comes in the handler; whether it did.

    Raises:
        SimulationFailure: it did not end the server, or something was left open.
    """
    played = ServerScene(scene, {})
    left = number

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    played.server.handler.before = count
    try:
        played.run()
    except KeyboardInterrupt:
        return True
    except (Exception, Ended) as error:
        failure = played.faults.kernel.failure or repr(error)
        raise SimulationFailure(f"scene {scene}, Ctrl-C at {number}: {failure}") from error
    if left <= 0:
        raise SimulationFailure(f"scene {scene}: Ctrl-C in request {number} has ended nothing")
    return False


def singles(world: str, scene: int, *, all_errors: bool = True) -> Iterator[Script]:
    """Each call of a scene with each of its errors, or with one of them in turn."""
    calls = torture(world, scene, {})
    for table in (SURVIVED[world], FATAL[world]):
        for kind, codes in table.items():
            for number in range(1, calls[kind] + 1):
                chosen = codes if all_errors else (codes[number % len(codes)],)
                for code in chosen:
                    yield {(kind, number): code}


def pairs(world: str, scene: int, *, sample: int | None = None) -> Iterator[Script]:
    """Each two calls of a scene that may fail without ending it, or some of them by chance."""
    calls = torture(world, scene, {})
    found = [(kind, n) for kind in SURVIVED[world] for n in range(1, calls[kind] + 1)]
    chosen = list(itertools.combinations(found, 2))
    rng = random.Random(scene)
    if sample is not None:
        chosen = [rng.choice(chosen) for _ in range(sample)]
    for pair in chosen:
        yield {call: rng.choice(SURVIVED[world][call[0]]) for call in pair}

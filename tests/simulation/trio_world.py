"""The real ``AsyncClient`` against the real event loop, in one kernel.

As ``client_world``, with callers that are tasks of one trio program and may be
cancelled at any moment. The program's clock is the kernel's: trio asks its clock
how long to sleep when no task can go on, and this one lets the kernel's other
processes run until a task can, or something is due.
"""

from __future__ import annotations

import errno
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import trio

from nbclient import AsyncClient, NbclientError
from nbnet.notation import Address
from nbnet.pollers import ERROR, READ, WRITE
from simulation.client_world import ClientWorld, InOrder, deadline
from simulation.kernel import MS, SECOND, Kernel, Process, os_error
from simulation.network import End
from simulation.outcome import Outcome
from simulation.sockets import Socket

_SLACK = 0.05
"""Seconds that a call may take beyond its deadline."""


class KernelClock(trio.abc.Clock):
    """The kernel's clock, for trio.

    Attributes:
        waiters: what tasks wait for, and what wakes them.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.waiters: dict[trio.Event, Callable[[], bool]] = {}
        self._idle = 0

    def start_clock(self) -> None:
        """It goes already."""

    def current_time(self) -> float:
        return self._kernel.seconds()

    def deadline_to_sleep_time(self, when: float) -> float:
        """Called when no task can go on: others do, until one can."""
        if when == math.inf and not self.waiters:
            # At its end trio tells itself something through a real socket.
            self._idle += 1
            if self._idle > 10:
                self._kernel.fail("all tasks wait for ever")
            return 1.0
        self._idle = 0
        now = self._kernel.seconds()
        if when > now:
            self._kernel.wait(self._is_any_ready, deadline(self._kernel, when - now))
        for event, is_ready in list(self.waiters.items()):
            if is_ready():
                event.set()
        return 0.0

    def _is_any_ready(self) -> bool:
        return any(is_ready() for is_ready in self.waiters.values())

    async def wait(self, is_ready: Callable[[], bool]) -> None:
        """Wait, as a task, until something holds in the kernel."""
        event = trio.Event()
        self.waiters[event] = is_ready
        try:
            await event.wait()
        finally:
            del self.waiters[event]


class TrioStream(trio.abc.Stream):
    """A connection of the simulated kernel, for trio."""

    def __init__(self, process: Process, end: End, fd: int, clock: KernelClock) -> None:
        self._process = process
        self._socket = Socket(process, end, fd)
        self._end = end
        self._clock = clock
        self._closed = False

    def _is_ready(self, bits: int) -> bool:
        return self._closed or bool(self._end.mask() & (bits | ERROR))

    async def _wait(self, bits: int) -> None:
        await self._clock.wait(partial(self._is_ready, bits))
        self._check()

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._check()
        await trio.lowlevel.checkpoint()
        rest = memoryview(data)
        while rest:
            self._check()
            try:
                rest = rest[self._socket.send(rest) :]
            except BlockingIOError:
                await self._wait(WRITE)
            except OSError as error:
                raise trio.BrokenResourceError from error

    async def wait_send_all_might_not_block(self) -> None:
        self._check()
        await self._wait(WRITE)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        self._check()
        await trio.lowlevel.checkpoint()
        while True:
            self._check()
            try:
                return self._socket.recv(max_bytes or 65_536)
            except BlockingIOError:
                await self._wait(READ)
            except OSError as error:
                raise trio.BrokenResourceError from error

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Close it at once; who waits for it is told."""
        if not self._closed:
            self._closed = True
            if self._process.kernel.failure is None:
                self._socket.close()


class TrioWorld(ClientWorld):
    """A run of tasks with one client against a server, by its seed."""

    async def _open(self, _address: Address) -> TrioStream:
        process, rng = self.process, self.rng
        process.enter("dial", -1)
        end = self._new_end(rng)
        stream = TrioStream(process, end, process.install(end), self._clock)
        self.network.connect(end)
        try:
            await self._clock.wait(lambda: end.connected or end.dead)
        except BaseException:
            stream.close()
            raise
        if end.dead:
            stream.close()
            raise os_error(end.error or errno.ECONNRESET)
        return stream

    async def _main(self) -> None:
        client = AsyncClient(connect=self._open, **self._options)
        vars(client)["_open"] = InOrder()
        async with client as self._tasks_client, trio.open_nursery() as nursery:
            for number in range(self.callers):
                nursery.start_soon(self._task, number)

    async def _task(self, number: int) -> None:
        rng, index = self.rng, 0
        for _ in range(rng.choice((1, 3, 10))):
            if rng.random() < 0.4:
                await trio.sleep(rng.randrange(20 * MS) / SECOND)
            count = rng.choice((1, 1, 1, 3, 30))
            payloads = [self._payload(number, index + each) for each in range(count)]
            index += count
            patience = math.inf
            if rng.random() < 0.15:
                patience = rng.randrange(1, 10 * MS) / SECOND
                # Cancelled while it is sent, it takes its connection with it.
                self.excused = True
            with trio.move_on_after(patience):
                if count == 1:
                    await self._ask(payloads[0])
                else:
                    await self._ask_many(payloads)

    async def _ask(self, payload: bytes) -> None:
        rng, kernel = self.rng, self.kernel
        idempotent = rng.random() < 0.3
        if idempotent:
            self.server.handler.repeatable.add(payload)
        timeout = self.timeout if self.harmless or rng.random() < 0.5 else rng.choice((0.003, 0.5))
        started = kernel.now
        try:
            reply = await self._tasks_client.request(
                payload, idempotent=idempotent, timeout=timeout
            )
        except NbclientError as error:
            self._fails(payload, error)
        else:
            self._replied(payload, reply)
        took = (kernel.now - started) / SECOND
        if took > timeout + _SLACK + 5 * kernel.longest_gap / SECOND:
            kernel.fail(f"a request took {took:.3f} s, allowed are {timeout} s")

    async def _ask_many(self, payloads: list[bytes]) -> None:
        rng = self.rng
        wanted = len(payloads) if rng.random() < 0.7 else rng.randrange(len(payloads))
        got = 0
        replies = self._tasks_client.request_many(payloads, window=rng.choice((1, 5, 100)))
        try:
            async for reply in replies:
                self._replied(payloads[got], reply)
                got += 1
                if got > wanted:
                    break
        except NbclientError as error:
            self._fails(payloads[got], error)
            return
        finally:
            with trio.CancelScope(shield=True):
                await replies.aclose()
        if got < min(wanted, len(payloads)):
            self.kernel.fail(f"{got} replies to {len(payloads)} requests, and no error")

    def run(self) -> Outcome:
        """Play it.

        Raises:
            SimulationFailure: a promise was broken.
        """
        self._clock = KernelClock(self.kernel)
        with self._deterministic():
            return self._play(("trio", self._run_trio))

    def _run_trio(self) -> None:
        try:
            trio.run(self._main, clock=self._clock)
        finally:
            self.server.stop()

    @contextmanager
    def _deterministic(self) -> Iterator[None]:
        """Chance in trio and in the client is that of the seed."""
        before, of_trio = random.getstate(), trio._core._run._r.getstate()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
            random.seed(self.rng.randrange(1 << 30))
            trio._core._run._r.seed(self.rng.randrange(1 << 30))
            try:
                yield
            finally:
                random.setstate(before)
                trio._core._run._r.setstate(of_trio)


def run(seed: int, trace: Callable[[str], None] | None = None) -> Outcome:
    """Play a seed of this world."""
    return TrioWorld(seed, trace).run()

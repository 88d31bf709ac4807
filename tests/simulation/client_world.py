"""The real blocking client against the real event loop, in one kernel.

Some callers share a ``Client``, each a process of its own as far as turns go. A
seed draws their requests, alone and in rows, with their timeouts; the network,
the faults of both sides, and whether the server goes away. Checked of each request:

* a reply is the one to its own payload, whatever happened before on the connection;
* it ends by its deadline, with that or with an ``NbclientError``;
* ``maybe_executed=False`` is said only of a request that the handler has not seen,
  and one that may not be repeated is handled once at most;
* where nothing was disturbed, all are answered;

and that in the end nothing is open. ``tests/nbclient/test_faults.py`` has model
servers that do worse things; this one is the real one.
"""

from __future__ import annotations

import errno
import gc
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import SimpleNamespace
from typing import Any, Final

import pytest

import nbclient.sync
import nbclient.sync_connection
from nbclient import Client, NbclientError
from nbclient.exchange import WINDOW
from nbnet.limits import Limits
from nbnet.notation import Address
from nbnet.pollers import ERROR, READ, WRITE
from simulation.account import EMPTY, GROW, RAISE, REVERSE, answer
from simulation.faults import Faults, draw_rates
from simulation.kernel import FOREVER, MS, SECOND, US, Ended, Kernel, Process, os_error
from simulation.network import End, Network
from simulation.outcome import Outcome
from simulation.served import ServedProcess
from simulation.sockets import Socket

_SLACK: Final = 0.05
"""Seconds that a call may take beyond its deadline."""


class KernelStream:
    """What ``Client`` wants of a connection, on the simulated kernel."""

    def __init__(self, process: Process, end: End, fd: int) -> None:
        self._kernel = process.kernel
        self._socket = Socket(process, end, fd)
        self._end = end
        self._aborted = False
        self._closed = False

    def send(self, data: bytes | memoryview, timeout: float | None, /) -> int:
        sent: int = self._try(lambda: self._socket.send(data), WRITE, timeout)
        return sent

    def receive(self, timeout: float | None, /) -> bytes:
        data: bytes = self._try(lambda: self._socket.recv(65_536), READ, timeout)
        return data

    def _try(self, call: Callable[[], Any], bits: int, timeout: float | None) -> Any:
        until = deadline(self._kernel, timeout)
        while True:
            if self._aborted:
                if bits == READ:
                    return b""
                raise os_error(errno.EPIPE)
            try:
                return call()
            except BlockingIOError:
                if self._kernel.now >= until:
                    raise TimeoutError from None
                self._kernel.wait(partial(self._is_ready, bits), until)

    def _is_ready(self, bits: int) -> bool:
        return self._aborted or bool(self._end.mask() & (bits | ERROR))

    def readable(self) -> bool:
        return bool(self._end.mask() & (READ | ERROR))

    def abort(self) -> None:
        self._aborted = True

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._kernel.failure is None:
                self._socket.close()


def deadline(kernel: Kernel, timeout: float | None) -> int:
    """A timeout as a time of the kernel's."""
    if timeout is None or timeout == math.inf:
        return FOREVER
    return kernel.now + max(0, math.ceil(timeout * SECOND))


class Condition:
    """In place of a ``threading.Condition``: waiters are woken in their order."""

    def __init__(self, lock: Any, kernel: Kernel) -> None:
        self._lock = lock
        self._kernel = kernel
        self._waiters: list[list[bool]] = []

    def wait(self, timeout: float) -> None:
        woken = [False]
        self._waiters.append(woken)
        self._lock.release()
        try:
            self._kernel.wait(lambda: woken[0], deadline(self._kernel, timeout))
        finally:
            self._lock.acquire()
            if woken in self._waiters:
                self._waiters.remove(woken)

    def notify(self, n: int = 1) -> None:
        for woken in self._waiters[:n]:
            woken[0] = True
        del self._waiters[:n]

    def notify_all(self) -> None:
        self.notify(len(self._waiters))


class Event:
    """In place of a ``threading.Event``."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._set = False

    def set(self) -> None:
        self._set = True

    def wait(self, timeout: float) -> None:
        self._kernel.wait(lambda: self._set, deadline(self._kernel, timeout))


class InOrder(dict[Any, None]):
    """In place of a set, whose order would be that of addresses."""

    def add(self, item: Any) -> None:
        self[item] = None

    def discard(self, item: Any) -> None:
        self.pop(item, None)

    def difference_update(self, items: Any) -> None:
        for item in items:
            self.pop(item, None)


class ClientWorld:
    """A run of callers with one client against a server, by its seed."""

    def __init__(self, seed: int, trace: Callable[[str], None] | None = None) -> None:
        self.kernel = kernel = Kernel(seed, trace)
        rng = self.rng = kernel.rng
        self.harmless = rng.random() < 0.5
        rates = draw_rates(rng, harmless=self.harmless)
        self.server = ServedProcess(
            kernel,
            limits=Limits(
                frames_per_turn=rng.choice((2, 1024)),
                high_water=rng.choice((60, 9999)),
                low_water=60,
            ),
            edge=rng.random() < 0.4,
            faults=Faults(kernel, draw_rates(rng, harmless=self.harmless)),
        )
        pace = rng.choice((20 * US, MS))
        self.network = Network(kernel, self.server.listeners[0], pace=pace, pieces=rng.randrange(3))
        self.network.reset_rate, self.network.vanish_rate = rates.reset, rates.vanish
        rates.accept = 0.0  # calls of a server
        self.process = Process(kernel, "client", Faults(kernel, rates))
        self.ends: list[End] = []
        self.timeout = 30.0 if self.harmless else rng.choice((0.05, 1.0, 5.0))
        self.callers = rng.choice((1, 2, 4))
        self._options: dict[str, Any] = {
            "timeout": self.timeout,
            "max_connections": rng.choice((1, 2, 10)),
            "retries": rng.choice((0, 2)),
        }
        self.answered = self.failed = 0
        self._left = self.callers
        self.excused = False  # whether any request may fail
        if not self.harmless and rng.random() < 0.3:
            kernel.after(rng.randrange(rng.choice((20 * MS, SECOND))), self._stop)

    def _stop(self) -> None:
        self.excused = True
        self.server.stop()

    def _connect(self, _address: Address, timeout: float | None) -> KernelStream:
        process, rng = self.process, self.rng
        process.enter("dial", -1)
        end = self._new_end(rng)
        stream = KernelStream(process, end, process.install(end))
        self.network.connect(end)
        self.kernel.wait(lambda: end.connected or end.dead, deadline(self.kernel, timeout))
        if end.connected and not end.dead:
            return stream
        error = os_error(end.error) if end.dead else TimeoutError()
        stream.close()
        raise error

    def _new_end(self, rng: random.Random) -> End:
        end = End(
            self.kernel,
            room=rng.choice((30, 20_000)),
            window=rng.choice((30, 20_000)),
            # The client sends as much without reading: less would keep both waiting.
            least=WINDOW if self.harmless else 0,
        )
        self.ends.append(end)
        return end

    # What callers do ------------------------------------------------------------------

    def _payload(self, number: int, index: int) -> bytes:
        rng = self.rng
        letter = rng.choice((REVERSE, REVERSE, REVERSE, EMPTY, GROW))
        if not self.harmless and rng.random() < 0.03:
            letter = RAISE
        payload = letter + b"%d.%d:" % (number, index) + b"." * rng.randrange(rng.choice((1, 90)))
        self.server.handler.known[payload] = False
        return payload

    def _call(self, number: int) -> None:
        rng, kernel = self.rng, self.kernel
        index = 0
        try:
            for _ in range(rng.choice((1, 3, 10))):
                if rng.random() < 0.4:
                    kernel.wait(lambda: False, kernel.now + rng.randrange(20 * MS))
                count = rng.choice((1, 1, 1, 3, 30))
                payloads = [self._payload(number, index + each) for each in range(count)]
                index += count
                if count == 1:
                    self._one(payloads[0])
                else:
                    self._many(payloads)
        finally:
            self._left -= 1
            if not self._left:
                self.client.close()
                self.server.stop()

    def _one(self, payload: bytes) -> None:
        rng, kernel = self.rng, self.kernel
        idempotent = rng.random() < 0.3
        if idempotent:
            self.server.handler.repeatable.add(payload)
        timeout = self.timeout if self.harmless or rng.random() < 0.5 else rng.choice((0.003, 0.5))
        started = kernel.now
        try:
            reply = self.client.request(payload, idempotent=idempotent, timeout=timeout)
        except NbclientError as error:
            self._fails(payload, error)
        else:
            self._replied(payload, reply)
        took = (kernel.now - started) / SECOND
        if took > timeout + _SLACK + 5 * kernel.longest_gap / SECOND:
            kernel.fail(f"a request took {took:.3f} s, allowed are {timeout} s")

    def _many(self, payloads: list[bytes]) -> None:
        rng = self.rng
        wanted = len(payloads) if rng.random() < 0.7 else rng.randrange(len(payloads))
        got = 0
        try:
            replies = self.client.request_many(payloads, window=rng.choice((1, 5, 100)))
            for payload, reply in zip(payloads, replies, strict=False):
                self._replied(payload, reply)
                got += 1
                if got > wanted:
                    break
            replies.close()
        except NbclientError as error:
            self._fails(payloads[got], error)
            return
        if got < min(wanted, len(payloads)):
            self.kernel.fail(f"{got} replies to {len(payloads)} requests, and no error")

    def _replied(self, payload: bytes, reply: bytes) -> None:
        self.answered += 1
        self.kernel.note("reply", len(reply))
        if reply != answer(payload):
            self.kernel.fail(f"the reply to {payload[:40]!r} is {reply[:40]!r}")

    def _fails(self, payload: bytes, error: NbclientError) -> None:
        self.failed += 1
        kernel = self.kernel
        kernel.say("%.30r fails: %s", payload, error)
        handled = self.server.handler.known[payload]
        if handled and error.maybe_executed is False:
            kernel.fail(f"{payload[:40]!r} was handled, and is said not to be: {error}")
        disturbed = self.excused or self.server.excuse or any(end.disturbed for end in self.ends)
        if self.harmless and not disturbed:
            kernel.fail(f"nothing was disturbed, and {payload[:40]!r} fails: {error!r}")

    # The run --------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Play it.

        Raises:
            SimulationFailure: a promise was broken.
        """
        callers = [(f"caller {n}", partial(self._call, n)) for n in range(self.callers)]
        with self._simulated():
            return self._play(*callers)

    def _play(self, *callers: tuple[str, Callable[[], None]]) -> Outcome:
        kernel, start = self.kernel, self.kernel.now
        kernel.run(("server", self._serve), *callers)
        if left := sorted(self.process.files):
            kernel.fail(f"descriptors {left} of the client are still open")
        return Outcome(
            digest=kernel.digest,
            events=kernel.events,
            seconds=(kernel.now - start) / SECOND,
            connections=self.server.process.accepted,
            requests=self.answered,
            cut=len(self.server.cut),
        )

    def _serve(self) -> None:
        try:
            self.server.loop.run()
        except OSError:
            if self.server.process.calls["register"] > 1:
                raise
            self.server.excuse = "it could not start"
        self.server.check_end()

    @contextmanager
    def _simulated(self) -> Iterator[None]:
        """The client's clock, locks and chance are those of the kernel."""
        kernel = self.kernel
        before = random.getstate()
        random.seed(kernel.rng.randrange(1 << 30))  # for the pauses before retries
        self.client = client = Client(connect=self._connect, **self._options)
        collecting = gc.isenabled()
        gc.disable()  # what it would close, and when, is not the seed's
        with pytest.MonkeyPatch.context() as patch:
            for module in (nbclient.sync, nbclient.sync_connection):
                patch.setattr(module, "time", SimpleNamespace(monotonic=kernel.seconds))
            patch.setattr(client, "_freed", Condition(client._lock, kernel))
            patch.setattr(client, "_closing", Event(kernel))
            patch.setattr(client, "_open", InOrder())
            try:
                yield
            finally:
                with suppress(Ended):
                    client.close()
                random.setstate(before)
                if collecting:
                    gc.enable()


def run(seed: int, trace: Callable[[str], None] | None = None) -> Outcome:
    """Play a seed of this world."""
    return ClientWorld(seed, trace).run()

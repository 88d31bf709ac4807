"""The clients of a soak, in a process of their own: threads and tasks, on both fronts.

Started by ``soak.running`` with a JSON object of options. It reads a word a line: ``go``
lets all ask until ``rest``, which is answered with a line of JSON: what came of it since
the start, and what the process holds then. The end of input ends it.

Every reply is compared with the request, which no other one is like. Now and then a
caller gives up early, on purpose: what comes too late must reach nobody else. Two
clients live as long as the process; others come and go.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
from collections import Counter
from itertools import count
from typing import Any

import trio

from nbclient import AsyncClient, Client, NbclientError, RequestTimeout
from nbnet.machine import die_with_parent
from soak.handler import held
from soak.measures import descriptors

TIMEOUT = 30.0
"""Seconds that a reply may take: on a machine with others, long."""
EXAMPLES = 3


class Clients:
    """All that ask, and what came of it.

    Attributes:
        leak: whether to leave something behind on purpose, to see whether it is noticed.
    """

    def __init__(self, target: str, threads: int, tasks: int, rate: float, leak: bool) -> None:
        self._target = target
        self._threads, self._tasks = threads, tasks
        self._pause = (threads + tasks) / rate
        self._numbers = count()
        self._lock = threading.Lock()
        self._resting = threading.Event()
        self._left: list[object] | None = [] if leak else None
        self._client = Client(target, timeout=TIMEOUT, max_connections=threads)
        self._shared: AsyncClient | None = None
        self.verified = self.wrong = self.given_up = 0
        self.failed: Counter[str] = Counter()
        self.examples: list[str] = []

    # What is asked --------------------------------------------------------------

    def _payload(self, dice: random.Random) -> bytes:
        """A payload like no other, of any size."""
        size = dice.choice((0, 0, 10, 100, 500, 4100, dice.randrange(3000)))
        if dice.random() < 0.002:
            size = 60_000
        return b"%d.%d/" % (os.getpid(), next(self._numbers)) + dice.randbytes(8) * (size // 8)

    def _check(self, payload: bytes, reply: bytes) -> None:
        right = reply == payload[::-1]
        with self._lock:
            if right:
                self.verified += 1
                return
            self.wrong += 1
            if len(self.examples) < EXAMPLES:
                self.examples.append(f"{payload[:60]!r} got {reply[:60]!r}")

    def _gave_up(self) -> None:
        with self._lock:
            self.given_up += 1

    def _failed(self, error: BaseException) -> None:
        with self._lock:
            self.failed[type(error).__name__] += 1
            if len(self.examples) < EXAMPLES:
                self.examples.append(f"{type(error).__name__}: {error}")

    def _leave(self, payload: bytes) -> None:
        if self._left is not None:
            self._left.extend([payload] for _ in range(10))

    # Threads --------------------------------------------------------------------

    def _thread(self, number: int) -> None:
        dice = random.Random(f"thread {number} {next(self._numbers)}")
        while not self._resting.is_set():
            try:
                self._ask(dice)
            except Exception as error:  # whatever it is, it is counted
                self._failed(error)
            self._resting.wait(dice.random() * 2 * self._pause)

    def _ask(self, dice: random.Random) -> None:
        payload, kind = self._payload(dice), dice.random()
        if kind < 0.85:
            self._check(payload, self._client.request(payload))
        elif kind < 0.92:
            payloads = [self._payload(dice) for _ in range(dice.randrange(1, 20))]
            replies = list(self._client.request_many(payloads, window=dice.choice((1, 7, 100))))
            if len(replies) != len(payloads):
                raise LookupError(f"{len(replies)} replies to {len(payloads)} requests")
            for asked, reply in zip(payloads, replies, strict=True):
                self._check(asked, reply)
        elif kind < 0.98:
            try:
                reply = self._client.request(payload, timeout=dice.random() * 0.001 + 1e-5)
            except RequestTimeout:
                self._gave_up()
            else:
                self._check(payload, reply)
        else:
            with Client(self._target, timeout=TIMEOUT) as passing:
                self._check(payload, passing.request(payload))
        self._leave(payload)

    # Tasks ----------------------------------------------------------------------

    async def _task(self, number: int) -> None:
        dice = random.Random(f"task {number} {next(self._numbers)}")
        while not self._resting.is_set():
            try:
                await self._await(dice)
            except (NbclientError, LookupError) as error:
                self._failed(error)
            await trio.sleep(dice.random() * 2 * self._pause)

    async def _await(self, dice: random.Random) -> None:
        assert self._shared is not None
        payload, kind = self._payload(dice), dice.random()
        if kind < 0.85:
            self._check(payload, await self._shared.request(payload))
        elif kind < 0.9:
            payloads = [self._payload(dice) for _ in range(dice.randrange(1, 20))]
            rest = iter(payloads)
            async for reply in self._shared.request_many(payloads):
                self._check(next(rest), reply)
            if next(rest, None) is not None:
                raise LookupError("fewer replies than requests")
        elif kind < 0.98:
            reply = None
            with trio.move_on_after(dice.random() * 0.001):
                reply = await self._shared.request(payload)
            if reply is None:
                self._gave_up()
            else:
                self._check(payload, reply)
        else:
            async with AsyncClient(self._target, timeout=TIMEOUT) as passing:
                self._check(payload, await passing.request(payload))

    # From go to rest ------------------------------------------------------------

    async def run(self) -> None:
        """Do as the words on standard input say."""
        sockets, _ = descriptors(os.getpid())
        with self._client:
            async with AsyncClient(self._target, timeout=TIMEOUT) as self._shared:
                while await next_word() == "go":
                    await self._go()
                    print(json.dumps(self._report(sockets)), flush=True)

    async def _go(self) -> None:
        self._resting.clear()
        threads = [
            threading.Thread(target=self._thread, args=(number,)) for number in range(self._threads)
        ]
        async with trio.open_nursery() as nursery:
            for number in range(self._tasks):
                nursery.start_soon(self._task, number)
            for thread in threads:
                thread.start()
            await next_word()
            self._resting.set()
        # Each of them is within its last request; what else goes on here is at an end.
        for thread in threads:
            thread.join()

    def _report(self, sockets: int) -> dict[str, Any]:
        now, others = descriptors(os.getpid())
        holding = held()
        # Trio forgets the deadlines of scopes that are done by the thousand: a tuple and
        # the scope, each. They are no leak, nor are they ours.
        scopes = holding["kinds"].get("CancelScope", 0)
        holding["objects"] -= 2 * scopes
        return {
            "verified": self.verified,
            "wrong": self.wrong,
            "given_up": self.given_up,
            "failed": dict(self.failed),
            "examples": self.examples,
            "connections": now - sockets,
            "others": others,
            **holding,
        }


_pending = bytearray()


async def next_word() -> str | None:
    """The next line of standard input; None at its end."""
    while b"\n" not in _pending:
        await trio.lowlevel.wait_readable(0)
        data = os.read(0, 1000)
        if not data:
            return None
        _pending.extend(data)
    line, _, rest = bytes(_pending).partition(b"\n")
    _pending[:] = rest
    return line.decode()


def main() -> None:
    """The process: options are the first argument."""
    options = json.loads(sys.argv[1])
    die_with_parent(options.pop("parent"))
    trio.run(Clients(**options).run)


if __name__ == "__main__":
    main()

"""The real event loop among scripted peers.

A seed draws the limits, the trigger, the peers, the faults, whether threads run
the handler, and when the server is told to stop. ``served`` checks all along; in
the end each peer that behaved has got everything, and nobody is there for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from nbnet.counters import Counters
from nbnet.limits import Limits
from simulation.faults import Faults, Rates, draw_rates
from simulation.kernel import MS, SECOND, US, Kernel
from simulation.network import Network
from simulation.outcome import Outcome
from simulation.peers import Peer
from simulation.served import ServedProcess, Threads

_PATIENCE: Final = 3000 * SECOND
"""Simulated time within which every peer has to be rid of."""


class ServerWorld:
    """A run of the loop among peers, by its seed."""

    def __init__(
        self,
        seed: int,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        self.kernel = Kernel(seed, trace)
        rng = self.rng = self.kernel.rng
        self.harmless = rng.random() < 0.5
        rates = draw_rates(rng, harmless=self.harmless) if rng.random() < 0.85 else Rates()
        faults = Faults(self.kernel, rates)
        pool = None
        if rng.random() < 0.25:
            pool = Threads(self.kernel, rng.choice((1, 2, 8)), rng.choice((MS, 50 * MS)))
        self.limits = self._draw_limits()
        self.server = ServedProcess(
            self.kernel,
            limits=self.limits,
            edge=rng.random() < 0.4,
            faults=faults,
            pool=pool,
            fast=rng.random() < 0.8,
            listeners=rng.choice((1, 1, 2)),
            publish=self._published if rng.random() < 0.3 else None,
        )
        self.published: list[Counters] = []
        if rng.random() < 0.2:
            self.server.process.most_files = rng.randrange(4, 8)
        self.networks = [
            Network(
                self.kernel,
                listener,
                pace=rng.choice((20 * US, MS, 20 * MS)),
                pieces=rng.choice((0, 0, 1, 2)),
            )
            for listener in self.server.listeners
        ]
        for network in self.networks:
            network.reset_rate, network.vanish_rate = rates.reset, rates.vanish
        self.peers: list[Peer] = []
        for number in range(rng.choice((1, 2, 3, 5, 8, 12))):
            network = rng.choice(self.networks)
            peer = Peer(self.kernel, network, self.server.handler, self.limits, number)
            self.peers.append(peer)
            when = self.kernel.now + rng.choice((0, 0, 3 * MS, SECOND)) + rng.randrange(MS)
            self.kernel.at(when, peer.start)
        self.stopped_early = False
        self._draw_stop()
        if not self.harmless and rng.random() < 0.1:
            self.kernel.after(rng.randrange(3 * SECOND), self._jump)

    def _draw_limits(self) -> Limits:
        rng = self.rng
        limits = Limits()
        if rng.random() < 0.5:
            high = rng.choice((0, 60, 2000, 30_000))
            limits = replace(
                limits,
                high_water=high,
                low_water=rng.choice((0, high // 4, high)),
                frames_per_turn=rng.choice((1, 2, 5, 1024)),
            )
        if rng.random() < 0.3:
            limits = replace(limits, max_frame=rng.choice((10, 40, 1000)))
        if rng.random() < 0.2:
            limits = replace(limits, max_connections=rng.choice((1, 2, 4)))
        if not self.harmless and rng.random() < 0.3:
            limits = replace(
                limits,
                max_output=rng.choice((500, 20_000)),
                refuse=rng.random() < 0.5,
                max_per_ip=rng.choice((0, 1, 2)),
            )
        if not self.harmless and rng.random() < 0.4:
            limits = replace(
                limits,
                first_byte_timeout=rng.choice((0.5, 3.0)),
                frame_timeout=rng.choice((0.3, 2.0)),
                idle_timeout=rng.choice((0.4, 3.0)),
                write_timeout=rng.choice((0.2, 2.0)),
                linger=rng.choice((0.0, 0.2, 1.0)),
                drain=rng.choice((0.0, 0.5, 10.0)),
            )
        return limits

    def _draw_stop(self) -> None:
        """When the signals come: after all is done, some time before, or at a certain call."""
        rng, kernel = self.rng, self.kernel
        choice = rng.random()
        if choice < 0.3:
            kernel.after(rng.randrange(rng.choice((20 * MS, SECOND, 10 * SECOND))), self._stop)
        elif choice < 0.45:
            self._stop_at = rng.randrange(1, rng.choice((50, 500)))
            self._calls = 0
            self.server.process.on_call = self._count_call
        kernel.after(SECOND, self._look)
        self._again = rng.random() < 0.3

    def _count_call(self, _kind: str) -> None:
        self._calls += 1
        if self._calls == self._stop_at:
            self._stop()

    def _stop(self) -> None:
        if not self.server.stops:
            self.stopped_early = not self._is_done()
            self.server.stop()
            if self._again and self.stopped_early:
                self.kernel.after(self.rng.randrange(2 * SECOND), self.server.stop)

    def _look(self) -> None:
        """Stop the server when nobody is left, and fail when somebody stays for ever."""
        if self.server.stops:
            return
        if self._is_done():
            self._stop()
        elif self.kernel.now > 1000 * SECOND + _PATIENCE:
            left = [peer for peer in self.peers if not self._is_gone(peer)]
            self.kernel.fail(
                f"peer {left[0].number}, a {left[0].kind}, is still there: {left[0].end.disturbed}"
            )
        else:
            self.kernel.after(SECOND, self._look)

    def _is_gone(self, peer: Peer) -> bool:
        return peer.over or (peer.end.peer is not peer.end and peer.end.peer.closed)

    def _is_done(self) -> bool:
        return all(map(self._is_gone, self.peers))

    def _jump(self) -> None:
        self.server.excuse = self.server.excuse or "the clock jumped"
        self.kernel.jump(self.rng.choice((SECOND, 15 * SECOND, 1000 * SECOND)))

    def _published(self, counters: Counters) -> None:
        if self.published and self.published[-1].requests > counters.requests:
            self.kernel.fail("the requests published have become fewer")
        self.published.append(counters)

    def run(self) -> Outcome:
        """Play it.

        Raises:
            SimulationFailure: a promise was broken.
        """
        start = self.kernel.now
        try:
            self.server.loop.run()
        except OSError:
            if self.server.process.calls["register"] > 1:
                raise
            self.server.excuse = "it could not start"
        self.server.check_end()
        self.check_peers()
        return Outcome(
            digest=self.kernel.digest,
            events=self.kernel.events,
            seconds=(self.kernel.now - start) / SECOND,
            connections=self.server.process.accepted,
            requests=self.server.handler.answered,
            cut=len(self.server.cut),
        )

    def check_peers(self) -> None:
        """Who behaved has everything; let what is still on its way arrive first."""
        kernel = self.kernel
        until = kernel.now + 600 * SECOND
        kernel.wait(lambda: all(peer.over for peer in self.peers), until)
        if self.stopped_early or self.server.excuse:
            return
        refused = self.limits.refuse or self.limits.max_per_ip or self.limits.max_output < 1 << 20
        for peer in self.peers:
            if peer.strict and not peer.is_served and not peer.end.disturbed and not refused:
                kernel.fail(
                    f"peer {peer.number}, a {peer.kind}, has {len(peer.received)} bytes of "
                    f"{len(peer.expected)} and ended by {peer.outcome or 'waiting'}"
                )


def run(seed: int, trace: Callable[[str], None] | None = None) -> Outcome:
    """Play a seed of this world."""
    return ServerWorld(seed, trace).run()

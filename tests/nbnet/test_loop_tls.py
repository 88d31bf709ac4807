"""The event loop with sockets that speak TLS, on the kernel in memory."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable

import pytest
from support.kernel import FakeTlsSocket, Kernel, error

from nbnet.channels import FIRST_READ_SIZE, HANDSHAKES_PER_TURN
from nbnet.handlers import Context, Handler, reverse
from nbnet.limits import Limits
from nbnet.loop import Loop
from nbnet.pollers import READ, WRITE


class Scene:
    """A kernel whose connections speak TLS."""

    def __init__(self) -> None:
        self.kernel = Kernel()

    def connect(self) -> FakeTlsSocket:
        peer = FakeTlsSocket(self.kernel)
        self.kernel.listener.queue.append(peer)
        return peer

    def waits_for(self, peer: FakeTlsSocket) -> int:
        return self.kernel.interest[peer.fd]

    def run(
        self, *steps: Callable[[], object], handler: Handler = reverse, **limits: float
    ) -> Loop:
        loop = Loop(
            [self.kernel.listener],
            handler,
            poller=self.kernel,
            clock=self.kernel.clock,
            wake_up=self.kernel.wake_up,
            limits=Limits(**limits),  # type: ignore[arg-type]  # ints and floats by name
            secure=lambda socket: socket,
        )
        self.kernel.steps.extend(steps)
        if self.kernel.timetable:
            self.kernel.at(self.kernel.timetable[-1][0], loop.stop)
        else:
            self.kernel.steps.append(loop.stop)
        loop.run()
        assert not self.kernel.interest
        assert (loop.counters.connections, loop.counters.unsent) == (0, 0)
        return loop


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.fixture
def peer(scene: Scene) -> FakeTlsSocket:
    return scene.connect()


def test_a_handshake_waits_for_what_it_wants_and_requests_are_answered_after_it(
    scene: Scene, peer: FakeTlsSocket
) -> None:
    peer.script["handshake"].extend([READ, WRITE, READ])
    peer.room = 0

    def hello() -> None:
        assert scene.waits_for(peer) == READ
        assert peer.steps == 0
        peer.inbox.append(b"00003abc")

    def wants_to_write() -> None:
        assert peer.steps == 2
        assert scene.waits_for(peer) == WRITE
        peer.room = 1000

    loop = scene.run(hello, wants_to_write)
    assert peer.received == b"00003cba"
    assert (loop.counters.tls_handshakes, loop.counters.handshake_failures) == (1, 0)


def test_a_handshake_that_fails_ends_its_connection_alone(
    scene: Scene, peer: FakeTlsSocket
) -> None:
    other = scene.connect()
    peer.script["handshake"].append(error(errno.EPROTO))

    def hello() -> None:
        peer.inbox.append(b"00001a")
        other.inbox.append(b"00001b")

    def told_why() -> None:
        assert peer.write_shut
        assert not peer.closed  # closing with unread input would cut that off
        peer.inbox.append(b"")

    loop = scene.run(hello, told_why)
    assert peer.closed
    assert not peer.received
    assert other.received == b"00001b"
    assert loop.counters.handshake_failures == 1


def test_a_handshake_has_a_deadline(scene: Scene, peer: FakeTlsSocket) -> None:
    closed: list[bool] = []
    scene.kernel.at(2.9, lambda: closed.append(peer.closed))
    scene.kernel.at(3.2, lambda: closed.append(peer.closed))
    loop = scene.run(handshake_timeout=3.0)
    assert closed == [False, True]
    assert loop.counters.handshake_timeouts == 1


def test_handshakes_have_turns_and_everybody_gets_one(scene: Scene) -> None:
    peers = [scene.connect() for _ in range(3 * HANDSHAKES_PER_TURN + 1)]
    done: list[int] = []
    real = scene.kernel.poll

    def poll(timeout: float, maxevents: int, /) -> list[tuple[int, int]]:
        done.append(sum(peer.steps for peer in peers))
        return real(timeout, maxevents)

    scene.kernel.poll = poll  # type: ignore[method-assign]

    def hello() -> None:
        for peer in peers:
            peer.inbox.append(b"00001a")

    scene.run(hello)
    assert all(peer.received == b"00001a" for peer in peers)
    assert max(after - before for before, after in itertools.pairwise(done)) == (
        HANDSHAKES_PER_TURN
    )


def test_stopping_does_not_wait_for_handshakes(scene: Scene, peer: FakeTlsSocket) -> None:
    scene.run(lambda: None)
    assert peer.closed
    assert scene.kernel.now == 0


@pytest.mark.parametrize("size", [1, FIRST_READ_SIZE - 5, FIRST_READ_SIZE, 5_000])
def test_what_tls_has_read_and_not_given_is_asked_for_without_an_event(
    scene: Scene, peer: FakeTlsSocket, size: int
) -> None:
    request = b"%05d%b" % (size, b"x" * size)
    scene.run(lambda: peer.inbox.append(request * 3), lambda: peer.inbox.append(request))
    assert peer.received == request * 4


def test_what_tls_hides_is_read_when_reading_goes_on(scene: Scene, peer: FakeTlsSocket) -> None:
    request = b"00100" + b"x" * 100
    peer.room = 0

    def make_room() -> None:
        assert scene.waits_for(peer) == WRITE
        peer.room = 1 << 20

    scene.run(lambda: peer.inbox.append(request * 50), make_room, high_water=150, low_water=50)
    assert peer.received == request * 50


def test_a_read_that_wants_to_write_waits_for_that_and_does_not_spin(
    scene: Scene, peer: FakeTlsSocket
) -> None:
    def ask() -> None:
        peer.room = 0
        peer.script["recv"].append(WRITE)
        peer.inbox.append(b"00001a")

    def make_room() -> None:
        assert scene.waits_for(peer) == WRITE
        assert scene.kernel.polls < 20
        peer.room = 100

    scene.run(lambda: peer.inbox.append(b"00001z"), ask, make_room)
    assert peer.received == b"00001z00001a"


def test_a_write_that_wants_to_read_waits_for_that_and_does_not_spin(
    scene: Scene, peer: FakeTlsSocket
) -> None:
    def ask() -> None:
        peer.script["send"].extend([READ, READ])
        peer.inbox.append(b"00001a")

    def input_comes() -> None:
        assert scene.waits_for(peer) == READ
        assert peer.received == b"00001z"
        assert scene.kernel.polls < 20
        peer.inbox.append(b"00001b")

    scene.run(lambda: peer.inbox.append(b"00001z"), ask, input_comes)
    assert peer.received == b"00001z00001a00001b"


def test_a_handler_is_told_whose_certificate_it_was(scene: Scene, peer: FakeTlsSocket) -> None:
    def handler(payload: bytes, context: Context) -> bytes:
        return payload + str(context.tls_name).encode()

    scene.run(lambda: peer.inbox.append(b"00001a"), handler=handler)
    assert peer.received == b"00007aa name"


def test_connections_that_speak_tls_do_not_move(scene: Scene, peer: FakeTlsSocket) -> None:
    moved: list[int] = []
    loops: list[Loop] = []

    def look() -> None:
        moved.append(len(list(loops[0].movable())))

    original = Loop.run

    def run(loop: Loop) -> None:
        loops.append(loop)
        original(loop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "run", run)
        scene.run(lambda: peer.inbox.append(b"00001a"), look)
    assert moved == [0]

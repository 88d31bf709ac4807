"""The event loop behind a proxy, on the kernel in memory: what depends on timing and order.

Random lives of connections by the ten thousand::

    pytest -m slow tests/nbnet/test_loop_proxy.py
"""

from __future__ import annotations

import errno
import logging
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from support.kernel import FakeSocket, FakeTlsSocket, Kernel, error
from support.proxying import LOOK, PROXY, UNSPEC, header, version_2

from nbnet.framing import encode_frame
from nbnet.handlers import Context, Handler, reverse
from nbnet.limits import Limits
from nbnet.loop import Loop
from nbnet.notation import Target
from nbnet.pollers import ERROR

PROXY_HOST = "192.0.2.1"
"""Where all connections of the kernel in memory come from."""
BY_LINE = b"PROXY TCP4 192.0.2.7 198.51.100.9 4000 6789\r\n"


class Scene:
    """A kernel, and a loop that trusts who connects."""

    def __init__(self, *, edge: bool) -> None:
        self.kernel = Kernel()
        self.edge = edge
        self.seen: list[Target | str] = []
        self.trusted = True
        self.handler: Handler | None = None
        self.secure: Callable[[Any], Any] | None = None

    def connect(self, *pieces: bytes | OSError) -> FakeSocket:
        peer = self.kernel.connect()
        peer.inbox.extend(pieces)
        return peer

    def who(self, payload: bytes, context: Context) -> bytes:
        self.seen.append(context.peer)
        return payload[::-1]

    def loop(self, **limits: float) -> Loop:
        return Loop(
            [self.kernel.listener],
            self.handler or self.who,
            poller=self.kernel,
            clock=self.kernel.clock,
            wake_up=self.kernel.wake_up,
            limits=Limits(**limits),  # type: ignore[arg-type]  # ints and floats by name
            edge=self.edge,
            secure=self.secure,
            trusts=lambda peer: self.trusted and peer[0] == PROXY_HOST,
        )

    def run(self, *steps: Callable[[], object], **limits: float) -> Loop:
        loop = self.loop(**limits)
        self.kernel.steps.extend(steps)
        if self.kernel.timetable:
            self.kernel.at(self.kernel.timetable[-1][0], loop.stop)
        else:
            self.kernel.steps.append(loop.stop)
        loop.run()
        assert not self.kernel.interest
        assert set(self.kernel.open.values()) == {self.kernel.listener, self.kernel.wake_up}
        assert (loop.counters.connections, loop.counters.unsent, len(loop._deadlines)) == (0, 0, 0)
        assert not loop._acceptor._from
        return loop


def faults(loop: Loop) -> dict[str, int]:
    """What was counted that somebody would be woken up for."""
    counters = loop.count()
    names = ["proxy_errors", "protocol_errors", "lost", "handshake_failures", "refused_per_ip"]
    names += ["proxy_timeouts", "handshake_timeouts", "first_byte_timeouts", "frame_timeouts"]
    return {name: value for name in names if (value := getattr(counters, name))}


@pytest.fixture(params=["level", "edge"])
def scene(request: pytest.FixtureRequest) -> Scene:
    return Scene(edge=request.param == "edge")


@pytest.mark.parametrize("said", [header(), BY_LINE], ids=["binary", "text"])
def test_requests_are_those_of_the_client_however_the_bytes_come(scene: Scene, said: bytes) -> None:
    stream = said + b"00003abc00002de"
    whole = scene.connect(stream)
    drips = scene.connect()
    steps = [lambda byte=byte: drips.inbox.append(bytes([byte])) for byte in stream]
    loop = scene.run(*steps)
    assert whole.received == drips.received == b"00003cba00002ed"
    assert set(scene.seen) == {Target("192.0.2.7", 4000)}
    assert loop.counters.received_bytes == 2 * len(b"00003abc00002de")
    assert not faults(loop)


def test_a_handler_without_context_and_with_a_client_that_is_not_told(scene: Scene) -> None:
    peer = scene.connect(version_2(PROXY, UNSPEC, b"") + b"00001a")
    looks = scene.connect(LOOK + b"00001b")
    scene.run()
    assert peer.received == b"00001a"
    assert looks.received == b"00001b"
    assert {seen[0] for seen in scene.seen} == {PROXY_HOST}


@pytest.mark.parametrize("bad", [b"00003abc", header()[:-1], b"\x16\x03\x01", b"PROXY \n"])
def test_without_a_proper_header_it_is_closed_counted_and_said_once(
    scene: Scene, bad: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    peer = scene.connect(bad, b"")
    good = scene.connect(header() + b"00001a")
    loop = scene.run(lambda: None)
    assert peer.closed
    assert not peer.received
    assert good.received == b"00001a"
    assert faults(loop) == {"proxy_errors": 1}
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"{PROXY_HOST}:4000")
    assert "closing, PROXY protocol: " in record.getMessage()


def test_a_header_of_who_is_not_trusted_is_a_protocol_error(scene: Scene) -> None:
    scene.trusted = False
    peers = [scene.connect(header() + b"00001a", b""), scene.connect(BY_LINE + b"00001a", b"")]
    loop = scene.run(lambda: None)
    assert not any(peer.received for peer in peers)
    assert faults(loop) == {"protocol_errors": 2}


@pytest.mark.parametrize(
    "pieces",
    [
        [b""],
        [error(errno.ECONNRESET)],
        [LOOK, b""],
        [LOOK, error(errno.ECONNRESET)],
    ],
    ids=["nothing", "reset", "header", "header and reset"],
)
def test_a_health_check_is_neither_logged_nor_an_error(
    scene: Scene, pieces: list[bytes | OSError], caplog: pytest.LogCaptureFixture
) -> None:
    peer = scene.connect(*pieces)
    peer.hung_up = any(isinstance(piece, OSError) for piece in pieces)
    loop = scene.run(lambda: None)
    assert peer.closed
    assert not faults(loop)
    assert not caplog.records


def test_a_client_that_resets_behind_a_proxy_is_counted(scene: Scene) -> None:
    scene.connect(header(), error(errno.ECONNRESET))
    assert faults(scene.run(lambda: None)) == {"lost": 1}


def test_a_header_has_a_deadline_and_then_the_first_byte_its_own(scene: Scene) -> None:
    silent, half, named = scene.connect(), scene.connect(header()[:20]), scene.connect()
    closed: list[tuple[bool, ...]] = []

    def look() -> None:
        closed.append((silent.closed, half.closed, named.closed))

    scene.kernel.at(2.0, lambda: named.inbox.append(header()))
    for when in (2.9, 3.3, 5.9, 6.3):
        scene.kernel.at(when, look)
    loop = scene.run(frame_timeout=3.0, first_byte_timeout=4.0)
    assert closed == [
        (False, False, False),
        (True, True, False),
        (True, True, False),
        (True, True, True),
    ]
    assert faults(loop) == {"proxy_timeouts": 2, "first_byte_timeouts": 1}


def test_each_client_has_a_cap_of_its_own_and_the_proxy_has_none(scene: Scene) -> None:
    first = [scene.connect(header("192.0.2.7", port) + b"00001a") for port in (1, 2)]
    other = scene.connect(header("192.0.2.8", 1) + b"00001a")
    over = scene.connect(header("192.0.2.7", 3) + b"00001a")
    silent = [scene.connect() for _ in range(5)]
    later: list[FakeSocket] = []

    def one_leaves() -> None:
        assert over.closed
        assert not any(peer.closed for peer in silent)
        first[0].inbox.append(b"")

    def another_comes() -> None:
        assert first[0].write_shut or first[0].closed
        later.append(scene.connect(header("192.0.2.7", 4) + b"00001b"))

    loop = scene.run(one_leaves, another_comes, lambda: None, max_per_ip=2)
    assert [peer.received for peer in (*first, other, over, *later)] == [
        b"00001a",
        b"00001a",
        b"00001a",
        b"",
        b"00001b",
    ]
    assert faults(loop) == {"refused_per_ip": 1}


def test_stopping_serves_what_has_come_and_does_not_wait_for_a_header(scene: Scene) -> None:
    came, nothing = scene.connect(), scene.connect()
    loop = scene.loop()

    def stop() -> None:
        came.inbox.append(header() + b"00001a")
        loop.stop()

    scene.kernel.steps.extend([lambda: None, stop, lambda: came.inbox.append(b"")])
    loop.run()
    assert came.received == b"00001a"
    assert nothing.closed
    assert scene.kernel.now == 0


def test_once_it_is_read_a_header_costs_nothing(scene: Scene) -> None:
    peer = scene.connect(header())
    calls: list[tuple[int, int, int]] = []

    def note() -> None:
        calls.append((scene.kernel.polls, peer.recvs, peer.sends))

    def ask() -> None:
        note()
        peer.inbox.append(b"00003abc")

    scene.run(lambda: peer.inbox.append(b"00001a"), ask, note)
    before, after = calls
    assert [a - b for a, b in zip(after, before, strict=True)] == [1, 1, 1]


def test_an_error_that_cannot_be_masked_does_not_spin(scene: Scene) -> None:
    peer = scene.connect()

    def reset() -> None:
        peer.hung_up = True
        peer.inbox.append(error(errno.ECONNRESET))

    scene.run(lambda: scene.kernel.injected.append((peer.fd, ERROR)), reset)
    assert peer.closed
    assert scene.kernel.polls < 10


class TestTls:
    """TLS is agreed on behind the header."""

    @pytest.fixture
    def scene(self) -> Scene:
        scene = Scene(edge=False)
        self.wrapped: list[FakeTlsSocket] = []

        def secure(plain: FakeSocket) -> FakeTlsSocket:
            assert plain.fd not in scene.kernel.interest
            wrapped = FakeTlsSocket(scene.kernel)
            wrapped.fd, wrapped.inbox = plain.fd, plain.inbox
            scene.kernel.open[plain.fd] = wrapped
            self.wrapped.append(wrapped)
            return wrapped

        scene.secure = secure
        return scene

    def test_not_a_byte_of_it_is_read_before(self, scene: Scene) -> None:
        peer = scene.connect(header() + b"00001a")
        loop = scene.run(lambda: None)
        [wrapped] = self.wrapped
        assert wrapped.received == b"00001a"
        assert peer.taken == len(header())
        assert scene.seen == [Target("192.0.2.7", 4000)]
        assert loop.counters.tls_handshakes == 1
        assert not faults(loop)

    def test_a_handshake_that_fails_is_an_error_unless_the_proxy_only_looked(
        self, scene: Scene, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert scene.secure is not None
        put_on = scene.secure

        def secure(plain: FakeSocket) -> FakeTlsSocket:
            wrapped: FakeTlsSocket = put_on(plain)
            wrapped.script["handshake"].append(error(errno.ECONNRESET))
            return wrapped

        scene.secure = secure
        scene.connect(header() + b"x", b"")
        scene.connect(LOOK + b"x", b"")
        assert faults(scene.run(lambda: None, lambda: None)) == {"handshake_failures": 1}
        assert not caplog.records

    @pytest.mark.parametrize("stopping", [False, True])
    def test_a_peer_that_is_gone_before_it_ends_alone(
        self, scene: Scene, *, stopping: bool
    ) -> None:
        def secure(_plain: FakeSocket) -> FakeTlsSocket:
            raise error(errno.ENOTCONN)

        scene.secure = secure
        looks = scene.connect()
        if stopping:
            loop = scene.loop()

            def stop() -> None:
                looks.inbox.append(LOOK)
                loop.stop()

            scene.kernel.steps.extend([lambda: None, stop])
            loop.run()
            assert len(loop._deadlines) == 0
        else:
            loop = scene.run(lambda: looks.inbox.append(LOOK))
        assert looks.closed
        assert not faults(loop)


def test_a_handler_is_called_as_it_is_where_it_wants_no_context() -> None:
    scene = Scene(edge=False)
    peer = scene.connect(header() + b"00003abc")
    scene.handler = reverse
    loop = scene.loop()
    scene.kernel.steps.append(loop.stop)
    loop.run()
    assert peer.received == b"00003cba"


# Random lives ------------------------------------------------------------------


def live(seed: int, *, edge: bool) -> None:
    """Connections whose headers, requests and ends come in random pieces and order.

    Whatever it is, each gets the replies to its requests under its client's name, is
    counted for what went wrong with it, and nothing is left.
    """
    random = Random(seed)
    scene = Scene(edge=edge)
    scene.handler = lambda payload, context: payload + str(context.peer[0]).encode()
    expected: dict[str, int] = {}
    played: list[tuple[FakeSocket, bytes]] = []
    scripts: list[tuple[FakeSocket, deque[bytes | OSError]]] = []
    for number in range(random.randint(1, 6)):
        client = f"192.0.2.{number + 10}"
        kind = random.choice(["client", "client", "line", "local", "cut", "bad", "nothing"])
        said, name = header(client), client
        if kind == "line":
            said = f"PROXY TCP4 {client} 198.51.100.9 1 2\r\n".encode()
        elif kind == "local":
            said, name = LOOK, PROXY_HOST
        requests = [b"%d" % random.randrange(1000) for _ in range(random.randrange(4))]
        stream = said + b"".join(map(encode_frame, requests))
        replies = b"".join(encode_frame(request + name.encode()) for request in requests)
        ends: list[bytes | OSError] = [b"", b"", error(errno.ECONNRESET)]
        end = random.choice(ends)
        if kind in ("cut", "bad", "nothing"):
            replies = b""
            at = random.randrange(1, len(header()))
            # Behind the fourteenth byte, nearly any other would do as well.
            bad = header()[: min(at, 13)] + b"\xff" * 20
            stream = {"cut": header()[:at], "bad": bad, "nothing": b""}[kind]
            if kind == "bad" or (kind == "cut" and end == b""):
                expected["proxy_errors"] = expected.get("proxy_errors", 0) + 1
        elif end and kind != "local":
            expected["lost"] = expected.get("lost", 0) + 1
        pieces: deque[bytes | OSError] = deque()
        while stream:
            size = random.choice([1, 3, 16, 40, 100])
            pieces.append(stream[:size])
            stream = stream[size:]
        pieces.append(end)
        peer = scene.connect()
        scripts.append((peer, pieces))
        played.append((peer, replies))

    def step() -> None:
        peer, pieces = random.choice(scripts)
        for _ in range(random.randint(1, 3)):
            if pieces:
                peer.inbox.append(pieces.popleft())
        scripts[:] = [script for script in scripts if script[1]]

    steps = [lambda: step() if scripts else None] * sum(len(pieces) for _, pieces in scripts)
    loop = scene.run(*steps, max_per_ip=10)
    for peer, replies in played:
        assert peer.closed
        assert peer.received == replies, seed
    assert faults(loop) == expected, seed


@pytest.mark.parametrize("edge", [False, True])
def test_random_lives(*, edge: bool) -> None:
    for seed in range(300):
        live(seed, edge=edge)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("edge", [False, True])
def test_many_random_lives(*, edge: bool) -> None:
    for seed in range(300, 10_000):
        live(seed, edge=edge)

"""Bugs that other servers have had, each as a test that names it.

A docstring says what went wrong where (``owner/repo#n`` on GitHub) and what has
to hold here. ``old nbNet`` are the public servers of that name.

Where an order of events matters, the loop runs in the thread of the test on the
real kernel: ``Scene`` does the next step whenever the kernel has nothing to
report. Its connections are unix sockets, for which that is certain, since what is
sent there has arrived; over TCP a step waits until the loop has come so far. What
no kernel does on demand is played in memory (``support.kernel``).
"""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import logging.handlers
import os
import queue
import resource
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.forked import exit_code, in_child
from support.kernel import FakeSocket, Kernel, error
from support.serving import exchange, read, serving

from nbclient import Client, RequestTimeout
from nbnet import Limits, Server
from nbnet.channels import Channel
from nbnet.framing import HEADER_SIZE, MAX_PAYLOAD, FrameDecoder, encode_frame
from nbnet.handlers import Handler, reverse
from nbnet.listeners import BACKLOG, open_tcp
from nbnet.loop import MAX_EVENTS, Loop
from nbnet.notation import Target
from nbnet.pollers import ERROR, READ, WRITE
from nbnet.wakeup import WakeUp

PATIENCE = 20.0
"""Seconds that anything here may take."""

LISTENER = -1
"""In what a scene injects: the descriptor of its listener."""


class Epoll:
    """An epoll that tells what it reported: how many events in a poll, how often whom.

    It takes nobody off that is closed already: the kernel would say EBADF, or have
    forgotten the next owner of the number.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.reports: Counter[int] = Counter()
        self.largest = 0
        self.register = self._epoll.register
        self.modify = self._epoll.modify

    def unregister(self, fd: int, /) -> None:
        os.fstat(fd)
        self._epoll.unregister(fd)

    def poll(self, timeout: float, maxevents: int, /) -> list[tuple[int, int]]:
        events = self._epoll.poll(timeout, maxevents)
        self.reports.update(fd for fd, _ in events)
        self.largest = max(self.largest, len(events))
        return events

    def close(self) -> None:
        self._epoll.close()


class Spied(socket.socket):
    """A socket that counts how often it is closed."""

    closes = 0

    def close(self) -> None:
        self.closes += 1
        super().close()


class SpyingListener:
    """A listener whose connections are ``accepted``, in the order in which they came."""

    def __init__(self, listener: socket.socket) -> None:
        self.accepted: list[Spied] = []
        self.fileno = listener.fileno
        self.close = listener.close
        self._accept = listener.accept

    def accept(self) -> tuple[socket.socket, object]:
        plain, address = self._accept()
        spied = Spied(fileno=plain.detach())
        self.accepted.append(spied)
        return spied, address


Step = Callable[[], object]
"""Done when nothing is ready; true if the kernel will report an event then."""


class Scene(Epoll):
    """A loop on the real kernel, step by step, in the thread of the test.

    Attributes:
        steps: what is still to be done; the loop stops behind the last of them.
        injected: events for the next poll, in place of what the kernel reports.
        accepted: the server's sockets in the order in which they came.
        now: the loop's time; goes on only when nothing is left to be done.
    """

    def __init__(self, listener: socket.socket, *, edge: bool = False) -> None:
        super().__init__()
        self.listener = listener
        self.accepted: list[Spied] = []
        self._edge = edge
        self.steps: deque[Step] = deque()
        self.injected: list[tuple[int, int]] = []
        self.now = 0.0
        self.loop: Loop
        self._stack = contextlib.ExitStack()
        self._stack.callback(listener.close)
        self._stack.callback(super().close)
        self._wake_up = self._stack.enter_context(contextlib.closing(WakeUp()))

    def connect(self, *, blocking: bool = False) -> socket.socket:
        """A peer connects; the loop has yet to accept it."""
        peer = self._stack.enter_context(socket.socket(self.listener.family))
        peer.settimeout(PATIENCE)
        peer.connect(self.listener.getsockname())
        peer.setblocking(blocking)
        return peer

    def run(self, *steps: Step, handler: Handler = reverse, **limits: float) -> Loop:
        """Go through the steps, then stop; everything must be let go of, and once."""
        settings: dict[str, Any] = limits  # integers and floats by name
        listener = SpyingListener(self.listener)
        self.accepted = listener.accepted
        self.loop = Loop(
            [listener],
            handler,
            poller=self,
            clock=lambda: self.now,
            wake_up=self._wake_up,
            limits=Limits(**settings),
            edge=self._edge,
        )
        self.steps.extend([*steps, self.loop.stop])
        self.loop.run()
        assert self.loop.counters.connections == self.loop.connections == 0
        assert self.loop.counters.unsent == 0
        assert {each.closes for each in self.accepted} <= {1}
        assert self.listener.fileno() < 0
        return self.loop

    def until(self, condition: Callable[[], bool]) -> Step:
        """A step that lets the loop go on until this holds: it must take events to come."""

        def step() -> bool:
            if condition():
                return False
            self.steps.appendleft(step)
            return True

        return step

    def connected(self, count: int) -> Step:
        """A step that waits until so many connections are open."""
        return self.until(lambda: self.loop.connections == count)

    def asked(self, peer: socket.socket, request: bytes, reply: bytes) -> list[Step]:
        """Steps in which a peer, a blocking one, asks and is answered."""
        before: list[int] = []

        def ask() -> None:
            before.append(self.loop.count().requests)
            peer.sendall(request)

        def answered() -> None:
            assert read(peer, len(reply)) == reply

        return [ask, self.until(lambda: self.loop.count().requests > before[-1]), answered]

    def close(self) -> None:
        """Close what it has of the kernel; the loop never does."""
        self._stack.close()

    def poll(self, timeout: float, maxevents: int, /) -> list[tuple[int, int]]:
        assert sum(self.reports.values()) < 100_000, "the loop spins"
        patience = 0.0
        while not self.injected:
            if events := super().poll(patience, maxevents):
                return events
            assert not patience, "nothing follows on the last step"
            if not timeout:
                return []
            if not self.steps:
                self.now += timeout
                return []
            patience = PATIENCE if self.steps.popleft()() else 0.0
        listener = self.listener.fileno()
        events, self.injected = self.injected, []
        return [(listener if fd == LISTENER else fd, mask) for fd, mask in events]


@pytest.fixture(params=["level", "edge"])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("")  # the kernel finds a name, without a file
    listener.listen(BACKLOG)
    listener.setblocking(False)
    with contextlib.closing(Scene(listener, edge=request.param == "edge")) as scene:
        yield scene


@pytest.fixture(params=["level", "edge"])
def tcp_scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with contextlib.closing(Scene(listen(), edge=request.param == "edge")) as scene:
        yield scene


@pytest.fixture
def many_descriptors() -> Iterator[int]:
    """Raises the limit of open files; gives what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    raised = max(soft, min(hard, 8192))
    resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
    yield raised
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def listen() -> socket.socket:
    [bound] = open_tcp("127.0.0.1", 0)
    return bound.for_worker(0)


@contextlib.contextmanager
def running(listener: socket.socket) -> Iterator[Loop]:
    """A loop in a thread, for what needs a peer that blocks; it has stopped afterwards."""
    with contextlib.closing(Epoll()) as poller, contextlib.closing(WakeUp()) as wake_up:
        loop = Loop(
            [listener],
            reverse,
            poller=poller,
            clock=time.monotonic,
            wake_up=wake_up,
            limits=Limits(),
        )
        thread = threading.Thread(target=loop.run)
        thread.start()
        try:
            yield loop
        finally:
            loop.stop()
            thread.join()


def connect(address: Target) -> socket.socket:
    return socket.create_connection(address, timeout=PATIENCE)


def much_of_little(payload: bytes) -> bytes:
    """A handler: the longest reply to ``#``, the payload to all others."""
    return bytes(MAX_PAYLOAD) if payload == b"#" else payload


def reset(peer: socket.socket) -> None:
    """Close with a reset."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def read_to_end(peer: socket.socket) -> bytes:
    """Everything until the server closes; a reset raises."""
    return b"".join(iter(lambda: peer.recv(65536), b""))


def lowest_limit(used: set[int], room: int) -> int:
    """The limit of open files that leaves a process room for so many more."""
    free = (number for number in itertools.count() if number not in used)
    return next(itertools.islice(free, room, None))


def open_files(pid: int) -> set[int]:
    return {int(name) for name in os.listdir(f"/proc/{pid}/fd")}  # noqa: PTH208  (names only)


# 1. Descriptors and who owns them ---------------------------------------------------------


def test_uvloop_645_a_stale_event_does_not_reach_the_next_owner_of_a_descriptor(
    scene: Scene,
) -> None:
    """MagicStack/uvloop#645: after a second close of a number, replies went to its next owner.

    Here the number goes to a newcomer in the very turn in which its owner ends, and
    what a poll may still say of the old one does nothing to the new one.
    """
    leaver, other = scene.connect(), scene.connect()
    newcomers: list[socket.socket] = []
    numbers: list[int] = []
    amid_the_batch: list[tuple[int, int]] = []

    def handler(payload: bytes) -> bytes:
        if payload == b"a":
            amid_the_batch.append((scene.accepted[0].closes, len(scene.accepted)))
        return payload[::-1]

    def one_batch() -> None:
        leaver.close()
        other.send(b"00001a")
        newcomers.append(scene.connect())
        old, stays = (each.fileno() for each in scene.accepted)
        scene.injected = [
            (old, READ | ERROR),
            (LISTENER, READ),
            (old, READ),
            (stays, READ),
            (old, READ | WRITE | ERROR),
        ]

    def stale() -> None:
        first, _, third = scene.accepted
        assert first.closes == 1
        assert (third.fileno(), third.closes) == (numbers[0], 0)
        scene.injected = [(third.fileno(), READ | WRITE | ERROR)]

    loop = scene.run(
        lambda: numbers.append(scene.accepted[0].fileno()),
        one_batch,
        stale,
        lambda: newcomers[0].send(b"00002hi"),
        handler=handler,
    )
    assert amid_the_batch == [(0, 2)]  # nothing closed nor accepted before its end
    assert newcomers[0].recv(100) == b"00002ih"
    assert other.recv(100) == b"00001a"
    assert loop.counters.accepted == 3


@pytest.mark.parametrize("closes", [True, False])
@pytest.mark.parametrize(
    "sent",
    [b"", b"00001a", b"00009a", b"00001abad", b"00001!", b"00001#" * 1000],
    ids=["silent", "a request", "half a request", "fault", "handler", "never reads"],
)
def test_uvloop_645_a_descriptor_is_closed_once_and_after_it_was_unregistered(
    scene: Scene, sent: bytes, closes: bool
) -> None:
    """MagicStack/uvloop#645 closed twice; old nbNet closed first and unregistered then.

    However a connection ends, also in one batch with others, its socket is closed
    once, by its owner, and the poller has let go of it before (``Scene.run`` and
    ``Epoll.unregister`` see to both).
    """

    def handler(payload: bytes) -> bytes:
        assert payload != b"!"
        return much_of_little(payload)

    def all_at_once() -> None:
        for peer in peers:
            peer.send(sent)
            if closes:
                peer.close()

    peers = [scene.connect() for _ in range(3)]
    scene.run(all_at_once, handler=handler, high_water=1000, low_water=10, linger=0.0)
    assert [each.closes for each in scene.accepted] == [1, 1, 1]


# 2. Loops that spin, loops that die --------------------------------------------------------


def test_seastar_1785_a_reset_while_reading_is_paused_does_not_spin(tcp_scene: Scene) -> None:
    """scylladb/seastar#1785: errors cannot be masked, and came again with every poll.

    A connection that is not read because it does not read its replies, and is reset
    then, is reported once or twice, and never again while others are served.
    """
    tcp_scene.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    paused, other = tcp_scene.connect(), tcp_scene.connect(blocking=True)
    numbers: list[int] = []
    before: Counter[int] = Counter()

    def send_without_reading() -> None:
        numbers.append(tcp_scene.accepted[0].fileno())
        paused.send(b"00001#" * 200)

    def reset_it() -> None:
        before.update(tcp_scene.reports)
        reset(paused)

    def after() -> None:
        assert tcp_scene.accepted[0].closes == 1
        [number] = numbers
        assert 1 <= tcp_scene.reports[number] - before[number] <= 2

    tcp_scene.run(
        tcp_scene.connected(2),
        send_without_reading,
        tcp_scene.until(lambda: tcp_scene.loop.counters.paused_now == 1),
        reset_it,
        # The error has to be dealt with, and not only to be looked at.
        tcp_scene.connected(1),
        *tcp_scene.asked(other, b"00001a", b"00001a") * 20,
        after,
        handler=much_of_little,
        high_water=1000,
        low_water=10,
    )


def test_libuv_690_and_ranch_36_no_descriptors_left_does_not_spin() -> None:
    """joyent/libuv#690, ninenines/ranch#36: the listener stays readable, and they spun.

    While descriptors are out, and as long as no time passes, the listener is not
    looked at, those connected are served, and it is said once; then it goes on.
    """
    room, waiting = 4, 6
    listener = listen()

    def server() -> None:
        poller, wake_up, now = Epoll(), WakeUp(), [0.0]
        number = listener.fileno()
        said: queue.SimpleQueue[object] = queue.SimpleQueue()
        logging.getLogger("nbnet").addHandler(logging.handlers.QueueHandler(said))

        def handler(payload: bytes) -> bytes:
            if payload == b"later":
                now[0] += 1.0
            if payload == b"stop":
                loop.stop()
            failures = loop.counters.accept_failures
            return b"%d %d %d" % (poller.reports[number], failures, said.qsize())

        loop = Loop(
            [listener],
            handler,
            poller=poller,
            clock=lambda: now[0],
            wake_up=wake_up,
            limits=Limits(linger=0.0, drain=0.0),
        )
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        soft = lowest_limit(open_files(os.getpid()), room)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        loop.run()

    pid = in_child(server)
    try:
        address = Target(*listener.getsockname())
        listener.close()
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(connect(address)) for _ in range(room + waiting)]

            def ask(payload: bytes) -> list[int]:
                """Reports of the listener, failures of accept, lines in the log."""
                with_length = exchange(peers[0], encode_frame(payload), HEADER_SIZE)
                return [int(number) for number in read(peers[0], int(with_length)).split()]

            while not ask(b"counts")[1]:
                pass
            before = ask(b"counts")
            assert before[1:] == [1, 1]
            for _ in range(200):
                assert ask(b"counts") == before

            for peer in peers[1:3]:
                peer.close()
            ask(b"later")
            for peer in peers[room : room + 2]:
                assert exchange(peer, encode_frame(b"counts"), HEADER_SIZE)
            while ask(b"counts")[1] == 1:
                pass
            assert ask(b"counts")[1:] == [2, 1]

            for peer in peers[3 : room + 2]:
                peer.close()
            ask(b"later")
            for peer in peers[room + 2 : room + 5]:
                assert exchange(peer, encode_frame(b"counts"), HEADER_SIZE)
            ask(b"stop")
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        code = exit_code(pid)
    assert code == 0


def test_old_nbnet_no_descriptors_left_does_not_end_the_process() -> None:
    """old nbNet, panjf2000/gnet and tidwall/evio: an error of accept ended the whole server.

    ``nbnet serve`` without descriptors goes on with those that it has, and takes the
    others as places become free.
    """
    with serving("--max-connections", "1000") as server, contextlib.ExitStack() as stack:
        [worker] = server.children()
        _, hard = resource.prlimit(worker, resource.RLIMIT_NOFILE)
        soft = lowest_limit(open_files(worker), 4)
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (soft, hard))
        peers = [stack.enter_context(server.connect()) for _ in range(12)]
        for peer in peers:
            peer.sendall(b"00003abc")
        assert "cannot accept with 4 connections open" in server.wait_for("cannot accept")
        for peer in peers:
            assert read(peer, 8) == b"00003cba"
            peer.close()
        assert server.children() == [worker]
        assert "12 requests answered on 12 connections" in server.end()


@pytest.mark.parametrize(
    "code",
    [
        errno.ECONNABORTED,
        errno.EPERM,
        errno.ENETDOWN,
        errno.EPROTO,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
    ],
    ids=lambda code: errno.errorcode[code],
)
def test_gnet_an_error_that_accept_passes_on_from_the_network_stops_nothing(code: int) -> None:
    """accept(2): pending network errors of a newcomer are to be treated like EAGAIN.

    panjf2000/gnet and tidwall/evio stop the engine on them. Here the next in the
    queue is served in the same turn, without a pause.
    """
    kernel = Kernel()
    peer = FakeSocket(kernel)
    loop = memory_loop(kernel)
    kernel.steps.extend(
        [
            lambda: kernel.listener.queue.extend([error(code), error(code), peer]),
            lambda: peer.inbox.append(b"00003abc"),
            loop.stop,
        ]
    )
    loop.run()
    assert peer.received == b"00003cba"
    assert loop.counters.accept_failures == 0
    assert loop.counters.accepted == 1


def memory_loop(kernel: Kernel, handler: Handler = reverse, **limits: Any) -> Loop:
    return Loop(
        [kernel.listener],
        handler,
        poller=kernel,
        clock=kernel.clock,
        wake_up=kernel.wake_up,
        limits=Limits(**limits),
    )


def test_old_nbnet_a_listener_with_nobody_waiting_does_not_block(tcp_scene: Scene) -> None:
    """old nbNet: the listener blocked, so whoever left before accept stopped everybody.

    An event for an empty queue does nothing; a peer that is gone by then costs no
    other anything; and no child process inherits a connection.
    """
    peer = tcp_scene.connect(blocking=True)
    reset(tcp_scene.connect())

    def nobody_waits() -> None:
        assert not tcp_scene.accepted[0].get_inheritable()
        tcp_scene.injected = [(LISTENER, READ), (LISTENER, ERROR)]

    tcp_scene.run(
        tcp_scene.until(lambda: len(tcp_scene.accepted) == 2),
        tcp_scene.connected(1),
        nobody_waits,
        *tcp_scene.asked(peer, b"00003abc", b"00003cba"),
    )


def test_old_nbnet_eagain_closes_no_connection(scene: Scene) -> None:
    """old nbNet: what was to try again raised TypeError, and closed the connection.

    Events with nothing to read or no room to write, and input that ends in the middle
    of a request, are normal.
    """
    peer = scene.connect()

    def spurious() -> None:
        number = scene.accepted[0].fileno()
        scene.injected = [(number, READ), (number, WRITE), (number, READ | WRITE)]

    loop = scene.run(
        spurious,
        lambda: peer.send(b"00003a"),
        spurious,
        lambda: peer.send(b"bc"),
    )
    assert peer.recv(100) == b"00003cba"
    assert loop.counters.lost == 0


def test_old_nbnet_a_full_backlog_refuses_nobody() -> None:
    """old nbNet listened with a backlog of 5 or 10: a crowd was left to retransmit.

    Hundreds connect while the server has no time for them, and all are served.
    """
    inside, gate = threading.Event(), threading.Event()

    def handler(payload: bytes) -> bytes:
        inside.set()
        assert gate.wait(PATIENCE)
        return payload

    with Server(handler, port=0) as server, contextlib.ExitStack() as stack:
        first = stack.enter_context(connect(server.address))
        first.sendall(b"00001a")
        assert inside.wait(PATIENCE)
        try:
            crowd = [stack.enter_context(connect(server.address)) for _ in range(300)]
        finally:
            gate.set()
        for peer in [first, *crowd]:
            if peer is not first:
                peer.sendall(b"00001a")
            assert read(peer, 6) == b"00001a"


def test_select_1024_a_descriptor_above_fd_setsize_does_not_end_the_server(
    many_descriptors: int, caplog: pytest.LogCaptureFixture
) -> None:
    """``select.select`` raises ValueError for a descriptor above 1,023.

    With ``select`` such a newcomer is refused in plain words; who is there is served,
    and so is who comes when there is a lower number again.
    """
    assert many_descriptors > 1100
    with Server(port=0, poller="select") as server, connect(server.address) as peer:
        assert exchange(peer, b"00001a", 6) == b"00001a"
        with contextlib.ExitStack() as stack:
            while (number := os.dup(peer.fileno())) < 1024:
                stack.callback(os.close, number)
            os.close(number)
            with connect(server.address) as late:
                assert late.recv(1) == b""
            assert exchange(peer, b"00001a", 6) == b"00001a"
        with connect(server.address) as fine:
            assert exchange(fine, b"00001a", 6) == b"00001a"
    assert "select cannot watch descriptor 10" in caplog.text


# 3. Replies that do not arrive whole --------------------------------------------------------


class Resetting(FakeSocket):
    """A socket that does what TCP does when it is closed with unread input.

    A reset follows, and what the peer has not read yet is gone: here all of it.
    """

    def close(self) -> None:
        super().close()
        if any(self.inbox):
            self.received.clear()


def fail(payload: bytes) -> bytes:
    if payload == b"!":
        raise RuntimeError("no such thing")
    return payload


@pytest.mark.parametrize("last", [b"bad", b"00001!", b"00000", b"99999"])
def test_close_with_unread_input_does_not_cut_off_replies(last: bytes) -> None:
    """close(2) with unread input resets, and the replies still queued are gone.

    nginx calls the cure a lingering close: shut the write side, read until the peer
    closes, close then. In memory, so that input comes at the worst of times.
    """
    kernel = Kernel()
    peer = Resetting(kernel)
    kernel.listener.queue.append(peer)
    loop = memory_loop(kernel, fail, max_frame=100)

    def goes_on() -> None:
        assert peer.received == b"00003abc"
        assert peer.write_shut
        peer.inbox.extend([b"00001b" * 20_000, b"00001c", b""])

    kernel.steps.extend(
        [
            # More than one read takes follows what ends the connection.
            lambda: peer.inbox.append(b"00003abc" + last + b"00001b" * 20_000),
            goes_on,
            loop.stop,
        ]
    )
    loop.run()
    assert peer.closed
    assert peer.received == b"00003abc"


def test_nginx_a_fault_behind_large_replies_does_not_cut_them_off_from_a_slow_reader() -> None:
    """As above on the real kernel: 20 of 20 large replies were cut off, where close came first.

    Through ``nbnet serve``, with the smallest buffer for input that a peer can have,
    and unread input behind the fault.
    """
    payload = os.urandom(60_000)
    with serving() as server:
        assert isinstance(server.address, Target)
        for _ in range(20):
            with socket.socket() as peer:
                peer.settimeout(PATIENCE)
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
                peer.connect(server.address)
                peer.sendall(encode_frame(payload) + b"-0003" + bytes(30_000))
                assert read_to_end(peer) == encode_frame(payload[::-1])
        assert "20 requests answered on 20 connections" in server.end()


def test_old_nbnet_5h_a_partial_write_is_not_taken_for_a_whole_one() -> None:
    """nbNet-5h.py sent 6,144 of 100,004 bytes with a send buffer of 4 kB, and closed.

    With the smallest send buffer there is, replies are sent in many parts, and EAGAIN
    on the way closes nothing.
    """
    payload = bytes(range(250)) * 399
    listener = listen()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    with (
        running(listener) as loop,
        connect(Target(*listener.getsockname())) as peer,
    ):
        for _ in range(3):
            # The replies to the second come while the kernel takes nothing.
            peer.sendall(encode_frame(payload) * 2)
            expected = encode_frame(payload[::-1]) * 2
            sizes = [1000] * (len(expected) // 1000) + [len(expected) % 1000]
            assert b"".join(read(peer, size) for size in sizes) == expected
    assert loop.counters.sent_bytes == 6 * len(encode_frame(payload))
    assert loop.counters.lost == 0


# 4. Replies out of step, timers left behind --------------------------------------------------


def test_gunicorn_after_a_reply_timeout_no_reply_runs_one_behind() -> None:
    """benoitc/gunicorn 26.1.0: whoever asks on after a timeout gets the reply to that.

    It is the client's to prevent. The server answers the first request late, whole
    and on the same connection; no later request may get that reply.
    """
    gate = threading.Event()

    def handler(payload: bytes) -> bytes:
        if payload == b"first":
            assert gate.wait(PATIENCE)
        return payload[::-1]

    replies: list[bytes] = []
    with (
        Server(handler, port=0, threads=2) as server,
        Client(server.address, timeout=0.1) as client,
    ):
        with pytest.raises(RequestTimeout):
            client.request(b"first")
        gate.set()
        # On a busy machine these may be late as well: one that comes has to be right.
        for _ in range(100):
            with contextlib.suppress(RequestTimeout):
                replies.append(client.request(b"second"))
    assert set(replies) == {b"dnoces"}


def test_uvicorn_no_timer_stays_behind_after_an_abnormal_close(tcp_scene: Scene) -> None:
    """uvicorn's keep-alive timers held on to connections that were reset (Soju06/codex-lb#2042).

    Of 52 connections that are reset, idle, amid a request or with replies unread,
    nothing is left, without the garbage collector's help and long before a deadline.
    """
    begun = [b"", b"00001a", b"00009a", b"00001#" * 100]
    peers = [tcp_scene.connect() for _ in range(52)]
    last = tcp_scene.connect(blocking=True)
    counted: list[int] = []

    def begin() -> None:
        counted.append(channels())
        for peer, request in zip(peers, itertools.cycle(begun)):
            peer.send(request)

    def reset_all() -> None:
        for peer in peers:
            reset(peer)

    gc.collect()
    before = channels()
    gc.disable()
    try:
        tcp_scene.run(
            tcp_scene.connected(53),
            begin,
            tcp_scene.until(lambda: tcp_scene.loop.counters.paused_now == 13),
            *tcp_scene.asked(last, b"00001a", b"00001a"),
            reset_all,
            tcp_scene.connected(1),
            *tcp_scene.asked(last, b"00001a", b"00001a"),
            lambda: counted.append(channels()),
            handler=much_of_little,
            high_water=1000,
            low_water=10,
        )
    finally:
        gc.enable()
    assert counted == [before + 53, before + 1]


def channels() -> int:
    """The loops' connections that are in memory."""
    return sum(type(each) is Channel for each in gc.get_objects())


# 5. Frames -----------------------------------------------------------------------------------


def test_werkzeug_2716_no_length_that_only_int_takes_is_a_length() -> None:
    """pallets/werkzeug#2716, unbit/uwsgi#2775, CVE-2025-43859 of h11: ``int()`` takes more.

    Of all headers made of such characters, five digits are a length and nothing else
    is, although ``int()`` would take thousands of them.
    """
    alphabet = b"03+-_ \t\n\v\f"
    taken = 0
    for header in map(bytes, itertools.product(alphabet, repeat=HEADER_SIZE)):
        try:
            int(header)
        except ValueError:
            continue
        if set(header) <= set(b"0123456789"):
            continue
        taken += 1
        decoder = FrameDecoder()
        assert decoder.feed(header + b"x" * 40_000) == []
        assert decoder.error is not None, header
    assert taken > 1000


def test_old_nbnet_a_negative_length_is_an_error_and_no_reset() -> None:
    """old nbNet took ``-0003`` for a length, which ended in a reset.

    Here the reply before it arrives, then the end, and nothing tells the peer more.
    """
    with Server(port=0) as server, connect(server.address) as peer:
        peer.sendall(b"00003abc" + b"-0003abc" * 10_000)
        assert read_to_end(peer) == b"00003cba"


@pytest.mark.parametrize("request_", [b"00003abc", b"00003abc00002de"])
def test_old_nbnet_an_empty_reply_is_sent_and_an_empty_request_is_an_error(
    request_: bytes,
) -> None:
    """old nbNet sent ``00000`` and closed without a word when it got it.

    That is decided here: a reply may be empty, and the connection goes on; a request
    may not.
    """
    with Server(lambda _: b"", port=0) as server, connect(server.address) as peer:
        empty = b"00000" * (len(request_) // 7)
        assert exchange(peer, request_, len(empty)) == empty
        assert exchange(peer, request_, len(empty)) == empty
        peer.sendall(b"0000000001a")
        assert read_to_end(peer) == b""


def test_old_nbnet_a_reply_of_100002_bytes_gets_no_header_of_six_digits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """old nbNet sent ``100002`` before a long reply; the client read on out of step.

    The longest reply fits; one that does not ends its connection behind the replies
    before it, and no other.
    """

    def twice(payload: bytes) -> bytes:
        return payload * 2

    half = MAX_PAYLOAD // 2
    with (
        Server(twice, port=0) as server,
        connect(server.address) as peer,
        connect(server.address) as other,
    ):
        peer.sendall(encode_frame(b"x" * half) + encode_frame(b"y" * (half + 2)) + b"00001z")
        assert read_to_end(peer) == b"99998" + b"x" * (2 * half)
        assert exchange(other, b"00001a", 7) == b"00002aa"
    assert f"100002 bytes is over the {MAX_PAYLOAD}" in caplog.text


UTF_8 = "größer, 更大"


@pytest.mark.parametrize(
    ("stream", "replies"),
    [
        (b"00003abc00011hello world\r\n00001x", b"00003cba00011dlrow olleh00001x"),
        (
            encode_frame(UTF_8.encode()) + b"00002\xff\xfe",
            encode_frame(UTF_8.encode()[::-1]) + b"00002\xfe\xff",
        ),
    ],
    ids=["digits", "characters"],
)
def test_c_server_and_old_nbnet_a_frame_may_be_cut_anywhere(stream: bytes, replies: bytes) -> None:
    """A C test server took a read for a frame; a variant of nbNet decoded UTF-8 a read.

    Wherever a stream is cut in three, in a header or inside of a character, the
    replies are the same.
    """
    kernel = Kernel()
    loop = memory_loop(kernel)
    cuts = list(itertools.combinations(range(1, len(stream)), 2))
    peers = [kernel.connect() for _ in cuts]
    for peer, (first, second) in zip(peers, cuts, strict=True):
        # Each item is a read of its own.
        peer.inbox.extend([stream[:first], stream[first:second], stream[second:]])
    kernel.steps.append(loop.stop)
    loop.run()
    wrong = {cut for peer, cut in zip(peers, cuts, strict=True) if peer.received != replies}
    assert not wrong


def test_epoll_1023_all_who_are_ready_are_served_in_one_turn(
    scene: Scene, many_descriptors: int
) -> None:
    """``epoll.poll()`` gives 1,023 events unless it is told more: the others have to wait.

    1,500 who are ready at once come in one batch and are answered; and when all of
    them leave in one batch nothing recurses (a variant of nbNet did, without end).
    """
    count = 1500
    assert sys.getrecursionlimit() < count < MAX_EVENTS
    assert many_descriptors > 2 * count + 500
    peers = [scene.connect() for _ in range(count)]

    def ask() -> None:
        assert scene.loop.connections == count
        for peer in peers:
            peer.send(b"00003abc")
        scene.largest = 0

    def leave() -> None:
        assert scene.largest == count
        for peer in peers:
            assert peer.recv(100) == b"00003cba"
            peer.close()
        scene.largest = 0

    def gone() -> None:
        assert scene.largest == count
        assert scene.loop.connections == 0

    scene.run(ask, leave, gone)


# 6. Peers that are slow, silent, half gone ---------------------------------------------------


def test_redis_cve_2025_21605_a_peer_that_never_reads_does_not_fill_the_memory(
    scene: Scene,
) -> None:
    """CVE-2025-21605 of redis: 3.46 MB of requests came to 4.66 GB of replies held.

    Whoever does not read is not read from, whether it sends much at a time or little:
    of replies a thousand times as large as the requests no more is held than the limit
    and what 128 requests come to.
    """
    size, high_water = 10_000, 100_000
    peer, drip, other = (scene.connect() for _ in range(3))
    request = b"00001#" * 10_000
    sent = 0
    unsent: list[int] = []

    def fill_a_read() -> None:
        peer.send(b"09999" + bytes(9_999))

    def send_all_that_goes() -> None:
        nonlocal sent
        assert sent or peer.recv(20_000) == b"09999" + bytes(9_999)
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += peer.send(request)

    def ask() -> None:
        unsent.append(scene.loop.counters.unsent)
        drip.send(b"00001#" * 10)
        other.send(b"00001a")

    loop = scene.run(
        fill_a_read,
        *[send_all_that_goes, ask] * 20,
        peer.close,
        drip.close,
        handler=lambda payload: bytes(size) if payload == b"#" else payload,
        high_water=high_water,
        low_water=1000,
    )
    assert sent > 60_000
    assert high_water < max(unsent) <= 2 * high_water + (128 + 10) * (size + HEADER_SIZE)
    assert loop.counters.sent_bytes < 10 * high_water
    assert other.recv(1000) == b"00001a" * 20


@pytest.mark.parametrize("arguments", [(), ("--trigger", "edge"), ("--poller", "select")])
def test_gnet_a_half_close_gets_the_replies_to_all_that_was_sent(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    """epoll_ctl(2): RDHUP is no reason to drop input; panjf2000/gnet looks at it last.

    Requests that come in one go with the end are all answered, although the replies
    are more than the kernel takes, by a server that runs as people run it.
    """
    (tmp_path / "much.py").write_text("def handle(payload):\n    return payload * 50_000\n")
    # So that the end is read long before the replies are.
    options = ["--handler", "much:handle", "--high-water", "100MiB", *arguments]
    with serving(*options, cwd=tmp_path) as server:
        assert server.ask(b"00001a" * 300) == (b"50000" + b"a" * 50_000) * 300
        assert server.ask(b"00001a0000") == b"50000" + b"a" * 50_000


def test_old_nbnet_a_hang_up_does_not_close_before_reading(scene: Scene) -> None:
    """old nbNet closed on EPOLLHUP before it had read what came with it.

    A peer that sends and is gone before the loop turns has its requests handled.
    """
    seen: list[bytes] = []

    def handler(payload: bytes) -> bytes:
        seen.append(payload)
        return payload

    def send_and_go() -> None:
        # The end is told by HUP when both directions have ended, as here.
        peer.send(b"00003abc")
        peer.close()

    peer = scene.connect()
    scene.run(send_and_go, handler=handler)
    assert seen == [b"abc"]


@pytest.mark.parametrize("leave", [socket.socket.close, reset], ids=["close", "reset"])
def test_simplenet_connecting_and_closing_five_times_stops_nothing(
    tcp_scene: Scene, leave: Callable[[socket.socket], None]
) -> None:
    """sucan163/simpleNet served nobody after one who connected and closed.

    Five who are gone before they are accepted, and five who go one by one after
    that, and the next is served.
    """
    for _ in range(5):
        leave(tcp_scene.connect())
    here: list[socket.socket] = []
    come_and_go: list[Step] = [
        lambda: here.append(tcp_scene.connect()),
        tcp_scene.connected(1),
        lambda: leave(here.pop()),
        tcp_scene.connected(0),
    ]
    last = socket.socket()

    def come() -> None:
        last.settimeout(PATIENCE)
        last.connect(tcp_scene.listener.getsockname())

    with last:
        loop = tcp_scene.run(
            tcp_scene.until(lambda: len(tcp_scene.accepted) == 5),
            tcp_scene.connected(0),
            *come_and_go * 5,
            come,
            tcp_scene.connected(1),
            *tcp_scene.asked(last, b"00003abc", b"00003cba"),
        )
    assert loop.counters.accepted == 11


def test_gunicorn_2652_a_client_that_sends_nothing_is_ended_and_holds_up_nobody() -> None:
    """benoitc/gunicorn#2652: one worker waits 30 s for a silent client, another for ever.

    It gets its time and no more; meanwhile, and after it, others are served.
    """
    with serving("--first-byte-timeout", "300ms") as server, server.connect() as other:
        assert exchange(other, b"00003abc", 8) == b"00003cba"  # its first byte is in time
        with server.connect() as silent:
            assert exchange(other, b"00003abc", 8) == b"00003cba"
            assert silent.recv(1) == b""
        assert exchange(other, b"00003abc", 8) == b"00003cba"


# 7. Handlers and stopping --------------------------------------------------------------------


def look_up() -> object:
    raise KeyError("no such thing")


def run_out() -> object:
    raise MemoryError


def leave() -> object:
    sys.exit(3)


def recurse() -> object:
    return [recurse()]


@pytest.mark.parametrize(
    "failure",
    [look_up, leave, recurse, run_out],
    ids=["KeyError", "SystemExit", "RecursionError", "MemoryError"],
)
@pytest.mark.parametrize("threads", [0, 2])
def test_old_nbnet_an_exception_in_a_handler_does_not_end_the_process(
    threads: int, failure: Callable[[], object], caplog: pytest.LogCaptureFixture
) -> None:
    """old nbNet: whatever a handler raised ended the process.

    It ends that connection, after the replies before it; the peer is told nothing of
    it, the log is, and everybody else goes on.
    """

    def handler(payload: bytes) -> bytes:
        if payload == b"!":
            failure()
        return payload

    with (
        Server(handler, port=0, threads=threads) as server,
        connect(server.address) as peer,
        connect(server.address) as other,
    ):
        peer.sendall(b"00002ok00001!00002no")
        assert read_to_end(peer) == b"00002ok"
        assert exchange(other, b"00001a", 6) == b"00001a"
    assert caplog.text.count("closing, the handler failed") == 1
    assert "Traceback" in caplog.text


def test_cpython_104344_stopping_does_not_wait_for_ever_for_open_connections() -> None:
    """python/cpython#104344: ``wait_closed`` of asyncio waits for clients that stay.

    Clients that are silent, in the middle of a request or do not read their replies,
    and that never close, hold a stop up for the time to drain and no longer.
    """
    begun = [b"", b"00003abc", b"00003abc00", b"00001#" * 1000, b"bad"]
    limits = Limits(drain=0.2, linger=60.0)
    with (
        Server(much_of_little, port=0, limits=limits) as server,
        contextlib.ExitStack() as stack,
    ):
        peers = [stack.enter_context(connect(server.address)) for _ in begun]
        for peer, request in zip(peers, begun, strict=True):
            peer.sendall(request)
        assert read(peers[1], 8) == b"00003abc"
        assert read(peers[2], 8) == b"00003abc"
        assert len(read(peers[3], MAX_PAYLOAD)) == MAX_PAYLOAD
        # All of them are with the server now, and not one will close.
        server.stop()
        with pytest.raises(ConnectionRefusedError):
            connect(server.address)


def test_granian_813_a_signal_lets_what_was_begun_end_well() -> None:
    """emmett-framework/granian#813: a graceful stop is a standing request, also elsewhere.

    SIGTERM ends who is idle, and has a request that was begun come in and be answered.
    """
    with serving() as server, server.connect() as idle, server.connect() as busy:
        assert exchange(busy, b"00001a00004wa", 6) == b"00001a"
        server.process.send_signal(signal.SIGTERM)
        assert idle.recv(1) == b""
        busy.sendall(b"it")
        assert read_to_end(busy) == b"00004tiaw"
        busy.close()
        said = server.rest()
        assert server.process.returncode == 0
        assert "2 requests answered on 2 connections" in said

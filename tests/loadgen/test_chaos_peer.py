"""Replies compared as they come, however the stream is cut."""

from __future__ import annotations

import errno
import itertools
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.chaos_peer import Fault, Peer, Replies, Steps
from loadgen.traffic import messages
from nbnet.pollers import READ, WRITE

payloads = st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=8)


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    """The stream cut at these places."""
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    return [stream[start:end] for start, end in itertools.pairwise(places)]


@given(payloads, st.lists(st.integers(0, 1000)), st.sampled_from(["reverse", "none"]))
def test_right_replies_are_complete_however_they_are_cut(
    sent: list[bytes], cuts: list[int], expect: str
) -> None:
    replies = Replies()
    replies.ask(messages(sent, expect))
    for piece in pieces(b"".join(m.expected for m in messages(sent, "reverse")), cuts):
        assert not replies.complete
        replies.take(piece)
    assert replies.complete


@given(payloads, st.lists(st.integers(0, 1000)), st.integers(0, 1000))
def test_a_wrong_byte_is_found_where_it_stands(sent: list[bytes], cuts: list[int], at: int) -> None:
    replies = Replies()
    replies.ask(messages(sent, "reverse"))

    def take_all() -> None:
        for piece in pieces(bytes(stream), cuts):
            replies.take(piece)

    stream = bytearray(b"".join(message.expected for message in messages(sent, "reverse")))
    at %= len(stream)
    right = stream[at]
    stream[at] ^= 0x80
    with pytest.raises(Fault, match="wrong bytes") as caught:
        take_all()
    assert caught.value.got[0] == stream[at]
    assert caught.value.expected[0] == right


@pytest.mark.parametrize("expect", ["reverse", "none"])
@pytest.mark.parametrize("surplus", [b"0", b"00001a"])
def test_what_nothing_asked_for_is_a_fault(expect: str, surplus: bytes) -> None:
    replies = Replies()
    replies.ask(messages([b"abc"], expect))
    with pytest.raises(Fault, match="bytes that nothing asked for"):
        replies.take(b"00003cba" + surplus)


def test_what_is_no_frame_is_a_fault_where_any_reply_will_do() -> None:
    replies = Replies()
    replies.ask(messages([b"abc"], "none"))
    with pytest.raises(Fault, match="no frame") as caught:
        replies.take(b"HTTP/1.1 400")
    assert caught.value.got == b"HTTP/1.1 400"


def test_bytes_before_any_request_are_a_fault() -> None:
    with pytest.raises(Fault, match="bytes that nothing asked for"):
        Replies().take(b"220 hello")


class FakeSocket:
    """Raises what it is told to, call by call; else there is nothing to read, and all is sent."""

    family = socket.AF_INET

    def __init__(self, **raises: OSError) -> None:
        self.raises = raises
        self.data = [b"00003cba"]

    def _raise(self, call: str) -> None:
        if call in self.raises:
            raise self.raises[call]

    def fileno(self) -> int:
        return 7

    def send(self, data: bytes) -> int:
        self._raise("send")
        return len(data)

    def recv(self, _size: int) -> bytes:
        if self.data:
            return self.data.pop()
        raise BlockingIOError

    def shutdown(self, _how: int) -> None:
        self._raise("shutdown")

    def getsockopt(self, *_: int) -> int:
        return 0

    def getpeername(self) -> tuple[str, int]:
        self._raise("getpeername")
        return "127.0.0.1", 1

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 2

    def close(self) -> None:
        """As of the real one."""


class World:
    """A clock, a poller and a dialer."""

    def __init__(self, *dials: FakeSocket | OSError) -> None:
        self.now = 0.0
        self.dials = list(dials)
        self.watched: list[tuple[str, int]] = []
        self.peer = Peer(0, 5.0, dialer=self, poller=self, clock=lambda: self.now)  # type: ignore[arg-type]

    def dial(self) -> FakeSocket:
        made = self.dials.pop(0)
        if isinstance(made, OSError):
            raise made
        return made

    def register(self, _fd: int, events: int) -> None:
        self.watched.append(("register", events))

    def modify(self, _fd: int, events: int) -> None:
        self.watched.append(("modify", events))

    def unregister(self, _fd: int) -> None:
        self.watched.append(("unregister", 0))

    def go(self, steps: Steps) -> None:
        """Take the steps; each wait is as long as it may be."""
        for wait in steps:
            self.peer.watch(wait.events)
            self.now = wait.until


def test_a_dial_that_the_kernel_puts_off_is_tried_again() -> None:
    world = World(BlockingIOError(), FakeSocket())
    world.go(world.peer.connect())
    assert 0 < world.now < 1
    world.peer.close()


def test_a_dial_that_fails_is_the_servers_fault() -> None:
    world = World(ConnectionRefusedError(errno.ECONNREFUSED, "refused"))
    with pytest.raises(Fault, match="connect: refused"):
        world.go(world.peer.connect())


def test_a_connection_that_is_not_made_in_time_is_a_fault() -> None:
    slow = FakeSocket(getpeername=OSError(errno.ENOTCONN, "not connected"))
    world = World(slow)
    with pytest.raises(Fault, match="connect: timeout"):
        world.go(world.peer.connect())
    assert world.now == 5.0


def test_bytes_that_nobody_takes_are_a_fault_and_what_is_watched_changes() -> None:
    world = World(FakeSocket(send=BlockingIOError()))
    world.go(world.peer.connect())
    world.peer.replies.ask(messages([b"abc"], "reverse"))
    world.peer.watch(READ)
    with pytest.raises(Fault, match="no more was read for 5"):
        world.go(world.peer.send(b"00003abc"))
    world.peer.close()
    assert world.watched == [("register", READ), ("modify", READ | WRITE), ("unregister", 0)]


def test_a_reset_while_sending_leaves_what_came_before_it_and_ends_it() -> None:
    reset = ConnectionResetError(errno.ECONNRESET, "reset")
    world = World(FakeSocket(send=reset, shutdown=reset))
    world.go(world.peer.connect())
    world.peer.replies.ask(messages([b"abc"], "reverse"))
    world.go(world.peer.send(b"00003abc"))
    assert world.peer.replies.complete
    assert world.peer.ended == "reset"
    assert not world.peer.pull()
    world.peer.half_close()
    world.peer.close()


def test_an_end_before_all_replies_is_a_fault() -> None:
    ending = FakeSocket()
    ending.data = [b""]
    world = World(ending)
    world.go(world.peer.connect())
    world.peer.replies.ask(messages([b"abc"], "reverse"))
    with pytest.raises(Fault, match=r"^EOF after "):
        world.go(world.peer.answered())
    world.peer.close()

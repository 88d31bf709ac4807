"""A connection's line of requests, and what bytes and errors mean; nothing is sent."""

from __future__ import annotations

import errno
import itertools
import os
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.connection import Connection, Request, kind_of_error, kind_of_fault
from loadgen.traffic import Message, messages

FIRST, SECOND, THIRD = messages([b"abc", b"de", b"f"], "reverse")
ANY = Message(b"00003abc", b"")


class NoSocket:
    """A socket that is not used."""

    def __init__(self, fd: int = 5) -> None:
        self.fd = fd

    def recv(self, size: int, /) -> bytes:
        raise NotImplementedError

    def send(self, data: bytes | memoryview, /) -> int:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def fileno(self) -> int:
        return self.fd


def connection() -> Connection:
    return Connection(NoSocket(), 1, sends=True, begun=100)


def test_a_new_connection_has_nothing_in_flight() -> None:
    new = Connection(NoSocket(7), 3, sends=False, begun=100)
    assert (new.fd, new.number, new.sends, new.begun) == (7, 3, False, 100)
    assert (new.in_flight, new.outstanding, new.ready) == (0, [], None)
    assert (new.replies, new.granted, new.ended) == (0, 0, False)


def test_another_socket_of_the_same_descriptor_takes_over() -> None:
    plain, wrapped = NoSocket(), NoSocket()
    adopting = Connection(plain, 1, sends=True, begun=0)
    adopting.adopt(wrapped)
    assert adopting.socket is wrapped
    assert (adopting.recv, adopting.send, adopting.fd) == (wrapped.recv, wrapped.send, 5)


def test_the_first_request_is_the_head_and_its_reply_is_ready() -> None:
    one = connection()
    one.add(FIRST, due=1, sent=2)
    assert (one.message, one.due, one.sent) == (FIRST, 1, 2)
    assert one.ready == b"00003cba"
    assert (one.in_flight, one.outstanding) == (1, [FIRST])


def test_further_requests_wait_behind_the_head() -> None:
    one = connection()
    one.add(FIRST, due=1, sent=2)
    one.add(SECOND, due=3, sent=4)
    assert (one.message, one.ready) == (FIRST, b"00003cba")
    assert list(one.behind or ()) == [Request(SECOND, (), 3, 4)]
    assert (one.in_flight, one.outstanding) == (2, [FIRST, SECOND])


def test_an_answer_brings_up_the_next_with_its_own_times() -> None:
    one = connection()
    one.add(FIRST, due=1, sent=2)
    one.add(SECOND, due=3, sent=4)
    one.matched = 8
    one.answered()
    assert (one.message, one.due, one.sent) == (SECOND, 3, 4)
    assert (one.ready, one.matched, one.replies, one.in_flight) == (b"00002ed", 0, 1, 1)


def test_after_the_last_answer_nothing_is_expected() -> None:
    one = connection()
    one.add(FIRST, due=1, sent=2)
    one.answered()
    assert (one.message, one.ready, one.in_flight, one.replies) == (None, None, 0, 1)
    one.add(SECOND, due=3, sent=4)
    assert (one.ready, one.due, one.sent) == (b"00002ed", 3, 4)


def test_a_reply_of_which_a_part_has_come_is_not_ready() -> None:
    one = connection()
    one.add(FIRST, due=1, sent=2)
    one.matched = 3
    one.look()
    assert one.ready is None


def test_a_reply_to_what_is_not_wholly_sent_is_not_ready() -> None:
    one = connection()
    one.unsent.append(b"bc")
    one.add(FIRST, due=1, sent=2)
    assert one.ready is None
    one.unsent.clear()
    one.look()
    assert one.ready == b"00003cba"


def test_where_any_reply_will_do_none_is_ready() -> None:
    one = connection()
    one.add(ANY, due=1, sent=2)
    assert (one.ready, one.in_flight) == (None, 1)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.booleans(), max_size=40))
def test_requests_are_answered_in_the_order_in_which_they_were_sent(steps: list[bool]) -> None:
    one, line = connection(), list[tuple[Message, int, int]]()
    kinds = itertools.cycle([FIRST, SECOND, THIRD])
    for moment, adds in enumerate(steps):
        if adds:
            message = next(kinds)
            one.add(message, moment, moment + 1)
            line.append((message, moment, moment + 1))
        elif line:
            one.answered()
            line.pop(0)
        assert one.outstanding == [message for message, _, _ in line]
        assert one.in_flight == len(line)
        assert one.ready == (line[0][0].expected if line else None)
        if line:
            assert (one.message, one.due, one.sent) == line[0]


# Faults ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "got", "kind"),
    [
        (b"00003cba", b"00003abc", "wrong payload"),
        (b"00003cba", b"00003c", "wrong payload"),
        (b"00003cba", b"00003cba0", "wrong payload"),
        (b"00003cba", b"00002cb", "wrong length"),
        (b"00003cba", b"1", "wrong length"),
        (b"00003cba", b"000031", "wrong payload"),
        (b"00003cba", b"00000", "wrong length"),
        (b"00003cba", b"HTTP/1.1", "bad header"),
        (b"00003cba", b"0000x", "bad header"),
        (b"00003cba", b"+0003cba", "bad header"),
        (b"00003cba", b" 0003cba", "bad header"),
        (b"00003cba", "\u0660".encode(), "bad header"),
        (b"", b"00003cba", "unexpected bytes"),
        (b"", b"x", "unexpected bytes"),
    ],
)
def test_what_is_wrong_with_a_reply(expected: bytes, got: bytes, kind: str) -> None:
    assert kind_of_fault(expected, got) == kind


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionResetError(errno.ECONNRESET, "as the kernel says"), "reset"),
        (BrokenPipeError(errno.EPIPE, "as the kernel says"), "reset"),
        (ConnectionAbortedError(errno.ECONNABORTED, "as the kernel says"), "reset"),
        (TimeoutError(errno.ETIMEDOUT, "as the kernel says"), "timeout"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "as the kernel says"), "refused"),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), "Network is unreachable"),
        (OSError(errno.EPROTO, "wrong version number"), "wrong version number"),
        (OSError(errno.EMFILE, ""), os.strerror(errno.EMFILE)),
        (
            socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
            "Name or service not known",
        ),
        (OSError("in words alone"), "in words alone"),
    ],
)
def test_what_an_error_means(error: OSError, kind: str) -> None:
    assert kind_of_error(error) == kind


def test_requests_sent_as_one_are_answered_as_one_or_taken_apart() -> None:
    both = Message(FIRST.frame + SECOND.frame, FIRST.expected + SECOND.expected)
    one = connection()
    one.add(both, due=1, sent=2, parts=(FIRST, SECOND))
    one.add(FIRST, due=3, sent=4)
    assert one.ready == both.expected
    assert one.in_flight == 3
    assert one.outstanding == [FIRST, SECOND, FIRST]
    assert one.answered() == 2
    assert (one.replies, one.in_flight, one.message) == (2, 1, FIRST)

    one.add(both, due=5, sent=6, parts=(FIRST, SECOND))
    one.answered()
    one.take_apart()
    one.look()
    assert (one.ready, one.due, one.sent) == (FIRST.expected, 5, 6)
    assert list(one.behind or ()) == [Request(SECOND, (), 5, 6)]
    one.take_apart()
    assert one.outstanding == [FIRST, SECOND]

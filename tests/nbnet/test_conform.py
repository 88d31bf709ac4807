"""The runner of the conformance suite: servers that pass, and that fail where they should."""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from support.framed import (
    WRONG,
    Dies,
    EarlyClose,
    ErrorMessage,
    IntHeader,
    Right,
    SixDigits,
    WrongOrder,
    framed,
)
from support.serving import serving

from nbnet import Certificate, Limits, Server
from nbnet.conform import PROBE, Exchange, Outcome, conform
from nbnet.conform_wire import CannotConnect, Tls, Wire
from nbnet.conformance import Case, cases, parse_cases
from nbnet.notation import Address, Target, parse_address
from nbnet.tls import client_context

PATIENCE = 20.0
"""Seconds after which a right server is taken for a wrong one: others use the machine, too."""
SILENCE = 0.05
"""Seconds for which nothing may come; of a right server nothing does, however long."""
NO_HURRY = Limits(first_byte_timeout=0, frame_timeout=0, idle_timeout=0, write_timeout=0)
"""Of a server in this process: the client has to share the interpreter with it."""
LIGHT = 20_000
"""Bytes that a case sends at most where only some are played."""


@functools.cache
def every_case() -> list[Case]:
    return cases()


def some(every: int, at_most: int = LIGHT) -> list[Case]:
    """One of so many of the cases that send little."""
    return [case for case in every_case() if len(case.sent) <= at_most][::every]


def play(where: Target | Address, chosen: list[Case], **options: Any) -> list[Outcome]:
    address = where if isinstance(where, Address) else Address(*where)
    return conform(address, chosen, **{"timeout": PATIENCE, "silence": SILENCE, **options})


def faults(outcomes: list[Outcome]) -> dict[str, str]:
    return {str(outcome.case): outcome.fault for outcome in outcomes if outcome.fault}


def case(fields: str) -> list[Case]:
    return parse_cases("mine", f'cases = [{{ name = "a", why = "b", {fields} }}]')


# Ours passes ------------------------------------------------------------------------------


@pytest.mark.parametrize("trigger", ["level", "edge"])
def test_the_server_passes_all_cases(trigger: str) -> None:
    with Server(port=0, trigger=trigger, limits=NO_HURRY) as server:
        outcomes = play(server.address, every_case())
    assert len(outcomes) == len(every_case())
    assert not faults(outcomes)


def test_it_does_so_as_a_worker_of_the_command() -> None:
    with serving("--workers", "1") as server:
        assert isinstance(server.address, Target)
        assert not faults(play(server.address, some(3)))
        server.end()


@pytest.mark.parametrize("poller", ["poll", "select"])
def test_it_does_so_on_other_pollers(poller: str) -> None:
    with Server(port=0, poller=poller, limits=NO_HURRY) as server:
        assert not faults(play(server.address, some(20)))


def test_it_does_so_with_threads() -> None:
    with Server(port=0, threads=4, limits=NO_HURRY) as server:
        assert not faults(play(server.address, some(4)))


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("trigger", ["level", "edge"])
@pytest.mark.parametrize("threads", [1, 4])
def test_it_passes_all_cases_with_threads(trigger: str, threads: int) -> None:
    with Server(port=0, trigger=trigger, threads=threads, limits=NO_HURRY) as server:
        assert not faults(play(server.address, every_case(), timeout=60.0))


def test_it_does_so_on_a_unix_socket(tmp_path: Path) -> None:
    # For which the kernel holds less than for TCP, so that writes are taken in parts.
    path = str(tmp_path / "socket")
    with Server(unix=path, limits=NO_HURRY):
        chosen = [*some(8), *cases("late-reader"), *cases("*/*late")]
        assert not faults(play(parse_address(f"unix:{path}"), chosen))


def test_it_does_so_with_ipv6() -> None:
    with Server(host="::1", port=0) as server:
        assert not faults(play(server.address, some(20)))


def test_one_case_after_the_other() -> None:
    with Server(port=0) as server:
        assert not faults(play(server.address, some(20), jobs=1))


def test_a_server_that_echoes() -> None:
    with Server(lambda payload: payload, port=0) as server:
        assert not faults(play(server.address, some(8), echo=True))
        assert "pipelining/10" in faults(play(server.address, cases("pipelining/10")))


# TLS --------------------------------------------------------------------------------------

authority = trustme.CA()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With server.pem, certificate and key, and ca.pem."""
    place = tmp_path_factory.mktemp("certificates")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
        str(place / "server.pem")
    )
    authority.cert_pem.write_to_path(str(place / "ca.pem"))
    return place


def test_the_server_passes_with_tls(folder: Path) -> None:
    certificate = Certificate(folder / "server.pem")
    tls = Tls(client_context(folder / "ca.pem"), "127.0.0.1")
    chosen = [*some(8), *cases("late-reader/longest-3"), *cases("half-close/after-20-longest")]
    with Server(port=0, tls=certificate, limits=NO_HURRY) as server:
        address = Address(*server.address, tls=True)
        assert not faults(play(address, chosen, tls=tls))


def test_who_cannot_agree_on_tls_cannot_connect(folder: Path) -> None:
    chosen = cases("sizes/1")
    with Server(port=0, tls=Certificate(folder / "server.pem")) as server:
        address = Address(*server.address, tls=True)
        for context, name, said in (
            (client_context(), "127.0.0.1", "the certificate does not verify: unable to get"),
            (client_context(folder / "ca.pem"), "example.org", "does not verify: Hostname"),
        ):
            with pytest.raises(CannotConnect, match=said):
                play(address, chosen, tls=Tls(context, name))
    tls = Tls(client_context(folder / "ca.pem"), "127.0.0.1")
    with Server(port=0) as plain, pytest.raises(CannotConnect, match="the TLS handshake was cut"):
        play(Address(*plain.address, tls=True), chosen, tls=tls)


def test_a_server_that_says_something_else_than_tls(folder: Path) -> None:
    tls = Tls(client_context(folder / "ca.pem"), "127.0.0.1")
    with (
        by_hand(lambda peer: peer.sendall(b"220 smtp.example.org ready\r\n")) as address,
        pytest.raises(CannotConnect, match="TLS: wrong version number"),
    ):
        play(address._replace(tls=True), cases("sizes/1"), tls=tls)


# Others fail where they should -------------------------------------------------------------


def check(kind: type[Right], every: int, at_most: int, short: float) -> None:
    """The groups that have to find something do, and no other does."""
    # A case is seen to fail by waiting in some of them: no longer than need be.
    chosen = [case for case in every_case() if len(case.sent) <= at_most]
    right = [case for case in chosen if case.group not in kind.fails | kind.sometimes][::every]
    with framed(kind()) as address:
        assert not faults(play(address, right))
        outcomes = play(
            address,
            [case for case in chosen if case.group in kind.fails],
            timeout=short,
            silence=short,
        )
    assert {outcome.case.group for outcome in outcomes if outcome.fault} == kind.fails


def test_another_server_passes_all_cases_too() -> None:
    """The suite asks for what the protocol says, and not for what this server does."""
    with framed(Right()) as address:
        assert not faults(play(address, some(4)))


@pytest.mark.parametrize("kind", [Dies, EarlyClose, ErrorMessage, IntHeader, SixDigits, WrongOrder])
def test_what_is_wrong_is_found_by_the_groups_that_ask_for_it(kind: type[Right]) -> None:
    check(kind, every=16, at_most=101_000, short=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Right, *WRONG])
def test_all_that_is_wrong_is_found(kind: type[Right]) -> None:
    check(kind, every=1, at_most=300_000, short=1.0)


# How it is told, and that it ends ------------------------------------------------------------


@contextlib.contextmanager
def by_hand(serve: Callable[[socket.socket], object]) -> Iterator[Address]:
    """A server whose connections, one after the other, a function serves."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        over = threading.Event()

        def run() -> None:
            while not over.is_set():
                peer, _ = listener.accept()
                peer.settimeout(PATIENCE)
                with peer, contextlib.suppress(OSError):
                    if not over.is_set():
                        serve(peer)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield Address(*listener.getsockname())
        finally:
            over.set()
            socket.create_connection(listener.getsockname()).close()
            thread.join()


def to_the_end(peer: socket.socket) -> None:
    """Read what comes until the peer ends the connection, and say nothing."""
    while peer.recv(65536):
        pass


def test_a_server_that_never_answers_fails_in_time() -> None:
    with by_hand(to_the_end) as address:
        [outcome] = play(address, cases("sizes/3"), timeout=0.1)
        assert outcome.fault == "no answer: 8 bytes of replies missing"
        assert (outcome.got, outcome.ended) == (b"", "open")
        [outcome] = play(address, cases("early/plus-at-1"), timeout=0.1)
        assert outcome.fault == "not ended"


def test_a_server_that_takes_nobody_fails_in_time() -> None:
    # The kernel connects whom nobody accepts.
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        outcomes = play(listener.getsockname(), some(5), timeout=0.05, jobs=100)
    # But for those that ask for nothing, and whose next connection does.
    assert len(faults(outcomes)) == len(outcomes) > 80


def test_a_server_that_drips_is_not_waited_for_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbnet.conform.DRIPPING", 1.5)
    tick = threading.Event()

    def drip(peer: socket.socket) -> None:
        peer.recv(100)
        while True:
            peer.sendall(b"1")
            tick.wait(0.01)

    with by_hand(drip) as address:
        expected = 'expect = { repeat = ["1", 99999] }, end = "served"'
        [outcome] = play(address, case(f'send = "00001a", {expected}'), timeout=0.3)
    assert outcome.fault.startswith("no answer: 99,9")
    assert 0 < len(outcome.got) < 100


def test_a_server_that_floods_is_not_read_to_the_end() -> None:
    def flood(peer: socket.socket) -> None:
        while True:
            peer.sendall(bytes(10_000))

    with by_hand(flood) as address:
        [outcome] = play(address, cases("not-early/nothing"))
    assert outcome.fault.endswith("bytes more than are due")
    assert len(outcome.got) < 200_000


def test_a_server_that_reads_nothing_fails_in_time() -> None:
    gone = threading.Event()
    big = 'send = { repeat = ["a", 20000000] }'
    with by_hand(lambda _: gone.wait(PATIENCE)) as address:
        [outcome] = play(address, case(f'{big}, end = "closed"'), timeout=0.1)
        gone.set()
    assert outcome.fault == "not ended"


@pytest.mark.parametrize(
    ("reply", "fields", "fault", "ended"),
    [
        (b"00003abc", 'expect = "00003cba", end = "served"', "wrong from byte 5 on", "closed"),
        (b"00003cba0", 'expect = "00003cba", end = "fin"', "1 bytes more than are due", "closed"),
        (
            b"00003c",
            'expect = "00003cba", end = "served"',
            "closed with 2 bytes of replies missing",
            "closed",
        ),
        (b"", 'end = "silent"', "closed while the client had still to send", "closed"),
        (b"bad", 'end = "closed"', "3 bytes more than are due", "closed"),
        (
            b"00003cba",
            'expect = "00003cba", end = "served"',
            "closed with 10 bytes of replies missing",
            "closed",
        ),
    ],
)
def test_the_first_difference_is_told(reply: bytes, fields: str, fault: str, ended: str) -> None:
    def serve(peer: socket.socket) -> None:
        peer.recv(100)
        peer.sendall(reply)
        peer.shutdown(socket.SHUT_WR)
        to_the_end(peer)

    with by_hand(serve) as address:
        [outcome] = play(address, case(f'send = "00003abc", {fields}'), silence=PATIENCE)
    assert outcome.fault == fault
    assert outcome.ended == ended
    assert outcome.got == reply


def test_an_answer_before_the_request_is_whole_is_a_fault() -> None:
    def hasty(peer: socket.socket) -> None:
        peer.sendall(peer.recv(5, socket.MSG_WAITALL))
        peer.shutdown(socket.SHUT_WR)
        to_the_end(peer)

    with by_hand(hasty) as address:
        [outcome] = play(address, cases("not-early/in-three"), silence=PATIENCE)
    assert outcome.fault == "5 bytes more than are due"
    assert outcome.got == b"00004"


def test_a_client_leaves_as_its_case_says() -> None:
    seen: list[object] = []

    def watch(peer: socket.socket) -> None:
        try:
            seen.append(peer.recv(3, socket.MSG_WAITALL) + peer.recv(1))
        except ConnectionResetError:
            seen.append("reset")
        else:
            to_the_end(peer)

    with by_hand(watch) as address:
        play(address, cases("leaving/close-in-header"), timeout=0.1)
        play(address, cases("leaving/reset-in-header"), timeout=0.1)
    # Behind each of them is the next connection, which sends more.
    assert seen[0] == b"000"
    assert seen[2] == "reset"


class Recorded(Wire):
    """A connection that answers at once, and records what the client calls."""

    def __init__(self, answer: bytes) -> None:
        self.calls: list[object] = []
        self._answer = [answer]

    async def send(self, data: bytes | memoryview, moved: Callable[[int], None]) -> None:
        self.calls.append(bytes(data))
        await trio.sleep(0.001)
        moved(len(data))

    async def receive(self) -> bytes:
        self.calls.append("receive")
        if not self._answer:
            return b""
        await trio.lowlevel.checkpoint()
        return self._answer.pop()

    async def half_close(self) -> None:
        self.calls.append("half-close")


def recorded(fields: str) -> list[object]:
    wire = Recorded(b"00003cba")
    [playing] = case(f'send = "00003abc", expect = "00003cba", half_close = true, {fields}')
    exchange = Exchange(wire, PATIENCE, PATIENCE)
    trio.run(exchange.play, playing, PROBE)
    assert not exchange.fault
    return wire.calls


def test_what_is_cut_goes_in_so_many_writes() -> None:
    calls = [call for call in recorded('cuts = [2, 5], end = "fin"') if call != "receive"]
    assert calls == [b"00", b"003", b"abc", "half-close"]


def test_a_late_reader_reads_nothing_before_all_is_sent() -> None:
    begun = recorded('cuts = [2, 5], end = "fin"')
    assert begun.index("receive") < begun.index("half-close")
    late = recorded('cuts = [2, 5], late = true, end = "fin"')
    assert late == [b"00", b"003", b"abc", "half-close", "receive", "receive"]


def test_a_reset_is_told_from_an_end_in_order() -> None:
    def cut_off(peer: socket.socket) -> None:
        assert peer.recv(1)  # and leave the rest: closing resets
        peer.sendall(b"00001a" if peer.recv(5, socket.MSG_WAITALL) == b"0001a" else b"")

    with by_hand(cut_off) as address:
        [outcome] = play(address, case('send = "00001abad", expect = "00001a", end = "fin"'))
        assert outcome.fault == "reset, which costs replies on their way"
        assert outcome.ended == "reset"
        [outcome] = play(address, case('send = "00001abad", expect = "00001a", end = "closed"'))
        assert outcome.ended == "reset"
        assert outcome.fault.startswith("the next connection: ")


def test_an_end_amid_sending_is_found_by_reading() -> None:
    big = '{ repeat = ["a", 20000000] }'
    with by_hand(lambda peer: peer.recv(1)) as address:
        [outcome] = play(address, case(f'send = {big}, expect = "00001a", end = "served"'))
    assert outcome.fault == "reset with 6 bytes of replies missing"


def test_what_serves_nobody_after_a_case_fails_it() -> None:
    # Right for a client that sends what is no header, and wrong for the one after it.
    with by_hand(lambda peer: peer.recv(100)) as address:
        [outcome] = play(address, cases("early/plus-at-1"))
    assert outcome.fault == "the next connection: closed with 10 bytes of replies missing"
    assert outcome.ended == "closed"


def test_a_server_that_goes_away_amid_the_cases_fails_the_others() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer_one() -> None:
            peer, _ = listener.accept()
            listener.close()
            with peer:
                for reply in (b"00001z", b"00005eborp"):
                    peer.recv(100)
                    peer.sendall(reply)
                to_the_end(peer)

        thread = threading.Thread(target=answer_one)
        thread.start()
        first, second = play(listener.getsockname(), [*cases("sizes/1"), *cases("sizes/3")], jobs=1)
        thread.join()
    assert not first.fault
    assert second.fault == "cannot connect: Connection refused"
    assert (second.got, second.ended) == (b"", "")


def test_a_port_that_refuses_is_no_server(refusing: Target) -> None:
    with pytest.raises(CannotConnect, match=r"^Connection refused$"):
        play(refusing, every_case())


def test_a_host_that_is_unknown_is_no_server() -> None:
    with pytest.raises(CannotConnect, match=r"^Name or service not known$"):
        play(Address("host.invalid", 6789), cases("sizes/1"))


def test_a_socket_that_is_not_there_is_no_server(tmp_path: Path) -> None:
    with pytest.raises(CannotConnect, match=r"^No such file or directory$"):
        play(parse_address(f"unix:{tmp_path}/none"), cases("sizes/1"))


def test_of_a_hosts_addresses_any_will_do(
    monkeypatch: pytest.MonkeyPatch, refusing: Target
) -> None:
    from nbnet import conform_wire as module
    from nbnet.machine import look_up

    with Server(port=0) as server:
        places = [*look_up(refusing), *look_up(server.address)]
        monkeypatch.setattr(module, "look_up", lambda _: places)
        assert not faults(play(Address("several", 1), cases("zero-length")))


def test_a_unix_socket_with_a_full_backlog_is_tried_again(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)  # the only one for whom there is room
        with pytest.raises(CannotConnect, match=r"^not within 100 ms$"):
            play(parse_address(f"unix:{path}"), cases("sizes/1"), timeout=0.1)


def test_a_port_that_connects_to_itself_is_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    # TCP does that where nobody listens and the client's port is the one asked for.
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]

    class Bound(socket.socket):
        def connect_ex(self, address: Any, /) -> int:
            self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.bind(("127.0.0.1", port))
            return super().connect_ex(address)

    monkeypatch.setattr("nbnet.conform_wire.socket.socket", Bound)
    with pytest.raises(CannotConnect, match=r"^Connection refused$"):
        play(Address("127.0.0.1", port), cases("sizes/1"))


def test_a_mistake_of_the_runners_own_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    async def wrong(*_: object) -> Outcome:
        raise ZeroDivisionError

    monkeypatch.setattr("nbnet.conform._play", wrong)
    with pytest.raises(BaseExceptionGroup):
        play(Address("127.0.0.1", 1), cases("sizes/1"))


def test_limits_that_are_narrower_are_found() -> None:
    """Another proof that it finds something: this server takes less than the protocol has."""
    with Server(port=0, limits=Limits(max_frame=4096)) as server:
        failed = faults(play(server.address, cases("sizes")))
    assert set(failed) == {
        str(case) for case in cases("sizes") if len(case.sent) > 4096 + len(b"00000")
    }

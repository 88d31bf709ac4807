"""Each abuse against servers that keep the protocol, and that break it where it hurts."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.chaos_abuses import ABUSES, BAD_HEADERS, Means, parse_abuses
from loadgen.chaos_storm import Abusers, Outcome, Storm
from loadgen.dialing import KernelDialer
from loadgen.embedded import embedded_server
from loadgen.traffic import Sizes, make_payloads, messages
from nbnet import FrameDecoder, Limits, Server
from nbnet.machine import SocketAddress
from nbnet.notation import Address, Target

from .servers import Behaviour, Peer, Service, right

Serve = Callable[[Behaviour], Service]
SMALL = messages(make_payloads(Sizes(6, 200), seed=1)[:64], "reverse")
LARGEST = messages([b"a" * 99_998 + b"b"], "reverse")[0]


def storm(
    target: Target | Address,
    *abuses: str,
    abusers: int = 4,
    seconds: float = 0.2,
    patience: float = 2.0,
    max_frame: int | None = None,
    expect: str = "reverse",
) -> list[Outcome]:
    """What becomes of such abusers."""
    payloads = [message.frame[5:] for message in SMALL]
    asked = Storm(
        address=SocketAddress(socket.AF_INET, (target.host, target.port)),
        messages=messages(payloads, expect),
        largest=LARGEST if expect == "reverse" else None,
        abuses=abuses,
        abusers=abusers,
        seconds=seconds,
        patience=patience,
        max_frame=max_frame,
    )
    reading, writing = os.pipe()
    try:
        with select.epoll() as poller:
            return Abusers(
                asked,
                dialer=KernelDialer(asked.address),
                poller=poller,
                clock=time.monotonic,
                stopping=reading,
            ).run()
    finally:
        os.close(reading)
        os.close(writing)


def blamed(service: Service, abuse: str, *, abusers: int = 4, patience: float = 2.0) -> Outcome:
    """What becomes of an abuse that has to be answered wrongly at least once."""
    [outcome] = storm(service.address, abuse, abusers=abusers, patience=patience)
    assert outcome.wrong
    assert outcome.begun == outcome.right + outcome.wrong
    return outcome


def obedient(
    peer: Peer,
    *,
    on_bad_header: Callable[[Peer], None] = lambda _: None,
    answers: Callable[[bytes], bytes] = right,
) -> None:
    """Keep the protocol, but for what is told otherwise."""
    decoder = FrameDecoder()
    while data := peer.socket.recv(65536):
        peer.socket.sendall(b"".join(map(answers, decoder.feed(data))))
        if decoder.error is not None:
            on_bad_header(peer)
            with contextlib.suppress(OSError):  # it is gone already
                peer.socket.shutdown(socket.SHUT_WR)
            while peer.socket.recv(65536):
                pass
            return


# Servers that keep the protocol ----------------------------------------------------------


def test_the_bundled_server_answers_every_abuse_as_the_protocol_says() -> None:
    with embedded_server(quiet=True) as target:
        outcomes = storm(target, *ABUSES, patience=10.0)
        outcomes += storm(target, "bad-header", abusers=len(BAD_HEADERS), patience=10.0)
    assert [outcome.name for outcome in outcomes] == [*ABUSES, "bad-header"]
    assert [example for outcome in outcomes for example in outcome.examples] == []
    assert all(outcome.begun == outcome.right > 0 for outcome in outcomes)


def test_another_server_that_keeps_the_protocol_is_not_blamed(serve: Serve) -> None:
    outcomes = storm(serve(obedient).address, *ABUSES, abusers=2, patience=20.0)
    assert [example for outcome in outcomes for example in outcome.examples] == []


@pytest.mark.parametrize("bulk", [2_000, 4 << 20], ids=["at once", "in the end"])
def test_slow_readers_have_all_that_they_ask_for(
    bulk: int, address: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the kernel takes all of it at the first go, or less than all while they are slow."""
    monkeypatch.setattr("loadgen.chaos_storm.BULK", bulk)
    [outcome] = storm(address, "slow-read", abusers=1, patience=20.0)
    assert (outcome.right, outcome.examples) == (1, [])


def test_any_well_formed_reply_will_do_where_none_is_expected(serve: Serve) -> None:
    echo = serve(lambda peer: obedient(peer, answers=lambda data: b"%05d%b" % (len(data), data)))
    outcomes = storm(echo.address, "split", "coalesce", "bad-header", expect="none")
    assert [outcome.wrong for outcome in outcomes] == [0, 0, 0]


def test_a_server_may_lose_patience_with_those_that_stall() -> None:
    limits = Limits(first_byte_timeout=0.01, frame_timeout=0.01, linger=0.01)
    with Server(port=0, limits=limits) as server:
        outcomes = storm(server.address, "slow-write", "oversize", "idle", seconds=0.4)
    assert [outcome.wrong for outcome in outcomes] == [0, 0, 0]


def test_a_frame_over_the_servers_own_limit_has_to_end_the_connection() -> None:
    with Server(port=0, limits=Limits(max_frame=300)) as server:
        [told] = storm(server.address, "oversize", max_frame=300)
        [untold] = storm(server.address, "oversize")
    assert (told.wrong, untold.wrong) == (0, 0)


# Servers that break it -------------------------------------------------------------------


def test_a_server_that_answers_a_bad_header_with_a_text_is_found(serve: Serve) -> None:
    rude = serve(
        lambda peer: obedient(peer, on_bad_header=lambda peer: peer.say(b"ERROR: what?", "text"))
    )
    outcome = blamed(rude, "bad-header")
    assert outcome.right == 0
    assert outcome.examples[0].variant == "'0003a'"
    assert outcome.examples[0].said == "bytes that nothing asked for"
    assert outcome.examples[0].got == b"ERROR: what?"


def test_a_server_that_resets_after_a_bad_header_is_found(serve: Serve) -> None:
    def resets(peer: Peer) -> None:
        peer.reset()
        raise ConnectionResetError  # nothing can be done with it any more

    outcome = blamed(serve(lambda peer: obedient(peer, on_bad_header=resets)), "bad-header")
    assert outcome.right == 0
    assert outcome.examples[0].said.startswith("reset after ")


def test_a_server_that_goes_on_after_a_bad_header_is_found(serve: Serve) -> None:
    def deaf(peer: Peer) -> None:
        def wait(peer: Peer) -> None:
            peer.socket.recv(65536)

        obedient(peer, on_bad_header=wait)

    outcome = blamed(serve(deaf), "bad-header", abusers=1, patience=0.1)
    assert outcome.examples[0].said == "nothing for 100 ms after 2 of 2 replies"


def test_a_server_that_drops_replies_on_a_half_close_is_found(serve: Serve) -> None:
    def drops(peer: Peer) -> None:
        while data := peer.socket.recv(65536):
            # It gathers requests for a while, and forgets them when the end comes first.
            select.select([peer.socket], (), (), 0.5)
            if not peer.socket.recv(1, socket.MSG_PEEK):
                return
            peer.socket.sendall(b"".join(map(right, FrameDecoder().feed(data))))

    outcome = blamed(serve(drops), "half-close")
    assert (outcome.right, outcome.wrong) == (1, 3)  # the one that asks nothing is right
    assert outcome.examples[0].variant == "1 request"
    assert outcome.examples[0].said == "EOF after 0 of 1 reply"


def test_a_server_that_dies_of_a_reset_is_found(serve: Serve) -> None:
    services: list[Service] = []

    def mortal(peer: Peer) -> None:
        try:
            obedient(peer)
        except ConnectionError:
            services[0].stop_listening()

    services.append(serve(mortal))
    outcome = blamed(services[0], "reset")
    assert outcome.examples[-1].said in ("connect: refused", "reset after 0 of 1 reply")


def test_a_server_that_takes_each_read_for_a_frame_is_found(serve: Serve) -> None:
    def sloppy(peer: Peer) -> None:
        while data := peer.socket.recv(65536):
            peer.socket.sendall(right(data[5:]))

    service = serve(sloppy)
    outcome = blamed(service, "split", abusers=1)
    assert outcome.examples[0].said == "wrong bytes"
    assert outcome.examples[0].got
    assert storm(service.address, "idle", abusers=1)[0].wrong == 0


def test_a_server_that_greets_is_found(serve: Serve) -> None:
    def greets(peer: Peer) -> None:
        peer.say(b"220 hello", "greeting")
        obedient(peer)

    outcome = blamed(serve(greets), "idle")
    assert outcome.examples[0].got == b"220 hello"


def test_a_server_that_never_answers_is_found_in_bounded_time(serve: Serve) -> None:
    def mute(peer: Peer) -> None:
        while peer.socket.recv(65536):
            pass

    started = time.monotonic()
    outcomes = storm(serve(mute).address, *ABUSES, abusers=2, patience=0.1)
    assert time.monotonic() - started < 30
    wrong = {outcome.name for outcome in outcomes if outcome.wrong}
    assert wrong == set(ABUSES)


def test_where_nobody_listens_every_abuse_says_so(refusing: Target) -> None:
    for outcome in storm(refusing, *ABUSES, abusers=1):
        assert outcome.right == 0
        assert outcome.examples[0].said == "connect: refused"


# Names and what is said ------------------------------------------------------------------


def test_abuses_are_named_with_commas_between() -> None:
    assert parse_abuses("reset, split") == ("split", "reset")
    assert parse_abuses("all") == tuple(ABUSES)
    with pytest.raises(ValueError, match="'flood' is no abuse: expected some of split, "):
        parse_abuses("split,flood")


@given(size=st.integers(0, 100_000), number=st.integers(0, 1000))
def test_as_many_messages_as_fit_are_taken_and_one_at_least(size: int, number: int) -> None:
    means = Means(messages=SMALL, largest=None, bulk=0, hold=0.0)
    taken = means.upto(size, number)
    together = sum(len(message.frame) for message in taken)
    assert len(taken) == 1 or together <= size
    assert together + max(len(message.frame) for message in SMALL) > size

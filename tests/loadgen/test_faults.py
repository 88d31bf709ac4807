"""Servers that fail on the real kernel: what was counted is what the server did.

Runs are bounded by --requests where that makes counts exact. Deadlines that are
not to be reached are a minute away, so that a run that waits for one in vain
shows, and a slow machine does not.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from nbnet import Certificate, Server
from nbnet.notation import Address

from .command import call, measure
from .processes import wait_until
from .servers import (
    Behaviour,
    Peer,
    Service,
    closes,
    ends_after,
    every,
    honest,
    right,
    serving,
    silent,
    trickles,
)

Serve = Callable[[Behaviour], Service]
MARGIN = 20.0
"""Seconds that processes may take to start and to end on a slow machine."""
LONG = ("--timeout", "60s", "--grace", "60s")
"""Limits that no run here is to reach."""


def load(server: Service, *arguments: str, expected: int) -> Any:
    """Run the command against a server until both are done; check what always has to hold.

    Args:
        expected: the exit code.
    """
    code, figures = measure("-t", str(server.address), *arguments)
    assert code == expected, figures["verdict"]
    requests, connections = figures["requests"], figures["connections"]
    assert requests["sent"] == sum(
        requests[each] for each in ("verified", "wrong", "failed", "timed_out")
    )
    assert figures["latency_seconds"]["count"] == requests["verified"]
    assert sum(each["requests"] for each in figures["series"]) == requests["verified"]
    made = connections["held"] + connections["reconnected"]
    assert figures["connect_seconds"]["count"] == made
    wait_until(lambda: len(server.peers) >= made and server.is_idle)
    return figures


def exchanged(figures: Any) -> tuple[int, ...]:
    """Requests sent, and what became of them: verified, wrong, failed, timed out."""
    return tuple(
        figures["requests"][each] for each in ("sent", "verified", "wrong", "failed", "timed_out")
    )


# Replies ----------------------------------------------------------------------


def test_one_wrong_reply_in_a_thousand_is_counted_exactly(serve: Serve) -> None:
    server = serve(every(1000, lambda peer, _: peer.say(b"00003cbX", "wrong")))
    figures = load(server, "-c", "4", "-n", "3500", *LONG, expected=1)
    assert exchanged(figures) == (3500, 3497, 3, 0, 0)
    assert (server.requests, server.did) == (3500, {"reply": 3497, "wrong": 3})
    assert figures["errors"] == {"wrong payload": 3}
    assert figures["connections"]["lost"] == figures["connections"]["reconnected"] == 3
    assert [each["got"] for each in figures["mismatches"]] == [b"00003cbX".hex()] * 3


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (b"HTTP/1.1 400", "bad header"),
        (b"   3cba", "bad header"),
        (b"-0003cba", "bad header"),
        (b"00002cb", "wrong length"),
        (b"99999cba", "wrong length"),
        (b"00003abc", "wrong payload"),
    ],
)
def test_each_fault_of_a_reply_has_its_kind(serve: Serve, reply: bytes, kind: str) -> None:
    server = serve(every(50, lambda peer, _: peer.say(reply, "wrong")))
    figures = load(server, "-c", "2", "-n", "120", *LONG, expected=1)
    assert exchanged(figures) == (120, 118, 2, 0, 0)
    assert (figures["errors"], server.did) == ({kind: 2}, {"reply": 118, "wrong": 2})


def test_a_reply_with_something_behind_it_is_right_and_the_rest_unexpected(serve: Serve) -> None:
    server = serve(every(50, lambda peer, payload: peer.say(2 * right(payload), "more")))
    figures = load(server, "-c", "2", "-n", "120", *LONG, expected=1)
    assert exchanged(figures) == (120, 120, 0, 0, 0)
    assert server.did == {"reply": 118, "more": 2}
    assert figures["errors"] == {"unexpected bytes": 2}
    assert figures["connections"]["lost"] == 2
    assert [each["expected"] for each in figures["mismatches"]] == ["", ""]


def test_what_a_server_says_after_its_last_reply_is_found_too(serve: Serve) -> None:
    def behave(peer: Peer) -> None:
        for number, payload in enumerate(peer.requests(), start=1):
            peer.reply(payload)
            if number == 100:
                peer.say(right(payload), "surplus")

    figures = load(serve(behave), "-c", "1", "-n", "100", *LONG, expected=1)
    assert exchanged(figures) == (100, 100, 0, 0, 0)
    assert figures["errors"] == {"unexpected bytes": 1}


def test_a_server_that_answers_before_the_request_is_complete_is_caught(tmp_path: Path) -> None:
    # On a unix socket the kernel takes only some of what nobody reads.
    payload = b"x" * 99_999

    def behave(peer: Peer) -> None:
        peer.socket.recv(1, socket.MSG_PEEK)
        with contextlib.suppress(ConnectionError):
            for _ in range(8):
                peer.say(right(payload), "reply")
        silent(peer)

    file = tmp_path / "payload"
    file.write_bytes(payload)
    with serving(behave, str(tmp_path / "socket")) as server:
        figures = load(
            server, "-c", "1", "-n", "8", "--pipeline", "8", "--payload-file", str(file),
            "--no-reconnect", *LONG, expected=1,
        )  # fmt: skip
    whole = server.requests
    assert 0 < whole < 8
    assert exchanged(figures) == (8, whole, 1, 7 - whole, 0)
    assert figures["errors"] == {"unexpected bytes": 1}


def test_replies_byte_by_byte_are_all_verified(serve: Serve) -> None:
    server = serve(trickles)
    figures = load(server, "-c", "4", "-n", "200", "--pipeline", "2", *LONG, expected=0)
    assert exchanged(figures) == (200, 200, 0, 0, 0)
    assert server.did == {"byte": 200 * 8}


# Connections that end ---------------------------------------------------------


@pytest.mark.parametrize(("end", "kind"), [(Peer.reset, "reset"), (Peer.close, "EOF")])
def test_one_connection_ended_in_five_hundred_requests_is_counted_exactly(
    serve: Serve, end: Callable[[Peer], None], kind: str
) -> None:
    server = serve(every(500, lambda peer, _: end(peer)))
    figures = load(server, "-c", "4", "-n", "1700", *LONG, expected=1)
    assert exchanged(figures) == (1700, 1697, 0, 3, 0)
    assert server.requests == 1700
    assert figures["errors"] == {kind: 3}
    assert figures["connections"]["lost"] == 3
    assert server.did["reset"] + server.did["close"] == 3


def test_connections_closed_instead_of_a_reply_fail_one_request_each(serve: Serve) -> None:
    server = serve(ends_after(20, closes))
    figures = load(server, "-c", "3", "-n", "200", *LONG, expected=1)
    closed = server.did["close"]
    assert closed >= 7
    assert exchanged(figures) == (200, 200 - closed, 0, closed, 0)
    assert figures["errors"] == {"EOF": closed}
    assert server.did["reply"] == figures["requests"]["verified"]


def test_connections_closed_right_after_a_reply_lose_what_was_sent_meanwhile(serve: Serve) -> None:
    def behave(peer: Peer) -> None:
        for payload in itertools.islice(peer.requests(), 20):
            peer.reply(payload)
        peer.close()

    server = serve(behave)
    figures = load(server, "-c", "3", "-n", "200", *LONG, expected=1)
    requests = figures["requests"]
    assert requests["sent"] == 200
    assert requests["verified"] == server.did["reply"]
    assert requests["failed"] == 200 - server.did["reply"]
    assert figures["errors"].keys() <= {"EOF", "reset"}
    assert sum(figures["errors"].values()) == figures["connections"]["lost"]


def test_without_reconnect_the_run_ends_with_its_last_connection(serve: Serve) -> None:
    server = serve(ends_after(20, closes))
    figures = load(server, "-c", "3", "--no-reconnect", "-d", "60s", *LONG, expected=1)
    assert exchanged(figures) == (63, 60, 0, 3, 0)
    assert (len(server.peers), figures["connections"]["reconnected"]) == (3, 0)


def test_a_server_that_closes_at_once_answers_nothing_and_loses_every_connection(
    serve: Serve,
) -> None:
    server = serve(closes)
    figures = load(server, "-c", "5", "-d", "0.5s", "--no-reconnect", *LONG, expected=1)
    sent, verified, wrong, failed, timed_out = exchanged(figures)
    assert (verified, wrong, timed_out) == (0, 0, 0)
    assert sent == failed <= 5
    assert figures["connections"]["lost"] == server.did["close"] == 5
    assert sum(figures["errors"].values()) == 5


def test_a_server_that_goes_away_is_tried_again_until_the_end(serve: Serve) -> None:
    def go_away(peer: Peer) -> None:
        for payload in itertools.islice(peer.requests(), 50):
            peer.reply(payload)
        server.stop_listening()
        peer.reset()

    server = serve(go_away)
    figures = load(server, "-c", "1", "-d", "0.7s", *LONG, expected=1)
    assert figures["requests"]["verified"] == 50
    assert figures["duration_seconds"] == 0.7
    assert figures["errors"]["reset"] == figures["connections"]["lost"] == 1
    assert figures["errors"]["connect: refused"] >= 1


def test_a_port_that_refuses_is_no_connection(refusing: Address) -> None:
    ended = call("-t", str(refusing), "-c", "5")
    assert ended.code == 4
    assert ended.line.startswith(f"loadgen: cannot connect to {refusing}: refused ")


@contextlib.contextmanager
def never_accepting(room: int) -> Iterator[tuple[socket.socket, Address]]:
    """A server that listens and takes nothing; the kernel has room for so many connections."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(4)  # the kernel keeps one more
        for _ in range(5 - room):
            stack.enter_context(socket.create_connection(listener.getsockname()))
        yield listener, Address(*listener.getsockname())


def test_a_full_backlog_is_no_connection_once_the_time_to_connect_is_over() -> None:
    with never_accepting(room=0) as (_, address):
        before = time.monotonic()
        ended = call("-t", str(address), "-c", "3", "--connect-timeout", "0.3s", "-d", "60s")
        assert time.monotonic() - before < MARGIN
    assert ended.code == 4
    assert ended.line.startswith(f"loadgen: cannot connect to {address}: timeout ")


def test_connections_in_a_backlog_are_held_and_never_answered() -> None:
    with never_accepting(room=3) as (_, address):
        code, figures = measure(
            "-t", str(address), "-c", "5", "--connect-timeout", "0.3s",
            "-d", "0.2s", "--grace", "0.2s", "--timeout", "60s",
        )  # fmt: skip
    assert code == 1
    assert (figures["connections"]["held"], figures["connections"]["failed"]) == (3, 2)
    assert figures["errors"] == {"connect: timeout": 2, "timeout": 3}
    assert exchanged(figures) == (3, 0, 0, 0, 3)


# Silence ----------------------------------------------------------------------


def test_a_server_that_never_answers_has_its_connections_replaced_after_the_timeout(
    serve: Serve,
) -> None:
    server = serve(silent)
    figures = load(
        server, "-c", "3", "-d", "0.7s", "--timeout", "0.1s", "--grace", "0.1s", expected=1
    )
    sent, verified, *_, timed_out = exchanged(figures)
    assert (verified, sent) == (0, timed_out)
    assert server.requests == sent
    assert figures["errors"] == {"timeout": timed_out}
    assert sent > 3, "the connections were replaced and asked again"
    assert figures["duration_seconds"] == 0.7


def test_without_a_timeout_in_reach_replies_are_awaited_as_long_as_the_grace(serve: Serve) -> None:
    server = serve(silent)
    before = time.monotonic()
    figures = load(
        server, "-c", "3", "-d", "0.2s", "--timeout", "60s", "--grace", "0.2s", expected=1
    )
    assert 0.4 <= time.monotonic() - before < MARGIN
    assert exchanged(figures) == (3, 0, 0, 0, 3)
    assert (server.requests, figures["connections"]["lost"]) == (3, 0)
    assert figures["duration_seconds"] == 0.2


@pytest.mark.parametrize("loop", [[], ["--rate", "500"]], ids=["closed", "open"])
def test_a_server_that_freezes_leaves_one_request_a_connection_unanswered(
    serve: Serve, loop: list[str]
) -> None:
    answers = threading.Semaphore(100)

    def behave(peer: Peer) -> None:
        for payload in peer.requests():
            if answers.acquire(blocking=False):
                peer.reply(payload)

    server = serve(behave)
    figures = load(
        server, "-c", "5", "-d", "1s", "--timeout", "60s", "--grace", "0.1s", *loop, expected=1
    )
    assert exchanged(figures) == (105, 100, 0, 0, 5)
    assert server.requests == 105
    if loop:
        assert figures["requests"]["planned"] == 500, "what was due and not sent counts"
        assert figures["requests"]["unsent"] == 395
        assert figures["notes"][0].startswith("RATE MISSED: ")


# What is asked of a run -------------------------------------------------------


def test_several_workers_send_exactly_what_was_asked_and_their_counts_add_up(serve: Serve) -> None:
    server = serve(every(400, lambda peer, _: peer.say(b"00003abc", "wrong")))
    figures = load(server, "-w", "2", "-c", "5", "-n", "1001", *LONG, expected=1)
    assert exchanged(figures) == (1001, 999, 2, 0, 0)
    assert server.requests == 1001
    assert figures["loader"]["workers"] == 2
    assert figures["connections"]["held"] == 5
    by_peer = [len(peer.payloads) for peer in server.peers]
    assert sum(by_peer) == 1001


def test_a_warm_up_is_sent_and_not_counted(serve: Serve) -> None:
    server = serve(honest)
    figures = load(server, "-c", "2", "--warmup", "0.3s", "-d", "0.3s", *LONG, expected=0)
    assert 0 < figures["requests"]["verified"] < server.did["reply"]
    assert figures["duration_seconds"] == 0.3


def test_connections_are_churned_as_the_server_sees_them(serve: Serve) -> None:
    server = serve(honest)
    figures = load(server, "-c", "1", "-n", "95", "--requests-per-conn", "10", *LONG, expected=0)
    assert [len(peer.payloads) for peer in server.peers] == [10] * 9 + [5]
    connections = figures["connections"]
    assert (connections["held"], connections["reconnected"], connections["lost"]) == (1, 9, 0)


def test_idle_connections_are_held_and_receive_nothing(serve: Serve) -> None:
    server = serve(honest)
    figures = load(server, "-c", "10", "--active", "3", "-n", "300", *LONG, expected=0)
    assert figures["connections"]["held"] == len(server.peers) == 10
    assert sorted(bool(peer.payloads) for peer in server.peers) == [False] * 7 + [True] * 3
    assert server.requests == 300


def test_the_same_seed_sends_the_same_bytes_and_another_one_others(serve: Serve) -> None:
    def sent(seed: str) -> list[bytes]:
        server = serve(honest)
        load(
            server, "-c", "1", "-n", "30", "--payload-size", "16-64", "--seed", seed, *LONG,
            expected=0,
        )  # fmt: skip
        return server.peers[0].payloads

    first = sent("7")
    assert len({len(payload) for payload in first}) > 1
    assert sent("7") == first
    assert sent("8") != first


# Payloads that differ ---------------------------------------------------------


def swapping() -> Behaviour:
    """Two connections get each other's fifth reply."""
    both, swapped = threading.Barrier(2), list[bytes]()

    def behave(peer: Peer) -> None:
        for number, payload in enumerate(peer.requests(), start=1):
            if number == 5:
                swapped.append(payload)
                both.wait(MARGIN)
                [other] = [each for each in swapped if each != payload] or [payload]
                peer.say(right(other), "swapped")
            else:
                peer.reply(payload)

    return behave


def stale(peer: Peer) -> None:
    """Answer the fifth request as the one before it."""
    before = b""
    for number, payload in enumerate(peer.requests(), start=1):
        if number == 5:
            peer.say(right(before), "stale")
        else:
            peer.reply(payload)
        before = payload


def truncating(peer: Peer) -> None:
    """Leave away the last byte of the fifth reply."""
    for number, payload in enumerate(peer.requests(), start=1):
        if number == 5:
            peer.say(right(payload[1:]), "truncated")
        else:
            peer.reply(payload)


TWO = ("-c", "2", "--no-reconnect", "--payload", "abcdef", *LONG)


@pytest.mark.parametrize(
    ("make", "what", "kind"),
    [
        (swapping, "swapped", "wrong payload"),
        (lambda: stale, "stale", "wrong payload"),
        (lambda: truncating, "truncated", "wrong length"),
    ],
    ids=["swapped", "stale", "truncated"],
)
def test_with_unique_payloads_no_reply_can_stand_for_another(
    serve: Serve, make: Callable[[], Behaviour], what: str, kind: str
) -> None:
    server = serve(make())
    figures = load(server, "--payload-unique", *TWO, "-d", "60s", expected=1)
    assert exchanged(figures) == (10, 8, 2, 0, 0)
    assert (server.did[what], figures["errors"]) == (2, {kind: 2})


@pytest.mark.parametrize("make", [swapping, lambda: stale], ids=["swapped", "stale"])
def test_with_equal_payloads_a_reply_for_another_request_goes_unnoticed(
    serve: Serve, make: Callable[[], Behaviour]
) -> None:
    server = serve(make())
    figures = load(server, *TWO, "-n", "100", expected=0)
    assert sum(server.did.values()) == figures["requests"]["verified"] == 100
    assert server.did.keys() > {"reply"}


# What is expected -------------------------------------------------------------


def echoes(peer: Peer) -> None:
    for payload in peer.requests():
        peer.say(b"%05d%b" % (len(payload), payload), "echo")


def test_an_echo_is_verified_where_one_is_expected_and_wrong_elsewhere(serve: Serve) -> None:
    figures = load(serve(echoes), "-c", "2", "-n", "50", "--expect", "echo", *LONG, expected=0)
    assert exchanged(figures) == (50, 50, 0, 0, 0)
    figures = load(serve(echoes), "-c", "2", "-n", "50", "--no-reconnect", *LONG, expected=1)
    assert exchanged(figures) == (2, 0, 2, 0, 0)


def test_any_well_formed_reply_will_do_where_none_is_expected(serve: Serve) -> None:
    def behave(peer: Peer) -> None:
        for number, _ in enumerate(peer.requests(), start=1):
            if number == 20:
                peer.say(b"no frame", "bad")
            else:
                peer.say(b"%05d%b" % (number, b"x" * number), "any")

    server = serve(behave)
    figures = load(
        server, "-c", "2", "-d", "60s", "--no-reconnect", "--expect", "none", *LONG, expected=1
    )
    assert exchanged(figures) == (40, 38, 2, 0, 0)
    assert server.did == {"any": 38, "bad": 2}
    assert figures["errors"] == {"bad header": 2}


def test_a_function_tells_what_is_expected(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shop.py").write_text("def total(order: bytes) -> bytes: return order + b'!'\n")
    monkeypatch.syspath_prepend(tmp_path)

    def behave(peer: Peer) -> None:
        for payload in peer.requests():
            peer.say(b"%05d%b!" % (len(payload) + 1, payload), "total")

    figures = load(
        serve(behave), "-c", "2", "-n", "50", "--expect", "shop:total", *LONG, expected=0
    )
    assert exchanged(figures) == (50, 50, 0, 0, 0)


# Other ways to the server -----------------------------------------------------


def test_a_unix_socket_is_loaded(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with serving(every(40, lambda peer, _: peer.say(b"00003abc", "wrong")), path) as server:
        figures = load(server, "-c", "3", "-n", "100", *LONG, expected=1)
    assert exchanged(figures) == (100, 98, 2, 0, 0)
    assert figures["target"] == f"unix:{path}"
    assert figures["split"]["samples"] == 0, "the kernel does not tell when bytes came"


def test_a_server_that_speaks_tls_is_loaded_if_its_certificate_is_right(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("server.example")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with Server(port=0, tls=Certificate(tmp_path / "server.pem")) as server:
        arguments = (
            "-t", f"tls://{server.address}", "-c", "3", "-n", "100", "--pipeline", "2",
            "--tls-ca", str(tmp_path / "ca.pem"), *LONG,
        )  # fmt: skip
        code, figures = measure(*arguments, "--tls-server-name", "server.example")
        refused = call(*arguments)
    assert code == 0
    assert exchanged(figures) == (100, 100, 0, 0, 0)
    assert refused.code == 4
    assert "certificate" in refused.line


# Interrupted ------------------------------------------------------------------


def test_an_interrupt_of_an_open_loop_reports_what_was_measured(serve: Serve) -> None:
    counted = itertools.count(1)

    def behave(peer: Peer) -> None:
        for payload in peer.requests():
            if next(counted) == 50:
                os.kill(os.getpid(), signal.SIGINT)
            peer.reply(payload)

    server = serve(behave)
    figures = load(server, "-c", "4", "--rate", "500", "-d", "10m", *LONG, expected=130)
    sent, verified, *_ = exchanged(figures)
    assert figures["interrupted"] is True
    assert 50 <= sent == verified == server.requests
    assert figures["duration_seconds"] < 60
    assert figures["verdict"] == "INTERRUPTED: every reply so far verified"

"""``loadgen chaos`` as people and scripts run it."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loadgen.chaos_abuses import ABUSES
from loadgen.chaos_process import StormError
from nbnet import FrameDecoder
from nbnet.notation import Target

from .command import PATIENCE, Ended, call, running
from .processes import catches, children_of, is_gone, wait_until
from .servers import Behaviour, Peer, Service, right

SHORT = ("--calm", "250ms", "--storm", "250ms", "--recovery", "250ms", "--abuse-timeout", "5s")


def chaos(*arguments: str) -> Ended:
    return call("chaos", *SHORT, *arguments)


def obeys(peer: Peer, *, rude: bool = False) -> None:
    """Keep the protocol, but for a word about bad headers, if it is to be rude."""
    decoder = FrameDecoder()
    while data := peer.socket.recv(65536):
        peer.socket.sendall(b"".join(map(right, decoder.feed(data))))
        if decoder.error is not None:
            if rude:
                peer.say(b"ERROR", "text")
            peer.socket.shutdown(socket.SHUT_WR)
            while peer.socket.recv(65536):
                pass
            return


def test_the_bundled_server_is_undisturbed_and_answers_every_abuse_rightly() -> None:
    ended = chaos("--rate", "500", "--abusers", "2", "--abuse-timeout", "10s")
    assert ended.code == 0, ended.out
    lines = ended.out.splitlines()
    assert re.fullmatch(
        r"50 connections to 127\.0\.0\.1:\d+ \(bundled server\), open loop, 500 requests/s",
        lines[0],
    )
    assert all(len(line) <= 80 for line in lines)
    for name in ABUSES:
        assert re.search(rf"^{name} +(\d+) +\1 +0   ", ended.out, re.MULTILINE)
    assert re.search(r"^storm +\d+ ms +\d+ .* 0 +0 +0 +[\d.]+x$", ended.out, re.MULTILINE)
    assert "OK: verified load undisturbed" in ended.out
    # Nothing is said of what abusers did.
    [line] = ended.err.splitlines()
    assert line.startswith("no --target: started the bundled server on ")


def test_the_figures_are_written_as_json(address: Target, tmp_path: Path) -> None:
    file = tmp_path / "chaos.json"
    ended = chaos(
        *("-t", str(address), "-c", "2", "--think", "10ms"),
        *("--abuses", "reset,idle", "--abusers", "2", "--json", str(file)),
    )
    assert ended.code == 0
    document: Any = json.loads(file.read_text())
    assert document["schema"] == "loadgen-chaos/1"
    assert document["target"] == str(address)
    assert document["disturbed"] is False
    assert [phase["name"] for phase in document["phases"]] == ["calm", "storm", "recovery"]
    assert sum(phase["verified"] for phase in document["phases"]) > 0
    assert [(each["name"], each["begun"], each["right"]) for each in document["abuses"]] == [
        ("reset", 2, 2),
        ("idle", 2, 2),
    ]
    assert document["load"]["plan"]["think_seconds"] == 0.01
    assert document["exit_code"] == 0
    assert " ".join(ended.out.split()).endswith(document["verdict"])


def test_an_abuse_answered_wrongly_fails_and_is_shown(
    serve: Callable[[Behaviour], Service],
) -> None:
    server = serve(lambda peer: obeys(peer, rude=True))
    ended = chaos("-t", str(server.address), "--abuses", "split,bad-header", "--abusers", "2")
    assert ended.code == 1
    assert "  bad-header 1 ('+0003'): bytes that nothing asked for, got 4552524f52\n" in ended.out
    assert " ".join(ended.out.splitlines()[-2:]) == (
        "FAILED: verified load undisturbed; abuses answered otherwise than the protocol says: "
        "2 of bad-header"
    )


def test_a_server_that_dies_of_a_reset_is_found_by_the_load_as_well(
    serve: Callable[[Behaviour], Service],
) -> None:
    services: list[Service] = []

    def mortal(peer: Peer) -> None:
        try:
            obeys(peer)
        except ConnectionError:
            services[0].stop_listening()
            for each in services[0].peers:
                with contextlib.suppress(OSError):  # it has ended
                    each.socket.shutdown(socket.SHUT_RDWR)

    services.append(serve(mortal))
    target = str(services[0].address)
    ended = chaos("-t", target, "-c", "2", "--think", "1ms", "--abuses", "reset")
    assert ended.code == 1
    assert "FAILED: verified load disturbed (" in ended.out
    assert re.search(r"^recovery .* dead$", ended.out, re.MULTILINE)
    assert "connect: refused" in ended.out


def test_a_slowdown_over_the_bound_has_an_exit_code_of_its_own(
    serve: Callable[[Behaviour], Service],
) -> None:
    services: list[Service] = []

    def tires(peer: Peer) -> None:
        for payload in peer.requests():
            if len(services[0].peers) > 2:  # more than the load has
                threading.Event().wait(0.05)
            peer.reply(payload)

    services.append(serve(tires))
    ended = chaos(
        *("-t", str(services[0].address), "-c", "2", "--rate", "200", "--max-slowdown", "1.5"),
        *("--abuses", "slow-write", "--abusers", "1"),
    )
    assert ended.code == 3
    assert "SLOWED: " in ended.out


def test_targets_elsewhere_are_refused_in_a_line_before_anything_is_connected() -> None:
    ended = chaos("-t", "192.0.2.1:80")
    assert ended.code == 2
    assert ended.line == (
        "loadgen: 192.0.2.1:80 is not this machine: give --i-own-this-target if you may abuse it"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--abuses", "flood"), "--abuses: 'flood' is no abuse: expected some of split, "),
        (("--abusers", "2k"), "2000 abusers of a kind: 1 to 1,000 are possible"),
        (("--storm", "soon"), "--storm: 'soon' is no duration"),
        (("--max-slowdown", "much"), "--max-slowdown: 'much' is no factor: expected one like 5"),
        (("--duration", "5s"), "the phases are the duration, and their load is the same: "),
        (("--conns", "none"), "--conns: 'none' is no count"),
        (("-t", "tls://127.0.0.1:80"), "tls://127.0.0.1:80: abuses are made of plain TCP; "),
        (("--json", "/nowhere/x"), "--json: cannot write /nowhere/x: No such file"),
        (("--html", "x.html"), "--html: of a single run, which this command is not"),
        (("chaos",), "chaos: name one command"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(arguments: tuple[str, ...], said: str) -> None:
    ended = chaos(*arguments)
    assert ended.code == 2
    assert ended.line.startswith(f"loadgen: {said}")


def test_where_nobody_listens_the_exit_code_is_that_of_no_connection(refusing: Target) -> None:
    ended = chaos("-t", str(refusing), "-c", "1")
    assert ended.code == 4
    assert ended.line.startswith(f"loadgen: cannot connect to {refusing}: refused (start a server")


def test_an_interrupt_ends_the_storm_with_a_report_and_leaves_no_process(address: Target) -> None:
    arguments = ("--calm", "250ms", "--storm", "60s", "--abuses", "idle", "-c", "2", "--rate", "50")
    with running("chaos", "-t", str(address), *arguments) as process:
        wait_until(lambda: catches(process.pid, signal.SIGTERM))
        children = list(children_of(process.pid).values())
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 130
        assert out.splitlines()[-1].startswith("INTERRUPTED: every reply so far verified")
        assert all(map(is_gone, children))


def test_a_host_that_is_unknown_is_named_in_one_line() -> None:
    ended = call("chaos", "-t", "host.invalid:1")
    assert ended.code == 4
    assert ended.line.startswith("loadgen: cannot connect to host.invalid:1: ")


def test_abusers_that_fail_are_an_error_in_one_line(
    address: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StormError("the abusers' process failed")

    monkeypatch.setattr("loadgen.chaos.unleash", fail)
    ended = call("chaos", "-t", str(address))
    assert (ended.code, ended.line) == (1, "loadgen: the abusers' process failed")

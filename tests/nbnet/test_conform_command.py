"""The command ``nbnet conform``."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from support.commands import run_here
from support.forking import Forked
from support.framed import IntHeader, framed
from support.serving import TIMEOUT, command

from nbnet import Certificate, Server
from nbnet.cli import main
from nbnet.conformance import cases
from nbnet.notation import Target

authority = trustme.CA()


def conform(*arguments: str) -> tuple[int, str, str]:
    """The exit code, and what it printed and complained of."""
    done = run_here(main, "conform", "--timeout", "20s", "--silence", "50ms", *arguments)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with Server(port=0) as running:
        yield str(running.address)


def test_a_server_that_passes(server: str) -> None:
    code, out, err = conform("--target", server, "--only", "zero-length")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == f"OK: {server} passes 11 cases"


def test_a_server_that_fails() -> None:
    with framed(IntHeader()) as address:
        code, out, err = conform("-t", str(address), "--only", "bad-first-byte")
    assert (code, err) == (1, "")
    assert "bad-first-byte/plus: a sign; int() takes it\n  sent      +0003abc\n" in out
    assert "bad-first-byte/letter" not in out
    assert out.splitlines()[-1] == f"FAILED: {address} fails 6 cases of 39"


def test_for_programs(server: str) -> None:
    code, out, _ = conform("-t", server, "--only", "early", "--json", "--jobs", "1")
    told = json.loads(out)
    assert (code, told["cases"], told["passed"], told["failed"]) == (0, 30, 30, 0)
    with framed(IntHeader()) as address:
        code, out, _ = conform("-t", str(address), "--only", "*/plus", "--json")
    told = json.loads(out)
    assert (code, told["target"]) == (1, str(address))
    assert [failure["name"] for failure in told["failures"]] == ["plus"]


def test_a_server_that_echoes() -> None:
    with Server(lambda payload: payload, port=0) as running:
        target = str(running.address)
        code, out, _ = conform("-t", target, "--only", "pipelining/1*", "--expect", "echo")
        assert (code, out.splitlines()[-1][:3]) == (0, "OK:")
        assert conform("-t", target, "--only", "pipelining/1*")[0] == 1


def test_a_unix_socket(tmp_path: Path) -> None:
    with Server(unix=str(tmp_path / "socket")):
        code, out, _ = conform("-t", f"unix:{tmp_path}/socket", "--only", "leaving")
    assert (code, out.splitlines()[-1][:3]) == (0, "OK:")


def test_tls(tmp_path: Path) -> None:
    pem, ca, mine = (str(tmp_path / name) for name in ("server.pem", "ca.pem", "mine.pem"))
    authority.issue_cert("example.org").private_key_and_cert_chain_pem.write_to_path(pem)
    authority.issue_cert("me@example.org").private_key_and_cert_chain_pem.write_to_path(mine)
    authority.cert_pem.write_to_path(ca)
    with Server(port=0, tls=Certificate(pem, client_ca=ca)) as running:
        target = f"tls://{running.address}"
        trusted = ("-t", target, "--only", "half-close/after-1*", "--tls-ca", ca)
        named = (*trusted, "--tls-server-name", "example.org")
        code, out, err = conform(*named, "--tls-cert", mine, "--tls-key", mine)
        assert (code, err) == (0, "")
        assert out.splitlines()[-1].startswith(f"OK: {target} passes ")
        code, _, err = conform(*trusted)
        assert code == 3
        assert err.startswith(f"nbnet: cannot connect to {target}: the certificate does not verify")
        assert err.endswith(
            "(--tls-ca: whom to trust; --tls-server-name: the name in the certificate)\n"
        )
    with Server(port=0) as plain:
        code, _, err = conform("-t", f"tls://{plain.address}", "--only", "sizes/1", "--tls-ca", ca)
        assert code == 3
        assert err.endswith("the TLS handshake was cut off (does the server speak TLS?)\n")


def test_who_cannot_connect_is_told_what_to_do(refusing: Target) -> None:
    code, out, err = conform("--target", str(refusing), "--only", "zero-length")
    assert (code, out) == (3, "")
    said = "Connection refused (to start a server: nbnet serve)"
    assert err == f"nbnet: cannot connect to {refusing}: {said}\n"
    code, out, err = conform("--target", "host.invalid:1", "--only", "sizes/1")
    assert (code, out) == (3, "")
    assert err == "nbnet: cannot connect to host.invalid:1: Name or service not known\n"


def test_the_list() -> None:
    code, out, err = conform("--list", "--only", "zero-length")
    assert (code, err) == (0, "")
    assert out.startswith("zero-length: the header 00000, ")
    assert len(out.splitlines()) == 1 + len(cases("zero-length"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-t", "nowhere"], "--target: 'nowhere' is no target"),
        (["--only", "none"], "--only: no case is called 'none' (see --list)"),
        (["--expect", "none"], "--expect: 'none' is none of reverse, echo"),
        (["--timeout", "soon"], "--timeout: 'soon' is no duration"),
        (["--timeout", "0"], "--timeout: 0, expected more than 0"),
        (["--silence", "0s"], "--silence: 0s, expected more than 0"),
        (["--jobs", "0"], "--jobs: 0, expected 1 to 1000"),
        (["--jobs", "1001"], "--jobs: 1001, expected 1 to 1000"),
        (["--list", "--json"], "--list: it is for people, expected without --json"),
        (["--tls-ca", "ca.pem"], "--tls-ca: the target 127.0.0.1:6789 is none of TLS"),
        (
            ["-t", "tls://localhost:1", "--tls-ca", "nowhere.pem"],
            "nowhere.pem: No such file or directory",
        ),
        (["-t", "tls://localhost:1", "--tls-key", "k.pem"], "--tls-key: expected --tls-cert"),
    ],
)
def test_what_makes_no_sense_is_one_line(arguments: list[str], said: str) -> None:
    code, out, err = conform(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"nbnet: {said}")
    assert err.count("\n") == 1


def test_ctrl_c_ends_it_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        silent.settimeout(TIMEOUT)
        arguments = command("conform", "-t", f"127.0.0.1:{port}", "--timeout", "1h")
        with Forked[str](
            arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            peer, _ = silent.accept()  # so it is at it
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=TIMEOUT)
            peer.close()
    assert (process.returncode, out, err) == (130, "", "")


def test_serving_does_not_load_it() -> None:
    late = {"trio", "nbnet.conform", "nbnet.conformance"}
    code = f"import sys, nbnet.cli; print(*{late} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], timeout=TIMEOUT).strip() == b""

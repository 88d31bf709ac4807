from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from nbnet.notation import Target


def run(
    *arguments: str | bytes,
    stdin: bytes = b"",
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "nbclient", *arguments],
        input=stdin,
        capture_output=True,
        check=False,
        timeout=30,
        env={**os.environ, **(environment or {})},
    )


def send(address: Target, *arguments: str | bytes, stdin: bytes = b"") -> tuple[bytes, int, str]:
    """What ``nbclient send`` printed, its exit code, and its stderr."""
    done = run("send", "--target", str(address), *arguments, stdin=stdin)
    return done.stdout, done.returncode, done.stderr.decode()


# Replies -------------------------------------------------------------------------


def test_a_reply_is_printed_as_it_is(address: Target) -> None:
    assert send(address, "abc") == (b"cba", 0, "")


def test_several_replies_have_a_line_each(address: Target) -> None:
    assert send(address, "abc", "de", "f") == (b"cba\ned\nf\n", 0, "")


def test_arguments_need_not_be_utf8(address: Target) -> None:
    payload = "gr\u00fc\u00df".encode() + b"\xff\xfe"
    assert send(address, payload) == (payload[::-1], 0, "")


def test_a_payload_may_start_with_a_dash(address: Target) -> None:
    assert send(address, "--", "-x") == (b"x-", 0, "")


def test_stdin_is_taken_as_it_is(address: Target) -> None:
    payload = bytes(range(256)) + b"\n"
    assert send(address, "-", stdin=payload) == (payload[::-1], 0, "")
    assert send(address, "ab", "-", stdin=b"cd\n") == (b"ba\n\ndc\n", 0, "")


def test_the_longest_payload(address: Target) -> None:
    payload = b"x" * 99_998 + b"y"
    assert send(address, "-", stdin=payload) == (payload[::-1], 0, "")


def test_a_terminal_gets_a_line(address: Target) -> None:
    leader, follower = pty.openpty()
    with os.fdopen(leader, "rb", buffering=0) as screen, os.fdopen(follower, "wb") as terminal:
        subprocess.run(
            [sys.executable, "-m", "nbclient", "send", "-t", str(address), "abc"],
            stdout=terminal,
            check=True,
            timeout=30,
        )
        assert screen.read(100) == b"cba\r\n"


def test_the_target_may_come_from_the_environment(address: Target) -> None:
    done = run("send", "abc", environment={"NBNET_TARGET": str(address)})
    assert (done.stdout, done.returncode) == (b"cba", 0)


# Exit codes ------------------------------------------------------------------------


def test_no_server(refusing: Target) -> None:
    out, code, err = send(refusing, "abc")
    assert (out, code) == (b"", 3)
    assert err == (
        f"nbclient: cannot connect to {refusing}: Connection refused"
        " (to start a server: nbnet serve)\n"
    )


def test_a_server_that_is_silent(scripted: Callable[..., Target]) -> None:
    address = scripted([("expect", b"00003abc"), ("eof", b"")])
    assert send(address, "--timeout", "100ms", "abc") == (
        b"",
        124,
        f"nbclient: no reply from {address} within 0.1 s\n",
    )


def test_a_server_that_breaks_the_protocol(scripted: Callable[..., Target]) -> None:
    address = scripted([("expect", b"00003abc00001d"), ("send", b"00003cbaHTTP"), ("eof", b"")])
    fault = "expected a digit of a length, got b'H' at byte 8"
    assert send(address, "abc", "d") == (
        b"cba\n",
        1,
        f"nbclient: the server broke the protocol: {fault}\n",
    )


def test_a_server_that_closes(scripted: Callable[..., Target]) -> None:
    address = scripted([("expect", b"00003abc")])
    assert send(address, "abc") == (
        b"",
        1,
        "nbclient: the server closed the connection with a reply outstanding\n",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([""], "a request cannot be empty: its payload has 1 to 99999 bytes"),
        (["-"], "a request cannot be empty: its payload has 1 to 99999 bytes"),
        (["-t", "nowhere", "abc"], "'nowhere' is no target: expected HOST:PORT or [IPv6]:PORT"),
        (["--timeout", "soon", "abc"], "--timeout: 'soon' is no duration"),
        (["--timeout", "0", "abc"], "a timeout of 0.0 is not above 0 seconds"),
    ],
    ids=["empty", "empty stdin", "target", "duration", "no time"],
)
def test_usage_errors_are_one_line(refusing: Target, arguments: list[str], message: str) -> None:
    out, code, err = send(refusing, *arguments)
    assert (out, code) == (b"", 2)
    assert err.startswith(f"nbclient: {message}")
    assert err.count("\n") == 1


def test_a_payload_over_the_limit(refusing: Target) -> None:
    out, code, err = send(refusing, "abc", "-", stdin=b"x" * 200_000)
    assert (out, code) == (b"", 2)
    assert err == "nbclient: a payload of 100000 bytes is over the 99999 that a frame holds\n"


@pytest.mark.parametrize("arguments", [[], ["send"], ["send", "--no-such-option", "x"], ["abc"]])
def test_usage_errors_of_the_command_line(arguments: list[str]) -> None:
    assert run(*arguments).returncode == 2


@pytest.mark.parametrize("arguments", [["-h"], ["--help"], ["send", "-h"], ["send", "--help"]])
def test_help(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 0
    assert b"send" in done.stdout


def test_version() -> None:
    done = run("--version")
    assert done.returncode == 0
    assert done.stdout.startswith(b"nbclient ")


# The surroundings --------------------------------------------------------------------


def test_ctrl_c(scripted: Callable[..., Target]) -> None:
    # The reply to the first request tells that the command waits for the second.
    address = scripted([("expect", b"00003abc00001d"), ("send", b"00003cba"), ("eof", b"")])
    with subprocess.Popen(
        [sys.executable, "-m", "nbclient", "send", "-t", str(address), "abc", "d"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"cba\n"
            child.send_signal(signal.SIGINT)
            out, err = child.communicate(timeout=30)
        finally:
            child.kill()
    assert (out, child.returncode, err) == (b"", 130, b"")


def test_a_broken_pipe_is_quiet(address: Target) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nobody:
        done = subprocess.run(
            [sys.executable, "-m", "nbclient", "send", "-t", str(address), "abc", "de"],
            stdout=nobody,
            stderr=subprocess.PIPE,
            check=False,
            timeout=30,
        )
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told(address: Target) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "nbclient", "send", "-t", str(address), "abc"],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            timeout=30,
        )
    assert done.returncode == 1
    assert done.stderr == b"nbclient: cannot write a reply: No space left on device\n"


def test_a_request_needs_neither_trio_nor_rich(address: Target) -> None:
    code = (
        "import sys\n"
        "from nbclient.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print(*{'trio', 'rich', 'asyncio'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "send", "-t", str(address), "abc"],
        capture_output=True,
        check=True,
        timeout=30,
    )
    assert (done.stdout, done.stderr) == (b"cba", b"\n")


@pytest.mark.parametrize(("payload", "closed", "name"), [("abc", 1, "output"), ("-", 0, "input")])
def test_a_standard_stream_that_is_closed_is_one_line(
    address: Target, payload: str, closed: int, name: str
) -> None:
    script = f'exec "$0" -m nbclient send -t {address} {payload} {closed}>&-'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable], stderr=subprocess.PIPE, text=True, timeout=20
    )
    assert done.returncode == 1
    assert done.stderr == f"nbclient: standard {name} is closed\n"

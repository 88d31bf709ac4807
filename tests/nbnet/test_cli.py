"""The command ``nbnet``, as a process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nbnet.notation import Target, parse_target


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "nbnet", *arguments]


@contextmanager
def serving(
    *arguments: str, cwd: Path | None = None
) -> Iterator[tuple[subprocess.Popen[str], Target]]:
    """``nbnet serve`` on a free port; always reaped."""
    process = subprocess.Popen(
        command("serve", "--port", "0", *arguments),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=cwd,
    )
    with process:
        try:
            assert process.stderr is not None
            first = process.stderr.readline()
            assert first.startswith("listening on "), first
            yield process, parse_target(first.split()[-1])
        finally:
            process.kill()


def ask(address: Target, request: bytes) -> bytes:
    with socket.create_connection(address, timeout=10) as peer:
        peer.sendall(request)
        peer.shutdown(socket.SHUT_WR)
        reply = b""
        while piece := peer.recv(65536):
            reply += piece
        return reply


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_answers_and_ends_cleanly_on_a_signal(number: signal.Signals) -> None:
    with serving() as (process, address):
        assert ask(address, b"00003abc") == b"00003cba"
        process.send_signal(number)
        output, errors = process.communicate(timeout=20)
        assert process.returncode == 0
        assert output == ""
        assert "stopped: 1 requests answered on 1 connections" in errors
        assert "Traceback" not in errors


def test_a_handler_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def shout(payload):\n"
        "    if payload == b'bad': raise RuntimeError('cannot shout')\n"
        "    return payload.upper() + b'!'\n"
    )
    with serving("--handler", "mine:shout", cwd=tmp_path) as (process, address):
        assert ask(address, b"00003abc") == b"00004ABC!"
        assert ask(address, b"00002ok00003bad") == b"00003OK!"
        assert ask(address, b"00003abc") == b"00004ABC!"
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
    assert "RuntimeError: cannot shout" in errors
    assert "Traceback" in errors  # on the server, where it belongs


def test_a_second_signal_ends_even_a_handler_that_does_not_return(tmp_path: Path) -> None:
    (tmp_path / "stuck.py").write_text(
        "import sys, threading\n"
        "def wait(payload):\n"
        "    print('waiting', file=sys.stderr, flush=True)\n"
        "    threading.Event().wait()\n"
    )
    with serving("--handler", "stuck:wait", cwd=tmp_path) as (process, address):
        assert process.stderr is not None
        with socket.create_connection(address) as peer:
            peer.sendall(b"00001a")
            assert process.stderr.readline() == "waiting\n"
            process.send_signal(signal.SIGTERM)
            # The second has to come after the first was dealt with.
            while not process.poll():
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(0.05)
                    break
                except subprocess.TimeoutExpired:
                    continue
        assert process.returncode == 0
        assert "Traceback" not in process.stderr.read()


def test_limits_are_taken_from_the_command_line() -> None:
    with (
        serving("--max-frame", "3", "--max-connections", "1", "--refuse") as (_, address),
        socket.create_connection(address, timeout=10) as peer,
    ):
        peer.sendall(b"00003abc")
        assert peer.recv(8, socket.MSG_WAITALL) == b"00003cba"
        assert ask(address, b"") == b""  # refused
        peer.sendall(b"00004abcd")
        assert peer.recv(1) == b""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["serve", "--log-level", "loud"], 2, "--log-level: 'loud' is none of debug, info, error"),
        (["serve", "--idle-timeout", "soon"], 2, "--idle-timeout: 'soon' is no duration"),
        (["serve", "--max-frame", "1MiB"], 2, "max_frame is 1048576, expected 1 to 99999"),
        (["serve", "--poller", "kqueue"], 2, "'kqueue' is no poller"),
        (["serve", "--handler", "nothing"], 2, "expected module:function"),
        (["serve", "--handler", "no_such_module:f"], 2, "cannot import no_such_module"),
        (["serve", "--host", "host.invalid"], 1, "cannot listen on host.invalid:6789"),
    ],
)
def test_what_cannot_be_served_is_one_line(arguments: list[str], code: int, message: str) -> None:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=20)
    assert done.returncode == code
    assert done.stdout == ""
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            command("serve", "--port", str(port)), capture_output=True, text=True, timeout=20
        )
    assert done.returncode == 1
    assert done.stderr == f"nbnet: cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_usage_errors_exit_2() -> None:
    done = subprocess.run(
        command("serve", "--port", "70000"), capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["serve", "--help"]])
def test_help(arguments: list[str]) -> None:
    done = subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=20,
        env={**os.environ, "COLUMNS": "100"},
    )
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_version() -> None:
    done = subprocess.run(command("--version"), capture_output=True, text=True, timeout=20)
    assert done.stdout.startswith("nbnet ")

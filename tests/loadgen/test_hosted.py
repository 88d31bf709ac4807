"""Servers that are started by a command line, and end with it."""

from __future__ import annotations

import shlex
import socket
import sys
from pathlib import Path

import pytest

from loadgen import children, hosted
from loadgen.hosted import HostedError, split

from .processes import is_gone, wait_until

PYTHON = shlex.quote(sys.executable)
LISTEN = "import socket, time; s = socket.create_server(('127.0.0.1', {port})); "


def server(rest: str) -> str:
    """A command that listens and then does the rest."""
    return f'{PYTHON} -c "{LISTEN}{rest}"'


def test_a_command_runs_from_when_it_takes_connections_to_the_end(tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    note = f"import os, pathlib; pathlib.Path('{noted}').write_text(str(os.getpid())); "
    with hosted.hosted(server(note + "time.sleep(60)")) as address:
        socket.create_connection((address.host, address.port)).close()
        wait_until(lambda: noted.exists() and noted.read_text())
        assert not is_gone(int(noted.read_text()))
    assert is_gone(int(noted.read_text()))


def test_what_the_command_started_ends_with_it(tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    command = server(
        f"import subprocess, pathlib; child = subprocess.Popen(['sleep', '60']); "
        f"pathlib.Path('{noted}').write_text(str(child.pid)); time.sleep(60)"
    )
    with hosted.hosted(command):
        wait_until(lambda: noted.exists() and noted.read_text())
    wait_until(lambda: is_gone(int(noted.read_text())))


def test_a_command_that_does_not_want_to_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "STOP_SECONDS", 0.1)
    noted = tmp_path / "pid"
    # It listens last: what is asked of it from then on finds the signal ignored.
    ignore = "import os, pathlib, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    note = f"pathlib.Path('{noted}').write_text(str(os.getpid())); "
    with hosted.hosted(f'{PYTHON} -c "{ignore}{note}{LISTEN}time.sleep(60)"'):
        pid = int(noted.read_text())
    assert is_gone(pid)


def test_a_command_that_ends_early_is_told_with_its_last_words() -> None:
    command = f"{PYTHON} -c \"import sys; sys.exit('no licence for {{port}}')\""
    with (
        pytest.raises(HostedError, match=r"ended with 1 before .* no licence for \d+$"),
        hosted.hosted(command),
    ):
        raise AssertionError


def test_a_program_that_is_not_there_is_told() -> None:
    with (
        pytest.raises(HostedError, match=r"ended with 127 .*no-such-server: No such file"),
        hosted.hosted("no-such-server {port}"),
    ):
        raise AssertionError


def test_a_command_that_takes_no_connections_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosted, "START_SECONDS", 0.1)
    with (
        pytest.raises(HostedError, match=r"takes no connections on 127\.0\.0\.1:\d+"),
        hosted.hosted(f"{PYTHON} -c 'import time; time.sleep(60)' {{port}}"),
    ):
        raise AssertionError


@pytest.mark.parametrize(
    ("command", "said"), [("serve", "has no {port}"), ("serve '{port}", "no closing quotation")]
)
def test_a_command_that_cannot_be_meant_is_refused(command: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        split(command)

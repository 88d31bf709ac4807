"""Servers whose processes are killed or stopped, and whose log cannot be written.

What is lost is what the manual says, and nothing else: a worker that is killed
takes its connections along, a log that cannot be written its lines. Those who wait
are served by whoever comes next, nobody outlives the supervisor, and every end is
exit code 0.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from support.forking import Forked
from support.serving import TIMEOUT, Serving, command, exchange, read, serving, wait_for_end

FORCED = ("--drain", "100ms", "--linger", "100ms")


def stop(pid: int) -> None:
    """Stop a process; returns when it stands still."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: "\nState:\tT" in Path(f"/proc/{pid}/status").read_text())


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        os.sched_yield()


def children_of(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# Killed ------------------------------------------------------------------------------


def test_the_others_go_on_when_a_worker_is_killed() -> None:
    """Its connections are lost, and those alone; what was asked of others is answered."""
    with serving("--workers", "2") as server:
        peers = [server.connect() for _ in range(32)]
        for peer in peers:
            assert exchange(peer, b"00003abc00002d", 8) == b"00003cba"
        killed, _ = server.children()
        os.kill(killed, signal.SIGKILL)
        answered = lost = 0
        for number, peer in enumerate(peers):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError), peer:
                reply = exchange(peer, b"%d00002%02d" % (number % 10, number), 14)
                if reply:
                    assert reply == b"00002%dd" % (number % 10) + b"00002%d%d" % (
                        number % 10,
                        number // 10,
                    )
                    answered += 1
                    continue
            lost += 1
        assert (answered + lost, answered > 0, lost > 0) == (32, True, True)
        assert server.ask(b"00001a") == b"00001a"
        server.end()


def test_what_serves_metrics_is_started_again() -> None:
    with serving("--metrics", "127.0.0.1:0") as server:
        where = server.wait_for("metrics on http://").rpartition(" ")[2]
        worker, serves_metrics = server.children()
        os.kill(serves_metrics, signal.SIGKILL)
        assert "the metrics process" in server.wait_for("ended by signal 9")
        with urlopen(where, timeout=TIMEOUT) as answer:  # who waits meanwhile is served
            assert b"nbnet_workers 1.0" in answer.read()
        assert worker in server.children()
        server.end()


@contextlib.contextmanager
def reloading(server: Serving) -> Iterator[tuple[int, int]]:
    """A reload whose old worker stands still before it hands over; both workers."""
    [old] = server.children()
    stop(old)
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: server.ask(b"00001n") == b"00001n")  # by the new one
    [new] = set(server.children()) - {old}
    try:
        yield old, new
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(old, signal.SIGCONT)


def test_a_worker_that_stands_still_hands_over_when_it_goes_on() -> None:
    with serving() as server, server.connect() as peer:
        assert exchange(peer, b"00003abc00002d", 8) == b"00003cba"
        with reloading(server):
            peer.sendall(b"e00001f")
        server.wait_for("reloaded")
        assert read(peer, 13) == b"00002ed00001f"
        server.end()


def test_a_worker_that_is_killed_before_it_hands_over_takes_along_what_it_has() -> None:
    with serving() as server, server.connect() as peer:
        assert exchange(peer, b"00001a", 6) == b"00001a"
        with reloading(server) as (old, _):
            os.kill(old, signal.SIGKILL)
            assert "replaced by now, ended by signal 9" in server.wait_for("ended by")
        server.wait_for("reloaded")
        assert read(peer, 1) == b""
        for _ in range(2):
            assert server.ask(b"00001a") == b"00001a"
            server.process.send_signal(signal.SIGHUP)
            server.wait_for("reloaded")
        server.end()


def test_connections_stay_where_they_are_when_the_new_worker_is_killed() -> None:
    with serving(*FORCED) as server, server.connect() as peer:
        assert exchange(peer, b"00003abc00002d", 8) == b"00003cba"
        with reloading(server) as (_, new):
            os.kill(new, signal.SIGKILL)
            server.wait_for("ended by signal 9")
        server.wait_for("the connections stay, they cannot be handed over")
        assert exchange(peer, b"e00001f", 13) == b"00002ed00001f"
        assert server.ask(b"00001a") == b"00001a"
        server.end()


def test_a_supervisor_that_is_killed_while_all_stands_still_leaves_nobody_behind() -> None:
    with serving("--workers", "2", "--metrics", "127.0.0.1:0") as server:
        where = server.wait_for("metrics on http://").split()[-1]
        with urlopen(where, timeout=TIMEOUT) as answer:  # this one too has started
            assert answer.status == 200
        children = server.children()
        assert len(children) == 3
        for pid in (server.process.pid, *children):
            stop(pid)
        server.process.kill()
        for child in children:
            wait_for_end(child)


# Stopped and continued -----------------------------------------------------------------


def test_who_asks_a_worker_that_stands_still_is_served_when_it_goes_on() -> None:
    """Deadlines that pass meanwhile: ``test_loop``."""
    with serving() as server, server.connect() as peer:
        [worker] = server.children()
        assert exchange(peer, b"00003abc00002d", 8) == b"00003cba"
        stop(worker)
        peer.sendall(b"e")
        with server.connect() as newcomer:
            newcomer.sendall(b"00003abc")
            os.kill(worker, signal.SIGCONT)
            assert read(peer, 7) == b"00002ed"
            assert read(newcomer, 8) == b"00003cba"
        server.end()


def test_workers_serve_while_their_supervisor_stands_still() -> None:
    with serving("--workers", "2") as server:
        killed, other = server.children()
        stop(server.process.pid)
        os.kill(killed, signal.SIGKILL)
        for _ in range(8):
            with server.connect() as peer:  # one in two waits for who comes next
                peer.sendall(b"00001a")
        os.kill(server.process.pid, signal.SIGCONT)
        server.wait_for("ended by signal 9")
        assert server.ask(b"00001a") == b"00001a"
        assert other in server.children()
        server.end()


@pytest.mark.slow
def test_a_worker_that_stands_still_does_not_hold_up_the_end() -> None:
    with serving(*FORCED) as server:
        [worker] = server.children()
        stop(worker)
        assert "stopped: 0 requests" in server.end()
        wait_for_end(worker)


# A log that cannot be written ------------------------------------------------------------


@contextlib.contextmanager
def unheard(
    path: Path,
    arguments: list[str],
    by: Callable[..., subprocess.Popen[bytes]] = Forked,
    **streams: Any,
) -> Iterator[int]:
    """A server on a unix socket, of whom nothing is heard; its process."""

    def serves() -> bool:
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            return ask(path) == b"00003cba"
        return False

    with by(arguments, **streams) as process:
        try:
            wait_until(lambda: serves() or process.poll() is not None)
            yield process.pid
            process.terminate()
            assert process.wait(TIMEOUT) == 0
        finally:
            process.kill()


def ask(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(TIMEOUT)
        peer.connect(str(path))
        return exchange(peer, b"00003abc", 8)


def only_child(pid: int) -> int:
    """The one worker of a server, once a worker before it is not only dead, but reaped."""
    wait_until(lambda: len(children_of(pid)) == 1)
    [child] = children_of(pid)
    return child


def is_lively(pid: int, path: Path) -> None:
    """A server starts its workers again, reloads, and serves all along."""
    for whom, number in ((None, signal.SIGKILL), (pid, signal.SIGHUP)):
        child = only_child(pid)
        os.kill(whom or child, number)
        wait_for_end(child)
        assert ask(path) == b"00003cba"


@pytest.mark.parametrize("which", ["stderr", "stdout and stderr"])
def test_a_full_disk_costs_the_log_and_nothing_else(tmp_path: Path, which: str) -> None:
    path = tmp_path / "socket"
    with Path("/dev/full").open("wb") as full:
        streams: dict[str, Any] = dict.fromkeys(which.split(" and "), full.fileno())
        with unheard(path, command("serve", "--unix", str(path)), **streams) as pid:
            is_lively(pid, path)


def test_a_reader_of_the_log_that_goes_away_costs_the_log_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    reading, writing = os.pipe()
    os.close(reading)
    try:
        with unheard(path, command("serve", "--unix", str(path)), stderr=writing) as pid:
            is_lively(pid, path)
    finally:
        os.close(writing)


def test_streams_that_were_closed_before_the_start_are_not_needed(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    arguments = command("serve", "--unix", str(path))
    closing = ["sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-', *arguments]
    with unheard(path, closing, subprocess.Popen) as pid:
        is_lively(pid, path)


def test_what_handlers_print_to_a_full_disk_is_lost_and_ends_no_worker_badly(
    tmp_path: Path,
) -> None:
    (tmp_path / "chatty.py").write_text(
        "def handle(payload):\n    print('heard', payload.decode())\n    return payload\n"
    )
    with Path("/dev/full").open("wb") as full:
        process = Forked[str](
            command("serve", "--port", "0", "--handler", "chatty:handle"),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
    with process:
        try:
            server = Serving(process)
            assert server.ask(b"00003abc") == b"00003abc"
            server.process.send_signal(signal.SIGHUP)
            said = server.wait_for("reloaded")
            assert server.ask(b"00003abc") == b"00003abc"
            said += server.end()
        finally:
            process.kill()
    assert "ended with code" not in said


def test_lines_that_a_full_disk_cost_are_counted_when_there_is_room_again(tmp_path: Path) -> None:
    path, log = tmp_path / "socket", tmp_path / "log"
    with log.open("wb") as stream:
        arguments = command("serve", "--unix", str(path))
        with unheard(path, arguments, stderr=stream.fileno()) as pid:
            wait_until(lambda: log.stat().st_size)  # it serves before it says so
            limits = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (log.stat().st_size, limits[1]))
            is_lively(pid, path)
            is_lively(pid, path)
            child = only_child(pid)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
            os.kill(child, signal.SIGKILL)
            wait_for_end(child)
            assert ask(path) == b"00003cba"
    first, *lines = log.read_text().splitlines()
    assert first == f"listening on unix:{path}"
    # Two deaths, two reloads of two lines each; the last comes a moment after all is done.
    lost = [line for line in lines if "log records lost: they could not be written" in line]
    assert re.findall(r" warning (\d) log", " ".join(lost)) in (["6"], ["5"])
    rest = [line for line in lines if line not in lost]
    if " 5 " in lost[0]:
        assert rest.pop(0).endswith(" info reloaded")
    assert "ended by signal 9; starting it again" in rest[0]
    assert " info stopped: " in rest[1]

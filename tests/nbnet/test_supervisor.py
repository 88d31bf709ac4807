"""Workers and their supervisor: restarts, reloads, ends, nobody left behind."""

from __future__ import annotations

import os
import resource
import signal
import threading
from pathlib import Path

import pytest
from support.serving import Serving, exchange, read, serving, wait_for_end

UPPER = "def handle(payload):\n    return payload.upper()\n"
LOWER = "def handle(payload):\n    return payload.lower()\n"


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """The file of a handler, ``mine:handle``."""
    file = tmp_path / "mine.py"
    file.write_text(UPPER)
    return file


def rewrite(file: Path, text: str) -> None:
    """Change a module so that the next import sees it, however quick that is."""
    file.write_text(text)
    before = file.stat().st_mtime
    os.utime(file, (before + 10, before + 10))  # compiled code is told apart by seconds


def test_each_worker_is_a_process_and_what_they_did_is_added_up() -> None:
    with serving("--workers", "2") as server:
        assert len(server.children()) == 2
        for number in range(32):
            assert server.ask(b"00002%02d" % number) == b"00002" + (b"%02d" % number)[::-1]
        assert "stopped: 32 requests answered on 32 connections" in server.end()


def test_workers_share_the_connections() -> None:
    """With 64 connections, none for one of two workers is less likely than 1 in 10**18."""

    def sockets(pid: int) -> int:
        return sum(
            str(entry.readlink()).startswith("socket:")
            for entry in Path(f"/proc/{pid}/fd").iterdir()
        )

    with serving("--workers", "2") as server:
        before = {child: sockets(child) for child in server.children()}
        peers = [server.connect() for _ in range(64)]
        for peer in peers:
            assert exchange(peer, b"00001a", 6) == b"00001a"
        taken = [sockets(child) - count for child, count in before.items()]
        assert sum(taken) == 64
        assert min(taken) > 0
        for peer in peers:
            peer.close()


def test_a_worker_that_dies_is_started_again_and_those_who_wait_are_served() -> None:
    with serving() as server:
        [worker] = server.children()
        os.kill(worker, signal.SIGKILL)
        wait_for_end(worker)
        with server.connect() as peer:  # the supervisor has the socket that listens
            assert exchange(peer, b"00003abc", 8) == b"00003cba"
        line = server.wait_for("ended by signal 9")
        assert "the worker (" in line
        assert "starting it again in 0.1 s" in line
        assert server.children() != [worker]
        server.end()


def test_a_pause_before_a_start_doubles() -> None:
    with serving() as server:
        pauses = []
        for _ in range(3):
            [worker] = server.children()
            os.kill(worker, signal.SIGKILL)
            pauses.append(server.wait_for("ended by signal 9").rsplit(" in ", 1)[1])
            assert server.ask(b"00001a") == b"00001a"
        assert pauses == ["0.1 s", "0.2 s", "0.4 s"]
        server.end()


def test_a_killed_supervisor_leaves_nobody_behind() -> None:
    with serving("--workers", "3") as server:
        workers = server.children()
        assert len(workers) == 3
        server.process.kill()
        for worker in workers:
            wait_for_end(worker)


def test_a_killed_supervisor_takes_a_stuck_worker_along(tmp_path: Path) -> None:
    (tmp_path / "stuck.py").write_text(
        "import signal, sys, threading\n"
        "def wait(payload):\n"
        "    print('waiting', file=sys.stderr, flush=True)\n"
        "    threading.Event().wait()\n"
    )
    with serving("--handler", "stuck:wait", cwd=tmp_path) as server, server.connect() as peer:
        peer.sendall(b"00001a")
        server.wait_for("waiting")
        [worker] = server.children()
        server.process.kill()
        wait_for_end(worker)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_workers_well(number: signal.Signals) -> None:
    with serving("--workers", "2") as server:
        workers = server.children()
        with server.connect() as peer:
            assert exchange(peer, b"00003abc00004de", 8) == b"00003cba"
            server.process.send_signal(number)
            # What was begun is finished: the rest of the request comes now.
            assert exchange(peer, b"fg", 9) == b"00004gfed"
            assert peer.recv(1) == b""
        said = server.rest()
        assert server.process.returncode == 0
        assert "stopped: 2 requests answered on 1 connections" in said
        for worker in workers:
            wait_for_end(worker)


def test_newcomers_are_refused_while_the_last_connections_end(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import os\n"
        "def handle(payload):\n"
        "    print('begun', file=__import__('sys').stderr, flush=True)\n"
        "    with open('go') as pipe: pipe.read()\n"
        "    return payload\n"
    )
    os.mkfifo(tmp_path / "go")
    with (
        serving(
            *("--workers", "2", "--threads", "1", "--handler", "slow:handle", "--linger", "100ms"),
            cwd=tmp_path,
        ) as server,
        server.connect() as peer,
    ):
        peer.sendall(b"00001a")
        server.wait_for("begun")
        server.process.send_signal(signal.SIGTERM)
        # One of the two workers has nothing to finish, so it ends.
        while len(server.children()) > 1:
            os.sched_yield()
        with pytest.raises(ConnectionRefusedError):
            server.connect()
        (tmp_path / "go").write_text("")
        assert read(peer, 6) == b"00001a"
        assert server.rest().count("Traceback") == 0


def test_a_reload_takes_the_new_code_and_keeps_the_connections(module: Path) -> None:
    with serving("--handler", "mine:handle", cwd=module.parent) as server:
        [worker] = server.children()
        with server.connect() as peer, server.connect() as other:
            assert exchange(peer, b"00002aB00002c", 7) == b"00002AB"
            assert exchange(other, b"00002aB", 7) == b"00002AB"
            rewrite(module, LOWER)
            server.process.send_signal(signal.SIGHUP)
            server.wait_for("reloaded")
            assert exchange(peer, b"D", 7) == b"00002cd"
            assert exchange(other, b"00002aB", 7) == b"00002ab"
        wait_for_end(worker)
        assert "stopped: 4 requests answered on 2 connections" in server.end()


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("def handle(payload:\n", "cannot import mine: SyntaxError"),
        ("raise RuntimeError('no database')\n", "cannot import mine: RuntimeError: no database"),
        ("handle = 3\n", "handle is not callable"),
        ("import os\nos._exit(7)\n", "ended with code 7"),
    ],
)
def test_a_reload_that_cannot_be_leaves_everything_and_says_why(
    module: Path, broken: str, reason: str
) -> None:
    with serving("--workers", "2", "--handler", "mine:handle", cwd=module.parent) as server:
        workers = server.children()
        with server.connect() as peer:
            assert exchange(peer, b"00002aB", 7) == b"00002AB"
            rewrite(module, broken)
            server.process.send_signal(signal.SIGHUP)
            line = server.wait_for("not reloaded")
            assert "the old workers go on" in line
            assert reason in line
            assert exchange(peer, b"00002aB", 7) == b"00002AB"
            assert server.children() == workers
            rewrite(module, LOWER)
            os.utime(module, (2e9, 2e9))
            server.process.send_signal(signal.SIGHUP)
            server.wait_for("reloaded")
            assert exchange(peer, b"00002aB", 7) == b"00002ab"
        server.end()


def test_a_reload_takes_new_limits_from_the_file(tmp_path: Path) -> None:
    config = tmp_path / "nbnet.toml"
    config.write_text('max-frame = 5\nidle-timeout = "2m"\n')
    with serving("--config", str(config)) as server:
        assert server.ask(b"00006abcdef") == b""
        config.write_text("max-frame = 6\n")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("reloaded")
        assert server.ask(b"00006abcdef") == b"00006fedcba"
        config.write_text("max-frames = 6\n")
        server.process.send_signal(signal.SIGHUP)
        assert "'max-frames' is none of what a file may say" in server.wait_for("not reloaded")
        assert server.ask(b"00006abcdef") == b"00006fedcba"
        server.end()


def requests(
    server: Serving, failures: list[str], counts: list[int], stop: threading.Event
) -> None:
    """A persistent connection that asks and checks until it is told to stop."""
    count = 0
    try:
        with server.connect() as peer:
            while not stop.is_set():
                text = b"%08d" % count
                reply = exchange(peer, b"00008" + text, 13)
                if reply != b"00008" + text[::-1]:
                    failures.append(f"{reply!r} for {text!r}")
                    return
                count += 1
    except OSError as error:
        failures.append(repr(error))
    finally:
        counts.append(count)


@pytest.mark.parametrize("options", [(), ("--workers", "2"), ("--threads", "4")])
def test_reloads_under_load_fail_no_request_and_refuse_no_connection(
    options: tuple[str, ...],
) -> None:
    failures: list[str] = []
    counts: list[int] = []
    stop = threading.Event()
    with serving(*options) as server:
        threads = [
            threading.Thread(target=requests, args=(server, failures, counts, stop))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for _ in range(3):
            server.process.send_signal(signal.SIGHUP)
            for _ in range(20):
                assert server.ask(b"00003abc") == b"00003cba"
            server.wait_for("reloaded")
        stop.set()
        for thread in threads:
            thread.join()
        server.end()
    assert failures == []
    assert min(counts) > 0


def test_signals_that_come_while_it_starts_do_not_hurt() -> None:
    with serving() as server:
        for _ in range(20):
            server.process.send_signal(signal.SIGHUP)
        server.wait_for("reloaded")
        assert server.ask(b"00001a") == b"00001a"
        said = server.end()
        assert "Traceback" not in said


def test_a_handler_that_prints_is_heard(tmp_path: Path) -> None:
    (tmp_path / "chatty.py").write_text(
        "def handle(payload):\n    print('heard', payload.decode())\n    return payload\n"
    )
    with serving("--handler", "chatty:handle", cwd=tmp_path) as server:
        server.ask(b"00003abc")
        server.process.send_signal(signal.SIGTERM)
        output, _ = server.process.communicate(timeout=20)
    assert output == "heard abc\n"


def test_a_worker_whose_handler_has_forked_is_started_again_when_it_dies(tmp_path: Path) -> None:
    """The child of the handler holds the worker's end of the talk; nobody waits for that one."""
    (tmp_path / "forks.py").write_text(
        "import os, signal\n"
        "def handle(payload):\n"
        "    if payload == b'f':\n"
        "        child = os.fork()\n"
        "        if not child:\n"
        "            signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
        "            signal.pause()\n"
        "        return str(child).encode()\n"
        "    return payload\n"
    )
    with serving("--handler", "forks:handle", cwd=tmp_path) as server:
        with server.connect() as peer:  # which the child holds open, too
            left = int(read(peer, int(exchange(peer, b"00001f", 5))))
        try:
            [worker] = server.children()
            os.kill(worker, signal.SIGKILL)
            server.wait_for("starting it again")
            assert server.ask(b"00001a") == b"00001a"
        finally:
            os.kill(left, signal.SIGKILL)
        server.end()


def test_a_worker_that_dies_during_a_reload_that_fails_is_started_again(module: Path) -> None:
    go_on = module.parent / "go"
    os.mkfifo(go_on)
    with serving("--handler", "mine:handle", cwd=module.parent) as server:
        [old] = server.children()
        rewrite(
            module, "import sys\nprint('begun', file=sys.stderr, flush=True)\nopen('go').read()\n"
        )
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("begun")
        os.kill(old, signal.SIGKILL)
        wait_for_end(old)
        rewrite(module, LOWER)
        os.utime(module, (2e9, 2e9))
        go_on.write_text("")
        server.wait_for("not reloaded")
        assert server.ask(b"00001A") == b"00001a"
        server.end()


def test_a_reload_for_which_there_are_no_descriptors_changes_nothing() -> None:
    with serving("--linger", "100ms") as server, server.connect() as peer:
        pid = server.process.pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (5, before[1]))
        server.process.send_signal(signal.SIGHUP)
        assert "Too many open files" in server.wait_for("not reloaded")
        assert exchange(peer, b"00001a", 6) == b"00001a"
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("reloaded")
        assert exchange(peer, b"00001a", 6) == b"00001a"
        server.end()

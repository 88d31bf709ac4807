"""The command ``nbnet``: as a process, and in this one where it ends before it starts any."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias
from urllib.request import urlopen

import pytest
from support import forking
from support.commands import run_here
from support.serving import TIMEOUT, command, exchange, serving, serving_by_command

from nbnet.cli import main

Ended: TypeAlias = subprocess.CompletedProcess[str]


def run(*arguments: str, environment: Mapping[str, str] | None = None) -> Ended:
    """Run the command in this process: for what fails before a worker is forked."""
    done = run_here(main, *arguments, environment=environment)
    out, err = done.stdout.decode(), done.stderr.decode()
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


def run_apart(*arguments: str) -> Ended:
    """Run the command in a process of its own."""
    return forking.run(command(*arguments), text=True, timeout=TIMEOUT)


def is_one_line(done: Ended, code: int, message: str) -> None:
    """It failed, and said why in one line."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_answers_and_ends_cleanly_on_a_signal(number: signal.Signals) -> None:
    with serving_by_command() as server:
        assert server.ask(b"00003abc") == b"00003cba"
        server.process.send_signal(number)
        output, errors = server.process.communicate(timeout=20)
        assert server.process.returncode == 0
        assert output == ""
        assert "stopped: 1 requests answered on 1 connections" in errors
        assert "Traceback" not in errors


def test_a_handler_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def shout(payload):\n"
        "    if payload == b'bad': raise RuntimeError('cannot shout')\n"
        "    return payload.upper() + b'!'\n"
    )
    with serving_by_command("--handler", "mine:shout", cwd=tmp_path) as server:
        assert server.ask(b"00003abc") == b"00004ABC!"
        assert server.ask(b"00002ok00003bad") == b"00003OK!"
        assert server.ask(b"00003abc") == b"00004ABC!"
        errors = server.end()
    assert "RuntimeError: cannot shout" in errors
    assert "Traceback" in errors  # on the server, where it belongs


def test_a_second_signal_ends_even_a_handler_that_does_not_return(tmp_path: Path) -> None:
    (tmp_path / "stuck.py").write_text(
        "import sys, threading\n"
        "def wait(payload):\n"
        "    print('waiting', file=sys.stderr, flush=True)\n"
        "    threading.Event().wait()\n"
    )
    with serving("--handler", "stuck:wait", cwd=tmp_path) as server:
        process = server.process
        with server.connect() as peer:
            peer.sendall(b"00001a")
            server.wait_for("waiting")
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
        assert "Traceback" not in server.rest()


def test_limits_are_taken_from_the_command_line() -> None:
    with (
        serving("--max-frame", "3", "--max-connections", "1", "--refuse") as server,
        server.connect() as peer,
    ):
        peer.sendall(b"00003abc")
        assert peer.recv(8, socket.MSG_WAITALL) == b"00003cba"
        assert server.ask(b"") == b""  # refused
        peer.sendall(b"00004abcd")
        assert peer.recv(1) == b""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["serve", "--log-level", "loud"], 2, "--log-level: 'loud' is none of debug, info, error"),
        (["serve", "--idle-timeout", "soon"], 2, "--idle-timeout: 'soon' is no duration"),
        (["serve", "--max-frame", "1MiB"], 2, "max-frame is 1048576, expected 1 to 99999"),
        (["serve", "--host", "host.invalid"], 1, "cannot listen on host.invalid:6789"),
    ],
)
def test_what_cannot_be_served_is_one_line(arguments: list[str], code: int, message: str) -> None:
    is_one_line(run(*arguments), code, message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--poller", "kqueue"], "'kqueue' is no poller"),
        (["--handler", "nothing"], "expected module:function"),
        (["--handler", "no_such_module:f"], "cannot import no_such_module"),
        (["--tls-cert", "nothing.pem"], "nothing.pem"),
        (["--threads", "5000"], "5000 threads, expected 0 to 1024"),
        (["--trigger", "edge", "--poller", "poll"], "need epoll, not poll"),
    ],
)
def test_what_a_worker_finds_out_is_one_line(arguments: list[str], message: str) -> None:
    is_one_line(run_apart("serve", "--port", "0", *arguments), 2, message)


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        started = command("serve", "--port", str(port))
        done = subprocess.run(started, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 1
    assert done.stderr == f"nbnet: cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_usage_errors_exit_2() -> None:
    done = run("serve", "--port", "70000")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["serve", "--help"]])
def test_help(arguments: list[str]) -> None:
    done = run(*arguments, environment={"COLUMNS": "100"})
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_version() -> None:
    done = run("--version")
    assert done.stdout.startswith("nbnet ")


def metrics(where: str) -> dict[str, float]:
    """What is exposed there, by name and labels."""
    with urlopen(where, timeout=20) as answer:
        lines = answer.read().decode().splitlines()
    return {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")
    }


def test_metrics_of_all_workers_and_of_those_that_have_ended() -> None:
    with serving("--workers", "2", "--metrics", "127.0.0.1:0") as server:
        where = server.wait_for("metrics on http://").rpartition(" ")[2]
        peers = [server.connect() for _ in range(20)]
        for peer in peers:
            exchange(peer, b"00003abc00001a", 14)
        # Workers publish within half a second of what they did.
        while metrics(where)["nbnet_requests_total"] < 40:
            os.sched_yield()
        before = metrics(where)
        assert before["nbnet_connections"] == 20
        assert before["nbnet_received_bytes_total"] == 20 * 14
        assert before["nbnet_workers"] == 2
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("reloaded")
        for peer in peers:
            exchange(peer, b"00001a", 6)
        while metrics(where)["nbnet_requests_total"] < 60:
            os.sched_yield()
        after = metrics(where)
        assert after["nbnet_connections"] == 20
        assert after["nbnet_connections_accepted_total"] == 20
        assert after["nbnet_connections_handed_over_total"] == 20
        assert after['nbnet_reloads_total{result="ok"}'] == 1
        assert after["nbnet_worker_restarts_total"] == 0
        for peer in peers:
            peer.close()
        server.end()


def test_a_port_for_metrics_that_is_taken_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("serve", "--port", "0", "--metrics", f"127.0.0.1:{port}")
    assert done.returncode == 1
    assert done.stderr == (
        f"nbnet: cannot serve metrics on 127.0.0.1:{port}: Address already in use\n"
    )


def test_a_unix_socket_is_served_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with serving("--unix", str(path), "--workers", "2") as server:
        assert server.address == f"unix:{path}"
        assert server.ask(b"00003abc") == b"00003cba"
        server.end()
    assert not path.exists()


def test_the_file_of_a_killed_server_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with serving("--unix", str(path)) as server:
        server.process.kill()
        server.process.wait(20)
    assert path.exists()
    with serving("--unix", str(path)) as server:
        assert server.ask(b"00003abc") == b"00003cba"
        server.end()


def test_a_wildcard_without_tls_is_warned_of() -> None:
    with serving("--host", "*") as server:
        assert "is open to every network, without TLS" in server.wait_for("warning")
        server.end()


def test_logs_as_json(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "def handle(payload):\n    raise ValueError('two\\nlines \\x1b[2J')\n"
    )
    with serving("--log-format", "json", "--handler", "bad:handle", cwd=tmp_path) as server:
        server.ask(b"00001a")
        lines = [json.loads(line) for line in server.end().splitlines()]
    errors = [line for line in lines if line["level"] == "error"]
    assert len(errors) == 1
    assert "two\\nlines" in errors[0]["exception"]


def test_errors_that_repeat_are_counted_and_not_all_logged(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def handle(payload):\n    raise ValueError('no')\n")
    with serving("--handler", "bad:handle", cwd=tmp_path) as server:
        for _ in range(50):
            assert server.ask(b"00001a") == b""
        assert server.end().count("the handler failed") == 10


def test_what_handlers_log_is_seen(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "import logging\n"
        "def handle(payload):\n    logging.getLogger('shop').info('sold')\n    return payload\n"
    )
    with serving("--handler", "shop:handle", cwd=tmp_path) as server:
        server.ask(b"00001a")
        assert " info sold" in server.end()


def test_nobody_who_reads_standard_error_does_not_stop_the_server(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "import logging\n"
        "def handle(payload):\n"
        "    for number in range(100): logging.getLogger('shop').info('x' * 900 + str(number))\n"
        "    for number in range(100): logging.getLogger(f'shop{number}').info('x' * 900)\n"
        "    return payload\n"
    )
    with serving("--handler", "bad:handle", cwd=tmp_path) as server:
        for _ in range(5):  # more than a pipe holds
            assert server.ask(b"00001a") == b"00001a"
        server.process.kill()


def test_the_service_manager_hears_of_start_reload_and_stop(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(20)
        with serving(env={"NOTIFY_SOCKET": path}) as server:
            assert manager.recv(100) == b"READY=1"
            server.process.send_signal(signal.SIGHUP)
            assert manager.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            assert manager.recv(100) == b"READY=1"
            server.process.send_signal(signal.SIGTERM)
            assert manager.recv(100) == b"STOPPING=1"
            server.rest()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "http"], "--port: 'http': expected 0 to 65535"),
        (["--port", "65536"], "--port: '65536': expected 0 to 65535"),
        (["--workers", "0"], "--workers: '0': expected 1 to 1024 or auto"),
        (["--workers", "many"], "--workers: 'many': expected 1 to 1024 or auto"),
        (["--proxy-protocol", "everybody"], "--proxy-protocol: 'everybody' is no network"),
        (["--log-format", "xml"], "--log-format: 'xml' is none of text, json"),
        (["--config", "nothing.toml"], "cannot read nothing.toml: No such file"),
        (["--tls-key", "key.pem"], "TLS needs a certificate: --tls-cert"),
        (["--metrics", "nowhere"], "'nowhere' is no place to serve"),
    ],
)
def test_options_that_make_no_sense_are_one_line(arguments: list[str], message: str) -> None:
    is_one_line(run("serve", "--port", "0", *arguments), 2, message)

"""Servers behind HAProxy, as ``docs/behind-haproxy.md`` has it: its configuration, its commands.

All of it runs on one machine of the test's own with the page's addresses, so that
the file is used as it stands there. Traffic is verified: by loadgen, on connections
that stay and on some that come and go, and by ``nbclient``, which repeats what it may.

The longer form, with restarts at once, is slow::

    pytest -m slow tests/nbnet/test_behind_haproxy.py
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.network import Machine, machine, why_no_machine
from support.serving import TIMEOUT, Serving, started

PAGE = Path(__file__).parents[2] / "docs" / "behind-haproxy.md"
FRONT, ONE, TWO = "10.0.0.10", "10.0.0.11", "10.0.0.12"
SERVERS = {"one": ONE, "two": TWO}
WHO = "def handle(payload, context):\n    return str(context.peer).encode()\n"

# Three threads that ask through the proxy until standard input ends, one request each
# time different and its reply compared.
ASKING = """
import sys, threading
from nbclient import Client
failed, done, ended = [], [0, 0, 0], threading.Event()
def ask(number):
    while not ended.wait(0.01):
        payload = b"%d-%d" % (number, done[number])
        try:
            assert client.request(payload, idempotent=True) == payload[::-1]
        except Exception as error:
            failed.append(repr(error))
        done[number] += 1
with Client(sys.argv[1], retries=5) as client:
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads: thread.start()
    client.request(b"up")
    print("asking", flush=True)
    sys.stdin.read()
    ended.set()
    for thread in threads: thread.join()
print(sum(done), failed[:3])
"""


def block(language: str) -> str:
    """The page's first block in this language."""
    found = re.search(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert found
    return found[1]


@pytest.fixture(scope="module", autouse=True)
def _haproxy() -> None:
    if shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        pytest.skip("haproxy is not installed (Debian's package of this name is meant)")
    if os.getuid():
        pytest.skip("haproxy takes another user, which only root can give it")
    if reason := why_no_machine(as_root=True):
        pytest.skip(reason)


class Proxy:
    """HAProxy, as it runs, and what its administrator can do."""

    def __init__(self, host: Machine, process: subprocess.Popen[str]) -> None:
        self.host = host
        self.process = process
        # The socket is in a file system of that machine, which is reached like this.
        self.socket = str(Path("/proc", str(host.pid), "root", "run/haproxy/admin.sock"))

    def admin(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(TIMEOUT)
            peer.connect(self.socket)
            peer.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: peer.recv(65536), b"")).decode()

    def stat(self, server: str, field: str) -> str:
        """What ``show stat`` says of a server."""
        names, *rows = self.admin("show stat").lstrip("# ").splitlines()
        for row in rows:
            values = dict(zip(names.split(","), row.split(","), strict=False))
            if (values.get("pxname"), values.get("svname")) == ("nbnet", server):
                return values[field]
        raise AssertionError(f"no server {server}")

    def until(self, server: str, field: str, fits: Callable[[str], bool]) -> None:
        """Ask until ``show stat`` says so; HAProxy tells nobody of its own accord."""
        wait_until(lambda: fits(self.stat(server, field)), f"{field} of {server}")

    def until_up(self, server: str) -> None:
        self.until(server, "status", "UP".__eq__)


def wait_until(happens: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + TIMEOUT
    while not happens():
        assert time.monotonic() < end, f"in vain: {what}"
        time.sleep(0.02)


def serve(host: Machine, address: str, *options: str) -> contextlib.AbstractContextManager[Serving]:
    """The command of the page, for this address."""
    [line] = [line for line in block("sh").splitlines() if line.startswith("nbnet serve")]
    words = line.replace(ONE, address).replace("auto", "1").split()[1:]
    return started(host.command(sys.executable, "-m", "nbnet", *words, *options))


@pytest.fixture
def host() -> Iterator[Machine]:
    with machine(*(f"{address}/32" for address in (FRONT, ONE, TWO)), as_root=True) as made:
        yield made


@pytest.fixture
def proxy(host: Machine, tmp_path: Path) -> Iterator[Proxy]:
    host.run("mkdir", "/run/haproxy")
    config = tmp_path / "haproxy.cfg"
    config.write_text(block("haproxy"))
    place = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(place)
        words = host.command("/usr/sbin/haproxy", "-Ws", "-f", str(config))
        with subprocess.Popen(
            words,
            env={**os.environ, "NOTIFY_SOCKET": place},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                while not (said := told.recv(1000)).startswith(b"READY=1"):
                    assert said, process.communicate()[1]
                yield Proxy(host, process)
            finally:
                process.send_signal(signal.SIGTERM)  # its worker ends with it
                process.communicate(timeout=TIMEOUT)


@contextlib.contextmanager
def asking(host: Machine) -> Iterator[list[str]]:
    """``nbclient`` at work meanwhile; in the end the list has what it says of that."""
    words = host.command(sys.executable, "-c", ASKING, f"{FRONT}:6789")
    said: list[str] = []
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "asking\n"
            yield said
            said.append(process.communicate(timeout=TIMEOUT)[0].strip())
        finally:
            process.kill()


class Load:
    """loadgen at work meanwhile; its report once it was stopped."""

    def __init__(self, host: Machine, file: Path, *options: str) -> None:
        words = ["--target", f"{FRONT}:6789", "--duration", "10m", "--quiet"]
        self.process = subprocess.Popen(
            host.command(sys.executable, "-m", "loadgen", *words, "--json", str(file), *options),
            stderr=subprocess.PIPE,
            text=True,
        )
        self.file = file

    def end(self) -> dict[str, dict[str, int]]:
        self.process.send_signal(signal.SIGINT)
        said = self.process.communicate(timeout=TIMEOUT)[1]
        assert self.process.returncode == 130, said
        report: dict[str, dict[str, int]] = json.loads(self.file.read_text())
        return report


@contextlib.contextmanager
def loading(host: Machine, file: Path, *options: str) -> Iterator[Load]:
    load = Load(host, file, *options)
    with load.process:
        try:
            yield load
        finally:
            load.process.kill()


def assert_no_request_failed(report: dict[str, dict[str, int]]) -> None:
    requests, connections = report["requests"], report["connections"]
    assert requests["verified"] > 20
    assert (requests["wrong"], requests["failed"], requests["timed_out"]) == (0, 0, 0), report[
        "errors"
    ]
    assert (connections["failed"], connections["lost"]) == (0, 0)


@pytest.mark.timeout(180)  # eight processes are started, in turn
def test_no_request_fails_while_servers_are_reloaded_and_restarted(
    host: Machine, proxy: Proxy, tmp_path: Path
) -> None:
    with contextlib.ExitStack() as stack:
        running = {name: stack.enter_context(serve(host, ip)) for name, ip in SERVERS.items()}
        for name in SERVERS:
            proxy.until_up(name)
        comes = ("--conns", "4", "--rate", "200", "--requests-per-conn", "5")
        coming = stack.enter_context(loading(host, tmp_path / "coming.json", *comes))
        stays = ("--conns", "8", "--rate", "200")
        staying = stack.enter_context(loading(host, tmp_path / "staying.json", *stays))
        for name in SERVERS:  # each has some of both
            proxy.until(name, "scur", lambda count: int(count) >= 4)

        for server in [*running.values()] * 2:
            server.process.send_signal(signal.SIGHUP)
            server.wait_for("reloaded")
        for name in SERVERS:  # 5 requests each, of which the other load makes as many
            proxy.until(name, "stot", lambda count: int(count) > 20)
        assert_no_request_failed(staying.end())

        for name, address in SERVERS.items():
            proxy.admin(f"set server nbnet/{name} state drain")
            proxy.until(name, "scur", "0".__eq__)
            assert "WARNING" not in running[name].end()
            running[name] = stack.enter_context(serve(host, address))
            proxy.admin(f"set server nbnet/{name} state ready")
            proxy.until_up(name)
            proxy.until(name, "scur", lambda count: int(count) > 0)
        assert_no_request_failed(coming.end())
        for server in running.values():
            assert "WARNING" not in server.end()


def test_the_client_has_its_name_and_a_server_that_is_down_is_left_out(
    host: Machine, proxy: Proxy, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(WHO)
    send = host.command(
        sys.executable, "-m", "nbclient", "send", "--target", f"{FRONT}:6789", *"abcd"
    )
    [line] = [line for line in block("sh").splitlines() if line.startswith("nbnet serve")]
    words = [*line.split()[1:], "--handler", "mine:handle"]
    server = started(host.command(sys.executable, "-m", "nbnet", *words, cwd=tmp_path))
    with server as one:
        proxy.until("two", "status", "DOWN".__eq__)
        proxy.until_up("one")
        done = subprocess.run(send, capture_output=True, text=True, timeout=TIMEOUT)
        names = done.stdout.split()
        assert done.returncode == 0, done.stderr
        # On one machine the client's address is the one that it connects to.
        assert len(names) == 4
        assert all(re.fullmatch(rf"{re.escape(FRONT)}:\d+", name) for name in names)
        checks = int(proxy.stat("one", "chkfail"))
        assert checks <= 1  # before it was there
        assert "WARNING" not in one.end()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_request_of_nbclient_fails_while_servers_are_restarted_at_once(
    host: Machine, proxy: Proxy
) -> None:
    with contextlib.ExitStack() as stack:
        running = {name: stack.enter_context(serve(host, ip)) for name, ip in SERVERS.items()}
        for name in SERVERS:
            proxy.until_up(name)
        with asking(host) as said:
            for _ in range(10):
                for name, address in SERVERS.items():
                    running[name].end()
                    running[name] = stack.enter_context(serve(host, address))
                    proxy.until_up(name)
        [line] = said
        count, failed = line.split(" ", 1)
        assert failed == "[]"
        assert int(count) > 10
        for server in running.values():
            server.end()

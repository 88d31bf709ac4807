"""Inherited sockets and notifications, and the example units.

``inherited`` works on descriptor 3 and so belongs into processes of its own.
"""

from __future__ import annotations

import configparser
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import run_here

from nbnet import Limits
from nbnet.cli import main
from nbnet.notation import parse_duration
from nbnet.systemd import (
    inherited,
    notify,
    notify_ready,
    notify_reloading,
    notify_stopping,
)

EXAMPLES = Path(__file__).parents[2] / "examples"

STARTER = """
import os, sys
passed = [int(number) for number in sys.argv[1].split()]
high = [os.dup2(number, 100 + index) for index, number in enumerate(passed)]
for index, number in enumerate(high):
    os.dup2(number, 3 + index)
    os.close(number)
os.closerange(3 + len(passed), 100)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-c", sys.argv[2]])
"""
"""What a service manager does: puts descriptors in their places and starts the service."""

SERVICE = """
import os, socket
from nbnet.listeners import ListenError
from nbnet.systemd import inherited
try:
    bounds = inherited()
except ListenError as error:
    print("error:", error)
    bounds = []
print([name for name in os.environ if name.startswith("LISTEN_")])
for bound in bounds:
    listener = bound.for_worker(0)
    print(bound, listener.fileno(), listener.getblocking(), listener.get_inheritable())
    if listener.family != socket.AF_UNIX:
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    listener.settimeout(10)
    peer = listener.accept()[0]
    peer.sendall(b"served")
    peer.close()
    bound.close()
"""


def start(*numbers: int, count: str | None = None) -> str:
    """Start the service with these descriptors; what it prints."""
    return subprocess.run(
        [sys.executable, "-c", STARTER, " ".join(map(str, numbers)), SERVICE],
        pass_fds=numbers,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
        env={
            **os.environ,
            "LISTEN_FDS": str(len(numbers)) if count is None else count,
            "LISTEN_FDNAMES": "one:two",
        },
    ).stdout


def test_inherited_sockets_are_served(tmp_path: Path) -> None:
    path = tmp_path / "nbnet.sock"
    with (
        socket.create_server(("127.0.0.1", 0)) as four,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
        socket.socket(socket.AF_UNIX) as unix,
        socket.create_connection(four.getsockname()) as one,
        socket.create_connection(six.getsockname()[:2]) as two,
        socket.socket(socket.AF_UNIX) as three,
    ):
        unix.bind(str(path))
        unix.listen()
        three.connect(str(path))
        assert start(four.fileno(), six.fileno(), unix.fileno()).splitlines() == [
            "[]",
            f"127.0.0.1:{four.getsockname()[1]} 3 False False",
            f"[::1]:{six.getsockname()[1]} 4 False False",
            f"unix:{path} 5 False False",
        ]
        for peer in (one, two, three):
            peer.settimeout(10)
            assert peer.recv(100, socket.MSG_WAITALL) == b"served"
        assert path.is_socket()  # it is not the service's to remove


def test_a_socket_that_does_not_listen_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as good, socket.socket() as bad:
        error, left = start(good.fileno(), bad.fileno()).splitlines()
    assert error == (
        "error: cannot listen on descriptor 4, inherited by LISTEN_FDS: "
        "it does not listen (with Accept=no it would)"
    )
    assert left == "[]"


@pytest.mark.parametrize(
    ("family", "kind", "reason"),
    [
        (socket.AF_INET, socket.SOCK_DGRAM, "it is no stream socket (ListenStream= makes one)"),
        (socket.AF_UNIX, socket.SOCK_SEQPACKET, "it is no stream socket"),
        (socket.AF_NETLINK, socket.SOCK_RAW, "it is neither a TCP nor a unix socket"),
    ],
)
def test_a_socket_of_another_kind_is_named(
    family: socket.AddressFamily, kind: socket.SocketKind, reason: str
) -> None:
    with socket.socket(family, kind) as bad:
        printed = start(bad.fileno())
    assert f"error: cannot listen on descriptor 3, inherited by LISTEN_FDS: {reason}" in printed


def test_a_descriptor_that_is_no_socket_or_not_there_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as good:
        assert "error: cannot listen on descriptor 4, " in start(good.fileno(), count="2")
        assert "Bad file descriptor" in start(good.fileno(), count="2")
    reader, writer = os.pipe()
    try:
        assert "descriptor 3, inherited by LISTEN_FDS: Socket operation on non" in start(reader)
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_PID": "7"},
        {"LISTEN_FDS": "1", "LISTEN_PID": "8", "LISTEN_FDNAMES": "a"},
        {"LISTEN_FDS": "0", "LISTEN_PID": "7", "LISTEN_PIDFDID": "1"},
    ],
)
def test_what_is_not_for_this_process_is_left(variables: dict[str, str]) -> None:
    environ = {"HOME": "/", **variables}
    assert inherited(environ, 7) == []
    assert environ == {"HOME": "/"}


@pytest.mark.parametrize(
    ("count", "pid", "message"),
    [
        ("one", "7", "LISTEN_FDS is 'one', expected a number"),
        ("-1", "7", "LISTEN_FDS is '-1'"),
        ("1", "me", "LISTEN_PID is 'me'"),
    ],
)
def test_variables_that_make_no_sense(count: str, pid: str, message: str) -> None:
    with pytest.raises(OSError, match=message):
        inherited({"LISTEN_FDS": count, "LISTEN_PID": pid}, 7)


# Notification ----------------------------------------------------------------------


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    """Who is told."""
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name if request.param == "path" else f"\0nbnet test {os.getpid()}")
        listener.settimeout(10)
        yield listener


def environ_of(manager: socket.socket) -> dict[str, str]:
    return {"NOTIFY_SOCKET": os.fsdecode(manager.getsockname()).replace("\0", "@")}


def test_the_manager_is_told(manager: socket.socket) -> None:
    environ = environ_of(manager)
    assert notify("X_NBNET=1\nSTATUS=\N{SNOWMAN}\udc80", environ)
    assert manager.recv(100) == b"X_NBNET=1\nSTATUS=\xe2\x98\x83?"
    assert notify_ready(environ)
    assert manager.recv(100) == b"READY=1"
    assert notify_stopping(environ)
    assert manager.recv(100) == b"STOPPING=1"


def test_a_reload_says_when(manager: socket.socket) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert notify_reloading(environ_of(manager))
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    first, second = manager.recv(100).decode().split("\n")
    assert first == "RELOADING=1"
    name, number = second.split("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(number) <= after


@pytest.mark.parametrize(
    "address", ["", "/nowhere/at/all", "@nobody is here", "vsock:2:9", "/" + "x" * 200, "/a\0b"]
)
def test_nobody_to_tell_is_no_fault(address: str) -> None:
    assert not notify("READY=1", {"NOTIFY_SOCKET": address})
    assert not notify("READY=1", {})


def test_a_manager_that_does_not_read_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, manager: socket.socket
) -> None:
    monkeypatch.setattr("nbnet.systemd.NOTIFY_TIMEOUT", 0.01)
    for _ in range(100_000):
        if not notify_ready(environ_of(manager)):
            break
    else:
        pytest.fail("there was room for everything")


# The example units -----------------------------------------------------------------


class UnitParser(configparser.ConfigParser):
    """Reads unit files, whose settings are case-sensitive and may come more than once."""

    def optionxform(self, optionstr: str) -> str:
        return optionstr


def unit(name: str) -> UnitParser:
    parser = UnitParser(interpolation=None, strict=False)
    parser.read_string((EXAMPLES / name).read_text())
    return parser


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("Type", "notify-reload"),
        ("KillMode", "mixed"),
        ("DynamicUser", "yes"),
        ("ProtectSystem", "strict"),
        ("NoNewPrivileges", "yes"),
        ("CapabilityBoundingSet", ""),
        ("SystemCallFilter", "@system-service"),
        ("MemoryDenyWriteExecute", "yes"),
        ("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX"),
    ],
)
def test_the_example_unit_is_hardened(setting: str, value: str) -> None:
    assert unit("nbnet.service")["Service"][setting] == value


def test_the_example_unit_leaves_time_to_drain() -> None:
    service = unit("nbnet.service")["Service"]
    words = service["ExecStart"].split()
    drain = Limits().drain
    if "--drain" in words:
        drain = parse_duration(words[words.index("--drain") + 1])
    # Beyond it, the supervisor gives its workers two seconds before it kills them.
    assert parse_duration(service["TimeoutStopSec"]) >= drain + 5


def test_the_example_unit_knows_the_options() -> None:
    _, *arguments = unit("nbnet.service")["Service"]["ExecStart"].split()
    done = run_here(main, *arguments, "--help")
    assert done.returncode == 0, done.stderr


def test_the_example_socket_has_one_address_for_the_service() -> None:
    parser = unit("nbnet.socket")
    assert parser["Socket"]["ListenStream"] == "127.0.0.1:6789"
    assert parser["Socket"]["Accept"] == "no"
    assert "nbnet.socket" in (EXAMPLES / "nbnet.service").read_text()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd here")
@pytest.mark.parametrize("customised", [False, True])
def test_systemd_understands_the_example_units(tmp_path: Path, customised: bool) -> None:
    for name in ("nbnet.service", "nbnet.socket"):
        text = (EXAMPLES / name).read_text()
        if systemd_version() < 253:
            text = text.replace("Type=notify-reload", "Type=notify")
        (tmp_path / name).write_text(with_a_program(text))
    if customised:  # as the manual says
        page = (EXAMPLES.parent / "docs" / "how-to" / "systemd.md").read_text()
        [text] = re.findall(r"^```ini\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
        (tmp_path / "nbnet.service.d").mkdir()
        (tmp_path / "nbnet.service.d" / "local.conf").write_text(with_a_program(text))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, tmp_path.glob("nbnet.s*[et]"))],
        capture_output=True,
        text=True,
        # Those of the distribution alone: this machine may have an nbnet.service of its own.
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:/usr/lib/systemd/system"},
        timeout=60,
    )
    complaints = [line for line in done.stderr.splitlines() if str(tmp_path) in line]
    assert complaints == []
    assert done.returncode == 0, done.stderr


def with_a_program(text: str) -> str:
    """A unit that starts something that is there."""
    return re.sub(r"(?<=ExecStart=)/\S+/nbnet\b", sys.executable, text)


def systemd_version() -> int:
    shown = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True)
    return int(shown.stdout.split()[1])

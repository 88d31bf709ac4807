"""Machines of a test's own: network namespaces, each with addresses and ports to itself.

A ``Machine`` has its own loopback, which is up, and an empty ``/run``. Programs
are started in it by a command line that ``command`` makes; where that is
``nbnet serve``, the process started is the server itself, so that it can be
signalled, and ``support.serving.started`` takes it.

``wired`` gives two of them with a wire in between that delays, loses and reorders,
made of one of two things: a pair of veth devices with ``tc``'s netem on both ends,
where the kernel has it; or TUN devices and a process that does the same to each
packet (``support.wire``), which any kernel can.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

_PREPARE = "ip link set lo up && mount -t tmpfs tmpfs /run && echo ready && exec cat"


class Machine:
    """Namespaces of a network and of mounts, held by a process that does nothing."""

    def __init__(self, pid: int, *, users: bool) -> None:
        self.pid = pid
        self._users = users

    def command(self, *words: str, cwd: str | Path = ".") -> list[str]:
        """What runs a program on this machine."""
        enter = ["nsenter", "--target", str(self.pid), "--net", "--mount"]
        if self._users:
            enter += ["--user", "--preserve-credentials"]
        # Entering leads to the root of the file system.
        return [*enter, "env", "--chdir", str(Path(cwd).resolve()), *words]

    @property
    def namespace(self) -> str:
        """The network's, as a file."""
        return f"/proc/{self.pid}/ns/net"

    def established(self) -> int:
        """TCP connections (IPv4) that it has now, each end of them on its own."""
        _, *rows = Path(f"/proc/{self.pid}/net/tcp").read_text().splitlines()
        return sum(row.split()[3] == "01" for row in rows)

    def run(self, *words: str) -> str:
        """Run a program to its end; what it printed. It must succeed."""
        done = subprocess.run(self.command(*words), capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout


@contextlib.contextmanager
def machine(
    *addresses: str, as_root: bool = False, beside: Machine | None = None
) -> Iterator[Machine]:
    """A machine whose loopback has these addresses besides its own.

    Args:
        addresses: like "10.0.0.1/32".
        as_root: whether programs need other users there, which only root can give.
        beside: another one that may have to do with this one's devices.
    """
    user = [] if as_root or beside is not None else ["--map-root-user"]
    words = ["unshare", *user, "--net", "--mount", "sh", "-c", _PREPARE]
    if beside is not None:
        words = beside.command(*words)
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as held:
        assert held.stdin is not None
        assert held.stdout is not None
        with held.stdin:  # it ends when this is closed
            assert held.stdout.readline() == "ready\n"
            made = Machine(held.pid, users=not as_root)
            for address in addresses:
                made.run("ip", "address", "add", address, "dev", "lo")
            yield made


def why_no_machine(*, as_root: bool = False) -> str | None:
    """The reason why none can be made here; None if they can."""
    for program in ("unshare", "nsenter", "ip", "mount"):
        if shutil.which(program) is None:
            return f"there is no {program} here"
    user = [] if as_root else ["--map-root-user"]
    done = subprocess.run(
        ["unshare", *user, "--net", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/run"],
        capture_output=True,
        text=True,
    )
    return f"no namespaces may be made here: {done.stderr.strip()}" if done.returncode else None


NEAR, FAR, NOBODY = "10.9.0.1", "10.9.0.2", "10.9.0.3"
"""Addresses on a wire: of its two ends, and one from which no answer ever comes."""


class Wire(Protocol):
    """What a wire does to packets."""

    def set(self, *, delay: float = 0, loss: float = 0, reorder: float = 0) -> None:
        """From now on delay by so many seconds each way; lose this share, send that one at once."""


class _Relay:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def hear(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def set(self, *, delay: float = 0, loss: float = 0, reorder: float = 0) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{delay} {loss} {reorder}\n")
        self._process.stdin.flush()
        self.hear()


class _Netem:
    def __init__(self, ends: tuple[Machine, Machine]) -> None:
        self._ends = ends

    def set(self, *, delay: float = 0, loss: float = 0, reorder: float = 0) -> None:
        words = ["delay", f"{delay * 1e6:.0f}us", "limit", "100000"]
        words += ["loss", f"{loss:.3%}"] if loss else []
        words += ["reorder", f"{reorder:.3%}"] if reorder else []
        for end in self._ends:
            end.run("tc", "qdisc", "replace", "dev", "wire", "root", "netem", *words)


@contextlib.contextmanager
def wired(kind: str) -> Iterator[tuple[Machine, Machine, Wire]]:
    """Two machines, ``NEAR`` and ``FAR``, and the wire between them: "relay" or "netem"."""
    with machine() as near, machine(beside=near) as far, contextlib.ExitStack() as stack:
        wire: Wire
        if kind == "netem":
            near.run(
                *("ip", "link", "add", "wire", "type", "veth"),
                *("peer", "name", "wire", "netns", str(far.pid)),
            )
            wire = _Netem((near, far))
        else:
            program = str(Path(__file__).with_name("wire.py"))
            process = stack.enter_context(
                subprocess.Popen(
                    near.command(sys.executable, program, "wire", far.namespace),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            wire = relay = _Relay(process)
            relay.hear()
        for end, address in ((near, NEAR), (far, FAR)):
            end.run("ip", "address", "add", f"{address}/24", "dev", "wire")
            end.run("ip", "link", "set", "wire", "up")
        if kind == "netem":  # there, that nobody has the address would be an answer
            nobody = ("neighbour", "add", NOBODY, "lladdr", "02:00:00:00:00:03", "dev", "wire")
            near.run("ip", *nobody)
        yield near, far, wire


def why_no_wire(kind: str) -> str | None:
    """The reason why no wire of this kind can be made here; None if it can."""
    reason = why_no_machine()
    if reason is None and kind == "netem":
        if shutil.which("tc") is None:
            return "there is no tc here"
        with machine() as made:
            netem = ["tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
            done = subprocess.run(made.command(*netem), capture_output=True, text=True)
        if done.returncode:
            reason = f"this kernel has no sch_netem ({done.stderr.strip()})"
    if reason is None and kind == "relay" and not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        reason = "there is no /dev/net/tun here"
    return reason

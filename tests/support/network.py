"""Machines of a test's own: network namespaces, each with addresses and ports to itself.

A ``Machine`` has its own loopback, which is up, and an empty ``/run``. Programs
are started in it by a command line that ``command`` makes; where that is
``nbnet serve``, the process started is the server itself, so that it can be
signalled, and ``support.serving.started`` takes it.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

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

    def run(self, *words: str) -> str:
        """Run a program to its end; what it printed. It must succeed."""
        done = subprocess.run(self.command(*words), capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout


@contextlib.contextmanager
def machine(*addresses: str, as_root: bool = False) -> Iterator[Machine]:
    """A machine whose loopback has these addresses besides its own.

    Args:
        addresses: like "10.0.0.1/32".
        as_root: whether programs need other users there, which only root can give.
    """
    user = [] if as_root else ["--map-root-user"]
    words = ["unshare", *user, "--net", "--mount", "sh", "-c", _PREPARE]
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

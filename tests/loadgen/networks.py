"""Hosts with networks of their own: namespaces of the kernel, joined by veth links."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from typing import Final

import pytest

HUB: Final = "10.91.0.1"
"""The address of the middle, which all hosts reach."""
_HOLD: Final = ["sh", "-c", "echo; exec sleep 3600"]


class Network:
    """A middle, and hosts that are linked to it and not to each other.

    Attributes:
        inside: what to put before a command to run it in the middle.
    """

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._hosts = 0
        holder = self._hold(["unshare", "--map-root-user", "--net", *_HOLD])
        self.inside = _enter(holder)
        self._run("ip", "link", "set", "lo", "up")
        self._run("ip", "address", "add", f"{HUB}/32", "dev", "lo")

    def add_host(self) -> tuple[str, list[str]]:
        """A further host: its address, and what to put before a command to run it there."""
        self._hosts += 1
        link, ours, theirs = (
            f"host{self._hosts}", f"10.91.{self._hosts}.1", f"10.91.{self._hosts}.2"
        )  # fmt: skip
        holder = self._hold([*self.inside, "unshare", "--net", *_HOLD])
        inside = _enter(holder)
        peer = ("peer", "name", "eth0", "netns", str(holder.pid))
        self._run("ip", "link", "add", "name", link, "type", "veth", *peer)
        self._run("ip", "address", "add", f"{ours}/24", "dev", link)
        self._run("ip", "link", "set", link, "up")
        for command in (
            ("link", "set", "lo", "up"),
            ("address", "add", f"{theirs}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("route", "add", "default", "via", ours),
        ):
            self._run("ip", *command, prefix=inside)
        return theirs, inside

    def cut(self, host: int) -> None:
        """Take down the link to a host, the first being 1: nobody is told."""
        self._run("ip", "link", "set", f"host{host}", "down")

    def _hold(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """A process that keeps a namespace; it has said a word when that is there."""
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        self._stack.callback(_reap, process)
        assert process.stdout is not None
        assert process.stdout.readline(), "no namespace was made"
        return process

    def _run(self, *command: str, prefix: Sequence[str] | None = None) -> None:
        subprocess.run([*(self.inside if prefix is None else prefix), *command], check=True)


def _enter(holder: subprocess.Popen[bytes]) -> list[str]:
    # Each of these programs becomes the one after it, so the process is the same.
    return ["nsenter", "--preserve-credentials", "-U", "-n", "-t", str(holder.pid)]


def _reap(process: subprocess.Popen[bytes]) -> None:
    with process:
        process.kill()


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """A network; its processes and links are gone at the end.

    Skips the test where none may be made.
    """
    for program in ("unshare", "nsenter", "ip"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: no network namespaces")
    probe = ["unshare", "--map-root-user", "--net", "ip", "link", "add", "name", "one"]
    tried = subprocess.run(
        [*probe, "type", "veth", "peer", "name", "two"], capture_output=True, text=True
    )
    if tried.returncode:
        pytest.skip(f"no network namespaces may be made here: {tried.stderr.strip()}")
    with contextlib.ExitStack() as stack:
        yield Network(stack)

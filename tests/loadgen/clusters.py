"""Real Dask clusters on this machine: a scheduler, and a worker on each address of loopback."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from .processes import children_of, wait_until

PATIENCE = 40.0
"""Seconds that Dask may take to start on a slow machine."""
HOSTS = ("127.0.0.2", "127.0.0.3")
_PLAIN = {"DASK_DISTRIBUTED__WORKER__USE_FILE_LOCKING": "False"}


class DaskCluster:
    """Processes of Dask; all are reaped at the end of ``starting``.

    Attributes:
        scheduler: its address.
        workers: the processes, by host; the scheduler's is among them.
    """

    def __init__(
        self,
        folder: Path,
        stack: contextlib.ExitStack,
        options: Sequence[str] = (),
        host: str = "127.0.0.1",
        prefix: Sequence[str] = (),
    ) -> None:
        self._folder = folder
        self._stack = stack
        self._options = list(options)
        self._contact = folder / "scheduler.json"
        self.scheduler = ""
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.workers["scheduler"] = self._start(
            *("scheduler", "--host", host, "--port", "0", "--no-dashboard"),
            *("--scheduler-file", str(self._contact)),
            prefix=prefix,
        )

    def add(
        self, host: str, *options: str, name: str | None = None, prefix: Sequence[str] = ()
    ) -> None:
        """Start a worker on an address; it registers later.

        Args:
            name: what it is called in ``workers``; None is the host.
            prefix: a command that runs it elsewhere.
        """
        name = name or host
        self.workers[name] = self._start(
            *("worker", "--scheduler-file", str(self._contact), "--host", host),
            *("--no-nanny", "--nthreads", "1", "--no-dashboard", "--death-timeout", "60"),
            *("--local-directory", str(self._folder), *options),
            name=name,
            prefix=prefix,
        )

    def wait(self, host: str) -> None:
        """Until a worker has registered."""
        log = self._folder / f"{host}.log"

        def registered() -> bool:
            assert self.workers[host].poll() is None, log.read_text()
            return b"Registered to" in log.read_bytes()

        wait_until(registered, seconds=PATIENCE)
        self.scheduler = json.loads(self._contact.read_text())["address"]

    def engines(self, host: str) -> list[int]:
        """The processes that a run has on a host: the one that looks after it, and engines."""
        of_agent = children_of(self.workers[host].pid)
        found = list(of_agent.values())
        return found + [pid for each in found for pid in children_of(each).values()]

    def remove(self, host: str, number: int = signal.SIGKILL) -> None:
        """End a worker."""
        process = self.workers.pop(host)
        process.send_signal(number)
        process.wait(PATIENCE)
        (self._folder / f"{host}.log").unlink()

    def _start(
        self, command: str, *options: str, name: str = "", prefix: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name or command}.log").open("wb") as log:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "dask", command, *options, *self._options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | _PLAIN,
                start_new_session=True,
            )
        self._stack.callback(_reap, process)
        return process


def _reap(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
        process.kill()
    process.wait()


@contextlib.contextmanager
def starting(
    folder: Path, *options: str, host: str = "127.0.0.1", prefix: Sequence[str] = ()
) -> Iterator[DaskCluster]:
    """A scheduler; workers are for the caller to add. No process is left at the end.

    Args:
        options: of all processes, such as those of TLS.
        host: the address of the scheduler.
        prefix: a command that runs it elsewhere.
    """
    with contextlib.ExitStack() as stack:
        yield DaskCluster(folder, stack, options, host, prefix)

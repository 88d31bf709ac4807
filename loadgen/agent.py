"""What runs on a Dask worker for ``loadgen --cluster``: it looks after one host's engines.

The agent proper is the task ``drive``: it starts the process that runs the
engines (``loadgen.host_process``), so that nothing of a load runs inside of Dask's
worker, and passes what that tells on as events. It is a task so that Dask takes
its worker for busy, and gives it nothing else to do.

All else are calls from outside of Dask's scheduling, which the worker answers at
once, in its event loop. Traps that are kept clear of:

* cancelling a task does not stop it: here a call does, ``command``;
* a task whose worker has died is run again by the one in its place: without a
  ``reserve`` in the same process ``drive`` does nothing;
* who started it may be gone without a word: an agent that nobody has asked for
  the time for ``LEASE`` seconds stops.
"""

from __future__ import annotations

import contextlib
import os
import platform
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any, Final

from loadgen import children
from loadgen.share import LENGTH
from nbnet import __version__
from nbnet.machine import usable_cores

TOPIC: Final = "loadgen"
"""Of the events: the same for all runs, since the scheduler keeps the last of each topic."""
BEAT: Final = 0.25
"""Seconds within which an agent is heard of, whatever its engines do."""
LEASE: Final = 15.0
"""Seconds that an agent goes on without having been asked for the time."""
_READ: Final = 1 << 16


class BusyError(RuntimeError):
    """The host carries out another run."""


@dataclass(slots=True)
class _Agent:
    """One run on this host."""

    run: str
    share: bytes  # pickled: only the process that runs it reads it
    asked_at: float
    child: subprocess.Popen[bytes] | None = None
    stopping: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


_agents: dict[str, _Agent] = {}
"""By run: of this process, at most one."""


# Calls, in the event loop of Dask's worker -------------------------------------


def survey() -> dict[str, Any]:
    """What has to be known of a host before it is given a share."""
    from importlib.metadata import version

    return {
        "loadgen": __version__,
        "python": platform.python_version(),
        "distributed": version("distributed"),
        "name": socket.gethostname(),
        "cores": usable_cores(),
    }


def tell_time(run: str) -> int:
    """This host's monotonic clock, in nanoseconds; whoever asks is still there."""
    if run in _agents:
        _agents[run].asked_at = time.monotonic()
    return time.monotonic_ns()


def reserve(run: str, share: bytes) -> None:
    """Take this host for a run.

    Args:
        share: a pickled ``Share``.

    Raises:
        BusyError: it has been taken by another one.
    """
    now = time.monotonic()
    for other in list(_agents.values()):
        if other.child is None and now - other.asked_at > LEASE:
            del _agents[other.run]  # nobody came after it was reserved
    if _agents:
        raise BusyError("another run is going on there")
    _agents[run] = _Agent(run, share, now)


def command(run: str, word: bytes) -> int:
    """Pass a word on to the engines; none is the word to stop.

    Returns:
        What ``tell_time`` does.
    """
    agent = _agents.get(run)
    if agent is not None:
        with agent.lock:
            if not word:
                _stop(agent)
            elif agent.child is not None and not agent.stopping:
                assert agent.child.stdin is not None
                with contextlib.suppress(BrokenPipeError):
                    agent.child.stdin.write(word)
                    agent.child.stdin.flush()
    return tell_time(run)


def abort(run: str) -> None:
    """End the engines at once."""
    agent = _agents.get(run)
    if agent is not None:
        with agent.lock:
            _stop(agent)
            if agent.child is not None:
                agent.child.kill()
            else:
                del _agents[run]


def _stop(agent: _Agent) -> None:
    agent.stopping = True
    if agent.child is not None:
        assert agent.child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            agent.child.stdin.close()


# The task ----------------------------------------------------------------------


def drive(run: str, host: str) -> None:
    """Run the engines of this host, and send what they tell as events.

    An event has the run, the host, and one of: ``body``, a message of the process,
    with its ``number``; ``beat``, when there was none for a while; ``ended``, with the
    exit code of the process, when it and all its children are gone.

    Args:
        run: as it was reserved.
        host: the address of this worker.
    """
    from distributed import get_worker

    agent = _agents.get(run)
    if agent is None:  # of a process that is no more
        return
    log_event = get_worker().log_event

    def tell(**event: Any) -> None:
        log_event(TOPIC, {"run": run, "host": host} | event)

    code = 0
    try:
        with agent.lock:
            if not agent.stopping:
                agent.child = children.start("loadgen.host_process")
        if agent.child is not None:
            code = _follow(agent, agent.child, tell)
    finally:
        _agents.pop(run, None)
    tell(ended=code)


def _follow(agent: _Agent, child: subprocess.Popen[bytes], tell: Callable[..., None]) -> int:
    """Pass on what a process tells until it ends; give its exit code."""
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        # It may have died, or been stopped meanwhile.
        with contextlib.suppress(BrokenPipeError, ValueError):
            child.stdin.write(agent.share)
            child.stdin.flush()
        for number, body in _messages(agent, child.stdout):
            tell(**({"beat": True} if body is None else {"number": number, "body": body}))
    finally:
        with agent.lock:
            _stop(agent)
        children.reap(child)
    return child.returncode


def _messages(agent: _Agent, output: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Number and body of each message; no body where a beat is due."""
    descriptor, number, data = output.fileno(), 0, b""
    while True:
        if not select.select([descriptor], [], [], BEAT)[0]:
            yield number, None
        elif more := os.read(descriptor, _READ):
            data += more
            while len(data) >= LENGTH.size:
                end = LENGTH.size + LENGTH.unpack_from(data)[0]
                if len(data) < end:
                    break
                yield number, data[LENGTH.size : end]
                number, data = number + 1, data[end:]
        else:
            return
        alone = time.monotonic() - agent.asked_at
        if alone > 2 * LEASE and agent.child is not None:
            agent.child.kill()
        elif alone > LEASE:
            with agent.lock:
                _stop(agent)

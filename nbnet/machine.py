"""What this machine and this process allow: open files, names of hosts, an end."""

from __future__ import annotations

import os
import resource
import signal
import socket
from typing import Any, Final, NamedTuple

from nbnet.notation import Target

SPARE_FDS: Final = 32
"""Descriptors that a process needs besides its connections (libraries, pipes,
the poller, the log), with room to spare."""


def fd_limit() -> int:
    """How many files, sockets included, this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def raise_fd_limit() -> int:
    """Raise this process's soft limit of open files to the hard one; give it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class SocketAddress(NamedTuple):
    """One address of a target, ready for ``socket``."""

    family: int
    sockaddr: Any
    """A tuple; of a unix socket, its path."""


def look_up(target: Target, *, passive: bool = False) -> list[SocketAddress]:
    """The TCP addresses of a target, in the order to try them.

    Args:
        passive: whether they are to be bound, not connected to.

    Raises:
        OSError: the host is unknown, or no name of a host at all.

    >>> look_up(Target("127.0.0.1", 80))[0].sockaddr
    ('127.0.0.1', 80)
    """
    try:
        found = socket.getaddrinfo(
            target.host.encode() if target.host.isascii() else target.host,
            target.port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE if passive else 0,
        )
    except UnicodeError as error:  # a label that is empty or too long
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from error
    return [SocketAddress(family, sockaddr) for family, _, _, _, sockaddr in found]


_PR_SET_PDEATHSIG: Final = 1  # prctl(2)


def die_with_parent(parent: int) -> None:
    """Be killed when the thread that started this process ends, and so when its process does.

    To be called first of all; a parent that ended even before is noticed by its
    number, and then this process ends here.

    Args:
        parent: the process number of the parent.
    """
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def usable_cores() -> int:
    """How many processors this process may run on.

    >>> usable_cores() >= 1
    True
    """
    return len(os.sched_getaffinity(0))

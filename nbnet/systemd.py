"""What systemd and its kin tell a service, and want to be told.

* ``inherited``: sockets that were opened before the service started (socket
  activation, sd_listen_fds(3)): they stay open while it restarts, and it needs
  no right to open them;
* ``notify``: how the service fares (sd_notify(3)); to nobody's harm where nobody
  asked for it.

Both protocols are a few environment variables and a datagram, and need no library.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping, MutableMapping
from typing import Final

from nbnet.listeners import Bound, ListenError, address_of

FIRST_DESCRIPTOR: Final = 3
"""``SD_LISTEN_FDS_START``: inherited sockets have this number and those after it."""
NOTIFY_TIMEOUT: Final = 2.0
"""Seconds that a busy service manager may take to make room for one more message."""

_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)


def inherited(
    environ: MutableMapping[str, str] = os.environ, pid: int | None = None
) -> list[Bound]:
    """The listening sockets that this process was started with; none without ``LISTEN_FDS``.

    They are made non-blocking and are not inherited further. What they accept has
    ``TCP_NODELAY``, but for connections that wait already: those have it if the
    manager set it (``NoDelay=yes``). The file of a unix socket belongs to whoever
    bound it, and stays when the socket is closed.

    Args:
        environ: the variables; those of this protocol are removed, so that no
            child takes them for its own.
        pid: the process that may take the sockets; without, this one.

    Raises:
        ListenError: a variable or a descriptor is not what it should be; the text
            names it.

    >>> inherited({"LISTEN_FDS": "1", "LISTEN_PID": "1"}, pid=2)
    []
    """
    told = {
        name: environ.pop(name, "")
        for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
    }
    if not (told["LISTEN_FDS"] and told["LISTEN_PID"]):
        return []
    for name in ("LISTEN_FDS", "LISTEN_PID"):
        if not (told[name].isascii() and told[name].isdigit()):
            raise ListenError(None, f"{name} is {told[name]!r}, expected a number")
    if int(told["LISTEN_PID"]) != (os.getpid() if pid is None else pid):
        return []  # they are for a parent, which left the variables behind
    bounds: list[Bound] = []
    with contextlib.ExitStack() as stack:
        for descriptor in range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(told["LISTEN_FDS"])):
            try:
                os.set_inheritable(descriptor, False)
                listener = stack.enter_context(socket.socket(fileno=descriptor))
                _check(listener)
                listener.setblocking(False)
                if listener.family != socket.AF_UNIX:
                    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                bounds.append(Bound(address_of(listener), [listener]))
            except OSError as error:
                raise ListenError(
                    error.errno,
                    f"cannot listen on descriptor {descriptor}, inherited by LISTEN_FDS: "
                    f"{error.strerror or error}",
                ) from error
        stack.pop_all()
    return bounds


def _check(listener: socket.socket) -> None:
    """Raise an ``OSError`` unless this is a socket to accept connections from."""
    if listener.family not in _FAMILIES:
        raise OSError("it is neither a TCP nor a unix socket")
    if listener.type != socket.SOCK_STREAM:
        raise OSError("it is no stream socket (ListenStream= makes one)")
    if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise OSError("it does not listen (with Accept=no it would)")


def notify(state: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Tell the service manager something; says whether there is one that was told.

    Args:
        state: assignments, one a line, as in sd_notify(3).
        environ: where ``NOTIFY_SOCKET`` says whom to tell.

    Never raises: a service does not fail because nobody listens.

    >>> notify("READY=1", environ={})
    False
    """
    address = environ.get("NOTIFY_SOCKET", "")
    if address.startswith("@"):
        address = "\0" + address[1:]
    elif not address.startswith("/"):
        return False  # nobody asked, or by a protocol of virtual machines
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(NOTIFY_TIMEOUT)
            sender.connect(address)
            sender.send(state.encode(errors="replace"))
    except (OSError, ValueError):  # the latter for what is no path at all
        return False
    return True


def notify_ready(environ: Mapping[str, str] = os.environ) -> bool:
    """Start-up, or reloading, has ended."""
    return notify("READY=1", environ)


def notify_reloading(environ: Mapping[str, str] = os.environ) -> bool:
    """Reloading begins; ``notify_ready`` ends it, also when it failed."""
    # By the time the manager tells this reload from the one before.
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    return notify(f"RELOADING=1\nMONOTONIC_USEC={now}", environ)


def notify_stopping(environ: Mapping[str, str] = os.environ) -> bool:
    """Stopping begins; the end of the process ends it."""
    return notify("STOPPING=1", environ)

"""Addresses to listen on: TCP, with one socket or one a process, and unix sockets.

The rules:

* an address that somebody else listens on is never shared by accident and never
  taken away: "Address already in use";
* nothing is left open, and no file left behind, after an error;
* a host is all the addresses that its name has, on one port.

Several processes share a TCP address by ``SO_REUSEPORT``, with a socket and a
queue of connections each. The kernel would let a second server of the same user
into such a group, too. So the first socket claims the address without the
option, listens, and only then opens the group for the others: at no time can
two servers both succeed.

The file of a unix socket outlives a server that was killed. It is replaced if
nobody answers there. Two servers that start at once could both find it dead, and
the slower one remove what the quicker one has just made; therefore each holds a
lock file ``PATH.nbnet-lock`` from the look at the old file until it listens.
Binding to another name and renaming it would not do: a rename replaces a live
socket as well.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nbnet.machine import SocketAddress, look_up
from nbnet.notation import Target

BACKLOG: Final = 4096
"""Connections that may wait to be accepted; the kernel cuts it to
net.core.somaxconn, which is 4,096 by default."""

LONGEST_UNIX_PATH: Final = 107
"""Bytes in the path of a unix socket: ``sun_path`` in unix(7), less the final zero."""

_WILDCARDS: Final = frozenset({"0.0.0.0", "::", "::ffff:0.0.0.0"})
_NO_SUCH_FAMILY: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})
"""What a machine without IPv6, or without that address, answers."""
_PORT_TRIES: Final = 20
"""Ports that the kernel chose for one address and that may turn out to be taken
on the next, before the search for one is given up."""


class ListenError(OSError):
    """An address cannot be listened on; the text names it and says why."""

    def __str__(self) -> str:
        return str(self.strerror)


@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """An address that is listened on, with its sockets.

    Attributes:
        address: what was really bound; a text ``unix:PATH`` for a unix socket.
        sockets: one for each worker process, or one that all share.
    """

    address: Target | str
    sockets: Sequence[socket.socket]
    _file: _SocketFile | None = None

    def __str__(self) -> str:
        """The address: ``127.0.0.1:6789``, ``[::1]:6789``, ``unix:PATH``, ``unix:@NAME``."""
        return str(self.address)

    def for_worker(self, index: int) -> socket.socket:
        """The socket for the worker with this number, the first is 0.

        Raises:
            IndexError: there are several sockets, but not so many.
        """
        return self.sockets[index if len(self.sockets) > 1 else 0]

    def close(self) -> None:
        """Close the sockets and remove the file of a unix socket; may be called again.

        The file is left alone if it is another one by now, and by any process but
        the one that bound it.
        """
        # The file goes first: a server that starts now is to find nothing or a
        # live socket there, and no dead one that is about to be removed.
        if self._file is not None:
            self._file.remove()
        for each in self.sockets:
            each.close()


def is_wildcard(bound: Bound) -> bool:
    """Whether it listens on all addresses of the machine, so that any network reaches it.

    >>> bounds = open_tcp("*", 0) + open_tcp("127.0.0.1", 0)
    >>> [is_wildcard(bound) for bound in bounds]
    [True, False]
    >>> for bound in bounds: bound.close()
    """
    return isinstance(bound.address, Target) and bound.address.host in _WILDCARDS


def address_of(listener: socket.socket) -> Target | str:
    """The address that a socket is really bound to, as ``Bound`` has it."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        path = os.fsdecode(name)
        return f"unix:@{path[1:]}" if path.startswith("\0") else f"unix:{path}"
    host, port = name[:2]
    if len(name) == 4 and name[3]:  # a link-local address is nothing without its link
        host = f"{host}%{socket.if_indextoname(name[3])}"
    return Target(host, port)


# TCP -------------------------------------------------------------------------------


def open_tcp(host: str, port: int, *, copies: int = 1) -> list[Bound]:
    """Listen on every address of a host, all on one port.

    Args:
        host: an address, or a name: then an address of a family that this machine
            does not have is passed over as long as there is another. "" and "*"
            are all addresses of the machine, IPv6 and IPv4; so is "::".
        port: the port, 0 to let the kernel choose one.
        copies: sockets for each address, for as many processes.

    The sockets are non-blocking, and what they accept has ``TCP_NODELAY``.

    Raises:
        ListenError: the host is unknown, or the address cannot be had.
        ValueError: there is no such port, or no copy is wanted.

    >>> [bound] = open_tcp("127.0.0.1", 0, copies=2)
    >>> bound.address.host, len(bound.sockets)
    ('127.0.0.1', 2)
    >>> bound.close()
    """
    if not 0 <= port < 65536:
        raise ValueError(f"port {port} is outside of 0 to 65535")
    if copies < 1:
        raise ValueError(f"copies is {copies}, expected at least 1")
    try:
        if host in ("", "*"):
            host = "*"  # in the text of an error
            return _open_any(port, copies)
        found = look_up(Target(host, port), passive=True)
        addresses = list(dict.fromkeys(found))  # a name may have an address twice
        tries = 1 if port or len(addresses) == 1 else _PORT_TRIES
        for _ in range(tries - 1):
            with contextlib.suppress(_PortTakenError):
                return _open_all(addresses, copies)
        return _open_all(addresses, copies)
    except OSError as error:
        raise _listen_error(Target(host, port), error) from error


class _PortTakenError(OSError):
    """The port that the kernel chose for one address is taken on another one."""


def _open_any(port: int, copies: int) -> list[Bound]:
    """Listen on all addresses of the machine."""
    try:
        return [_open_address(SocketAddress(socket.AF_INET6, ("::", port, 0, 0)), copies)]
    except OSError as error:
        if error.errno not in _NO_SUCH_FAMILY:
            raise
    return [_open_address(SocketAddress(socket.AF_INET, ("0.0.0.0", port)), copies)]


def _open_all(addresses: Sequence[SocketAddress], copies: int) -> list[Bound]:
    """Listen on these addresses, those left out that this machine does not have.

    Raises:
        _PortTakenError: the kernel chose a port that not all of them can have.
        OSError: one cannot be had, or none can.
    """
    families = {address.family for address in addresses}
    bounds: list[Bound] = []
    passed_over: OSError | None = None
    with contextlib.ExitStack() as stack:
        for address in addresses:
            chosen = not address.sockaddr[1] and bounds
            port = bounds[0].sockets[0].getsockname()[1] if chosen else address.sockaddr[1]
            try:
                bound = _open_address(_on_port(address, port), copies, len(families) == 1)
            except OSError as error:
                if error.errno in _NO_SUCH_FAMILY:
                    passed_over = passed_over or error
                    continue
                if error.errno == errno.EADDRINUSE and chosen:
                    raise _PortTakenError(error.errno, error.strerror) from error
                raise
            stack.callback(bound.close)
            bounds.append(bound)
        if passed_over is not None and not bounds:
            raise passed_over
        stack.pop_all()
    return bounds


def _open_address(address: SocketAddress, copies: int, alone: bool = True) -> Bound:
    """Listen on one address; ``alone`` if its port is not bound in the other family, too."""
    with contextlib.ExitStack() as stack:
        # The first is alone in having the address: whoever else listens there
        # makes this fail, and so do others like this one that start right now.
        first = stack.enter_context(_socket_for(address, alone))
        first.bind(address.sockaddr)
        first.listen(BACKLOG)
        sockets = [first]
        if copies > 1:
            first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            address = _on_port(address, first.getsockname()[1])
        for _ in range(copies - 1):
            another = stack.enter_context(_socket_for(address, alone))
            another.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            another.bind(address.sockaddr)
            another.listen(BACKLOG)
            sockets.append(another)
        bound = Bound(address_of(first), sockets)
        stack.pop_all()
    return bound


def _socket_for(address: SocketAddress, alone: bool) -> socket.socket:
    """A TCP socket with the options of one that listens, not bound yet."""
    listener = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        # A server that restarts must not wait for the old connections' TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit this, which saves a call for each of them.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if address.family == socket.AF_INET6:
            # "::" is IPv4 as well, whatever net.ipv6.bindv6only says, unless IPv4
            # has a socket of its own on that port, which this would be in the way of.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not alone))
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _on_port(address: SocketAddress, port: int) -> SocketAddress:
    host, _, *rest = address.sockaddr
    return SocketAddress(address.family, (host, port, *rest))


# Unix sockets ----------------------------------------------------------------------


def open_unix(path: str) -> Bound:
    """Listen on a unix socket, which workers share.

    What a server left behind that was killed is replaced; anything else at that
    path is left alone. Who may connect is up to the umask and the directory.

    Args:
        path: the file to make, at most 107 bytes; ``@NAME`` is a name in the
            abstract namespace, which needs no file and knows no permissions.

    Raises:
        ListenError: the path cannot be had: somebody listens there, or something
            else is there, or its directory is not writable, or it is too long.
        ValueError: it is empty or has a zero byte in it.

    >>> bound = open_unix("@nbnet doctest")
    >>> print(bound)
    unix:@nbnet doctest
    >>> bound.close()
    """
    if not path.removeprefix("@") or "\0" in path:
        raise ValueError(f"{path!r} is no path of a unix socket")
    try:
        _check_length(path)
        if path.startswith("@"):
            with contextlib.ExitStack() as stack:
                listener = stack.enter_context(_bind_unix("\0" + path[1:]))
                listener.listen(BACKLOG)
                stack.pop_all()
            return Bound(f"unix:{path}", [listener])
        return _open_socket_file(Path(path).absolute(), path)
    except OSError as error:
        raise _listen_error(f"unix:{path}", error) from error


def _check_length(path: str) -> None:
    length = len(os.fsencode(path))
    if length > LONGEST_UNIX_PATH:
        raise OSError(
            errno.ENAMETOOLONG,
            f"the path has {length} bytes, at most {LONGEST_UNIX_PATH} are possible",
        )


def _bind_unix(path: str) -> socket.socket:
    """A bound, non-blocking unix socket; a zero byte at the start for an abstract name."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.bind(path)
    except BaseException:
        listener.close()
        raise
    return listener


def _open_socket_file(file: Path, path: str) -> Bound:
    """Listen on a path, given as ``path``, which may be short enough while ``file``,
    the same from the root on, is not."""
    if not file.parent.is_dir():
        raise OSError(errno.ENOENT, f"there is no directory {file.parent}")
    with _locked(file) as locked:
        if not locked:  # by a server that is at this very point
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        _clear(file, path)
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(_bind_unix(path))
            stack.callback(file.unlink)
            listener.listen(BACKLOG)
            bound = Bound(f"unix:{path}", [listener], _SocketFile(file))
            stack.pop_all()
        return bound


def _clear(file: Path, path: str) -> None:
    """Remove the file of a unix socket that nobody listens on; it need not be there.

    Raises:
        OSError: the path is taken, or nobody knows.
    """
    try:
        mode = file.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "the file exists and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.setblocking(False)  # a full backlog makes others wait
        try:
            peer.connect(path)
        except ConnectionRefusedError:
            file.unlink()
            return
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:  # a socket in use, of another type
                raise
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


class _SocketFile:
    """The file of a unix socket that this process has bound.

    It is held open (without the right to anything) so that no other file can get
    its number: then device and inode tell for sure whether it is still this one.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._owner = os.getpid()
        self._held: int | None = os.open(file, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)

    def remove(self) -> None:
        """Remove the file if it is still there, and ours to remove."""
        held, self._held = self._held, None
        if held is None:
            return
        try:
            # A server that has the lock right now is about to replace what is there.
            # Nobody is told of an error: there is nothing to be done about it, and
            # the next server copes with what is left.
            with contextlib.suppress(OSError):
                if os.getpid() == self._owner:
                    with _locked(self._file) as locked:
                        if locked and os.path.samestat(os.fstat(held), self._file.lstat()):
                            self._file.unlink()
        finally:
            os.close(held)


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[bool]:
    """Hold the lock file of a socket; says whether it could be had, without waiting for it.

    Only the user may open the lock file, so that nobody else can hold it.

    Raises:
        OSError: it cannot be made.
    """
    lock = file.with_name(f"{file.name}.nbnet-lock")
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            yield False
            return
        except BaseException:
            os.close(descriptor)
            raise
        # Whoever had it before may have removed it between the two calls.
        if os.fstat(descriptor).st_nlink:
            break
        os.close(descriptor)
    try:
        yield True
    finally:
        # Still locked, so that it is this file that is removed.
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _listen_error(address: Target | str, error: OSError) -> ListenError:
    return ListenError(error.errno, f"cannot listen on {address}: {error.strerror or error}")

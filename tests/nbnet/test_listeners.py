"""What can be listened on, and what is left alone, on the real kernel."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from nbnet import listeners
from nbnet.listeners import Bound, ListenError, address_of, is_wildcard, open_tcp, open_unix
from nbnet.machine import SocketAddress
from nbnet.notation import Target

LOOPBACK_4 = SocketAddress(socket.AF_INET, ("127.0.0.1", 0))
LOOPBACK_6 = SocketAddress(socket.AF_INET6, ("::1", 0, 0, 0))
NOT_HERE = SocketAddress(socket.AF_INET6, ("2001:db8::1", 0, 0, 0))  # of documentation: nobody's
NO_FAMILY = SocketAddress(socket.AF_DECnet, ("decnet", 0))


@contextlib.contextmanager
def opened(bounds: Sequence[Bound]) -> Iterator[Sequence[Bound]]:
    """Close them at the end."""
    try:
        yield bounds
    finally:
        for bound in bounds:
            bound.close()


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def port_of(bound: Bound) -> int:
    assert isinstance(bound.address, Target)
    return bound.address.port


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: SocketAddress) -> None:
    """Make every host have these addresses."""

    def look_up(target: Target, *, passive: bool = False) -> list[SocketAddress]:
        assert passive
        return [
            SocketAddress(family, (sockaddr[0], target.port, *sockaddr[2:]))
            for family, sockaddr in addresses
        ]

    monkeypatch.setattr(listeners, "look_up", look_up)


def reaches(host: str, bound: Bound) -> bool:
    """Whether a connection to that host comes out of this listener, and fit for use."""
    with socket.create_connection((host, port_of(bound)), timeout=10) as peer:
        listener = bound.for_worker(0)
        listener.settimeout(10)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            return bool(accepted.getpeername()[1] == peer.getsockname()[1])


# TCP -------------------------------------------------------------------------------


@pytest.mark.parametrize(("host", "printed"), [("127.0.0.1", "127.0.0.1:{}"), ("::1", "[::1]:{}")])
def test_an_address_is_listened_on_and_printed(host: str, printed: str) -> None:
    with opened(open_tcp(host, 0)) as [bound]:
        assert str(bound) == printed.format(port_of(bound))
        [listener] = bound.sockets
        assert not listener.getblocking()
        assert not listener.get_inheritable()
        assert not listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
        assert reaches(host, bound)


def test_a_name_is_all_its_addresses_on_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, LOOPBACK_6, LOOPBACK_4, LOOPBACK_6)
    with opened(open_tcp("localhost", 0)) as [six, four]:
        assert six.address == Target("::1", port_of(four))
        assert four.address == Target("127.0.0.1", port_of(six))
        assert reaches("::1", six)
        assert reaches("127.0.0.1", four)


@pytest.mark.parametrize("missing", [NOT_HERE, NO_FAMILY])
def test_a_family_that_the_machine_lacks_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, missing: SocketAddress
) -> None:
    resolve_to(monkeypatch, missing, LOOPBACK_4, missing)
    with opened(open_tcp("localhost", 0)) as [bound]:
        assert reaches("127.0.0.1", bound)


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        (NOT_HERE, "Cannot assign requested address"),
        (NO_FAMILY, "Address family not supported by protocol"),
    ],
)
def test_unless_there_is_no_other(
    monkeypatch: pytest.MonkeyPatch, missing: SocketAddress, reason: str
) -> None:
    resolve_to(monkeypatch, missing)
    with pytest.raises(ListenError, match=f"^cannot listen on localhost:0: {reason}$"):
        open_tcp("localhost", 0)


def test_an_address_in_use_takes_the_others_down(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, LOOPBACK_6, LOOPBACK_4)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=f"localhost:{port}: Address already in use"):
            open_tcp("localhost", port)


@pytest.mark.parametrize(("unlucky", "works"), [(1, True), (19, True), (20, False)])
def test_a_port_that_is_taken_on_the_next_address_is_chosen_anew(
    monkeypatch: pytest.MonkeyPatch, unlucky: int, works: bool
) -> None:
    resolve_to(monkeypatch, LOOPBACK_6, LOOPBACK_4)
    left = unlucky
    genuine = listeners._open_address
    with socket.create_server(("127.0.0.1", 0)) as taken:

        def open_address(address: SocketAddress, copies: int, alone: bool = True) -> Bound:
            nonlocal left
            if address == LOOPBACK_6 and left:
                left -= 1
                address = SocketAddress(socket.AF_INET6, ("::1", taken.getsockname()[1], 0, 0))
            return genuine(address, copies, alone)

        monkeypatch.setattr(listeners, "_open_address", open_address)
        if works:
            with opened(open_tcp("localhost", 0)) as [six, four]:
                assert port_of(six) == port_of(four)
        else:
            with pytest.raises(ListenError, match="Address already in use"):
                open_tcp("localhost", 0)
    assert not left


@pytest.mark.parametrize("host", ["", "*", "::"])
def test_the_wildcard_is_both_families(host: str) -> None:
    with opened(open_tcp(host, 0)) as [bound]:
        assert str(bound) == f"[::]:{port_of(bound)}"
        [listener] = bound.sockets
        assert not listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        assert reaches("127.0.0.1", bound)
        assert reaches("::1", bound)


def test_the_wildcard_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = listeners._socket_for

    def socket_for(address: SocketAddress, alone: bool) -> socket.socket:
        if address.family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return genuine(address, alone)

    monkeypatch.setattr(listeners, "_socket_for", socket_for)
    with opened(open_tcp("*", 0)) as [bound]:
        assert str(bound) == f"0.0.0.0:{port_of(bound)}"
        assert reaches("127.0.0.1", bound)


@pytest.mark.parametrize(
    ("host", "named"), [("", r"\*"), ("*", r"\*"), ("::", r"\[::\]"), ("0.0.0.0", "0.0.0.0")]
)
def test_the_wildcard_takes_nothing_away_from_an_address(host: str, named: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=f"on {named}:{port}: Address already in use"):
            open_tcp(host, port)


def test_both_wildcards_on_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(
        monkeypatch,
        SocketAddress(socket.AF_INET6, ("::", 0, 0, 0)),
        SocketAddress(socket.AF_INET, ("0.0.0.0", 0)),
    )
    with opened(open_tcp("everywhere", 0)) as [six, four]:
        assert reaches("::1", six)
        assert reaches("127.0.0.1", four)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("*", True),
        ("0.0.0.0", True),
        ("::", True),
        ("::ffff:0.0.0.0", True),
        ("127.0.0.1", False),
        ("::1", False),
    ],
)
def test_is_wildcard(host: str, expected: bool) -> None:
    with opened(open_tcp(host, 0)) as [bound]:
        assert is_wildcard(bound) is expected


def test_a_link_local_address_names_its_link() -> None:
    class LinkLocal(socket.socket):
        def getsockname(self) -> tuple[str, int, int, int]:
            return ("fe80::1", 6789, 0, socket.if_nametoindex("lo"))

    with LinkLocal(socket.AF_INET6) as listener:
        assert str(address_of(listener)) == "[fe80::1%lo]:6789"


@pytest.mark.parametrize("host", ["127.0.0.1", "*"])
def test_each_worker_has_its_socket_and_its_share(host: str) -> None:
    with opened(open_tcp(host, 0, copies=3)) as [bound], contextlib.ExitStack() as stack:
        mine = [bound.for_worker(index) for index in range(3)]
        assert len(set(mine)) == 3
        assert {each.getsockname()[1] for each in mine} == {port_of(bound)}
        for _ in range(100):
            peer = socket.create_connection(("127.0.0.1", port_of(bound)), timeout=10)
            stack.enter_context(peer)
        assert all(accepts_one(each) for each in mine)
        with pytest.raises(IndexError):
            bound.for_worker(3)


def accepts_one(listener: socket.socket) -> bool:
    assert not listener.getblocking()
    try:
        accepted, _ = listener.accept()
    except BlockingIOError:
        return False
    with accepted:
        return bool(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))


def test_one_socket_is_for_all_workers() -> None:
    with opened(open_tcp("127.0.0.1", 0)) as [bound]:
        assert bound.for_worker(0) is bound.for_worker(7)


@pytest.mark.parametrize("copies", [1, 2])
def test_several_addresses_with_several_sockets(
    monkeypatch: pytest.MonkeyPatch, copies: int
) -> None:
    resolve_to(monkeypatch, LOOPBACK_6, LOOPBACK_4)
    with opened(open_tcp("localhost", 0, copies=copies)) as bounds:
        assert [len(bound.sockets) for bound in bounds] == [copies, copies]


@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("second", [1, 2])
def test_a_second_server_does_not_share_the_port_in_silence(first: int, second: int) -> None:
    """The same user may join a group of SO_REUSEPORT sockets, the kernel says."""
    with opened(open_tcp("127.0.0.1", 0, copies=first)) as [bound]:
        port = port_of(bound)
        with pytest.raises(ListenError, match=f"127.0.0.1:{port}: Address already in use") as told:
            open_tcp("127.0.0.1", port, copies=second)
        assert told.value.errno == errno.EADDRINUSE
        assert len(bound.sockets) == first


def test_of_servers_that_start_at_once_at_most_one_gets_the_port() -> None:
    for _ in range(20):
        with socket.socket() as chooser:  # bound, so that nobody else is given this port
            chooser.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            chooser.bind(("127.0.0.1", 0))
            port = chooser.getsockname()[1]
            results = at_once(partial(open_tcp, "127.0.0.1", port, copies=2))
        with opened([bound for bounds in results for bound in bounds]) as bounds:
            assert len(bounds) <= 1


def at_once(open_one: Callable[[], list[Bound]], count: int = 4) -> list[list[Bound]]:
    """What those get that do not fail because the address is in use."""
    results: list[list[Bound]] = []
    faults: list[OSError] = []
    barrier = threading.Barrier(count)

    def run() -> None:
        barrier.wait(10)
        try:
            results.append(open_one())
        except ListenError as error:
            faults.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(fault.errno == errno.EADDRINUSE for fault in faults)
    assert len(results) + len(faults) == count
    return results


def test_a_copy_that_cannot_be_had_takes_the_others_down(monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0
    genuine = listeners._socket_for

    def socket_for(address: SocketAddress, alone: bool) -> socket.socket:
        nonlocal made
        made += 1
        if made == 3:
            raise OSError(errno.EMFILE, "Too many open files")
        return genuine(address, alone)

    monkeypatch.setattr(listeners, "_socket_for", socket_for)
    with pytest.raises(ListenError, match="Too many open files"):
        open_tcp("127.0.0.1", 0, copies=3)


@pytest.mark.parametrize("host", ["host.invalid", "a..b", "x" * 64])
def test_an_unknown_host(host: str) -> None:
    with pytest.raises(ListenError, match=f"^cannot listen on {host}:0: "):
        open_tcp(host, 0)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_does_not_exist(port: int) -> None:
    with pytest.raises(ValueError, match=f"port {port} is outside of 0 to 65535"):
        open_tcp("127.0.0.1", port)


def test_no_copy_at_all() -> None:
    with pytest.raises(ValueError, match="copies is 0, expected at least 1"):
        open_tcp("127.0.0.1", 0, copies=0)


# Unix sockets ----------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "nbnet.sock"


def answers(path: Path, bound: Bound) -> bool:
    """Whether who connects to the path is accepted by this listener."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path))
        return accepts_one_unix(bound)


def accepts_one_unix(bound: Bound) -> bool:
    try:
        accepted, _ = bound.for_worker(1).accept()
    except BlockingIOError:
        return False
    accepted.close()
    return True


def leave_behind(path: Path, kind: int = socket.SOCK_STREAM) -> None:
    """What a server leaves that was killed."""
    with socket.socket(socket.AF_UNIX, kind) as dead:
        dead.bind(str(path))


def test_a_unix_socket_is_made_and_removed(path: Path) -> None:
    bound = open_unix(str(path))
    with opened([bound]):
        assert str(bound) == bound.address == f"unix:{path}"
        assert address_of(bound.sockets[0]) == bound.address
        assert not bound.sockets[0].getblocking()
        assert not is_wildcard(bound)
        assert answers(path, bound)
        assert list(path.parent.iterdir()) == [path]
        bound.close()
        assert list(path.parent.iterdir()) == []
        bound.close()


def test_closing_again_leaves_a_successor_alone(path: Path) -> None:
    first = open_unix(str(path))
    first.close()
    with opened([open_unix(str(path))]) as [second]:
        first.close()
        assert answers(path, second)


def test_an_abstract_name_needs_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"@nbnet test {os.getpid()}"
    with opened([open_unix(name)]) as [bound]:
        assert str(bound) == address_of(bound.sockets[0]) == f"unix:{name}"
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect("\0" + name[1:])
            assert accepts_one_unix(bound)
        with pytest.raises(ListenError, match=f"^cannot listen on unix:{name}: .*in use$"):
            open_unix(name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_stale_file_is_replaced(path: Path, kind: int) -> None:
    leave_behind(path, kind)
    with opened([open_unix(str(path))]) as [bound]:
        assert answers(path, bound)


def test_a_live_socket_is_left_alone(path: Path) -> None:
    with opened([open_unix(str(path))]) as [bound]:
        with pytest.raises(ListenError, match=f"^cannot listen on unix:{path}: .*in use$") as told:
            open_unix(str(path))
        assert told.value.errno == errno.EADDRINUSE
        assert accepts_one_unix(bound)  # the other one asked whether this lives
        assert answers(path, bound)
        assert list(path.parent.iterdir()) == [path]


def test_a_live_socket_with_a_full_queue_is_left_alone(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as peer:
        busy.bind(str(path))
        busy.listen(0)
        peer.connect(str(path))  # and is not accepted
        with pytest.raises(ListenError, match="Address already in use"):
            open_unix(str(path))
        assert path.is_socket()


def test_a_live_socket_of_another_type_is_left_alone(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log_socket:
        log_socket.bind(str(path))
        with pytest.raises(ListenError, match="Address already in use"):
            open_unix(str(path))
        assert path.is_socket()


def test_what_is_no_socket_is_never_deleted(path: Path, tmp_path: Path) -> None:
    path.write_text("precious")
    link = tmp_path / "link"
    leave_behind(tmp_path / "dead")
    link.symlink_to(tmp_path / "dead")
    for each in (path, link, tmp_path):
        with pytest.raises(ListenError, match=f"unix:{each}: the file exists and is no socket"):
            open_unix(str(each))
    assert path.read_text() == "precious"
    assert link.is_symlink()
    assert sorted(tmp_path.iterdir()) == sorted([path, link, tmp_path / "dead"])


def test_the_longest_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with opened([open_unix("x" * 107)]) as [bound]:
        assert answers(Path("x" * 107), bound)
    assert list(tmp_path.iterdir()) == []
    for path in ("x" * 108, "@" + "x" * 107, "\N{EURO SIGN}" * 36):
        with pytest.raises(ListenError, match="the path has 108 bytes, at most 107 are possible"):
            open_unix(path)


def test_a_relative_path_is_removed_from_another_directory(
    monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    monkeypatch.chdir(path.parent)
    with opened([open_unix(path.name)]):
        monkeypatch.chdir("/")
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("path", ["", "@", "a\0b", "@a\0b"])
def test_what_is_no_path(path: str) -> None:
    with pytest.raises(ValueError, match="is no path of a unix socket"):
        open_unix(path)


def test_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for directory in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(ListenError, match=f"there is no directory {directory}"):
            open_unix(str(directory / "nbnet.sock"))


@pytest.fixture
def unwritable() -> Iterator[Path]:
    """A directory that this process may look into only, root or not."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        leave_behind(directory / "nbnet.sock")
        directory.chmod(0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield directory
        finally:
            os.seteuid(user)
            directory.chmod(0o700)


def test_a_directory_that_is_not_writable(unwritable: Path) -> None:
    path = unwritable / "nbnet.sock"
    with pytest.raises(ListenError, match=f"^cannot listen on unix:{path}: Permission denied$"):
        open_unix(str(path))


def test_another_file_at_the_path_is_not_removed(path: Path) -> None:
    first = open_unix(str(path))
    path.unlink()
    with opened([open_unix(str(path))]) as [second]:
        first.close()
        assert answers(path, second)


def test_another_file_with_a_number_used_again_is_not_removed(path: Path) -> None:
    """A loop has closed the socket: only the file that is held open keeps its number."""
    first = open_unix(str(path))
    first.sockets[0].close()
    path.unlink()
    with opened([open_unix(str(path))]) as [second]:
        first.close()
        assert answers(path, second)


def test_a_forked_child_does_not_remove_the_file(path: Path) -> None:
    with opened([open_unix(str(path))]) as [bound]:
        child = os.fork()
        if not child:
            code = 1
            try:
                bound.close()
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0) == (child, 0)
        assert answers(path, bound)


def test_a_directory_that_is_gone_is_no_fault_at_the_end(path: Path) -> None:
    with opened([open_unix(str(path))]):
        shutil.rmtree(path.parent)


def test_of_servers_that_find_a_stale_file_at_once_one_gets_it(path: Path) -> None:
    for _ in range(50):
        leave_behind(path)
        [[winner]] = at_once(lambda: [open_unix(str(path))])
        with opened([winner]):
            while accepts_one_unix(winner):
                pass  # those who asked whether it lives
            assert answers(path, winner)
        assert list(path.parent.iterdir()) == []


def test_a_server_that_is_just_starting_has_the_path(path: Path) -> None:
    leave_behind(path)
    with listeners._locked(path) as locked:
        assert locked
        with pytest.raises(ListenError, match="Address already in use"):
            open_unix(str(path))
    with opened([open_unix(str(path))]):
        pass


def test_a_server_that_just_replaces_the_file_keeps_its_own(path: Path) -> None:
    bound = open_unix(str(path))
    with listeners._locked(path):
        bound.close()
        assert path.exists()


def test_a_lock_file_of_a_server_that_was_killed_is_no_obstacle(path: Path) -> None:
    with listeners._locked(path):
        [lock] = path.parent.iterdir()
    lock.touch()
    with opened([open_unix(str(path))]) as [bound]:
        assert answers(path, bound)
        assert list(path.parent.iterdir()) == [path]


def test_a_lock_file_that_was_just_removed_is_none(
    monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    """Its last holder removed it between our opening and our locking it."""
    genuine = fcntl.flock
    tries = 0

    def flock(descriptor: int, operation: int) -> None:
        nonlocal tries
        tries += 1
        genuine(descriptor, operation)
        if tries == 1:
            [lock] = path.parent.iterdir()
            lock.unlink()

    monkeypatch.setattr(fcntl, "flock", flock)
    with listeners._locked(path) as locked:
        assert locked
        with listeners._locked(path) as again:
            assert not again
    assert tries == 3


def test_a_failure_after_the_file_was_made_removes_it(
    monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    def fail(_: Path) -> None:
        assert path.is_socket()
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(listeners, "_SocketFile", fail)
    with pytest.raises(ListenError, match=f"unix:{path}: Too many open files"):
        open_unix(str(path))
    assert list(path.parent.iterdir()) == []


@pytest.mark.usefixtures("nothing_left_open")
def test_a_socket_that_cannot_have_its_options_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOPROTOOPT, "no such option")

    monkeypatch.setattr(socket.socket, "setsockopt", fail)
    with pytest.raises(ListenError, match="no such option"):
        open_tcp("127.0.0.1", 0)


def test_a_lock_that_cannot_be_had_leaves_nothing_open(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(ListenError, match="no locks available"):
        open_unix(str(path))


def test_a_file_of_which_nobody_knows_whether_it_is_in_use_is_left_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))

    def fail(*_: object) -> None:
        raise OSError(errno.EACCES, "permission denied")

    monkeypatch.setattr(socket.socket, "connect", fail)
    with pytest.raises(ListenError, match="permission denied"):
        open_unix(str(path))
    assert path.is_socket()

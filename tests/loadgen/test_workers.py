"""Engines and servers in processes of their own: what they say, and that none is left behind."""

from __future__ import annotations

import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from loadgen import children
from loadgen.dialing import KernelDialer
from loadgen.embedded import EmbeddedServerError, embedded_server
from loadgen.plan import Job, Plan
from loadgen.preflight import resolve
from loadgen.tally import Counts, Phase, Snapshot, Tally
from loadgen.traffic import reversed_text
from loadgen.workers import READER, WorkerError, Workers
from nbnet.machine import SocketAddress
from nbnet.notation import Address, Target

from .processes import is_gone
from .servers import Behaviour, Peer, closes, ends_after, silent, trickles, wrong_at


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Every child started; none may be left when the test is over."""
    started: list[subprocess.Popen[bytes]] = []
    start = children.start

    def recording_start(module: str) -> subprocess.Popen[bytes]:
        started.append(start(module))
        return started[-1]

    monkeypatch.setattr(children, "start", recording_start)
    yield started
    left = [child for child in started if child.poll() is None]
    for child in left:
        child.kill()
        children.reap(child)
    assert not left


def starts_instead(monkeypatch: pytest.MonkeyPatch, program: str, *, ended: bool = False) -> None:
    """Have children run another program; wait until it has ended, if it does by itself."""

    def start(_module: str) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        if ended:
            child.wait()
        return child

    monkeypatch.setattr(children, "start", start)


def job(target: Target | Address, **plan: Any) -> Job:
    """A short run of few connections, of which one that fails is not replaced."""
    settings = {"connections": 5, "duration": 0.2, "grace": 0.2, "reconnect": False} | plan
    address = target if isinstance(target, Address) else Address(*target)
    return Job(plan=Plan(**settings), address=resolve(address), messages=(reversed_text(b"abc"),))


def load(*jobs: Job) -> Tally:
    """Run the jobs in real processes; check what has to hold after any run."""
    tally = Tally()
    with Workers(list(jobs)) as workers:
        for snapshot in workers:
            tally.add(snapshot)
    counts = tally.counts
    assert tally.phase is Phase.DONE
    assert counts.sent == counts.verified + counts.wrong + counts.failed + counts.timed_out
    assert READER not in {thread.name for thread in threading.enumerate()}
    return tally


# Engines against real servers ------------------------------------------------


@pytest.mark.usefixtures("started")
def test_an_engine_verifies_every_reply_of_the_bundled_server(address: Target) -> None:
    tally = load(job(address, connections=20))
    assert tally.counts.held == 20
    assert tally.counts.verified == tally.counts.sent > 20
    assert tally.elapsed == 0.2
    assert not tally.counts.errors
    assert tally.counts.cpu_seconds > 0


@pytest.mark.usefixtures("started")
def test_several_engines_share_a_server_and_their_snapshots_add_up(address: Target) -> None:
    tally = load(job(address, connections=3), job(address, connections=4))
    assert tally.counts.held == 7
    assert tally.counts.verified == tally.counts.sent


@pytest.mark.usefixtures("started")
def test_an_engine_leaves_nothing_open_for_the_interpreter_to_warn_of(
    address: Target, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    assert load(job(address)).counts.verified
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (b"00003abc", "wrong payload"),
        (b"00003cb\x00", "wrong payload"),
        (b"00004cba", "wrong length"),
        (b"000003cba", "wrong length"),
        (b"error", "bad header"),
    ],
)
def test_a_wrong_reply_is_found_among_right_ones_exactly(
    hostile: Callable[[Behaviour], Address], reply: bytes, kind: str
) -> None:
    tally = load(job(hostile(wrong_at(7, reply)), duration=10))
    counts = tally.counts
    assert (counts.sent, counts.verified, counts.wrong, counts.lost) == (35, 30, 5, 5)
    assert counts.errors == {kind: 5}
    assert sorted(each.connection for each in tally.mismatches) == [1, 2, 3, 4, 5]
    for mismatch in tally.mismatches:
        assert (mismatch.sent, mismatch.expected) == (b"00003abc", b"00003cba")
        assert mismatch.kind == kind
        assert reply.startswith(mismatch.got)
        assert not b"00003cba".startswith(mismatch.got)


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize(
    ("end", "kind"),
    [(closes, "EOF"), (Peer.reset, "reset")],
    ids=["closed", "reset"],
)
def test_a_server_that_ends_its_connections_fails_the_requests_in_flight(
    hostile: Callable[[Behaviour], Address], end: Callable[[Peer], None], kind: str
) -> None:
    tally = load(job(hostile(ends_after(10, end)), duration=10))
    counts = tally.counts
    assert (counts.sent, counts.verified, counts.failed, counts.lost) == (55, 50, 5, 5)
    assert counts.errors == {kind: 5}
    assert tally.elapsed < 10, "the run ends when no connection is left"


@pytest.mark.usefixtures("started")
def test_a_server_that_hangs_up_at_once_fails_no_request_twice(
    hostile: Callable[[Behaviour], Address],
) -> None:
    counts = load(job(hostile(closes), connections=20)).counts
    assert (counts.held, counts.lost, counts.verified) == (20, 20, 0)


@pytest.mark.usefixtures("started")
def test_a_server_that_never_answers_keeps_the_run_no_longer_than_its_grace(
    hostile: Callable[[Behaviour], Address],
) -> None:
    tally = load(job(hostile(silent)))
    assert (tally.counts.sent, tally.counts.timed_out, tally.counts.lost) == (5, 5, 0)
    assert tally.elapsed == 0.2, "what is waited after the end is not measured"


@pytest.mark.usefixtures("started")
def test_replies_that_trickle_in_byte_by_byte_are_all_verified(
    hostile: Callable[[Behaviour], Address],
) -> None:
    counts = load(job(hostile(trickles))).counts
    assert counts.verified == counts.sent > 5
    assert not counts.errors


@pytest.mark.usefixtures("started")
def test_a_port_where_nobody_listens_refuses_every_connection(refusing: Target) -> None:
    counts = load(job(refusing)).counts
    assert (counts.held, counts.failed_to_connect, counts.sent) == (0, 5, 0)
    assert counts.errors == {"connect: refused": 5}


# Starting, stopping and failing ----------------------------------------------


def test_stopping_has_the_engines_report_what_they_have(
    address: Target, started: list[subprocess.Popen[bytes]]
) -> None:
    tally = Tally()
    with Workers([job(address, duration=600), job(address, duration=600)]) as workers:
        for snapshot in workers:
            tally.add(snapshot)
            if snapshot.phase is Phase.MEASURING:
                workers.stop()
                workers.stop()  # harmless
    assert tally.counts.held == 10
    assert tally.counts.verified == tally.counts.sent > 0
    assert [child.returncode for child in started] == [0, 0]


def test_engines_start_when_all_have_tried_to_connect(address: Target, refusing: Target) -> None:
    phases = []
    with Workers([job(address), job(refusing)]) as workers:
        for snapshot in workers:
            phases.append(snapshot.phase)
    # The one that was refused is done at once, and the other one has waited for it.
    assert phases.index(Phase.DONE) < phases.index(Phase.DRAINING)
    assert phases.count(Phase.DONE) == 2


def test_engines_that_are_stopped_before_the_start_send_nothing(address: Target) -> None:
    tally = Tally()
    with Workers([job(address, duration=600), job(address, duration=600)]) as workers:
        for snapshot in workers:
            tally.add(snapshot)
            if snapshot.phase is Phase.READY:
                workers.stop()
    assert (tally.counts.held, tally.counts.sent, tally.elapsed) == (10, 0, 0.0)


def iterate(jobs: list[Job], act: Callable[[Snapshot], None] = lambda _: None) -> None:
    with Workers(jobs) as workers:
        for snapshot in workers:
            act(snapshot)


def test_an_error_in_the_parent_ends_the_engines_at_once(
    address: Target, started: list[subprocess.Popen[bytes]]
) -> None:
    def fail(snapshot: Snapshot) -> None:
        if snapshot.phase is Phase.MEASURING:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        iterate([job(address, duration=600)], fail)
    assert [child.returncode for child in started] == [-signal.SIGKILL]


def test_engines_that_nobody_listens_to_any_more_are_ended(
    address: Target, started: list[subprocess.Popen[bytes]]
) -> None:
    with Workers([job(address, duration=600)]) as workers:
        next(iter(workers))
    assert [child.returncode for child in started] == [-signal.SIGKILL]


def test_an_engine_that_is_killed_is_an_error(
    address: Target, started: list[subprocess.Popen[bytes]]
) -> None:
    def kill(snapshot: Snapshot) -> None:
        if snapshot.phase is Phase.MEASURING:
            started[0].kill()

    with pytest.raises(WorkerError, match="an engine's process failed"):
        iterate([job(address, duration=600)], kill)


def test_an_engine_that_is_killed_ends_the_others_at_once(
    address: Target, started: list[subprocess.Popen[bytes]]
) -> None:
    def kill(snapshot: Snapshot) -> None:
        if snapshot.phase is Phase.MEASURING:
            started[1].kill()

    with pytest.raises(WorkerError, match="an engine's process failed"):
        iterate([job(address, duration=600), job(address, duration=600)], kill)
    assert [child.returncode for child in started] == [-signal.SIGKILL] * 2


def test_an_engine_that_dies_before_it_reads_its_job_is_an_error(
    refusing: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts_instead(monkeypatch, "raise SystemExit(3)", ended=True)
    with pytest.raises(WorkerError):
        iterate([job(refusing)])


def test_an_engine_that_dies_amid_a_snapshot_is_an_error(
    refusing: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pickle.dumps(Snapshot(phase=Phase.MEASURING, elapsed=1.0, counts=Counts(sent=1)))
    program = (
        f"import sys; sys.stdin.buffer.read(1); sys.stdout.buffer.write({whole + whole[:-9]!r}); "
        "sys.stdout.flush(); raise SystemExit(1)"
    )
    starts_instead(monkeypatch, program)
    snapshots: list[Snapshot] = []
    with pytest.raises(WorkerError):
        iterate([job(refusing)], snapshots.append)
    assert [each.counts.sent for each in snapshots] == [1]


def test_a_child_that_does_not_end_by_itself_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "STOP_SECONDS", 0.05)
    starts_instead(monkeypatch, "import signal; signal.pause()")
    child = children.start("")
    children.reap(child)
    assert child.returncode == -signal.SIGKILL


def test_a_dead_child_with_unread_input_is_reaped(monkeypatch: pytest.MonkeyPatch) -> None:
    starts_instead(monkeypatch, "", ended=True)
    child = children.start("")
    assert child.stdin is not None
    child.stdin.write(b"nobody reads this")
    children.reap(child)
    assert child.returncode == 0


def test_a_child_without_pipes_is_reaped() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait(60)  # one that is slow to end is killed
    children.reap(child)
    assert child.returncode == 0


@pytest.mark.parametrize("module", ["loadgen.worker", "loadgen.embedded"])
def test_a_child_whose_parent_is_gone_already_ends_at_once(module: str) -> None:
    nobody = "0"
    ended = subprocess.run(
        [sys.executable, "-m", module, nobody], stdin=subprocess.DEVNULL, check=False, timeout=20
    )
    assert ended.returncode == 1


# Dialling --------------------------------------------------------------------


def test_dialling_does_not_wait(address: Target) -> None:
    with KernelDialer(resolve(Address(*address))).dial() as connection:
        assert not connection.getblocking()
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_dial_that_the_kernel_refuses_at_once_leaves_no_socket() -> None:
    # A socket left open would warn, and warnings are errors here.
    with pytest.raises(OSError, match=r"."):
        KernelDialer(SocketAddress(socket.AF_INET, ("255.255.255.255", 1))).dial()


def test_a_socket_that_connected_to_itself_is_a_refusal(address: Target) -> None:
    dialer = KernelDialer(resolve(Address(*address)))
    with socket.socket() as connection:
        connection.bind(("127.0.0.1", 0))
        connection.connect(connection.getsockname())
        with pytest.raises(ConnectionRefusedError):
            dialer.advance(connection)


# The bundled server ----------------------------------------------------------


def test_the_bundled_server_serves_in_a_process_of_its_own_until_the_end(
    started: list[subprocess.Popen[bytes]],
) -> None:
    with embedded_server() as target:
        [child] = started
        assert target.host == "127.0.0.1"
        with socket.create_connection(target.target, timeout=10) as connection:
            connection.sendall(b"00003abc")
            assert connection.recv(8, socket.MSG_WAITALL) == b"00003cba"
    assert child.returncode == 0, "it was told to stop and did"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(target.target)


def test_the_bundled_server_ends_with_an_error_inside(
    started: list[subprocess.Popen[bytes]],
) -> None:
    with pytest.raises(ZeroDivisionError), embedded_server():
        raise ZeroDivisionError
    assert is_gone(started[0].pid)


def test_a_bundled_server_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    starts_instead(monkeypatch, "raise SystemExit(1)")
    with pytest.raises(EmbeddedServerError, match="did not start"), embedded_server():
        raise AssertionError("it did")

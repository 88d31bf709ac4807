"""``nbclient ping``: its payloads, its turns, its statistics, and the command itself."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.commands import run_here
from support.forking import Forked

from nbclient import cli
from nbclient.ping import RoundTrips, next_turn, payload_of
from nbnet import Server
from nbnet.entry import nbclient
from nbnet.notation import Target


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "nbclient", "ping", *arguments]


def ping(*arguments: str) -> tuple[list[str], int, str]:
    """The lines that ``nbclient ping`` printed, its exit code, and its stderr."""
    done = run_here(nbclient, "ping", *arguments)
    return done.stdout.decode().splitlines(), done.returncode, done.stderr.decode()


# Payloads --------------------------------------------------------------------------


@given(st.integers(1, 10**7), st.integers(1, 2000))
def test_a_payload_has_its_size_and_is_not_the_next_one(sequence: int, size: int) -> None:
    payload = payload_of(sequence, size)
    assert len(payload) == size
    assert payload != payload_of(sequence + 1, size)


@given(st.integers(1, 10**7), st.integers(10, 2000))
def test_a_payload_is_not_its_own_reverse(sequence: int, size: int) -> None:
    payload = payload_of(sequence, size)
    assert payload != payload[::-1]


# Turns -----------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.floats(0, 1e6), st.floats(1e-3, 1e3))
def test_a_turn_comes_once_and_the_next_one_is_the_first_that_is_not_past(
    turn: int, elapsed: float, interval: float
) -> None:
    following = next_turn(turn, elapsed, interval)
    assert following > turn
    assert following * interval >= elapsed - 1e-6
    assert following == turn + 1 or (following - 1) * interval < elapsed + 1e-6


class Clock:
    """Time that passes only when it is looked at, and sleep that comes late."""

    def __init__(self, slow: Sequence[int] = ()) -> None:
        self.now = 1000.0
        self.starts: list[float] = []
        self._slow = slow

    def monotonic(self) -> float:
        self.now += 0.001
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + 0.02
        self.starts.append(self.now)
        if len(self.starts) in self._slow:
            self.now += 2.5  # the request


@pytest.mark.parametrize(
    ("slow", "turns"),
    [((), list(range(1, 60))), ((2, 3), [1, 2, 5, 8, *range(9, 64)])],
    ids=["steady", "slow replies"],
)
def test_the_interval_does_not_drift(
    address: Target,
    slow: Sequence[int],
    turns: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    clock = Clock(slow)
    monkeypatch.setattr(cli, "time", clock)
    with pytest.raises(SystemExit) as ended:
        cli.app(["ping", "-t", str(address), "--count", str(len(turns) + 1), "--interval", "1s"])
    assert ended.value.code == 0
    assert capsysbinary.readouterr().out.count(b"seq=") == len(turns) + 1
    late = [start - 1000 - turn for start, turn in zip(clock.starts, turns, strict=True)]
    assert 0 < min(late) <= max(late) < 0.05


# Statistics ------------------------------------------------------------------------


@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=200))
def test_the_statistics_are_those_of_all_round_trips(times: list[float]) -> None:
    trips = RoundTrips()
    for seconds in times:
        trips.add(seconds)
    shown = trips.report("x", 1.0).splitlines()[-1].rpartition("= ")[2].removesuffix(" ms")
    minimum, mean, median, p99, maximum, deviation = (float(t) / 1000 for t in shown.split("/"))
    ordered = sorted(times)

    def near(value: float, digits: float = 1e-9) -> object:
        return pytest.approx(value, rel=digits, abs=0.6e-6)

    assert minimum == near(ordered[0])
    assert maximum == near(ordered[-1])
    assert mean == near(statistics.fmean(times))
    assert deviation == near(statistics.pstdev(times), 1e-6)
    assert median == near(ordered[math.ceil(0.5 * len(times)) - 1], 1e-3)
    assert p99 == near(ordered[math.ceil(0.99 * len(times)) - 1], 1e-3)


def test_memory_does_not_grow_with_the_number_of_round_trips() -> None:
    trips = RoundTrips()
    for number in range(100_000):
        trips.add(0.001 + number * 1e-9)
    assert trips.received == 100_000
    assert len(trips._counts) <= 1000


def test_statistics_of_nothing() -> None:
    report = RoundTrips().report("x", 0.5)
    assert report == "--- x ping statistics ---\n0 sent, 0 received, 0% loss, time 0.500 s"
    assert RoundTrips().percentile(0.5) == 0


def test_wrong_replies_are_counted_apart() -> None:
    trips = RoundTrips()
    trips.fail(wrong=True)
    trips.fail()
    assert "2 sent, 0 received, 1 wrong, 100% loss" in trips.report("x", 0.5)


# The command -------------------------------------------------------------------------


def test_each_reply_has_a_line(address: Target) -> None:
    lines, code, err = ping("-t", str(address), "--count", "3", "--interval", "0", "--size", "100")
    assert (code, err) == (0, "")
    assert lines[0] == f"PING {address}: 100 bytes"
    for number, line in enumerate(lines[1:4], 1):
        pattern = rf"100 bytes from {re.escape(str(address))}: seq={number} time=\d+\.\d{{3}} ms"
        assert re.fullmatch(pattern, line)
    assert lines[4:6] == ["", f"--- {address} ping statistics ---"]
    assert lines[6].startswith("3 sent, 3 received, 0% loss, time 0.")
    figures = r"(\d+\.\d{3}/){5}\d+\.\d{3}"
    assert re.fullmatch(rf"round trip min/avg/p50/p99/max/mdev = {figures} ms", lines[7])
    assert len(lines) == 8


@pytest.mark.parametrize(
    ("expect", "code", "summary"),
    [
        ("reverse", 1, "2 sent, 0 received, 2 wrong, 100% loss"),
        ("any", 0, "2 sent, 2 received, 0% loss"),
    ],
)
def test_replies_are_verified(expect: str, code: int, summary: str) -> None:
    with Server(bytes.upper, port=0) as server:
        lines, got, err = ping("-t", str(server.address), "-c2", "-i0", "--expect", expect)
    assert (got, err) == (code, "")
    assert [" WRONG: " in line for line in lines[1:3]] == [code == 1] * 2
    assert any(line.startswith(summary) for line in lines)


def test_no_server(refusing: Target) -> None:
    lines, code, err = ping("-t", str(refusing), "-c2", "-i0")
    assert (code, err) == (3, "")
    assert lines[1:3] == [
        f"seq={number} cannot connect to {refusing}: Connection refused" for number in (1, 2)
    ]
    assert lines[-1].startswith("2 sent, 0 received, 100% loss")


def reply(sequence: int) -> list[tuple[str, bytes]]:
    payload = payload_of(sequence, 10)
    return [("expect", b"00010" + payload), ("send", b"00010" + payload[::-1])]


def test_it_goes_on_after_a_fault(scripted: Callable[..., Target]) -> None:
    lost = [("expect", b"00010" + payload_of(2, 10))]
    target = scripted([*reply(1), *lost], [*reply(3), ("eof", b"")])
    lines, code, err = ping("-t", str(target), "-c3", "-i0", "-s10")
    assert (code, err) == (1, "")
    assert [re.sub(r"time=.*", "", line) for line in lines[1:4]] == [
        f"10 bytes from {target}: seq=1 ",
        lines[2],
        f"10 bytes from {target}: seq=3 ",
    ]
    assert lines[2].startswith("seq=2 ")
    assert lines[-2].startswith("3 sent, 2 received, 33.3333% loss")


def test_of_several_failures_the_lowest_code_counts(scripted: Callable[..., Target]) -> None:
    silent = [("expect", b"00010" + payload_of(1, 10)), ("eof", b"")]
    target = scripted(silent, [*reply(2), ("eof", b"")])
    assert ping("-t", str(target), "-c2", "-i0", "-s10", "--timeout", "300ms")[1] == 124
    silent = [("expect", b"00010" + payload_of(1, 10)), ("eof", b"")]
    target = scripted(silent, [("expect", b"00010" + payload_of(2, 10))])
    assert ping("-t", str(target), "-c2", "-i0", "-s10", "--timeout", "300ms")[1] == 1


@contextlib.contextmanager
def pinging(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    with Forked[str](
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def test_ctrl_c_ends_it_with_statistics(address: Target) -> None:
    with pinging("-t", str(address), "--interval", "1h") as child:
        assert child.stdout is not None
        assert child.stdout.readline().startswith("PING ")
        assert " seq=1 " in child.stdout.readline()  # at once, though into a pipe
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (130, "")
    assert "1 sent, 1 received, 0% loss" in out


def test_a_request_that_ctrl_c_interrupts_is_not_counted() -> None:
    arrived, leave = threading.Event(), threading.Event()

    def stuck(payload: bytes) -> bytes:
        if payload.startswith(b"2:"):
            arrived.set()
            leave.wait(20)
        return payload[::-1]

    with Server(stuck, port=0) as server:
        try:
            with pinging("-t", str(server.address), "-i0", "--timeout", "1h") as child:
                assert arrived.wait(20)
                child.send_signal(signal.SIGINT)
                out, err = child.communicate(timeout=30)
        finally:
            leave.set()
    assert (child.returncode, err) == (130, "")
    assert "1 sent, 1 received, 0% loss" in out


def test_a_reader_that_has_enough_ends_it(address: Target) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as lines, os.fdopen(writing, "w") as end:
        child = Forked[str](
            command("-t", str(address), "-i", "1ms"), stdout=end, stderr=subprocess.PIPE, text=True
        )
        end.close()
        try:
            assert lines.readline().startswith("PING ")
            lines.close()
            _, err = child.communicate(timeout=30)
        finally:
            child.kill()
            child.wait()
    assert (child.returncode, err) == (1, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "0"], "--count: "),
        (["--count", "few"], "--count: 'few' is no count"),
        (["--interval", "often"], "--interval: 'often' is no duration"),
        (["--size", "0"], "--size: a payload has 1 to 99999 bytes"),
        (["--size", "100000"], "--size: a payload has 1 to 99999 bytes"),
        (["--expect", "echo"], "--expect: 'echo' is neither reverse nor any"),
        (["--target", "nowhere"], "'nowhere' is no target"),
    ],
)
def test_usage_errors_are_one_line(arguments: list[str], message: str) -> None:
    lines, code, err = ping(*arguments)
    assert (lines, code) == ([], 2)
    assert err.startswith(f"nbclient: {message}")
    assert err.count("\n") == 1

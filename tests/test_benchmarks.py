"""Benchmarks whose results the documentation relies on, in a form that takes seconds."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from environment import compile_all
from results import Results, Unit, Verdict, fill, in_turn, markdown, number
from support.framed import LastFirst, Right, framed

from nbnet.notation import Target, parse_target

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def benchmark(name: str, *options: str) -> str:
    """Run one to its end; what it printed."""
    command = [sys.executable, str(BENCHMARKS / name), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_smaller_number_of_connections_than_a_million(tmp_path: Path) -> None:
    file = tmp_path / "documents.json"
    printed = benchmark(
        *("million.py", "--connections", "2k", "--processes", "2", "--active", "100%"),
        *("--rate", "4k", "--duration", "500ms", "--json", str(file)),
    )
    assert "2,000 connections, 2 processes a side" in printed
    documents: list[Any] = json.loads(file.read_text())
    assert len(documents) == 2
    for document in documents:
        assert document["connections"]["held"] == document["connections"]["served"] == 2_000
        assert document["requests"]["verified"] == document["requests"]["sent"] >= 2_000


def test_what_the_machine_does_not_allow_is_said_with_what_to_change() -> None:
    assert "connections: this machine has" in benchmark("million.py", "--connections", "1000M")


@pytest.mark.slow
def test_a_closed_loop_does_not_see_what_an_open_one_does(tmp_path: Path) -> None:
    chart = tmp_path / "stalls.svg"
    options = ("--duration", "10", "--rate", "500", "--conns", "600", "--chart", str(chart))
    opened, closed = re.findall(
        r"^.* loop .*p99 ([\d.]+) s", benchmark("stalls.py", *options), re.MULTILINE
    )
    assert float(closed) < 0.5 < float(opened)
    assert {"open loop", "closed loop", "what users have"} <= set(
        re.findall(r">([\w ]+)</text>", chart.read_text())
    )


# Peers: what is compared has to do the same work, and rightly. Those on libraries that
# are not installed here are not among them; nothing is installed for a test.

PEERS: dict[str, tuple[str, ...]] = {
    name: command
    for name, package, command in (
        ("asyncio Protocol", "asyncio", ("asyncio_protocol.py",)),
        ("asyncio streams", "asyncio", ("asyncio_streams.py",)),
        ("gevent", "gevent", ("gevent_server.py",)),
        ("state machine", "select", ("state_machine.py",)),
        ("trio", "trio", ("trio_streams.py",)),
        ("Twisted", "twisted", ("twisted_protocol.py",)),
        ("uvloop", "uvloop", ("asyncio_protocol.py", "--loop", "uvloop")),
    )
    if importlib.util.find_spec(package) is not None
}
COMPILER = shutil.which("cc")
SERVERS = [*PEERS, *(["C loop"] if COMPILER else [])]


@pytest.fixture(scope="session")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The programs in C, compiled, if there is a compiler."""
    return compile_all(tmp_path_factory.mktemp("binaries"))[0]


@contextmanager
def listening(command: list[str]) -> Iterator[socket.socket]:
    """A connection to a peer in a process of its own."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            first = process.stderr.readline()
            assert first.startswith("listening on "), first
            with socket.create_connection(parse_target(first.split()[-1]), timeout=30) as peer:
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                yield peer
        finally:
            process.kill()


@pytest.fixture
def peer(request: pytest.FixtureRequest, binaries: dict[str, Path]) -> Iterator[socket.socket]:
    """A connection to the peer of that name."""
    name = request.param
    if name in PEERS:
        module, *options = PEERS[name]
        command = [sys.executable, str(BENCHMARKS / "peers" / module), *options]
    else:
        command = [str(binaries["server"])]
    with listening(command) as connection:
        yield connection


def frames(payloads: list[bytes]) -> bytes:
    return b"".join(b"%05d%b" % (len(payload), payload) for payload in payloads)


def receive(peer: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size and (data := peer.recv(65_536)):
        got += data
    return got


@pytest.mark.parametrize("peer", SERVERS, indirect=True)
def test_a_peer_answers_split_and_coalesced_frames_in_their_order(peer: socket.socket) -> None:
    source = random.Random(1)
    short = [b"abc", b"\r\n", source.randbytes(40)]
    for byte in frames(short):
        peer.sendall(bytes([byte]))
    expected = frames([payload[::-1] for payload in short])
    assert receive(peer, len(expected)) == expected
    many = [source.randbytes(size) for size in (1, 99_999, *range(1, 120), 5_000)]
    # By another process's reading alone this gets on, so what is sent at once is bounded.
    for start in range(0, len(many), 40):
        part = many[start : start + 40]
        peer.sendall(frames(part))
        expected = frames([payload[::-1] for payload in part])
        assert receive(peer, len(expected)) == expected


@pytest.mark.parametrize("peer", SERVERS, indirect=True)
@pytest.mark.parametrize("header", [b"0003x", b"00000"])
def test_a_peer_ends_a_connection_at_a_bad_header_after_earlier_replies(
    peer: socket.socket, header: bytes
) -> None:
    peer.sendall(b"00003abc" + header)
    assert receive(peer, 9) == b"00003cba"


def load(
    binaries: dict[str, Path], target: Target, *options: str
) -> subprocess.CompletedProcess[str]:
    command = [str(binaries["load"]), str(target.port), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=50)


if COMPILER:

    def test_the_loader_in_c_counts_what_it_has_verified(
        binaries: dict[str, Path], address: Target
    ) -> None:
        done = load(binaries, address, "10", "0.1", "3", "1", "300")
        assert done.returncode == 0, done.stderr
        started, document = done.stdout.splitlines()
        assert started == "started"
        figures = json.loads(document)
        assert figures["seconds"] >= 0.1
        assert figures["requests"] % 3 == 0 < figures["requests"]

    def test_the_loader_in_c_sends_what_the_kernel_does_not_take_at_once(
        binaries: dict[str, Path], address: Target
    ) -> None:
        done = load(binaries, address, "2", "0.1", "64", "99999")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["requests"] >= 64

    def test_the_loader_in_c_finds_replies_in_the_wrong_order(binaries: dict[str, Path]) -> None:
        with framed(LastFirst()) as target:
            done = load(binaries, target, "1", "0.1", "2", "20")
        assert (done.returncode, done.stderr) == (1, "a wrong reply\n")

    def test_the_loader_in_c_tells_of_a_server_that_ends_connections(
        binaries: dict[str, Path],
    ) -> None:
        server = Right()
        server.alive = False
        with framed(server) as target:
            done = load(binaries, target, "1", "0.1")
        assert done.returncode == 1
        assert "closed a connection" in done.stderr or "was lost" in done.stderr


def results(unit: Unit, **values: list[float]) -> Results:
    """Of one load, beside the first of them."""
    found = Results("some", "Some", list(values), unit)
    for name, each in values.items():
        for value in each:
            found.add("a load", name, value)
    return found


def test_who_is_ahead_is_said_where_the_whole_interval_is() -> None:
    base = [100.0, 110.0, 90.0, 105.0, 95.0, 101.0]
    values = {
        "us": base,
        "double": [2 * value for value in base],
        "half": [value / 2 for value in base],
        "same": [
            value * by for value, by in zip(base, (1.1, 0.9, 1.2, 0.8, 1.0, 1.0), strict=True)
        ],
    }
    rates, times = results(Unit.RATE, **values), results(Unit.TIME, **values)
    found = {
        (name, number): each.verdict(interval)
        for number, each in enumerate((rates, times))
        for _, name, interval in each.cells()
    }
    assert found == {
        ("double", 0): Verdict.AHEAD,
        ("half", 0): Verdict.BEHIND,
        ("same", 0): Verdict.LEVEL,
        ("double", 1): Verdict.BEHIND,
        ("half", 1): Verdict.AHEAD,
        ("same", 1): Verdict.LEVEL,
    }
    told = markdown(rates)
    assert "Ahead of us: double (a load: 2.00 (2.00-2.00))." in told
    assert "Not told apart from us: same (a load:" in told


def test_a_difference_that_is_lost_in_the_noise_counts_as_none() -> None:
    found = results(Unit.MEMORY, us=[-3.0], them=[2048.0], others=[-1.0])
    assert "| a load | 0 KiB | 2 KiB<br>inf | 0 KiB<br>1.00 |" in markdown(found)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.3871, "0.387"),
        (23.1, "23.1"),
        (999.4, "999"),
        (999.9, "1.00k"),
        (23_149.0, "23.1k"),
        (999_900.0, "1.00M"),
    ],
)
def test_figures_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_nobody_is_ahead_after_a_few_rounds() -> None:
    found = results(Unit.RATE, us=[1.0, 1.0], them=[5.0, 5.0])
    assert "Ahead" not in markdown(found)
    assert "Too few rounds" in markdown(found)
    assert not found.of_verdict(Verdict.AHEAD)


def test_why_a_contender_has_no_figures_stands_in_its_cell() -> None:
    found = results(Unit.RATE, us=[1.0], them=[5.0])
    found.leave_out("a load", "them", "a wrong reply")
    found.add("another load", "us", 1.0)
    found.add("another load", "them", 1.0)
    assert "| a load | 1/s | a wrong reply |" in markdown(found)
    found.leave_out("another load", "us", "a lost connection")
    assert "| another load | a lost connection | 1/s |" in markdown(found)


def test_the_order_within_a_round_is_drawn_by_lot_and_the_same_for_a_seed() -> None:
    rounds = [list(in_turn("a load", "ABC", 20, seed=seed)) for seed in (1, 1, 2)]
    assert rounds[0] == rounds[1] != rounds[2]
    orders = set(zip(*[iter(rounds[0])] * 3, strict=True))
    assert len(orders) > 1
    assert all(sorted(order) == ["A", "B", "C"] for order in orders)


def test_tables_are_replaced_between_their_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- one: measured -->\nold\n<!-- one: end -->\nafter\n")
    fill(page, "one", "new")
    fill(page, "one", "newer")
    fill(page, "two", "more")
    assert page.read_text() == (
        "before\n<!-- one: measured -->\n\nnewer\n\n<!-- one: end -->\nafter\n"
        "\n<!-- two: measured -->\n\nmore\n\n<!-- two: end -->\n"
    )


def test_servers_beside_each_other(tmp_path: Path) -> None:
    page, chart, values = (tmp_path / name for name in ("page.md", "chart.svg", "values.json"))
    peer = f"{sys.executable} {BENCHMARKS}/peers/asyncio_protocol.py {{port}}"
    printed = benchmark(
        *("field_servers.py", "--no-install", "--environment", str(tmp_path)),
        *("--server", f"one={peer}", "--server", f"other={peer}", "--idle", "20"),
        *("--load", "3", "--load", "2:4:1024", "--rounds", "2", "--seconds", "0.1"),
        *("--markdown", str(page), "--svg", str(chart), "--json", str(values)),
    )
    assert "2 x 4, 1 KiB" in printed
    assert "| 3 x 1, 3 B |" in page.read_text()
    assert ET.parse(chart).getroot().tag.endswith("svg")
    found = json.loads(values.read_text())["results"]
    assert len(found["servers"]["values"]["3 x 1, 3 B"]["other"]) == 2
    assert set(found["servers-memory"]["values"]["an idle connection"]) == {"one", "other"}


def test_a_server_that_does_not_start_is_told_of(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "field_servers.py"), "--no-install"]
    command += ["--environment", str(tmp_path), "--server", f"none={sys.executable} nowhere.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("did not start: ")
    assert "No such file" in last


def test_load_generators_beside_each_other(tmp_path: Path) -> None:
    printed = benchmark(
        *("field_loaders.py", "--no-install", "--environment", str(tmp_path)),
        *("--load", "3", "--rounds", "1", "--seconds", "0.2", "--memory-connections", "60"),
    )
    assert "3 x 1, 3 B" in printed


def test_clients_beside_what_one_writes_without_them(tmp_path: Path) -> None:
    printed = benchmark(
        *("field_clients.py", "--quick", "--no-install", "--environment", str(tmp_path)),
        *("--rounds", "1", "--seconds", "0.01"),
    )
    assert "one at a time" in printed
    assert "asyncio streams" in printed

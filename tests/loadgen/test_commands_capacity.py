"""``loadgen capacity`` as people and scripts run it."""

from __future__ import annotations

import inspect
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loadgen.capacity import Figures
from loadgen.commands import capacity as command
from loadgen.workers import WorkerError
from nbnet import Server
from nbnet.notation import Address, Target

from .command import PATIENCE, call, running
from .processes import children_of, is_gone
from .searches import Measure, Simulation, findings, found, ruined, served, terms
from .servers import Behaviour, wrong_at

QUICK = (
    *("-c", "5", "--step-duration", "200ms", "--confirm-duration", "300ms"),
    *("--min-sent", "10%"),  # a busy machine may not send much more in so little time
)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing has to settle here."""
    monkeypatch.setattr(command, "SETTLE", 0.0)
    monkeypatch.setattr(command, "WARMUP", 0.05)
    before = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_bundled_server_is_searched_and_started_once(tmp_path: Path) -> None:
    json_file, html_file = tmp_path / "found.json", tmp_path / "found.html"
    files = ("--json", str(json_file), "--html", str(html_file))
    slo = "p50<5s,errors<1%"
    ended = call("capacity", "--slo", slo, "--start", "200", "--max-rate", "400", *QUICK, *files)
    assert ended.code == 0, ended
    started, announced, *steps, took = ended.err.splitlines()
    assert started.startswith("no --target: started the bundled server on 127.0.0.1:")
    assert announced.startswith(f"searching for the highest rate that holds {slo}, in at most ")
    assert [step.partition(": held")[0] for step in steps] == [
        "step 1: 200/s for 0.2 s",
        "step 2: 400/s for 0.2 s",
        "confirming: 400/s for 0.3 s",
    ]
    assert took.startswith("took ")
    assert "(bundled server)" in ended.out.splitlines()[0]
    last = f"CAPACITY: 400 requests/s hold {slo} (confirmed over 0.3 s; --max-rate is the limit)"
    assert ended.out.splitlines()[-1] == last
    document = json.loads(json_file.read_text())
    assert document["embedded"] is True
    assert document["plan"]["connections"] == 5
    for step, due in zip(document["steps"], [40, 80, 120], strict=True):
        # What is in flight when measuring begins, or late then, is measured as well.
        assert due <= step["planned"] < 2 * due
    assert "CAPACITY: 400 requests/s" in html_file.read_text()
    assert not any(type(each).__module__ == "pygal" for each in sys.meta_path)


def test_a_server_that_cannot_hold_the_lowest_rate_has_no_capacity(address: Target) -> None:
    once = ("--start", "1", "--max-rate", "1", "--slo", "max<1us", "--json", "-")
    ended = call("capacity", "-t", str(address), *once, *QUICK)
    assert ended.code == 1
    document = json.loads(ended.out)
    assert document["capacity"]["requests_per_second"] is None
    assert document["verdict"].startswith("CAPACITY: none: not even 1 requests/s hold max<1us (")
    assert ended.err.splitlines()[-1] == document["verdict"]


def test_wrong_replies_end_the_search(hostile: Callable[[Behaviour], Address]) -> None:
    target = hostile(wrong_at(4, b"00003abc"))
    ended = call("capacity", "-t", str(target), "--slo", "p99<1s", "--start", "100", *QUICK)
    assert ended.code == 1
    assert "CAPACITY: none: " in ended.out.splitlines()[-1]
    assert "wrong replies at 100 requests/s; no rate held so far" in ended.out.splitlines()[-1]


def test_a_port_where_nobody_listens_is_named_in_one_line(refusing: Target) -> None:
    ended = call("capacity", "-t", str(refusing), "--slo", "p99<1s", *QUICK)
    assert (ended.code, ended.out) == (4, "")
    _, line = ended.err.splitlines()
    assert line.startswith(f"loadgen: cannot connect to {refusing}: refused ")


def test_options_of_a_load_are_passed_on() -> None:
    options = ["--arrivals", "poisson", "-c", "7", "--pipeline", "2", "--warmup", "3s"]
    plan, site = command._load([*options, "-t", "unix:/s"])
    assert (plan.poisson, plan.connections, plan.pipeline, plan.warmup) == (True, 7, 2, 3.0)
    assert site.target == Address("", 0, path="/s")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--slo", "p99>1s"], "--slo: 'p99>1s': expected < or <="),
        (["--slo", "p99<1s", "--rate", "5"], "--rate: the search chooses it; see --start"),
        (["--slo", "p99<1s", "-r5"], "--rate: the search chooses it"),
        (["--slo", "p99<1s", "--stages", "1s:5"], "--stages: the search chooses it"),
        (["--slo", "p99<1s", "-d", "5s"], "--duration: the search chooses it"),
        (["--slo", "p99<1s", "-n", "5"], "--requests: the search chooses it"),
        (["--slo", "p99<1s", "--think", "1s"], "a think time belongs to a closed loop"),
        (["--slo", "p99<1s", "--start", "0"], "capacity: a start rate of 0"),
        (["--slo", "p99<1s", "--precision", "5"], "--precision: '5' is no share"),
        (["--slo", "p99<1s", "--precision", "x%"], "--precision: 'x%' is no share"),
        (["--slo", "p99<1s", "--min-sent", "101%"], "--min-sent: '101%' is no share"),
        (["--slo", "p99<1s", "--max-time", "5s"], "capacity: 5 s are too short"),
        (["--slo", "p99<1s", "--json", "/no/where"], "--json: cannot write /no/where"),
        (["--slo", "p99<1s", "--html", "/no/where"], "--html: cannot write /no/where"),
        (
            ["--slo", "p99<1s", "--html", "-", "--json", "-"],
            "--json and --html: only one of them",
        ),
        (["--slo", "p99<1s", "-c", "2", "-w", "3"], "3 workers are more than the 2 connections"),
        (["--slo", "p99<1s", "-c", "10M"], "10000000 connections are more than"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_makes_no_sense_is_refused_in_one_line_before_anything_is_started(
    arguments: list[str], says: str
) -> None:
    ended = call("capacity", *arguments)
    assert ended.code == 2
    assert ended.line.startswith(f"loadgen: {says}")


def test_an_unknown_option_is_a_usage_error() -> None:
    ended = call("capacity", "--slo", "p99<1s", "--connectoins", "5")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("loadgen: no such option: --connectoins")
    assert ended.err.endswith("(see loadgen --help)\n")
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("columns", [80, 120])
def test_the_help_fits_the_terminal_and_names_every_option_and_exit_code(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", columns)
    ended = call("capacity", "--help")
    assert ended.code == 0
    assert max(map(len, ended.out.splitlines())) <= columns
    for parameter in inspect.signature(command.capacity).parameters.keys() - {"ctx"}:
        assert f"--{parameter.replace('_', '-')} " in ended.out
    for exit_code in ("0 a rate", "1 wrong", "2 usage", "4 no", "130 interrupted"):
        assert exit_code in ended.out


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_an_interrupt_has_what_was_found_so_far_printed_and_every_process_gone(
    number: signal.Signals,
) -> None:
    arguments = ("--slo", "p50<5s", "--step-duration", "200ms", "--start", "50", "-c", "2")
    with running("capacity", *arguments) as process:
        assert process.stderr is not None
        while "step 1" not in process.stderr.readline():
            pass  # between two runs, or in the next one
        children = children_of(process.pid)
        os.killpg(process.pid, number)
        stdout, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    last = stdout.splitlines()[-1]
    assert last.startswith("CAPACITY: interrupted; ")
    assert last.endswith(" requests/s held p50<5s for 0.2 s")
    assert all(is_gone(pid) for pid in children.values())


@pytest.mark.parametrize(
    ("odd", "code"),
    [
        ({}, 0),
        ({0: "wrong"}, 1),
        (dict.fromkeys(range(99), "ruined"), 1),
        ({1: "gone", 2: "gone"}, 4),
        ({1: "interrupted"}, 130),
    ],
    ids=["confirmed", "wrong", "nothing holds", "gone", "interrupted"],
)
def test_the_exit_code_is_that_of_the_end(odd: dict[int, str], code: int) -> None:
    kinds: dict[str, Measure] = {
        "ruined": ruined,
        "wrong": lambda rate, seconds: served(rate, seconds, rate, wrong=1),
        "gone": lambda *_: Figures(planned=0, sent=0, on_time=0, held=0),
        "interrupted": lambda rate, seconds: served(rate, seconds, rate, interrupted=True),
    }
    simulation = Simulation(5_000, odd={number: kinds[kind] for number, kind in odd.items()})
    assert command._exit_code(simulation.search(terms())) == code


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_capacity_of_a_server_that_sleeps_is_found_to_within_5_percent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()  # it has to settle
    slept: list[float] = []

    def sleep(payload: bytes) -> bytes:
        started = time.perf_counter()
        time.sleep(0.005)
        slept.append(time.perf_counter() - started)
        return payload[::-1]

    # Half of the requests wait for long as soon as more come than are answered, and a
    # disturbance of this machine lets no half of them wait.
    slo = ("--slo", "p50<100ms", "--start", "50", "--precision", "2%", "--step-duration", "5s")
    with Server(sleep, port=0, threads=1) as server:
        ended = call("capacity", "-t", str(server.address), *slo, "--json", "-")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    # How long sleeping takes changes with what else the machine does: what counts is how
    # long it took in the run that confirmed the answer, which is the last.
    then = slept[-document["steps"][-1]["sent"] :]
    found = document["capacity"]["requests_per_second"]
    assert found == pytest.approx(len(then) / sum(then), rel=0.05), ended.err
    assert document["capacity"]["limit"] == "server"


def test_an_engine_that_fails_is_an_error_in_one_line(
    address: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise WorkerError("an engine's process failed")

    monkeypatch.setattr("loadgen.commands.capacity._find", fail)
    ended = call("capacity", "-t", str(address), "--slo", "p99<1s")
    assert (ended.code, ended.line) == (1, "loadgen: an engine's process failed")


def test_every_file_that_cannot_be_written_is_named(
    address: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loadgen.commands.capacity._find", lambda *_: findings(found()))
    files = ("--json", "/dev/full", "--html", "/dev/full")
    ended = call("capacity", "-t", str(address), "--slo", "p99<1s", *files)
    assert ended.code == 1
    what = "cannot write /dev/full: No space left on device"
    assert ended.err == f"loadgen: {what}; {what}\n"

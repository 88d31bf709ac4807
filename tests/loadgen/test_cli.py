"""The command as people and scripts run it: its output and its exit code.

It is called in this process, but where being one is the point.
"""

from __future__ import annotations

import csv
import inspect
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import pytest

from loadgen import __version__, cli
from loadgen.hdr import decode
from loadgen.plan import Plan
from loadgen.running import spare_workers
from nbnet.notation import Address, Target

from .command import PATIENCE, call, measure, running
from .processes import catches, children_of, files_of, is_gone, wait_until
from .schema import assert_all_verified, assert_valid
from .servers import Behaviour, Peer, Service, closes, ends_after, honest, silent, wrong_at

# The main job ----------------------------------------------------------------


def test_without_a_target_the_bundled_server_is_loaded_and_every_reply_verified() -> None:
    ended = call("-c", "200", "-d", "0.5s")
    assert ended.code == 0
    assert re.fullmatch(r"no --target: started the bundled server on 127\.0\.0\.1:\d+\n", ended.err)
    first, *_, last = ended.out.splitlines()
    assert re.fullmatch(
        r"200 connections to 127\.0\.0\.1:\d+ \(bundled server\), [\d.]+ m?s measured",
        first,
    )
    assert "connections 200 asked   200 held   0 failed   0 lost" in ended.out
    assert last == "OK: every reply verified"


def test_a_closed_standard_error_is_not_needed() -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" "$@" 2>&-', sys.executable, "-m", "loadgen", "-d", "0.1", "-q"],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout) == (0, "OK: every reply verified\n")


def test_a_server_that_runs_already_is_loaded(address: Target) -> None:
    ended = call("--target", str(address), "--conns", "20", "--duration", "200ms")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"20 connections to {address}, ")


def test_a_host_by_name_is_loaded(address: Target) -> None:
    ended = call("-t", f"localhost:{address.port}", "-c", "2", "-d", "0.1")
    assert ended.code == 0
    assert ended.out.startswith(f"2 connections to localhost:{address.port}, ")


def test_the_payload_is_sent_as_it_is_given(serve: Callable[[Behaviour], Service]) -> None:
    received = serve(honest)
    text = "grüße"  # 7 bytes in UTF-8
    code, document = measure("-t", str(received.address), "-n", "3", "-c", "1", "--payload", text)
    assert code == 0
    assert document["plan"]["payloads"] == "7 bytes"
    assert received.peers[0].payloads == [text.encode()] * 3


def test_two_thousand_connections_are_all_served() -> None:
    code, document = measure("-c", "2k", "-d", "0.5s")
    assert code == 0
    assert_all_verified(document, 2000)


@pytest.mark.slow
def test_five_thousand_connections_for_five_seconds_are_all_served() -> None:
    code, document = measure("--conns", "5000", "--duration", "5s")
    assert code == 0
    assert_all_verified(document, 5000)
    assert document["duration_seconds"] == 5.0


# JSON ------------------------------------------------------------------------


def test_the_document_has_every_key_with_its_type(tmp_path: Path, address: Target) -> None:
    path = tmp_path / "run.json"
    ended = call("-t", str(address), "-c", "10", "-d", "0.3", "--json", str(path))
    assert ended.code == 0
    assert ended.out.endswith("OK: every reply verified\n"), "the summary is printed all the same"
    assert list(tmp_path.iterdir()) == [path], "nothing is left beside the file"
    document = json.loads(path.read_text())
    assert_valid(document)
    assert document["schema"] == "loadgen/1"
    assert document["target"] == str(address)
    assert (document["embedded"], document["interrupted"]) == (False, False)
    assert document["plan"]["connections"] == 10
    assert_all_verified(document, 10)
    series = document["series"]
    assert series[0]["t"] == 0.0
    assert sum(each["requests"] for each in series) == document["requests"]["verified"]
    latency = document["latency_seconds"]
    assert 0 < latency["min"] <= latency["p50"] <= latency["p99"] <= latency["max"] < 5


def test_json_on_standard_output_has_that_to_itself() -> None:
    ended = call("-c", "10", "-d", "0.2", "--json", "-")
    assert ended.code == 0
    assert_valid(json.loads(ended.out))
    assert "started the bundled server" in ended.err
    assert ended.err.endswith("OK: every reply verified\n")


def test_a_failed_run_is_written_too(
    tmp_path: Path, hostile: Callable[[Behaviour], Address]
) -> None:
    path = tmp_path / "run.json"
    target = hostile(wrong_at(4, b"00003abc"))
    ended = call("-t", str(target), "-c", "3", "--no-reconnect", "--json", str(path))
    assert ended.code == 1
    document = json.loads(path.read_text())
    assert_valid(document)
    assert document["requests"]["wrong"] == 3
    assert document["errors"] == {"wrong payload": 3}
    assert sorted(each.pop("connection") for each in document["mismatches"]) == [1, 2, 3]
    assert document["mismatches"] == 3 * [
        {
            "kind": "wrong payload",
            "sent": b"00003abc".hex(),
            "expected": b"00003cba".hex(),
            "got": b"00003abc".hex(),
        }
    ]


def test_every_file_that_is_asked_for_is_written(tmp_path: Path, address: Target) -> None:
    names = ("json", "csv", "hgrm", "hlog")
    options = [text for name in names for text in (f"--{name}", str(tmp_path / name))]
    ended = call("-t", str(address), "-c", "5", "--rate", "500", "-d", "0.3", *options)
    assert (ended.code, ended.err) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    verified = json.loads((tmp_path / "json").read_text())["requests"]["verified"]
    assert 0 < verified <= 150  # all of them where nothing held up the load generator
    [row] = csv.DictReader((tmp_path / "csv").read_text().splitlines())
    assert int(row["requests"]) == verified
    assert f"Total count    = {verified:12}]" in (tmp_path / "hgrm").read_text()
    latency, service = (tmp_path / "hlog").read_text().splitlines()[5:]
    assert len(decode(latency.rpartition(",")[2])) == verified
    assert service.startswith("Tag=service,0.000,0.300,")


def test_a_log_on_standard_output_has_that_to_itself(address: Target) -> None:
    ended = call("-t", str(address), "-c", "1", "-n", "5", "--hlog", "-")
    assert len(decode(ended.out.rpartition(",")[2].rstrip())) == 5
    assert ended.err.endswith("OK: every reply verified\n")


def test_percentiles_are_shown_and_written(tmp_path: Path, address: Target) -> None:
    path = tmp_path / "run.json"
    ended = call(
        "-t", str(address), "-c", "1", "-n", "5", "--percentiles", "25,99.999", "--json", str(path)
    )  # fmt: skip
    assert "                mean       p25   p99.999       max\n" in ended.out
    assert {"p25", "p50", "p99.99", "p99.999"} < json.loads(path.read_text())[
        "latency_seconds"
    ].keys()


# What is told while it goes on ------------------------------------------------


def test_quiet_prints_the_verdict_alone() -> None:
    ended = call("-c", "5", "-n", "50", "--quiet")
    assert (ended.code, ended.out, ended.err) == (0, "OK: every reply verified\n", "")


def test_quiet_leaves_standard_output_to_the_json() -> None:
    ended = call("-c", "5", "-n", "50", "-q", "--json", "-")
    assert json.loads(ended.out)["requests"]["verified"] == 50
    assert (ended.code, ended.err) == (0, "OK: every reply verified\n")


def test_quiet_does_not_silence_errors(refusing: Target) -> None:
    ended = call("-t", str(refusing), "-c", "1", "-q")
    assert ended.code == 4
    assert ended.line.startswith(f"loadgen: cannot connect to {refusing}: refused")


def test_figures_are_served_while_it_runs(address: Target) -> None:
    with running("-t", str(address), "-c", "2", "-d", "10m", "--metrics", "127.0.0.1:0") as process:
        assert process.stderr is not None
        url = process.stderr.readline().removeprefix("metrics on ").strip()

        def verified() -> float:
            with urlopen(url, timeout=PATIENCE) as answer:
                return float(
                    re.findall(rb"(?m)^loadgen_replies_verified_total (.*)$", answer.read())[0]
                )

        wait_until(verified)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (130, "")
    assert out.endswith("INTERRUPTED: every reply so far verified\n")


def test_metrics_that_cannot_be_served_end_it_before_anything_is_started(address: Target) -> None:
    ended = call("--metrics", str(address), "-c", "1")
    assert ended.code == 2
    assert ended.line == (
        f"loadgen: --metrics: cannot serve metrics on {address}: Address already in use"
    )


# Servers that fail -----------------------------------------------------------


def test_wrong_replies_are_counted_exactly_and_shown(
    hostile: Callable[[Behaviour], Address],
) -> None:
    ended = call("-t", str(hostile(wrong_at(10, b"00003cbX"))), "-c", "5", "--no-reconnect")
    assert (ended.code, ended.err) == (1, "")
    assert "replies     45 verified   5 wrong   0 failed   0 missing" in ended.out
    assert "wrong payload        7  3030303033616263  61              58\n" in ended.out
    assert ended.out.endswith("FAILED: 5 wrong replies, 5 connections lost\n")


def test_a_server_that_closes_its_connections_fails_the_run(
    hostile: Callable[[Behaviour], Address],
) -> None:
    ended = call("-t", str(hostile(ends_after(3, closes))), "-c", "4", "--no-reconnect")
    assert (ended.code, ended.err) == (1, "")
    assert "replies     12 verified   0 wrong   4 failed   0 missing" in ended.out
    assert "          4  EOF\n" in ended.out
    assert ended.out.endswith("FAILED: 4 failed requests, 4 connections lost\n")


def test_a_server_that_never_answers_fails_the_run_when_the_grace_is_over(
    hostile: Callable[[Behaviour], Address],
) -> None:
    ended = call("-t", str(hostile(silent)), "-c", "3", "-d", "0.1", "--grace", "0.1")
    assert (ended.code, ended.err) == (1, "")
    assert "replies     0 verified   0 wrong   0 failed   3 missing" in ended.out
    assert ended.out.endswith("FAILED: 3 requests without a reply\n")


# What cannot be done ---------------------------------------------------------


def test_a_port_where_nobody_listens_is_named_in_one_line(refusing: Target) -> None:
    ended = call("--target", str(refusing), "-c", "3")
    assert ended.code == 4
    assert ended.line.startswith(f"loadgen: cannot connect to {refusing}: refused ")
    assert "nbnet serve" in ended.err


def test_that_nobody_listens_is_written_for_programs_too(tmp_path: Path, refusing: Target) -> None:
    path = tmp_path / "run.json"
    path.write_text("an older run")
    assert call("--target", str(refusing), "-c", "3", "--json", str(path)).code == 4
    document = json.loads(path.read_text())
    assert_valid(document)
    assert document["errors"] == {"connect: refused": 3}
    assert document["verdict"] == "FAILED: no connection could be made"


@pytest.mark.parametrize("host", ["host.invalid", "."])
def test_an_unknown_host_is_named_in_one_line(host: str) -> None:
    ended = call("--target", f"{host}:80")
    assert ended.code == 4
    assert ended.line.startswith(f"loadgen: cannot connect to {host}:80: ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--conns", "0"], "0 connections: at least 1 is needed"),
        (["--conns", "-3"], "--conns: '-3' is no count"),
        (["--conns", "10M"], "10000000 connections are more than"),
        (["--conns", "10M", "--target", "127.0.0.1:1"], "10000000 connections are more than"),
        (["--duration", "5x"], "--duration: '5x' is no duration"),
        (["--duration", "0"], "a duration of 0 s: more than 0 is needed"),
        (["--target", "foo"], "--target: 'foo' is no target"),
        (["--target", "localhost:0"], "--target: 'localhost:0' is no target"),
        (["--payload", ""], "a payload of 0 bytes: a request holds 1 to 99,999"),
        (["--payload", "x" * 100_000], "a payload of 100000 bytes: a request holds 1 to 99,999"),
        (["--json", "/nowhere/at/all.json"], "--json: cannot write /nowhere/at/all.json"),
        (["--json", "/"], "--json: cannot write /"),
        (["--csv", "/nowhere/a.csv"], "--csv: cannot write /nowhere/a.csv: No such file"),
        (["--json", "-", "--hlog", "-"], "--json and --hlog: only one of them can be standard"),
        (["--percentiles", "50,p99"], "--percentiles: 'p99' is no percentile: expected numbers"),
        (["--rate", "fast"], "--rate: 'fast' is no rate"),
        (["--rate", "0"], "a rate of 0: more than 0 is needed"),
        (["--arrivals", "constant"], "--arrivals: needs --rate or --stages"),
        (["--arrivals", "poisson"], "--arrivals: needs --rate or --stages"),
        (["--stages", "10s"], "--stages: '10s' is no stage"),
        (["--stages", "5s:10", "-d", "9s"], "the stages take 5.00 s and the duration is 9.00 s"),
        (["--rate", "5", "--think", "1s"], "a think time belongs to a closed loop"),
        (["--active", "3", "-c", "2"], "3 active connections are more than the 2 held"),
        (["--pipeline", "0"], "0 requests in flight a connection: at least 1 is needed"),
        (["--requests", "0"], "0 requests: at least 1 is needed"),
        (["--workers", "0"], "--workers: '0' is no number of workers"),
        (["--workers", "many"], "--workers: 'many' is no number of workers"),
        (["--workers", "3", "-c", "2"], "3 workers are more than the 2 connections that send"),
        (["--workers", "3", "-n", "2"], "3 workers are more than the 2 requests"),
        (["--payload", "a", "--payload-size", "3"], "--payload and --payload-size: give one"),
        (["--payload-size", "0"], "--payload-size: '0' is no payload size"),
        (["--payload-file", os.devnull], f"--payload-file: {os.devnull}: "),
        (["--stages", "1s:5", "-c", "0"], "0 connections: at least 1 is needed"),
        (["-t", "tls://h:1", "--tls-key", "k"], "--tls-key: needs --tls-cert"),
        (["-t", "tls://h:1", "--tls-ca", "/nowhere"], "/nowhere: No such file or directory"),
        (["chaos", "--csv", "x"], "--csv: of a single run, which this command is not"),
        (["--payload-file", "/nowhere"], "--payload-file: /nowhere: No such file"),
        (["--payload", "a", "--payload-unique"], "--payload-unique puts a number of 3 bytes"),
        (["--expect", "nothing"], "--expect: expectation 'nothing'"),
        (["--tls-ca", "ca.pem"], "--tls-...: needs a target tls://HOST:PORT"),
        (["--fail-if", "p99>5xs"], "--fail-if: 'p99>5xs': expected a time like 5ms at position 5"),
        (["--fail-if", "p99>5%"], "--fail-if: 'p99>5%': expected a time like 5ms at position 5"),
        (["--fail-if", "wrong>0", "--fail-if", "speed<5"], "--fail-if: 'speed<5': expected one of"),
        (["--fail-if", "rate<95%"], "--fail-if: 'rate<95%': needs --rate or --stages"),
        (["--abort-on-fail"], "--abort-on-fail: needs --fail-if"),
        (["--source", "192.0.2.1", "-t", "127.0.0.1:1"], "--source 192.0.2.1: "),
        (["--source", "127.0.0.1", "-t", "unix:/s"], "a unix socket is connected to from no"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_makes_no_sense_is_refused_in_one_line_before_anything_is_started(
    arguments: list[str], says: str
) -> None:
    ended = call(*arguments)
    assert ended.code == 2
    assert ended.line.startswith(f"loadgen: {says}")


def test_an_unknown_option_is_a_usage_error() -> None:
    ended = call("--connectoins", "5")
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.startswith("loadgen: no such option: --connectoins")
    assert ended.err.endswith("(see loadgen --help)\n")
    assert ended.err.count("\n") == 1


def test_a_file_that_cannot_be_written_after_the_run_is_an_error_with_the_summary_printed(
    tmp_path: Path, hostile: Callable[[Behaviour], Address]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()

    def remove_the_folder(peer: Peer) -> None:
        for _ in peer.requests():
            folder.rmdir()
            return

    target = hostile(remove_the_folder)
    ended = call("-t", str(target), "-c", "1", "--no-reconnect", "--json", str(folder / "run.json"))
    assert ended.code == 1
    assert ended.out.endswith("FAILED: 1 failed request, 1 connection lost\n")
    [line] = ended.err.splitlines()
    assert line.startswith("loadgen: cannot write ")
    assert line.endswith(": No such file or directory")


def test_figures_that_nobody_reads_any_more_are_an_error_after_the_summary() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "loadgen", "-d", "0.1", "-q", "--json", "-"],
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "OK: every reply verified",
        "loadgen: cannot write standard output: Broken pipe",
    ]


def test_an_engine_that_fails_is_an_error_in_the_end() -> None:
    with running("-c", "2", "-d", "10m") as process:
        wait_until(lambda: "loadgen.worker" in children_of(process.pid))
        os.kill(children_of(process.pid)["loadgen.worker"], signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stdout) == (1, "")
    assert stderr.splitlines()[1:] == ["loadgen: an engine's process failed"]


def test_the_version_is_that_of_the_package() -> None:
    ended = call("--version")
    assert (ended.code, ended.out) == (0, f"loadgen {__version__}\n")


@pytest.mark.parametrize("columns", [80, 120])
def test_the_help_fits_the_terminal_and_names_every_option_and_exit_code(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", columns)
    ended = call("--help")
    assert ended.code == 0
    assert max(map(len, ended.out.splitlines())) <= columns
    for parameter in inspect.signature(cli.loadgen).parameters.keys() - {"ctx"}:
        option = parameter.strip("_").replace("_", "-")
        assert f"--{option} " in ended.out or f"--{option}," in ended.out
    for exit_code in (
        "0 all replies right",
        "1 wrong",
        "2 usage",
        "3 a",
        "4 no",
        "130 interrupted",
    ):
        assert exit_code in ended.out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--conns 5 chaos", "--conns: options come after the name of a command"),
        ("-t 127.0.0.1:1 capacity --slo p99<1s", "--target: options come after"),
        ("capacity --slo p99<1s chaos", "chaos: name one command"),
    ],
)
def test_what_a_command_would_leave_out_is_refused(arguments: str, line: str) -> None:
    ended = call(*arguments.split())
    assert ended.code == 2
    assert ended.line.startswith(f"loadgen: {line}")


def test_without_a_number_of_workers_one_is_enough_for_few_connections(address: Target) -> None:
    code, figures = measure("-t", str(address), "-c", "10", "-n", "20", "-w", "auto")
    assert (code, figures["loader"]["workers"]) == (0, 1)


@pytest.mark.parametrize(
    ("plan", "workers"),
    [
        (Plan(connections=49), 1),
        (Plan(connections=100), 2),
        (Plan(connections=5000), 7),
        (Plan(connections=5000, active=120), 2),
        (Plan(connections=5000, requests=3), 3),
    ],
)
def test_as_many_workers_as_pay_on_the_cores_that_the_bundled_server_leaves(
    monkeypatch: pytest.MonkeyPatch, plan: Plan, workers: int
) -> None:
    monkeypatch.setattr("loadgen.running.usable_cores", lambda: 8)
    assert spare_workers(plan, embedded=True) == workers


# Thresholds ------------------------------------------------------------------


def test_a_threshold_that_came_true_fails_the_run_and_one_that_did_not_does_not(
    address: Target,
) -> None:
    limits = ("--fail-if", "p99>1m", "--fail-if", "sent > 39", "--fail-if", "held<100%")
    ended = call("-t", str(address), "-c", "2", "-n", "40", *limits)
    assert ended.code == 3
    assert ended.out.endswith("\n\nFAILED: 1 of 3 thresholds: sent 40 > 39\n")
    ended = call("-t", str(address), "-c", "2", "-n", "39", *limits)
    assert ended.code == 0
    assert ended.out.endswith("\n\nOK: every reply verified, 3 thresholds passed\n")


def test_failed_requests_that_a_threshold_allows_fail_no_run(
    hostile: Callable[[Behaviour], Address],
) -> None:
    target = str(hostile(ends_after(3, Peer.close)))
    arguments = ("-t", target, "-c", "2", "--no-reconnect", "--fail-if")
    code, figures = measure(*arguments, "failed>2")
    assert code == 0
    assert figures["verdict"] == "OK: 2 failed requests, 2 connections lost, 1 threshold passed"
    code, figures = measure(*arguments, "failed>1")
    assert code == 3
    assert figures["thresholds"] == [{"expression": "failed>1", "value": 2, "passed": False}]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_first_wrong_reply_ends_a_run_that_allows_none(
    hostile: Callable[[Behaviour], Address], workers: str
) -> None:
    limits = ("--fail-if", "p99>1m", "--fail-if", "wrong>0", "--abort-on-fail")
    target = str(hostile(wrong_at(4, b"00003abc")))
    ended = call("-t", target, "-c", "4", "-d", "10m", "-w", workers, *limits)
    assert ended.code == 3
    verdict = " ".join(ended.out.rpartition("\n\n")[2].split())
    assert re.fullmatch(r"FAILED: 1 of 2 thresholds: wrong \d+ > 0; aborted at .*s", verdict)


def test_a_percentile_that_is_too_high_ends_the_run_after_a_second(address: Target) -> None:
    limits = ("--fail-if", "p50>0", "--abort-on-fail", "--rate", "100", "-w", "2")
    code, figures = measure("-t", str(address), "-c", "10", "-d", "10m", *limits)
    assert code == 3
    assert 1 <= figures["duration_seconds"] < 60
    assert re.search(r"p50 .* > 0s; aborted at \d", figures["verdict"])
    assert 1 <= figures["aborted_at_seconds"] <= figures["duration_seconds"]
    assert figures["interrupted"] is False


def test_without_the_option_a_run_goes_on_after_a_threshold_has_failed(address: Target) -> None:
    code, figures = measure("-t", str(address), "-c", "2", "-d", "0.6", "--fail-if", "sent>0")
    assert (code, figures["duration_seconds"]) == (3, 0.6)


# Interrupted -----------------------------------------------------------------


def watch(person: int, for_what: bytes) -> None:
    """Read what is drawn on a terminal until something is seen on it."""
    seen = b""
    while for_what not in seen:
        assert select.select([person], [], [], PATIENCE)[0], "nothing more is drawn"
        seen += os.read(person, 65536)


def test_signals_mean_after_a_run_what_they_meant_before(address: Target) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert call("-t", str(address), "-c", "1", "-n", "1").code == 0
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_has_the_report_printed_and_every_process_gone(
    number: signal.Signals, terminal: tuple[int, int], tmp_path: Path
) -> None:
    person, program = terminal
    path = tmp_path / "run.json"
    arguments = ("-c", "20", "-d", "10m", "--json", str(path))
    with running(*arguments, stderr=program) as process:
        watch(person, b"measuring")  # a snapshot of the measured time is drawn
        children = children_of(process.pid)
        assert children.keys() == {"loadgen.embedded", "loadgen.worker"}
        os.killpg(process.pid, number)  # as Ctrl-C does: to all that are in the foreground
        stdout, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "connections 20 asked   20 held   0 failed   0 lost" in stdout
    assert stdout.endswith("INTERRUPTED: every reply so far verified\n")
    assert all(is_gone(pid) for pid in children.values())
    document = json.loads(path.read_text())
    assert_valid(document)
    assert document["interrupted"] is True
    assert document["requests"]["verified"] == document["requests"]["sent"] > 0


@pytest.mark.parametrize("loop", [[], ["--rate", "100"]], ids=["closed", "open"])
def test_a_second_interrupt_ends_at_once_without_a_report(
    hostile: Callable[[Behaviour], Address], loop: list[str]
) -> None:
    asked = threading.Semaphore(0)

    def only_ask(peer: Peer) -> None:
        for _ in peer.requests():
            asked.release()

    with running("-t", str(hostile(only_ask)), "-c", "3", "-d", "10m", *loop) as process:
        # Requests are in flight, so that the first interrupt has to wait for replies;
        # and the engine is held, so that it does not give them up meanwhile.
        assert all(asked.acquire(timeout=PATIENCE) for _ in range(3))
        wait_until(lambda: catches(process.pid, signal.SIGTERM))  # the last handler installed
        worker = children_of(process.pid)["loadgen.worker"]
        os.kill(worker, signal.SIGSTOP)
        control = str(Path(f"/proc/{worker}/fd/0").readlink())
        assert control in files_of(process.pid)
        process.send_signal(signal.SIGINT)
        wait_until(lambda: control not in files_of(process.pid))  # it is dealt with
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stdout, stderr) == (130, "", "")
    assert is_gone(worker)


def test_children_do_not_outlive_a_parent_that_is_killed() -> None:
    with running("-c", "5", "-d", "10m") as process:
        wait_until(lambda: len(children_of(process.pid)) == 2)
        children = children_of(process.pid)
        process.kill()
        process.wait(PATIENCE)
        wait_until(lambda: all(is_gone(pid) for pid in children.values()))


def test_a_command_passes_on_what_is_asked_of_the_main_one() -> None:
    ended = call("chaos", "--version")
    assert (ended.code, ended.out) == (0, f"loadgen {__version__}\n")

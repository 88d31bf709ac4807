"""``loadgen compare`` as people and scripts run it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from loadgen.compare import NoSuchFigureError
from loadgen.plan import Plan, PlanError
from loadgen.report import Run
from loadgen.running import Site
from nbnet.notation import Target

from .command import PATIENCE, call, running
from .documents import run_of
from .processes import children_of, is_gone, wait_until
from .runs import MS, finished, recorded, snapshots
from .schema import assert_valid

A, B = "127.0.0.1:1001", "127.0.0.1:1002"
SERVE = f"{shlex.quote(sys.executable)} -m nbnet serve --port {{port}}"


class Played:
    """Stands in for runs: what each is to give, and on which targets they were in turn."""

    def __init__(self, rates: dict[str, int]) -> None:
        self.rates = rates
        self.order: list[str] = []
        self.interrupted_at: int | None = None
        self.interrupted_before: int | None = None

    def __call__(self, plan: Plan, site: Site, report: Callable[[Run], Any], **_: Any) -> Any:
        from loadgen.tally import Counts

        self.order.append(str(site.target))
        if len(self.order) == self.interrupted_before:
            raise KeyboardInterrupt
        number = self.rates[str(site.target)]
        counts = Counts(
            held=1,
            sent=number,
            verified=number,
            on_time=number,
            latency=recorded(*[10_000 * MS // number] * number),
        )
        last = len(self.order) == self.interrupted_at
        return report(finished(snapshots(counts), plan, embedded=False, interrupted=last))


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    """Runs that take no time, of which B is slower by a fifth."""
    runs = Played({A: 1000, B: 800})
    monkeypatch.setattr("loadgen.running.run", runs)
    return runs


def saved(path: Path, *runs: dict[str, Any]) -> str:
    """A file of runs."""
    single = runs[0] if len(runs) == 1 else {"schema": "loadgen-repeat/1", "runs": list(runs)}
    path.write_text(json.dumps(single))
    return str(path)


# Servers in turn -------------------------------------------------------------


def test_a_running_server_and_a_command_are_compared_for_real(
    address: Target, tmp_path: Path
) -> None:
    path = tmp_path / "comparison.json"
    ended = call(
        *("compare", "--a", str(address), "--b-command", SERVE, "--repeat", "2"),
        *("-c", "5", "-d", "0.1", "--json", str(path)),
    )
    assert ended.code == 0, ended.err
    first, warning, *pairs = ended.err.splitlines()
    assert first.startswith("2 runs of each in turn: about ")
    assert warning.startswith("fewer than 8 runs of each show no difference")
    assert [line.split(":")[0] for line in pairs] == ["pair  1 of 2", "pair  2 of 2"]
    assert ended.out.startswith(f"A  {address}: 2 runs")
    assert "\nNO DIFFERENCE SHOWN: requests/s " in ended.out
    document = json.loads(path.read_text())
    assert (document["schema"], document["method"]) == ("loadgen-compare/1", "pairs")
    assert document["a"]["name"] == str(address)
    for side in "ab":
        for run in document[side]["runs"]:
            assert_valid(run)
            assert run["verdict"] == "OK: every reply verified"


def test_the_slower_one_is_found_in_whichever_order_the_runs_of_a_pair_come(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = [(0, 1), (1, 0), (1, 0), (0, 1), (1, 0), (0, 1), (0, 1), (0, 1)]
    monkeypatch.setattr("loadgen.compare.orders", lambda count, _source: drawn[:count])
    ended = call("compare", "--a", A, "--b", B, "--repeat", "8", "-c", "7", "-d", "2s")
    assert ended.code == 0
    assert played.order == [A, B, B, A, B, A, A, B, B, A, A, B, A, B, A, B]
    assert ended.out.splitlines()[-1] == (
        "B IS SLOWER: requests/s -20.0 % (-20.0 to -20.0) with 99.2 % confidence"
    )
    assert max(map(len, ended.out.splitlines())) <= 80


def test_exit_code_3_says_that_the_limit_is_exceeded(played: Played) -> None:
    options = ("compare", "--repeat", "8", "-d", "2s")
    slower = call(*options, "--a", A, "--b", B, "--fail-if-slower", "5%")
    assert slower.code == 3
    assert slower.err.endswith("loadgen: B is slower by more than 5%\n")
    assert call(*options, "--a", A, "--b", B, "--fail-if-slower", "25%").code == 0
    assert call(*options, "--a", B, "--b", A, "--fail-if-slower", "5%").code == 0
    assert len(played.order) == 48


def test_json_on_standard_output_has_that_to_itself(played: Played) -> None:
    ended = call("compare", "--a", A, "--b", B, "--repeat", "8", "--json", "-", "--by", "p99")
    document = json.loads(ended.out)
    assert (document["finding"], document["decided_by"]) == ("slower", "p99")
    assert document["figures"]["rate"]["ratio"]["middle"] == pytest.approx(0.8)
    assert document["figures"]["errors"]["difference"]["middle"] == 0
    assert "B IS SLOWER: latency p99 +25" in ended.err
    assert len(played.order) == 16


def test_an_interrupted_comparison_has_the_pairs_so_far(played: Played) -> None:
    played.interrupted_at = 6
    ended = call("compare", "--a", A, "--b", B, "--repeat", "8")
    assert ended.code == 130
    assert ended.out.startswith(f"A  {A}: 2 runs")
    assert len(played.order) == 6
    played.order.clear()
    played.interrupted_at = 2
    ended = call("compare", "--a", A, "--b", B)
    assert (ended.code, ended.out) == (130, "")
    assert ended.err.endswith("loadgen: interrupted before there was a pair of runs\n")


def test_so_has_one_that_is_interrupted_between_two_runs(played: Played) -> None:
    played.interrupted_before = 6
    ended = call("compare", "--a", A, "--b", B, "--repeat", "8")
    assert ended.code == 130
    assert ended.out.startswith(f"A  {A}: 2 runs")
    assert len(played.order) == 6


def test_a_run_without_a_connection_ends_the_comparison(refusing: Target) -> None:
    target = str(refusing)
    ended = call("compare", "--a", target, "--b", target, "-c", "1", "-d", "0.1")
    assert ended.code == 4
    assert f"loadgen: cannot connect to {target}: refused" in ended.err


def test_a_command_that_does_not_start_is_told_in_a_line() -> None:
    command = "no-such-server {port}"
    ended = call("compare", "--a-command", command, "--b-command", command)
    assert ended.code == 1
    assert ended.err.splitlines()[-1].startswith(
        "loadgen: 'no-such-server {port}' ended with 127 before it took connections: no-such-server"
    )


def test_the_server_ends_when_the_comparison_is_killed() -> None:
    options = ("--a-command", SERVE, "--b-command", SERVE, "-d", "30s", "-c", "1")
    with running("compare", *options) as process:
        wait_until(lambda: {"nbnet", "loadgen.worker"} <= children_of(process.pid).keys())
        children = children_of(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(PATIENCE)
        for pid in children.values():
            wait_until(partial(is_gone, pid))


# Files -----------------------------------------------------------------------


def test_files_of_repeated_runs_are_compared(tmp_path: Path) -> None:
    a = saved(tmp_path / "a.json", *[run_of(1000.0 + each) for each in range(5)])
    b = saved(tmp_path / "b.json", *[run_of(800.0 + each) for each in range(5)])
    ended = call("compare", a, b, "--fail-if-slower", "5%")
    assert ended.code == 3
    assert "\n\nB IS SLOWER: requests/s -20.0 % " in ended.out
    assert "NOT IN TURN" in ended.out
    assert call("compare", a, a, "--fail-if-slower", "0%").code == 0


def test_a_file_of_one_run_compared_with_itself_shows_nothing(tmp_path: Path) -> None:
    a = saved(tmp_path / "a.json", run_of(series=[1000, 990, 1010] * 10))
    ended = call("compare", a, a, "--fail-if-slower", "1%")
    assert (ended.code, ended.err) == (0, "")
    assert "ONE RUN A SIDE" in ended.out
    assert ended.out.splitlines()[-1].startswith("NO DIFFERENCE SHOWN: requests/s 0 % (")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is no JSON"),
        ("[]", "has no runs: expected a file of loadgen --json"),
        ('{"schema": "loadgen-repeat/1", "runs": []}', "has no runs"),
        ('{"schema": "loadgen/1"}', "a run lacks 'plan'"),
        ('{"schema": "loadgen/1", "plan": 5}', "a run holds what is none of its figures"),
        ('{"schema": "loadgen/1", "plan": NaN}', "is no JSON: NaN is no number"),
        ("[" * 100_000, "is nested too deeply to be runs"),
    ],
)
def test_a_file_without_runs_is_told(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "x.json").write_text(content)
    ended = call("compare", str(tmp_path / "x.json"), str(tmp_path / "x.json"))
    assert ended.code == 2
    assert said in ended.line


def test_a_figure_that_is_no_number_is_not_put_down_to_an_option(tmp_path: Path) -> None:
    run = run_of()
    run["throughput"]["requests_per_second"] = "many"
    a = saved(tmp_path / "a.json", run)
    line = call("compare", a, a).line
    assert line.startswith(f"loadgen: {a} and {a}: a run holds what is none of its figures (")


# Usage -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give two files of loadgen --json, or --a TARGET and --b TARGET"),
        (["a.json"], "give two files"),
        (["nowhere/a.json", "b.json"], "cannot read nowhere/a.json: No such file or directory"),
        (["--a", A], "give --b or --b-command"),
        (["--a", A, "--a-command", SERVE, "--b", B], "give either --a or --a-command"),
        (["--a", "x", "--b", B], "--a: 'x' is no target"),
        (["--a-command", "nbnet serve", "--b", B], "--a-command: 'nbnet serve' has no {port}"),
        (["--a", A, "--b", B, "--target", A], "--target: there are two, give --a and --b"),
        (["--a", A, "--b", B, "-n", "5"], "--requests: give --duration as well"),
        (["--a", A, "--b", B, "--repeat", "0"], "--repeat: at least 1 run of each is needed"),
        (["--a", A, "--b", B, "--conns", "x"], "--conns: 'x' is no count"),
        (["--a", A, "--b", B, "--fail-if-slower", "5"], "'5' is no share: expected one like 0.1%"),
        (["--a", A, "--b", B, "--confidence", "100%"], "--confidence: '100%': expected 50%"),
        (["--a", A, "--b", B, "--json", "/nowhere/x"], "--json: cannot write /nowhere/x"),
    ],
)
def test_what_cannot_be_meant_is_told_in_a_line_before_anything_runs(
    arguments: list[str], said: str
) -> None:
    ended = call("compare", *arguments)
    assert ended.code == 2
    assert said in ended.line


def test_a_plan_that_cannot_be_run_is_said_when_it_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PlanError("more than this machine can do")

    monkeypatch.setattr("loadgen.running.run", fail)
    ended = call("compare", "--a", A, "--b", B)
    assert ended.code == 2
    assert ended.err.splitlines()[-1] == "loadgen: more than this machine can do"


def test_a_figure_that_cannot_decide_is_said(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise NoSuchFigureError("nothing of it was measured")

    monkeypatch.setattr("loadgen.compare.compare", fail)
    ended = call("compare", "--a", A, "--b", B, "--repeat", "2")
    assert ended.code == 2
    assert ended.err.splitlines()[-1] == "loadgen: --by: nothing of it was measured"
    assert played.order

"""``loadgen --repeat N``: runs in lines, and how much they differ."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loadgen.plan import Plan
from loadgen.report import Run, repeated
from loadgen.running import Site
from nbnet.notation import Target

from .command import call
from .runs import failed, fine, loader_bound, open_loop
from .schema import assert_valid


def test_each_run_has_a_line_and_the_file_has_them_all(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    ended = call("-c", "5", "-d", "0.1", "--repeat", "2", "--json", str(path))
    assert ended.code == 0
    assert ended.err.count("started the bundled server") == 1
    lines = ended.out.splitlines()
    assert lines[0] == "5 connections, 2 times"
    assert [line.split()[0] for line in lines[2:5]] == ["run", "1", "2"]
    assert re.match(r"2 runs +median +lowest +highest +apart$", lines[6])
    assert lines[-1] == "OK: every reply verified"
    assert max(map(len, lines)) <= 80
    document = json.loads(path.read_text())
    assert document["schema"] == "loadgen-repeat/1"
    assert len(document["runs"]) == 2
    for run in document["runs"]:
        assert_valid(run)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that come next, in place of real ones; Ctrl-C comes behind the last."""
    runs: list[Run] = []

    def play(_plan: Plan, _site: Site, report: Callable[[Run], Any], **_: Any) -> Any:
        if not runs:
            raise KeyboardInterrupt
        return report(runs.pop(0))

    monkeypatch.setattr("loadgen.commands.repeat.run", play)
    return runs


def test_the_exit_code_is_the_gravest_and_the_verdict_counts(played: list[Run]) -> None:
    played += [fine(), failed(), fine()]
    ended = call("--repeat", "3", "--json", "-")
    assert ended.code == 1
    assert len(json.loads(ended.out)["runs"]) == 3
    assert ended.err.endswith("(1 of 3 runs)\n")
    assert "\nFAILED: 1 wrong reply" in ended.err


def test_an_interrupted_run_is_the_last(played: list[Run]) -> None:
    from loadgen.tally import Counts

    from .runs import finished, snapshots

    played += [fine(), finished(snapshots(Counts(held=1)), interrupted=True), fine()]
    ended = call("--repeat", "3")
    assert ended.code == 130
    assert len(played) == 1
    assert "INTERRUPTED" in ended.out


def test_runs_are_saved_when_somebody_interrupts_before_the_next(
    played: list[Run], tmp_path: Path
) -> None:
    path = tmp_path / "runs.json"
    played.append(fine())
    assert call("--repeat", "3", "--json", str(path)).code == 130
    assert len(json.loads(path.read_text())["runs"]) == 1
    assert call("--repeat", "3").code == 130


def test_no_connection_is_told_as_of_a_single_run(refusing: Target) -> None:
    ended = call("-t", str(refusing), "--repeat", "3", "-d", "0.1")
    assert ended.code == 4
    assert ended.line.startswith(f"loadgen: cannot connect to {refusing}: refused ")


@pytest.mark.parametrize("option", [["--fail-if", "p99>1s"], ["--csv", "-"], ["--metrics", "h:1"]])
def test_what_tells_of_a_single_run_is_refused(option: list[str]) -> None:
    ended = call("--repeat", "2", *option)
    words = "--repeat: of the reports only --json, and no --fail-if or --metrics"
    assert (ended.code, ended.line) == (2, f"loadgen: {words}")


def test_a_repeat_of_nothing_is_refused() -> None:
    ended = call("--repeat", "0")
    assert (ended.code, ended.line) == (2, "loadgen: --repeat 0: at least 1 is needed")


def test_the_spread_has_the_median_and_how_far_runs_lie_apart() -> None:
    text = repeated.spread([fine(), fine(), failed()])
    assert text.splitlines()[:2] == [
        "3 runs              median      lowest     highest       apart",
        "requests/s               3           2           3      33.3 %",
    ]
    assert "service p99" not in text
    assert "service p99" in repeated.spread([open_loop()])


def test_notes_say_in_how_many_runs() -> None:
    text = repeated.spread([loader_bound(), open_loop()])
    assert re.search(r"LOADER-BOUND: [^.]*\(1\s+of\s+2\s+runs\)", text)

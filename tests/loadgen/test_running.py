"""A run as those see it that are to be told of it while it goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from loadgen.plan import Plan
from loadgen.report import Run
from loadgen.report.json import document
from loadgen.running import Site, run
from loadgen.tally import Phase, Tally
from nbnet.notation import Address, Target

from .schema import assert_valid
from .servers import Behaviour, wrong_at


def the_run(finished: Run) -> Run:
    return finished


def test_observers_are_called_in_turn_with_the_tally_after_each_snapshot(address: Target) -> None:
    seen: list[tuple[str, Phase, float]] = []

    def observer(name: str) -> Callable[[Tally, Callable[[], Run]], None]:
        return lambda tally, _: seen.append((name, tally.phase, tally.elapsed))

    plan = Plan(connections=2, duration=0.6)
    finished = run(
        plan, Site(target=Address(*address)), the_run, observers=[observer("a"), observer("b")]
    )
    assert seen[0] == ("a", Phase.READY, 0.0)
    assert seen[-1] == ("b", Phase.DONE, finished.tally.elapsed)
    assert {phase for _, phase, _ in seen} >= {Phase.MEASURING, Phase.DRAINING}
    assert [name for name, *_ in seen] == ["a", "b"] * (len(seen) // 2)


def test_a_run_so_far_is_an_interrupted_one_that_says_that_it_is_incomplete(
    hostile: Callable[[Behaviour], Address],
) -> None:
    documents = []

    def observe(_tally: Tally, so_far: Callable[[], Run]) -> None:
        documents.append(document(so_far()))

    target = hostile(wrong_at(4, b"00003abc"))
    plan = Plan(connections=1, duration=0.3, reconnect=False)
    finished = document(run(plan, Site(target=target), the_run, observers=[observe]))
    for each in documents:
        assert_valid(each)
        assert each["interrupted"] is True
        assert each["target"] == str(target)
    assert documents[0]["verdict"] == (
        "INCOMPLETE: the run had not ended; every reply so far verified"
    )
    assert documents[-1]["verdict"] == (
        "INCOMPLETE: the run had not ended; 1 wrong reply, 1 connection lost"
    )
    assert finished["interrupted"] is False
    assert documents[-1] | {key: finished[key] for key in ("interrupted", "verdict")} == finished


def test_what_an_observer_raises_ends_the_run(address: Target) -> None:
    def observe(_tally: Tally, _so_far: Callable[[], Run]) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        run(Plan(connections=1), Site(target=Address(*address)), the_run, observers=[observe])


def test_when_measuring_began_is_after_the_connecting_and_before_the_first_second_is_over(
    address: Target,
) -> None:
    plan = Plan(connections=2, duration=0.1, warmup=0.2)
    finished = run(plan, Site(target=Address(*address)), the_run)
    began = finished.tally.measured_from
    assert began is not None
    assert finished.started_at + timedelta(seconds=0.2) < began
    assert began + timedelta(seconds=0.1) < datetime.now(UTC)


def test_histograms_of_each_second_are_kept_if_asked_for(address: Target) -> None:
    plan = Plan(connections=1, requests=3)
    finished = run(plan, Site(target=Address(*address)), the_run, keep_histograms=True)
    assert len(list(finished.tally.encoded())) == len(finished.tally.series) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_report_is_given_up_for_sigterm_and_not_for_one_ctrl_c(
    address: Target, number: signal.Signals
) -> None:
    def report(finished: Run) -> Run:
        os.kill(os.getpid(), number)
        return finished

    plan = Plan(connections=1, duration=0.1, requests=1)
    if number is signal.SIGTERM:
        with pytest.raises(KeyboardInterrupt):
            run(plan, Site(target=Address(*address)), report, quiet=True)
    else:
        assert run(plan, Site(target=Address(*address)), report, quiet=True).tally.counts.sent == 1

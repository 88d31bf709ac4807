"""Whether a soak notices what is wrong; and one that finds nothing, for as long as asked.

NBNET_SOAK=10m pytest -m slow tests/soak
"""

from __future__ import annotations

import math
import os
import random

import pytest

from nbnet.notation import parse_duration
from soak.__main__ import main, report
from soak.judging import JUDGED, Options, Result, judge
from soak.measures import UNKNOWN, at_most, slope
from soak.running import Soak

DURATION = parse_duration(os.environ.get("NBNET_SOAK", "45s"))


def test_what_is_broken_on_purpose_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong replies, and what a worker and the clients leave behind; everything else is right."""
    options = Options(
        duration=2.0,
        round=1.0,
        threads=3,
        tasks=6,
        rate=3000.0,
        load_rate=0.0,
        reload_every=0,
        settle=0.3,
        max_objects=500,
        server_faults="wrong,objects,files",
        client_leak=True,
    )
    result = Soak(options, lambda _: None).run()
    assert report(result, options) == 1
    said = capsys.readouterr().out
    assert result.wrong > 0
    assert result.verified > 100
    expected = (
        " wrong replies",
        " got b",
        "the server's descriptors, others: ",
        "clients (",
        "workers (",
        "LookupError",
    )
    for problem in result.problems:
        assert any(text in problem for text in expected), problem
    for text in ("wrong replies", "descriptors, others", "clients (", "workers ("):
        assert sum(text in problem for problem in result.problems) >= 1, said
    assert "list" in next(p for p in result.problems if p.startswith("workers ("))
    assert said.endswith("FAILED\n")


@pytest.mark.slow
@pytest.mark.timeout(DURATION + 300)
def test_nothing_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print()
        seconds = str(DURATION)
        assert main(["--duration", seconds, "--round", "10s", "--reload-every", "1"]) == 0


# Judgement -------------------------------------------------------------------------


def judged(result: Result) -> list[str]:
    judge(result, Options(duration=600.0))
    return result.problems


def fine() -> Result:
    result = Result(verified=10_000, rounds=3)
    result.server_descriptors = [(14, 14)] * 3
    result.client_descriptors = [(8, 7), (10, 7)]
    for pid in (7, 8):
        for time in range(300):
            level = random.Random(f"{pid} {time // 20}").random()
            result.memory["workers"][pid].append((float(time), 20 + level))
        for objects in (100, 250, 180):
            result.holdings["workers"][pid].add(
                {"objects": objects, "blocks": 100_000 + objects, "kinds": {"list": objects}}
            )
    return result


def test_what_is_as_it_should_be_is_no_problem() -> None:
    assert judged(fine()) == []


def test_each_thing_that_is_wrong_is_a_problem() -> None:
    def problems_of(change: str) -> list[str]:
        result = fine()
        match change:
            case "wrong":
                result.wrong = 1
            case "failed":
                result.failed["client: ConnectionLost"] = 2
            case "abuse":
                result.wrong_abuses = 1
            case "socket":
                result.server_descriptors.append((15, 14))
            case "file":
                result.server_descriptors.append((14, 13))
            case "connections":
                result.client_descriptors.append((11, 7))
            case "pipe":
                result.client_descriptors.append((10, 8))
            case "objects":
                result.holdings["workers"][7].objects[-1] += 1000
            case "blocks":
                result.holdings["workers"][7].blocks[-1] += 10_000
            case "memory":
                memory = result.memory["workers"][7]
                memory[:] = [(time, value + time / 6) for time, value in memory]
        return judged(result)

    changes = ("wrong", "failed", "abuse", "socket", "file", "connections", "pipe", "objects")
    for change in (*changes, "blocks", "memory"):
        assert len(problems_of(change)) == 1, change


# Statistics ------------------------------------------------------------------------


def test_the_rule_of_three_is_nearly_exact() -> None:
    for replies in (100, 10_000, 10_000_000):
        assert at_most(replies) == pytest.approx(3 / replies, rel=0.03)
        assert (1 - at_most(replies)) ** replies == pytest.approx(0.05)
    assert at_most(0) == 1.0


def wandering(seed: int, growth: float, stay: float) -> list[tuple[float, float]]:
    """Samples of a minute each, of which what is random stays in part from one to the next."""
    dice, level, samples = random.Random(seed), 0.0, []
    for minute in range(120):
        level = stay * level + dice.gauss(0, 0.1)
        samples.append((60.0 * minute, 50 + growth * minute / 60 + level))
    return samples


@pytest.mark.parametrize("stay", [0.0, 0.6])
def test_the_interval_has_the_true_slope_nearly_as_often_as_it_says(stay: float) -> None:
    within = 0
    for seed in range(200):
        rate = slope([wandering(seed, 0.3, stay), wandering(seed + 1000, 0.3, stay)])
        within += rate.low <= 0.3 <= rate.high
        assert rate.seconds == 2 * 119 * 60 > JUDGED
    assert within / 200 > 0.91


def test_levels_of_their_own_are_no_slope() -> None:
    low = [(float(time), 10.0 + time % 2) for time in range(100)]
    high = [(float(time) + 100, 40.0 + time % 2) for time in range(100)]
    rate = slope([low, high])
    assert rate.low < 0 < rate.high


def test_too_few_samples_say_nothing() -> None:
    assert slope([]) == slope([[(0.0, 1.0), (1.0, 2.0)]]) == UNKNOWN
    assert math.isinf(UNKNOWN.high)
    assert str(UNKNOWN) == "too few samples"

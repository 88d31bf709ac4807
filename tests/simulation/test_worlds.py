"""Some seeds of each world, and that a seed is one run, everywhere.

Ten thousand of each, in some minutes::

    pytest -m slow tests/simulation
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.breaks import forgotten_when_abandoned, kept_after_a_timeout

from loadgen.load import Load
from nbnet.channels import Channels
from nbnet.pollers import READ
from nbnet.states import INTEREST, State
from simulation.__main__ import main
from simulation.kernel import SimulationFailure
from simulation.runs import WORLDS, command, run_seed
from simulation.seeds import KEPT

TESTS = Path(__file__).parents[1]
FEW = {"server": 35, "load": 15, "client": 20, "trio": 10}
MANY = 10_000


def play(world: str, seeds: int, *, first: int = 0) -> None:
    for seed in range(first, first + seeds):
        run_seed(world, seed)


@pytest.mark.parametrize("world", WORLDS)
def test_some_seeds_keep_all_promises(world: str) -> None:
    play(world, FEW[world])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("world", WORLDS)
def test_ten_thousand_seeds_keep_all_promises(world: str) -> None:
    play(world, MANY)


@pytest.mark.parametrize("kept", KEPT, ids=lambda kept: f"{kept.world}-{kept.seed}")
def test_what_was_found_once_stays_away(kept: tuple[str, int, str]) -> None:
    run_seed(kept[0], kept[1])


PRINT_DIGESTS = """
from simulation.runs import WORLDS, run_seed
print([[run_seed(world, seed).digest for seed in range(3)] for world in WORLDS])
"""


def test_a_seed_is_the_same_run_in_another_process() -> None:
    there = subprocess.run(
        [sys.executable, "-c", PRINT_DIGESTS],
        env={**os.environ, "PYTHONPATH": str(TESTS), "PYTHONHASHSEED": "1"},
        stdout=subprocess.PIPE,
        check=True,
        timeout=50,
    ).stdout
    here = [[run_seed(world, seed).digest for seed in range(3)] for world in WORLDS]
    assert there == f"{here}\n".encode()
    assert len({digest for world in here for digest in world}) == 3 * len(WORLDS)


# Whether the worlds have teeth: what is broken on purpose is found ----------------


def _writes_are_not_awaited(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(INTEREST, State.WRITING, READ)


def _a_rest_is_not_awaited(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Load, "_watch", lambda _self, _connection, _mask: None)


@pytest.mark.parametrize(
    ("world", "first", "breaks", "message"),
    [
        ("server", 0, _writes_are_not_awaited, "WRITING, is watched for 0x1 only"),
        ("load", 0, _a_rest_is_not_awaited, "is watched for 0x1, and waits for 0x5"),
        ("client", 0, kept_after_a_timeout, "the reply to .* is "),
        ("trio", 30, forgotten_when_abandoned, "the reply to .* is "),  # to save time
    ],
)
def test_what_is_broken_on_purpose_is_found(
    monkeypatch: pytest.MonkeyPatch,
    world: str,
    first: int,
    breaks: Callable[[pytest.MonkeyPatch], None],
    message: str,
) -> None:
    breaks(monkeypatch)
    with pytest.raises(SimulationFailure, match=message):
        play(world, 60, first=first)


# By command -------------------------------------------------------------------------


def test_the_command_tells_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--world", "server", "--first", "3", "--seeds", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("server: 2 seeds, 0 failed; ")
    assert " events/s; " in out


def test_a_failing_seed_is_told_with_the_command_that_shows_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Channels, "_flush", lambda _self, _channel: None)
    with pytest.raises(SimulationFailure, match="seed 7: "):
        run_seed("server", 7)
    shown = command("server", 7)
    assert main(["--first", "7", "--seeds", "1"]) == 1
    assert shown in capsys.readouterr().out
    # Carried out as it stands, it shows the steps.
    assert main(shown.split("simulation ")[1].split()) == 1
    assert "server: polls" in capsys.readouterr().out

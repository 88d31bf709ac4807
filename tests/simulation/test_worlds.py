"""Some seeds of each world, and that a seed is one run, everywhere.

Ten thousand of each, in some minutes::

    pytest -m slow tests/simulation
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nbnet.channels import Channels
from simulation.__main__ import main
from simulation.kernel import SimulationFailure
from simulation.runs import WORLDS, command, run_seed
from simulation.seeds import KEPT

TESTS = Path(__file__).parents[1]
FEW = {"server": 50, "load": 25, "client": 25, "trio": 15}
MANY = 10_000


@pytest.mark.parametrize("world", WORLDS)
def test_some_seeds_keep_all_promises(world: str) -> None:
    for seed in range(FEW[world]):
        run_seed(world, seed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("world", WORLDS)
def test_ten_thousand_seeds_keep_all_promises(world: str) -> None:
    for seed in range(MANY):
        run_seed(world, seed)


@pytest.mark.parametrize("kept", KEPT, ids=lambda kept: f"{kept.world}-{kept.seed}")
def test_what_was_found_once_stays_away(kept: tuple[str, int, str]) -> None:
    run_seed(kept[0], kept[1])


PRINT_DIGESTS = """
from simulation.runs import WORLDS, run_seed
print([[run_seed(world, seed).digest for seed in range(4)] for world in WORLDS])
"""


def test_a_seed_is_the_same_run_in_another_process() -> None:
    there = subprocess.run(
        [sys.executable, "-c", PRINT_DIGESTS],
        env={**os.environ, "PYTHONPATH": str(TESTS), "PYTHONHASHSEED": "1"},
        stdout=subprocess.PIPE,
        check=True,
        timeout=50,
    ).stdout
    here = [[run_seed(world, seed).digest for seed in range(4)] for world in WORLDS]
    assert there == f"{here}\n".encode()
    assert len({digest for world in here for digest in world}) == 4 * len(WORLDS)


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

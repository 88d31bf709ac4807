"""Each call of a scene fails once, with what its man page lists; and two of them.

By default every second call fails with one of its errors (of the load engine every
twelfth), and some pairs do. All errors, and all pairs of the server, in some minutes::

    pytest -m slow tests/simulation/test_torture.py
"""

from __future__ import annotations

import errno
from typing import Final

import pytest

from nbnet import acceptor
from simulation.kernel import SimulationFailure
from simulation.torture import (
    FATAL,
    SURVIVED,
    VARIANTS,
    interrupt_at,
    pairs,
    singles,
    stop_at,
    torture,
)

PLAYED = [(world, scene) for world in ("server", "load") for scene in range(VARIANTS)]
EVERY: Final = {"server": 2, "load": 12}
SOME_PAIRS: Final = 4
MANY_PAIRS: Final = {"server": None, "load": 2000}
"""None is all of them: of the engine that would be tens of thousands."""


@pytest.mark.parametrize(("world", "scene"), PLAYED)
def test_any_call_may_fail(world: str, scene: int) -> None:
    every = EVERY[world]  # the first two scenes differ in the trigger alone
    for script in list(singles(world, scene, all_errors=False))[scene % every :: every]:
        torture(world, scene, script)


@pytest.mark.parametrize(("world", "scene"), PLAYED)
def test_any_two_calls_may_fail(world: str, scene: int) -> None:
    for script in pairs(world, scene, sample=SOME_PAIRS):
        torture(world, scene, script)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("world", "scene"), PLAYED)
def test_any_call_may_fail_with_any_error(world: str, scene: int) -> None:
    for script in singles(world, scene):
        torture(world, scene, script)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("world", "scene"), PLAYED)
def test_many_pairs_of_calls_may_fail(world: str, scene: int) -> None:
    for script in pairs(world, scene, sample=MANY_PAIRS[world]):
        torture(world, scene, script)


@pytest.mark.parametrize(("world", "scene"), PLAYED)
def test_a_signal_may_come_at_some_calls(world: str, scene: int) -> None:
    for number in range(1 + scene, 400, 40):
        stop_at(world, scene, number, times=1 + number % 2)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(("world", "scene"), PLAYED)
def test_a_signal_may_come_at_any_call(world: str, scene: int, times: int) -> None:
    number = 1
    while stop_at(world, scene, number, times=times):
        number += 1
    assert number > 50


@pytest.mark.parametrize("scene", range(VARIANTS))
def test_ctrl_c_in_a_handler_ends_the_server_and_leaves_nothing(scene: int) -> None:
    number = 1
    while interrupt_at(scene, number):
        number += 1
    assert number > 10


@pytest.mark.parametrize("world", ["server", "load"])
def test_each_kind_of_call_that_may_fail_is_made_in_some_scene(world: str) -> None:
    made = {kind for scene in range(VARIANTS) for kind in +torture(world, scene, {})}
    assert made - {"close", "unregister"} - set(FATAL[world]) == set(SURVIVED[world]) - {"accept"}


def test_an_error_that_ends_a_server_that_should_go_on_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(acceptor, "_OUT_OF_RESOURCES", frozenset())
    with pytest.raises(SimulationFailure, match="server scene 0, accept 2: EMFILE: "):
        torture("server", 0, {("accept", 2): errno.EMFILE})


def test_a_connection_that_is_left_open_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(self: acceptor.Acceptor, _socket: object, peer: str, error: Exception) -> None:
        self.released(peer)
        self._run_out(str(error))

    monkeypatch.setattr(acceptor.Acceptor, "reject", forget)
    with pytest.raises(SimulationFailure, match=r"register 3: ENOMEM: .* open"):
        torture("server", 0, {("register", 3): errno.ENOMEM})

"""Playing seeds: one, or many with their figures.

``run_seed("server", 17)`` plays one and raises ``SimulationFailure`` where a
promise is broken; whatever else a loop raises that it should not is one as well.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from simulation.kernel import Ended, SimulationFailure
from simulation.outcome import Outcome

WORLDS: Final = ("server", "load", "client", "trio")
"""The worlds by name; each is a module ``NAME_world`` with a function ``run``."""


def run_seed(world: str, seed: int, trace: Callable[[str], None] | None = None) -> Outcome:
    """Play one seed of a world.

    Args:
        world: one of ``WORLDS``.
        seed: which run.
        trace: takes a line for each step.

    Raises:
        SimulationFailure: a promise was broken; the message says which, when, and
            how to see it again.
    """
    run = importlib.import_module(f"simulation.{world}_world").run
    with _quiet():
        try:
            outcome: Outcome = run(seed, trace)
        except (Exception, Ended) as error:
            reason = error
            # What a loop raised while it was torn down is not why.
            while not isinstance(reason, SimulationFailure) and reason.__context__ is not None:
                reason = reason.__context__  # type: ignore[assignment]
            what = str(reason) if isinstance(reason, SimulationFailure) else f"raised {error!r}"
            raise SimulationFailure(f"seed {seed}: {what}\n  {command(world, seed)}") from error
    return outcome


def command(world: str, seed: int) -> str:
    """What shows the same run again, step by step."""
    return (
        f"PYTHONPATH=tests .venv/bin/python -m simulation --world {world} "
        f"--first {seed} --seeds 1 --trace"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """The loops log what peers do wrong, which here is all the time."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)

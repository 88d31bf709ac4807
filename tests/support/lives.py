"""State machines of Hypothesis: some lives of each by default, many by ``-m slow``."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

lives = pytest.mark.parametrize(
    "count",
    [50, pytest.param(2000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])],
)


def live(machine: type[RuleBasedStateMachine], count: int) -> None:
    """Let so many of them live."""
    run_state_machine_as_test(
        machine, settings=settings(machine.TestCase.settings, max_examples=count)
    )

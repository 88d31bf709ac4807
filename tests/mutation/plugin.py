"""For pytest: Hypothesis takes the same examples for each mutant, and makes none smaller."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import Phase


@pytest.hookimpl(trylast=True)
def pytest_configure() -> None:
    hypothesis.settings.register_profile(
        "mutation",
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
    )
    hypothesis.settings.load_profile("mutation")

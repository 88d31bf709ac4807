"""For pytest, of each mutant: what makes that every mutant meets the same tests."""

from __future__ import annotations

import sys

import hypothesis
import pytest
from hypothesis import Phase


@pytest.hookimpl(trylast=True)
def pytest_configure() -> None:
    # The same examples for each mutant; none is kept, and none made smaller, which takes long.
    hypothesis.settings.register_profile(
        "mutation",
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
    )
    hypothesis.settings.load_profile("mutation")
    # A mutant is played in a fork of the process that has run the tests without it: what was
    # computed there by the code as it should be, is to be computed again.
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("nbnet", "nbclient"):
            for value in list(vars(module).values()):
                if hasattr(value, "cache_clear"):
                    value.cache_clear()

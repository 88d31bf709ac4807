"""For all tests: ``async def test_*`` runs under trio, by trio's own test tools."""

from __future__ import annotations

import inspect

import pytest
from trio.testing import MockClock, trio_test


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.obj = trio_test(item.obj)


@pytest.fixture
def autojump_clock() -> MockClock:
    """A clock for ``trio_test`` that jumps to the next deadline when all tasks wait."""
    return MockClock(autojump_threshold=0)

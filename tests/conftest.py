"""What all tests share: a server, a port that refuses, and ``async def test_*`` under trio."""

from __future__ import annotations

import inspect
import os
import signal
import socket
import sys
from collections.abc import Iterator

import hypothesis
import pytest
from trio.testing import MockClock, trio_test

from nbnet import Server
from nbnet.notation import Target

# Tests start processes by the hundred: these are not to compile everything each time,
# nor is pytest, whose rewriting of the tests' assertions takes longer still.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# It would hide what becomes of a buffer that cannot be written.
os.environ.pop("PYTHONUNBUFFERED", None)

# How long an example takes says more of the machine, and of a tracer, than of the code.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

# A shell has its background jobs ignore Ctrl-C, and their children inherit that; those
# that are tested must not.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.obj = trio_test(item.obj)


@pytest.fixture
def address() -> Iterator[Target]:
    """Where a server that reverses payloads listens."""
    with Server(port=0) as server:
        yield server.address


@pytest.fixture
def refusing() -> Iterator[Target]:
    """An address that is taken, so that nobody else listens there, and refuses."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield Target(*bound.getsockname())


@pytest.fixture
def autojump_clock() -> MockClock:
    """A clock for ``trio_test`` that jumps to the next deadline when all tasks wait."""
    return MockClock(autojump_threshold=0)

"""The process of the abusers, which leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from loadgen import children
from loadgen.chaos_process import StormError, abuser_process
from loadgen.chaos_storm import Storm
from loadgen.traffic import messages
from nbnet.machine import SocketAddress
from nbnet.notation import Target

from .command import PATIENCE
from .processes import children_of, is_gone


def idlers(address: Target) -> Storm:
    """Two that say nothing for a while, and ask then."""
    return Storm(
        address=SocketAddress(socket.AF_INET, tuple(address)),
        messages=messages([b"abc"], "reverse"),
        largest=None,
        abuses=("idle",),
        abusers=2,
        seconds=0.2,
        patience=5.0,
    )


NOWHERE = idlers(Target("127.0.0.1", 1))


def test_the_process_says_what_became_of_the_abusers_and_is_gone(address: Target) -> None:
    with abuser_process(idlers(address)) as abusers:
        child = children_of(os.getpid())["loadgen.chaos_process"]
        abusers.begin()
        [outcome] = abusers.outcomes()
        assert abusers._child.wait(PATIENCE) == 0, "it ends by itself"
    assert (outcome.name, outcome.begun, outcome.right) == ("idle", 2, 2)
    assert is_gone(child)


def test_a_process_that_was_not_let_loose_has_done_nothing() -> None:
    with abuser_process(NOWHERE) as abusers:
        abusers.stop()
        [outcome] = abusers.outcomes()
        assert abusers._child.wait(PATIENCE) == 0
    assert outcome.begun == 0


def test_a_process_that_dies_is_noticed() -> None:
    with abuser_process(NOWHERE) as abusers:
        os.kill(children_of(os.getpid())["loadgen.chaos_process"], signal.SIGKILL)
        with pytest.raises(StormError, match="the abusers' process failed"):
            abusers.outcomes()


def test_a_process_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ends_at_once = [sys.executable, "-c", ""]
    monkeypatch.setattr(
        children,
        "start",
        lambda _: subprocess.Popen(ends_at_once, stdin=subprocess.PIPE, stdout=subprocess.PIPE),
    )
    with pytest.raises(StormError, match="did not start"), abuser_process(NOWHERE):
        raise AssertionError

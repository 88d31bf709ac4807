"""The agent's side of the process that runs the engines; the rest is in test_cluster_dask.py."""

from __future__ import annotations

import os
import time

import pytest

from loadgen.agent import LEASE, _Agent, _messages
from loadgen.share import LENGTH


def test_messages_are_passed_on_however_the_pipe_cuts_them() -> None:
    whole = [LENGTH.pack(len(body)) + body for body in (b"first", b"", b"third")]
    stream = b"".join(whole)
    for cut in range(1, len(stream)):
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb", buffering=0) as output:
            os.write(writing, stream[:cut])
            asked_at = float("inf")  # somebody is always there
            messages = _messages(_Agent("a run", b"", asked_at), output)
            got = []
            if cut >= len(whole[0]):
                got.append(next(messages))
            os.write(writing, stream[cut:])
            os.close(writing)
            got += messages
        assert [each for each in got if each[1] is not None] == [
            (0, b"first"),
            (1, b""),
            (2, b"third"),
        ]


def test_half_a_message_is_waited_for() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as output:
        os.write(writing, LENGTH.pack(4) + b"ab")
        messages = _messages(_Agent("a run", b"", float("inf")), output)
        assert next(messages) == (0, None), "a beat, for want of a whole message"
        os.write(writing, b"cd")
        os.close(writing)
        assert list(messages) == [(0, b"abcd")]


class Child:
    """The process, as far as it is killed."""

    killed = False

    def kill(self) -> None:
        self.killed = True


@pytest.mark.parametrize(
    ("leases", "stopping", "killed"), [(0.5, False, False), (1.5, True, False), (2.5, False, True)]
)
def test_an_agent_that_nobody_asks_stops_its_process_and_then_kills_it(
    leases: float, stopping: bool, killed: bool
) -> None:
    reading, writing = os.pipe()
    child = Child()
    with os.fdopen(reading, "rb", buffering=0) as output:
        agent = _Agent("a run", b"", time.monotonic() - leases * LEASE)
        agent.child = child if killed else None  # type: ignore[assignment]
        os.write(writing, LENGTH.pack(1) + b"x")
        messages = _messages(agent, output)
        assert next(messages) == (0, b"x")
        os.close(writing)
        assert [each for each in messages if each[1] is not None] == []
    assert (agent.stopping, child.killed) == (stopping, killed)

"""The agent's side of the process that runs the engines; the rest is in test_cluster_dask.py."""

from __future__ import annotations

import os

from loadgen.agent import _Agent, _messages
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

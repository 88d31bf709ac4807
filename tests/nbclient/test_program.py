"""A user's program that uses every public name: it runs, and passes mypy's strict mode.

The checker sees this file with the project's other ones; ``assert_type`` is its
assertion. The last tests hold the program, and the documentation, to the list.
"""

from __future__ import annotations

import inspect
import re
import ssl
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import assert_type

import pytest

import nbclient
from nbclient import (
    AsyncClient,
    Client,
    ClosedError,
    ConnectError,
    ConnectionLost,
    ConnectTimeout,
    Event,
    LocalProtocolError,
    NbclientError,
    PoolTimeout,
    ProtocolError,
    RemoteProtocolError,
    RequestTimeout,
)
from nbnet.notation import Target


def explain(error: NbclientError) -> str:
    """What a program may do with an error."""
    assert_type(error.peer, str)
    assert_type(error.maybe_executed, bool)
    if isinstance(error, ConnectError):
        return "; ".join(f"{name}: {reason}" for name, reason in error.reasons.items())
    if isinstance(error, ConnectTimeout | PoolTimeout):
        return "busy"
    if isinstance(error, RequestTimeout):
        return "slow"
    if isinstance(error, LocalProtocolError):
        return "mine"
    if isinstance(error, RemoteProtocolError):
        return "theirs"
    if isinstance(error, ProtocolError | ConnectionLost | ClosedError):
        return "gone"
    return str(error)


def test_blocking(address: Target, refusing: Target) -> None:
    events: list[Event] = []
    with Client(
        [address, str(address)],
        timeout=5.0,
        connect_timeout=1.0,
        max_connections=2,
        retries=1,
        backoff=0.01,
        backoff_cap=0.1,
        tls=None,
        on_event=events.append,
    ) as client:
        assert_type(client, Client)
        assert assert_type(client.request(b"abc", idempotent=True, timeout=None), bytes) == b"cba"
        replies = client.request_many([b"ab", b"cd"], window=10)
        assert_type(replies, Generator[bytes, None, None])
        assert list(replies) == [b"ba", b"dc"]
        with pytest.raises(LocalProtocolError) as caught:
            client.request(b"")
        assert explain(caught.value) == "mine"
    kinds = Counter(event.kind for event in events)
    assert kinds == {"connect": 1, "request": 3, "reply": 3, "close": 1}
    with Client(refusing, retries=0) as client, pytest.raises(NbclientError) as failed:
        client.request(b"abc")
    assert explain(failed.value) == f"{refusing}: Connection refused"


async def test_trio(address: Target) -> None:
    context: ssl.SSLContext | bool = False
    async with AsyncClient(address, tls=context, max_connections=1) as client:
        assert_type(client, AsyncClient)
        assert assert_type(await client.request(b"abc"), bytes) == b"cba"
        replies = client.request_many([b"ab", b"cd"])
        assert_type(replies, AsyncGenerator[bytes, None])
        assert [reply async for reply in replies] == [b"ba", b"dc"]
    with pytest.raises(ClosedError) as caught:
        await client.request(b"abc")
    assert explain(caught.value) == "gone"


def test_every_public_name_is_used_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8").partition("from nbnet.notation")[2]
    assert [name for name in nbclient.__all__ if not re.search(rf"\b{name}\b", source)] == []


@pytest.mark.parametrize("name", nbclient.__all__)
def test_every_public_name_is_documented_with_an_example(name: str) -> None:
    public = getattr(nbclient, name)
    assert ">>>" in (inspect.getdoc(public) or "")
    for method, function in inspect.getmembers(public, inspect.isfunction):
        if method in {"request", "request_many", "close", "aclose"}:
            text = inspect.getdoc(function) or ""
            assert ">>>" in text
            assert "Raises:" in text or method in {"close", "aclose"}

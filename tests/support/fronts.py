"""Both fronts of the client as one, so that a case is written once.

A case is an async function; the blocking client is wrapped to look like the
other. Servers run in threads or processes, so it may block.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from typing import Any, Protocol

from nbclient import Client
from nbclient.settings import Default


class Front(Protocol):
    """What a case may use."""

    async def request(
        self,
        payload: bytes,
        *,
        idempotent: bool = False,
        timeout: float | Default | None = ...,  # noqa: ASYNC109 (that of the fronts)
    ) -> bytes: ...
    def request_many(
        self, payloads: Iterable[bytes], *, window: int = ...
    ) -> AsyncGenerator[bytes, None]: ...
    async def aclose(self) -> None: ...


class Blocking:
    """A ``Client`` that looks like an ``AsyncClient``."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def request(self, payload: bytes, **options: Any) -> bytes:
        return self.client.request(payload, **options)

    async def request_many(
        self, payloads: Iterable[bytes], **options: Any
    ) -> AsyncGenerator[bytes, None]:
        with contextlib.closing(self.client.request_many(payloads, **options)) as replies:
            for reply in replies:
                yield reply

    async def aclose(self) -> None:
        self.client.close()


Open = Callable[..., contextlib.AbstractAsyncContextManager[Front]]


@contextlib.asynccontextmanager
async def open_blocking(*args: Any, **kwargs: Any) -> AsyncIterator[Front]:
    with Client(*args, **kwargs) as client:
        yield Blocking(client)

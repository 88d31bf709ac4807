"""nbclient: the client for servers that speak length-prefixed messages.

>>> from nbclient import Client
>>> from nbnet import Server
>>> with Server(port=0) as server, Client(server.address) as client:
...     client.request(b"abc")
b'cba'

``AsyncClient`` is the same for trio, which is imported when it is asked for
and not before.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nbclient.errors import (
    ClosedError,
    ConnectError,
    ConnectionLost,
    ConnectTimeout,
    LocalProtocolError,
    NbclientError,
    PoolTimeout,
    ProtocolError,
    RemoteProtocolError,
    RequestTimeout,
)
from nbclient.events import Event
from nbclient.sync import Client

__all__ = [
    "AsyncClient",
    "Client",
    "ClosedError",
    "ConnectError",
    "ConnectTimeout",
    "ConnectionLost",
    "Event",
    "LocalProtocolError",
    "NbclientError",
    "PoolTimeout",
    "ProtocolError",
    "RemoteProtocolError",
    "RequestTimeout",
]

if TYPE_CHECKING:
    from nbclient.trio import AsyncClient
else:

    def __getattr__(name: str) -> Any:
        if name == "AsyncClient":
            return importlib.import_module("nbclient.trio").AsyncClient
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

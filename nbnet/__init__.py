"""nbnet: an epoll server for length-prefixed messages over TCP.

>>> from nbnet import Server
>>> with Server(lambda payload: payload[::-1], port=0) as server:
...     host, port = server.address
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nbnet.framing import MAX_PAYLOAD, FrameDecoder, FrameError, encode_frame
from nbnet.limits import Limits

__version__ = "0.1.0"

__all__ = [
    "MAX_PAYLOAD",
    "Certificate",
    "Context",
    "FrameDecoder",
    "FrameError",
    "Limits",
    "Server",
    "__version__",
    "encode_frame",
    "serve",
]

if TYPE_CHECKING:
    from nbnet.handlers import Context
    from nbnet.server import Server, serve
    from nbnet.settings import Certificate
else:
    # Clients import this package for its frames, and are not to pay for a server.
    _LATE = {
        "Certificate": "nbnet.settings",
        "Context": "nbnet.handlers",
        "Server": "nbnet.server",
        "serve": "nbnet.server",
    }

    def __getattr__(name: str) -> Any:
        if name not in _LATE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_LATE[name]), name)

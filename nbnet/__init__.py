"""nbnet: an epoll server for length-prefixed messages over TCP.

>>> from nbnet import Server
>>> with Server(lambda payload: payload[::-1], port=0) as server:
...     host, port = server.address
"""

from nbnet.framing import MAX_PAYLOAD, FrameDecoder, FrameError, encode_frame
from nbnet.limits import Limits
from nbnet.server import Server, serve

__version__ = "0.1.0"

__all__ = [
    "MAX_PAYLOAD",
    "FrameDecoder",
    "FrameError",
    "Limits",
    "Server",
    "__version__",
    "encode_frame",
    "serve",
]

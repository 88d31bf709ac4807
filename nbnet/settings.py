"""What a server was told but for its addresses, validated.

Making ``Settings`` reads what they name: a handler is imported, certificates
are loaded. A reload makes new ones, in a new process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from nbnet.handlers import Handler, load_handler
from nbnet.limits import Limits
from nbnet.pollers import POLLERS
from nbnet.proxy import Trusted

if TYPE_CHECKING:
    import ssl

MOST_THREADS: Final = 1024


@dataclass(frozen=True, slots=True)
class Certificate:
    """Files for TLS, in PEM format.

    Attributes:
        cert: the server's certificate and those that lead to its authority.
        key: its private key; None if it stands in ``cert``.
        client_ca: authorities whose certificates clients must show; None asks
            for none.

    >>> Certificate("server.pem").key is None
    True
    """

    cert: str | Path
    key: str | Path | None = None
    client_ca: str | Path | None = None

    def context(self) -> ssl.SSLContext:
        """What these files come to.

        Raises:
            ValueError: a file cannot be used; the text names it.
        """
        from nbnet.tls import server_context  # who speaks no TLS need not load it

        return server_context(self.cert, self.key, self.client_ca)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a loop is made of besides its sockets.

    Attributes:
        handler: what answers a request.
        limits: the bounds to keep.
        poller: the poller's name.
        edge: whether events come edge-triggered.
        threads: how many run the handler; 0: it runs in the loop.
        tls: how to speak TLS; None: not at all.
        proxies: who has to say, with the PROXY protocol, for whom it speaks.
    """

    handler: Handler
    limits: Limits
    poller: str
    edge: bool
    threads: int
    tls: ssl.SSLContext | None
    proxies: Trusted

    @classmethod
    def read(
        cls,
        handler: Handler | str,
        limits: Limits | None = None,
        *,
        poller: str = "epoll",
        trigger: str = "level",
        threads: int = 0,
        tls: Certificate | ssl.SSLContext | None = None,
        proxy_protocol: Sequence[str] = (),
    ) -> Self:
        """Check what was told and load what it names.

        Args:
            handler: the function, or its name as ``module:function``.
            limits: the bounds to keep.
            poller, trigger, threads, tls, proxy_protocol: see ``Server``.

        Raises:
            TypeError: the handler is no function, or the networks no list.
            ValueError: something makes no sense or cannot be loaded.

        >>> Settings.read("nbnet.handlers:reverse").handler(b"abc")
        b'cba'
        """
        if poller not in POLLERS:
            raise ValueError(f"{poller!r} is no poller: expected one of {', '.join(POLLERS)}")
        if trigger not in ("level", "edge"):
            raise ValueError(f"{trigger!r} is no trigger: expected level or edge")
        if trigger == "edge" and poller != "epoll":
            raise ValueError(f"edge-triggered events need epoll, not {poller}")
        if trigger == "edge" and tls is not None:
            # A record that OpenSSL has read hides how much the kernel still has.
            raise ValueError("edge-triggered events do not go with TLS")
        if not 0 <= threads <= MOST_THREADS:
            raise ValueError(f"{threads} threads, expected 0 to {MOST_THREADS}")
        if isinstance(tls, Certificate):
            tls = tls.context()
        elif tls is not None:
            from nbnet.tls import prepare

            prepare(tls)
        if isinstance(handler, str):
            handler = load_handler(handler)
        elif not callable(handler):
            raise TypeError(f"a handler is a function of the payload, not {handler!r}")
        if isinstance(proxy_protocol, str):
            raise TypeError(f"proxy_protocol is a list of networks, not {proxy_protocol!r}")
        return cls(
            handler,
            limits or Limits(),
            poller,
            trigger == "edge",
            threads,
            tls,
            Trusted(proxy_protocol),
        )

"""What can go wrong with a request, as exceptions.

::

    NbclientError
     +-- ConnectError              no connection could be made, to none of the servers
     +-- RequestTimeout            the time for a request is over (also a TimeoutError)
     |    +-- ConnectTimeout       ... while connecting: nothing was sent
     |    +-- PoolTimeout          ... while waiting for a connection: nothing was sent
     +-- ProtocolError
     |    +-- LocalProtocolError   the caller's payload cannot be sent (also a ValueError)
     |    +-- RemoteProtocolError  the server sent what is no reply, or a reply too many
     +-- ConnectionLost            the connection ended before the reply was whole
     +-- ClosedError               the client was closed before or during the request

Rules kept here:

* whatever the network or the server does is an ``NbclientError``, with the
  error of the operating system, if there was one, as its ``__cause__``;
* a payload that is no bytes is a ``TypeError``: a mistake in the program;
* each says which peer it was, what the request was at, and whether the server
  may have executed it: that is what decides whether it may be repeated;
* an exception can be pickled, attributes and all, to cross processes.
"""

from __future__ import annotations

from typing import Literal, Self, TypeAlias

Stage: TypeAlias = Literal["", "connecting", "waiting for a connection", "sending", "receiving"]
"""What a request was at when it failed."""


class NbclientError(Exception):
    """A request failed; the base of all that is raised for it.

    Attributes:
        peer: the server, as a target is written; empty if none was chosen yet.
        stage: what the request was at; empty if it had not begun.
        maybe_executed: whether any byte of the request may have reached the
            server. If not, repeating it is safe.

    >>> error = ConnectionLost("lost it", peer="127.0.0.1:6789", maybe_executed=True)
    >>> error.peer, error.stage, error.maybe_executed
    ('127.0.0.1:6789', '', True)
    """

    # Exceptions are pickled as their arguments and their attributes; the latter
    # must be optional, as a copy is made from the arguments first.
    def __init__(
        self, message: str = "", *, peer: str = "", stage: Stage = "", maybe_executed: bool = False
    ) -> None:
        super().__init__(message)
        self.peer = peer
        self.stage: Stage = stage
        self.maybe_executed = maybe_executed

    def __copy__(self) -> Self:
        # Not left to pickle's table: with tblib, which Dask installs, copies of an
        # exception share their attributes with it.
        made = type(self).__new__(type(self))
        made.args = self.args
        made.__dict__.update(self.__dict__)
        return made


class ConnectError(NbclientError):
    """No connection could be made: nobody listens, no route, no such host.

    Attributes:
        reasons: for each server that was tried, by its address, what was wrong.

    >>> ConnectError("cannot connect", reasons={"10.0.0.1:6789": "No route to host"}).reasons
    {'10.0.0.1:6789': 'No route to host'}
    """

    def __init__(
        self,
        message: str = "",
        *,
        peer: str = "",
        stage: Stage = "connecting",
        maybe_executed: bool = False,
        reasons: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message, peer=peer, stage=stage, maybe_executed=maybe_executed)
        self.reasons = reasons or {}


class RequestTimeout(NbclientError, TimeoutError):  # noqa: N818  (reads as what happened)
    """The reply did not come in time.

    >>> isinstance(RequestTimeout("no reply within 5 s"), TimeoutError)
    True
    """


class ConnectTimeout(RequestTimeout):
    """Connecting took too long; nothing was sent.

    >>> issubclass(ConnectTimeout, RequestTimeout)
    True
    """


class PoolTimeout(RequestTimeout):
    """All connections were in use for too long; nothing was sent.

    >>> issubclass(PoolTimeout, RequestTimeout)
    True
    """


class ProtocolError(NbclientError):
    """One of the two ends does not keep to the protocol.

    >>> issubclass(RemoteProtocolError, ProtocolError)
    True
    """


class LocalProtocolError(ProtocolError, ValueError):
    """The payload cannot be sent: it is empty or has more than 99,999 bytes.

    >>> isinstance(LocalProtocolError("a request cannot be empty"), ValueError)
    True
    """


class RemoteProtocolError(ProtocolError):
    """The server sent bytes that are no reply, or a reply that nobody asked for.

    >>> RemoteProtocolError("a reply too many", peer="127.0.0.1:6789").peer
    '127.0.0.1:6789'
    """


class ConnectionLost(NbclientError):  # noqa: N818  (as above)
    """The connection ended before the reply was whole.

    >>> ConnectionLost("lost it", maybe_executed=True).maybe_executed
    True
    """


class ClosedError(NbclientError):
    """The client was closed before or during the request.

    >>> ClosedError("the client is closed").maybe_executed
    False
    """

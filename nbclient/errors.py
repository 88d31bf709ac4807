"""What can go wrong with a request, as exceptions.

::

    NbclientError
     +-- ConnectError        no connection could be made
     +-- RequestTimeout      the time for a request is over (also a TimeoutError)
     +-- ProtocolError       the server sent what is no reply, or a reply too many
     +-- ConnectionLost      the connection ended before the reply was whole
     +-- ClosedError         the client was used after it was closed

Rules kept here:

* whatever the network or the server does is an ``NbclientError``, with the
  error of the operating system, if there was one, as its ``__cause__``;
* a payload that cannot be sent is a ``ValueError`` or ``TypeError``: the
  caller is wrong, not the world;
* an exception has a message and nothing else, so that it can be pickled.
"""

from __future__ import annotations


class NbclientError(Exception):
    """A request failed; the base of all that is raised for it."""


class ConnectError(NbclientError):
    """No connection could be made: nobody listens, no route, no such host."""


class RequestTimeout(NbclientError, TimeoutError):  # noqa: N818  (reads as what happened)
    """The reply did not come in time; whether the server acted is unknown."""


class ProtocolError(NbclientError):
    """The server sent bytes that are no reply, or a reply that nobody asked for."""


class ConnectionLost(NbclientError):  # noqa: N818  (as above)
    """The connection ended before the reply was whole; whether the server acted is unknown."""


class ClosedError(NbclientError):
    """The client was closed before or during the request."""

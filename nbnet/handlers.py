"""What a server answers: handlers, and finding one by name.

A handler is a callable that takes the payload of a request and returns the
payload of its reply, both ``bytes``; the reply may be empty and has at most
99,999 bytes. It runs in the event loop, where it must not block, or in a thread
of a pool. One that declares a second positional parameter without a default is
given the ``Context`` of its connection there.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias, cast

from nbnet.loading import load_function
from nbnet.notation import Target


@dataclass(frozen=True, slots=True)
class Context:
    """Whose request it is.

    Attributes:
        peer: the peer's host and port, a tuple; "unix socket" for one that came
            through a unix socket. Behind a proxy that says so, the client's.
        tls_name: the name in the peer's certificate; None without one.
    """

    peer: Target | str
    tls_name: str | None = None


Bound: TypeAlias = Callable[[bytes], bytes]
"""A handler as a connection calls it."""
Handler: TypeAlias = Callable[[bytes], bytes] | Callable[[bytes, Context], bytes]
"""A handler as people write it."""

reverse: Final[Bound] = operator.itemgetter(slice(None, None, -1))
"""The text backwards: ``b"abc"`` gives ``b"cba"``. Without an interpreter frame
per call, so that a measurement of the server is not one of its handler."""


def takes_context(handler: Handler) -> bool:
    """Whether a handler declares a second positional parameter, one without a default.

    >>> takes_context(lambda payload: payload)
    False
    >>> takes_context(lambda payload, context: payload)
    True
    """
    try:
        parameters = list(inspect.signature(handler).parameters.values())
    except (TypeError, ValueError):  # some of those written in C tell nothing
        return False
    positional = [
        parameter
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    return len(positional) > 1 and positional[1].default is inspect.Parameter.empty


def bind(handler: Handler, context: Context) -> Bound:
    """A handler that takes a context, for the connection that has it.

    >>> bind(lambda payload, context: str(context.peer).encode(), Context("me"))(b"abc")
    b'me'
    """
    with_context = cast("Callable[[bytes, Context], bytes]", handler)
    return lambda payload: with_context(payload, context)


def load_handler(name: str) -> Handler:
    """Import the handler that ``module:function`` names.

    The current directory is searched first, as ``python -m`` does. Dots after
    the colon reach into classes and objects.

    Raises:
        ValueError: the name has no such form, or what it names cannot be
            imported, or called with a payload; the message says which.

    >>> load_handler("nbnet.handlers:reverse")(b"abc")
    b'cba'
    """
    handler = cast(Handler, load_function(name, "handler"))
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):  # as in takes_context
        return handler
    try:
        signature.bind(*[None] * (1 + takes_context(handler)))
    except TypeError as error:
        raise ValueError(
            f"handler {name!r}: {error}: expected one that takes a payload, or payload and context"
        ) from None
    return handler

"""What a server answers: handlers, and finding one by name.

A handler is a callable that takes the payload of a request and returns the
payload of its reply, both ``bytes``; the reply may be empty and has at most
99,999 bytes. It runs in the event loop, so it must not block.
"""

from __future__ import annotations

import importlib
import operator
import sys
from collections.abc import Callable
from typing import Final, cast

Handler = Callable[[bytes], bytes]

reverse: Final[Handler] = operator.itemgetter(slice(None, None, -1))
"""The text backwards: ``b"abc"`` gives ``b"cba"``. Without an interpreter frame
per call, so that a measurement of the server is not one of its handler."""


def load_handler(name: str) -> Handler:
    """Import the handler that ``module:function`` names.

    The current directory is searched first, as ``python -m`` does. Dots after
    the colon reach into classes and objects.

    Raises:
        ValueError: the name has no such form, or what it names cannot be
            imported or called; the message says which.

    >>> load_handler("nbnet.handlers:reverse")(b"abc")
    b'cba'
    """
    module_name, colon, path = name.partition(":")
    if not (module_name and colon and path):
        raise ValueError(f"handler {name!r}: expected module:function, as in mymodule:handle")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        target = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the user's module raises on import
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"handler {name!r}: cannot import {module_name}: {reason}") from error
    for attribute in path.split("."):
        if not hasattr(target, attribute):
            raise ValueError(f"handler {name!r}: {module_name} has no {path}")
        target = getattr(target, attribute)
    if not callable(target):
        raise ValueError(f"handler {name!r}: {path} is not callable")
    return cast(Handler, target)

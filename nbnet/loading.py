"""Finding a function by the name that somebody gave on a command line."""

from __future__ import annotations

import importlib
import inspect
import sys
from typing import Any


def load_function(name: str, what: str) -> Any:
    """Import the function that ``module:function`` names.

    The current directory is searched first, as ``python -m`` does. Dots after
    the colon reach into classes and objects.

    Args:
        what: what the function is used as, for messages.

    Raises:
        ValueError: the name has no such form, or what it names cannot be
            imported or called; the message says which.

    >>> load_function("math:sqrt", "handler")(4.0)
    2.0
    """
    module_name, colon, path = name.partition(":")
    if not (module_name and colon and path):
        raise ValueError(f"{what} {name!r}: expected module:function, as in mymodule:handle")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        target = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the user's module raises on import
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{what} {name!r}: cannot import {module_name}: {reason}") from error
    for attribute in path.split("."):
        if not hasattr(target, attribute):
            raise ValueError(f"{what} {name!r}: {module_name} has no {path}")
        target = getattr(target, attribute)
    if not callable(target):
        raise ValueError(f"{what} {name!r}: {path} is not callable")
    if inspect.iscoroutinefunction(target):
        raise ValueError(f"{what} {name!r}: {path} is async, expected a plain function")
    return target

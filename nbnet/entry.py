"""The console scripts: what stands before the import of a command.

Imports take a moment, in which Ctrl-C may come: it ends a command without a
traceback, as it does later.

Jupyter has a package ``nbclient`` too, and installers let one overwrite the
other without a word. This module is where no such accident reaches the command: it
looks at what Python would import and, if that is not ours and whole, says in one
line what happened and what to do. The rules:

* nothing of the other package is run to find out: importing it may fail, take
  long or do anything;
* an environment that is in order pays for a directory listing, no more.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any, Final

_PACKAGE: Final = "nbclient"
_EXIT_FAILED: Final = 1
_EXIT_INTERRUPTED: Final = 130

# Modules of Jupyter's package. Ours must never have one of these names. (Both
# have ``cli``.)
_THEIRS: Final = frozenset({"client.py", "exceptions.py", "jsonutil.py", "output_widget.py"})

_ADVICE: Final = "install nbnet into an environment of its own (pipx, or python -m venv)"


def nbnet() -> None:
    """Run the command ``nbnet``."""
    _imported("nbnet.cli").main()


def loadgen() -> None:
    """Run the command ``loadgen``."""
    _imported("loadgen.cli").main()


def nbclient() -> None:
    """Run the command ``nbclient``, or say why it cannot be run (exit code 1)."""
    complaint = clash()
    if complaint is None:
        try:
            command = _imported(f"{_PACKAGE}.cli")
        except ImportError as error:
            if (error.name or "").partition(".")[0] != _PACKAGE:
                raise
            complaint = _incomplete(_expected())
        else:
            command.main()
            return
    if sys.stderr is not None:  # it may have been closed by whoever started this
        print(f"{_PACKAGE}: {complaint}", file=sys.stderr)
    sys.exit(_EXIT_FAILED)


def _imported(module: str) -> Any:
    """A module with a command; Ctrl-C meanwhile exits with 130."""
    # Imports point from nbclient and loadgen to nbnet; this is the one way back.
    try:
        return importlib.import_module(module)
    except KeyboardInterrupt:
        sys.exit(_EXIT_INTERRUPTED)


def clash() -> str | None:
    """What is wrong with the package ``nbclient`` that would be imported; None if it is ours.

    >>> clash() is None
    True
    """
    expected = _expected()
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:  # none, or a directory without __init__.py
        return _incomplete(expected)
    places = spec.submodule_search_locations
    found = next(iter(places), expected) if places is not None else spec.origin
    if not _same(found, expected):
        return (
            f"another package named {_PACKAGE}, as Jupyter's is, comes before nbnet's:"
            f" {found}; {_ADVICE}"
        )
    try:
        files = os.listdir(expected)  # noqa: PTH208  (pathlib is one more import)
    except OSError:  # inside an archive, into which no installer writes
        return None
    if _THEIRS.isdisjoint(files):
        return None
    return (
        f"Jupyter's package {_PACKAGE} and nbnet's were installed over each other in"
        f" {expected}; {_ADVICE} and reinstall Jupyter's here"
    )


def _expected() -> str:
    """Where our package is: beside this one."""
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
    return os.path.join(os.path.dirname(here), _PACKAGE)  # noqa: PTH118, PTH120


def _incomplete(expected: str) -> str:
    return (
        f"nbnet's package {_PACKAGE} is not whole in {expected}, as happens when Jupyter's of the"
        f" same name is uninstalled; reinstall nbnet, or better {_ADVICE}"
    )


def _same(one: str, other: str) -> bool:
    if one == other:
        return True
    try:
        return os.path.samefile(one, other)  # noqa: PTH121
    except OSError:
        return False

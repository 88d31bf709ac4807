"""What the three commands have in common: how they fail, and their version.

An error is one line on standard error, ``COMMAND: what, where, what to do``,
and an exit code; never a traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar

import typer

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130

T = TypeVar("T")


class CommandError(Exception):
    """Ends a command with one line on standard error and an exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message, code)
        self.message = message
        self.code = code


def make_app(**settings: Any) -> typer.Typer:
    """A typer application with the manners of these commands."""
    return typer.Typer(
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        **settings,
    )


def run(app: typer.Typer, name: str) -> None:
    """Run a command to its end: the console script."""
    if sys.stderr is None:
        # Closed by whoever started this: what is said there is not to end up in
        # the next file that is opened.
        descriptor = os.open(os.devnull, os.O_WRONLY)
        if descriptor != 2:
            os.dup2(descriptor, 2)
        sys.stderr = os.fdopen(2, "w")
    try:
        app(prog_name=name)
    except CommandError as error:
        print(f"{name}: {error.message}", file=sys.stderr)
        sys.exit(error.code)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except OSError as error:  # what each command expects, it deals with itself
        # What is still buffered would fail again when the interpreter exits.
        sys.stdout = None
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(EXIT_FAILED)


def parsed(option: str, parse: Callable[[str], T], text: str) -> T:
    """The value of an option.

    Raises:
        CommandError: the text does not parse; the line names the option.

    >>> parsed("--count", int, "3")
    3
    """
    try:
        return parse(text)
    except ValueError as error:
        raise CommandError(f"{option}: {error}", EXIT_USAGE) from error


def optional(option: str, parse: Callable[[str], T], text: str | None) -> T | None:
    """The value of an option that may be left out: None then.

    Raises:
        CommandError: as of ``parsed``.

    >>> optional("--count", int, None) is None
    True
    """
    return None if text is None else parsed(option, parse, text)


def version_option(name: str) -> Any:
    """An option ``--version`` that prints the version and ends the command."""

    def show(wanted: bool) -> None:
        if wanted:
            from nbnet import __version__

            print(f"{name} {__version__}")
            raise typer.Exit

    return typer.Option("--version", callback=show, is_eager=True, help="Print the version.")

"""What the three commands have in common: how they fail, and their version.

An error is one line on standard error, ``COMMAND: what, where, what to do``,
and an exit code; never a traceback.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar

import typer

from nbnet import streams

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130

FLAG: Final = ""
"""The metavar of an option without a value; left to itself, typer shows ``<bool>``."""

# All that the parser refuses; typer has a public name for this one kind of it alone.
_UsageError: Any = typer.BadParameter.__base__
_OUT_OF: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
"""What no write to a stream fails with: another call did."""

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
    streams.guard_stderr()
    code, message = _outcome(app, name)
    # The interpreter would try this too, and exit with a code of its own if it fails.
    unwritten = streams.flush(sys.stdout)
    if unwritten is not None and not code:
        code, message = _unwritable(unwritten)
    if message:
        print(f"{name}: {message}", file=sys.stderr)
    sys.exit(code)


def _outcome(app: typer.Typer, name: str) -> tuple[int, str]:
    """Run a command; its exit code, and what is to be said at its end."""
    try:
        return app(prog_name=name, standalone_mode=False) or 0, ""
    except _UsageError as error:
        return EXIT_USAGE, _refusal(error, name)
    except SystemExit as ended:
        code = ended.code
        return (code or 0, "") if isinstance(code, int | None) else (EXIT_FAILED, str(code))
    except CommandError as error:
        return error.code, error.message
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED, ""
    except OSError as error:
        return _unwritable(error)


def _refusal(error: Any, name: str) -> str:
    """What the parser has to say, in one line and with where to look it up."""
    said = error.format_message()
    if not said:  # a command without arguments, of which the help was printed
        return ""
    command = name if error.ctx is None else error.ctx.command_path
    return f"{said[:1].lower()}{said[1:].rstrip('.')} (see {command} --help)"


def _unwritable(error: OSError) -> tuple[int, str]:
    """What a command ends with that could not write to standard output, or is out of resources.

    Other errors of the system each command expects, and deals with itself.
    """
    if isinstance(error, BrokenPipeError):  # the reader has enough, as head has
        return EXIT_FAILED, ""
    if error.filename is not None:
        return EXIT_FAILED, str(error)
    if error.errno in _OUT_OF:
        return EXIT_FAILED, f"out of resources: {error.strerror}"
    return EXIT_FAILED, f"cannot write standard output: {error.strerror or error}"


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

    return typer.Option(
        "--version", metavar=FLAG, callback=show, is_eager=True, help="Print the version."
    )

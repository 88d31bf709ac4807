"""The commands beside the main one: ``loadgen compare``, ``capacity``, ``chaos``.

Each is about loads, and takes the options of the main command beside its own;
``load_of`` reads them. What a command does stands in the module of its name one
level up and knows nothing of command lines: here are options, files and words.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from loadgen.embedded import EmbeddedServerError
from loadgen.plan import Plan, PlanError
from loadgen.report import Run
from loadgen.running import Site
from loadgen.traffic import TrafficError
from loadgen.verdict import EXIT_NO_CONNECTION
from loadgen.workers import WorkerError
from nbnet.command import EXIT_FAILED, EXIT_USAGE, CommandError

TAKES_LOADS: Final[dict[str, Any]] = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Settings of a command that passes on what it does not know to ``load_of``."""


def load_of(arguments: list[str]) -> tuple[Plan, Site]:
    """The load that options of the main command describe, and where it is carried out.

    Raises:
        CommandError, click.UsageError: they describe none.

    >>> plan, site = load_of(["--conns", "100", "--rate", "20k"])
    >>> plan.connections, plan.rate, site.target
    (100, 20000.0, None)
    """
    import typer

    from loadgen.cli import app

    loads: list[tuple[Plan, Site]] = []
    command = typer.main.get_command(app)
    command.main(
        arguments,
        prog_name="loadgen",
        standalone_mode=False,
        obj=lambda plan, site: loads.append((plan, site)),
    )
    if not loads:  # --help or --version was among them, and is answered
        raise typer.Exit
    return loads[0]


def check_here(site: Site, command: str) -> None:
    """Refuse a cluster for a command that is about one machine.

    Raises:
        CommandError: one was named.
    """
    if site.cluster is not None:
        raise CommandError(f"--cluster: {command} runs on one machine", EXIT_USAGE)


def check_outputs(chosen: Mapping[str, str | None]) -> None:
    """Notice before a run that a file could not be written.

    Args:
        chosen: option to path; None where it was not given.

    Raises:
        CommandError: a file cannot be written, or two are the same.
    """
    from loadgen.report import files

    try:
        files.check({option: path for option, path in chosen.items() if path is not None})
    except ValueError as error:
        raise CommandError(str(error), EXIT_USAGE) from error


def as_json(values: Mapping[str, Any]) -> str:
    """A document as text."""
    import json

    return json.dumps(values, indent=2, allow_nan=False) + "\n"


def publish(text: str, *outputs: tuple[str | None, Callable[[], str]]) -> None:
    """Write files and print a summary; a full disk must not cost the latter.

    Args:
        text: for people; on standard error where a file has standard output (``-``).
        outputs: path and what makes the file; None where it was not asked for.

    Raises:
        CommandError: a file could not be written.
    """
    from loadgen.report import files

    unsaved = []
    for path, make in outputs:
        if path is not None:
            try:
                files.write(path, [make()])
            except OSError as error:
                unsaved.append(f"cannot write {files.named(path)}: {error.strerror}")
    taken = any(path == files.STDOUT for path, _ in outputs)
    print(text, file=sys.stderr if taken else sys.stdout, flush=True)
    if unsaved:
        raise CommandError("; ".join(unsaved), EXIT_FAILED)


@contextmanager
def refusals() -> Iterator[None]:
    """Turn what a load can be refused for, and what it can fail by, into a line and a code.

    Raises:
        CommandError: of usage for a load that is none here; else a process has failed.
    """
    try:
        yield
    except (PlanError, TrafficError) as error:
        raise CommandError(str(error), EXIT_USAGE) from error
    except (EmbeddedServerError, WorkerError) as error:
        raise CommandError(str(error), EXIT_FAILED) from error


def check_connected(finished: Run) -> None:
    """Whether there was a connection at all.

    Raises:
        CommandError: there was none; why, and what to do.
    """
    if finished.verdict.exit_code == EXIT_NO_CONNECTION:
        reasons = ", ".join(kind.removeprefix("connect: ") for kind in finished.tally.counts.errors)
        if finished.embedded:
            advice = "the bundled server does not serve any more"
        elif finished.hosts:
            advice = "start a server that all hosts reach with: nbnet serve --host 0.0.0.0"
        elif "certificate" in reasons:
            advice = "--tls-ca: whom to trust; --tls-server-name: the name in the certificate"
        elif finished.target.tls and "refused" not in reasons:
            advice = "does the server speak TLS?"
        else:
            advice = "start a server with: nbnet serve; without --target loadgen brings its own"
        raise CommandError(
            f"cannot connect to {finished.target}: {reasons} ({advice})",
            EXIT_NO_CONNECTION,
        )

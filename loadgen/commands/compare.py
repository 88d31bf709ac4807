"""``loadgen compare``: two servers in turn, or two files of runs."""

from __future__ import annotations

import contextlib
import re
import sys
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from loadgen.commands import (
    TAKES_LOADS,
    as_json,
    check_connected,
    check_outputs,
    load_of,
    publish,
    refusals,
)
from loadgen.plan import parse_share
from nbnet.command import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, CommandError, parsed
from nbnet.notation import Address, parse_address, parse_count

if TYPE_CHECKING:
    from loadgen.compare import Comparison, Document
    from loadgen.plan import Plan
    from loadgen.report import Run
    from loadgen.running import Site

EXIT_SLOWER: Final = 3
SETTINGS: Final[dict[str, Any]] = {
    "context_settings": TAKES_LOADS,
    "options_metavar": "[A.json B.json] [OPTIONS] [OPTIONS OF A LOAD]",
}
_STARTING: Final = 1.0
"""Seconds that processes take to start and to end around a run, as a rule."""
_STARTING_AT_MOST: Final = 20.0
"""The same on a machine that is busy."""


class By(StrEnum):
    """The figures that may decide."""

    rate = "rate"
    mean = "mean"
    p50 = "p50"
    p90 = "p90"
    p99 = "p99"
    p99_9 = "p99.9"
    service_p99 = "service-p99"
    errors = "errors"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """One of the two servers: where it is, or the command that starts it."""

    address: Address | None
    command: str | None
    site: Site

    def __str__(self) -> str:
        return str(self.address or self.command)


def compare(
    ctx: typer.Context,
    a: Annotated[
        str | None, typer.Option("--a", metavar="TARGET", help="The server to compare with.")
    ] = None,
    b: Annotated[
        str | None, typer.Option("--b", metavar="TARGET", help="The server to look at.")
    ] = None,
    a_command: Annotated[
        str | None,
        typer.Option(
            "--a-command",
            metavar="COMMAND",
            help="Start this for each run instead; {port} stands for the port that it is to "
            "listen on.",
        ),
    ] = None,
    b_command: Annotated[
        str | None, typer.Option("--b-command", metavar="COMMAND", help="The same for B.")
    ] = None,
    repeat: Annotated[
        str,
        typer.Option(
            "--repeat",
            metavar="N",
            help="Runs of each; fewer than 8 show nothing at 99% confidence.",
        ),
    ] = "10",
    by: Annotated[
        By | None,
        typer.Option(
            "--by",
            metavar="FIGURE",
            show_default="rate; of an open loop p99",
            help=f"The figure that decides: {', '.join(By)}.",
        ),
    ] = None,
    confidence: Annotated[
        str,
        typer.Option(
            "--confidence", metavar="PERCENT", help="What a difference needs to be called."
        ),
    ] = "99%",
    fail_if_slower: Annotated[
        str | None,
        typer.Option(
            "--fail-if-slower",
            metavar="PERCENT",
            help="Exit with 3 if B is slower by more than that, with confidence: 5%.",
        ),
    ] = None,
    json: Annotated[
        str | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Write the comparison and its runs as JSON; - is standard output.",
        ),
    ] = None,
) -> None:
    """Tell whether a server is faster than another, or the machine only happened to be.

    Two servers are loaded in turn, in pairs whose order is drawn by lot, so that
    a machine that changes its speed changes it for both. Load options are those
    of loadgen itself. Two files of loadgen --json, of single runs or better of
    --repeat, are compared as they are.

    Each figure has its change with an interval that holds in 99 of 100
    comparisons or more; what lies within 1 % is not called a difference. One
    figure decides, chosen before: see --by.

    Exit codes: 0 compared; 1 wrong replies or failed requests; 2 usage;
    3 slower, see --fail-if-slower; 4 no connection; 130 interrupted (what there
    is of pairs is compared).

    Examples:

    loadgen compare --a 10.0.0.7:6789 --b 10.0.0.8:6789 --duration 2s

    loadgen compare --a-command 'nbnet serve --port {port}' --b-command
    './server {port}' -d 2s --conns 100 --fail-if-slower 5%

    loadgen compare before.json after.json
    """
    limit = (
        None if fail_if_slower is None else parsed("--fail-if-slower", parse_share, fail_if_slower)
    )
    sure = parsed("--confidence", _confidence, confidence)
    check_outputs({"--json": json})
    if a is None and b is None and a_command is None and b_command is None:
        names = _two_files(ctx.args)
        runs = [_read(name) for name in names]
        result = _compared(
            runs[0], runs[1], paired=False, by=by, sure=sure, where=" and ".join(names)
        )
        code = 0
    else:
        count = parsed("--repeat", _repeat, repeat)
        plan, sides = _sides(ctx.args, (a, b), (a_command, b_command))
        names = [str(side) for side in sides]
        pairs, interrupted = _measure(plan, sides, count, sure)
        if not pairs:
            raise CommandError("interrupted before there was a pair of runs", EXIT_INTERRUPTED)
        from loadgen.report import json as json_report

        runs = [[json_report.document(pair[side]) for pair in pairs] for side in (0, 1)]
        result = _compared(runs[0], runs[1], paired=True, by=by, sure=sure, where="the runs")
        codes = [each.verdict.exit_code for pair in pairs for each in pair]
        code = EXIT_INTERRUPTED if interrupted else max(codes)
    _report(result, runs, names, json)
    if limit is not None and result.slower_by_more_than(limit):
        raise CommandError(f"B is slower by more than {fail_if_slower}", EXIT_SLOWER)
    raise typer.Exit(code)


# Files. ---------------------------------------------------------------------


def _two_files(arguments: list[str]) -> list[str]:
    if len(arguments) != 2 or any(each.startswith("-") for each in arguments):
        raise CommandError(
            "compare: give two files of loadgen --json, or --a TARGET and --b TARGET "
            "(or --a-command, --b-command) with the options of a load",
            EXIT_USAGE,
        )
    return arguments


def _read(name: str) -> list[Document]:
    """The runs in a file."""
    import json
    from pathlib import Path

    try:
        document = json.loads(Path(name).read_bytes(), parse_constant=_no_number)
    except OSError as error:
        raise CommandError(f"cannot read {name}: {error.strerror}", EXIT_USAGE) from error
    except ValueError as error:
        raise CommandError(f"{name}: is no JSON: {error}", EXIT_USAGE) from error
    except RecursionError as error:
        raise CommandError(f"{name}: is nested too deeply to be runs", EXIT_USAGE) from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema == "loadgen/1":
        return [document]
    if schema == "loadgen-repeat/1" and document.get("runs"):
        return list(document["runs"])
    raise CommandError(
        f"{name}: has no runs: expected a file of loadgen --json, with --repeat or without",
        EXIT_USAGE,
    )


def _no_number(text: str) -> float:
    """Refuse what Python's JSON takes for a number and no other does; no run holds any."""
    raise ValueError(f"{text} is no number")


# Runs in turn. --------------------------------------------------------------


def _sides(
    arguments: list[str],
    targets: tuple[str | None, str | None],
    commands: tuple[str | None, str | None],
) -> tuple[Plan, list[_Side]]:
    """The load, and the two servers."""
    from loadgen.asked import UNBOUNDED
    from loadgen.hosted import split

    if any(re.fullmatch(r"-t.*|--target(=.*)?", each) for each in arguments):
        raise CommandError("--target: there are two, give --a and --b", EXIT_USAGE)
    sides = []
    for name, target, command in zip("ab", targets, commands, strict=True):
        if (target is None) == (command is None):
            what = "--{0} or --{0}-command" if target is None else "either --{0} or --{0}-command"
            raise CommandError(f"compare: give {what.format(name)}", EXIT_USAGE)
        if command is not None:
            parsed(f"--{name}-command", split, command)
            plan, site = load_of(arguments)
            sides.append(_Side(address=None, command=command, site=site))
        else:
            address = parsed(f"--{name}", parse_address, target or "")
            # TLS options need the target that they are for.
            plan, site = load_of([*arguments, "--target", str(address)])
            sides.append(_Side(address=address, command=None, site=site))
    if plan.duration >= UNBOUNDED:
        raise CommandError(
            "--requests: give --duration as well, so that the comparison has an end", EXIT_USAGE
        )
    return plan, sides


def _measure(
    plan: Plan, sides: list[_Side], count: int, sure: float
) -> tuple[list[tuple[Run, Run]], bool]:
    """Run both so many times, in turn; the pairs, and whether somebody ended it early."""
    import random

    from loadgen.compare import orders, pairs_needed
    from loadgen.hosted import START_SECONDS

    hosts = any(side.command for side in sides)
    usual = plan.warmup + plan.duration + _STARTING * (1 + hosts)
    most = plan.warmup + plan.duration + plan.connect_seconds + plan.grace + _STARTING_AT_MOST
    most += START_SECONDS * hosts
    _say(
        f"{count} runs of each in turn: about {_long(2 * count * usual)}, "
        f"at most {_long(2 * count * most)}"
    )
    needed = pairs_needed(sure)
    if count < needed:
        _say(f"fewer than {needed} runs of each show no difference, whatever they give")
    pairs: list[tuple[Run, Run]] = []
    # A seed of its own each time: any order that is always the same may suit one side.
    for number, order in enumerate(orders(count, random.Random()), start=1):
        both = {}
        for each in order:
            try:
                both[each] = _run(plan, sides[each])
            except KeyboardInterrupt:  # between two runs; during one, it ends with a report
                return pairs, True
            check_connected(both[each])
            if both[each].interrupted:
                return pairs, True
        pairs.append((both[0], both[1]))
        rates = [both[each].tally.rate for each in (0, 1)]
        _say(
            f"pair {number:>2} of {count}: {rates[0]:>11,.0f} and {rates[1]:>11,.0f} requests/s"
            + (f"  {100 * (rates[1] / rates[0] - 1):+7.1f} %" if rates[0] else "")
        )
    return pairs, False


def _run(plan: Plan, side: _Side) -> Run:
    from dataclasses import replace

    from loadgen.hosted import HostedError, hosted
    from loadgen.running import run

    try:
        with refusals(), contextlib.ExitStack() as stack:
            site = side.site
            if side.command is not None:
                site = replace(site, target=stack.enter_context(hosted(side.command)))
            return run(plan, site, lambda finished: finished, quiet=True)  # pairs are told
    except HostedError as error:
        raise CommandError(str(error), EXIT_FAILED) from error


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _long(seconds: float) -> str:
    """So many seconds, or minutes.

    >>> _long(45.2), _long(200)
    ('46 s', '4 min')
    """
    import math

    return f"{math.ceil(seconds)} s" if seconds < 120 else f"{math.ceil(seconds / 60)} min"


# What comes out. ------------------------------------------------------------


def _compared(
    a: list[Document], b: list[Document], *, paired: bool, by: By | None, sure: float, where: str
) -> Comparison:
    from loadgen import compare

    try:
        return compare.compare(a, b, paired=paired, by=by, confidence=sure)
    except compare.NoSuchFigureError as error:
        raise CommandError(f"--by: {error}", EXIT_USAGE) from error
    except KeyError as error:
        why = f"a run lacks {error}"
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        why = f"a run holds what is none of its figures ({error})"
    raise CommandError(f"{where}: {why}: it was not written by this version", EXIT_USAGE)


def _report(
    result: Comparison, runs: list[list[Document]], names: list[str], json: str | None
) -> None:
    from loadgen.report import comparison

    publish(
        comparison.table(result, *names),
        (json, lambda: as_json(comparison.document(result, runs[0], runs[1], names))),
    )


def _confidence(text: str) -> float:
    share = parse_share(text)
    if not 0.5 <= share <= 0.9999:
        raise ValueError(f"{text!r}: expected 50% to 99.99%")
    return share


def _repeat(text: str) -> int:
    count = parse_count(text)
    if count < 1:
        raise ValueError("at least 1 run of each is needed")
    return count

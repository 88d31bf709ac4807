"""Soak a server in everything at once, and see that nothing is wrong and nothing grows.

    PYTHONPATH=tests python -m soak [--duration 10m] [--round 20s] [--rate 400]

Starts ``nbnet serve --workers 2``; asks it by threads on ``Client`` and tasks on
``AsyncClient``, some of whom give up early; loads it with ``loadgen``, pipelined, and with
``loadgen chaos``, whose hostile clients come besides; and reloads it with SIGHUP in the
middle of that, in every second round of the first half. Every reply is compared. At the
end of each round all rest, and descriptors and objects of every process are counted: they
have to be what they were. A line is printed for each round, the sum in the end; the exit
code is 1 if anything is wrong. ``--break`` breaks something on purpose, to see whether
that is noticed.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import fields

from nbnet.notation import parse_duration
from soak.judging import Options, Result, judge
from soak.measures import at_most
from soak.running import Soak

FAULTS = ("wrong", "objects", "memory", "files", "client")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--duration", type=parse_duration, default=600.0, help="10m if not given")
    defaults = {each.name: each.default for each in fields(Options)}
    for name, kind, text in (
        ("round", parse_duration, "how long from rest to rest"),
        ("workers", int, "processes of the server"),
        ("threads", int, "on Client"),
        ("tasks", int, "on AsyncClient"),
        ("rate", float, "their requests a second, all together"),
        ("load-rate", float, "requests a second of each load generator; 0: none are started"),
        ("abusers", int, "hostile clients of each kind"),
        ("reload-every", int, "rounds from reload to reload; 0: never"),
        ("sample-every", parse_duration, "how often to look at memory"),
        ("max-objects", int, "how many more a process may hold in the end"),
        ("max-slope", float, "MB/h by which memory may grow, where two minutes were looked at"),
        ("settle", parse_duration, "how long ended connections may take to be gone"),
    ):
        parser.add_argument(
            f"--{name}", type=kind, default=defaults[name.replace("-", "_")], help=text
        )
    parser.add_argument("--break", dest="broken", action="append", choices=FAULTS, default=[])
    parser.add_argument(
        "--server", type=shlex.split, default="", help="further options of nbnet serve, in one text"
    )
    given = vars(parser.parse_args(arguments))
    broken = set(given.pop("broken"))
    options = Options(
        **(given | {"server": tuple(given["server"])}),
        server_faults=",".join(sorted(broken - {"client"})),
        client_leak="client" in broken,
    )
    soak = Soak(options, tell)
    try:
        soak.run()
    except KeyboardInterrupt:
        judge(soak.result, options)
        report(soak.result, options)
        return 130
    return report(soak.result, options)


def tell(result: Result) -> None:
    """A line for a round."""
    memory = {
        kind: sum(
            samples[-1][1] for samples in list(by_pid.values())[-2 if kind == "workers" else -1 :]
        )
        for kind, by_pid in result.memory.items()
    }
    holdings = [list(by_pid.values())[-1] for by_pid in result.holdings.values()]
    grown = ", ".join(f"{holding.grown[0]:+,}" for holding in holdings)
    print(
        f"{result.seconds:>7.0f} s {result.verified:>11,} verified {result.wrong} wrong "
        f"{result.failed.total()} failed {result.given_up:>7,} given up {result.abuses:>7,} abuses "
        f"{result.reloads:>3} reloads  MiB "
        + " ".join(f"{kind} {value:.1f}" for kind, value in memory.items())
        + f"  objects {grown}  descriptors {'+'.join(map(str, result.server_descriptors[-1]))}",
        flush=True,
    )


def report(result: Result, options: Options) -> int:
    """The sum in the end; the exit code."""
    print(
        f"\n{result.seconds / 60:.1f} minutes, {result.rounds} rounds, {result.reloads} reloads, "
        f"{options.workers} workers\n"
        f"replies      {result.verified:,} verified, {result.wrong} wrong, "
        f"{result.failed.total()} failed; {result.given_up:,} given up on purpose"
    )
    if not result.wrong:
        print(
            f"             of requests like these fewer than {1e6 * at_most(result.verified):.3g} "
            "in a million get a wrong one (95 % confidence, rule of three)"
        )
    print(
        f"abuses       {result.abuses:,} answered as the protocol says, {result.wrong_abuses} not"
    )
    for kind, rates in result.slopes().items():
        print(f"memory       {kind}: {rates[0]}")
    for kind, by_pid in result.holdings.items():
        for pid, holding in by_pid.items():
            objects, blocks = holding.grown
            print(
                f"objects      {kind} ({pid}): {objects:+,} of {holding.objects[0]:,}, "
                f"blocks {blocks:+,} of {holding.blocks[0]:,}, in {len(holding.objects)} rounds"
            )
    rests = result.server_descriptors or [(0, 0)]
    (sockets, others), (sockets_now, others_now) = rests[0], rests[-1]
    print(
        f"descriptors  server: {sockets_now - sockets:+} sockets of {sockets}, "
        f"{others_now - others:+} others of {others}, clients' connections left out"
    )
    for problem in result.problems:
        print(f"WRONG: {problem}")
    print("FAILED" if result.problems else "OK: nothing is wrong, nothing grows")
    return int(bool(result.problems))


if __name__ == "__main__":
    sys.exit(main())

"""What a storm of hostile traffic came to: lines for people, a document for programs.

For programs: schema ``loadgen-chaos/1``.
"""

from __future__ import annotations

import math
import textwrap
from typing import Any, Final

from loadgen.chaos import ChaosRun, PhaseCounts
from loadgen.chaos_abuses import ABUSES
from loadgen.histogram import Histogram
from loadgen.report.json import document as load_document
from nbnet.notation import format_duration

SCHEMA: Final = "loadgen-chaos/1"
_WIDTH: Final = 80
_BYTES: Final = 8
"""Bytes shown of what came and of what should have; the JSON has more."""


def summary(finished: ChaosRun) -> str:
    """What it came to as text, without a newline at the end; the verdict stands last."""
    run = finished.run
    plan = run.plan
    rate = f"open loop, {plan.rate:,.10g} requests/s" if plan.rate is not None else "closed loop"
    server = f"{run.target}{' (bundled server)' if finished.embedded else ''}"
    lines = [
        *textwrap.wrap(f"{plan.connections:,} connections to {server}, {rate}", _WIDTH),
        "",
        *_phases(finished),
        "",
        *_abuses(finished),
        *_examples(finished),
    ]
    for note in run.notes:
        lines += ["", *textwrap.wrap(note, _WIDTH)]
    return "\n".join([*lines, "", *textwrap.wrap(finished.verdict.text, _WIDTH)])


def _phases(finished: ChaosRun) -> list[str]:
    head = ("load", "time", "goodput/s", "p50", "p99", "max", "wrong", "failed", "lost")
    lines = [_phase(*head, "slower")]
    calm = finished.phases[0]
    for phase in finished.phases:
        counts = phase.counts
        p50, p99, most = _latencies(phase)
        lines.append(
            _phase(
                phase.name,
                format_duration(phase.seconds),
                f"{phase.goodput:,.0f}",
                *(_time(value) for value in (p50, p99, most)),
                f"{counts.wrong:,}",
                f"{counts.failed + counts.timed_out:,}",
                f"{counts.lost:,}",
                "" if phase is calm else _times(phase.slowdown(calm)),
            )
        )
    return lines


def _phase(name: str, *cells: str) -> str:
    widths = (7, 10, 8, 8, 8, 6, 7, 6, 8)
    pairs = zip(cells, widths, strict=True)
    return f"{name:<8}" + "".join(f"{cell:>{width}}" for cell, width in pairs).rstrip()


def _abuses(finished: ChaosRun) -> list[str]:
    lines = [_abuse("abuse", "clients", "right", "wrong", "the protocol demands")]
    for each in finished.outcomes:
        begun, right, wrong = (f"{number:,}" for number in (each.begun, each.right, each.wrong))
        lines.append(_abuse(each.name, begun, right, wrong, ABUSES[each.name].demand))
    return lines


def _abuse(name: str, begun: str, right: str, wrong: str, demand: str) -> str:
    return f"{name:<14}{begun:>8}{right:>8}{wrong:>8}   {demand}"


def _examples(finished: ChaosRun) -> list[str]:
    lines = []
    for outcome in finished.outcomes:
        for example in outcome.examples:
            what = f"{outcome.name} {example.number}"
            if example.variant:
                what += f" ({example.variant})"
            text = f"{what}: {example.said}"
            if example.expected:
                text += f", expected {example.expected[:_BYTES].hex()}"
            if example.got:
                text += f", got {example.got[:_BYTES].hex()}"
            lines += textwrap.wrap(text, _WIDTH, initial_indent="  ", subsequent_indent="    ")
    return ["", "answered otherwise; bytes in hex, from where they differ", *lines] if lines else []


def _latencies(phase: PhaseCounts) -> tuple[int | None, int | None, int | None]:
    if not phase.counts.latency:
        return None, None, None
    histogram = Histogram(phase.counts.latency)
    p50, p99 = histogram.percentiles([50, 99])
    return p50, p99, histogram.max


def _time(nanoseconds: int | None) -> str:
    return "-" if nanoseconds is None else format_duration(nanoseconds / 1e9)


def _times(factor: float | None) -> str:
    if factor is None:
        return "-"
    return "dead" if math.isinf(factor) else f"{factor:.1f}x"


# For programs -------------------------------------------------------------------------


def document(finished: ChaosRun) -> dict[str, Any]:
    """The same as JSON values: seconds as floats, counts as integers, bytes in hex."""
    asked, calm = finished.chaos, finished.phases[0]
    return {
        "schema": SCHEMA,
        "target": str(finished.run.target),
        "embedded": finished.embedded,
        "interrupted": finished.run.interrupted,
        "abusers": asked.abusers,
        "abuse_timeout_seconds": asked.patience,
        "max_frame": asked.max_frame,
        "max_slowdown": asked.max_slowdown,
        "phases": [_phase_values(phase, calm) for phase in finished.phases],
        "abuses": [
            {
                "name": outcome.name,
                "demand": ABUSES[outcome.name].demand,
                "begun": outcome.begun,
                "right": outcome.right,
                "wrong": outcome.wrong,
                "examples": [
                    {
                        "number": example.number,
                        "variant": example.variant,
                        "said": example.said,
                        "expected": example.expected.hex(),
                        "got": example.got.hex(),
                    }
                    for example in outcome.examples
                ],
            }
            for outcome in finished.outcomes
        ],
        "disturbed": finished.disturbed,
        "slowdown": _number(finished.slowdown),
        "slowed": finished.slowed,
        "load": load_document(finished.run) | {"embedded": finished.embedded},
        "verdict": finished.verdict.text,
        "exit_code": finished.verdict.exit_code,
    }


def _phase_values(phase: PhaseCounts, calm: PhaseCounts) -> dict[str, Any]:
    counts = phase.counts
    p50, p99, most = (value and value / 1e9 for value in _latencies(phase))
    return {
        "name": phase.name,
        "duration_seconds": phase.seconds,
        "goodput_per_second": phase.goodput,
        "sent": counts.sent,
        "verified": counts.verified,
        "wrong": counts.wrong,
        "failed": counts.failed,
        "timed_out": counts.timed_out,
        "lost": counts.lost,
        "unsent": counts.unsent,
        "latency_seconds": {"p50": p50, "p99": p99, "max": most},
        "slowdown": None if phase is calm else _number(phase.slowdown(calm)),
    }


def _number(factor: float | None) -> float | None:
    """JSON has no infinity: a phase in which nothing was served has no figure."""
    return None if factor is None or math.isinf(factor) else factor

"""What a search for capacity found: lines and a table for people, a document for programs.

Schema ``loadgen-capacity/1``: times are seconds as floats, rates are requests a
second. A percentile that requests without a reply reach into is null.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from loadgen.capacity import Ending, Figures, Limit, Outcome, Result, Step
from loadgen.plan import Plan
from nbnet import __version__
from nbnet.notation import Address, format_duration

SCHEMA: Final = "loadgen-capacity/1"
_WIDTH: Final = 80
_PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9, 99.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """A search that is over.

    Attributes:
        result: what it came to.
        plan: the load, but for its rate and duration.
        target: the server; ``embedded``: whether it was the bundled one.
        workers: how many processes sent.
        started_at: when, with time zone.
        seconds: how long it took.
    """

    result: Result
    plan: Plan
    target: Address
    embedded: bool
    workers: int
    started_at: datetime
    seconds: float


def headline(findings: Findings) -> str:
    """Connections, server and objective."""
    server = f"{findings.target} (bundled server)" if findings.embedded else str(findings.target)
    return f"{findings.plan.connections:,} connections to {server}"


def line(step: Step, number: int) -> str:
    """A step, as it is told when it is over.

    It is short enough for a terminal of 80 columns, unless much was missed.
    """
    kind = "confirming" if step.confirms else f"step {number}"
    again = " again" if step.repeats else ""
    text = (
        f"{kind}{again}: {format_rate(step.rate)}/s for {step.seconds:g} s: {step.outcome.value}, "
    )
    return text + (step.why or f"p99 {format_time(step.figures.percentile(99))}")


def table(result: Result) -> str:
    """The steps, by their rates: the curve in figures."""
    lines = [f"{'rate/s':>10}{'sent':>9}{'p50':>10}{'p99':>10}  verdict"]
    for step in by_rate(result):
        figures = step.figures
        cells = (
            f"{format_rate(step.rate):>10}{format_share(figures):>9}"
            f"{format_time(figures.percentile(50)):>10}{format_time(figures.percentile(99)):>10}"
        )
        room = _WIDTH - len(cells) - 2
        lines.append(f"{cells}  {textwrap.shorten(verdict(step), room, placeholder=' ...')}")
    return "\n".join(lines)


def by_rate(result: Result) -> list[Step]:
    """The steps in ascending order of their rates; those of one rate as they were measured."""
    return sorted(result.steps, key=lambda step: step.rate)


def verdict(step: Step) -> str:
    """What a step came to, in a cell."""
    text = step.outcome.value
    if step.confirms:
        text = f"{'confirmed' if step.held else text}, {step.seconds:g} s"
    return f"{text}: {step.why}" if step.why else text


def advice(findings: Findings) -> list[str]:
    """What has to be said of the answer; each a line for people."""
    result = findings.result
    found = []
    if result.limit is Limit.LOADER:
        found.append(f"LOADER-BOUND: {result.reason or 'the load generator did not keep up'}")
    if result.limit is Limit.CONNECTIONS:
        found.append(
            "CONNECTIONS: all of them were waiting for replies that took no longer than at a low "
            "rate: use more --conns, or --pipeline, to see what the server can do"
        )
    if result.limit is Limit.MAX_RATE:
        found.append("MAX-RATE: it held as well, so the server can do more")
    if result.ending is Ending.TIME:
        found.append("OUT OF TIME: the search ended before it was precise; use a larger --max-time")
    return found


def answer(findings: Findings) -> str:
    """The answer in one line."""
    result = findings.result
    terms, slo = result.terms, result.terms.slo
    if result.ending is Ending.INTERRUPTED and not result.confirmed:
        return f"CAPACITY: interrupted; {_so_far(result)}"
    if result.ending is Ending.UNCONNECTED:
        return f"CAPACITY: none: the server takes no connection any more; {_so_far(result)}"
    if result.ending is Ending.WRONG:
        step = result.steps[-1]
        return (
            f"CAPACITY: none: {step.figures.wrong:,} wrong replies at {format_rate(step.rate)} "
            f"requests/s; {_so_far(result)}"
        )
    if result.confirmed is not None:
        limit = {
            Limit.SERVER: "the server is the limit",
            Limit.LOADER: "the loader is the limit",
            Limit.CONNECTIONS: f"the {findings.plan.connections:,} connections are the limit",
            Limit.MAX_RATE: "--max-rate is the limit",
            Limit.UNKNOWN: "the limit was not reached in time",
        }[result.limit]
        return (
            f"CAPACITY: {format_rate(result.confirmed.rate)} requests/s hold {slo} "
            f"(confirmed over {terms.confirm:g} s; {limit})"
        )
    if result.best is not None:
        return f"CAPACITY: not confirmed; {_so_far(result)}"
    if not result.steps:
        return "CAPACITY: nothing was measured"
    step = by_rate(result)[0]
    return (
        f"CAPACITY: none: not even {format_rate(step.rate)} requests/s hold {slo} "
        f"({step.outcome.value}: {step.why})"
    )


def _so_far(result: Result) -> str:
    if result.best is None:
        return "no rate held so far"
    return (
        f"{format_rate(result.best)} requests/s held {result.terms.slo} for {result.terms.step:g} s"
    )


def summary(findings: Findings) -> str:
    """Table, notes and answer, without a newline at the end; the answer stands last."""
    lines = [headline(findings)]
    if findings.result.steps:
        lines += ["", table(findings.result)]
    for note in advice(findings):
        lines += ["", *textwrap.wrap(note, _WIDTH)]
    return "\n".join([*lines, "", answer(findings)])


def document(findings: Findings) -> dict[str, Any]:
    """The search as JSON values; ``curve`` has each rate once, as it was measured last."""
    result, plan = findings.result, findings.plan
    terms = result.terms
    return {
        "schema": SCHEMA,
        "version": __version__,
        "target": str(findings.target),
        "embedded": findings.embedded,
        "started_at": findings.started_at.isoformat(),
        "seconds": findings.seconds,
        "interrupted": result.ending is Ending.INTERRUPTED,
        "slo": str(terms.slo),
        "settings": {
            "start_rate": terms.start,
            "max_rate": terms.max_rate,
            "precision": terms.precision,
            "step_seconds": terms.step,
            "confirm_seconds": terms.confirm,
            "sent_share": terms.sent_share,
            "max_seconds": terms.seconds,
        },
        "plan": {
            "connections": plan.connections,
            "active": plan.senders,
            "pipeline": plan.pipeline,
            "arrivals": "poisson" if plan.poisson else "constant",
            "warmup_seconds": plan.warmup,
            "workers": findings.workers,
            "seed": plan.seed,
            "expect": plan.traffic.expect,
            "payloads": plan.traffic.describe(),
        },
        "capacity": {
            "requests_per_second": result.best,
            "confirmed": result.confirmed is not None,
            "limit": result.limit.value,
            "reason": result.reason,
        },
        "steps": [_step(step) for step in result.steps],
        "curve": [_step(step) for step in curve(result)],
        "ending": result.ending.value,
        "notes": advice(findings),
        "verdict": answer(findings),
    }


def curve(result: Result) -> list[Step]:
    """Each rate once, as it was measured last, in ascending order."""
    last = {step.rate: step for step in result.steps if step.outcome is not Outcome.INTERRUPTED}
    return [last[rate] for rate in sorted(last)]


def _step(step: Step) -> dict[str, Any]:
    figures = step.figures
    return {
        "rate": step.rate,
        "seconds": step.seconds,
        "confirms": step.confirms,
        "repeats": step.repeats,
        "outcome": step.outcome.value,
        "why": step.why,
        "planned": figures.planned,
        "sent": figures.sent,
        "on_time": figures.on_time,
        "wrong": figures.wrong,
        "failed": figures.failed,
        "connections_not_made": figures.unconnected,
        "latency_seconds": {
            "mean": _finite(figures.mean),
            "max": _finite(figures.slowest),
            **_percentiles(figures, _PERCENTILES),
        },
        "loader_bound": figures.loader_bound,
    }


def _percentiles(figures: Figures, percents: Iterable[float]) -> dict[str, float | None]:
    return {f"p{percent:g}": _finite(figures.percentile(percent)) for percent in percents}


def _finite(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) else None


def format_rate(rate: float) -> str:
    """As people say it.

    >>> format_rate(41_500.0), format_rate(2.24)
    ('41,500', '2.24')
    """
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def format_share(figures: Figures) -> str:
    """How much of the planned requests was sent; rounded down, so that 99.0 % are enough."""
    return f"{math.floor(1000 * figures.sent_share) / 10:.1f} %"


def format_time(seconds: float) -> str:
    """Nothing, where it is infinite."""
    return format_duration(seconds) if math.isfinite(seconds) else "-"

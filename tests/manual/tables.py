"""Tables and drawings made from the code's own: limits, metrics, states, thresholds, JSON."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from prometheus_client import Metric
from prometheus_client.registry import Collector

import loadgen.report
from loadgen.metrics import RunCollector
from loadgen.plan import Plan
from loadgen.tally import Tally
from loadgen.thresholds import METRICS, SOURCES
from manual.docstrings import markdown
from nbnet.board import Board
from nbnet.limits import Limits
from nbnet.metrics import NbnetCollector
from nbnet.pollers import READ, WRITE
from nbnet.states import INTEREST, MOVABLE, READS, TRANSITIONS, Event, State

SCHEMA: Final = Path(inspect.getfile(loadgen.report)).parent / "loadgen-1.schema.json"


def table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table as Markdown.

    >>> print(table(["a", "b"], [["1", "x|y"]]))
    | a | b |
    |---|---|
    | 1 | x\\|y |
    """
    titles = list(titles)
    lines = [titles, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    shown = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([shown[0], "|" + "---|" * len(titles), *shown[1:]])


# Limits -----------------------------------------------------------------------------


def limits() -> str:
    """The bounds of a server: option, default, what it bounds."""
    about = dict(re.findall(r"^- `(\w+)`: (.*)$", markdown(Limits.__doc__ or ""), re.MULTILINE))
    rows = []
    for field in dataclasses.fields(Limits):
        option = "--" + field.name.replace("_", "-")
        rows.append([f"`{field.name}`", f"`{option}`", _amount(field), about[field.name]])
    return table(["`Limits`", "`nbnet serve`", "default", ""], rows)


def _amount(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if isinstance(value, bool):
        return "no"
    if isinstance(value, float):
        return f"{value:g} s"
    assert isinstance(value, int)
    if field.name in ("high_water", "low_water", "max_output"):
        mega = value % (1024 * 1024) == 0
        return f"{value >> 20} MiB" if mega else f"{value >> 10} KiB"
    return f"{value:,}" + (" bytes" if field.name == "max_frame" else "")


# Metrics ----------------------------------------------------------------------------


def server_metrics() -> str:
    """What ``nbnet serve --metrics`` serves."""
    board = Board(2)
    return _metrics(NbnetCollector(board))


def load_metrics() -> str:
    """What ``loadgen --metrics`` serves."""
    open_loop = RunCollector(Plan(rate=1.0, duration=1.0))
    open_loop.publish(Tally())
    return _metrics(open_loop)


def _metrics(collector: Collector) -> str:
    rows = []
    for metric in collector.collect():
        name = metric.name + {"counter": "_total", "info": "_info"}.get(metric.type, "")
        labels = ", ".join(_labels(metric))
        rows.append([f"`{name}`", metric.type, labels, metric.documentation])
    return table(["metric", "type", "labels", ""], rows)


def _labels(metric: Metric) -> Iterator[str]:
    names = list(getattr(metric, "_labelnames", ()))
    for name in names:
        values = [sample.labels[name] for sample in metric.samples if name in sample.labels]
        shown = ", ".join(f"`{value}`" for value in dict.fromkeys(values))
        yield f"`{name}`: {shown}" if shown else f"`{name}`"


# States -----------------------------------------------------------------------------


def state_diagram() -> str:
    """The drawing of the moves between states, for those that render mermaid."""
    moves: dict[tuple[State, State], list[Event]] = {}
    for (state, event), following in TRANSITIONS.items():
        # From everywhere; they would hide all else.
        if event not in (Event.LOST, Event.MOVED):
            moves.setdefault((state, following), []).append(event)
    lines = ["stateDiagram-v2"]
    lines += [f"    [*] --> {state.name}" for state in (State.INTRODUCING, State.HANDSHAKING)]
    lines.append(f"    [*] --> {State.READING.name}")
    for (state, following), events in moves.items():
        lines.append(
            f"    {state.name} --> {following.name}: {', '.join(each.value for each in events)}"
        )
    lines.append(f"    {State.CLOSED.name} --> [*]")
    return "```mermaid\n" + "\n".join(lines) + "\n```"


def state_table() -> str:
    """What each state means, what it waits for, and by what it is left."""
    about = _described(State)
    rows = []
    for state in State:
        moves = [
            f"{event.value}: {following.value}"
            for (origin, event), following in TRANSITIONS.items()
            if origin is state
        ]
        waits = [word for bit, word in ((READ, "read"), (WRITE, "write")) if INTEREST[state] & bit]
        rows.append(
            [
                f"**{state.value}**",
                about[state.name],
                " and ".join(waits) or "-",
                "yes" if state in READS else "no",
                "yes" if state in MOVABLE else "no",
                "; ".join(moves) or "-",
            ]
        )
    return table(["state", "", "polled for", "reads", "moves on a reload", "left by"], rows)


def event_table() -> str:
    """What each event means."""
    about = _described(Event)
    return table(["event", ""], ([f"**{each.value}**", about[each.name]] for each in Event))


def _described(kind: type[State | Event]) -> dict[str, str]:
    """What stands below each member of an enumeration."""
    found = re.findall(
        r'^    (\w+) = "[^"]*"\n    """(.*?)"""', inspect.getsource(kind), re.MULTILINE | re.DOTALL
    )
    return {name: markdown(re.sub(r"\s+", " ", text)) for name, text in found}


# Thresholds -------------------------------------------------------------------------


def thresholds() -> str:
    """What ``--fail-if`` may speak of, each with a name of its own."""
    rows = []
    for name, metric in METRICS.items():
        unit = metric.unit.value if metric.unit is not None else "-"
        rows.append([f"`{name}`", metric.about, unit, f"% of {metric.whole.value}"])
    return table(["metric", "", "value", "or"], rows)


def threshold_times() -> str:
    """The times of which ``--fail-if`` takes percentiles, mean, min and max."""
    rows = ([f"`{name}`", about, f"`{name}.p99`"] for name, (about, _) in SOURCES.items())
    return table(["time", "", "as in"], rows)


# JSON -------------------------------------------------------------------------------


def json_keys() -> str:
    """Each key of a report, its type and what it is, from the schema."""
    schema = json.loads(SCHEMA.read_text())
    return table(["key", "type", ""], _keys(schema, schema, ""))


def _keys(node: dict[str, Any], root: dict[str, Any], prefix: str) -> Iterator[list[str]]:
    node = _resolved(node, root)
    for name, told in node.get("properties", {}).items():
        inner = _resolved(told, root)
        about = told.get("description") or inner.get("description", "")
        yield [f"`{prefix}{name}`", _type(inner), about]
        if "$ref" not in told:  # what several keys share stands once
            yield from _keys(inner, root, f"{prefix}{name}.")
            if "items" in inner:
                yield from _keys(inner["items"], root, f"{prefix}{name}[].")


def json_shared() -> str:
    """What several keys of a report have in common."""
    schema = json.loads(SCHEMA.read_text())
    parts = []
    for name, told in schema.get("$defs", {}).items():
        rows = list(_keys(told, schema, ""))
        about = told.get("description", "")
        parts.append(f"**{name}** ({_type(told)}): {about}")
        if rows:
            parts.append(table(["key", "type", ""], rows))
    return "\n\n".join(parts)


def _resolved(node: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    reference = node.get("$ref")
    return node if reference is None else root["$defs"][reference.rsplit("/", 1)[-1]]


def _type(node: dict[str, Any]) -> str:
    if "const" in node:
        return json.dumps(node["const"])
    if "enum" in node:
        return ", ".join(json.dumps(each) for each in node["enum"])
    kind = node.get("type", "")
    return " or ".join(kind) if isinstance(kind, list) else str(kind)

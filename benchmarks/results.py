"""Tables, charts and lists of who is ahead, of things that were measured in turn.

A *load* is a row, a *contender* a column; of each there are as many values as
rounds, and the values of one round are neighbours in time. So contenders are
compared within rounds, by the code behind ``loadgen compare``: the estimate and
the interval of Hodges, Lehmann and Tukey by the ranks of Wilcoxon, 95 %, exact
where the order within a round is drawn by lot. A contender is called ahead, or
behind, when the whole interval is on that side of 1. Memory hardly varies: it is measured
once and has no interval.
"""

from __future__ import annotations

import enum
import json
import random
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loadgen import intervals
from loadgen.intervals import Interval
from loadgen.report.html_charts import load_pygal

CONFIDENCE = 0.95
FEWEST_ROUNDS = 6
"""With fewer there is no interval of that confidence."""


class Verdict(enum.Enum):
    """Of a contender, beside the base."""

    AHEAD = "ahead"
    BEHIND = "behind"
    LEVEL = "not told apart"


class Unit(enum.Enum):
    """What values are. Of rates more is better, of the others less."""

    RATE = "per second"
    TIME = "seconds"
    MEMORY = "bytes"

    def text(self, value: float) -> str:
        """A value for people."""
        match self:
            case Unit.RATE:
                return f"{number(value)}/s"
            case Unit.TIME:
                return f"{number(value * 1e6)} us"
            case Unit.MEMORY:
                if value < 1 << 20:
                    return f"{number(value / (1 << 10))} KiB"
                return f"{number(value / (1 << 20))} MiB"


@dataclass
class Results:
    """What was measured of one question.

    Attributes:
        name: marks its place in a page, and names its chart.
        title: of the chart.
        contenders: their names, in the order of the columns; the first one is the base,
            which the others are compared with.
        unit: of the values.
        values: by load, by contender, of each round.
        notes: by load and contender, why there are no values.
        remarks: sentences for below the table.
    """

    name: str
    title: str
    contenders: list[str]
    unit: Unit = Unit.RATE
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    notes: dict[str, dict[str, str]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def add(self, load: str, contender: str, value: float) -> None:
        """One more round of it. A difference that is lost in the noise counts as none."""
        self.values.setdefault(load, {}).setdefault(contender, []).append(max(value, 0.0))

    def leave_out(self, load: str, contender: str, why: str) -> None:
        """There is no value, and why."""
        self.values.setdefault(load, {}).pop(contender, None)
        self.notes.setdefault(load, {})[contender] = why

    @property
    def base(self) -> str:
        """What the others are compared with."""
        return self.contenders[0]

    def median(self, load: str, contender: str) -> float | None:
        """Of all rounds; None without any."""
        values = self.values[load].get(contender)
        return statistics.median(values) if values else None

    def text(self, load: str, contender: str) -> str:
        """Its median for people, or why there is none."""
        median = self.median(load, contender)
        if median is None:
            return self.notes.get(load, {}).get(contender, "-")
        return self.unit.text(median)

    def ratio(self, load: str, contender: str) -> Interval | None:
        """The contender by the base; None unless both were measured in each round."""
        base, other = (self.values[load].get(each, []) for each in (self.base, contender))
        if not other or len(base) != len(other):
            return None
        return intervals.of_pairs(zip(base, other, strict=True), CONFIDENCE)

    def cells(self) -> Iterator[tuple[str, str, Interval]]:
        """Every load and contender that was compared with the base."""
        for load in self.values:
            for contender in self.contenders[1:]:
                if (found := self.ratio(load, contender)) is not None:
                    yield load, contender, found

    def verdict(self, found: Interval) -> Verdict:
        """What a ratio with its interval says of a contender."""
        sure = CONFIDENCE if self.unit is not Unit.MEMORY else 0.0
        if found.confidence < sure or found.low <= 1 <= found.high:
            return Verdict.LEVEL
        more = found.low > 1
        return Verdict.AHEAD if more == (self.unit is Unit.RATE) else Verdict.BEHIND

    def of_verdict(self, verdict: Verdict) -> list[tuple[str, str, Interval]]:
        """The cells of which this can be said."""
        return [cell for cell in self.cells() if self.verdict(cell[2]) is verdict]


def in_turn(load: str, contenders: Iterable[str], rounds: int, seed: int) -> Iterator[str]:
    """Each contender once a round, in an order that is drawn by lot; a word of it to a terminal.

    >>> list(in_turn("a load", "AB", 3, seed=1))
    ['B', 'A', 'A', 'B', 'B', 'A']
    """
    source = random.Random(seed)
    order = list(contenders)
    shown = sys.stderr.isatty()
    for number in range(1, rounds + 1):
        source.shuffle(order)
        for name in order:
            if shown:
                print(f"\r{load}: round {number} of {rounds}, {name:<20}", end="", file=sys.stderr)
            yield name
    print(f"\r{load}: done{' ' * 40}" if shown else f"{load}: done", file=sys.stderr, flush=True)


def number(value: float) -> str:
    """With three digits that count, and a suffix."""
    for factor, suffix in ((1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * factor:  # or else it would be rounded up to that
            value /= factor
            return f"{value:.{max(0, 3 - len(str(int(value))))}f}{suffix}"
    return f"{value:.3g}"


def ratio_text(found: Interval) -> str:
    """A ratio with its interval, where there is one."""
    interval = f" ({found.low:.2f}-{found.high:.2f})" if found.confidence else ""
    return f"{found.middle:.2f}{interval}"


def markdown(results: Results) -> str:
    """The table: medians, ratios to the base with their intervals, and who is ahead."""
    others = results.contenders[1:]
    rows = [["", results.base, *others]]
    for load in results.values:
        row = [load, results.text(load, results.base)]
        for contender in others:
            text, found = results.text(load, contender), results.ratio(load, contender)
            if found is not None:
                mark = "**" if results.verdict(found) is Verdict.AHEAD else ""
                text += f"<br>{mark}{ratio_text(found)}{mark}"
            row.append(text)
        rows.append(row)
    lines = table(rows)
    reached = min((found.confidence for *_, found in results.cells()), default=1.0)
    if reached < CONFIDENCE and results.unit is not Unit.MEMORY:
        lines += ["", f"Too few rounds to say who is ahead: these intervals are of {reached:.0%}."]
    else:
        ahead, level = map(results.of_verdict, (Verdict.AHEAD, Verdict.LEVEL))
        lines += ["", f"Ahead of {results.base}: {_listed(ahead)}."]
        if level:
            lines += ["", f"Not told apart from {results.base}: {_listed(level)}."]
    for remark in results.remarks:
        lines += ["", remark]
    return "\n".join(lines)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of Markdown; the first row is the head, all columns but the first are figures."""
    head, *body = rows
    rule = ["---", *["--:"] * (len(head) - 1)]
    return [f"| {' | '.join(row)} |" for row in (head, rule, *body)]


def _listed(cells: Sequence[tuple[str, str, Interval]]) -> str:
    if not cells:
        return "nobody"
    by_contender: dict[str, list[str]] = {}
    for load, contender, found in cells:
        by_contender.setdefault(contender, []).append(f"{load}: {ratio_text(found)}")
    return "; ".join(f"{name} ({' / '.join(each)})" for name, each in by_contender.items())


def chart(results: Results, path: Path) -> None:
    """Ratios to the base as bars, a group for each load."""
    pygal, style = load_pygal()
    plot = pygal.Bar(
        style=style(background="white", plot_background="white"),
        js=(),
        width=960,
        height=420,
        truncate_legend=-1,
        legend_at_bottom=True,
        legend_at_bottom_columns=5,
        x_label_rotation=20,
        title=results.title,
        disable_xml_declaration=True,
    )
    plot.x_labels = list(results.values)
    for contender in results.contenders:
        found = [results.ratio(load, contender) for load in results.values]
        plot.add(contender, [each and round(each.middle, 3) for each in found])
    # Its ids are random: without them the file changes only when the figures do.
    plot.uuid = results.name
    plot.render_to_file(str(path))


def show(results: Results) -> None:
    """All of it on standard output."""
    print(f"\n{results.title}")
    for load in results.values:
        for contender in results.contenders:
            told = f"{results.text(load, contender):>12}"
            found = results.ratio(load, contender)
            if found is not None and contender != results.base:
                verdict = results.verdict(found)
                told += f"   ratio {ratio_text(found)}"
                told += f"   {verdict.value}" if verdict is Verdict.AHEAD else ""
            print(f"{load:<34} {contender:<18} {told}")
    for remark in results.remarks:
        print(remark)


def fill(page: Path, name: str, text: str) -> None:
    """Put text between the marks of that name in a page; at its end if it has none.

    The marks are lines of their own: ``<!-- NAME: measured -->`` and ``<!-- NAME: end -->``.
    """
    begin, end = f"<!-- {name}: measured -->\n", f"<!-- {name}: end -->\n"
    old = page.read_text() if page.exists() else ""
    if begin not in old or end not in old:
        old = f"{old}\n{begin}{end}" if old else begin + end
    before, _, rest = old.partition(begin)
    after = rest.partition(end)[2]
    page.write_text(f"{before}{begin}\n{text.strip()}\n\n{end}{after}")


def described(machine: Mapping[str, str]) -> str:
    """Date, machine and versions in a paragraph."""
    named = dict(machine)
    date, processor, processors = (named.pop(each) for each in ("date", "processor", "processors"))
    versions = ", ".join(f"{name} {value}" for name, value in named.items() if name != "system")
    return f"Measured on {date}: {processors} x {processor}, {named['system']}. {versions}."


def as_json(results: Iterable[Results], machine: Mapping[str, str]) -> str:
    """Every value, for programs."""
    return json.dumps(
        {
            "machine": dict(machine),
            "confidence": CONFIDENCE,
            "results": {
                each.name: {
                    "base": each.base,
                    "unit": each.unit.value,
                    "values": {
                        load: {name: [round(v, 9) for v in values] for name, values in by.items()}
                        for load, by in each.values.items()
                    },
                    "left_out": each.notes,
                }
                for each in results
            },
        },
        indent=1,
    )

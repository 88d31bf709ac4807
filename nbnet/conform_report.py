"""What ``nbnet conform`` tells: a table and the failures for people, JSON for programs."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from nbnet import __version__
from nbnet.conform import OPEN, Outcome
from nbnet.conformance import Case, Step

SCHEMA: Final = "nbnet-conform/1"
_WIDTH: Final = 80
_SHOWN: Final = 48
"""Characters shown of what was sent, due or came."""
_BEFORE: Final = 16
"""Bytes of these that stand before a difference, if it is not near the beginning."""
_JSON_BYTES: Final = 256
"""Bytes that JSON has of them."""


def report(outcomes: Sequence[Outcome], target: str) -> str:
    """Each failure, a table by groups, and what it comes to; lines of 80 columns."""
    failed = [outcome for outcome in outcomes if outcome.fault]
    lines = [line for outcome in failed for line in (*_failure(outcome), "")]
    lines += [*_table(outcomes), ""]
    if failed:
        lines.append(f"FAILED: {target} fails {_count(len(failed))} of {len(outcomes)}")
    else:
        lines.append(f"OK: {target} passes {_count(len(outcomes))}")
    return "\n".join(lines)


def listing(cases: Sequence[Case], about: Mapping[str, str]) -> str:
    """The cases, by groups."""
    lines = []
    for group, names in _by_group(cases):
        lines += [f"{group}: {about[group]}"]
        lines += [f"  {case.name:<{_longest(names)}}  {case.why}" for case in names]
    return "\n".join(lines)


def document(
    outcomes: Sequence[Outcome], about: Mapping[str, str], target: str, expect: str
) -> dict[str, Any]:
    """The same as JSON values; bytes in hex, of long ones 256.

    Of what was due and what came these begin at byte ``from``, a little before they
    differ.
    """
    return {
        "schema": SCHEMA,
        "version": __version__,
        "target": target,
        "expect": expect,
        "cases": len(outcomes),
        "passed": sum(not outcome.fault for outcome in outcomes),
        "failed": sum(bool(outcome.fault) for outcome in outcomes),
        "groups": [
            {"name": group, "about": about[group], "cases": cases, "passed": cases - failed}
            | {"failed": failed}
            for group, cases, failed in _counts(outcomes)
        ],
        "failures": [
            {
                "group": outcome.case.group,
                "name": outcome.case.name,
                "why": outcome.case.why,
                "fault": outcome.fault,
                "sent": _hex(outcome.case.sent),
                "from": _start(outcome),
                "expected": _hex(outcome.case.expected, _start(outcome)),
                "expected_end": outcome.case.end.value,
                "got": _hex(outcome.got, _start(outcome)),
                "ended": outcome.ended,
            }
            for outcome in outcomes
            if outcome.fault
        ],
    }


def _table(outcomes: Sequence[Outcome]) -> list[str]:
    counts = _counts(outcomes)
    rows = [*counts, ("all", len(outcomes), sum(failed for _, _, failed in counts))]
    width = max(len("group"), *(len(group) for group, _, _ in rows))
    lines = [f"{'group':<{width}}  {'cases':>6} {'passed':>7} {'failed':>7}"]
    for group, cases, failed in rows:
        lines.append(f"{group:<{width}}  {cases:>6} {cases - failed:>7} {failed:>7}")
    return lines


def _counts(outcomes: Sequence[Outcome]) -> list[tuple[str, int, int]]:
    """Of each group its name, its cases and those that failed."""
    cases = Counter(outcome.case.group for outcome in outcomes)
    failed = Counter(outcome.case.group for outcome in outcomes if outcome.fault)
    return [(group, count, failed[group]) for group, count in cases.items()]


def _failure(outcome: Outcome) -> Iterator[str]:
    case = outcome.case
    start = _start(outcome)
    yield from _wrapped(f"{case}: {case.why}", "", "  ")
    yield from _wrapped(_sent(case), "  sent      ", " " * 12)
    due = _bytes(case.expected, start)
    yield from _wrapped(f"{due}, {case.end.words}", "  expected  ", " " * 12)
    if outcome.ended:
        got = _bytes(outcome.got, start)
        yield from _wrapped(f"{got}, {_ended(outcome.ended)}", "  got       ", " " * 12)
    yield from _wrapped(outcome.fault, "  fault     ", " " * 12)


def _start(outcome: Outcome) -> int:
    """From where to show what came and what was due: the beginning, or a little before
    they differ.
    """
    due, got = outcome.case.expected, outcome.got
    same = next((n for n, pair in enumerate(zip(due, got, strict=False)) if len({*pair}) > 1), 0)
    return max(0, same - _BEFORE) if same > _SHOWN - _BEFORE else 0


def _ended(ended: str) -> str:
    return "and then nothing, not even the end" if ended == OPEN else f"and then it was {ended}"


def _sent(case: Case) -> str:
    return ", a while later ".join(_step(step) for step in case.steps)


def _step(step: Step) -> str:
    text = _bytes(step.data)
    if len(step.pieces) > 1:
        text += f" in {len(step.pieces):,} pieces"
    return text + (" and the end of sending" if step.half_close else "")


def _bytes(data: bytes, start: int = 0) -> str:
    """Bytes as people read them, of long ones a part.

    >>> _bytes(b"00003abc"), _bytes(b"\\r"), _bytes(b"")
    ('00003abc', '\\\\r', 'nothing')
    """
    if not data:
        return "nothing"
    text = repr(data[start : start + _SHOWN])[2:-1]
    if len(text) > _SHOWN or start + _SHOWN < len(data):
        text = f"{text[: _SHOWN - 3]}... ({len(data):,} bytes)"
    return f"... from byte {start:,}: {text}" if start else text


def _wrapped(text: str, first: str, others: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=others)


def _by_group(cases: Sequence[Case]) -> Iterator[tuple[str, list[Case]]]:
    for group in dict.fromkeys(case.group for case in cases):
        yield group, [case for case in cases if case.group == group]


def _longest(cases: Sequence[Case]) -> int:
    return max(len(case.name) for case in cases)


def _count(count: int) -> str:
    return f"{count} case{'' if count == 1 else 's'}"


def _hex(data: bytes, start: int = 0) -> str:
    return data[start : start + _JSON_BYTES].hex()

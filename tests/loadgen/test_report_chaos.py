"""What is told of hostile traffic; most of it is tested with the command."""

from __future__ import annotations

from types import SimpleNamespace

from loadgen.chaos_storm import Example
from loadgen.report.chaos import _examples


def test_what_was_expected_and_what_came_stand_in_hex() -> None:
    example = Example(number=3, variant="", said="wrong bytes", expected=b"abc", got=b"xyz")
    outcome = SimpleNamespace(name="split", examples=[example])
    lines = _examples(SimpleNamespace(outcomes=[outcome]))  # type: ignore[arg-type]
    assert lines[-1] == "  split 3: wrong bytes, expected 616263, got 78797a"

"""Limits refuse values that make no sense."""

from __future__ import annotations

from typing import Any

import pytest

from nbnet.limits import Limits


def test_the_defaults_are_valid_and_frozen() -> None:
    limits = Limits()
    assert limits.max_frame == 99_999
    with pytest.raises(AttributeError):
        limits.max_frame = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_frame": 0}, "max_frame is 0, expected 1 to 99999"),
        ({"max_frame": 100_000}, "max_frame is 100000"),
        ({"low_water": 2, "high_water": 1}, "expected 0 <= low_water <= high_water"),
        ({"low_water": -1}, "expected 0 <= low_water"),
        ({"linger": -1}, "linger is -1, not negative expected"),
        ({"drain": -0.5}, "drain is -0.5"),
        ({"max_per_ip": -1}, "max_per_ip is -1"),
        ({"frames_per_turn": 0}, "frames_per_turn is 0, expected at least 1"),
    ],
)
def test_values_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Limits(**values)

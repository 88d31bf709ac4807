"""Counters that tests can tell apart."""

from __future__ import annotations

from dataclasses import fields
from itertools import count

from nbnet.counters import Counters


def distinct() -> Counters:
    """Counters with another number in each place."""
    numbers = count(1001)
    counters = Counters()
    for each in fields(counters):
        value = getattr(counters, each.name)
        if isinstance(value, list):
            setattr(counters, each.name, [next(numbers) for _ in value])
        else:
            setattr(counters, each.name, next(numbers))
    return counters

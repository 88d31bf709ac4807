"""What counts come to: a line and an exit code."""

from __future__ import annotations

import pytest

from loadgen.tally import Counts
from loadgen.verdict import Verdict, judge


def fine(**faults: int) -> Counts:
    """The counts of a fine run, but for the faults."""
    counts = Counts(held=2, sent=5, verified=5)
    for name, number in faults.items():
        setattr(counts, name, number)
    return counts


def test_a_run_in_which_every_reply_is_right_is_fine() -> None:
    assert judge(fine(), interrupted=False) == Verdict("OK: every reply verified", 0)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("wrong", "1,234 wrong replies"),
        ("failed", "1,234 failed requests"),
        ("timed_out", "1,234 requests without a reply"),
        ("failed_to_connect", "1,234 connections not made"),
        ("lost", "1,234 connections lost"),
    ],
)
def test_a_single_fault_fails_the_run_and_is_named(name: str, text: str) -> None:
    assert judge(fine(**{name: 1234}), interrupted=False) == Verdict(f"FAILED: {text}", 1)


def test_all_faults_are_named() -> None:
    counts = fine(wrong=1, failed=2, timed_out=3, failed_to_connect=4, lost=5)
    assert judge(counts, interrupted=False) == Verdict(
        "FAILED: 1 wrong replies, 2 failed requests, 3 requests without a reply, "
        "4 connections not made, 5 connections lost",
        1,
    )


def test_without_any_connection_that_is_the_verdict() -> None:
    counts = Counts(failed_to_connect=3)
    verdict = Verdict("FAILED: no connection could be made", 4)
    assert judge(counts, interrupted=False) == verdict


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        (fine(), "INTERRUPTED: every reply so far verified"),
        (fine(wrong=2), "INTERRUPTED: 2 wrong replies"),
        (Counts(), "INTERRUPTED: every reply so far verified"),
    ],
)
def test_an_interrupted_run_says_so_and_what_it_found(counts: Counts, text: str) -> None:
    assert judge(counts, interrupted=True) == Verdict(text, 130)

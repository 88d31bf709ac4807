"""Blocks of inputs through a target, here or in several processes, and what was found."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from fuzz.mutator import BLOCK, block
from fuzz.plan import SIZE
from fuzz.targets import TARGETS, corpus, quiet

KEPT: Final = 3
"""Findings of a block that are kept; the others are counted."""
SHRINKS: Final = 3_000
"""Runs of a target that making a finding smaller may take."""


@dataclass(slots=True)
class Finding:
    """An input on which a target failed, and what it said."""

    data: bytes
    said: str


@dataclass(slots=True)
class Found:
    """What came of some inputs: how many there were, how many failed, the first of these."""

    inputs: int = 0
    failed: int = 0
    findings: list[Finding] = field(default_factory=list)

    def add(self, other: Found) -> None:
        """Count what another block gave."""
        self.inputs += other.inputs
        self.failed += other.failed
        self.findings = (self.findings + other.findings)[:KEPT]


def fuzz(
    name: str,
    inputs: int,
    seed: int,
    processes: int = 1,
    progress: Callable[[Found], None] = lambda _: None,
) -> tuple[Found, float]:
    """Give a target so many inputs; what was found, and the seconds that it took.

    Args:
        name: of the target.
        seed: the same one gives the same inputs, in any number of processes.
        progress: called after each block, with the sum so far.
    """
    full, rest = divmod(inputs, BLOCK)
    sizes = [BLOCK] * full + [rest] * (rest > 0)
    jobs = ((name, seed, number, size) for number, size in enumerate(sizes))
    found, started = Found(), time.monotonic()
    for some in _results(jobs, processes):
        found.add(some)
        progress(found)
    return found, time.monotonic() - started


def _results(jobs: Iterator[tuple[str, int, int, int]], processes: int) -> Iterator[Found]:
    if processes == 1:
        yield from map(run_block, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(run_block, jobs)


def run_block(job: tuple[str, int, int, int]) -> Found:
    """One block: the target's name, the seed, the block's number, and how many of its inputs."""
    name, seed, number, size = job
    target, found = TARGETS[name], Found()
    with quiet():
        for data in itertools.islice(block(seed, number, corpus(name)), size):
            try:
                target(data)
            except Exception as error:  # whatever it is, it should not be
                found.failed += 1
                if len(found.findings) < KEPT:
                    found.findings.append(Finding(data, said(error)))
        found.inputs = size
        found.findings = [smaller(target, finding) for finding in found.findings]
    return found


def said(error: Exception) -> str:
    """What an exception says, in a line."""
    return f"{type(error).__name__}: {error}"


def smaller(target: Callable[[bytes], None], finding: Finding) -> Finding:
    """An input with as little in it as can be on which the target fails likewise."""
    kind = finding.said.split(":")[0]
    budget = SHRINKS

    def fails(data: bytes) -> bool:
        nonlocal budget, finding
        budget -= 1
        try:
            target(data)
        except Exception as error:
            if said(error).split(":")[0] == kind:
                finding = Finding(data, said(error))
                return True
        return False

    size = len(finding.data)
    while size and budget > 0:
        at = SIZE
        while at < len(finding.data) and budget > 0:
            data = finding.data
            if not fails(data[:at] + data[at + size :]):
                at += size
        size //= 2
    for place in range(SIZE):
        data = finding.data
        if place < len(data) and data[place]:
            fails(data[:place] + b"\0" + data[place + 1 :])
    return finding

"""What a run comes to: one line, an exit code, and what has to be said of the figures.

A figure that measures the load generator in place of the server, or a rate that
was not reached, is said in plain words with what to do about it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from loadgen.histogram import Histogram
from loadgen.plan import Plan
from loadgen.tally import Counts, Tally
from loadgen.thresholds import Result, uncovered
from nbnet.command import EXIT_FAILED, EXIT_INTERRUPTED
from nbnet.machine import usable_cores
from nbnet.notation import format_duration

EXIT_FINE: Final = 0
EXIT_THRESHOLD: Final = 3
EXIT_NO_CONNECTION: Final = 4
_FAULTS: Final = {
    "wrong": ("wrong reply", "wrong replies"),
    "failed": ("failed request", "failed requests"),
    "timed_out": ("request without a reply", "requests without a reply"),
    "failed_to_connect": ("connection not made", "connections not made"),
    "lost": ("connection lost", "connections lost"),
}
"""Counts that have to be 0, the gravest first; of one, and of more."""

BUSY: Final = 90.0
"""Per cent of a core from which on a worker counts as busy: what is left goes to
the waits between batches."""
BUSY_WITHOUT_SAMPLES: Final = 95.0
"""The same where there is no sample to tell where replies waited."""
NOTICEABLE_LAG: Final = 1_000_000
"""Nanoseconds of schedule lag, at the 99th percentile, of which a run has to speak."""
REACHED: Final = 0.99
"""The share of the planned requests that has to be sent."""
LITTLE_TOLERANCE: Final = 0.2
"""How far the requests in flight may differ from what Little's law says: they are
looked at once a batch, between which they come and go."""
LITTLE_FROM: Final = 10.0
"""Requests in flight from which on they are compared."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome in words, and the code that the command exits with."""

    text: str
    exit_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Loader:
    """The load generator's own share in what was measured.

    Attributes:
        cpu_percent: of a core that a worker used, on average.
        in_flight: requests in flight, on average of the measured time.
        rate_times_latency: what that is by Little's law: replies a second times
            their mean time, counted from the actual send.
        bound: whether the figures are rather the loader's than the server's;
            None where nothing was measured.
        reason: why, and what to do.
    """

    cpu_percent: float
    in_flight: float
    rate_times_latency: float
    bound: bool | None
    reason: str | None

    @property
    def obeys_little(self) -> bool:
        """Whether what was measured fits together."""
        off = abs(self.in_flight - self.rate_times_latency)
        most = max(self.in_flight, self.rate_times_latency)
        return most < LITTLE_FROM or off <= LITTLE_TOLERANCE * most


def judge(
    counts: Counts,
    *,
    interrupted: bool,
    thresholds: Sequence[Result] = (),
    aborted_at: float | None = None,
    losses: Sequence[str] = (),
) -> Verdict:
    """Judge a run by what was counted, and by what became of its thresholds.

    Of faults that a threshold speaks of, it alone decides whether they fail the run.

    Args:
        aborted_at: seconds measured when a threshold ended it; None if none did.
        losses: what is missing of the figures, in words: the run is not what was asked.

    >>> judge(Counts(held=1, sent=3, verified=3), interrupted=False)
    Verdict(text='OK: every reply verified', exit_code=0)
    >>> judge(Counts(held=1, sent=3, verified=3, unsent=1), interrupted=False).text
    'OK: every reply verified; 75.0 % of the requests planned were sent'
    """
    found = Counter({name: getattr(counts, name) for name in _FAULTS})
    faults = _count_faults(uncovered(found, thresholds))
    failed = [str(each) for each in thresholds if not each.passed]
    number = f"{len(failed)} of {_thresholds(len(thresholds))}"
    if interrupted:
        text = f"INTERRUPTED: {_count_faults(found) or 'every reply so far verified'}"
        if failed:
            text += f"; {number} failed: {', '.join(failed)}"
        return Verdict("; ".join([text, *losses]), EXIT_INTERRUPTED)
    if losses:
        text = f"FAILED: {'; '.join(losses)}"
        if failed:
            text += f"; {number} failed: {', '.join(failed)}"
        rest = _count_faults(found) or ("every other reply verified" if counts.verified else "")
        return Verdict(f"{text}; {rest}" if rest else text, EXIT_FAILED)
    if not counts.held:
        return Verdict("FAILED: no connection could be made", EXIT_NO_CONNECTION)
    if failed:
        text = f"FAILED: {number}: {', '.join(failed)}"
        if faults:
            text += f"; {faults}"
        if aborted_at is not None:
            when = f"at {format_duration(aborted_at)}" if aborted_at else "before the measured time"
            text += f"; aborted {when}"
        return Verdict(text, EXIT_THRESHOLD)
    if faults:
        return Verdict(f"FAILED: {faults}", EXIT_FAILED)
    if not counts.sent:
        return Verdict("FAILED: no request was sent in the measured time", EXIT_FAILED)
    text = f"OK: {_count_faults(found) or 'every reply verified'}"
    if thresholds:
        text += f", {_thresholds(len(thresholds))} passed"
    planned = counts.sent + counts.unsent
    if counts.sent < REACHED * planned:  # who reads this line alone is to know
        text += f"; {100 * counts.sent / planned:.1f} % of the requests planned were sent"
    return Verdict(text, EXIT_FINE)


def _count_faults(faults: Counter[str]) -> str:
    """How many of which there were, for people; nothing if there were none."""
    return ", ".join(
        f"{faults[name]:,} {one if faults[name] == 1 else many}"
        for name, (one, many) in _FAULTS.items()
        if faults[name]
    )


def _thresholds(number: int) -> str:
    return f"{number} threshold{'' if number == 1 else 's'}"


def examine(tally: Tally, workers: int, *, hosts: int = 0) -> Loader:
    """Find out how much of what was measured is the load generator's own.

    Args:
        workers: all engines.
        hosts: of a cluster, that they ran on; 0 is this machine.
    """
    counts, elapsed = tally.counts, tally.elapsed
    if not (elapsed and counts.verified):
        return Loader(
            cpu_percent=0.0, in_flight=0.0, rate_times_latency=0.0, bound=None, reason=None
        )
    cpu = 100 * counts.cpu_seconds / elapsed / workers
    reason = _reason(tally, cpu, workers, hosts)
    return Loader(
        cpu_percent=cpu,
        in_flight=counts.in_flight_seconds / elapsed,
        rate_times_latency=counts.on_time * tally.service.mean / 1e9 / elapsed,
        bound=reason is not None,
        reason=reason,
    )


def _reason(tally: Tally, cpu: float, workers: int, hosts: int) -> str | None:
    """Why the figures measure the loader, with what to do; None if they do not."""
    counts = tally.counts
    wait, server, lag = Histogram(counts.wait), Histogram(counts.server), Histogram(counts.lag)
    late = lag.percentile(99) if lag else 0
    if cpu < BUSY:
        # Replies may wait all the same: where server and worker take turns, whole
        # batches wait for each other. But what is due by the clock has to be seen.
        if late < 10 * NOTICEABLE_LAG:
            return None
        return (
            f"one request in a hundred was noticed {_time(late)} late though the workers had time: "
            "something else takes the processor; give them a core of their own"
        )
    waited, served = wait.percentile(50), server.percentile(50)
    busy = f"{'its worker' if workers == 1 else 'each worker'} used {cpu:.0f} % of a core"
    if wait:
        if waited < served and late < NOTICEABLE_LAG:
            return None
        where = (
            f"half of the replies waited {_time(waited)} for it after the server's {_time(served)}"
        )
        if late >= NOTICEABLE_LAG:
            where += f", and requests went out up to {_time(late)} late"
    elif cpu < BUSY_WITHOUT_SAMPLES:
        return None
    else:
        where = "the server may be faster than these figures"
    cores = usable_cores()
    if hosts:
        advice = "use more --workers where a host has cores left, or more hosts"
    elif workers + 1 < cores:
        advice = f"use --workers {min(cores - 1, 2 * workers)} of the {cores} cores here"
    else:
        advice = "use fewer connections, a lower rate, or more machines"
    return f"{busy}; {where}: {advice}"


def notes(plan: Plan, tally: Tally, loader: Loader) -> list[str]:
    """What has to be said of the figures, the gravest first; each a line for people."""
    counts = tally.counts
    found = []
    if counts.wrong and not counts.verified and plan.traffic.expect != "none":
        found.append(
            f"NONE RIGHT: no reply was what --expect {plan.traffic.expect} demands; if the server "
            "answers otherwise on purpose, say how: --expect echo, none or module:function"
        )
    planned = counts.sent + counts.unsent
    if plan.is_open_loop and planned and counts.sent < REACHED * planned:
        found.append(
            f"RATE MISSED: {counts.sent / tally.elapsed:,.0f} of {planned / tally.elapsed:,.0f} "
            f"requests/s were sent, {counts.unsent:,} were not: "
            + (
                "the loader did not keep up"
                if loader.bound
                else "all connections were waiting for replies; use more --conns, or the server "
                "is at its limit"
            )
        )
    if loader.bound:
        found.append(f"LOADER-BOUND: {loader.reason}")
    # In less than the time of a request, as after Ctrl-C, hardly any begins and ends.
    whole = tally.elapsed * 1e9 > tally.service.mean
    if loader.bound is not None and not loader.obeys_little and whole:
        found.append(
            f"LITTLE'S LAW: {loader.in_flight:,.1f} requests were in flight on average, and their "
            f"rate times their latency gives {loader.rate_times_latency:,.1f}: "
            "some time is in no latency, so trust these figures little"
        )
    if not plan.is_open_loop and counts.verified:
        found.append(
            "NOTE: in a closed loop nothing more is sent while the server stalls, so a stall "
            "counts once a connection; use --rate for the latency that users see"
        )
    return found


def _time(nanoseconds: int) -> str:
    return format_duration(nanoseconds / 1e9)

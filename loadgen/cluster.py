"""The engines of a run on the hosts of a Dask cluster: as ``Workers``, elsewhere.

Each host has an agent (``loadgen.agent``) and a process that runs its engines
(``loadgen.host_process``). What they tell comes as events; the run goes on in steps
that all hosts take together:

* all are asked what they are; they must be of one version, since snapshots are
  pickled;
* each finds out whether it can do its share; what one cannot do is said before any
  connects;
* all connect;
* when all have, each is told the moment to start, on its own clock.

The rules: every wait has a deadline of its own, and who misses it is lost; what a
lost host had told up to then counts, exactly, and the verdict says that the rest is
missing; a host that ends must have told as many snapshots, of the same sum, as
were heard of it.

Nothing here knows Dask: ``loadgen.link`` is the way to the hosts.
"""

from __future__ import annotations

import contextlib
import pickle
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Self

from loadgen import agent
from loadgen.clocks import Offset, Sample, estimate
from loadgen.hosts import HostFigures
from loadgen.link import Event, Heard, Host, Link
from loadgen.plan import ClusterPlan, Plan
from loadgen.running import CONNECTIONS_A_WORKER
from loadgen.share import CONNECT, Share, Told
from loadgen.tally import Snapshot
from loadgen.verdict import EXIT_NO_CONNECTION
from loadgen.worker import START
from nbnet.command import EXIT_USAGE, CommandError
from nbnet.notation import format_duration

if TYPE_CHECKING:
    from loadgen.running import Site

LEAD: Final = 200_000_000
"""Nanoseconds from the word to start to the start, beside two round trips."""
SAMPLES: Final = 8
"""Round trips by which clocks are compared; more cost time and gain little."""
SAMPLE_SECONDS: Final = 1.0
"""That one may take: a longer one would tell nothing."""
MESSAGES_A_SECOND: Final = 50_000
"""That a slow host makes ahead of a run."""
_TICK: Final = 0.1
_END: Final = 3.0
"""Seconds that hosts have to end at once."""


class _Step(Enum):
    """How far a host is, and what it is waited for."""

    PLACED = "was not prepared"
    PREPARED = "had not connected"
    READY = "had not ended"
    DONE = "had not ended its processes"
    OVER = ""


@dataclass(slots=True, eq=False)
class _State:
    """A host during the run."""

    host: Host
    figures: HostFigures
    share: Share
    step: _Step = _Step.PLACED
    messages: int = 0
    snapshots: int = 0
    samples: list[Sample] = field(default_factory=list)
    offset: Offset | None = None


class Cluster:
    """Gives the snapshots of all engines of all hosts as they come.

    Use as a context manager: at its end no process is left on any host that can be
    reached, and the others end by themselves.

    Args:
        plan: what all hosts do together.
        site: the server, and how many engines a host runs; None is as many as it has
            cores, if they pay.
        cluster: which hosts.
        tell: takes lines for people.
        link: the way to the hosts; None is Dask.
        clock: monotonic nanoseconds.

    Attributes:
        workers: how many engines there are, once entered.

    Raises:
        CommandError: there is no such cluster, or a host cannot do its share.
        PlanError: there are more engines than connections.
    """

    def __init__(
        self,
        plan: Plan,
        site: Site,
        cluster: ClusterPlan,
        *,
        tell: Callable[[str], None] = lambda _: None,
        link: Link | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._plan = plan
        self._site = site
        self._cluster = cluster
        self._tell = tell
        self._clock = clock
        self._run = uuid.uuid4().hex[:12]
        if link is None:
            from loadgen.dask_link import DaskLink

            link = DaskLink(cluster, self._run)
        self._link = link
        self._states: dict[str, _State] = {}
        self._step = _Step.PLACED
        self._deadline = 0
        self._moment = 0
        self._stopped = False
        self._stopping = False  # known to those who wait
        self._stack = contextlib.ExitStack()
        self.workers = 0

    # Before the run ------------------------------------------------------------

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._link)
            hosts = self._choose()
            self._divide(hosts, self._survey(hosts))
            stack.callback(self._end)
            self._reserve()
            self._compare_clocks()
            self._introduce()
            for state in self._states.values():
                self._link.place(state.host)
            self._allow(self._cluster.patience + self._plan.in_flight / MESSAGES_A_SECOND)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _choose(self) -> list[Host]:
        """The hosts to use."""
        wanted, patience = self._cluster.hosts, self._cluster.patience
        deadline = self._clock() + int(patience * 1e9)
        hosts = self._link.hosts()
        while len(hosts) < (wanted or 1) and self._clock() < deadline:
            self._link.next(_TICK)  # nothing is to be heard yet
            hosts = self._link.hosts()
        if len(hosts) < (wanted or 1):
            there = _many(len(hosts), "host") if hosts else "no host"
            raise CommandError(
                f"--cluster {self._cluster.scheduler}: {there} with a Dask worker after "
                f"{patience:g} s (start one on each: dask worker {self._cluster.scheduler} "
                "--nthreads 1)",
                EXIT_NO_CONNECTION,
            )
        return hosts[:wanted]

    def _survey(self, hosts: list[Host]) -> dict[str, dict[str, Any]]:
        """What each host is, if all are of our version."""
        ours = agent.survey()
        answers = self._link.call(
            agent.survey, {host.worker: () for host in hosts}, self._cluster.patience
        )
        surveys = {}
        for host in hosts:
            theirs = answers[host.worker]
            if isinstance(theirs, Exception):
                raise _unusable(host, theirs)
            for what in ("loadgen", "python", "distributed"):
                if theirs[what] != ours[what]:
                    raise CommandError(
                        f"host {host.address} has {what} {theirs[what]} and this machine "
                        f"{ours[what]}: all need the same",
                        EXIT_USAGE,
                    )
            surveys[host.worker] = theirs
        return surveys

    def _divide(self, hosts: list[Host], surveys: dict[str, dict[str, Any]]) -> None:
        """Give each host its share."""
        plan, site = self._plan, self._site
        assert site.target is not None
        cores = [surveys[host.worker]["cores"] for host in hosts]
        workers = engines_of(plan, cores, site.workers)
        self.workers = sum(workers)
        plan.share(0, self.workers)  # refused here if there are too many
        first = 0
        for host, number, available in zip(hosts, workers, cores, strict=True):
            share = Share(
                plan=plan,
                target=site.target,
                first=first,
                workers=number,
                workers_in_all=self.workers,
                sources=site.sources,
                tls=site.tls,
            )
            first += number
            figures = HostFigures(
                host=host.address,
                name=surveys[host.worker]["name"],
                workers=number,
                cores=available,
            )
            self._states[host.worker] = _State(host, figures, share)

    def _reserve(self) -> None:
        answers = self._link.call(
            agent.reserve,
            {worker: (self._run, pickle.dumps(each.share)) for worker, each in self._live()},
            self._cluster.patience,
        )
        for worker, state in self._live():
            answer = answers[worker]
            if isinstance(answer, Exception):
                raise _unusable(state.host, answer)

    def _compare_clocks(self) -> None:
        """Take samples of the hosts' clocks; those before are forgotten where new ones come."""
        live = dict(self._live())
        new: dict[str, list[Sample]] = {worker: [] for worker in live}
        for _ in range(SAMPLES):
            for worker, sample in self._link.time(list(new), SAMPLE_SECONDS).items():
                if isinstance(sample, Sample):
                    new[worker].append(sample)
                else:  # who does not answer once does not hold up the others again
                    state = live.pop(worker)
                    state.samples += new.pop(worker)
        for worker, state in live.items():
            state.samples = new[worker]
        for _, state in self._live():
            if state.samples:
                state.offset = estimate(state.samples)
                state.figures.clock_offset = state.offset.ahead / 1e9

    def _introduce(self) -> None:
        hosts = [state.figures for state in self._states.values()]
        within = max((state.offset.within for _, state in self._live() if state.offset), default=0)
        named = ", ".join(host.host for host in hosts[:8]) + (" ..." if len(hosts) > 8 else "")
        self._tell(
            f"{_many(len(hosts), 'host')}, {_many(self.workers, 'worker')}: {named}; clocks "
            f"compared to within {format_duration(within / 1e9)}"
        )

    # The run -------------------------------------------------------------------

    def __iter__(self) -> Iterator[Snapshot]:
        """Every snapshot of every engine, until all hosts are done or lost."""
        while any(True for _ in self._live()):
            event = self._link.next(_TICK)
            if event is not None and event.worker in self._states:
                snapshot = self._take(self._states[event.worker], event)
                if snapshot is not None:
                    yield snapshot
            if self._stopped and not self._stopping:
                self._stopping = True
                self._allow(self._plan.grace + self._cluster.patience)
            self._advance()

    def stop(self) -> None:
        """Have the engines stop sending and report; may be called from a signal handler."""
        self._stopped = True
        self._link.post(agent.command, {worker: (self._run, b"") for worker, _ in self._live()})

    @property
    def figures(self) -> tuple[HostFigures, ...]:
        """What each host did so far."""
        return tuple(state.figures for state in self._states.values())

    def _live(self) -> Iterator[tuple[str, _State]]:
        """The hosts that something is still to be heard of."""
        for worker, state in self._states.items():
            if state.step is not _Step.OVER:
                yield worker, state

    def _allow(self, seconds: float) -> None:
        """So long may what comes next take."""
        self._deadline = self._clock() + int(seconds * 1e9)

    def _take(self, state: _State, event: Event) -> Snapshot | None:
        """Note what was heard of a host; give the snapshot that it was, if it was one."""
        if state.step is _Step.OVER:  # lost before
            return None
        if event.kind is Heard.BODY:
            return self._take_message(state, *event.value)
        if event.kind is Heard.GONE:
            self._lose(state, event.value)
        elif event.kind is Heard.ENDED:
            if state.step is _Step.DONE:
                state.step = _Step.OVER
            else:
                self._lose(state, f"its process ended with exit code {event.value}")
        elif event.kind is Heard.SILENT:
            self._tell(
                f"host {state.host.address}: nothing heard for {format_duration(event.value)}"
            )
        elif event.kind is Heard.AGAIN:
            self._tell(f"host {state.host.address}: heard again")
        elif event.kind is Heard.ANSWER:
            self._take_answer(state, *event.value)
        elif event.kind is Heard.TIME and state.offset is not None:
            now = estimate([event.value])
            if now.differs(state.offset):
                state.figures.clock_drift = (now.ahead - state.offset.ahead) / 1e9
        return None

    def _take_message(self, state: _State, number: int, body: bytes) -> Snapshot | None:
        kind, value = pickle.loads(body)
        if number != state.messages:
            self._lose(state, f"{number - state.messages} of its messages went missing")
            return None
        state.messages += 1
        figures = state.figures
        if kind is Told.REFUSED:
            message, code = value
            raise CommandError(f"host {state.host.address}: {message}", code)
        if kind is Told.PREPARED:
            state.step = _Step.PREPARED
        elif kind is Told.READY:
            state.step = _Step.READY
        elif kind is Told.FAILED:
            self._lose(state, f"{value}, see the log of its Dask worker")
        elif kind is Told.DONE:
            if value == (state.snapshots, figures.counts):
                state.step = _Step.DONE
            else:
                self._lose(state, "what was heard of it is not all that it counted")
        else:
            snapshot: Snapshot = value
            state.snapshots += 1
            figures.counts.add(snapshot.counts)
            figures.elapsed = max(figures.elapsed, snapshot.elapsed)
            return snapshot
        return None

    def _advance(self) -> None:
        """Go on to the next step when all hosts have come so far, or the time for it is over."""
        live = [state for _, state in self._live()]
        if not live:
            return
        if not self._stopping:
            if self._step is _Step.PLACED and all(s.step is not _Step.PLACED for s in live):
                self._step = _Step.PREPARED
                self._command(dict.fromkeys(live, CONNECT))
                self._allow(self._plan.connect_seconds + self._cluster.patience)
                return
            if self._step is _Step.PREPARED and all(
                s.step not in (_Step.PLACED, _Step.PREPARED) for s in live
            ):
                self._step = _Step.READY
                self._start(live)
                return
        if self._clock() > self._deadline:
            for state in live:
                if self._stopping or state.step in (self._step, _Step.DONE):
                    self._lose(state, f"it {state.step.value} in time")

    def _start(self, live: list[_State]) -> None:
        """Have all start at one moment."""
        self._compare_clocks()
        slowest = max((sample.round_trip for state in live for sample in state.samples), default=0)
        self._moment = self._clock() + LEAD + 2 * slowest
        words = {}
        for state in live:
            if state.offset is None:
                self._lose(state, "its clock could not be compared")
            else:
                words[state] = START.pack(state.offset.there(self._moment))
        self._command(words)
        plan = self._plan
        self._allow(
            (self._moment - self._clock()) / 1e9
            + (plan.warmup + plan.duration + 2 * plan.grace)
            + self._cluster.patience
        )

    def _command(self, words: Mapping[_State, bytes]) -> None:
        """Tell hosts to go on; who does not hear is lost."""
        calls = {state.host.worker: (self._run, word) for state, word in words.items()}
        self._link.post(agent.command, calls, self._cluster.patience)

    def _take_answer(self, state: _State, words: tuple[str, bytes], answer: Any) -> None:
        """A host has heard to go on, at a moment of its clock, or it has not."""
        if isinstance(answer, Exception):
            self._lose(state, f"it could not be told to go on: {_in_words(answer)}")
        elif words[1] != CONNECT and state.offset is not None:
            late = max(0, answer - state.offset.there(self._moment))
            state.figures.start_within = (state.offset.within + late) / 1e9

    def _lose(self, state: _State, reason: str) -> None:
        """A host is lost: without ``keep_going``, the others report and end."""
        if state.step is _Step.DONE:  # it has told everything
            state.step = _Step.OVER
            return
        state.step = _Step.OVER
        state.figures.lost = reason
        self._tell(state.figures.loss)
        self._link.post(agent.abort, {state.host.worker: (self._run,)})
        if not (self._cluster.keep_going or self._stopped):
            self.stop()

    def _end(self) -> None:
        """End at once whatever still runs."""
        live = dict(self._live())
        if not live:
            return
        with contextlib.suppress(TimeoutError):
            self._link.call(agent.abort, dict.fromkeys(live, (self._run,)), _END)
        deadline = self._clock() + int(_END * 1e9)
        while any(True for _ in self._live()) and self._clock() < deadline:
            event = self._link.next(_TICK)
            if (
                event is not None
                and event.worker in live
                and event.kind in (Heard.ENDED, Heard.GONE)
            ):
                live[event.worker].step = _Step.OVER


def engines_of(plan: Plan, cores: list[int], asked: int | None) -> list[int]:
    """How many engines each host runs.

    Args:
        cores: of each.
        asked: how many each is to run; None is as many as it has cores, if they pay.

    >>> engines_of(Plan(connections=1000), [2, 8], None)
    [2, 8]
    >>> engines_of(Plan(connections=200), [2, 8], None)
    [2, 2]
    """
    if asked is not None:
        return [asked] * len(cores)
    most = plan.senders // CONNECTIONS_A_WORKER // len(cores)
    if plan.requests is not None:
        most = min(most, plan.requests // len(cores))
    return [max(1, min(each, most)) for each in cores]


def _unusable(host: Host, error: Exception) -> CommandError:
    """Why a host cannot be used, with what to do."""
    # By their words: Dask does not pass on every error as what it was.
    words = str(error)
    if missing := re.search(r"No module named '((?:loadgen|nbnet)\b[^']*)'", words):
        return CommandError(
            f"host {host.address} has no {missing[1]}: install the same version of nbnet there "
            "as here",
            EXIT_USAGE,
        )
    if "Can't get attribute" in words or "has no attribute" in words:
        return CommandError(
            f"host {host.address} has another version of loadgen: all need the same", EXIT_USAGE
        )
    return CommandError(f"host {host.address}: {_in_words(error)}", EXIT_USAGE)


def _in_words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    text = str(error).splitlines()
    return text[0] if text else type(error).__name__


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"

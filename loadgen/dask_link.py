"""The way to a cluster's hosts, over Dask: one worker a host, calls, events.

Everything of Dask's client runs in the event loop of a thread of its own; whoever
uses a ``DaskLink`` waits for results with a deadline, and takes events from a
queue. So what is done with snapshots never delays a look at a host's silence.

A host is noticed to be lost when the scheduler says that its worker is gone (its
process ended: the connection closed, within milliseconds), or when nothing is
heard of it: agents tell something four times a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
import warnings
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from loadgen import agent
from loadgen.clocks import Sample
from loadgen.link import Calls, Event, Heard, Host
from loadgen.plan import ClusterPlan
from loadgen.verdict import EXIT_NO_CONNECTION
from nbnet.command import EXIT_USAGE, CommandError

if TYPE_CHECKING:
    from distributed import Client, Future, Security

SILENT_AFTER: Final = 0.8
"""Seconds without a word from a host after which that is said."""
LOST_AFTER: Final = 5.0
"""Seconds after which it is taken for lost: a host may stall and come back."""
_LOOK: Final = 0.1
_ASK: Final = 5.0
"""Seconds between two looks at a host's clock; a third of an agent's lease."""
_CLOSE: Final = 3.0

T = TypeVar("T")


class DaskLink:
    """Use as a context manager.

    Args:
        plan: which cluster.
        run: what distinguishes this run from all others.

    Raises (on entering):
        CommandError: Dask is not installed, or there is no way to the scheduler.
    """

    def __init__(self, plan: ClusterPlan, run: str) -> None:
        self._plan = plan
        self._run = run
        self._loop: asyncio.AbstractEventLoop
        self._thread = threading.Thread(target=self._work, name="loadgen cluster", daemon=True)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._client: Client
        self._placed: list[Future[None]] = []
        self._heard: dict[str, float] = {}  # when, of the hosts that are watched
        self._silent: set[str] = set()
        self._gone: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def __enter__(self) -> Self:
        security = _security(self._plan)
        self._loop = asyncio.new_event_loop()
        self._thread.start()
        with contextlib.ExitStack() as stack:
            stack.callback(self._end)
            self._wait(self._connect(security), 2 * self._plan.patience)
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with contextlib.suppress(Exception):  # the run is over, whatever Dask raises
                self._wait(self._close(), _CLOSE + 1)
        finally:
            self._end()

    # What a Cluster asks for ---------------------------------------------------

    def hosts(self) -> list[Host]:
        """The hosts of the cluster, one worker each, in the order of their addresses.

        Raises:
            CommandError: the scheduler does not answer.
        """
        try:
            info = self._wait(self._identify(), self._plan.patience)
        except OSError as error:
            raise CommandError(
                f"--cluster {self._plan.scheduler}: the scheduler does not answer",
                EXIT_NO_CONNECTION,
            ) from error
        chosen: dict[str, Host] = {}
        for address, worker in sorted(info["workers"].items(), key=lambda item: str(item[0])):
            chosen.setdefault(
                worker["host"], Host(worker["host"], address, "loadgen" in worker["resources"])
            )
        return sorted(chosen.values(), key=_by_address)

    def call(
        self, function: Callable[..., T], arguments: Mapping[str, tuple[Any, ...]], seconds: float
    ) -> dict[str, T | Exception]:
        """Call a function on some workers at once.

        Args:
            arguments: of the call, by address of the worker.
            seconds: that it may take.

        Returns:
            By address, what it returned, or what went wrong: ``TimeoutError`` among others.
        """

        async def all_of_them() -> dict[str, T | Exception]:
            calls = (self._call(each, function, *given) for each, given in arguments.items())
            timed = (asyncio.wait_for(each, seconds) for each in calls)
            results = await asyncio.gather(*timed, return_exceptions=True)
            return {each: _expected(one) for each, one in zip(arguments, results, strict=True)}

        return self._wait(all_of_them(), seconds + 1)

    def time(self, addresses: list[str], seconds: float) -> dict[str, Sample | Exception]:
        """Ask some workers for the time, all at once."""

        async def all_of_them() -> dict[str, Sample | Exception]:
            timed = (asyncio.wait_for(self._ask(each), seconds) for each in addresses)
            results = await asyncio.gather(*timed, return_exceptions=True)
            return {each: _expected(one) for each, one in zip(addresses, results, strict=True)}

        return self._wait(all_of_them(), seconds + 1)

    def place(self, host: Host) -> None:
        """Start the agent on a host; it is told of by events from then on."""

        async def submit() -> None:
            future = self._client.submit(
                agent.drive,
                self._run,
                host.worker,
                key=f"loadgen-{self._run}-{host.address}",
                workers=[host.worker],
                allow_other_workers=False,
                pure=False,
                retries=0,
                resources={"loadgen": 1} if host.declares else {},
            )
            self._placed.append(future)
            self._spawn(self._watch_task(future, host.worker))
            self._spawn(self._watch_clock(host.worker))

        self._wait(submit(), self._plan.patience)

    def next(self, seconds: float) -> Event | None:
        """What was heard next; None if nothing was in so many seconds."""
        try:
            return self._events.get(timeout=seconds)
        except queue.Empty:
            return None

    def post(
        self, function: Callable[..., object], calls: Calls, seconds: float | None = None
    ) -> None:
        """As ``call``, but without waiting for it; may be called from a signal handler.

        Args:
            seconds: the time after which what came of each is an event, at the
                latest; None if it does not matter.
        """

        async def post_one(address: str, arguments: tuple[Any, ...]) -> None:
            answer: object
            try:
                answer = await asyncio.wait_for(
                    self._call(address, function, *arguments), seconds or self._plan.patience
                )
            except Exception as error:  # the agent's own or Dask's: whoever asked is told
                answer = error
            if seconds is not None:
                self._events.put(Event(address, Heard.ANSWER, (arguments, answer)))

        def begin() -> None:
            for address, arguments in calls.items():
                self._spawn(post_one(address, arguments))

        with contextlib.suppress(RuntimeError):  # all is over
            self._loop.call_soon_threadsafe(begin)

    # In the event loop ---------------------------------------------------------

    async def _connect(self, security: Security) -> None:
        from distributed import Client
        from distributed.versions import VersionMismatchWarning

        plan = self._plan
        # What goes wrong is told in a line, by whoever it concerns.
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        for name in list(logging.root.manager.loggerDict):
            if name.startswith("distributed."):
                logging.getLogger(name).setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            # Versions are compared by what matters here.
            warnings.simplefilter("ignore", VersionMismatchWarning)
            self._client = Client(
                plan.scheduler,
                security=security,
                asynchronous=True,
                set_as_default=False,
                timeout=plan.patience,
                name="loadgen",
            )
            try:
                # Its own timeout is of each attempt, and does not see a peer that says nothing.
                await asyncio.wait_for(self._client, plan.patience)
            except (OSError, ValueError) as error:
                with contextlib.suppress(Exception):  # the first error is what is told
                    await asyncio.wait_for(self._client.close(), 1.0)
                raise CommandError(
                    f"--cluster {plan.scheduler}: cannot connect to a Dask scheduler there: "
                    f"{_reason(error)} (start one with: dask scheduler)",
                    EXIT_NO_CONNECTION,
                ) from error
        self._client.subscribe_topic(agent.TOPIC, self._take)
        self._client.subscribe_topic("all", self._take_change)
        self._spawn(self._watch_silence())

    async def _identify(self) -> dict[str, Any]:
        info: dict[str, Any] = await self._client.scheduler.identity(n_workers=-1)
        return info

    async def _call(self, address: str, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function on a worker; as soon as that is gone, it is no use to wait for it.

        Raises:
            ConnectionError: it is gone. Dask itself would try for half a minute.
            Exception: whatever the function raised, or the way there.
        """
        gone = self._gone.setdefault(address, asyncio.Event())
        call = asyncio.ensure_future(self._client.run(function, *arguments, workers=[address]))
        end = asyncio.ensure_future(gone.wait())
        try:
            await asyncio.wait({call, end}, return_when=asyncio.FIRST_COMPLETED)
            if not call.done():
                raise ConnectionError("its Dask worker ended")
            result: T = call.result()[address]
            return result
        finally:
            call.cancel()
            end.cancel()

    async def _ask(self, address: str) -> Sample:
        asked = time.monotonic_ns()
        theirs = await self._call(address, agent.tell_time, self._run)
        return Sample(asked, theirs, time.monotonic_ns())

    def _take(self, event: tuple[float, dict[str, Any]]) -> None:
        """An agent has told something."""
        message = event[1]
        if message.get("run") != self._run:
            return
        host = message["host"]
        self._heard[host] = time.monotonic()
        if host in self._silent:
            self._silent.discard(host)
            self._events.put(Event(host, Heard.AGAIN))
        if "body" in message:
            self._events.put(Event(host, Heard.BODY, (message["number"], message["body"])))
        elif "ended" in message:
            self._heard.pop(host, None)
            self._events.put(Event(host, Heard.ENDED, message["ended"]))
        else:
            self._events.put(Event(host, Heard.BEAT))

    def _take_change(self, event: tuple[float, dict[str, Any]]) -> None:
        """The cluster has changed."""
        message = event[1]
        if message.get("action") == "remove-worker":
            self._heard.pop(message["worker"], None)
            self._gone.setdefault(message["worker"], asyncio.Event()).set()
            self._events.put(Event(message["worker"], Heard.GONE, "its Dask worker ended"))

    async def _watch_silence(self) -> None:
        now = time.monotonic()
        while True:
            await asyncio.sleep(_LOOK)
            before, now = now, time.monotonic()
            self._look(before, now)

    def _look(self, before: float, now: float) -> None:
        """See of whom nothing was heard; the last look was at ``before``."""
        if now - before > SILENT_AFTER:
            # It was this process that stood still: what has come is not read yet.
            self._heard = dict.fromkeys(self._heard, now)
        if self._client.status != "running":
            for host in list(self._heard):
                del self._heard[host]
                self._events.put(Event(host, Heard.GONE, "the scheduler is gone"))
        for host, heard in list(self._heard.items()):
            if now - heard > LOST_AFTER:
                del self._heard[host]
                words = f"nothing was heard of it for {LOST_AFTER:g} s"
                self._events.put(Event(host, Heard.GONE, words))
            elif now - heard > SILENT_AFTER and host not in self._silent:
                self._silent.add(host)
                self._events.put(Event(host, Heard.SILENT, now - heard))

    async def _watch_task(self, future: Future[None], host: str) -> None:
        """Notice an agent that failed, or could not even be begun."""
        error = await future.exception()
        if error is not None:
            words = f"its agent failed: {type(error).__name__}: {_first_line(str(error))}"
            if "deserializ" in str(error):  # by the scheduler, which looks at each task
                words = "the scheduler has no or another nbnet: it needs the same version as all"
            self._events.put(Event(host, Heard.GONE, words))

    async def _watch_clock(self, host: str) -> None:
        """Tell an agent from time to time that we are still there, and see how its clock runs."""
        while True:
            await asyncio.sleep(_ASK)
            with contextlib.suppress(Exception):  # silence is noticed otherwise
                sample = await asyncio.wait_for(self._ask(host), _ASK)
                self._events.put(Event(host, Heard.TIME, sample))

    async def _close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for future in self._placed:
            future.release()
        await asyncio.wait_for(self._client.close(), _CLOSE)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        async def quietly() -> None:
            # Of a scheduler or host that is gone, which is noticed by its silence.
            with contextlib.suppress(Exception):
                await work

        task = self._loop.create_task(quietly())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # The thread ----------------------------------------------------------------

    def _wait(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        """What a coroutine comes to, if it does in so many seconds."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(seconds)
        finally:
            future.cancel()

    def _work(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            # What Dask's client has left behind.
            left = asyncio.all_tasks(self._loop)
            for task in left:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        finally:
            self._loop.close()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE)


def _security(plan: ClusterPlan) -> Security:
    """How the scheduler is spoken to.

    Raises:
        CommandError: Dask is not installed, or TLS lacks a file, or one cannot be used.
    """
    try:
        from distributed import Security
    except ImportError as error:
        raise CommandError(
            "--cluster: needs Dask (pip install 'nbnet[distributed]')", EXIT_USAGE
        ) from error
    if not plan.is_encrypted:
        return Security(require_encryption=False)
    given = {
        "tls_ca_file": plan.authority,
        "tls_client_cert": plan.certificate,
        "tls_client_key": plan.key,
    }
    # What is not given may stand in Dask's own configuration.
    named = {name: value for name, value in given.items() if value is not None}
    security = Security(require_encryption=True, **named)
    if not (security.tls_ca_file and security.tls_client_cert):
        raise CommandError(
            f"--cluster {plan.scheduler}: needs --cluster-ca and --cluster-cert", EXIT_USAGE
        )
    try:
        security.get_connection_args("client")
    except OSError as error:
        raise CommandError(
            f"--cluster-ca, --cluster-cert, --cluster-key: {_first_line(str(error))}", EXIT_USAGE
        ) from error
    return security


def _expected(result: T | BaseException) -> T | Exception:
    """What came back, unless it is something that ends the program."""
    if isinstance(result, BaseException) and not isinstance(result, Exception):
        raise result
    return result


def _by_address(host: Host) -> tuple[Any, ...]:
    """10.0.0.9 before 10.0.0.10."""
    parts = host.address.split(".")
    if all(part.isdigit() for part in parts):
        return 0, *map(int, parts)
    return 1, host.address


def _reason(error: BaseException) -> str:
    """Why there is no connection; Dask's own words say less than their cause."""
    words = _first_line(str(error.__cause__ or error))
    if words:
        return words
    return "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else ""

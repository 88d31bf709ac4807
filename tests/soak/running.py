"""A soak, round by round: the processes, what they are told, and what is wrong.

A round is load of all kinds, with hostile clients beside it and perhaps a reload in the
middle, and then rest: nobody asks, and what every process holds must be what it held
before. So a leak shows as a difference between two moments of rest, and not as a trend
in the noise; memory, which does not go back, is judged by its slope.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final

from support.serving import Serving, command, started

from nbnet.framing import encode_frame
from soak.handler import PROBE
from soak.judging import Options, Result, judge
from soak.measures import descriptors, resident

PATIENCE: Final = 120.0
"""Seconds after which something hangs."""
PROBES: Final = 300
"""Connections that it may take to reach each worker."""
_TESTS: Final = str(Path(__file__).parents[1])


class Lines:
    """What a process writes, line by line, with an end to waiting."""

    def __init__(self, stream: IO[str]) -> None:
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._queue.put(line)
        self._queue.put(None)

    def next(self, patience: float) -> str | None:
        """The next line; None at the end.

        Raises:
            TimeoutError: none came in time.
        """
        try:
            return self._queue.get(timeout=patience)
        except queue.Empty:
            raise TimeoutError from None


class Soak:
    """One soak.

    Args:
        options: what it is like.
        tell: is given the result after each round.
    """

    def __init__(self, options: Options, tell: Callable[[Result], None]) -> None:
        self._options = options
        self._tell = tell
        self.result = Result()
        self._started = time.monotonic()
        self._reloaded = threading.Event()
        self._clients = 0  # the process
        self._before = dict.fromkeys(("verified", "wrong"), 0)  # of the clients, a round ago

    def run(self) -> Result:
        """Soak; afterwards no process is left."""
        options, result = self._options, self.result
        with self._serving() as server, self._asking(server) as (words, reports):
            log = threading.Thread(target=self._read_log, args=(server,), daemon=True)
            log.start()
            self._check_rest(server, 0)
            end = self._started + options.duration
            while result.rounds < 2 or time.monotonic() + options.round / 2 < end:
                words.write("go\n")
                words.flush()
                self._load(server)
                words.write("rest\n")
                words.flush()
                try:
                    said = reports.next(PATIENCE)
                except TimeoutError:
                    result.problems.append("the clients hang")
                    break
                if said is None:
                    result.problems.append("the clients' process has died")
                    break
                self._count(json.loads(said), server)
                result.rounds += 1
                result.seconds = time.monotonic() - self._started
                self._tell(result)
            words.close()
            self._check_rest(server, 0)
            server.process.send_signal(signal.SIGTERM)
            code = server.process.wait(PATIENCE)
            log.join(PATIENCE)
            if code:
                result.problems.append(f"the server ended with {code}")
        judge(result, options)
        return result

    # Processes ------------------------------------------------------------------

    def _serving(self) -> contextlib.AbstractContextManager[Serving]:
        options = self._options
        environment = {
            "SOAK_FAULTS": options.server_faults,
            "PYTHONPATH": os.pathsep.join(filter(None, (_TESTS, os.environ.get("PYTHONPATH")))),
        }
        arguments: tuple[str, ...] = (
            "--workers",
            str(options.workers),
            "--handler",
            "soak.handler:handle",
        )
        arguments += options.server
        return started(command("serve", "--port", "0", *arguments), env=environment)

    @contextlib.contextmanager
    def _asking(self, server: Serving) -> Iterator[tuple[IO[str], Lines]]:
        options = self._options
        how = {
            "target": str(server.address),
            "threads": options.threads,
            "tasks": options.tasks,
            "rate": options.rate,
            "leak": options.client_leak,
            "parent": os.getpid(),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "soak.clients", json.dumps(how)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": _TESTS},
        )
        with process:
            self._clients = process.pid
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                yield process.stdin, Lines(process.stdout)
                process.wait(PATIENCE)
            finally:
                process.kill()

    def _read_log(self, server: Serving) -> None:
        while line := server.line():
            _, _, rest = line.partition(" ")
            if " reloaded" in line:
                self._reloaded.set()
            elif " error " in line[:60] or " critical " in line[:60]:
                self.result.problems.append(f"the server says: {rest[:300]}")

    # A round --------------------------------------------------------------------

    def _load(self, server: Serving) -> None:
        """What goes on until the next rest, beside the clients."""
        options, began = self._options, time.monotonic()
        loads = self._start_loads(server) if options.load_rate else []
        reload_at = options.round / 2 if self._reloads_now() else math.inf
        try:
            while True:
                now = time.monotonic() - began
                if now >= reload_at:
                    reload_at = math.inf
                    self._reload(server)
                if now >= options.round and all(load.poll() is not None for load in loads):
                    break
                if now >= options.round + PATIENCE:
                    self.result.problems.append("a load generator hangs")
                    break
                self._sample(server)
                time.sleep(min(options.sample_every, options.round / 10))
        finally:
            for load in loads:
                load.kill()
        for load in loads:
            self._count_load(load)

    def _reloads_now(self) -> bool:
        """Whether this round has a reload: once at least, and in the first half of the time."""
        every, result = self._options.reload_every, self.result
        if not every or result.rounds % every != every - 1:
            return False
        return not result.reloads or time.monotonic() < self._started + self._options.duration / 2

    def _start_loads(self, server: Serving) -> list[subprocess.Popen[bytes]]:
        options, target = self._options, str(server.address)
        common: tuple[str, ...] = (
            "--target",
            target,
            "--payload-unique",
            "--rate",
            f"{options.load_rate:g}",
        )
        common = (*common, "--conns", "20", "--timeout", "30s", "--grace", "10s", "--json", "-")
        seconds = max(1.0, options.round - 2)
        seed = str(self.result.rounds)
        return [
            subprocess.Popen(
                [sys.executable, "-m", "loadgen", *arguments, *common, "--seed", seed],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            for arguments in (
                ("--duration", f"{seconds}s", "--pipeline", "4", "--payload-size", "16-3KiB"),
                (
                    *("chaos", "--calm", "0.25s", "--storm", f"{seconds - 0.5}s", "--recovery"),
                    *("0.25s", "--abusers", str(options.abusers), "--payload-size", "64"),
                    *("--abuse-timeout", "30s"),
                ),
            )
        ]

    def _count_load(self, load: subprocess.Popen[bytes]) -> None:
        result = self.result
        with load:
            assert load.stdout is not None
            try:
                document = json.loads(load.stdout.read())
            except ValueError:
                result.problems.append(f"a load generator ended with {load.wait()} and no report")
                return
        run = document.get("load", document)
        requests = run["requests"]
        result.verified += requests["verified"]
        result.wrong += requests["wrong"]
        result.failed.update(
            {f"loadgen: {kind}": count for kind, count in run["errors"].items() if count}
        )
        for abuse in document.get("abuses", ()):
            result.abuses += abuse["right"]
            result.wrong_abuses += abuse["wrong"]
            if abuse["wrong"]:
                result.problems.append(f"{abuse['name']}: {json.dumps(abuse['examples'])[:600]}")
        if requests["failed"] or requests["timed_out"] or run["connections"]["lost"]:
            result.problems.append(run["verdict"])

    def _reload(self, server: Serving) -> None:
        self._reloaded.clear()
        server.process.send_signal(signal.SIGHUP)
        if self._reloaded.wait(PATIENCE):
            self.result.reloads += 1
        else:
            self.result.problems.append("a reload hangs")

    def _sample(self, server: Serving) -> None:
        now = time.monotonic() - self._started
        pid = server.process.pid
        processes = [("supervisor", pid), ("clients", self._clients)]
        processes += [("workers", worker) for worker in server.children()]
        for kind, each in processes:
            with contextlib.suppress(OSError, IndexError):
                self.result.memory[kind][each].append((now, resident(each)))

    # At rest --------------------------------------------------------------------

    def _count(self, report: dict[str, Any], server: Serving) -> None:
        result = self.result
        before, self._before = self._before, {name: report[name] for name in self._before}
        result.verified += report["verified"] - before["verified"]
        result.wrong += report["wrong"] - before["wrong"]
        result.given_up = report["given_up"]
        for kind, count in report["failed"].items():
            result.failed[f"client: {kind}"] = count
        result.examples = report["examples"]
        result.holdings["clients"][self._clients].add(report)
        result.client_descriptors.append((report["connections"], report["others"]))
        self._check_rest(server, report["connections"])
        for worker in self._probe(server).values():
            result.holdings["workers"][worker["pid"]].add(worker)

    def _check_rest(self, server: Serving, connections: int) -> None:
        """The server's descriptors are those of the last rest and those of the clients."""
        seen = self.result.server_descriptors
        deadline = time.monotonic() + self._options.settle
        now = self._server_descriptors(server, connections)
        while seen and now != seen[-1] and time.monotonic() < deadline:
            time.sleep(0.02)
            now = self._server_descriptors(server, connections)
        seen.append(now)

    def _server_descriptors(self, server: Serving, connections: int) -> tuple[int, int]:
        sockets = others = 0
        for pid in (server.process.pid, *server.children()):
            with contextlib.suppress(OSError):
                some = descriptors(pid)
                sockets += some[0]
                others += some[1]
        return sockets - connections, others

    def _probe(self, server: Serving) -> dict[int, dict[str, Any]]:
        """What each worker holds."""
        held: dict[int, dict[str, Any]] = {}
        workers = set(server.children())
        for _ in range(PROBES):
            answer = server.ask(encode_frame(PROBE))[5:]
            report = json.loads(answer) if answer else {}
            if "pid" in report:
                held[report["pid"]] = report
            if workers <= held.keys():
                return held
        self.result.problems.append(f"of {len(workers)} workers {len(held)} answer")
        return held

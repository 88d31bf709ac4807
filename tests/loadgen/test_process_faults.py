"""Loads whose processes are killed or stopped, and reports that cannot be written.

What is lost is what the manual says, and nothing else. A server that dies costs the
requests it had; one that stands still, or a load generator that does, is told as it
was; an engine that dies ends the run. A disk that is full costs the new report and
neither the old one nor the summary. Nothing is left behind, and errors are one line.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loadgen import running as loads
from loadgen.plan import Plan
from loadgen.tally import Phase, Tally
from nbnet import Server
from nbnet.notation import Target

from .command import PATIENCE, Ended, call, measure, running
from .processes import children_of, is_gone, wait_until

STALL = 0.4
"""Seconds for which a process stands still."""
BRIEF = "--step-duration 99ms --confirm-duration 99ms"


@pytest.fixture
def at_start(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Does something as soon as a run measures; its engines go on meanwhile."""

    def arrange(act: Callable[[], object]) -> None:
        @contextlib.contextmanager
        def progress(_: Plan) -> Iterator[Callable[[Tally], None]]:
            acts = [act]

            def draw(tally: Tally) -> None:
                if tally.phase is Phase.MEASURING and acts:
                    acts.pop()()

            yield draw

        monkeypatch.setattr(loads, "live_progress", progress)

    return arrange


def child(module: str) -> int:
    return children_of(os.getpid())[f"loadgen.{module}"]


def kill(module: str, number: signal.Signals = signal.SIGKILL) -> Callable[[], object]:
    return lambda: os.kill(child(module), number)


def stall(module: str, seconds: float = STALL) -> Callable[[], object]:
    """Stop a child of this process for so long."""

    def stop_and_continue() -> None:
        pid = child(module)
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            os.kill(pid, signal.SIGCONT)

    return stop_and_continue


AtStart = Callable[[Callable[[], object]], None]
OPEN = ("-c", "4", "--rate", "200")


# The server ----------------------------------------------------------------------------


def test_a_bundled_server_that_is_killed_costs_its_requests_and_fails_the_run(
    at_start: AtStart,
) -> None:
    at_start(kill("embedded"))
    code, figures = measure("-c", "4", "-d", "0.6")
    assert code == 1
    requests = figures["requests"]
    assert requests["sent"] == requests["verified"] + requests["failed"] > 0
    assert 0 < requests["failed"] <= 8, "on each connection one, and on its replacement"
    assert figures["errors"]["connect: refused"] > 0
    assert figures["verdict"].startswith("FAILED: ")
    assert figures["duration_seconds"] == 0.6


def test_a_bundled_server_that_stands_still_is_told_as_a_stall(at_start: AtStart) -> None:
    at_start(stall("embedded"))
    code, figures = measure(*OPEN, "-n", "200")  # however late they are
    assert (code, figures["verdict"]) == (0, "OK: every reply verified")
    assert figures["requests"]["verified"] == figures["requests"]["planned"] == 200
    assert figures["latency_seconds"]["max"] >= 0.9 * STALL
    assert figures["service_seconds"]["max"] >= 0.9 * STALL
    assert figures["split"]["server_seconds"]["count"] > 0


@pytest.mark.slow
def test_a_bundled_server_that_stands_still_for_good_keeps_nobody(at_start: AtStart) -> None:
    at_start(kill("embedded", signal.SIGSTOP))
    code, figures = measure(*OPEN, "-d", "0.5", "--grace", "0.1")
    assert code == 1
    requests = figures["requests"]
    assert requests["sent"] == requests["verified"] + requests["timed_out"]
    assert requests["timed_out"] == 4
    assert requests["planned"] == requests["sent"] + requests["unsent"] == 100


# The load generator ----------------------------------------------------------------------


def test_an_engine_that_stands_still_is_told_as_late_and_not_as_the_servers_fault(
    address: Target, at_start: AtStart
) -> None:
    at_start(stall("worker"))
    code, figures = measure("-t", str(address), *OPEN, "-n", "200", "--timeout", "0.2")
    assert (code, figures["verdict"]) == (0, "OK: every reply verified")
    requests = figures["requests"]
    assert requests["verified"] == requests["planned"] == 200
    assert requests["late"] >= 0.8 * STALL * 200
    assert figures["latency_seconds"]["max"] >= 0.9 * STALL


def test_an_engine_that_stands_still_until_the_end_does_not_blame_the_server(
    address: Target, at_start: AtStart
) -> None:
    at_start(stall("worker", 1.1))
    ended = call("-t", str(address), *OPEN, "-d", "1")
    assert ended.code == 0
    assert "RATE MISSED: " in ended.out
    assert "the loader did not keep up" in " ".join(ended.out.split())
    assert "LOADER-BOUND: " in ended.out


def test_engines_go_on_while_their_parent_stands_still(at_start: AtStart) -> None:
    served, requests = threading.Event(), itertools.count(1)

    def count(payload: bytes) -> bytes:
        if next(requests) == 100:
            served.set()
        return payload[::-1]

    at_start(lambda: served.wait(PATIENCE))
    with Server(count, port=0) as server:
        code, figures = measure("-t", str(server.address), *OPEN, "-n", "100")
    assert served.is_set()
    assert code == 0
    assert figures["requests"]["verified"] == figures["requests"]["planned"] == 100


@pytest.mark.parametrize(
    ("arguments", "modules"),
    [
        (
            ["chaos", "-c", "2"],
            {"loadgen.embedded", "loadgen.worker", "loadgen.chaos_process"},
        ),
        pytest.param(
            ["compare", *(f"--{each}-command={{nbnet}} --port {{port}}" for each in "ab"), "-c2"],
            {"nbnet", "loadgen.worker"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["chaos", "compare"],
)
def test_nobody_outlives_a_command_that_is_killed(arguments: list[str], modules: set[str]) -> None:
    nbnet = f"{shlex.quote(sys.executable)} -m nbnet serve"
    with running(*(each.replace("{nbnet}", nbnet) for each in arguments)) as process:
        wait_until(lambda: children_of(process.pid).keys() >= modules)
        children = list(children_of(process.pid).values())
        process.kill()
        process.wait(PATIENCE)
        wait_until(lambda: all(is_gone(pid) for pid in children))


def test_a_terminal_that_goes_away_costs_the_display_alone(
    address: Target, terminal: tuple[int, int]
) -> None:
    """Its master is closed: whatever is drawn is an error from then on."""
    person, program = terminal
    with running("-t", str(address), "-c", "2", "-d", "0.5", stderr=program) as process:
        assert os.read(person, 100)
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, person)  # closes it, and leaves the fixture one to close
        os.close(nowhere)
        out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert out.endswith("OK: every reply verified\n")


# Reports ---------------------------------------------------------------------------------

FORMS = ("json", "html", "csv", "hgrm", "hlog")
OPTIONS = [text for form in FORMS for text in (f"--{form}", f"run.{form}")]


def loadgen(address: Target, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "loadgen", "-t", str(address), "-n", "9", "-c1", *arguments]


def run_in(folder: Path, script: str, *arguments: str) -> Ended:
    done = subprocess.run(
        ["sh", "-c", script, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    "old", [pytest.param(False, marks=pytest.mark.slow), True], ids=["new", "old"]
)
def test_files_that_may_not_grow_are_as_before_and_the_summary_is_printed(
    tmp_path: Path, address: Target, old: bool
) -> None:
    for form in FORMS if old else ():
        (tmp_path / f"run.{form}").write_text("an older run")
    # Where coverage is measured it writes a file too, and complains.
    script = 'unset COVERAGE_PROCESS_START COVERAGE_PROCESS_CONFIG; ulimit -f 0; exec "$0" "$@"'
    ended = run_in(tmp_path, script, *loadgen(address, *OPTIONS))
    assert ended.code == 1
    assert ended.out.endswith("OK: every reply verified\n")
    [line] = ended.err.splitlines()
    assert line == "loadgen: " + "; ".join(
        f"cannot write run.{form}: File too large" for form in FORMS
    )
    left = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert left == {f"run.{form}": "an older run" for form in FORMS if old}


DISK = """
mount -t tmpfs -o size=64k tmpfs . && cd "$PWD" || exit 77
for form in json html csv hgrm hlog; do printf 'an older run' >run.$form; done
cat /dev/zero >full 2>/dev/null
"$0" "$@"
echo "exit $?"
cat run.*
ls -A
"""


def test_a_disk_that_is_full_leaves_older_reports_as_they_were(
    tmp_path: Path, address: Target
) -> None:
    ended = run_in(tmp_path, 'exec unshare -rm sh -c "$@"', "sh", DISK, *loadgen(address, *OPTIONS))
    if ended.code == 77 or "unshare" in ended.err:
        pytest.skip("needs a file system of its own")
    [line] = ended.err.splitlines()
    assert line == "loadgen: " + "; ".join(
        f"cannot write run.{form}: No space left on device" for form in FORMS
    )
    summary, _, rest = ended.out.partition("exit 1\n")
    assert summary.endswith("OK: every reply verified\n")
    names = ["full", *sorted(f"run.{form}" for form in FORMS)]
    assert rest == "an older run" * len(FORMS) + "\n".join([*names, ""])


@pytest.mark.parametrize(
    "arguments",
    [
        "--repeat 2 -t {target} -n 2 -c 1",
        "compare --a {target} --b {target} -c 1 -d 10ms --repeat 2",
        "chaos -t {target} -c 1 --calm 100ms --storm 100ms --recovery 100ms --abuses split",
        f"capacity -t {{target}} --slo p99<9s --start 50 --max-rate 50 -c 1 {BRIEF}",
    ],
    ids=lambda arguments: arguments.split()[0],
)
def test_every_command_says_in_one_line_that_its_report_cannot_be_written(
    address: Target, arguments: str
) -> None:
    words = arguments.replace("{target}", str(address)).split()
    ended = call(*words, "--json", "/dev/full")
    assert ended.code == 1, ended.err
    assert ended.err.splitlines()[-1] == (
        "loadgen: cannot write /dev/full: No space left on device"
    )
    assert ended.out, "what was found is printed all the same"


@pytest.mark.parametrize(
    ("where", "line"),
    [
        (">/dev/full", "loadgen: cannot write standard output: No space left on device"),
        pytest.param("| :", "", marks=pytest.mark.slow),
    ],
)
def test_a_summary_that_cannot_be_written_costs_no_file(
    tmp_path: Path, address: Target, where: str, line: str
) -> None:
    arguments = loadgen(address, "--csv", "run.csv")
    ended = run_in(tmp_path, f'{{ "$0" "$@"; echo "exit $?" >&2; }} {where}', *arguments)
    assert ended.err == "".join(f"{each}\n" for each in (line, "exit 1") if each)
    assert (tmp_path / "run.csv").read_text().startswith("t,")


def test_a_full_disk_under_standard_error_changes_no_exit_code(
    tmp_path: Path, refusing: Target
) -> None:
    assert run_in(tmp_path, '"$0" "$@" 2>/dev/full', *loadgen(refusing)).code == 4

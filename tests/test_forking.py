"""Commands that are forked behave as those that are started."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.forking import Forked, run
from support.serving import command, wait_for_end

TIMEOUT = 30.0


def python(code: str, *arguments: str | bytes) -> list[str | bytes]:
    return [sys.executable, "-c", code, *arguments]


def same_by_both(args: list[Any], **popen: Any) -> subprocess.CompletedProcess[Any]:
    """What comes of it, which has to be the same as of an interpreter of its own."""
    forked = run(args, timeout=TIMEOUT, **popen)
    started = subprocess.run(args, capture_output=True, timeout=TIMEOUT, **popen)
    assert vars(forked) == vars(started)
    return forked


SURROUNDINGS = """
import gc, json, locale, os, signal, sys, threading
import pickle
class Ours: pass
pickle.loads(pickle.dumps(Ours()))  # which looks for it in __main__
streams = [
    [each.name, each.mode, each.encoding, each.errors, each.line_buffering, each.write_through,
     each.fileno(), each is getattr(sys, f"__{name}__")]
    for name, each in (("in", sys.stdin), ("out", sys.stdout), ("err", sys.stderr))
    for name in [f"std{name}"]
]
signals = {str(each): str(signal.getsignal(each)) for each in signal.valid_signals()}
print(json.dumps([
    __name__, sys.argv, sys.path, sys.executable, sys.flags, os.getcwd(),
    dict(os.environ), sorted(os.listdir("/proc/self/fd")), streams, signals, gc.isenabled(),
    gc.get_threshold(), threading.active_count(), threading.current_thread().name,
    os.umask(0), os.getpid() == os.getpgid(0), sorted(signal.pthread_sigmask(0, [])),
]))
"""


@pytest.mark.parametrize("session", [False, True])
def test_its_surroundings_are_those_of_an_interpreter_of_its_own(
    tmp_path: Path, session: bool
) -> None:
    environment = {**os.environ, "NAME": "\udcff"}
    done = same_by_both(
        python(SURROUNDINGS, "a", b"\xff"),
        cwd=tmp_path,
        env=environment,
        start_new_session=session,
        stdin=subprocess.DEVNULL,
    )
    assert not done.stderr, done.stderr
    name, arguments, path, *_ = json.loads(done.stdout)
    assert (name, arguments, path[0]) == ("__main__", ["-c", "a", "\udcff"], "")


def test_a_module_is_found_in_its_directory(tmp_path: Path) -> None:
    (tmp_path / "tool").mkdir()
    (tmp_path / "tool" / "__main__.py").write_text(
        "import sys\nprint(__name__, __file__, sys.argv, sys.path)\n"
        "assert sys.modules['__main__'].__dict__ is globals()\n"
    )
    done = same_by_both([sys.executable, "-m", "tool", "x"], cwd=tmp_path, text=True)
    assert done.stdout.startswith(f"__main__ {tmp_path}/tool/__main__.py")


LATER = """
import threading
main = threading.main_thread()
threading.Thread(target=lambda: (main.join(), print("later"))).start()
"""


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("pass", 0),
        ("raise SystemExit(7)", 7),
        ("import os; os._exit(9)", 9),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import signal; signal.raise_signal(signal.SIGINT)", -2),
        ("import sys; sys.exit('no')", 1),
        ("print('held back'); import os; os.close(1)", 120),
        ("import atexit; atexit.register(print, 'late')", 0),
        (LATER, 0),
    ],
)
def test_it_ends_as_an_interpreter_does(code: str, expected: int) -> None:
    done = run(python(code), text=True, timeout=TIMEOUT)
    started = subprocess.run(python(code), capture_output=True, text=True, timeout=TIMEOUT)
    assert (done.returncode, done.stdout) == (started.returncode, started.stdout)
    assert done.returncode == expected
    # A traceback has more lines of what called.
    assert done.stderr.splitlines()[-1:] == started.stderr.splitlines()[-1:]


@pytest.mark.parametrize("name", ["nbnet", "nbclient", "loadgen"])
def test_the_commands_are_the_same(name: str) -> None:
    done = same_by_both([sys.executable, "-m", name, "--no-such-option"], text=True)
    assert (done.returncode, done.stdout) == (2, "")


def test_a_terminal_gets_each_line() -> None:
    person, program = pty.openpty()
    code = "import sys; print('line'); sys.stdin.read()"
    with Forked[bytes](python(code), stdin=subprocess.PIPE, stdout=program) as process:
        os.close(program)
        with os.fdopen(person, "rb", buffering=0) as screen:
            assert screen.read(100) == b"line\r\n"
            process.communicate(timeout=TIMEOUT)


def test_it_is_written_to_and_read_from_and_waited_for() -> None:
    code = "import sys; print('ready', flush=True); print(sys.stdin.read()[::-1])"
    pipe = subprocess.PIPE
    with Forked[str](python(code), stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.001)
        out, _ = process.communicate("abc" * 100_000, timeout=TIMEOUT)
        assert out == "cba" * 100_000 + "\n"
        assert (process.poll(), process.wait(), process.returncode) == (0, 0, 0)
        process.terminate()  # which is late


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_signals_reach_it(number: signal.Signals) -> None:
    with Forked[bytes](python("import signal; signal.pause()")) as process:
        process.send_signal(number)
        assert process.wait(TIMEOUT) == -number


def test_threads_may_wait_for_it_and_another_one_end_it() -> None:
    forever = python("import signal; signal.pause()")
    with Forked[bytes](forever) as process, ThreadPoolExecutor() as pool:
        ends = [pool.submit(process.wait, TIMEOUT) for _ in range(3)]
        process.kill()
        assert [end.result() for end in ends] == [-signal.SIGKILL] * 3


def test_several_at_a_time_end_in_any_order_and_leave_no_descriptor() -> None:
    run(python("pass"), timeout=TIMEOUT)
    before = sorted(Path("/proc/self/fd").iterdir())
    processes = [
        Forked[bytes](python("input()"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(5)
    ]
    for process in processes[::-1]:
        assert process.communicate(b"\n", timeout=TIMEOUT)[0] == b""
        assert process.returncode == 0
    assert sorted(Path("/proc/self/fd").iterdir()) == before


TESTS = """
import sys
from support.forking import Forked
with Forked([sys.executable, "-c", "import signal; signal.pause()"]) as process:
    print(process.pid, flush=True)
    process.wait()
"""


def test_it_ends_with_the_tests_however_they_do() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen(python(TESTS), stdout=subprocess.PIPE, env=environment) as tests:
        assert tests.stdout is not None
        pid = int(tests.stdout.readline())
        tests.kill()
        wait_for_end(pid)


@pytest.mark.parametrize("name", ["PYTHONUNBUFFERED", "LC_ALL"])
def test_what_an_interpreter_reads_at_its_start_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    refusal = pytest.raises(ValueError, match=f"{name} is read when an interpreter starts")
    with refusal:
        Forked[bytes](command("--version"), env={**os.environ, name: "other"})
    monkeypatch.setenv(name, "other")
    with refusal:
        Forked[bytes](command("--version"))


def test_what_is_no_interpreter_is_refused() -> None:
    with pytest.raises(ValueError, match="and -m or -c"):
        Forked[bytes](["sh", "-c", "true"])
